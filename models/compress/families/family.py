"""Several sub-models of one network, measured beside each other, and the cascade of the useful ones."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.bundle.bundle import Bundle
from dynamic.engines.engine_factory import check_engine
from dynamic.engines.options import EngineName, Precision
from dynamic.models.compress.argument_checks import check_fit_options
from dynamic.models.compress.families.cascade_advice import advice
from dynamic.models.compress.families.engine_comparison import no_less_accurate, tensors_mb
from dynamic.models.compress.families.family_chart import draw
from dynamic.models.compress.families.family_members import OTHER, REFERENCE, SUB_MODEL, Member, judge, measure_members
from dynamic.models.compress.families.member_training import Maker, first_batches
from dynamic.models.compress.families.recipes import Cost, Recipe, as_named, checked_targets, class_name, recipe
from dynamic.models.compress.report import Compressed, Report
from dynamic.offline.batches import Batch, labelled_batches, named_tensors, run_on
from dynamic.offline.build_steps.loaders import peek
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.row_independence import check_classes
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.option_words import check_word
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.policies.certification.floor import SHARE, Level, check_floor
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.scores import Combination
from dynamic.policies.words.tables import table
from dynamic.progress import track

DEFAULT_METHODS = ("quantize", "prune_channels", "prune_blocks", "low_rank")


@dataclass(frozen=True)
class Family:
    """Sub-models of a network and their measurements.

    Args:
        members: The networks from fast to slow, the reference last.
        engine: Where they were measured.
        precision: Of the engine.
        failed: Name of a network that could not be made -> why.
        notes: Targets that were not reached.
        floor: Accuracy that a member of the cascade must have. None: none was set, and the network itself is at chance.

    Example:
        >>> others = {"small": small}
        >>> family = dynamic.family(large, eval_loader, methods=(), others=others, engine="torch", memory=False)
        >>> sorted(member.name for member in family.members)
        ['Sequential', 'small']
    """

    members: tuple[Member, ...]
    engine: EngineName
    _: KW_ONLY
    precision: Precision
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    floor: float | None = None

    @property
    def reference(self) -> Member:
        """The network from which the sub-models were made."""
        return self.members[-1]

    @property
    def cascade_members(self) -> tuple[Member, ...]:
        """The members of the cascade: the faster networks that no other beats, and the reference."""
        last = self.reference
        faster = (m for m in self.members[:-1] if m.beaten is None and m.latency_ms < last.latency_ms)
        return (*(m for m in faster if not self._low(m)), last)

    def _low(self, member: Member) -> bool:
        return self.floor is not None and member.accuracy < self.floor

    @property
    def memory_mb(self) -> float | None:
        """Of all members of the cascade. On engine "torch" shared weights count once."""
        if self.engine == "torch":
            return tensors_mb(m.network for m in self.cascade_members)
        sizes = [m.memory_mb for m in self.cascade_members if m.memory_mb is not None]
        return sum(sizes) if len(sizes) == len(self.cascade_members) else None

    def cascade(self, combine: Combination = "backbones") -> Cascade:
        """The cascade for `dynamic.build`: the fastest member first, the reference last.

        Args:
            combine: How answers are combined, see `dynamic.Cascade`.

        Returns:
            The cascade.

        Raises:
            SettingError: `combine` is no choice.

        Example:
            >>> others = {"small": small}
            >>> family = dynamic.family(large, eval_loader, methods=(), others=others, engine="torch", memory=False)
            >>> family.cascade().names[-1]
            'Sequential'
        """
        return Cascade(
            [m.network for m in self.cascade_members], combine=combine, names=[m.name for m in self.cascade_members]
        )

    def chart(self, path: str | Path, bundle: Bundle | None = None) -> Path:
        """Draw accuracy against latency.

        Args:
            path: The picture. Its suffix is the format.
            bundle: The cascade that was built and profiled. Its operating points are drawn too.

        Returns:
            The path.

        Raises:
            DynamicError: matplotlib is not installed.
            BundleError: The bundle was not profiled.

        Example:
            >>> others = {"small": small}
            >>> family = dynamic.family(large, eval_loader, methods=(), others=others, engine="torch", memory=False)
            >>> family.chart("family.png").name
            'family.png'
        """
        return draw(self.members, self.cascade_members, f"{self.engine} {self.precision}", Path(path), bundle)

    def advice(self, bundle: Bundle) -> str:
        """Which operating points of the built cascade are useful, beside each of its networks alone.

        Args:
            bundle: The cascade that was built and profiled.

        Returns:
            A line for each network and each point that uses several stages.

        Raises:
            BundleError: The bundle was not profiled.
            CalibrationError: Its records have no labels.

        Example:
            >>> others = {"small": small}
            >>> family = dynamic.family(large, eval_loader, methods=(), others=others, engine="torch", memory=False)
            >>> "alone" in family.advice(bundle)
            True
        """
        return advice(bundle)

    def __str__(self) -> str:
        last = self.reference
        head = ("network", "accuracy", "ms", "of the time", "MB", "M multiply-adds", "k parameters", "")
        rows = (
            (
                m.name,
                f"{m.accuracy:.4f}",
                f"{m.latency_ms:.3f}",
                f"{m.latency_ms / last.latency_ms:.2f}",
                "" if m.memory_mb is None else f"{m.memory_mb:.1f}",
                f"{m.measured.macs / 1e6:.3f}",
                f"{m.measured.parameters / 1e3:.1f}",
                self._state(m),
            )
            for m in self.members
        )
        return "\n".join([table(head, rows), *self._remarks()])

    def _state(self, member: Member) -> str:
        if member is self.reference:
            return "reference"
        if member.beaten is not None:
            return f"beaten by {member.beaten.by}"
        if self._low(member):
            return f"below the floor of accuracy {self.floor:.4f}: not in the cascade"
        return (
            "in the cascade" if member in self.cascade_members else "not faster than the reference: not in the cascade"
        )

    def _remarks(self) -> Iterator[str]:
        last, count = self.reference, len(self.reference.right)
        spread = max((m.accuracy * (1 - m.accuracy) / count) ** 0.5 for m in self.cascade_members)
        memory = "" if self.memory_mb is None else f", and the cascade holds {self.memory_mb:.1f} MB"
        yield f"engine {self.engine}, {self.precision}{memory}"
        yield (
            f"accuracy of {count} inputs, each to within {200 * spread:.1f} points or better. These inputs chose, and "
            "must not certify: give build others"
        )
        for m in self.members:
            if m.beaten is not None:
                b = m.beaten
                yield (
                    f"{m.name}: {b.by} is no less accurate (chance {b.confidence:.0%}) and was faster in {b.slower} of "
                    f"{b.turns} turns"
                )
        yield from self.notes
        yield from (f"{name} could not be made: {why}" for name, why in self.failed.items())
        at_least_equal = [m for m in self.cascade_members[:-1] if m.accuracy >= last.accuracy]
        for m in at_least_equal:
            yield (
                f"{m.name} alone is no less accurate than {last.name} (chance "
                f"{no_less_accurate(m.right, last.right):.0%}) and takes {m.latency_ms / last.latency_ms:.2f} of its "
                "time: ship it as it is, or start again with it as the network"
            )
        if len(self.cascade_members) == 1:
            yield f"no network is useful before {last.name}: ship that network as it is"


def family(
    network: nn.Module,
    selection_loader: Iterable[Any],
    *,
    targets: Sequence[float] = (0.5, 0.25),
    train_loader: Iterable[Any] | None = None,
    methods: Sequence[str | Callable[..., Compressed] | Recipe] = DEFAULT_METHODS,
    others: Mapping[str, nn.Module] | Sequence[nn.Module] = (),
    engine: EngineName = "onnxruntime",
    precision: Precision = "f32",
    cost: Cost = "latency",
    epochs: int = 5,
    fit_options: Mapping[str, Any] | None = None,
    min_confidence: float = 0.5,
    keep_small: bool = False,
    memory: bool = True,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    floor: float | None = None,
) -> Family:
    """Make sub-models of a network, measure all of them on this device, and drop those that another beats.

    **Chooses by data**: accuracy on `selection_loader` decides which networks are in the cascade. These inputs must not
    certify. The sub-models and the networks in `others` carry their hashes.

    Another network beats one if it is no less accurate and was faster in three quarters of the turns. So no network is
    dropped only because it is slower, or only because it is less accurate.

    Args:
        network: The network. It does not change, and neither do `others`.
        selection_loader: `(inputs, labels [B])` that no network was trained on.
        targets: Shares of the cost of the network. Each method goes as far as each target needs.
        train_loader: `(inputs, labels [B])` for fine-tuning, with the network as teacher. None: no fine-tuning.
        methods: Names ("prune_channels", "prune_blocks", "low_rank", "separate", "quantize"), functions `(network,
            example_inputs) -> Compressed`, which make one sub-model each, or `Recipe`s. "prune_channels+quantize" is
            one after the other, and its cost is measured after both. A method that fails is listed in `failed`.
        others: Ready-made networks for the same task, which compete too.
        engine: Where networks are measured.
        precision: Of the engine.
        cost: Of what `targets` are shares: "latency" or "macs" (multiply-adds).
        epochs: Epochs of fine-tuning.
        fit_options: Other arguments of `dynamic.fit` and fields of `TrainingConfig`. The default learning rate is 0.01.
        min_confidence: In [0, 1). The chance that the other network is as accurate, and the share of turns in which it
            was faster, must both be as large before a network is dropped.
        keep_small: Whether a network that takes less memory than the other is kept.
        memory: Whether memory is measured, each network in a process of its own.
        checkpoint: A folder that stores choices and fine-tuning. A killed run continues from it.
        progress: Whether progress bars are shown. None: on a terminal.
        floor: Accuracy that a member of the cascade must have. None: halfway between the most frequent class and the
            network. 0: no floor. A network below it is listed and is not in the cascade.

    Returns:
        All networks with their measurements.

    Raises:
        InputError: Data, networks or methods do not fit, or no other network is left.
        SettingError: A setting is out of range.
        CalibrationError: `selection_loader` is empty.
        EngineError: The engine cannot run `network`.
        BundleError: `checkpoint` is of another network or other settings.

    Example:
        >>> family = dynamic.family(
        ...     large, eval_loader, targets=(0.5,), methods=("low_rank",), cost="macs", engine="torch", memory=False,
        ...     progress=False,
        ... )
        >>> [member.name for member in family.members if member.role == "sub-model"]
        ['low_rank-50']
    """
    shares = checked_targets(targets)
    check_word("cost", cost, Cost)
    if not 0 <= min_confidence < 1:
        raise SettingError(
            f"min_confidence={min_confidence} is not in [0, 1): 0.5 drops what looks beaten, 0.95 what surely is"
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise SettingError(f"epochs={epochs!r}: give a whole number, or 0 for no fine-tuning")
    check_fit_options(fit_options, ("mode", "teacher", "epochs", "checkpoint", "progress", "training", "distillation"))
    check_engine(engine, precision)
    check_floor(floor)
    batches, example, _ = peek(selection_loader)
    recipes = _recipes(methods, shares, batches if train_loader is None else train_loader)
    named_others = as_named(others)
    classes = _classes(network, example, class_name(network))
    for name, other in named_others:
        _check_same(other, example, name, classes)
    folder = None if checkpoint is None else Path(checkpoint)
    settings = {"lr": 0.01, "epochs": epochs, "progress": progress} | dict(fit_options or {})
    maker = Maker(network, example, shares, train_loader if epochs else None, settings, folder)
    with maker.costing(cost, engine, precision):
        for one in track(recipes, "making sub-models", len(recipes), progress):
            maker.make(one)
    for name, compressed in maker.compressed:
        _check_same(compressed.network, example, name, classes)
    listed: list[tuple[str, str, nn.Module, Report | None]] = [(REFERENCE, class_name(network), network, None)]
    listed += [(OTHER, name, other, None) for name, other in named_others]
    listed += [(SUB_MODEL, name, c.network, c.report) for name, c in maker.compressed]
    recorded = RecordedLoader(batches)
    members = measure_members(listed, recorded, example, engine, precision, memory, maker.failed, progress)
    if len(members) == 1:
        reasons = [*(f"{name}: {reason}" for name, reason in maker.failed.items()), *maker.notes]
        why = ". ".join(reasons) or "no methods and no others"
        raise InputError(f"there is no network beside {class_name(network)}: {why}")
    for member in members:
        if member.role != REFERENCE:  # data do not choose the reference: it is always in the cascade
            remember(member.network, recorded.hashes, on_network=member.role == SUB_MODEL)
    judged = judge(members, min_confidence, keep_small)
    least = _floor(floor, judged[-1], batches)
    return Family(
        tuple(judged), engine, precision=precision, failed=dict(maker.failed), notes=tuple(maker.notes), floor=least
    )


def _floor(floor: float | None, reference: Member, data: Iterable[Any]) -> float | None:
    """The floor that was given, or the default. None: no floor."""
    if floor is not None:
        return floor or None
    labels = np.concatenate([label for _, label in labelled_batches(data) if label is not None])
    level = Level(reference.name, reference.accuracy, float(np.bincount(labels).max()) / len(labels), len(labels))
    return None if level.at_chance else level.chance + SHARE * (level.right - level.chance)


def _recipes(
    methods: Sequence[str | Callable[..., Compressed] | Recipe], targets: tuple[float, ...], loader: Iterable[Any]
) -> list[Recipe]:
    if isinstance(methods, str):
        raise InputError(f"methods={methods!r} is one name: give a list of them")
    example_batches = first_batches(loader)
    recipes = [recipe(method, example_batches) for method in methods]
    if not targets and any(r.amounts for r in recipes):
        raise SettingError("targets is empty: give shares of the cost that may remain, such as (0.5, 0.25)")
    return recipes


def _check_same(network: nn.Module, example: Batch, name: str, classes: int) -> None:
    count = _classes(network, example, name)
    if count != classes:
        raise InputError(f"{name} has {count} classes, the network {classes}: give networks for the same task")


def _classes(network: nn.Module, example: Batch, name: str) -> int:
    """C of the last logits `[B, C]`. InputError where the network has none, or does not take such inputs."""
    try:
        with evaluating(network), torch.no_grad():
            answer = run_on(network, {name: t[:2] for name, t in named_tensors(network, example).items()})
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{name} does not take the inputs of the data ({error}): give networks for the same task"
        ) from error
    logits: Tensor = primary_logits(answer[-1] if isinstance(network, StagedNetwork) else answer)
    if logits.ndim != 2:
        raise InputError(f"{name} gives {list(logits.shape)}: logits [B, C] are needed")
    check_classes(name, logits.shape[1])
    return logits.shape[1]
