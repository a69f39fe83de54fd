"""A bundle over a data set of Ray Data: every row is answered once, by actors that each have a runtime."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import warn

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import load
from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.policies.budget import Budget
from dynamic.policies.errors import DynamicWarning, InputError, SettingError
from dynamic.policies.validation.numbers import plain
from dynamic.runtime.result import BatchResult

if TYPE_CHECKING:
    from ray.data import Dataset

_PREFIX = "answer_"  # data sets have columns such as "label" themselves
COLUMNS = tuple(f"{_PREFIX}{name}" for name in ("label", "probability", "stage", "score", "certified", "point"))
_NAME = f"{_PREFIX}name"
_USUAL = Budget(on_drift="report")  # files of a folder are often sorted by class, which alarms the drift test
_KINDS: Mapping[type, str] = {Preprocess: "image", TextPreprocess: "text", SoundPreprocess: "audio"}


def map_dataset(
    dataset: "Dataset",
    bundle: Bundle | str | Path,
    budget: Budget | None = None,
    *,
    column: str | None = None,
    batch: int = 32,
    actors: int = 1,
    threads: int = 1,
    cpus: float | None = None,
    engine: str | None = None,
) -> "Dataset":
    """Answer every row of a data set of Ray Data, once.

    A block that is answered first comes first, unless Ray Data has `execution_options.preserve_order` of
    `ray.data.DataContext.get_current()` set to True.

    Actors load the bundle once each. Where one dies, Ray starts another, and its rows are answered there. Columns of
    inputs are left out of the result, others remain. New ones are `answer_label`, `answer_probability`,
    `answer_stage`, `answer_score`, `answer_certified`, `answer_point`, and `answer_name` where classes have names.

    Args:
        dataset: The data set, such as `ray.data.read_images(folder, include_paths=True)`.
        bundle: The bundle, or its folder. Every node of the cluster finds it under the same path.
        budget: The limits. A latency is that of a batch. None: none, and `on_drift="report"`: a data set may be sorted
            by class, which the drift test takes for drift. Its alarm then takes certificates and changes no point. A
            budget that is given has an `on_drift` of its own, "safest" unless it says otherwise.
        column: The column with the inputs, as `run(x)` takes them. None: those that are named as the network's
            inputs, and for a bundle with preprocessing "image", "text" or "audio".
        batch: Rows that are answered at once.
        actors: How many processes answer.
        threads: Threads of the engine in each of them.
        cpus: CPUs that Ray reserves for each of them. Where they take all CPUs of the cluster, tasks that read files
            wait forever, and a warning says so. None: `threads`.
        engine: As for `Bundle.runtime`.

    Returns:
        The data set with answers. As Ray Data has it, nothing runs before it is read.

    Raises:
        BundleError: There is no bundle in the folder.
        SettingError: A number is out of range.

    Example:
        >>> def labels(folder):
        ...     import ray
        ...     images = ray.data.read_images(folder, include_paths=True)
        ...     answered = dynamic.map_dataset(images, "shelf", dynamic.Budget(max_drop=0.01), actors=2)
        ...     answered.select_columns(["path", "answer_name"]).write_csv("answers")
    """
    check_counts(batch=batch, actors=actors, threads=threads)
    reserved = checked_cpus(threads if cpus is None else cpus)
    folder = (bundle if isinstance(bundle, Bundle) else load(bundle)).folder.resolve()
    warn_of_full_cluster(actors, reserved)
    answered: Dataset = dataset.map_batches(
        Answers,
        fn_constructor_kwargs={
            "folder": folder,
            "budget": budget,
            "column": column,
            "threads": threads,
            "engine": engine,
        },
        batch_size=batch,
        batch_format="numpy",
        num_cpus=reserved,
        concurrency=actors,
        udf_modifying_row_count=False,
    )
    return answered


def check_counts(**counts: int) -> None:
    """Raise SettingError where an argument, by its name, is no whole number of at least 1."""
    for name, value in counts.items():
        number = plain(value)
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise SettingError(f"{name}={number!r} must be a whole number of at least 1")


def checked_cpus(value: float) -> float:
    """The CPUs that Ray reserves for an actor. Raises SettingError where it is no number of at least 0."""
    cpus = plain(value)
    if isinstance(cpus, bool) or not isinstance(cpus, (int, float)) or not 0 <= cpus < math.inf:
        raise SettingError(f"cpus={cpus!r} must be a number of at least 0, or None for as many as threads")
    return cpus


def warn_of_full_cluster(actors: int, cpus: float) -> None:
    """Warn where actors leave no CPU of the cluster to tasks that read data."""
    import ray

    cluster: Any = ray  # this function of it has no types
    have = cluster.cluster_resources().get("CPU", 0.0)
    if actors * cpus > have - 1:
        warn(
            f"actors={actors} with {cpus:g} CPUs each take {actors * cpus:g} of the {have:g} CPUs of this cluster, and "
            "a task that reads files needs one: it waits forever. Give fewer actors, or fewer with cpus=, such as 0.5",
            DynamicWarning,
            stacklevel=3,
        )


class Answers:
    """An actor of Ray Data. Arguments as for `map_dataset`."""

    def __init__(
        self, folder: Path, budget: Budget | None, column: str | None, threads: int, engine: str | None
    ) -> None:
        bundle = load(folder)
        self._columns = _inputs(bundle, column)
        self._run = bundle.runtime(budget or _USUAL, threads=threads, engine=engine)

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, Any]:
        """The batch with answers. Raises InputError where a column is missing, or its values do not fit."""
        missing = sorted(set(self._columns.values()) - set(batch))
        if missing:
            raise InputError(f"there is no column {missing[0]!r}, but {sorted(batch)}: name the inputs' with column=")
        taken = sorted({*COLUMNS, _NAME} & set(batch))
        if taken:
            raise InputError(f"there is a column {taken[0]!r} already, where the answers go: rename or drop it first")
        values = {name: _rows(batch[column]) for name, column in self._columns.items()}
        result = self._run(values if "" not in values else values[""])
        assert isinstance(result, BatchResult)
        rest = {name: array for name, array in batch.items() if name not in self._columns.values()}
        return rest | _answers(result)


def _inputs(bundle: Bundle, column: str | None) -> Mapping[str, str]:
    """The column of each input by its name. "" is what the bundle's preprocessing takes."""
    names = [one.name for one in bundle.spec.inputs]
    if bundle.preprocess is not None:
        return {"": column or _KINDS[type(bundle.preprocess)]}
    if column is None:
        return {name: name for name in names}
    if len(names) > 1:
        raise InputError(f"column={column!r} is one, and the network takes {names}: name columns so, and leave it out")
    return {names[0]: column}


def _rows(values: NDArray[Any]) -> Any:
    """Inputs as a runtime takes them: rows of different shapes, and texts, are a list."""
    return list(values) if values.dtype.kind in "OUT" else values


def _answers(result: BatchResult) -> dict[str, Any]:
    rows = len(result)
    columns = (
        result.label,
        result.probability,
        result.stage,
        result.score,
        np.full(rows, result.certified),
        np.full(rows, result.decision.point.name, object),
    )
    named = dict(zip(COLUMNS, columns, strict=True))
    names = result.name
    if any(name is not None for name in names):
        named[_NAME] = np.array(names, object)
    return named
