"""Whether networks, and graphs of them, run and agree at the sizes that were declared dynamic."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamic.engines.inputs.dimensions import Ranges
from dynamic.offline.batches import run_on
from dynamic.offline.networks.module_modes import in_mode, untouched
from dynamic.offline.staged_network import primary_logits
from dynamic.offline.tracing.equality_check import CLOSE
from dynamic.offline.tracing.sizes.dynamic_shapes import (
    DynamicShapes,
    read_shapes,
    sizes_text,
    stretched,
    trial_inputs,
)
from dynamic.offline.tracing.trace import infer_sizes, input_names
from dynamic.policies.errors import DynamicError, InputError, TraceError

OBSERVED = 2  # declared sizes at which every operation is observed. At all of them the logits are compared
_LEAST = 8  # a hinted dimension of 1 is traced at this size: torch.export takes 1 for a constant

Run = Callable[[Sequence[Tensor]], Tensor]


def ranges_of(network: nn.Module, example: Mapping[str, Tensor], words: DynamicShapes) -> dict[str, Ranges]:
    """The ranges of every input (see `read_shapes`). Empty: all dimensions are fixed."""

    def infer(hints: dict[str, dict[int, object]]) -> Mapping[str, Sequence[object]]:
        inputs = {}
        for name, tensor in example.items():
            shape = [_LEAST if d in hints.get(name, {}) and size < 2 else size for d, size in enumerate(tensor.shape)]
            inputs[name] = stretched(tensor, shape)
        return infer_sizes(network, inputs, hints)

    ranges = read_shapes(words, example, input_names(network, example)[0], infer)
    return ranges if any(ranges.values()) else {}


@dataclass(frozen=True, eq=False)
class Trial:
    """Inputs of an allowed size, and the network's own logits there."""

    inputs: Mapping[str, Tensor]
    logits: Tensor


def check_declared(network: nn.Module, example: Mapping[str, Tensor], ranges: Mapping[str, Ranges]) -> list[Trial]:
    """Run `network` at the least, the largest and other sizes. Raises InputError on one that it does not take.

    The first trials have the rows of the example. The others have one row: they take half the time.
    """
    trials: list[Trial] = []
    for inputs in trial_inputs(ranges, example):
        if len(trials) >= OBSERVED:
            inputs = {name: tensor[-1:] for name, tensor in inputs.items()}
        try:
            with torch.no_grad(), untouched(network), in_mode(network, training=False):
                output = run_on(network, {name: tensor.clone() for name, tensor in inputs.items()})
        except torch.OutOfMemoryError:
            raise
        except DynamicError as error:
            raise InputError(f"dynamic_shapes allows {sizes_text(ranges, inputs)}: {error}") from error
        except Exception as error:  # a network raises errors of its own
            reason = (str(error).strip() or repr(error)).splitlines()[0]
            raise InputError(
                f"{type(network).__name__} does not run at {sizes_text(ranges, inputs)}, which dynamic_shapes allows: "
                f"{reason}. Give torch.export.Dim a min and a max within what the network takes"
            ) from error
        trials.append(Trial(inputs, primary_logits(output)))
    return trials


def check_trials(
    trials: Iterable[Trial], ranges: Mapping[str, Ranges], runs: Sequence[Run], place: str | None = None
) -> None:
    """Raises TraceError where a graph gives other logits than the network at one of these sizes.

    `place`: a line of the network that decides otherwise there than where it was traced.
    """
    why = "a size went into it as a number"
    if place is not None:
        why = f"{place} decides otherwise there than in the graph, so give limits between which it does not"
    for trial in trials:
        limit = CLOSE * max(1.0, float(trial.logits.abs().max()))
        where = sizes_text(ranges, trial.inputs)
        for run in runs:
            try:
                logits = run([t.clone() for t in trial.inputs.values()])
            except (RuntimeError, ValueError, TypeError, IndexError) as error:
                raise TraceError(
                    f"in the captured graph, which does not run at {where}: {error if place is None else why}"
                ) from error
            if logits.shape != trial.logits.shape or not torch.allclose(
                logits, trial.logits, rtol=0, atol=limit, equal_nan=True
            ):
                raise TraceError(f"in the captured graph, which gives other logits than the network at {where}: {why}")
