"""Calibration on the device: labelled inputs through the engine of a bundle, without torch."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.input_conversion import named_inputs
from dynamic.bundle.record_writer import Recorder
from dynamic.policies.errors import InputError
from dynamic.policies.records import SEARCH_SHARE, Records
from dynamic.progress import size_of, track


def calibrate_here(
    bundle: DeployedBundle,
    loader: Iterable[Any],
    *,
    engine: str | None,
    precision: str | None,
    groups: Sequence[Any] | None,
    seed: int,
    progress: bool | None,
) -> Records:
    """See `Bundle.calibrate`."""
    opened = bundle.open_unchecked(engine, precision)
    recorder = Recorder(bundle.spec)
    try:
        for inputs, labels in track(_pairs(loader), "calibrating", size_of(loader), progress):
            recorder.add(opened.all_logits(named_inputs(bundle, inputs)[0]), labels)
        fingerprint = bundle.fingerprint(opened.name, opened.precision)
        return recorder.records(fingerprint, groups, SEARCH_SHARE, seed, opened)
    finally:
        opened.close()


def _pairs(loader: Iterable[Any]) -> Iterable[tuple[Any, NDArray[np.int64]]]:
    for item in loader:
        if not (isinstance(item, (tuple, list)) and len(item) == 2):
            raise InputError(f"a {type(item).__name__} is no batch. Give pairs of inputs and labels")
        inputs, labels = item
        array = np.atleast_1d(np.asarray(labels))
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InputError(f"labels are {array.dtype} {list(array.shape)}. Expected class indices, integers [B]")
        yield inputs, array.astype(np.int64)
