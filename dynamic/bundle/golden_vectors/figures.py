"""The figures of a frontier that a port of the policy decides by."""

from typing import Any

from dynamic.policies.costing.dominance import rank_within_noise
from dynamic.policies.fast_paths import Rank
from dynamic.policies.frontier import SPREADS, Frontier


def figures(frontier: Frontier) -> dict[str, Any]:
    """The figures of a frontier, in plain JSON types.

    Figures that the profile cannot distinguish are changed within its noise, so that they are in the order of compute.

    Args:
        frontier: The points of S stages, with costs at K batch sizes.

    Returns:
        `threads`, `batch [K]`, `memory_mb [B]` of each backbone, `idle_mw`, and `spreads [G]` of requests. `points` has
        an entry for each point, in the frontier's order: `name`, `backbones`, `accuracy`, `promised_drop`, `memory_mb`,
        `energy_mj` and `cpu_ms` of one inference, `mean_ms [K]`, `p95_ms [G][K]`, `first_ms [K]` to a first answer, and
        `path_ms [S][K]` of a request whose deepest row exits at a stage.
    """
    costs = frontier.costs

    def ordered(rank: Rank) -> list[float]:
        return rank_within_noise(rank.figures, costs.noise)

    effort, processor, mean = ordered(frontier.effort), ordered(frontier.processor), ordered(frontier.mean)
    return {
        "threads": costs.threads,
        "batch": list(costs.batch),
        "memory_mb": list(costs.memory_mb),
        "idle_mw": costs.idle_mw,
        "spreads": list(SPREADS),
        "points": [
            {
                "name": p.name,
                "backbones": list(p.operating_point.backbones),
                "accuracy": p.accuracy.mid,
                "promised_drop": p.promised_drop,
                "memory_mb": frontier.memory.figures[i],
                "energy_mj": None if p.energy_mj is None else effort[i],
                "cpu_ms": processor[i],
                "mean_ms": [mean[i], *p.mean_ms[1:]],
                "p95_ms": [
                    [frontier.latency_ms(0.95, rows, spread=spread)[i] for rows in costs.batch] for spread in SPREADS
                ],
                "first_ms": [frontier.first_answer(rows).figures[i] for rows in costs.batch],
                "path_ms": [
                    [frontier.path_ms(p, stage, rows=rows) for rows in costs.batch]
                    for stage in range(len(costs.latency_ms))
                ],
            }
            for i, p in enumerate(frontier.points)
        ],
    }
