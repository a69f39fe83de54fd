"""From logits and labels, batch by batch, to calibration records: shared by `calibrate` and `Bundle.calibrate`."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.contract import DeployedBundle
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.input_conversion import named_inputs
from dynamic.engines.contract import CascadeSpec
from dynamic.policies.errors import InputError
from dynamic.policies.records import SEARCH_SHARE, Records, check_usable, split
from dynamic.progress import size_of, track


class Recorder:
    """Collects the logits `[B, S, C]` and labels `[B]` of batches, and checks them."""

    def __init__(self, spec: CascadeSpec) -> None:
        self._spec = spec
        self._logits: list[NDArray[np.float32]] = []
        self._labels: list[NDArray[np.int64] | None] = []

    def add(self, logits: NDArray[np.float32], labels: NDArray[np.int64] | None) -> None:
        """Take one batch. Raises InputError on another number of labels, or labels that are no class."""
        classes = self._spec.classes
        if labels is not None and len(labels) != len(logits):
            raise InputError(f"a batch has {len(logits)} inputs and {len(labels)} labels")
        if labels is not None and len(labels) and not (labels.min() >= 0 and labels.max() < classes):
            raise InputError(
                f"labels run from {labels.min()} to {labels.max()}, and "
                f"the cascade has {classes} classes, 0 to {classes - 1}"
            )
        self._logits.append(logits)
        self._labels.append(labels)

    def records(
        self,
        fingerprint: str,
        groups: NDArray[Any] | Sequence[Any] | None,
        search_share: float,
        seed: int,
        identity: EngineIdentity,
    ) -> Records:
        """The records. Raises InputError on missing labels or wrong groups, CalibrationError where they are useless."""
        spec = self._spec
        labels = [label for label in self._labels if label is not None]
        if labels and len(labels) < len(self._labels):
            raise InputError("some batches have labels and some have none. Give labels for all or for none")
        count = sum(map(len, self._logits))
        group = None if groups is None else np.asarray(groups)
        if group is not None and group.dtype == object:
            raise InputError("groups hold something that is no number or string, such as None. Give one for each input")
        if group is not None and group.shape != (count,):
            raise InputError(f"groups have shape {group.shape}, and {count} inputs need ({count},)")
        empty = np.empty((0, len(spec.stages), spec.classes), np.float32)
        records = Records(
            logits=np.concatenate(self._logits) if self._logits else empty,
            label=np.concatenate(labels) if labels else None,
            group=group,
            part=split(group, count, search_share=search_share, seed=seed),
            backbone=spec.backbone,
            macs=tuple(s.macs for s in spec.stages),
            head_macs=tuple(s.head_macs for s in spec.stages),
            stage_names=tuple(s.name for s in spec.stages),
            fingerprint=fingerprint,
            made_on=identity.text,
        )
        check_usable(records)
        return records


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
        return recorder.records(fingerprint, groups, SEARCH_SHARE, seed, EngineIdentity.of(opened))
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
