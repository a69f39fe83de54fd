"""Exits of a wrapped network that pay: found by what they save, the others taken away."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dynamic.offline.batches import Batch
from dynamic.offline.calibration import calibrate
from dynamic.offline.cascade import Cascade
from dynamic.offline.tracing.channel_layout import LAYOUTS
from dynamic.offline.tracing.wrap_network import ExitNetwork, wrap
from dynamic.policies.certification.exit_value import Choice, choose_exits
from dynamic.policies.errors import ExitError


@dataclass(frozen=True)
class Selected:
    """`network` with the exits that pay, and the `choice` that led to them; backbone and heads are not copied."""

    network: ExitNetwork
    choice: Choice

    def __str__(self) -> str:
        return str(self.choice)


def select_exits(
    network: ExitNetwork,
    example_inputs: Batch,
    loader: Iterable[Any],
    *,
    count: int | None = None,
    max_drops: Sequence[float] = (0.0, 0.005, 0.01),
    exit_cost: float = 0.0,
    engine: str = "torch",
    progress: bool | None = None,
) -> Selected:
    """The exits of `network` that pay, by the multiply-adds of a request with and without them (see `choose_exits`).

    To place exits: wrap with many, train their heads (`fit(mode="heads")`), select, and train what is left. `loader`:
    `(inputs, labels [B])` that neither the network was trained on nor certifies later. `count`: at most so many stay.
    `exit_cost`: multiply-adds that passing an exit is worth on the device. What an exit gains is judged on the very
    records that its threshold is fitted to: at 0 one with any gain on them stays, chance included. Give what was
    measured: the time that `profile` shows for a head, or some 30 microseconds, times multiply-adds per second.

    Raises ExitError where no exit pays: the plain network is the better choice then; and as `calibrate` does.
    """
    cascade = Cascade(network, names=("network",))
    records = calibrate(cascade, loader, engine=engine, search_share=1.0, progress=progress)
    choice = choose_exits(records, count=count, max_drops=max_drops, exit_cost=exit_cost)
    names = tuple(name.removeprefix("network@") for name in choice.exits)
    if not names:
        raise ExitError(
            f"none of the exits {[e.name for e in network.exits]} makes requests cheaper at drops {list(max_drops)}; "
            "use the plain network, other places, or better heads"
        )
    return Selected(keep_exits(network, example_inputs, names), choice)


def keep_exits(network: ExitNetwork, example_inputs: Batch, names: Sequence[str]) -> ExitNetwork:
    """`network` with some of its exits only; backbone and heads are the same modules.

    Raises ExitError on a name that is none of its exits, or no name.
    """
    known = [e.name for e in network.exits]
    if not names or (unknown := [name for name in names if name not in known]):
        raise ExitError(f"exits {list(names) if not names else unknown} cannot be kept; the network has {known}")
    heads: Iterator[nn.Module] = (h for h, e in zip(network.heads, network.exits, strict=True) if e.name in names)
    layout = {e.name: _layout(e.shape, e.channel) for e in network.exits if e.name in names}
    fewer = wrap(
        network.backbone, example_inputs, [n for n in known if n in names], layout=layout, head=lambda *_: next(heads)
    )
    fewer.training = network.training  # of the whole alone: backbone and heads are in the modes they were in
    return fewer


def _layout(shape: tuple[int, ...], channel: int) -> str:
    """The name of the layout of a feature; see `wrap`."""
    return next(name for name, at in LAYOUTS.items() if len(name) == len(shape) + 1 and at == channel)
