"""The networks of a family: their measurements, and which of them another beats."""

import logging
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dynamic.engines.options import EngineName, Precision
from dynamic.models.compress.families.engine_comparison import (
    Rights,
    in_turns_ms,
    no_less_accurate,
    open_on_engine,
    right_answers,
)
from dynamic.models.compress.families.recipes import numbered
from dynamic.models.compress.report import Measured, Report, measure
from dynamic.offline.batches import Batch
from dynamic.policies.errors import EngineError
from dynamic.progress import track

logger = logging.getLogger("dynamic")

_CLEARLY = 0.75  # of the turns: on a busy machine medians of equal networks differ too
REFERENCE, SUB_MODEL, OTHER = "reference", "sub-model", "other"


@dataclass(frozen=True)
class Beaten:
    """A network is beaten `by` one that is no less accurate and faster.

    Args:
        by: The name of the other.
        confidence: The chance that the other is at least as accurate. 0.5: as good as equal.
        slower: In how many turns this one took longer.
        turns: How many turns there were.
    """

    by: str
    confidence: float
    slower: int
    turns: int


@dataclass(frozen=True, eq=False)
class Member:
    """One network of a family.

    Args:
        name: Its name.
        role: "reference" (the network that was given), "sub-model", or "other" (a ready-made network).
        network: The network.
        measured: Size and cost.
        right: `[N]`: whether it is right on each selection input.
        turns_ms: `[T]`: latency of one input in each turn.
        memory_mb: Resident memory of a process that loads it alone. None: not measured.
        report: Of the method that made it.
        beaten: The network that beats it, if any.
    """

    name: str
    role: str
    network: nn.Module = field(repr=False)
    measured: Measured
    right: Rights = field(repr=False)
    turns_ms: NDArray[np.float64] = field(repr=False)
    memory_mb: float | None = None
    report: Report | None = field(default=None, repr=False)
    beaten: Beaten | None = None

    @property
    def accuracy(self) -> float:
        """On the selection data."""
        return float(self.right.mean())

    @property
    def latency_ms(self) -> float:
        """Median of one input."""
        return float(np.median(self.turns_ms))


def judge(members: Sequence[Member], min_confidence: float = 0.5, keep_small: bool = False) -> list[Member]:
    """The members from fast to slow and the reference last, with what beats each. `members[0]` is the reference.

    Only a member that is not beaten beats another. Of several it is the most accurate one.
    """
    reference, unbeaten, judged = members[0], [members[0]], []
    for member in sorted(members[1:], key=lambda m: m.latency_ms):
        rivals = [(other, _against(member, other)) for other in unbeaten]
        beating = [
            (other.accuracy, -other.latency_ms, verdict)
            for other, verdict in rivals
            if other.accuracy >= member.accuracy
            and other.latency_ms < member.latency_ms
            and verdict.confidence >= min_confidence
            and verdict.slower >= max(min_confidence, _CLEARLY) * verdict.turns
            and not (keep_small and (member.memory_mb or 0.0) < (other.memory_mb or 0.0))
        ]
        if beating:
            judged.append(replace(member, beaten=max(beating, key=lambda b: b[:2])[2]))
        else:
            unbeaten.append(member)
            judged.append(member)
    return [*judged, reference]


def _against(member: Member, other: Member) -> Beaten:
    slower = int((member.turns_ms > other.turns_ms).sum())
    return Beaten(other.name, no_less_accurate(other.right, member.right), slower, len(member.turns_ms))


def measure_members(
    listed: Sequence[tuple[str, str, nn.Module, Report | None]],
    selection_loader: Iterable[Any],
    example: Batch,
    engine: EngineName,
    precision: Precision,
    memory: bool,
    failed: dict[str, str],
    progress: bool | None,
) -> list[Member]:
    """Measurements of every network, the first being the reference. `failed` gets what the engine cannot run."""
    names = numbered(name for _, name, _, _ in listed)
    with ExitStack() as owned:
        entrants, running = [], []
        for number, (role, _, network, method_report) in enumerate(track(listed, "opening", len(listed), progress)):
            try:
                entrants.append(owned.enter_context(open_on_engine(network, example, engine, precision)))
                running.append((names[number], role, network, method_report))
            except EngineError as error:
                if role == REFERENCE:
                    raise
                logger.warning("%s does not run on %s: %s", names[number], engine, error)
                failed[names[number]] = str(error)
        right = right_answers(entrants, selection_loader, progress)  # [K, N]
        turns_ms = in_turns_ms(entrants)  # [K, T]
        resident = [e.memory_mb() if memory else None for e in track(entrants, "memory", len(entrants), progress)]
    sizes = measure([network for _, _, network, _ in running], example, latency=False)
    return [
        Member(
            name,
            role,
            network,
            replace(size, accuracy=float(ok.mean()), latency_ms=float(np.median(ms))),
            ok,
            ms,
            mb,
            method_report,
        )
        for (name, role, network, method_report), size, ok, ms, mb in zip(
            running, sizes, right, turns_ms, resident, strict=True
        )
    ]
