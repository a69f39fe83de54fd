"""Exits of a wrapped network that pay, chosen by what they save. The others are removed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from dynamic.engines.options import EngineName
from dynamic.offline.batches import Batch
from dynamic.offline.build_steps.loaders import peek
from dynamic.offline.calibration import calibrate
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.used_batches import ObservedLoader
from dynamic.offline.networks.used_data import batch_hash, hashes_of, remember
from dynamic.offline.tracing.channel_layout import LAYOUTS
from dynamic.offline.tracing.wrap_network import ExitNetwork, wrap_at
from dynamic.policies.certification.exit_value import Choice, choose_exits
from dynamic.policies.errors import ExitError


@dataclass(frozen=True)
class Selected:
    """The outcome of `select_exits`.

    Args:
        network: With the exits that pay. Backbone and heads are not copied.
        choice: What each exit gains, and what led to the choice.
    """

    network: ExitNetwork
    choice: Choice

    def __str__(self) -> str:
        return str(self.choice)


def select_exits(
    network: ExitNetwork,
    example_inputs: Batch,
    *,
    selection_loader: Iterable[Any],
    count: int | None = None,
    max_drops: Sequence[float] = (0.0, 0.005, 0.01),
    exit_cost: float = 0.0,
    engine: EngineName = "torch",
    progress: bool | None = None,
) -> Selected:
    """Choose the exits of a wrapped network that pay, by the multiply-adds of a request with and without them.

    To place exits: wrap with many, train their heads (`fit(mode="heads")`), select, and train the rest. The selected
    network remembers hashes of the batches, and `build` refuses to calibrate with them.

    Args:
        network: With trained exits.
        example_inputs: As for `wrap`.
        selection_loader: Batches of `(inputs, labels [B])` that neither trained the network nor certify it later.
        count: The most exits that remain. None: any number.
        max_drops: Targets for which requests should be cheap.
        exit_cost: Multiply-adds that passing an exit is worth on the device. A gain is judged on the records that
            thresholds are fitted to, so with 0 an exit without use may remain. Give the time of a head, as `profile`
            shows it, or 30 microseconds, times the multiply-adds per second.
        engine: What runs the stages.
        progress: Whether a progress bar is shown. None: in a terminal.

    Returns:
        The network with the chosen exits, and the choice in numbers.

    Raises:
        ExitError: No exit pays. Then the plain network is the better choice.
        CalibrationError: The loader gives no batch, or no second class.
        InputError: Inputs or labels do not fit the network.
        EngineError: The engine cannot run the network.

    Example:
        >>> report = dynamic.fit(net, train_loader, epochs=2, progress=False)
        >>> selected = dynamic.select_exits(net, torch.zeros(1, 12), selection_loader=calibration_loader)
        >>> [place.name for place in selected.network.exits]
        ['1']
    """
    batches, _, _ = peek(selection_loader)
    hashes: set[str] = set()
    observed = ObservedLoader(batches, lambda inputs: hashes.add(batch_hash(inputs)))
    cascade = Cascade(network, names=("network",))
    records = calibrate(cascade, observed, engine=engine, search_share=1.0, progress=progress)
    choice = choose_exits(records, count=count, max_drops=max_drops, exit_cost=exit_cost)
    names = tuple(name.removeprefix("network@") for name in choice.exits)
    if not names:
        raise ExitError(
            f"none of the exits {[e.name for e in network.exits]} makes requests cheaper at drops {list(max_drops)}. "
            "Use the plain network, other places, or better heads"
        )
    selected = keep_exits(network, example_inputs, names=names)
    remember(selected, hashes)
    return Selected(selected, choice)


def keep_exits(network: ExitNetwork, example_inputs: Batch, *, names: Sequence[str]) -> ExitNetwork:
    """A network with some of its exits only. Backbone and heads are the same modules, dynamic dimensions the same.

    Args:
        network: With exits.
        example_inputs: As for `wrap`.
        names: The exits that remain.

    Returns:
        The network with these exits. It has the hashes of the batches that trained the other.

    Raises:
        ExitError: A name is none of its exits, or there is no name.
    """
    own_names = [e.name for e in network.exits]
    if not names or (unknown := [name for name in names if name not in own_names]):
        raise ExitError(f"exits {list(names) if not names else unknown} cannot be kept. The network has {own_names}")
    # a second tracer asks for the heads again
    heads = cycle([h for h, e in zip(network.heads, network.exits, strict=True) if e.name in names])
    layout = {e.name: "BND" if e.masked else _layout(e.shape, e.channel) for e in network.exits if e.name in names}
    fewer = wrap_at(
        network.backbone,
        example_inputs,
        lambda *_: network.traced_sizes.by_name,
        exits=[n for n in own_names if n in names],
        layout=layout,
        head=lambda *_: next(heads),
    )
    fewer.training = network.training  # of the whole alone: backbone and heads are in the modes they were in
    remember(fewer, hashes_of(network))
    return fewer


def _layout(shape: tuple[int, ...], channel: int) -> str:
    """The name of the layout of a feature, as `wrap` takes it."""
    return next(name for name, at in LAYOUTS.items() if len(name) == len(shape) + 1 and at == channel)
