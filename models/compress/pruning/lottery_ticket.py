"""Lottery tickets: a sparse network that, trained from its own first weights, does what the whole network does."""

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
    """What `lottery_ticket` gives: three networks, each trained to its end; plain modules.

    `.dense` has no mask. `.ticket` has `masks` and began from the same weights. `.control` has the same masks and began
    from other random weights. `start` is what dense and ticket began from; `report` compares these two.
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
    """Iterative magnitude pruning with rewinding (Frankle and Carbin 2019, "The Lottery Ticket Hypothesis", sec. 1).

    `rounds` times: `train` the network in place, make 0 the weights of least magnitude over the whole network, up to
    `sparsity` at the end, the same share of those left each time, and put the others back to where they began. Then
    train the ticket, and as control the same mask on another `make_network()` (section 2). `warm` trains a network in
    place for a few steps: weights go back to what they are after it (Frankle et al. 2020, "Linear Mode Connectivity and
    the Lottery Ticket Hypothesis", section 4); the control gets it too. `rounds + 2` trainings in all.

    It gives a `Lottery`: `.dense`, `.ticket` and `.control` are the three trained networks, `.masks` the weights that
    the ticket holds, and `.report` compares dense and ticket.

    `make_network` draws its weights from torch's generator, which is seeded by `seed` here, as each training is.
    `folder` keeps every training: a run that was killed goes on after the last. It cannot see what `train` and `warm`
    do: tell it in `key`, such as "6 epochs, lr 0.05", and a folder with another key is refused. Raises SettingError on
    a setting out of range, InputError where all networks come with the same weights, BundleError on a folder of another
    run.
    """
    check_share("sparsity", sparsity, "0.8 leaves a fifth of the weights")
    if rounds < 1:
        raise SettingError(f"rounds={rounds}: at least 1")
    with seeded(seed, 0):
        first = make_network()
    with seeded(seed, 1):
        other = make_network()
    if digest(first.state_dict()) == digest(other.state_dict()):
        raise InputError("make_network() gives the same weights each time; let it draw them from torch's generator")
    known = {"sparsity": sparsity, "rounds": rounds, "skip": sorted(skip), "warm": warm is not None, "seed": seed}
    named = {"key": key} if key else {}  # folders from before there were keys stay valid
    header = {"kind": "lottery", "settings": {**known, **named, "first": digest(first.state_dict())}}
    steps = iter(track(range(rounds + 3), "lottery ticket", rounds + 3, progress))

    def done(
        name: str, begin: nn.Module, kept: Mapping[str, Tensor], *works: Callable[[nn.Module], object]
    ) -> nn.Module:
        """A copy of `begin` trained under masks; from the folder where it is there."""
        number, plain = next(steps), copied(begin)
        path = None if checkpoint is None else Path(checkpoint) / f"{name}.safetensors"
        if path is not None and path.exists():
            tensors, theirs = read_tensors(path)
            if theirs != {"schema": theirs.get("schema"), **header}:
                raise BundleError(f"{path} is of another run, {theirs.get('settings')}; give another checkpoint")
            put_weights(plain, tensors, path)
            return plain
        if works:
            held = masked(begin, kept)
            with seeded(seed, 2 + number):
                for work in works:
                    work(held)
            plain = baked(held)
        if path is not None:
            write_tensors(path, untied(plain.state_dict()), header)
        return plain

    start = done("start", first, {}, *([] if warm is None else [warm]))
    found: dict[str, Tensor] = {}
    for number in range(rounds):
        trained = done(f"round-{number}", start, found, train)
        if not number:
            dense = trained
        share = 1 - (1 - sparsity) ** ((number + 1) / rounds)
        found = masks(prune_weights(trained, example_inputs, amount=share, skip=tuple(skip), latency=False).network)
    ticket = done("ticket", start, found, train)
    control = done("control", other, found, *([train] if warm is None else [warm, train]))
    next(steps, None)  # ends the bar
    facts = {"left": left_by(found)}
    told = report("lottery ticket", dense, ticket, example_inputs, eval_loader, latency=latency, facts=facts)
    return Lottery(dense, ticket, control=control, start=start, masks=found, report=told)


def left_by(masks: Mapping[str, Tensor]) -> dict[str, float]:
    """The share of weights that each mask leaves, and of all together as "all"."""
    counts = {name: (int(torch.count_nonzero(mask)), mask.numel()) for name, mask in masks.items()}
    kept, size = (sum(column) for column in zip(*counts.values(), strict=True))
    return {**{name: left / whole for name, (left, whole) in counts.items()}, "all": kept / size}
