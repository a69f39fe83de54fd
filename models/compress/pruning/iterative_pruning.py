"""Prune a little, fine-tune, measure, and again, until the target is met (Han et al. 2015, section 3.2)."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dynamic.models.compress.argument_checks import check_fit_options, check_inputs, check_share, check_word
from dynamic.models.compress.pruning.block_pruning import prune_blocks
from dynamic.models.compress.pruning.channel_pruning import prunable, prune_channels, round_width
from dynamic.models.compress.pruning.pruned_structure import restructured, structure
from dynamic.models.compress.pruning.weight_pruning import baked, masks, prune_weights
from dynamic.models.compress.report import Compressed, Measured, accuracy, copied, measure, report
from dynamic.offline.batches import Batch
from dynamic.offline.networks.checkpoints import digest, read_tensors, write_tensors
from dynamic.offline.networks.used_data import RecordedLoader, hashes_of, remember
from dynamic.offline.staged_network import StagedNetwork
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import BundleError, InputError, SettingError, WrapError
from dynamic.progress import track

logger = logging.getLogger("dynamic")

Method = Callable[..., Compressed]
Structure = Literal["channels", "blocks", "weights"]
TuningMode = Literal["distill", "joint"]
_UNSAID = (
    "selection_loader",
    "eval_loader",
    "penalty",
    "progress",
)  # loaders and functions, which have no text of their own


@dataclass(frozen=True)
class Target:
    """When to stop: shares of the original's `nonzero` weights, multiply-adds `macs` and latency that are to be
    reached, all that are given, in (0, 1); and the largest `drop` in accuracy (a fraction) on `data`, which no
    step may pass. Raises SettingError on a share out of range, or where nothing is to be reached."""

    nonzero: float | None = None
    macs: float | None = None
    _: KW_ONLY
    latency: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        shares = {"nonzero": self.nonzero, "macs": self.macs, "latency": self.latency}
        for name, share in shares.items():
            if share is not None:
                check_share(name, share, "the share of the original's that is to be left")
        if self.drop is not None and self.drop != 0:
            check_share("drop", self.drop, "the accuracy that may be lost, as a fraction, or 0")
        if all(value is None for value in vars(self).values()):
            raise SettingError("a Target of nothing; give one of nonzero, macs, latency, drop")

    def met(self, before: Measured, after: Measured) -> bool:
        """Whether all shares are reached; never, where only a drop is given: then as much goes as it allows."""
        wanted = {"nonzero": self.nonzero, "macs": self.macs, "latency_ms": self.latency}
        given = {name: share for name, share in wanted.items() if share is not None}
        found = {name: (getattr(before, name), getattr(after, name)) for name in given}
        if any(None in pair for pair in found.values()):
            raise WrapError("latency cannot be measured: this network cannot be exported; give macs= in the target")
        return bool(given) and all(found[name][1] <= share * found[name][0] for name, share in given.items())


@dataclass(frozen=True)
class _Step:
    """Where a run stands: the network after `number` steps, and what each did."""

    number: int
    network: nn.Module
    history: tuple[dict[str, Any], ...]


def prune_until(
    network: nn.Module,
    example_inputs: Batch,
    *,
    train_loader: Iterable[Any],
    target: Target,
    how: Structure | Method = "channels",
    amount: float | int | None = None,
    steps: int = 10,
    epochs: int = 2,
    mode: TuningMode = "distill",
    teacher: nn.Module | None = None,
    selection_loader: Iterable[Any] | None = None,
    eval_loader: Iterable[Any] | None = None,
    method_options: Mapping[str, Any] | None = None,
    fit_options: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    latency: bool = True,
    progress: bool | None = None,
) -> Compressed:
    """`network` pruned in up to `steps` steps, each followed by `epochs` of fine-tuning, until `target` is met.

    `how`: "channels", "blocks", "weights", or a function `how(network, example_inputs, amount, latency=False,
    **options) -> Compressed` (`prune_channels` and its like). `amount` is that of each step: a share of what is left,
    or how many blocks (None: 0.2, or 1). Of channels, step k leaves `(1 - amount)^k` of the first widths before they
    are rounded: what one step is too small for, a later one takes, and where none would go, the next share is taken.
    `options` go to the method, `fitting` to `dynamic.fit`; `mode` "distill" learns from `teacher` (None: the network as
    it was), "joint" from the labels.

    `data`, held out, is for accuracy and **chooses** where to stop: what chooses must not certify, so these inputs must
    not be among those that `dynamic.build` calibrates and certifies with. The accuracy reported is of them too.

    Where a step drops further than `target.drop`, the network before it is returned. `facts["met"]` says whether the
    target was met, `facts["steps"]` what each step gave. `folder` keeps every step: a run that was killed and started
    again with the same arguments ends with the same network, weights bit for bit, as one that was not (`dynamic.fit`).
    With `folder`, `options` and `fitting` must be JSON, loaders apart, to be compared with those of the earlier run.

    Latency, where it is a target, is timed after each step, in turns with the first network's, on ONNX Runtime, one
    input at a time, and is off by some percent: that the target was met is what these turns said; the report times
    again. What a step found is kept in `folder` and not timed again: a run that goes on decides as the run before it
    did, but another run may take a step more or less.

    Raises SettingError on settings out of range, WrapError on a network with exits (prune before wrapping) and where
    nothing is left to prune at the first step, InputError on options that are not JSON, BundleError where `folder`
    holds another run, CorruptError where it is damaged.
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(f"this {type(network).__name__} has exits; prune its backbone, then wrap that")
    share = _amount(how, amount)
    check_inputs(network, example_inputs)
    if steps < 1:
        raise SettingError(f"steps={steps}: at least 1")
    if epochs < 1:
        raise SettingError(f"epochs={epochs}: at least 1")
    check_word("mode", mode, TuningMode)
    check_fit_options(fit_options, ("mode", "teacher", "epochs", "checkpoint"))
    if mode == "joint" and teacher is not None:
        raise SettingError("a teacher means nothing with mode='joint'; use mode='distill', or leave it")
    if target.drop is not None and selection_loader is None:
        raise SettingError(
            f"drop={target.drop} is measured on data: give selection_loader=, held-out inputs and labels"
        )
    taught = teacher if teacher is not None else copied(network) if mode == "distill" else None
    run = {
        "network": digest(network.state_dict()),
        "how": how if isinstance(how, str) else getattr(how, "__qualname__", type(how).__name__),
        "amount": share, "epochs": epochs, "mode": mode, "target": asdict(target),
        "teacher": None if teacher is None else digest(teacher.state_dict()),
        "method_options": _as_json("method_options", method_options, checkpoint is not None),
        "fit_options": _as_json("fit_options", fit_options, checkpoint is not None),
    }  # fmt: skip
    kept = _Folder(None if checkpoint is None else Path(checkpoint), network, run)
    whole = baked(network)
    recorded = None if selection_loader is None else RecordedLoader(selection_loader)
    first = None if recorded is None else accuracy(whole, recorded)
    now = kept.latest(steps)
    bar = track(range(now.number, steps), "pruning", steps - now.number, progress)
    done = bool(now.history) and now.history[-1]["ends"]
    for number in bar:
        if done:
            break
        pruned = kept.pruned(number)
        if pruned is None:
            try:
                pruned = _pruned(how, network, now.network, example_inputs, share, number, method_options or {})
            except (WrapError, SettingError):
                if not now.history:
                    raise
                break  # nothing is left to prune
            kept.keep_pruned(number, pruned)
        how_fit = {"checkpoint": kept.path(number, "fit"), "progress": progress, **(fit_options or {})}
        fit(pruned, train_loader, mode=mode, teacher=taught, epochs=epochs, **how_fit)
        plain = baked(pruned)
        before, after = measure([whole, plain], example_inputs, latency=target.latency is not None)
        if selection_loader is not None:
            after = replace(after, accuracy=accuracy(plain, selection_loader))
        lost = None if first is None or after.accuracy is None else first - after.accuracy
        passed = target.drop is not None and lost is not None and lost > target.drop
        met = not passed and target.met(before, after)
        entry = {**asdict(after), "drop": lost, "undone": passed, "met": met, "ends": passed or met}
        entry |= {} if target.latency is None else {"latency_ms_before": before.latency_ms}
        now = _Step(number + 1, now.network if passed else pruned, (*now.history, entry))
        kept.keep(now)
        done = passed or met
    bar.close()
    remember(now.network, () if recorded is None else recorded.hashes)
    return Compressed(
        now.network,
        report(
            f"pruned step by step: {run['how']}",
            network,
            baked(now.network),
            example_inputs,
            selection_loader if eval_loader is None else eval_loader,
            latency=latency,
            facts={"met": bool(now.history) and now.history[-1]["met"], "steps": list(now.history)},
            notes=_shortfall(target, whole, now, example_inputs, len(now.history) < steps and not done, how),
        ),
    )


def _shortfall(
    target: Target, whole: nn.Module, now: _Step, example_inputs: Batch, stuck: bool, how: Structure | Method
) -> tuple[str, ...]:
    """What is left where the target was not met, and why the run ended."""
    wanted = {"nonzero": target.nonzero, "macs": target.macs, "latency_ms": target.latency}
    given = {name: share for name, share in wanted.items() if share is not None}
    if not given or (now.history and now.history[-1]["met"]):
        return ()
    timed = target.latency is not None
    before, after = measure([whole, baked(now.network)], example_inputs, latency=timed)
    left = ", ".join(
        f"{name} {getattr(after, name) / getattr(before, name):.1%} of the original's where {share:.1%} were asked for"
        for name, share in given.items()
        if getattr(before, name)
    )
    why = "more steps, or a larger amount, take more away"
    if now.history and now.history[-1]["undone"]:
        why = f"another step loses more than drop={target.drop}"
    elif stuck:
        why = "nothing more can go"
        if how == "channels":
            why += (
                ": widths are multiples that engines like, and method_options={'round_to': 1} removes single channels"
            )
    note = f"the target was not met: {left}; {why}"
    logger.warning("prune_until: %s", note)
    return (note,)


def _amount(how: Structure | Method, amount: float | int | None) -> float | int:
    if isinstance(how, str):
        check_word("how", how, Structure)
    if how == "blocks":
        count = 1 if amount is None else amount
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SettingError(f"amount={amount!r} with how='blocks': how many go at each step, a whole number")
        return count
    share = 0.2 if amount is None else amount
    if isinstance(how, str):
        check_share("amount", share, "the share of what is left that goes at each step")
    return share


def _pruned(
    how: Structure | Method,
    first: nn.Module,
    network: nn.Module,
    example_inputs: Batch,
    amount: float | int,
    number: int,
    options: Mapping[str, Any],
) -> nn.Module:
    """What step `number`, from 0, makes of `network`, which came from `first`."""
    if not isinstance(how, str):
        return how(network, example_inputs, amount=amount, latency=False, **options).network
    if how == "blocks":
        assert isinstance(amount, int)
        return prune_blocks(network, example_inputs, count=amount, latency=False, **options).network
    if how == "weights":
        held = list(masks(network).values())
        size = sum(mask.numel() for mask in held)
        gone = 1 - sum(int(mask.sum()) for mask in held) / size if size else 0.0
        return prune_weights(
            network, example_inputs, amount=gone + (1 - gone) * amount, latency=False, **options
        ).network
    shares = _shares(first, network, example_inputs, amount, number, options)
    return prune_channels(network, example_inputs, amount=shares or amount, latency=False, **options).network


def _shares(
    first: nn.Module,
    network: nn.Module,
    example_inputs: Batch,
    amount: float,
    number: int,
    options: Mapping[str, Any],
) -> dict[str, float]:
    """The share of its channels that each layer loses, those that lose some; empty where none can."""
    asked = {name: options[name] for name in ("stream", "skip") if name in options}
    widths = prunable(network, example_inputs, **asked)
    began = dict[str, int]()
    for name in widths:
        weight = first.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        began[name] = len(weight)
    # multiples that suit the first widths; once those are at their least, ones that suit what is left
    for base, stays in ((began, (1 - amount) ** (number + 1)), (widths, 1 - amount)):
        while stays * max(base.values(), default=0) > 0.5:  # below, every width is at its least
            kept = {name: round_width(size, size * stays, options.get("round_to")) for name, size in base.items()}
            shares = {name: 1 - kept[name] / width for name, width in widths.items() if kept[name] < width}
            if shares:
                return shares
            stays *= 1 - amount
    return {}


def _as_json(what: str, given: Mapping[str, Any] | None, needed: bool) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    found: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name in _UNSAID:
            continue
        plain = str(value) if isinstance(value, (Path, torch.device)) else value
        try:
            found[name] = json.loads(json.dumps(plain))
        except (TypeError, ValueError) as error:
            if needed:
                raise InputError(
                    f"{what}[{name!r}] is a {type(value).__name__}, which JSON cannot hold: a run that goes on could "
                    "not tell whether it is the same; give numbers, text or lists, or leave checkpoint out"
                ) from error
    return found


class _Folder:
    """What is kept of a run: the network pruned in each step, and after its fine-tuning."""

    def __init__(self, folder: Path | None, network: nn.Module, run: Mapping[str, Any]) -> None:
        self.folder, self.network, self.run = folder, network, run

    def path(self, number: int, what: str) -> Path | None:
        return None if self.folder is None else self.folder / f"step-{number + 1:03d}-{what}.safetensors"

    def latest(self, steps: int) -> _Step:
        """The last whole step, of `steps` at most."""
        for number in reversed(range(steps)):
            path = self.path(number, "done")
            if path is not None and path.is_file():
                network, facts = self._read(path)
                return _Step(number + 1, network, tuple(facts["history"]))
        return _Step(0, copied(self.network), ())

    def pruned(self, number: int) -> nn.Module | None:
        """The network of a step that was pruned and whose fine-tuning did not end."""
        path = self.path(number, "pruned")
        return None if path is None or not path.is_file() else self._read(path)[0]

    def keep_pruned(self, number: int, network: nn.Module) -> None:
        self._write(self.path(number, "pruned"), network, ())

    def keep(self, step: _Step) -> None:
        self._write(self.path(step.number - 1, "done"), step.network, step.history)
        for what in ("pruned", "fit"):
            path = self.path(step.number - 1, what)
            if path is not None:
                path.unlink(missing_ok=True)

    def _write(self, path: Path | None, network: nn.Module, history: tuple[dict[str, Any], ...]) -> None:
        if path is None:
            return
        names = {name: p.requires_grad for name, p in network.named_parameters()}
        frozen = [name for name, trains in names.items() if not trains]
        facts = {"run": self.run, "structure": structure(self.network, network), "history": history, "frozen": frozen}
        facts["used_data"] = sorted(hashes_of(network))
        tensors = {name: tensor.clone() for name, tensor in network.state_dict().items()}  # shared ones stand alone
        write_tensors(path, tensors, {"kind": "pruning step", **facts})

    def _read(self, path: Path) -> tuple[nn.Module, dict[str, Any]]:
        tensors, facts = read_tensors(path)
        if facts.get("kind") != "pruning step":
            raise BundleError(f"{path} is no step of a pruning run; give another checkpoint")
        changed = [name for name in sorted(self.run) if facts["run"].get(name) != self.run[name]]
        if changed:
            told = ", ".join(f"{n}={_short(facts['run'].get(n))} (now {_short(self.run[n])})" for n in changed)
            raise BundleError(
                f"{path} was made with {told}; call prune_until as that run did, or give another checkpoint"
            )
        network = restructured(self.network, facts["structure"])
        network.load_state_dict(tensors)
        remember(network, facts.get("used_data", ()))
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name not in facts["frozen"])
        return network, facts


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else text[:40] + "..."
