"""Prune a little, fine-tune, measure, and repeat until a target is met (Han et al. 2015, section 3.2)."""

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dynamic.models.compress.argument_checks import check_fit_options, check_inputs, check_share
from dynamic.models.compress.pruning.block_pruning import prune_blocks
from dynamic.models.compress.pruning.channel_pruning import prunable, prune_channels, round_width
from dynamic.models.compress.pruning.pruned_structure import restructured, structure
from dynamic.models.compress.pruning.weight_pruning import baked, masks, prune_weights
from dynamic.models.compress.report import Compressed, Measured, accuracy, copied, measure, report
from dynamic.offline.batches import Batch
from dynamic.offline.networks.checkpoints import digest, read_tensors, write_tensors
from dynamic.offline.networks.used_data import RecordedLoader, hashes_of, remember
from dynamic.offline.option_words import check_word
from dynamic.offline.staged_network import StagedNetwork
from dynamic.offline.training.configs import fit_arguments
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
)  # loaders and functions have no JSON


@dataclass(frozen=True)
class Target:
    """When to stop pruning. All given shares must be met.

    Args:
        nonzero: Share in (0, 1) of the weights of the original that are not 0.
        macs: Share in (0, 1) of its multiply-adds.
        latency: Share in (0, 1) of its latency.
        drop: Largest loss of accuracy on the selection data, a fraction. No step may pass it.

    Raises:
        SettingError: A share is out of range, or nothing is given.

    Example:
        >>> from dynamic.models import compress
        >>> target = compress.Target(macs=0.5, drop=0.01)
    """

    nonzero: float | None = None
    macs: float | None = None
    _: KW_ONLY
    latency: float | None = None
    drop: float | None = None

    def __post_init__(self) -> None:
        shares = {"nonzero": self.nonzero, "macs": self.macs, "latency": self.latency}
        for name, share in shares.items():
            if share is not None:
                check_share(name, share, "the share of the original that remains")
        if self.drop is not None and self.drop != 0:
            check_share("drop", self.drop, "the accuracy that may be lost, a fraction")
        if all(value is None for value in vars(self).values()):
            raise SettingError("the target is empty: give one of nonzero, macs, latency and drop")

    def met(self, before: Measured, after: Measured) -> bool:
        """Whether all shares are met. Never where only a drop is given: then pruning goes as far as the drop allows.

        Args:
            before: Of the original.
            after: Of the pruned network.

        Returns:
            Whether all are met.

        Raises:
            WrapError: Latency is a target and could not be measured.

        Example:
            >>> from dynamic.models import compress
            >>> before = compress.Measured(10, 10, file_bytes=40, macs=20.0)
            >>> after = compress.Measured(6, 6, file_bytes=24, macs=9.0)
            >>> compress.Target(macs=0.5).met(before, after), compress.Target(nonzero=0.5).met(before, after)
            (True, False)
        """
        targets = {"nonzero": self.nonzero, "macs": self.macs, "latency_ms": self.latency}
        shares = {name: share for name, share in targets.items() if share is not None}
        pairs = {name: (getattr(before, name), getattr(after, name)) for name in shares}
        if any(None in pair for pair in pairs.values()):
            raise WrapError(
                "latency cannot be measured, since this network cannot be exported: give macs= in the target"
            )
        return bool(shares) and all(pairs[name][1] <= share * pairs[name][0] for name, share in shares.items())


@dataclass(frozen=True)
class _Step:
    """A run after `number` steps: its network, and what each step did."""

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
    """A network pruned in steps, each followed by fine-tuning, until a target is met.

    **Chooses by data**: accuracy on `selection_loader` decides where to stop. These inputs must not certify, and the
    network carries their hashes.

    Where a step loses more than `target.drop`, the network before that step is returned. With `checkpoint` every step
    is stored. A killed run that starts again with the same arguments ends with the same network, bit for bit, as a run
    that was not killed (`dynamic.fit`).

    Latency, where it is a target, is measured after each step on ONNX Runtime, in turns with the first network, one
    input at a time. It is wrong by some percent. These turns decide whether the target is met, and the report measures
    again. A continued run uses the stored measurements. Another run may take a step more or less.

    Args:
        network: The network. It does not change. Prune a network with exits before wrapping it.
        example_inputs: A batch as the network takes it.
        train_loader: `(inputs, labels [B])` that fine-tune.
        target: When to stop.
        how: "channels", "blocks", "weights", or a function `how(network, example_inputs, amount=..., latency=False,
            **method_options)` that returns a `Compressed`.
        amount: Of each step: a share of what is left (None: 0.2), or a number of blocks (None: 1). Step k leaves
            `(1 - amount)^k` of the first channels before they are rounded. Where no channel would go, the next share is
            taken.
        steps: Most steps.
        epochs: Epochs of fine-tuning in each step.
        mode: "distill" learns from `teacher`, "joint" from the labels.
        teacher: None: the network as it was.
        selection_loader: `(inputs, labels [B])`, held out, on which each step is measured.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing. None: the report
            measures on `selection_loader`, and its accuracy is then too good.
        method_options: Other arguments of the method.
        fit_options: Other arguments of `dynamic.fit` and fields of `TrainingConfig`.
        checkpoint: A folder that stores every step. Options must then be JSON, loaders aside.
        latency: Whether the report measures latency.
        progress: Whether a progress bar is shown. None: on a terminal.

    Returns:
        The network and a report. `report.facts["met"]`: whether the target is met. `report.facts["steps"]`: the result
        of each step.

    Raises:
        SettingError: A setting is out of range.
        WrapError: The network has exits, or nothing can be pruned at the first step.
        InputError: Options are not JSON.
        BundleError: `checkpoint` is of another run.
        CorruptError: `checkpoint` is damaged.

    Example:
        >>> from dynamic.models import compress
        >>> pruned = compress.prune_until(
        ...     large, torch.zeros(2, 12), train_loader=train_loader, target=compress.Target(nonzero=0.9),
        ...     how="weights", epochs=1, latency=False, progress=False,
        ... )
        >>> pruned.report.facts["met"]
        True
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(f"this {type(network).__name__} has exits: prune its backbone, then wrap that")
    share = _amount(how, amount)
    check_inputs(network, example_inputs)
    if steps < 1:
        raise SettingError(f"steps={steps}: give at least 1")
    if epochs < 1:
        raise SettingError(f"epochs={epochs}: give at least 1")
    check_word("mode", mode, TuningMode)
    check_fit_options(fit_options, ("mode", "teacher", "epochs", "checkpoint", "training", "distillation"))
    if mode == "joint" and teacher is not None:
        raise SettingError("mode='joint' takes no teacher: use mode='distill', or give no teacher")
    if target.drop is not None and selection_loader is None:
        raise SettingError(
            f"drop={target.drop} is measured on data: give selection_loader=, held-out inputs and labels"
        )
    trained_by = teacher if teacher is not None else copied(network) if mode == "distill" else None
    run = {
        "network": digest(network.state_dict()),
        "how": how if isinstance(how, str) else getattr(how, "__qualname__", type(how).__name__),
        "amount": share, "epochs": epochs, "mode": mode, "target": asdict(target),
        "teacher": None if teacher is None else digest(teacher.state_dict()),
        "method_options": _as_json("method_options", method_options, checkpoint is not None),
        "fit_options": _as_json("fit_options", fit_options, checkpoint is not None),
    }  # fmt: skip
    store = _Folder(None if checkpoint is None else Path(checkpoint), network, run)
    whole = baked(network)
    recorded = None if selection_loader is None else RecordedLoader(selection_loader)
    first = None if recorded is None else accuracy(whole, recorded)
    now = store.latest(steps)
    bar = track(range(now.number, steps), "pruning", steps - now.number, progress)
    ended = bool(now.history) and now.history[-1]["ends"]
    for number in bar:
        if ended:
            break
        pruned = store.pruned(number)
        if pruned is None:
            try:
                pruned = _pruned(how, network, now.network, example_inputs, share, number, method_options or {})
            except (WrapError, SettingError):
                if not now.history:
                    raise
                break  # nothing can be pruned any more
            store.save_pruned(number, pruned)
        settings = {
            "epochs": epochs,
            "teacher": trained_by,
            "checkpoint": store.path(number, "fit"),
            "progress": progress,
            **(fit_options or {}),
        }
        fit(pruned, train_loader, mode=mode, **fit_arguments(settings))
        plain = baked(pruned)
        before, after = measure([whole, plain], example_inputs, latency=target.latency is not None)
        if selection_loader is not None:
            after = replace(after, accuracy=accuracy(plain, selection_loader))
        loss = None if first is None or after.accuracy is None else first - after.accuracy
        too_much = target.drop is not None and loss is not None and loss > target.drop
        met = not too_much and target.met(before, after)
        entry = {**asdict(after), "drop": loss, "undone": too_much, "met": met, "ends": too_much or met}
        entry |= {} if target.latency is None else {"latency_ms_before": before.latency_ms}
        now = _Step(number + 1, now.network if too_much else pruned, (*now.history, entry))
        store.save(now)
        ended = too_much or met
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
            notes=_shortfall(target, whole, now, example_inputs, len(now.history) < steps and not ended, how),
        ),
    )


def _shortfall(
    target: Target, whole: nn.Module, now: _Step, example_inputs: Batch, stuck: bool, how: Structure | Method
) -> tuple[str, ...]:
    """What is missing where the target was not met, and why the run ended."""
    targets = {"nonzero": target.nonzero, "macs": target.macs, "latency_ms": target.latency}
    shares = {name: share for name, share in targets.items() if share is not None}
    if not shares or (now.history and now.history[-1]["met"]):
        return ()
    timed = target.latency is not None
    before, after = measure([whole, baked(now.network)], example_inputs, latency=timed)
    shortfalls = ", ".join(
        f"{name} {getattr(after, name) / getattr(before, name):.1%} of the original's where {share:.1%} was the target"
        for name, share in shares.items()
        if getattr(before, name)
    )
    why = "more steps, or a larger amount, remove more"
    if now.history and now.history[-1]["undone"]:
        why = f"another step loses more than drop={target.drop}"
    elif stuck:
        why = "nothing more can be removed"
        if how == "channels":
            why += (
                ": widths are multiples that engines like, and method_options={'round_to': 1} removes single channels"
            )
    note = f"the target was not met: {shortfalls}, and {why}"
    logger.warning("prune_until: %s", note)
    return (note,)


def _amount(how: Structure | Method, amount: float | int | None) -> float | int:
    if isinstance(how, str):
        check_word("how", how, Structure)
    if how == "blocks":
        count = 1 if amount is None else amount
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise SettingError(f"amount={amount!r} with how='blocks': give the number of blocks that go at each step")
        return count
    share = 0.2 if amount is None else amount
    if isinstance(how, str):
        check_share("amount", share, "the share of the remaining that goes at each step")
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
    """The result of step `number`, from 0, on `network`, which was made from `first`."""
    if not isinstance(how, str):
        return how(network, example_inputs, amount=amount, latency=False, **options).network
    if how == "blocks":
        assert isinstance(amount, int)
        return prune_blocks(network, example_inputs, count=amount, latency=False, **options).network
    if how == "weights":
        before = list(masks(network).values())
        size = sum(mask.numel() for mask in before)
        zeros = 1 - sum(int(mask.sum()) for mask in before) / size if size else 0.0
        return prune_weights(
            network, example_inputs, amount=zeros + (1 - zeros) * amount, latency=False, **options
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
    """The share of its channels that each layer loses, of layers that lose some. Empty where none can."""
    choice = {name: options[name] for name in ("stream", "skip") if name in options}
    widths = prunable(network, example_inputs, **choice)
    first_widths = dict[str, int]()
    for name in widths:
        weight = first.get_submodule(name).weight
        assert isinstance(weight, torch.Tensor)
        first_widths[name] = len(weight)
    # first multiples that suit the first widths, then multiples that suit the widths that are left
    for base, stays in ((first_widths, (1 - amount) ** (number + 1)), (widths, 1 - amount)):
        while stays * max(base.values(), default=0) > 0.5:  # below, every width is at its least
            rounded = {name: round_width(size, size * stays, options.get("round_to")) for name, size in base.items()}
            shares = {name: 1 - rounded[name] / width for name, width in widths.items() if rounded[name] < width}
            if shares:
                return shares
            stays *= 1 - amount
    return {}


def _as_json(what: str, options: Mapping[str, Any] | None, needed: bool) -> dict[str, Any]:
    """Settings as JSON returns them."""
    plain_options: dict[str, Any] = {}
    for name, value in (options or {}).items():
        if name in _UNSAID:
            continue
        plain = str(value) if isinstance(value, (Path, torch.device)) else value
        try:
            plain_options[name] = json.loads(json.dumps(plain))
        except (TypeError, ValueError) as error:
            if needed:
                raise InputError(
                    f"{what}[{name!r}] is a {type(value).__name__}, which JSON cannot hold, so runs cannot be "
                    "compared: give numbers, text or lists, or no checkpoint"
                ) from error
    return plain_options


class _Folder:
    """The checkpoint of a run: the network of each step, pruned and then fine-tuned."""

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

    def save_pruned(self, number: int, network: nn.Module) -> None:
        self._write(self.path(number, "pruned"), network, ())

    def save(self, step: _Step) -> None:
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
        tensors = {
            name: tensor.clone() for name, tensor in network.state_dict().items()
        }  # safetensors refuses shared memory
        write_tensors(path, tensors, {"kind": "pruning step", **facts})

    def _read(self, path: Path) -> tuple[nn.Module, dict[str, Any]]:
        tensors, facts = read_tensors(path)
        if facts.get("kind") != "pruning step":
            raise BundleError(f"{path} is no step of a pruning run: give another checkpoint")
        changed = [name for name in sorted(self.run) if facts["run"].get(name) != self.run[name]]
        if changed:
            differences = ", ".join(f"{n}={_short(facts['run'].get(n))} (now {_short(self.run[n])})" for n in changed)
            raise BundleError(
                f"{path} was made with {differences}: call prune_until as that run did, or give another checkpoint"
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
