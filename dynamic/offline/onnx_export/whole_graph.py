"""The whole cascade as one ONNX file: for bundles, and to take along to any language that has an ONNX engine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from onnx import external_data_helper

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_engine import has_graphs
from dynamic.bundle.contract import Preprocessing
from dynamic.data.number_steps import Normalize
from dynamic.data.preprocessing import Preprocess
from dynamic.engines.contract import GRAPH, SINGLE_GRAPH, CascadeSpec
from dynamic.offline.onnx_export.nested_graph import Nest
from dynamic.offline.onnx_export.node_names import check_names
from dynamic.offline.onnx_export.triton.repository import (
    MODEL_FILE,
    check_triton_options,
    with_thresholds,
    write_config,
)
from dynamic.offline.option_words import ExportFormat, RowCount, check_word
from dynamic.policies.errors import EngineError, InputError
from dynamic.policies.ladder import Ladder
from dynamic.policies.scores import Combination
from dynamic.storage.atomic_write import disk_errors
from dynamic.storage.disk_sync import sync_tree
from dynamic.storage.temporary_files import TemporaryFolder, fresh_folder

if TYPE_CHECKING:  # a bundle is exported without torch
    from torch import nn

    from dynamic.offline.batches import Batch
    from dynamic.offline.cascade import Cascade

SCHEMA = 1

_SUFFIXES = (".onnx", "")
_MOST_BYTES = 1_800_000_000  # of weights inside the file: protobuf ends at 2 GiB


def export(
    source: Bundle | Cascade | nn.Module | Sequence[nn.Module],
    path: str | Path,
    *,
    batch: RowCount = "dynamic",
    point: str | None = None,
    format: ExportFormat = "onnx",
    max_batch: int | None = None,
    example_inputs: Batch | None = None,
    ladder: Ladder | None = None,
    preprocess: Any = None,
    classes: Sequence[str] | None = None,
    progress: bool | None = None,
) -> Path:
    """Write the whole cascade as one ONNX file that ONNX Runtime and OpenVINO run without this library.

    With `format="triton"`, that file becomes a model in a repository of Triton's server: `path` is the folder of the
    model, with `config.pbtxt`, `labels.txt` and `1/model.onnx`. Its thresholds are those of `point`, unless a request
    brings its own.

    Inputs of the graph are the cascade's own (`input`, or the names of the network's arguments) and
    `thresholds [S-1]`, float32. An input exits at a stage when `threshold < score`. With -inf every input exits, with
    +inf the exit is off and costs nothing. A network whose exits are all off is not run. A cascade of one stage has no
    thresholds. Outputs are `logits [B, C]` (logarithms of the answer's probabilities), `stage [B]` (int64) and
    `score [B]`. The metadata of the file describes all this, see docs/reference/graph.md.

    Args:
        source: A bundle, which brings temperatures, score, preprocessing, class names and ladder. Or networks.
        path: The file to write, with the suffix .onnx or none. With "triton" the folder, whose name the model has.
        batch: "dynamic" for any number of inputs, which leave the batch inside the graph as they exit. "single" for
            one input at a time, which is faster for that.
        point: Name of an operating point. The file then holds only what that point uses, and is smaller. Numbers of
            stages and `thresholds` are as before. An exit in the file is not switched off by +inf, and where every
            input exits, one with a score of NaN exits too. None: the whole cascade. With "triton" it has to be given,
            and the whole cascade is written, so that requests may bring the thresholds of other points.
        format: "onnx" for the file, "triton" for a model of Triton's server on its backend onnxruntime.
        max_batch: With "triton": rows up to which Triton puts requests together. The thresholds are then fixed, since
            Triton has no optional inputs in batches. None: it hands over each request as it comes.
        example_inputs: A batch as the networks take it, always needed for networks and never for a bundle.
        ladder: Of networks. None: temperature 1 and maximum probability.
        preprocess: Of networks, as in `build`. The graph then takes images as bytes `[B, H, W, C]`, resized and
            cropped already, and scales and normalizes them. Of sounds it takes the features, `[B, 1, mels, frames]`.
        classes: Of networks, names in label order.
        progress: Whether a progress bar is shown. None: in a terminal.

    Returns:
        The path.

    Raises:
        InputError: A word or a point is unknown or missing, or the suffix is another. Example inputs are missing, an
            input has a name that the graph uses, or the preprocessing is for another number of channels.
        EngineError: A stage cannot be exported, or the file cannot be written.

    Example:
        >>> dynamic.export(bundle, "model.onnx", batch="single").name
        'model.onnx'
    """
    check_word("batch", batch, RowCount, InputError)
    check_word("format", format, ExportFormat, InputError)
    target = Path(path)
    if format == "triton":
        return _to_triton(source, target, batch, point, max_batch)
    if max_batch is not None:
        raise InputError(f'max_batch={max_batch!r} is for format="triton": leave it out, or give that format')
    if target.suffix.lower() not in _SUFFIXES:
        raise InputError(
            f"{target.name} ends in {target.suffix!r}, and what is written is ONNX: name it {target.stem}.onnx"
        )
    if isinstance(source, Bundle):
        if example_inputs is not None or ladder is not None or preprocess is not None or classes is not None:
            raise InputError("a bundle has its own ladder, preprocessing and classes: give none of them")
        facts = _Facts(source.preprocess, source.classes, source.engine, source.precision)
        with source.files(*source.hashes) as folder:
            _check_graphs(source, folder)
            _write(target, folder, source.spec, _only(source.ladder, point), batch, facts, point is not None)
        return target
    from dynamic.offline.cascade import Cascade
    from dynamic.offline.onnx_export.stage_graphs import export_stages
    from dynamic.offline.torchvision_transforms import from_transforms

    if example_inputs is None:
        raise InputError("a cascade is exported with example_inputs=..., a batch as its networks take it")
    cascade = source if isinstance(source, Cascade) else Cascade(source)
    shipped = from_transforms(preprocess)
    with TemporaryFolder("export") as folder:
        spec = export_stages(cascade, folder, example_inputs, progress)
        own_ladder = _only(ladder or plain_ladder(spec, cascade.combine), point)
        _write(target, folder, spec, own_ladder, batch, _Facts(shipped, classes), point is not None)
    return target


def _to_triton(source: Any, target: Path, batch: RowCount, point: str | None, max_batch: int | None) -> Path:
    if not isinstance(source, Bundle):
        raise InputError('format="triton" takes a bundle, which has operating points: build one first')
    check_triton_options(target, source.ladder, batch, point, max_batch)
    limits = _only(source.ladder, point).points[0].thresholds
    facts = _Facts(source.preprocess, source.classes, source.engine, source.precision)
    change = partial(with_thresholds, thresholds=limits, is_input=max_batch is None)
    with source.files(*source.hashes) as folder:
        _check_graphs(source, folder)
        _write(target / MODEL_FILE, folder, source.spec, source.ladder, batch, facts, only=False, change=change)
    write_config(target, max_batch, source.classes)
    return target


def _check_graphs(bundle: Bundle, folder: Path) -> None:
    if not has_graphs(folder, bundle.spec):
        raise EngineError(
            f"{bundle.folder} holds no graphs, since torch could not export its networks: it runs on engine 'torch'"
        )


def _only(ladder: Ladder, point: str | None) -> Ladder:
    """The ladder with that point alone."""
    if point is None:
        return ladder
    points = [p for p in ladder.points if p.name == point]
    if not points:
        raise InputError(f"point={point!r} is not on this ladder. It has {[p.name for p in ladder.points]}")
    return replace(ladder, points=tuple(points))


def plain_ladder(spec: CascadeSpec, combine: Combination) -> Ladder:
    """A ladder without points, for a cascade without calibration: temperature 1, maximum probability."""
    return Ladder(
        temperature=(1.0,) * len(spec.stages),
        score="max_probability",
        combine=combine,
        backbone=spec.backbone,
        stage_names=tuple(s.name for s in spec.stages),
        points=(),
        fingerprint="",
        certified=False,
    )


def write_graphs(
    folder: Path,
    spec: CascadeSpec,
    ladder: Ladder,
    engine: str | None = None,
    precision: str | None = None,
) -> None:
    """Write a bundle's graphs beside the stages' own, whose weights they share. Their inputs are those of the network.

    `engine`, `precision`: of the calibration. Except for "openvino" the graphs are laid out for ONNX Runtime. They run
    on both. Raises InputError on an input whose name the graphs use themselves.
    """
    facts = _Facts(engine=engine, precision=precision)
    for batch, file in (("dynamic", GRAPH), ("single", SINGLE_GRAPH)):
        model = _nest(folder, spec, ladder, batch, None, only=False, engine=engine)
        with disk_errors("the graph", folder):
            onnx.save(_described(model, spec, ladder, facts), folder / file)


@dataclass(frozen=True)
class _Facts:
    """What the graph's numbers depend on, beside cascade and ladder, where that is given."""

    preprocess: Preprocessing | None = None
    classes: Sequence[str] | None = None
    engine: str | None = None
    precision: str | None = None


def _nest(
    folder: Path,
    spec: CascadeSpec,
    ladder: Ladder,
    batch: str,
    preprocess: Preprocess | None,
    only: bool,
    engine: str | None,
) -> onnx.ModelProto:
    if len(ladder.temperature) != len(spec.stages):
        raise InputError(f"the ladder is of {len(ladder.temperature)} stages, the cascade has {len(spec.stages)}")
    check_names(i.name for i in spec.inputs)
    if preprocess is not None and (len(spec.inputs) != 1 or len(spec.inputs[0].shape) != 3):
        raise InputError("preprocessing goes into a graph that takes one image [C, H, W]. Export with preprocess=None")
    for step in preprocess.steps if preprocess is not None else ():
        if isinstance(step, Normalize):
            step.check(spec.inputs[0].shape[0])
    limits = ladder.points[0].thresholds if only else None
    rule = ladder.temperature, ladder.score, ladder.combine
    return Nest(folder, spec, *rule, batch, preprocess, limits, blocks=engine != "openvino").model()


def _write(
    target: Path,
    folder: Path,
    spec: CascadeSpec,
    ladder: Ladder,
    batch: str,
    facts: _Facts,
    only: bool,
    change: Callable[[onnx.ModelProto], None] = lambda _: None,
) -> None:
    """Write the graph with its weights inside, or in `<name>.data` beside it where one file cannot hold them."""
    if facts.classes is not None and len(facts.classes) != spec.classes:
        raise InputError(f"{len(facts.classes)} class names for {spec.classes} classes: give one for each, in order")
    images = (
        facts.preprocess if isinstance(facts.preprocess, Preprocess) else None
    )  # features of sounds and token ids come ready
    model = _described(_nest(folder, spec, ladder, batch, images, only, facts.engine), spec, ladder, facts)
    change(model)
    external_data_helper.load_external_data_for_model(model, str(folder))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with fresh_folder(target) as partial:
            fresh = partial / target.name
            if model.ByteSize() > _MOST_BYTES:
                onnx.save(model, fresh, "protobuf", save_as_external_data=True, location=f"{target.name}.data")
            else:
                onnx.save(model, fresh, "protobuf")
            sync_tree(partial)
            for file in sorted(partial.iterdir(), reverse=True):  # weights before the graph that refers to them
                file.replace(target.parent / file.name)
    except OSError as error:
        raise EngineError(f"the graph could not be written to {target}: {error}") from error


def _described(model: onnx.ModelProto, spec: CascadeSpec, ladder: Ladder, facts: _Facts) -> onnx.ModelProto:
    """The model with metadata: what its numbers mean, for a reader of the file alone."""
    model.producer_name = "dynamic-inference"
    points = {point["name"]: point["thresholds"] for point in ladder.to_json()["points"]}
    metadata = {
        "schema": SCHEMA,
        "classes": list(facts.classes) if facts.classes is not None else None,
        "stages": [stage.name for stage in spec.stages],
        "backbones": list(spec.backbone),
        "temperature": list(ladder.temperature),
        "score": ladder.score,
        "combine": ladder.combine,
        "preprocess": facts.preprocess.to_json() if facts.preprocess is not None else None,
        "points": points,
        "fingerprint": ladder.fingerprint,
        "certified": ladder.certified,
        "certificate": None if ladder.certificate is None else asdict(ladder.certificate),
        "engine": facts.engine,
        "precision": facts.precision,
    }
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"dynamic.{key}", json.dumps(value)
    return model
