"""Records of an engine that is open: the logits of every stage for held-out data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dynamic.bundle.canaries.reservoir import Reservoir
from dynamic.bundle.fingerprint import EngineIdentity, fingerprint
from dynamic.bundle.measurements.record_writer import Recorder
from dynamic.bundle.measurements.stage_answers import StageAnswers
from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.build_steps.loaders import class_indices, labelled_batches
from dynamic.offline.build_steps.preprocessing_data import as_data
from dynamic.policies.errors import CalibrationError
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.progress import size_of, track

Arrays = Callable[[Any], Mapping[str, Array]]  # of a batch as a loader gives it: arrays by the names of inputs


def plain_combiner(spec: CascadeSpec) -> Combiner:
    """A combiner for engines that only give raw logits: temperature 1, each stage for itself."""
    return Combiner((1.0,) * len(spec.stages), "max_probability", combine="last")


def collect(
    arrays_of: Arrays,
    cascade: str,
    engine: StageEngine,
    loader: Iterable[Any],
    groups: NDArray[Any] | Sequence[Any] | None,
    preprocess: Any,
    search_share: float,
    seed: int,
    progress: bool | None = None,
    sample: Reservoir | None = None,
) -> Records:
    """The records of an engine that is already open.

    `cascade`: its fingerprint. `sample`: gets the inputs, from which canaries are drawn.
    """
    identity = EngineIdentity.of(engine)

    def answers() -> Iterator[StageAnswers]:
        for inputs, labels in labelled_batches(loader):
            arrays = arrays_of(inputs)
            yield StageAnswers(engine.all_logits(arrays), labels, identity)
            if sample is not None:
                sample.add(arrays)

    shown = track(answers(), "calibrating", size_of(loader), progress)
    return collect_answers(shown, cascade, engine.spec, groups, preprocess, search_share, seed)


def collect_answers(
    answers: Iterable[StageAnswers],
    cascade: str,
    spec: CascadeSpec,
    groups: NDArray[Any] | Sequence[Any] | None,
    preprocess: Any,
    search_share: float,
    seed: int,
) -> Records:
    """The records of answers, wherever the stages ran.

    Raises InputError on labels that a loader may not have either, CalibrationError where the logits are of several
    engines or machines.
    """
    recorder, identity = Recorder(spec), None
    for one in answers:
        identity = identity or one.identity
        if one.identity != identity:
            raise CalibrationError(
                f"logits come from {identity} and from {one.identity}, whose arithmetic may differ: calibrate where "
                "all processes have the same processor, engine version and number of threads"
            )
        recorder.add(one.logits, None if one.labels is None else class_indices(one.labels))
    if identity is None:
        raise CalibrationError("the loader gave no batch. Give batches of inputs that no network was trained on")
    own_fingerprint = fingerprint(cascade, _json(preprocess), identity.engine, identity.precision)
    return recorder.records(own_fingerprint, groups, search_share, seed, identity)


def _json(preprocess: Any) -> Any:
    steps = as_data(preprocess)
    return None if steps is None else steps.to_json()
