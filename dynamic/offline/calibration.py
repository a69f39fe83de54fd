"""Records: what every stage says about held-out data, through the engine that ships."""

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from dynamic.canaries import Reservoir
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.loop import StageEngine
from dynamic.engines.opening import check_engine, open_engine
from dynamic.fingerprint import fingerprint
from dynamic.offline.cascade import Cascade
from dynamic.offline.exporting import describe, export_stages
from dynamic.offline.inputs import Batch, labelled_batches, named_tensors
from dynamic.offline.modes import evaluating
from dynamic.offline.transforms import from_transforms
from dynamic.policies.errors import CalibrationError
from dynamic.policies.records import SEARCH_SHARE, Records
from dynamic.policies.scores import Combiner
from dynamic.progress import size_of, track
from dynamic.recording import Recorder


def calibrate(
    cascade: Cascade | nn.Module | Sequence[nn.Module],
    loader: Iterable[Any],
    engine: str = "onnxruntime",
    precision: str = "f32",
    groups: NDArray[Any] | Sequence[Any] | None = None,
    preprocess: Any = None,
    search_share: float = SEARCH_SHARE,
    seed: int = 0,
    progress: bool | None = None,
) -> Records:
    """Run held-out data through every stage on the engine and precision that will ship.

    `loader` yields `(inputs, labels [B])` (or inputs alone), preprocessed as in training. `groups [N]`: what
    belongs together (patient, camera-day); a group is never split between search and certification. `preprocess`
    only enters the fingerprint. `search_share` of the records choose thresholds, the others certify them (a quarter and
    three quarters: of the shares tried, with 1,000 to 5,000 images, about the one whose certified points cost least).

    Raises CalibrationError on an empty or one-class set, InputError on wrong shapes, labels or classes,
    EngineError where the engine cannot run the cascade.
    """
    check_engine(engine, precision)
    whole = cascade if isinstance(cascade, Cascade) else Cascade(cascade)
    batches, example = peek(loader)
    with tempfile.TemporaryDirectory(prefix="dynamic-") as folder, evaluating(whole):
        spec = describe(whole, example) if engine == "torch" else export_stages(whole, Path(folder), example)
        stages = whole.stages if engine == "torch" else None
        opened = open_engine(engine, Path(folder), spec, plain_combiner(spec), stages, precision)
        try:
            return collect(whole, opened.stages, batches, groups, preprocess, search_share, seed, progress=progress)
        finally:
            opened.close()


def plain_combiner(spec: CascadeSpec) -> Combiner:
    """A combiner for engines that only give raw logits: temperature 1, each stage for itself."""
    return Combiner((1.0,) * len(spec.stages), "max_probability", "last")


def peek(loader: Iterable[Any]) -> tuple[Iterable[Any], Batch]:
    """(the loader, inputs of its first batch); raises CalibrationError where it is empty.

    An iterator that can be walked only once loses nothing: it is kept as a list.
    """
    batches = loader if iter(loader) is not loader else list(loader)
    for inputs, _ in labelled_batches(batches):
        return batches, inputs
    raise CalibrationError("the held-out loader is empty; give batches of (inputs, labels)")


def collect(
    cascade: Cascade,
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

    `sample`: gets the inputs, from which canaries are drawn.
    """
    recorder = Recorder(engine.spec)
    for inputs, labels in track(labelled_batches(loader), "calibrating", size_of(loader), progress):
        named = named_tensors(cascade.networks[0], inputs)
        arrays = {name: t.detach().cpu().numpy() for name, t in named.items()}
        recorder.add(engine.all_logits(arrays), labels)
        if sample is not None:
            sample.add(arrays)
    made_for = fingerprint(cascade.fingerprint(), _json(preprocess), engine.name, engine.precision)
    return recorder.records(made_for, groups, search_share, seed, engine)


def _json(preprocess: Any) -> Any:
    found = from_transforms(preprocess)
    return None if found is None else found.to_json()
