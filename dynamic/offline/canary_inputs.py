"""Which inputs become canaries: drawn from the calibration, given by the user, or noise."""

import logging
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Union

import numpy as np

from dynamic.bundle.canaries.canary_set import LEAST, MOST, Canaries, noise
from dynamic.bundle.canaries.check import run_canaries
from dynamic.bundle.canaries.reservoir import Reservoir
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import check_inputs
from dynamic.offline.build_steps.record_collection import Arrays
from dynamic.policies.errors import InputError
from dynamic.policies.records import Records

logger = logging.getLogger("dynamic")

if TYPE_CHECKING:  # ONNX files are built without torch
    from dynamic.offline.batches import Batch

CanaryInputs = Union[Literal["calibration", "noise"], "Batch"]


def check_canary_word(canaries: Any) -> None:
    """Raises InputError on a word that is not known."""
    if isinstance(canaries, str) and canaries not in ("calibration", "noise"):
        raise InputError(f"canaries={canaries!r} is not known. Use 'calibration', 'noise' or a batch of inputs")


def check_canary_inputs(canaries: CanaryInputs, arrays_of: Arrays, spec: CascadeSpec) -> None:
    """Raises InputError on inputs that do not fit or are too few, before anything is run."""
    if isinstance(canaries, str):
        return
    count = check_inputs(arrays_of(canaries), spec.inputs)
    if count < LEAST:
        raise InputError(f"{count} canaries were given, at least {LEAST} are needed: give a larger batch")


def draw_canaries(
    canaries: CanaryInputs,
    arrays_of: Arrays,
    engine: CascadeEngine,
    example: Any,
    sample: Reservoir,
    records: Records,
    seed: int,
) -> Canaries:
    """The canaries of a bundle.

    Args:
        canaries: "calibration", "noise", or the inputs themselves.
        arrays_of: the arrays of a batch by the names of the inputs.
        engine: what the records were made on.
        example: a batch of inputs, for the shapes and the range of noise.
        sample: of the calibration inputs.
        records: all of the calibration.
        seed: of noise.
    """
    if isinstance(canaries, str) and canaries == "calibration":
        return sample.canaries(records.logits, partial(run_canaries, engine))
    source = example if isinstance(canaries, str) else canaries
    arrays = {name: array[:MOST] for name, array in arrays_of(source).items()}
    if isinstance(canaries, str):
        arrays = noise(arrays, seed=seed)
    drawn = Canaries(arrays, run_canaries(engine, arrays), "noise" if isinstance(canaries, str) else "given")
    if np.ptp(drawn.logits[:, -1], axis=0).max() == 0:
        logger.warning("all %d canaries have the same logits: they can hardly notice a difference", len(drawn))
    return drawn
