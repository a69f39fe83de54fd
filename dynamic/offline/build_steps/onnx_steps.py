"""The steps of `build` for ONNX files alone, which need no torch."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from dynamic.data.arrays import as_numbers
from dynamic.engines.contract import Array, CascadeSpec, InputSpec, StageSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.build_steps.engine_comparison import PARITY, compare_engines
from dynamic.offline.build_steps.file_executor import FileExecutor
from dynamic.offline.build_steps.loaders import LABELS, check_labels
from dynamic.offline.build_steps.network_names import check_not_torch, numbered
from dynamic.offline.build_steps.weight_file import WeightFile
from dynamic.offline.onnx_export.node_names import check_names
from dynamic.offline.onnx_files.class_names import check_sums, class_names
from dynamic.offline.onnx_files.onnx_file import OnnxModel
from dynamic.offline.onnx_files.stages.file_stage import ROUNDED, FileStage, file_stage, repeated
from dynamic.offline.onnx_files.stages.operator_versions import common_versions
from dynamic.policies.errors import InputError
from dynamic.policies.records import Records
from dynamic.policies.scores import Combination, Combiner, check_combination
from dynamic.progress import track
from dynamic.storage.atomic_write import disk_errors

_ROWS = (2, 1, 5)  # batch sizes at which graphs are compared with their files


class OnnxSteps:
    """See `BuildSteps`."""

    modules = None

    def __init__(self, models: Sequence[OnnxModel], combine: Combination) -> None:
        self.combine = check_combination(combine)
        self.names = numbered([model.name for model in models])
        self._models = tuple(models)
        self.file_stages: tuple[FileStage, ...] = ()
        self._spec: CascadeSpec | None = None

    def fingerprint(self) -> str:
        """See `BuildSteps`. It is that of a `Cascade` of the same files."""
        digest = hashlib.sha256(self.combine.encode())
        for name in self.names:
            digest.update(f"|{name}".encode())
        for place, model in enumerate(self._models):
            content = bytes.fromhex(model.content)
            digest.update(f"|networks.{place}.content{(len(content),)}torch.uint8".encode() + content)
        return digest.hexdigest()

    def check_engine(self, engine: str) -> None:
        """See `BuildSteps`."""
        check_not_torch(self.names, engine)

    def watch(self, batches: Iterable[Any], example: Any, allow_reuse: bool) -> Iterable[Any]:
        """See `BuildSteps`. Nothing here trained a file."""
        return batches

    def arrays(self, batch: Any) -> dict[str, Array]:
        """See `BuildSteps`. A single array has the name `input`, a tuple the names of the first file."""
        if isinstance(batch, Mapping):
            named = {str(name): value for name, value in batch.items() if value is not None and name not in LABELS}
        elif isinstance(batch, (tuple, list)):
            names = self._models[0].input_names
            if len(names) < len(batch):
                names = tuple(f"input_{i}" for i in range(len(batch)))
            named = dict(zip(names, batch, strict=False))
        else:
            named = {"input": batch}
        if not named:
            raise InputError("a batch holds no input. Give an array, a tuple or a dict of arrays")
        arrays = {name: as_numbers(value, f"input {name!r}") for name, value in named.items()}
        for name, array in arrays.items():
            if array.ndim == 0:
                raise InputError(f"input {name!r} has shape [], expected [B, ...]")
        return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in arrays.items()}

    def describe(self, preprocess: Any, example: Any, labels: NDArray[np.int64] | None) -> CascadeSpec:
        """See `BuildSteps`."""
        arrays = self.arrays(example)
        check_names(arrays)
        self.file_stages = tuple(file_stage(model, arrays) for model in self._models)
        first = self.file_stages[0]
        for stage in self.file_stages:
            if stage.classes != first.classes:
                raise InputError(
                    f"{stage.model.path} has {stage.classes} classes, {first.model.path} {first.classes}: all networks "
                    "of a cascade need the same classes"
                )
        rows = {len(array) for array in arrays.values()} | ({len(labels)} if labels is not None else set())
        if len(rows) > 1:
            raise InputError(f"a batch has {sorted(rows)} rows of inputs and labels: give as many of each")
        if labels is not None and len(labels):
            check_labels(labels, first.classes)
        inputs = tuple(InputSpec(name, tuple(a.shape[1:]), a.dtype.name) for name, a in arrays.items())
        stages = tuple(
            StageSpec(name, place, 0, f"backbones/{place}_{place}.onnx", None, stage.macs, 0.0)
            for place, (name, stage) in enumerate(zip(self.names, self.file_stages, strict=True))
        )
        self._spec = CascadeSpec(inputs, stages, first.classes)
        return self._spec

    def class_names(self, classes: Sequence[str] | None) -> Sequence[str] | None:
        """See `BuildSteps`."""
        return class_names(self._models, classes)

    @contextmanager
    def running(self) -> Iterator[None]:
        """See `BuildSteps`. The files' own sessions are freed at the end."""
        try:
            yield
        finally:
            FileExecutor(self.file_stages).close()

    def export(self, folder: Path, example: Any, engine: str, progress: bool | None) -> tuple[CascadeSpec, bool]:
        """See `BuildSteps`."""
        spec = self._spec
        assert spec is not None, "describe comes first"
        versions = common_versions(stage.batch.model for stage in self.file_stages)
        (folder / "backbones").mkdir(parents=True, exist_ok=True)
        pairs = list(zip(spec.stages, self.file_stages, strict=True))
        for described, stage in track(pairs, "exporting", len(pairs), progress):
            graph = stage.graph(spec.inputs, versions)
            with disk_errors("the graph", folder):
                WeightFile(folder / "backbones" / f"{described.backbone}.weights").move(graph)
                onnx.save(graph, folder / described.graph)
        return spec, True

    def with_limits(self, spec: CascadeSpec, preprocess: Any, example: Any) -> CascadeSpec:
        """See `BuildSteps`. Tables of embeddings in files are not looked for."""
        return spec

    def stages(self, spec: CascadeSpec) -> None:
        """See `BuildSteps`."""

    def check_parity(self, engine: CascadeEngine, spec: CascadeSpec, example: Any) -> None:
        """See `BuildSteps`."""
        plain = (1.0,) * len(spec.stages)
        combiner = Combiner(plain, "max_probability", combine=self.combine, backbone=spec.backbone)
        own = StageEngine(FileExecutor(self.file_stages), spec, combiner)
        five = repeated(self.arrays(example), max(_ROWS))
        cases = [{name: array[:rows] for name, array in five.items()} for rows in _ROWS]
        shares = [max(PARITY[engine.precision], ROUNDED if s.model.rounds else 0.0) for s in self.file_stages]
        compare_engines(own, engine, cases, shares, "the file", "use another engine, or report the file")

    def check_records(self, records: Records) -> None:
        """See `BuildSteps`."""
        for place, stage in enumerate(self.file_stages):
            if stage.kind == "probabilities":
                check_sums(records, place, stage.model)

    def save_weights(self, folder: Path) -> None:
        """See `BuildSteps`. Weights are in the graphs."""
