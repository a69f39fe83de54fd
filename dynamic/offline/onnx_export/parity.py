"""Whether the graphs that ship give torch's logits: every stage and both graphs, at 1, 2 and 5 rows.

Where dimensions are dynamic, at 1 and 2 rows of other sizes too.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Graph, Output
from dynamic.engines.pytorch import TorchExecutor
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.batches import Batch, named_tensors
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.row_independence import ROWS
from dynamic.offline.tracing.multiply_adds import ROUNDED_LIMIT, rounds
from dynamic.offline.tracing.sizes.dynamic_shapes import trial_inputs
from dynamic.policies.errors import EngineError
from dynamic.policies.scores import Combiner

# of the largest logit: beyond it a graph is wrong, not merely rounded otherwise
_PARITY = {"f32": 1e-3, "bf16": 0.15}
_REMEDY = "use engine='torch', or report the network"


def check_parity(cascade: Cascade, engine: CascadeEngine, spec: CascadeSpec, example: Batch) -> None:
    """Run the cascade at 1, 2 and 5 rows, and at other sizes, on the engine that ships and on torch.

    `cascade` is in evaluation mode.

    Raises EngineError naming the stage, or the graph, that does not run or gives other logits.
    """
    most = max(ROWS)
    named = named_tensors(cascade.networks[0], example)
    five = {n: torch.cat([t.detach()] * -(-most // len(t)))[:most].cpu().numpy() for n, t in named.items()}
    names = [i.name for i in spec.inputs]
    combiner = Combiner((1.0,) * len(spec.stages), "max_probability", combine=cascade.combine, backbone=spec.backbone)
    own = StageEngine(TorchExecutor(cascade.stages_for(names), spec, device=_device(cascade)), spec, combiner)
    rounded = [ROUNDED_LIMIT if rounds(network) else 0.0 for network in cascade.networks]
    shares = [max(_PARITY[engine.precision], rounded[backbone]) for backbone in spec.backbone]
    ranges = {i.name: i.ranges for i in spec.inputs if i.ranges}
    cases = [{name: array[:count] for name, array in five.items()} for count in ROWS]
    for other in trial_inputs(ranges, {name: tensor[:2] for name, tensor in named.items()}):
        arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in other.items()}
        cases += [arrays, {name: array[:1] for name, array in arrays.items()}]
    for inputs in cases:
        expected = own.all_logits(inputs)  # [B, S, C]
        limits = [s * max(1.0, _largest(expected[:, i])) for i, s in enumerate(shares)]
        _check_stages(engine.stages, inputs, expected, limits)
        if engine.graph is not None and np.isfinite(expected).all():
            for thresholds in _thresholds(own, inputs, 2 * max(limits)):
                answer = own.run(inputs, thresholds)
                _check_graph(engine.graph, inputs, thresholds, answer, max(limits), f"{engine.name!r}")
    if engine.graph is not None:
        engine.graph.close()  # calibration runs the stages alone


def _check_stages(
    engine: StageEngine, inputs: Mapping[str, Array], expected: NDArray[np.float32], limits: list[float]
) -> None:
    rows = len(expected)
    shipped = engine.all_logits(inputs)
    for stage, described in enumerate(engine.spec.stages):
        if shipped.shape != expected.shape:
            raise EngineError(
                f"stage {described.name!r} on engine {engine.name!r} gives {list(shipped[:, stage].shape)} for {rows} "
                f"rows, torch {list(expected[:, stage].shape)}: {_REMEDY}"
            )
        off = float(np.abs(shipped[:, stage] - expected[:, stage]).max())
        if not off <= limits[stage] and np.isfinite(expected[:, stage]).all():
            raise EngineError(
                f"stage {described.name!r} on engine {engine.name!r} is off torch's logits by {off:.3g} for {rows} "
                f"rows (limit {limits[stage]:.3g}): {_REMEDY}"
            )


def _check_graph(
    graph: Graph, inputs: Mapping[str, Array], thresholds: NDArray[np.float32], answer: Output, limit: float, name: str
) -> None:
    rows = len(answer.stage)
    shipped = graph.run(inputs, thresholds, rows)
    if shipped.logits.shape != answer.logits.shape or not np.array_equal(shipped.stage, answer.stage):
        raise EngineError(
            f"the single graph on engine {name} answers {rows} rows with {list(shipped.logits.shape)} at stages "
            f"{shipped.stage.tolist()}, torch with {list(answer.logits.shape)} at {answer.stage.tolist()}: {_REMEDY}"
        )
    off = float(np.abs(np.exp(shipped.logits) - np.exp(answer.logits)).max())
    if not off <= limit:
        raise EngineError(
            f"the single graph on engine {name} is off torch's probabilities by {off:.3g} for {rows} rows "
            f"(limit {limit:.3g}): {_REMEDY}"
        )


def _thresholds(own: StageEngine, inputs: Mapping[str, Array], gap: float) -> Iterator[NDArray[np.float32]]:
    """Thresholds `[S-1]` by which no input exits early, every input does, or some do, with a `gap` between scores."""
    exits = len(own.spec.stages) - 1
    yield np.full(exits, np.inf, np.float32)
    if not exits:
        return
    everyone_exits = np.full(exits, -np.inf, np.float32)
    yield everyone_exits
    scores = np.sort(own.run(inputs, everyone_exits).score)
    gaps = np.diff(scores)
    if len(gaps) and gaps.max() > gap:
        some = np.full(exits, np.inf, np.float32)
        some[0] = scores[gaps.argmax() : gaps.argmax() + 2].mean()
        yield some


def _largest(logits: NDArray[np.float32]) -> float:
    return float(np.abs(logits).max(initial=0.0))


def _device(cascade: Cascade) -> str:
    first = next(cascade.parameters(), None)
    return "cpu" if first is None else str(first.device)
