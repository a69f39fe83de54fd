"""Which inputs become canaries: drawn from the calibration, given by the user, or noise."""

from typing import Any, Literal

from dynamic.canaries import Canaries, Reservoir, noise
from dynamic.engines.switching import CascadeEngine
from dynamic.offline.cascade import Cascade
from dynamic.offline.inputs import Batch, named_tensors
from dynamic.policies.errors import InputError
from dynamic.policies.records import Records

CanaryInputs = Literal["calibration", "noise"] | Batch


def check_canary_inputs(canaries: Any) -> None:
    """Raises InputError on a word that is not known, before anything is run."""
    if isinstance(canaries, str) and canaries not in ("calibration", "noise"):
        raise InputError(f"canaries={canaries!r} is not known. Use 'calibration', 'noise' or a batch of inputs")


def draw_canaries(
    canaries: CanaryInputs,
    cascade: Cascade,
    engine: CascadeEngine,
    example: Batch,
    sample: Reservoir,
    records: Records,
    seed: int,
) -> Canaries:
    """The canaries of a bundle.

    Args:
        canaries: "calibration", "noise", or the inputs themselves.
        cascade: the networks, whose arguments name the inputs.
        engine: what the records were made on.
        example: a batch of inputs, for the shapes and the range of noise.
        sample: of the calibration inputs.
        records: all of the calibration.
        seed: of noise.
    """
    if isinstance(canaries, str) and canaries == "calibration":
        return sample.canaries(records.logits)
    given = example if isinstance(canaries, str) else canaries
    named = named_tensors(cascade.networks[0], given)
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}
    if isinstance(canaries, str):
        arrays = noise(arrays, seed=seed)
    return Canaries(arrays, engine.all_logits(arrays), "noise" if isinstance(canaries, str) else "given")
