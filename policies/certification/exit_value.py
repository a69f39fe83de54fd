"""Which exits reduce the cost of the same accuracy."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynamic.policies.certification.risks import RISKS
from dynamic.policies.certification.temperature import fit_temperatures
from dynamic.policies.certification.threshold_search import Search
from dynamic.policies.errors import CalibrationError, SettingError
from dynamic.policies.records import SEARCH, Records
from dynamic.policies.scores import Combination, Combiner, Score


@dataclass(frozen=True)
class Step:
    """The removal of one exit.

    Args:
        exit: Its name.
        before: Mean cost of a request with it.
        after: Mean cost of a request without it.
    """

    exit: str
    before: float
    after: float


@dataclass(frozen=True)
class Choice:
    """The exits that remain, and those that were removed.

    Args:
        exits: Names of the exits that remain, in order.
        cost: Mean cost of a request with them, over the drops, in the unit of the costs.
        removals: The other exits, in the order of their removal.
    """

    exits: tuple[str, ...]
    cost: float
    removals: tuple[Step, ...]

    def __str__(self) -> str:
        lines = [
            f"{s.exit} removed: a request costs {s.after:.4g} without it, {s.before:.4g} with it" for s in self.removals
        ]
        return "\n".join(
            [*lines, f"exits: {', '.join(self.exits) or 'none'}. A request costs {self.cost:.4g} on average"]
        )


def choose_exits(
    records: Records,
    *,
    count: int | None = None,
    max_drops: Sequence[float] = (0.0, 0.005, 0.01),
    body_cost: Sequence[float] | None = None,
    head_cost: Sequence[float] | None = None,
    exit_cost: float = 0.0,
    combine: Combination = "backbones",
    score: Score = "max_probability",
) -> Choice:
    """Remove one exit after the other while requests get no more expensive.

    A request costs the mean over `max_drops` of the cheapest thresholds that lose no more on the search part of the
    records. It costs the reference where no thresholds do. The records choose, so other records must certify.

    Args:
        records: Records with labels.
        count: At most so many exits remain, even where requests become more expensive. None: no such limit.
        max_drops: Accuracy that may be lost.
        body_cost: Cost of the body of each stage `[S]`. None: multiply-adds.
        head_cost: Cost of the head of each stage `[S]`. None: multiply-adds.
        exit_cost: What an exit costs every request that passes it, whether its head runs or not, in the same unit.
            On engines it is about 30 microseconds. With 0, an exit that no input uses costs nothing.
        combine: How answers of stages are combined.
        score: Confidence of an answer.

    Returns:
        The choice.

    Raises:
        CalibrationError: when there are no records or no labels.
        SettingError: when a setting is out of range.
    """
    if count is not None and count < 0:
        raise SettingError(f"count={count} exits cannot remain: give 0 or more, or None")
    if not 0 <= exit_cost < float("inf"):
        raise SettingError(f"exit_cost={exit_cost} must not be negative, in the unit of the costs")
    if not max_drops:
        raise SettingError("max_drops is empty: give the accuracy that may be given up, e.g. (0.0, 0.01)")
    search_records = records.select(records.part == SEARCH)
    if not len(search_records) or not search_records.is_labelled:
        raise CalibrationError(
            f"{len(search_records)} labelled records to choose exits by: give labelled held-out inputs"
        )
    body = tuple(records.macs if body_cost is None else body_cost)
    head = tuple(records.head_macs if head_cost is None else head_cost)

    def cost(gone: frozenset[int]) -> float:
        remaining, bodies, heads = without(search_records, gone, body=body, head=head)
        combiner = Combiner(fit_temperatures(remaining), score, combine=combine, backbone=remaining.backbone)
        # an input that runs the stage after an exit has passed the exit
        behind = [s > 0 and _is_exit(remaining, s - 1) for s in range(remaining.stages)]
        costs = [body + exit_cost * past for body, past in zip(bodies, behind, strict=True)]
        search = Search(remaining, combiner, body=costs, head=heads, risk=RISKS["drop"])
        candidates = [search.cheapest(drop) or search.reference for drop in max_drops]
        return sum(c.cost for c in candidates) / len(candidates)

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
    records: Records, gone: frozenset[int], *, body: Sequence[float], head: Sequence[float]
) -> tuple[Records, tuple[float, ...], tuple[float, ...]]:
    """(records, costs of bodies `[S']`, of heads `[S']`) of the cascade without the exits of some stages.

    The body of such a stage becomes part of the next one.
    """
    numbers = [s for s in range(records.stages) if s not in gone]
    starts = [0, *(s + 1 for s in numbers[:-1])]

    def merged(costs: Sequence[float]) -> tuple[float, ...]:
        return tuple(sum(costs[first : last + 1]) for first, last in zip(starts, numbers, strict=True))

    remaining = Records(
        records.logits[:, numbers],
        records.label,
        records.group,
        records.part,
        tuple(records.backbone[s] for s in numbers),
        merged(records.macs),
        tuple(records.head_macs[s] for s in numbers),
        tuple(records.stage_names[s] for s in numbers),
        f"{records.fingerprint} without exits {sorted(gone)}",
    )
    return remaining, merged(body), tuple(head[s] for s in numbers)


def _is_exit(records: Records, stage: int) -> bool:
    """Whether the next stage belongs to the same backbone."""
    return records.backbone[stage] == records.backbone[stage + 1]
