"""Which exits pay: those whose absence makes the same accuracy dearer."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamic.policies.certification.risks import RISKS
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.records import SEARCH, Records
from dynamic.policies.scores import Combiner


@dataclass(frozen=True)
class Step:
    """An exit that was taken away, and what requests cost on average with it and without."""

    exit: str
    before: float
    after: float


@dataclass(frozen=True)
class Choice:
    """`kept`: names of the exits that stay, in order; `cost` of a request then, in the unit of the costs, the mean over
    the drops asked for; `removed`: the others, in the order in which they went."""

    kept: tuple[str, ...]
    cost: float
    removed: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [
            f"{s.exit} removed: a request costs {s.after:.4g} without it, {s.before:.4g} with it" for s in self.removed
        ]
        return "\n".join(
            [*lines, f"kept: {', '.join(self.kept) or 'none'}; a request costs {self.cost:.4g} on average"]
        )


def choose_exits(
    records: Records,
    *,
    count: int | None = None,
    max_drops: Sequence[float] = (0.0, 0.005, 0.01),
    body_cost: Sequence[float] | None = None,
    head_cost: Sequence[float] | None = None,
    exit_cost: float = 0.0,
    combine: str = "backbones",
    score: str = "max_probability",
) -> Choice:
    """Take away one exit after the other, the one least missed first, while requests get no dearer by it.

    A request costs the mean over `max_drops` of the cheapest thresholds that lose no more on the searching part of the
    records (all of them, where none certify), the reference where none do. Costs `[S]` of bodies and heads are
    multiply-adds unless given; `exit_cost`, in the same unit, is what an exit costs every request that goes past it,
    whether its head runs or not (on engines some 30 microseconds): without it an exit that nobody takes costs nothing.
    `count`: at most so many stay, even if requests get dearer.

    The records choose: use others to certify. Raises CalibrationError without records or labels, SettingError on a
    setting out of range.
    """
    if count is not None and count < 0:
        raise SettingError(f"count={count} exits cannot stay: give 0 or more, or None")
    if not 0 <= exit_cost < float("inf"):
        raise SettingError(f"exit_cost={exit_cost} must not be negative, in the unit of the costs")
    if not max_drops:
        raise SettingError("max_drops is empty: give the accuracy that may be given up, e.g. (0.0, 0.01)")
    searched = records.select(records.part == SEARCH)
    if not len(searched) or searched.label is None:
        raise CalibrationError(f"{len(searched)} labelled records to choose exits by: give labelled held-out inputs")
    body = tuple(records.macs if body_cost is None else body_cost)
    head = tuple(records.head_macs if head_cost is None else head_cost)

    def cost(gone: frozenset[int]) -> float:
        left, bodies, heads = without(searched, gone, body, head)
        combiner = Combiner(fit_temperatures(left), score, combine, left.backbone)
        # whoever runs what lies behind an exit has gone past it
        behind = [s > 0 and _is_exit(left, s - 1) for s in range(left.stages)]
        paid = [body + exit_cost * past for body, past in zip(bodies, behind, strict=True)]
        search = Search(left, combiner, paid, heads, risk=RISKS["drop"])
        found = [search.cheapest(drop) or search.reference for drop in max_drops]
        return sum(c.cost for c in found) / len(found)

    gone: frozenset[int] = frozenset()
    now, steps = cost(gone), []
    while exits := [s for s in range(records.stages - 1) if s not in gone and _is_exit(records, s)]:
        after, least = min((cost(gone | {s}), s) for s in exits)
        must = count is not None and len(exits) > count
        if after > now and not must:
            break
        steps.append(Step(records.stage_names[least], now, after))
        gone, now = gone | {least}, after
    return Choice(tuple(records.stage_names[s] for s in exits), now, tuple(steps))


def without(
    records: Records, gone: frozenset[int], body: Sequence[float], head: Sequence[float]
) -> tuple[Records, tuple[float, ...], tuple[float, ...]]:
    """(records, costs of bodies `[S']`, of heads `[S']`) of the cascade without the exits of these stages, whose bodies
    are part of the next stage then."""
    kept = [s for s in range(records.stages) if s not in gone]
    starts = [0, *(s + 1 for s in kept[:-1])]

    def merged(costs: Sequence[float]) -> tuple[float, ...]:
        return tuple(sum(costs[first : last + 1]) for first, last in zip(starts, kept, strict=True))

    left = Records(
        records.logits[:, kept],
        records.label,
        records.group,
        records.part,
        tuple(records.backbone[s] for s in kept),
        merged(records.macs),
        tuple(records.head_macs[s] for s in kept),
        tuple(records.stage_names[s] for s in kept),
        f"{records.fingerprint} without exits {sorted(gone)}",
    )
    return left, merged(body), tuple(head[s] for s in kept)


def _is_exit(records: Records, stage: int) -> bool:
    """Whether a stage has another of the same backbone behind it."""
    return records.backbone[stage] == records.backbone[stage + 1]
