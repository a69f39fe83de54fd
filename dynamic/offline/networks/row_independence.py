"""Whether a network answers a row alone as it answers it among others, and whether it can be trained on one."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.batches import run_on
from dynamic.offline.networks.module_modes import untouched
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.offline.tracing.multiply_adds import ROUNDED_LIMIT, rounds
from dynamic.policies.errors import InputError

logger = logging.getLogger("dynamic")

ROWS = (2, 1, 5)  # batch sizes that networks and graphs are tried at
_CLOSE = 5e-3  # of the largest logit: other batch sizes may take other kernels, on CUDA in TF32


def check_rows(network: nn.Module, example: Mapping[str, Tensor], values: bool = True) -> None:
    """Try `network`, which is in evaluation mode, at 1, 2 and 5 rows of `example`.

    Raises InputError where it gives other shapes than `[B, C]`, or fewer than two classes. With `values` it raises too
    where a row alone has other logits than the same row in a batch.
    """
    most = max(ROWS)
    five = {name: torch.cat([t.detach()] * -(-most // len(t)))[:most] for name, t in example.items()}
    logits: dict[int, list[Tensor]] = {}
    for count in ROWS:
        with torch.no_grad(), torch.autocast(next(iter(five.values())).device.type, enabled=False):
            logits[count] = answers(network, {name: t[:count].clone() for name, t in five.items()})
        _check_shapes(network, logits[count], count)
    if values:
        _check_values(network, five, logits)


def _check_values(network: nn.Module, five: Mapping[str, Tensor], logits: Mapping[int, Sequence[Tensor]]) -> None:
    most, share = max(ROWS), ROUNDED_LIMIT if rounds(network) else _CLOSE
    for number, whole in enumerate(logits[most]):
        limit = share * max(1.0, float(whole.nan_to_num().abs().max()))
        for count in ROWS:
            few = logits[count][number]
            if not torch.allclose(few, whole[:count], rtol=0, atol=limit, equal_nan=True):
                with torch.no_grad():
                    again = answers(network, {name: t.clone() for name, t in five.items()})[number]
                if not torch.equal(again.nan_to_num(), whole.nan_to_num()):
                    raise InputError(
                        f"{_name(network)} gives other logits for the same inputs in evaluation mode: it draws random "
                        "numbers there, as F.dropout without training=self.training does, or keeps state"
                    )
                off = float((few - whole[:count]).abs().max())
                raise InputError(
                    f"{_name(network)} gives the logits of a row otherwise for {count} rows than for {most}, by "
                    f"{off:.3g} (limit {limit:.3g}): it mixes the rows of a batch. Write it so that each row is "
                    "answered alone"
                )


def answers(network: nn.Module, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """The logits of every exit of a network, of a plain one its own alone."""
    output: Any = run_on(network, inputs)
    if not isinstance(network, StagedNetwork):
        return [primary_logits(output)]
    if not isinstance(output, (list, tuple)):
        kind = type(output).__name__
        raise InputError(f"{_name(network)} gives a {kind}. Its forward has to give a list, one for each exit")
    return list(output)


def last_logits(network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The network's own logits `[B, C]`. Raises InputError where they have another shape, or one class."""
    output = answers(network, inputs)[-1]
    _check_shapes(network, [output], len(next(iter(inputs.values()))))
    return output


def check_classes(name: str, classes: int) -> None:
    """Raises InputError on fewer than two classes."""
    if classes < 2:
        raise InputError(
            f"{name} gives {classes} logit for each input, as a classifier with a sigmoid does. A logit for each class "
            "is needed: put a module around it that gives torch.cat([torch.zeros_like(x), x], 1) of that logit x"
        )


class Singles:
    """Leaves batches of one row out of training where `parts` cannot be trained on one, as batch norm may not."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        self._parts = parts
        self._alone: bool | None = None
        self._trained = self._left_out = 0

    def trains(self, rows: int, run: Callable[[], object]) -> bool:
        """Whether a batch of so many rows is trained on. `run` runs a batch of one row in train mode."""
        if rows == 1 and self._alone is None:
            self._alone = _runs(self._parts, run)
            if not self._alone:
                logger.warning("a batch of one input is left out: batch norm needs two or more. See drop_last=True")
        trains = rows != 1 or bool(self._alone)
        self._trained, self._left_out = self._trained + trains, self._left_out + (not trains)
        return trains

    def close_epoch(self) -> None:
        """Raises InputError where an epoch had batches of one row and no others."""
        if self._left_out and not self._trained:
            raise InputError(
                f"all {self._left_out} batches hold one input, and batch norm needs two or more to train: give larger "
                "batches"
            )
        self._trained = self._left_out = 0


def _runs(parts: Sequence[nn.Module], run: Callable[[], object]) -> bool:
    """Whether `run` works. `parts`, which it runs in train mode, do not change."""
    try:
        with torch.no_grad(), untouched(nn.ModuleList(parts)), torch.random.fork_rng():
            run()
    except ValueError:  # what torch's batch and instance norms raise
        return False
    return True


def _check_shapes(network: nn.Module, logits: Sequence[Tensor], count: int) -> None:
    for one in logits:
        shape = list(one.shape)
        if count == 1 and one.ndim < 2:
            raise InputError(
                f"{_name(network)} gives {shape} for one row, expected [1, C]: it drops the batch, as squeeze() "
                "without a dimension does. Write flatten(1), or squeeze(2) and the like"
            )
        if one.ndim == 1 and shape[0] == count:  # one number for each input
            check_classes(_name(network), 1)
        if one.ndim != 2 or shape[0] != count:
            raise InputError(f"{_name(network)} gives {shape} for {count} inputs, expected logits [{count}, C]")
        check_classes(_name(network), shape[1])


def _name(network: nn.Module) -> str:
    return type(getattr(network, "backbone", network)).__name__
