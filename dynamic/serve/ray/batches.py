"""Batches of a data set of Ray Data for `dynamic.calibrate`, whose stages run in actors."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.measurements.stage_answers import StageAnswers
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import open_engine
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.scores import Combiner
from dynamic.serve.ray.dataset import check_counts, checked_cpus, warn_of_full_cluster

if TYPE_CHECKING:
    from ray.data import Dataset

Batch = tuple[Any, NDArray[Any] | None]  # inputs and labels
_LOGITS, _LABELS, _MADE_ON = "dynamic_logits", "dynamic_labels", "dynamic_made_on"


class RayBatches:
    """Batches of a data set of Ray Data, for `dynamic.calibrate`.

    It gives the records of a loader of the same batches, bit for bit where the actors have the processor, engine and
    threads of this process: rows keep their order, and each batch but the last has `batch` rows. The stages run in
    actors, to which the exported graphs are sent, and the process that calibrates receives logits and labels alone.
    Records name the engine and machine of the actors, which must not differ. Read as an ordinary loader, it gives the
    batches themselves.

    Args:
        dataset: The data set.
        columns: The column of the inputs, or for several inputs their columns by the names of the network's arguments.
        labels: The column of the labels, of class indices or one-hot, as a loader has them. None: there are none.
        batch: Rows of a batch.
        actors: How many processes run the stages.
        threads: Threads of the engine in each of them. None: as many as the engine takes there by itself.
        cpus: CPUs that Ray reserves for each of them. Where they take all CPUs of the cluster, tasks that read the data
            wait forever, and a warning says so. None: `threads`, or 1 without it.

    Raises:
        SettingError: A number is out of range.

    Example:
        >>> def records(networks, dataset):
        ...     batches = dynamic.RayBatches(dataset, columns="image", labels="label", actors=2)
        ...     return dynamic.calibrate(networks, batches)
    """

    def __init__(
        self,
        dataset: "Dataset",
        *,
        columns: str | Mapping[str, str],
        labels: str | None = "label",
        batch: int = 32,
        actors: int = 1,
        threads: int | None = None,
        cpus: float | None = None,
    ) -> None:
        check_counts(batch=batch, actors=actors, threads=1 if threads is None else threads)
        self._columns, self._labels = columns, labels
        self._actors, self._threads = actors, threads
        self._cpus = checked_cpus(threads or 1 if cpus is None else cpus)
        self._blocks = dataset.repartition(target_num_rows_per_block=batch, strict=True)
        self._blocks.context.execution_options.preserve_order = True

    def __iter__(self) -> Iterator[Batch]:
        for block in self._blocks.iter_batches(batch_size=None, batch_format="numpy"):
            yield _inputs(block, self._columns), _labels(block, self._labels)

    def stage_answers(self, folder: Path, spec: CascadeSpec, engine: str, precision: str) -> Iterator[StageAnswers]:
        """Run all stages on all rows in actors. `dynamic.calibrate` calls it.

        Args:
            folder: Where the graphs of the stages lie.
            spec: The cascade.
            engine: Runs the stages.
            precision: Of the engine.

        Yields:
            What all stages answer to each batch, in the order of the data set.

        Raises:
            SettingError: The engine is "torch", whose modules are in one process alone.
            InputError: A column is missing or does not fit.

        Example:
            >>> def all_logits(batches, folder, spec):
            ...     return [one.logits for one in batches.stage_answers(folder, spec, "onnxruntime", "f32")]
        """
        if engine == "torch":
            raise SettingError(
                "engine='torch' runs in one process: calibrate RayBatches on 'onnxruntime' or 'openvino'"
            )
        import ray

        warn_of_full_cluster(self._actors, self._cpus)
        files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        answered = self._blocks.map_batches(
            StageLogits,
            fn_constructor_kwargs={
                "files": ray.put(files),
                "spec": spec,
                "engine": engine,
                "precision": precision,
                "threads": self._threads,
                "columns": self._columns,
                "labels": self._labels,
            },
            batch_size=None,
            batch_format="numpy",
            num_cpus=self._cpus,
            concurrency=self._actors,
        )
        answered.context.execution_options.preserve_order = True
        for block in answered.iter_batches(batch_size=None, batch_format="numpy"):
            labels = _labels(block, None if self._labels is None else _LABELS)
            for text in dict.fromkeys(block[_MADE_ON].tolist()):  # one, unless Ray has joined blocks of several actors
                rows = block[_MADE_ON] == text
                identity = EngineIdentity.from_json(json.loads(text))
                yield StageAnswers(block[_LOGITS][rows], None if labels is None else labels[rows], identity)


class StageLogits:
    """An actor of Ray Data that runs all stages. Arguments as for `RayBatches`. `files`: the graphs, by Ray."""

    def __init__(
        self,
        files: Any,
        spec: CascadeSpec,
        engine: str,
        precision: str,
        threads: int | None,
        columns: str | Mapping[str, str],
        labels: str | None,
    ) -> None:
        import ray

        self._folder = TemporaryDirectory()
        for name, content in ray.get(files).items():
            place = Path(self._folder.name) / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        plain_answers = Combiner((1.0,) * len(spec.stages), "max_probability", combine="last")
        self._engine = open_engine(
            engine, Path(self._folder.name), spec, plain_answers, precision=precision, threads=threads
        )
        self._made_on = EngineIdentity.of(self._engine.stages).text
        self._spec, self._columns, self._labels = spec, columns, labels

    def __call__(self, block: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """Logits and labels of a block, and the identity of the engine for each row."""
        inputs = _inputs(block, self._columns)
        named = inputs if isinstance(inputs, dict) else {self._spec.inputs[0].name: inputs}
        types = {one.name: one.dtype for one in self._spec.inputs}
        for name, array in named.items():  # as a loader's inputs are converted where the networks are
            if array.dtype.kind == "f" and name in types:
                named[name] = array.astype(types[name], copy=False)
        labels = _labels(block, self._labels)
        logits = self._engine.all_logits(named)
        answers = {_LOGITS: logits, _MADE_ON: np.full(len(logits), self._made_on)}
        return answers if labels is None else answers | {_LABELS: labels}


def _inputs(block: Mapping[str, NDArray[Any]], columns: str | Mapping[str, str]) -> Any:
    """The inputs of a block, as a batch of a loader has them."""
    if isinstance(columns, str):
        return _column(block, columns)
    return {name: _column(block, column) for name, column in columns.items()}


def _labels(block: Mapping[str, NDArray[Any]], column: str | None) -> NDArray[Any] | None:
    """The labels as the column has them: whoever reads them checks them, as those of a loader."""
    return None if column is None else _column(block, column)


def _column(block: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in block:
        raise InputError(f"there is no column {name!r}, but {sorted(block)}: name it with columns= or labels=")
    column = block[name]
    return column if column.flags.writeable else column.copy()  # torch warns of memory that it may not write to
