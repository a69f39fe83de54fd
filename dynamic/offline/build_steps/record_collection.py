"""Records of an engine that is open: the logits of every stage for held-out data."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.canaries.reservoir import Reservoir
from dynamic.bundle.fingerprint import fingerprint
from dynamic.bundle.measurements.record_writer import Recorder
from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.build_steps.loaders import labelled_batches
from dynamic.offline.build_steps.preprocessing_data import as_data
from dynamic.policies.records import Records
from dynamic.policies.scores import Combiner
from dynamic.progress import size_of, track

Answered = tuple[NDArray[np.float32], NDArray[np.int64] | None]  # logits of every stage [B, S, C], labels [B]
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
    answered: Iterable[Answered] | None = None,
) -> Records:
    """The records of an engine that is already open.

    `cascade`: its fingerprint. `sample`: gets the inputs, from which canaries are drawn. `answered`: logits and labels
    of the batches, where the stages run elsewhere.
    """

    def answers() -> Iterator[Answered]:
        for inputs, labels in labelled_batches(loader):
            arrays = arrays_of(inputs)
            yield engine.all_logits(arrays), labels
            if sample is not None:
                sample.add(arrays)

    recorder = Recorder(engine.spec)
    for logits, labels in track(answered or answers(), "calibrating", size_of(loader), progress):
        recorder.add(logits, labels)
    own_fingerprint = fingerprint(cascade, _json(preprocess), engine.name, engine.precision)
    return recorder.records(own_fingerprint, groups, search_share, seed, engine)


def _json(preprocess: Any) -> Any:
    steps = as_data(preprocess)
    return None if steps is None else steps.to_json()
