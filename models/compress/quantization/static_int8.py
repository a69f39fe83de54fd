"""Static int8: weights per output channel, activations per tensor, with ranges from calibration data.

It is written here on torch.fx, since the result of no library passes through the rest of this package. Engines need
batch norms folded, a rounding at the input and result of each convolution and sum, and integer weights and biases.
Rectifiers are part of the rounding. Grids are symmetric, or start at 0 where nothing is negative. Moves, such as
pooling by maximum, slices and padding, keep the grid of their input. Then ONNX Runtime 1.32 fuses all of ResNet-18 into
QLinearConv, QLinearAdd and NhwcMaxPool, and OpenVINO 2026.4 runs its int8 kernels on the same graph.
"""

import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynamic.models.compress.argument_checks import is_skipped
from dynamic.models.compress.quantization.activation_ranges import Observer, RangeMethod, grids
from dynamic.models.compress.quantization.int8_graph import Rewriter, Watcher, exported_stage, float_stages
from dynamic.models.compress.quantization.int8_plan import Int8Plan
from dynamic.models.compress.quantization.linear_layers import LinearLayers
from dynamic.models.compress.quantization.quantized_exits import QuantizedExits
from dynamic.models.compress.quantization.sum_scales import without_ties
from dynamic.models.compress.quantization.weight_codes import WeightRange
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, arguments, labelled_batches, named_tensors, run_on, taken_by
from dynamic.offline.networks.float_types import check_float32
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_data import hashes_of, remember
from dynamic.offline.option_words import check_word
from dynamic.offline.staged_network import StagedNetwork
from dynamic.offline.tracing.multiply_adds import count_macs, share_macs
from dynamic.offline.tracing.trace import Captured, capture_export
from dynamic.policies.errors import DynamicWarning, InputError, TraceError

_MUCH, _MOST = 0.25, 0.5  # of the multiply-adds, which decide over the time
_LISTED = 3  # layers that a warning names


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
    """An int8 copy of a network for inference: convolutions, linear layers and the sums between them.

    Torch computes the rounding of an engine. Engines differ from it, and from each other, where they fuse operations
    and round less often. So calibrate a cascade on the engine that ships.

    Where torch.fx cannot trace the network, it depends on where the multiply-adds are. With a quarter of them or more
    in convolutions, the network becomes the graph that torch.export captures. It takes the size of the example alone,
    in batches of any number. Otherwise its linear layers become int8 where they stand, and all else remains float. That
    is the case of encoders of `transformers`, which keep their names and lengths.

    A network with exits from `dynamic.wrap` becomes one with the same exits. Its heads remain float and can be trained
    (`dynamic.fit(..., mode="heads")`). The other order works too: quantize, then wrap. int8 parts cannot be trained.

    Args:
        network: Any network that torch.fx or torch.export captures, in float32. It does not change.
        example_inputs: A batch as the network takes it.
        calibration_loader: Inputs, or `(inputs, labels)`, read twice for the ranges of tensors. A few hundred inputs
            of the kind that the network will see are enough. Training data are right for this.
        skip: Names of modules that remain float, with all that they hold.
        ranges: How the range of a tensor is chosen. "percentile" leaves out 0.005% of the values at either end,
            "minmax" is the whole range, and "mse" has the least squared error.
        weight_range: How many of the 8 bits weights use. "portable": as many as have the same sums on every processor,
            7 to 8 by output channel. "seven_bits": 7. "full": 8, which is right only where sums of products have 32
            bits, that is, with VNNI and AMX on x86, and on ARM. On other x86 processors engines add pairs in 16 bits,
            and such a network answers differently. The canaries of a bundle notice that.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency on ONNX Runtime.

    Returns:
        The network and a report. `report.facts["saturating_channels"]`: by layer, the output channels whose sums can
        saturate on x86 processors without VNNI. There are none unless `weight_range` is "full".
        `report.facts["int8_share"]`: the share of the multiply-adds that is in int8. `report.facts["float_shares"]`:
        that of each layer that remains float. DynamicWarning where more than half of them remains float and is not in
        `skip`.

    Raises:
        CalibrationError: The loader is empty, or values are not finite.
        InputError: Weights are not float32, no layer can be quantized, or a name in `skip` does not exist.
        SettingError: `ranges` or `weight_range` is no choice.
        TraceError: Neither torch.fx nor torch.export captures the network.

    Example:
        >>> from dynamic.models import compress
        >>> int8 = compress.quantize(large, torch.zeros(2, 12), calibration_loader=calibration_loader, latency=False)
        >>> int8.report.facts["layers"], int8.report.facts["saturating_channels"]
        (3, {})
    """
    check_word("ranges", ranges, RangeMethod)
    check_word("weight_range", weight_range, WeightRange)
    _check(network, skip)
    with evaluating(network):
        own = copied(network, computed=False)
    named = named_tensors(own, example_inputs)
    with torch.no_grad(), evaluating(own), taken_by(own, named):
        run_on(own, named)
        shares = share_macs(own, *arguments(own, named))
    try:
        stages = float_stages(own, example_inputs)
    except TraceError as error:
        captured = _exported(own, named, error)
        stages = [exported_stage(own, captured, named)] if shares.convolutions >= _MUCH else []
    if stages:
        done = _in_graphs(network, own, stages, calibration_loader, skip, ranges, weight_range)
    else:
        done = _in_place(own, calibration_loader, skip, ranges, weight_range)
    done.network.eval()
    remember(done.network, hashes_of(network))
    with evaluating(done.network):
        macs = count_macs(done.network, *arguments(done.network, named))
    share = macs.rounded / macs.total if macs.total else 1.0
    _warn(share, done.left_alone, shares.parts, skip)
    float_shares = {name: shares.parts[name] for name in done.left_alone if shares.parts.get(name)}
    comparison = report(
        "int8",
        network,
        done.network,
        example_inputs,
        eval_loader,
        latency=latency,
        left_alone=done.left_alone,
        facts={
            "calibration": ranges,
            "weight_range": weight_range,
            "int8_share": share,
            "float_shares": float_shares,
            **done.facts,
        },
        usual_drop=0.01,
        notes=[f"int8: {share:.0%} of the multiply-adds, in {done.facts['layers']} layers"],
    )
    return Compressed(done.network, comparison)


@dataclass(frozen=True, eq=False)
class _Quantized:
    network: nn.Module
    left_alone: Mapping[str, str]
    facts: Mapping[str, Any]


def _in_graphs(
    network: nn.Module,
    own: nn.Module,
    stages: Sequence[fx.GraphModule],
    loader: Iterable[Any],
    skip: Collection[str],
    ranges: RangeMethod,
    weight_range: WeightRange,
) -> _Quantized:
    """The stages of `own`, a copy of `network`, written again with int8 operations."""
    plan = Int8Plan(skip)
    for stage in stages:
        plan.read(stage)
    if not plan.layers:
        raise _nothing(network, plan.left_alone)

    def show(observer: Observer) -> int:
        count = 0
        for inputs, _ in labelled_batches(loader):
            carry: Any = tuple(named_tensors(network, inputs).values())
            count += len(carry[0])
            for stage in stages:
                with taken_by(network, named_tensors(network, inputs)):
                    carry = Watcher(stage, plan.watched, observer).run(*carry)
        return count

    with torch.no_grad():
        tensor_grids = grids(show, ranges, lambda node: plan.names[node])
    for node, total in plan.sums.items():  # in the order of the graph: a sum is a term of the next
        first, second = (tensor_grids[plan.grid_of[term]] for term in node.args[:2] if isinstance(term, fx.Node))
        grid = plan.grid_of[total]
        tensor_grids[grid] = without_ties(tensor_grids[grid], first, second)
    rewriter = Rewriter(plan, tensor_grids, weight_range)
    bodies = [rewriter.write(stage) for stage in stages]
    result: nn.Module = bodies[0]
    if isinstance(own, StagedNetwork):
        exits = own.exit_stages
        result = QuantizedExits(bodies, [stage.head for stage in exits], [stage.name for stage in exits])
        result.traced_sizes = own.traced_sizes
    facts = {
        "layers": len(plan.layers),
        "sums": len(plan.sums),
        "saturating_channels": rewriter.saturating,
        "ranges": {plan.names[node]: list(grid.values) for node, grid in tensor_grids.items()},
    }
    return _Quantized(result, plan.left_alone, facts)


def _exported(own: nn.Module, example: Mapping[str, Tensor], fx_error: TraceError) -> Captured:
    """The graph of torch.export, without which no engine can run the network."""
    own.eval()
    pairs = {name: torch.cat((t, t)) if len(t) == 1 else t for name, t in example.items()}  # 1 would be a constant
    try:
        return capture_export(own, pairs)
    except TraceError as error:
        raise TraceError(
            f"neither torch.fx nor torch.export captures {type(own).__name__}. torch.fx stops {fx_error}. "
            f"torch.export stops {error}"
        ) from error


def _in_place(
    own: nn.Module, loader: Iterable[Any], skip: Collection[str], ranges: RangeMethod, weight_range: WeightRange
) -> _Quantized:
    """`own`, a copy that torch.fx cannot trace, with int8 layers in the places of its linear ones."""
    linear = LinearLayers(own, skip)
    layer_grids = linear.grids(loader, ranges)
    if not linear.layers:
        raise _nothing(own, linear.left_alone)
    own.requires_grad_(False)
    facts = {
        "layers": len(linear.layers),
        "sums": 0,
        "saturating_channels": linear.replace(layer_grids, weight_range),
        "ranges": {name: list(grid.values) for name, grid in layer_grids.items()},
    }
    return _Quantized(own, linear.left_alone, facts)


def _warn(share: float, left_alone: Mapping[str, str], parts: Mapping[str, float], skip: Collection[str]) -> None:
    """DynamicWarning where most remains float that the user did not ask for."""
    asked = sum(own for name, own in parts.items() if is_skipped(name, skip))
    if 1 - share - asked <= _MOST:
        return
    largest = sorted(left_alone, key=lambda name: -parts.get(name, 0.0))[:_LISTED]
    listed = "; ".join(f"{name}, {parts.get(name, 0.0):.0%}: {left_alone[name]}" for name in largest)
    warnings.warn(
        f"only {share:.0%} of the multiply-adds are in int8, so the network is hardly faster. Most of it remains float "
        f"({listed or 'operations that are no layers, such as attention'}). Time both networks before you ship this "
        "one, or write these layers as modules of torch.nn with a forward that torch.fx can trace",
        DynamicWarning,
        stacklevel=3,
    )


def _nothing(network: nn.Module, left_alone: Mapping[str, str]) -> InputError:
    return InputError(
        f"this {type(network).__name__} has no Conv or Linear of torch.nn that is not in skip, so nothing can be "
        f"quantized (left alone: {left_alone or 'nothing'})"
    )


def _check(network: nn.Module, skip: Collection[str]) -> None:
    names = [name for name, _ in network.named_modules() if name]
    if isinstance(skip, str):
        raise InputError(f"skip={skip!r} is one string: give a list of names")
    for name in skip:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
            raise InputError(f"skip: {type(network).__name__} has no module {name!r}: give a name such as {near}")
    check_float32(network)
    for name, parameter in network.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(
                f"{name} is {parameter.dtype}, and quantization starts from float32: give the network "
                "that this one was made from"
            )
