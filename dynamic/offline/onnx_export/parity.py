"""Whether the graphs that ship give torch's logits: every stage and both graphs, at 1, 2 and 5 rows.

Where dimensions are dynamic, at 1 and 2 rows of other sizes too.
"""

import numpy as np
import torch

from dynamic.engines.contract import CascadeSpec
from dynamic.engines.pytorch import TorchExecutor
from dynamic.engines.route_choice import CascadeEngine
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.batches import Batch, named_tensors
from dynamic.offline.build_steps.engine_comparison import PARITY, compare_engines
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.row_independence import ROWS
from dynamic.offline.tracing.multiply_adds import ROUNDED_LIMIT, rounds
from dynamic.offline.tracing.sizes.dynamic_shapes import trial_inputs
from dynamic.policies.scores import Combiner

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
    shares = [max(PARITY[engine.precision], rounded[backbone]) for backbone in spec.backbone]
    ranges = {i.name: i.ranges for i in spec.inputs if i.ranges}
    cases = [{name: array[:count] for name, array in five.items()} for count in ROWS]
    for other in trial_inputs(ranges, {name: tensor[:2] for name, tensor in named.items()}):
        arrays = {name: np.ascontiguousarray(tensor.detach().cpu().numpy()) for name, tensor in other.items()}
        cases += [arrays, {name: array[:1] for name, array in arrays.items()}]
    compare_engines(own, engine, cases, shares, "torch", _REMEDY)


def _device(cascade: Cascade) -> str:
    first = next(cascade.parameters(), None)
    return "cpu" if first is None else str(first.device)
