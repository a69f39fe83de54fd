"""Several sub-models of one network, measured beside each other, and the cascade of those worth keeping."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.tables import table
from dynamic.engines.engine_factory import check_engine
from dynamic.models.compress.argument_checks import check_fit_options, check_word
from dynamic.models.compress.families.cascade_advice import advice
from dynamic.models.compress.families.comparison import no_less_accurate, tensors_mb
from dynamic.models.compress.families.family_chart import draw
from dynamic.models.compress.families.measured_networks import OTHER, REFERENCE, SUB_MODEL, Member, judge, measured
from dynamic.models.compress.families.member_training import Maker, few
from dynamic.models.compress.families.recipes import Cost, Recipe, as_named, checked_targets, class_name, recipe
from dynamic.models.compress.report import Compressed, Report
from dynamic.offline.batches import Batch, labelled_batches, named_tensors, run_on
from dynamic.offline.calibration import peek
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.row_independence import check_classes
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.policies.certification.floor import SHARE, Level, check_floor
from dynamic.policies.errors import InputError, SettingError
from dynamic.progress import track

DEFAULT_METHODS = ("quantize", "prune_channels", "prune_blocks", "low_rank")


@dataclass(frozen=True)
class Family:
    """Sub-models of a network and what was measured of them; `members` from fast to slow, the reference last.

    `failed`: what could not be made, and why; `notes`: targets that were not reached; `floor`: the accuracy that a
    member of the cascade must have (None: none was asked for, and the network itself is at chance).
    """

    members: tuple[Member, ...]
    engine: str
    _: KW_ONLY
    precision: str
    failed: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    floor: float | None = None

    @property
    def reference(self) -> Member:
        """The network that the sub-models were made from."""
        return self.members[-1]

    @property
    def kept(self) -> tuple[Member, ...]:
        """The members of the cascade: those that nothing beats and that are faster than the reference, and that."""
        last = self.reference
        faster = (m for m in self.members[:-1] if m.beaten is None and m.latency_ms < last.latency_ms)
        return (*(m for m in faster if not self._low(m)), last)

    def _low(self, member: Member) -> bool:
        return self.floor is not None and member.accuracy < self.floor

    @property
    def memory_mb(self) -> float | None:
        """Of all members of the cascade together; on engine "torch" weights that they share count once."""
        if self.engine == "torch":
            return tensors_mb(m.network for m in self.kept)
        found = [m.memory_mb for m in self.kept if m.memory_mb is not None]
        return sum(found) if len(found) == len(self.kept) else None

    def cascade(self, combine: str = "backbones") -> Cascade:
        """What `dynamic.build` takes: the members kept, the fastest first, the reference last."""
        return Cascade([m.network for m in self.kept], combine=combine, names=[m.name for m in self.kept])

    def chart(self, path: str | Path, bundle: Bundle | None = None) -> Path:
        """Draw accuracy against latency; `bundle`, profiled: also the points of the cascade that was built.

        Raises DynamicError where matplotlib is not installed, BundleError before `bundle.profile()`.
        """
        return draw(self.members, self.kept, f"{self.engine} {self.precision}", Path(path), bundle)

    def advice(self, bundle: Bundle) -> str:
        """Which points of the cascade that was built are worth it, beside each of its networks alone.

        Raises BundleError before `bundle.profile()`, CalibrationError where its records have no labels.
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
        return "kept" if member in self.kept else "not faster than the reference: not in the cascade"

    def _remarks(self) -> Iterator[str]:
        last, count = self.reference, len(self.reference.right)
        spread = max((m.accuracy * (1 - m.accuracy) / count) ** 0.5 for m in self.kept)
        memory = "" if self.memory_mb is None else f"; the cascade holds {self.memory_mb:.1f} MB"
        yield f"engine {self.engine}, {self.precision}{memory}"
        yield (
            f"accuracy of {count} inputs, each to within {200 * spread:.1f} points or better; these have chosen, and "
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
        better = [m for m in self.kept[:-1] if m.accuracy >= last.accuracy]
        for m in better:
            yield (
                f"{m.name} alone is no less accurate than {last.name} (chance "
                f"{no_less_accurate(m.right, last.right):.0%}) and takes {m.latency_ms / last.latency_ms:.2f} of its "
                "time: ship it as it is, or begin again with it as the network"
            )
        if len(self.kept) == 1:
            yield f"nothing is worth running before {last.name}: ship that network as it is"


def family(
    network: nn.Module,
    selection_loader: Iterable[Any],
    *,
    targets: Sequence[float] = (0.5, 0.25),
    train_loader: Iterable[Any] | None = None,
    methods: Sequence[str | Callable[..., Compressed] | Recipe] = DEFAULT_METHODS,
    others: Mapping[str, nn.Module] | Sequence[nn.Module] = (),
    engine: str = "onnxruntime",
    precision: str = "f32",
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
    """Make sub-models of `network`, measure all of them on this device, and drop those that another beats.

    `data` yields `(inputs, labels [B])` that no network was trained on, and **chooses**: these inputs must not be among
    those that `dynamic.build` calibrates and certifies with, or its certificates are void. `targets`: shares of the
    network's latency (or, with `by="macs"`, multiply-adds) wanted; each of `means` is taken as far as that needs.

    `means`: names ("prune_channels", "prune_blocks", "low_rank", "separate", "quantize", and "prune_channels+quantize"
    for one after the other, whose targets count the cost after both), functions `(network, example_inputs) ->
    Compressed`, which give one sub-model each, or `Recipe`s. One that fails is listed in `failed`. With `train_loader`,
    what loses accuracy is fine-tuned for `epochs`, `network` being the teacher, by `dynamic.fit` (`fitting`: its other
    arguments; lr is 0.01 unless given). `others`: ready-made networks for the same task; they compete too. None of the
    networks given is changed.

    A network is beaten by one that is no less accurate on `data` and was faster in three quarters of the turns: none is
    dropped for being slower alone, or less accurate alone. `sure` asks for more before one is dropped: the chance that
    the other is really as accurate, and the share of turns in which it was faster, must both be as large. `keep_small`:
    one that takes less memory than the other stays.

    `floor`: the accuracy on `data` that a member of the cascade must have (None: halfway between always answering with
    the commonest class and the network; 0: no floor). What is below it is listed, and is not in the cascade.

    `checkpoint_dir` keeps what was chosen and how far fine-tuning is, so that a run that was killed goes on; one of
    another network or with other settings is refused (BundleError). Latency is of one input, networks taking turns;
    `memory`: measured too, each network in a process of its own.

    Raises InputError on data, networks or means that do not fit and where no network but the first is left,
    SettingError on a setting out of range, CalibrationError on no data, EngineError where the engine cannot run
    `network`.
    """
    wanted = checked_targets(targets)
    check_word("cost", cost, Cost)
    if not 0 <= min_confidence < 1:
        raise SettingError(
            f"min_confidence={min_confidence} is not in [0, 1): 0.5 drops what looks beaten, 0.95 what surely is"
        )
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 0:
        raise SettingError(f"epochs={epochs!r}: give a whole number, 0 for no fine-tuning")
    check_fit_options(fit_options, ("mode", "teacher", "epochs", "checkpoint", "progress"))
    check_engine(engine, precision)
    check_floor(floor)
    batches, example, _ = peek(selection_loader)
    recipes = _recipes(methods, wanted, batches if train_loader is None else train_loader)
    given = as_named(others)
    classes = _classes(network, example, class_name(network))
    for name, other in given:
        _check_same(other, example, name, classes)
    folder = None if checkpoint is None else Path(checkpoint)
    settings = {"lr": 0.01, "epochs": epochs, "progress": progress} | dict(fit_options or {})
    maker = Maker(network, example, wanted, train_loader if epochs else None, settings, folder)
    with maker.costing(cost, engine, precision):
        for one in track(recipes, "making sub-models", len(recipes), progress):
            maker.make(one)
    for name, compressed in maker.made:
        _check_same(compressed.network, example, name, classes)
    listed: list[tuple[str, str, nn.Module, Report | None]] = [(REFERENCE, class_name(network), network, None)]
    listed += [(OTHER, name, other, None) for name, other in given]
    listed += [(SUB_MODEL, name, c.network, c.report) for name, c in maker.made]
    recorded = RecordedLoader(batches)
    members = measured(listed, recorded, example, engine, precision, memory, maker.failed, progress)
    if len(members) == 1:
        reasons = [*(f"{name}: {reason}" for name, reason in maker.failed.items()), *maker.notes]
        why = "; ".join(reasons) or "no methods and no others"
        raise InputError(f"there is no network beside {class_name(network)}: {why}")
    for member in members:
        if member.role != REFERENCE:  # the reference is in the cascade whatever the data say
            remember(member.network, recorded.hashes, on_network=member.role == SUB_MODEL)
    judged = judge(members, min_confidence, keep_small)
    least = _floor(floor, judged[-1], batches)
    return Family(
        tuple(judged), engine, precision=precision, failed=dict(maker.failed), notes=tuple(maker.notes), floor=least
    )


def _floor(floor: float | None, reference: Member, data: Iterable[Any]) -> float | None:
    """The floor that was asked for, or the default; None: no floor."""
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
    looked_at = few(loader)
    found = [recipe(m, looked_at) for m in methods]
    if not targets and any(r.amounts for r in found):
        raise SettingError("targets is empty: give shares of the cost that may stay, e.g. (0.5, 0.25)")
    return found


def _check_same(network: nn.Module, example: Batch, name: str, classes: int) -> None:
    found = _classes(network, example, name)
    if found != classes:
        raise InputError(f"{name} tells {found} classes apart, the network {classes}: give networks for the same task")


def _classes(network: nn.Module, example: Batch, name: str) -> int:
    """C of the network's own logits `[B, C]`. Raises InputError where it gives none, or does not take such inputs."""
    try:
        with evaluating(network), torch.no_grad():
            answer = run_on(network, {name: t[:2] for name, t in named_tensors(network, example).items()})
    except (RuntimeError, TypeError) as error:
        raise InputError(
            f"{name} does not take the inputs of the data ({error}): give networks for the same task"
        ) from error
    logits: Tensor = primary_logits(answer[-1] if isinstance(network, StagedNetwork) else answer)
    if logits.ndim != 2:
        raise InputError(f"{name} gives {list(logits.shape)}; expected logits [B, C]")
    check_classes(name, logits.shape[1])
    return logits.shape[1]
