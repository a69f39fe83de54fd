"""Whether a cascade is split over two deployments, and where."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dynamic.policies.costing.latency import stage_ms
from dynamic.policies.costs import Costs
from dynamic.policies.errors import SettingError
from dynamic.policies.frontier import CostedPoint
from dynamic.policies.validation.numbers import plain
from dynamic.runtime.parts import Part, first_stage

Cut = Literal["auto"] | int | None
LEAST_HOP_MS = 0.3  # no hop of Ray Serve is faster: where less can be gained, none is measured
USUAL_HOP_MS = 1.5  # where none was measured


@dataclass(frozen=True)
class Candidate:
    """A cut, and what it could save at an operating point.

    Args:
        cut: The first stage of the tail.
        share: Of inputs that continue there.
        rest_ms: What such an input still takes, in batches of one.
        repeat_ms: What it takes to run its backbone up to the cut again, where that is needed.
    """

    cut: int
    share: float
    rest_ms: float
    repeat_ms: float

    @property
    def gain_ms(self) -> float:
        """What an input of the head does not wait for, on average."""
        return self.share * self.rest_ms


@dataclass(frozen=True)
class Split:
    """Where a cascade is split, or why it is not.

    Args:
        cut: The first stage of the tail. None: there is one deployment.
        reason: Why, in words.
        hop_ms: What it takes to hand an input over.
        share: Of inputs that are expected to continue in the tail.
        rest_ms: What such an input takes there, stages that run again included.
    """

    cut: int | None
    reason: str
    hop_ms: float = 0.0
    share: float = 0.0
    rest_ms: float = 0.0

    def part(self, is_head: bool) -> Part | None:
        """The stages of a deployment. None: all."""
        return None if self.cut is None else Part(self.cut, is_head, self.hop_ms)

    def to_json(self) -> dict[str, Any]:
        """As the metadata of the model have it."""
        return {"cut": self.cut, "reason": self.reason, "hop_ms": self.hop_ms, "share": self.share}


WHOLE = Split(None, "one deployment")


def checked_cut(cut: Any, stages: int) -> Cut:
    """A cut. Raises SettingError where a cascade of so many stages has none there."""
    value = plain(cut)
    if value is None or value == "auto":
        return value  # type: ignore[no-any-return]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < stages:
        limits = f"a stage from 1 to {stages - 1}" if stages > 1 else "nothing else: the cascade has one stage"
        raise SettingError(f"cut={value!r} must be 'auto', None, or {limits}")
    return value


def candidates(point: CostedPoint, costs: Costs, backbone: Sequence[int]) -> list[Candidate]:
    """The cuts at which some inputs exit before and others continue, from early to late.

    Args:
        point: The operating point that an idle device runs.
        costs: What stages cost.
        backbone: Number of the backbone of each stage `[S]`.

    Returns:
        A candidate for each cut.
    """
    shares, plan = point.shares, point.plan
    times = [stage_ms(costs, plan, stage, 1) for stage in range(len(shares))]
    reach = [sum(shares[stage:]) for stage in range(len(shares))]
    cuts = []
    for cut in range(1, len(shares)):
        if not 0 < reach[cut] < 1 or not plan.on[cut - 1]:
            continue
        rest_ms = sum(share * ms for share, ms in zip(reach[cut:], times[cut:], strict=True)) / reach[cut]
        cuts.append(Candidate(cut, reach[cut], rest_ms, repeat_ms(point, costs, backbone, cut)))
    return cuts


def repeat_ms(point: CostedPoint, costs: Costs, backbone: Sequence[int], cut: int) -> float:
    """The time of the stages that the tail runs again for an input without a carry. 0: the cut begins a backbone."""
    first = first_stage(backbone, point.plan, cut, ())
    return sum(stage_ms(costs, point.plan, stage, 1) for stage in range(first, cut))


def choose_split(among: Sequence[Candidate], hop_ms: Mapping[int, float]) -> Split:
    """The split that saves most, where one saves more than its hop costs.

    An input that continues takes a hop. In exchange, inputs of the head do not wait for the stages of others. So a cut
    is worth it where the share that continues, times the time of the rest, is more than a hop.

    Args:
        among: What may be chosen.
        hop_ms: By cut, what it takes to hand an input over, repeated stages included. Those that are left out are not
            looked at.

    Returns:
        The split, with the reason.
    """
    if not among:
        return Split(
            None, "one deployment: no exit of the operating point has inputs that exit and others that continue"
        )
    best = max((one for one in among if one.cut in hop_ms), key=lambda one: one.gain_ms - hop_ms[one.cut], default=None)
    if best is None:
        most = max(among, key=lambda one: one.gain_ms)
        why = f"{_figures(most)}, less than any hop ({LEAST_HOP_MS:g} ms)"
        return Split(None, f"one deployment: {why}", 0.0, most.share, most.rest_ms)
    hop = hop_ms[best.cut]
    is_worth = best.gain_ms > hop
    verb = "more" if is_worth else "no more"
    why = f"{_figures(best)}, {verb} than a hop of {hop:.3g} ms"
    if is_worth:
        return Split(best.cut, f"split before stage {best.cut}: {why}", hop, best.share, best.rest_ms)
    return Split(None, f"one deployment: {why}", hop, best.share, best.rest_ms)


def _figures(one: Candidate) -> str:
    return (
        f"at stage {one.cut}, {one.share:.1%} of inputs continue for {one.rest_ms:.3g} ms, "
        f"which is {one.gain_ms:.3g} ms an input"
    )
