"""Lottery tickets: sparse networks that learn, from their own first weights, what the whole network learns."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.models.compress.argument_checks import check_share
from dynamic.models.compress.pruning.weight_pruning import baked, masked, masks, prune_weights
from dynamic.models.compress.report import Report, copied, report
from dynamic.offline.batches import Batch
from dynamic.offline.networks.checkpoints import digest, put_weights, read_tensors, untied, write_tensors
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.policies.errors import BundleError, InputError, SettingError
from dynamic.progress import track


@dataclass(frozen=True)
class Lottery:
    """The networks of `lottery_ticket`, each trained to its end: plain modules.

    Args:
        dense: `.dense` has no mask.
        ticket: `.ticket` has `masks` and started from the same weights as `.dense`.
        control: `.control` has the same masks and started from other random weights.
        start: The weights from which dense and ticket started.
        masks: Bool masks by the name of the weight. True: the weight is kept.
        report: Compares dense and ticket.

    Example:
        >>> from dynamic.models import compress
        >>> list(compress.Lottery.__dataclass_fields__)
        ['dense', 'ticket', 'control', 'start', 'masks', 'report']
    """

    dense: nn.Module
    ticket: nn.Module
    _: KW_ONLY
    control: nn.Module
    start: nn.Module
    masks: Mapping[str, Tensor]
    report: Report


def lottery_ticket(
    make_network: Callable[[], nn.Module],
    example_inputs: Batch,
    *,
    train: Callable[[nn.Module], object],
    sparsity: float = 0.8,
    rounds: int = 3,
    warm: Callable[[nn.Module], object] | None = None,
    skip: Collection[str] = (),
    seed: int = 0,
    checkpoint: str | Path | None = None,
    key: str = "",
    progress: bool | None = None,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Lottery:
    """Iterative magnitude pruning with rewinding (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", section 1).

    Each round trains the network, sets the smallest weights of the whole network to 0, and puts the others back to
    their first values. Each round removes the same share of those left. Then the ticket is trained. As a control, so
    is another `make_network()` with the same masks (section 2). That is `rounds + 2` trainings.

    The networks are `.dense`, `.ticket` and `.control`. With `checkpoint` every training is stored, and a killed run
    continues after the last. The library cannot see what `train` and `warm` do: describe them in `key`.

    Args:
        make_network: It returns a fresh network. Its weights come from torch's generator, which `seed` seeds.
        example_inputs: A batch as the network takes it.
        train: It trains a network in place.
        sparsity: Share in (0, 1) of the weights that is 0 at the end.
        rounds: How often weights are removed.
        warm: It trains a network in place for a few steps. Weights go back to their values after it (Frankle et al.
            2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 4). The control is warmed up
            too.
        skip: Names of modules to leave alone.
        seed: Of the weights and of each training.
        checkpoint: A folder that stores every training.
        key: What `train` and `warm` do, such as "6 epochs, lr 0.05". A checkpoint with another key is refused.
        progress: Whether a progress bar is shown. None: on a terminal.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The three networks, the masks and a report.

    Raises:
        SettingError: A setting is out of range.
        InputError: All networks come with the same weights.
        BundleError: `checkpoint` is of another run.

    Example:
        >>> from dynamic.models import compress
        >>> def train(network):
        ...     dynamic.fit(network, train_loader, mode="joint", epochs=1, progress=False)
        >>> lottery = compress.lottery_ticket(
        ...     lambda: nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4)), torch.zeros(2, 12), train=train,
        ...     sparsity=0.5, rounds=1, latency=False, progress=False,
        ... )
        >>> round(lottery.report.facts["left"]["all"], 2)
        0.5
    """
    check_share("sparsity", sparsity, "0.8 leaves a fifth of the weights")
    if rounds < 1:
        raise SettingError(f"rounds={rounds}: give at least 1")
    with seeded(seed, 0):
        first = make_network()
    with seeded(seed, 1):
        other = make_network()
    if digest(first.state_dict()) == digest(other.state_dict()):
        raise InputError("make_network() returns the same weights each time: let it draw them from torch's generator")
    settings = {"sparsity": sparsity, "rounds": rounds, "skip": sorted(skip), "warm": warm is not None, "seed": seed}
    named = {"key": key} if key else {}  # checkpoints without a key are still valid
    header = {"kind": "lottery", "settings": {**settings, **named, "first": digest(first.state_dict())}}
    steps = iter(track(range(rounds + 3), "lottery ticket", rounds + 3, progress))

    def trained_copy(
        name: str, begin: nn.Module, weight_masks: Mapping[str, Tensor], *works: Callable[[nn.Module], object]
    ) -> nn.Module:
        """A copy of `begin` trained under masks, or the stored one."""
        number, plain = next(steps), copied(begin)
        path = None if checkpoint is None else Path(checkpoint) / f"{name}.safetensors"
        if path is not None and path.exists():
            tensors, theirs = read_tensors(path)
            if theirs != {"schema": theirs.get("schema"), **header}:
                raise BundleError(f"{path} is of another run, {theirs.get('settings')}: give another checkpoint")
            put_weights(plain, tensors, path)
            return plain
        if works:
            sparse = masked(begin, weight_masks)
            with seeded(seed, 2 + number):
                for work in works:
                    work(sparse)
            plain = baked(sparse)
        if path is not None:
            write_tensors(path, untied(plain.state_dict()), header)
        return plain

    start = trained_copy("start", first, {}, *([] if warm is None else [warm]))
    ticket_masks: dict[str, Tensor] = {}
    for number in range(rounds):
        trained = trained_copy(f"round-{number}", start, ticket_masks, train)
        if not number:
            dense = trained
        share = 1 - (1 - sparsity) ** ((number + 1) / rounds)
        ticket_masks = masks(
            prune_weights(trained, example_inputs, amount=share, skip=tuple(skip), latency=False).network
        )
    ticket = trained_copy("ticket", start, ticket_masks, train)
    control = trained_copy("control", other, ticket_masks, *([train] if warm is None else [warm, train]))
    next(steps, None)  # ends the bar
    facts = {"left": left_by(ticket_masks)}
    comparison = report("lottery ticket", dense, ticket, example_inputs, eval_loader, latency=latency, facts=facts)
    return Lottery(dense, ticket, control=control, start=start, masks=ticket_masks, report=comparison)


def left_by(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of weights that each mask leaves, and that of all together as "all"."""
    counts = {name: (int(torch.count_nonzero(mask)), mask.numel()) for name, mask in masks.items()}
    total, size = (sum(column) for column in zip(*counts.values(), strict=True))
    return {**{name: rest / whole for name, (rest, whole) in counts.items()}, "all": total / size}
