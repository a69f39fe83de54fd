"""Static int8: weights per output channel, activations per tensor, on ranges from calibration data.

Written here on torch.fx, since no library's result goes through what this package does with networks. What engines need
is little: batch norms folded, a rounding at the input and result of each convolution and sum with rectifiers left to
it, weights and biases as integers (`int8`). Grids are symmetric, or start at 0 where nothing is negative, and moves
(pooling by maximum, slices, padding) keep their input's grid: then ONNX Runtime 1.32 fuses all of ResNet-18 into
QLinearConv, QLinearAdd and NhwcMaxPool, and OpenVINO 2026.4 runs its int8 kernels on the same graph.
"""

import difflib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynamic.models.compress.argument_checks import check_word
from dynamic.models.compress.quantization.activation_ranges import RangeMethod, Seen, grids
from dynamic.models.compress.quantization.int8_graph import Rewriter, Watcher, float_stages
from dynamic.models.compress.quantization.int8_plan import Int8Plan
from dynamic.models.compress.quantization.sum_scales import without_ties
from dynamic.models.compress.quantization.weight_codes import WeightRange
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, labelled_batches, named_tensors, run_on, taken_by
from dynamic.offline.networks.float_types import check_float32
from dynamic.offline.networks.module_modes import evaluating, view
from dynamic.offline.networks.used_data import hashes_of, remember
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.errors import InputError


def quantize(
    network: nn.Module,
    example_inputs: Batch,
    *,
    calibration_loader: Iterable[Any],
    skip: Collection[str] = (),
    ranges: RangeMethod = "percentile",
    weight_range: WeightRange = "portable",
    latency: bool = True,
    eval_loader: Iterable[Any] | None = None,
) -> Compressed:
    """An int8 copy of `network` for inference: convolutions, linear layers and the sums between them.

    Torch computes the rounding that an engine does. Engines differ from it, and from each other, where they fuse
    operations and round less often. So calibrate a cascade on the engine that ships.

    A network of several exits from `dynamic.wrap` gives one of the same exits with its heads float, and they can be
    trained (`dynamic.fit(..., mode="heads")`). The other order works too: quantize, then wrap. What is int8 cannot be
    trained.

    Args:
        network: any that torch.fx can follow, in float32. It is not changed.
        example_inputs: a batch as the network takes it.
        calibration_loader: inputs, or `(inputs, labels)`, read twice. A few hundred inputs of the kind that the network
            will see are enough, training images too.
        skip: names of modules that stay float, with everything inside.
        ranges: how the range of a tensor is found: "percentile", "minmax" or "mse", see `ranges.grids`.
        weight_range: how many of the 8 bits weights use. "portable": as many as give the same sums on every processor,
            by output channel 7 to 8. "seven_bits": 7. "full": 8, right only where sums of products have 32 bits: VNNI
            and AMX on x86, and ARM. On other x86 processors engines add pairs in 16 bits, and such a network answers
            otherwise there. Bundles carry canaries that notice it.
        latency: whether the report times both networks on ONNX Runtime.
        eval_loader: a loader of `(inputs, labels)` on which the report measures accuracy.

    Returns:
        The network and a report. `report.facts["saturating_channels"]`: by layer, the output channels whose sums can
        saturate on x86 processors without VNNI. There are none unless `weight_range` is "full".

    Raises:
        CalibrationError: the loader is empty, or values are not finite.
        InputError: weights that are not float32, no layer to quantize, or a name in `skip` that does not exist.
        SettingError: `ranges` or `weight_range` is not known.
        TraceError: torch.fx cannot follow the network.

    Example:
        >>> from torch import nn
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
        >>> small = quantize(network, torch.randn(2, 4), calibration_loader=[torch.randn(64, 4)], latency=False)
        >>> small.report.facts["layers"], small.report.facts["saturating_channels"]
        (2, {})
    """
    check_word("ranges", ranges, RangeMethod)
    check_word("weight_range", weight_range, WeightRange)
    _check(network, skip)
    with evaluating(network):
        own = copied(network, computed=False)
    named = named_tensors(own, example_inputs)
    with torch.no_grad(), evaluating(own), taken_by(own, named):
        run_on(own, named)
    stages = float_stages(own, example_inputs)
    plan = Int8Plan(skip)
    for stage in stages:
        plan.read(stage)
    if not plan.layers:
        raise InputError(
            f"this {type(network).__name__} has no layer to quantize, that is, a Conv or Linear of torch.nn that is "
            f"not in skip; left alone: {plan.left_alone or 'nothing'}"
        )

    def show(seen: Seen) -> int:
        count = 0
        for inputs, _ in labelled_batches(calibration_loader):
            carry: Any = tuple(named_tensors(network, inputs).values())
            count += len(carry[0])
            for stage in stages:
                with taken_by(network, named_tensors(network, inputs)):
                    carry = Watcher(stage, plan.watched, seen).run(*carry)
        return count

    with torch.no_grad():
        found = grids(show, ranges, lambda node: plan.names[node])
    for node, total in plan.sums.items():  # in the order of the graph: a sum is a term of the next
        first, second = (found[plan.grid_of[term]] for term in node.args[:2] if isinstance(term, fx.Node))
        found[plan.grid_of[total]] = without_ties(found[plan.grid_of[total]], first, second)
    rewriter = Rewriter(plan, found, weight_range)
    bodies = [rewriter.write(stage) for stage in stages]
    result: nn.Module = bodies[0]
    if isinstance(own, StagedNetwork):
        exits = own.exit_stages
        result = QuantizedExits(bodies, [stage.head for stage in exits], [stage.name for stage in exits])
        result.traced_sizes = own.traced_sizes
    result.eval()
    remember(result, hashes_of(network))
    facts = {
        "calibration": ranges,
        "layers": len(plan.layers),
        "sums": len(plan.sums),
        "weight_range": weight_range,
        "saturating_channels": rewriter.saturating,
        "ranges": {plan.names[node]: list(grid.values) for node, grid in found.items()},
    }
    told = report(
        "int8",
        network,
        result,
        example_inputs,
        eval_loader,
        latency=latency,
        left_alone=plan.left_alone,
        facts=facts,
        usual_drop=0.01,
    )
    return Compressed(result, told)


class QuantizedExits(StagedNetwork):
    """Quantized stages of a network of several exits, and its float heads."""

    trainable_backbone = False  # dynamic.fit asks

    def __init__(self, bodies: Sequence[nn.Module], heads: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)
        self.heads = nn.ModuleList(heads)
        self._names = tuple(names)

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        """The stages in evaluation mode, sharing the weights."""
        parts = zip(self._names, self.bodies, self.heads, strict=True)
        return tuple(Stage(name, view(body), view(head)).eval() for name, body, head in parts)

    def forward(self, *args: Tensor, **kwargs: Tensor) -> list[Tensor]:
        """Logits `[B, C]` of every exit, the backbone's own last."""
        if self.traced_sizes is not None:
            self.traced_sizes.check(self.traced_sizes.bound(args, kwargs))
        first: Any = self.bodies[0]
        names = [node.target for node in first.graph.find_nodes(op="placeholder")]
        carry = (*args, *(kwargs[name] for name in names[len(args) :]))
        found = []
        for body, head in zip(self.bodies, self.heads, strict=True):
            carry = body(*carry)
            found.append(head(carry[0]))
        return found


def _check(network: nn.Module, skip: Collection[str]) -> None:
    known = [name for name, _ in network.named_modules() if name]
    if isinstance(skip, str):
        raise InputError(f"skip={skip!r} is one string; give a list of names")
    for name in skip:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known[:3]
            raise InputError(f"skip names {name!r}, and {type(network).__name__} has no such module; near it: {near}")
    check_float32(network)
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}; quantization starts from float32: give the network that this one was "
                "made from"
            )
