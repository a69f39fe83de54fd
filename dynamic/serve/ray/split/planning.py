"""The split of a bundle under a budget: as given, or as its costs and a hop that is measured say."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from dynamic.bundle.bundle import Bundle
from dynamic.engines.parts.rest import has_carry
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.costs import Costs
from dynamic.policies.frontier import CostedPoint, Frontier
from dynamic.policies.snapshot import Snapshot
from dynamic.serve.ray.split.choice import (
    LEAST_HOP_MS,
    USUAL_HOP_MS,
    Candidate,
    Cut,
    Split,
    candidates,
    choose_split,
    repeat_ms,
)

logger = logging.getLogger("dynamic")
HopTime = Callable[[Mapping[int, int]], Mapping[int, float]]


def plan_split(bundle: Bundle, budget: Budget, cut: Cut, engine: str | None, threads: int, hop_ms: HopTime) -> Split:
    """The split, which is logged.

    Args:
        bundle: The bundle.
        budget: The limits: they say which operating point an idle device runs.
        cut: "auto", a stage, or None for one deployment.
        engine: As for `Bundle.runtime`.
        threads: Of the engine.
        hop_ms: Measures hops, see `dynamic.serve.ray.split.hop_time.hop_ms`.

    Returns:
        The split.
    """
    split = _split(bundle, budget, cut, engine, threads, hop_ms)
    if cut == "auto":
        logger.info("%s: %s", bundle.folder, split.reason)
    return split


def _split(bundle: Bundle, budget: Budget, cut: Cut, engine: str | None, threads: int, hop_ms: HopTime) -> Split:
    if cut is None:
        return Split(None, "one deployment, as asked for (cut=None)")
    costs = _costs(bundle, bundle.engine if engine in (None, "auto") else str(engine), threads)
    if costs is None:
        if cut == "auto":
            return Split(None, "one deployment: there are no costs of this machine. Call profile() on the bundle first")
        return Split(cut, f"split before stage {cut}, as asked for", USUAL_HOP_MS)
    point = _idle_point(bundle, budget, costs)
    among = candidates(point, costs, bundle.ladder.backbone)
    if cut != "auto":
        again_ms = repeat_ms(point, costs, bundle.ladder.backbone, cut)
        one = next((one for one in among if one.cut == cut), Candidate(cut, sum(point.shares[cut:]), 0.0, again_ms))
        again_ms = _payloads(bundle, engine, threads, point, [one])[1][cut] if again_ms else 0.0
        reason = f"split before stage {cut}, as asked for"
        return Split(cut, reason, USUAL_HOP_MS + again_ms, one.share, one.rest_ms + again_ms)
    worth = [one for one in among if one.gain_ms > LEAST_HOP_MS]
    if not worth:
        return choose_split(among, {})
    sizes, repeats = _payloads(bundle, engine, threads, point, worth)
    hops = _hops(sizes, hop_ms)
    split = choose_split(among, {cut: hops[cut] + repeats[cut] for cut in sizes})
    return split if split.cut is None else replace(split, rest_ms=split.rest_ms + repeats[split.cut])


def _costs(bundle: Bundle, engine: str, threads: int) -> Costs | None:
    """Costs of the engine on so many threads, else those that the bundle has. None: it has none."""
    costs = bundle.costs
    if costs is not None and (costs.engine, costs.threads) == (engine, threads):
        return costs
    return bundle.costs_on(engine, bundle.precision_on(engine), threads) or costs


def _idle_point(bundle: Bundle, budget: Budget, costs: Costs) -> CostedPoint:
    """The operating point that an idle device runs."""
    policy = BudgetPolicy()
    frontier = Frontier.of(bundle.ladder, costs)
    return policy.decide(frontier, budget, Snapshot(time_s=0.0), policy.initial())[0].point


def _payloads(
    bundle: Bundle, engine: str | None, threads: int, point: CostedPoint, among: list[Candidate]
) -> tuple[dict[int, int], dict[int, float]]:
    """By cut: bytes that a row takes along, and milliseconds of the stages that the tail runs again for it."""
    sizes, repeats = dict[int, int](), dict[int, float]()
    opened = bundle.open(engine, threads=threads)
    try:
        limits = np.where(np.isposinf(point.thresholds), point.thresholds, np.float32(3e38))  # nobody exits
        row = {one.name: np.zeros((1, *one.shape), one.dtype) for one in bundle.spec.inputs}
        for one in among:
            (rest,) = opened.stages.run(row, limits, until=one.cut).rests
            sizes[one.cut] = sum(array.nbytes for array in rest.arrays.values())
            repeats[one.cut] = 0.0 if has_carry(rest.arrays) else one.repeat_ms
    finally:
        opened.close()
    return sizes, repeats


def _hops(sizes: Mapping[int, int], hop_ms: HopTime) -> Mapping[int, float]:
    """By cut, a hop with what a row takes along."""
    try:
        return hop_ms(sizes)
    except Exception as error:
        logger.warning("a hop of Ray Serve cannot be measured (%s): %g ms is taken for it", error, USUAL_HOP_MS)
        return dict.fromkeys(sizes, USUAL_HOP_MS)
