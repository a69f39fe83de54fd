"""Whether the graphs that ship give the logits of what they were made of: every stage, and both single graphs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, Graph, Output
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.policies.errors import EngineError

# of the largest logit: beyond it a graph is wrong, not merely rounded otherwise
PARITY = {"f32": 1e-3, "bf16": 0.15}


def compare_engines(
    own: StageEngine,
    engine: CascadeEngine,
    cases: Iterable[Mapping[str, Array]],
    shares: Sequence[float],
    source: str,
    remedy: str,
) -> None:
    """Run batches on the engine that ships and on `own`, which runs what the graphs were made of.

    `shares`: of each stage, the largest difference as a share of the largest logit. `source`: what the graphs were made
    of, in words.

    Raises EngineError naming the stage, or the graph, that does not run or gives other logits.
    """
    for inputs in cases:
        expected = own.all_logits(inputs)  # [B, S, C]
        limits = [s * max(1.0, _largest(expected[:, i])) for i, s in enumerate(shares)]
        _check_stages(engine.stages, inputs, expected, limits, source, remedy)
        if engine.graph is not None:
            for thresholds in _thresholds(own, inputs, 2 * max(limits)):
                answer = own.run(inputs, thresholds)
                _check_graph(engine.graph, inputs, thresholds, answer, max(limits), f"{engine.name!r}", source, remedy)
    if engine.graph is not None:
        engine.graph.close()  # calibration runs the stages alone


def _check_stages(
    engine: StageEngine,
    inputs: Mapping[str, Array],
    expected: NDArray[np.float32],
    limits: list[float],
    source: str,
    remedy: str,
) -> None:
    rows = len(expected)
    shipped = engine.all_logits(inputs)
    for stage, described in enumerate(engine.spec.stages):
        if shipped.shape != expected.shape:
            raise EngineError(
                f"stage {described.name!r} on engine {engine.name!r} gives {list(shipped[:, stage].shape)} for {rows} "
                f"rows, {source} {list(expected[:, stage].shape)}: {remedy}"
            )
        _check_nan(shipped[:, stage], expected[:, stage], f"stage {described.name!r} on engine {engine.name!r}", source)
        off = _difference(shipped[:, stage], expected[:, stage])
        if not off <= limits[stage]:
            raise EngineError(
                f"stage {described.name!r} on engine {engine.name!r} is off {source}'s logits by {off:.3g} for {rows} "
                f"rows (limit {limits[stage]:.3g}): {remedy}"
            )


def _check_graph(
    graph: Graph,
    inputs: Mapping[str, Array],
    thresholds: NDArray[np.float32],
    answer: Output,
    limit: float,
    name: str,
    source: str,
    remedy: str,
) -> None:
    rows = len(answer.stage)
    shipped = graph.run(inputs, thresholds, rows)
    if shipped.logits.shape != answer.logits.shape or not np.array_equal(shipped.stage, answer.stage):
        raise EngineError(
            f"the single graph on engine {name} answers {rows} rows with {list(shipped.logits.shape)} at stages "
            f"{shipped.stage.tolist()}, {source} with {list(answer.logits.shape)} at {answer.stage.tolist()}: {remedy}"
        )
    _check_nan(shipped.logits, answer.logits, f"the single graph on engine {name}", source)
    off = _difference(np.exp(shipped.logits), np.exp(answer.logits))
    if not off <= limit:
        raise EngineError(
            f"the single graph on engine {name} is off {source}'s probabilities by {off:.3g} for {rows} rows "
            f"(limit {limit:.3g}): {remedy}"
        )


def _thresholds(own: StageEngine, inputs: Mapping[str, Array], gap: float) -> Iterator[NDArray[np.float32]]:
    """Thresholds `[S-1]` by which no input exits early, every input does, or some do, with a `gap` between scores."""
    exits = len(own.spec.stages) - 1
    yield np.full(exits, np.inf, np.float32)
    if not exits:
        return
    everyone_exits = np.full(exits, -np.inf, np.float32)
    yield everyone_exits
    scores = own.run(inputs, everyone_exits).score
    scores = np.sort(scores[np.isfinite(scores)])
    gaps = np.diff(scores)
    if len(gaps) and gaps.max() > gap:
        some = np.full(exits, np.inf, np.float32)
        some[0] = scores[gaps.argmax() : gaps.argmax() + 2].mean()
        yield some


def _largest(logits: NDArray[np.float32]) -> float:
    return float(np.abs(logits[np.isfinite(logits)]).max(initial=0.0))


def _difference(numbers: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    """The largest, where they are numbers. An infinite one is as far as float32 reaches."""
    return float(np.abs(_finite(numbers) - _finite(others)).max(initial=0.0))


def _finite(numbers: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.nan_to_num(numbers.astype(np.float32)).astype(np.float64)


def _check_nan(shipped: NDArray[np.float32], expected: NDArray[np.float32], what: str, source: str) -> None:
    rows, others = (int(np.isnan(numbers).any(axis=-1).sum()) for numbers in (shipped, expected))
    if not np.array_equal(np.isnan(shipped), np.isnan(expected)):
        raise EngineError(
            f"{what} gives NaN in {rows} of {len(expected)} rows, {source} in {others}, and the places have to be the "
            "same: leave inputs that are not finite out of the first batch, or use another engine"
        )
