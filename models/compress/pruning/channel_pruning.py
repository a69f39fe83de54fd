"""Channels and hidden neurons removed, so that layers are really thinner.

Which layers have to lose a channel together is found by Torch-Pruning (Fang et al. 2023, "DepGraph: Towards Any
Structural Pruning"). By default only channels inside residual branches go: the stream, which is added to, keeps
its width. That is safe wherever shortcuts slice or pad (option A of the CIFAR ResNets, for which Torch-Pruning is not
relied on), and these are most of the channels.

Widths that suit engines, a 3x3 convolution on ONNX Runtime with AVX-512, times against 16 channels at 16x16 pixels:
8: 0.65, 12: 0.88, 16: 1, 24: 2.7, 32: 2.7, 48: 5.7, 64: 11.7. The kernels work on blocks of 16: 24 channels cost what
32 do. Hence `round_to`: 16, for layers under 32 channels 8, under 16 none.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.models.compress.argument_checks import check_inputs, check_share, check_word
from dynamic.models.compress.layer_replacement import recurrent
from dynamic.models.compress.pruning.channel_scores import ChannelImportance, Group, Part, scores
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, arguments, named_tensors, run_on
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.policies.errors import DynamicError, InputError, SettingError, WrapError

_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Tanh, nn.Sigmoid,
    nn.Softplus, nn.Dropout, nn.Identity,
)  # fmt: skip


def prune_channels(
    network: nn.Module,
    example_inputs: Batch,
    *,
    amount: float | Mapping[str, float],
    importance: ChannelImportance = "norm",
    selection_loader: Iterable[Any] | None = None,
    round_to: int | None = None,
    stream: bool = False,
    skip: Sequence[str] = (),
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """`network` with a share `amount` of the channels of each layer gone, those that matter least.

    `amount` in (0, 1), or one for each module name, whose layers alone are then pruned. `importance`:

    - "norm": of the weights that make and read a channel (Fang et al. 2023, section 3.3).
    - "activation": how rarely it is near zero on `data` (Hu et al. 2016, "Network Trimming", eq. 1).
    - "taylor": how much the loss on `data` would move without it, to first order (Molchanov et al. 2019,
      "Importance Estimation for Neural Network Pruning", eq. 8).

    Widths are rounded to multiples of `round_to` (None: what suits engines, see above). `stream`: also the channels
    that residual branches are added to. Networks with linear layers on tokens `[B, N, D]` (ViT, Swin, ConvNeXt) lose
    hidden neurons of their MLPs (linear, activation, linear), and nothing else: `stream` is not for them. `skip`:
    modules that keep their channels. Fine-tune afterwards (`dynamic.fit`).

    `data`, training images, scores channels and does nothing else; the report's accuracy is of `accuracy_data`, others.

    Raises SettingError on a setting out of range, WrapError where nothing can be pruned or Torch-Pruning cannot do it,
    InputError on bad data and names of no module. Networks with exits: prune before wrapping.
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(
            f"this {type(network).__name__} has exits that read its channels; prune its backbone, then wrap"
        )
    shares = _checked(network, amount, importance, selection_loader, round_to, skip)
    check_inputs(network, example_inputs)
    smaller = copied(network, computed=False)
    named = named_tensors(smaller, example_inputs)
    trains = {name: p.requires_grad for name, p in smaller.named_parameters()}
    left: dict[str, str] = {}
    groups = _groups(smaller, named, stream, left)
    names = {part.name for group in groups for part in group.makers}
    unmet = [n for n in shares if n and not any(_inside(name, n) for name in names)]
    if unmet:
        why = "; ".join(f"{name}: {left[name]}" for name in left if any(_inside(name, n) for n in unmet))
        raise WrapError(f"nothing to prune in {unmet} ({why or 'no layer'}); these can be: {', '.join(sorted(names))}")
    chosen: list[tuple[Group, int]] = []
    for group in groups:
        wanted = [shares[n] for n in sorted(shares, key=len) if any(_inside(p.name, n) for p in group.makers)]
        if any(_inside(p.name, s) for p in group.makers for s in skip):
            left[group.name] = "skipped, as asked"
        elif not wanted:
            left[group.name] = "no amount was given for it"
        elif (keep := round_width(group.width, group.width * (1 - wanted[-1]), round_to)) >= group.width:
            left[group.name] = f"{group.width} channels are too few to give up a multiple of what engines like"
        else:
            chosen.append((group, keep))
    if not chosen:
        raise WrapError(f"{type(network).__name__} has no channels that can go: {left or 'no such layers'}")
    recorded = None if selection_loader is None else RecordedLoader(selection_loader)
    rated = scores(smaller, [group for group, _ in chosen], importance, recorded, named)
    widths = {}
    for (group, keep), score in zip(chosen, rated, strict=True):
        gone = score.argsort(stable=True)[: group.width - keep].sort().values.tolist()
        try:
            group.remove(gone)
        except Exception as error:  # Torch-Pruning raises anything
            raise WrapError(f"channels of {group.name} cannot be removed: {error}; name it in skip=") from error
        widths[group.name] = [group.width, keep]
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(trains[name])
        parameter.grad = None
    _check_runs(network, smaller, named)
    remember(smaller, () if recorded is None else recorded.hashes)
    return Compressed(
        smaller,
        report(
            f"channels pruned by {importance}",
            network,
            smaller,
            example_inputs,
            eval_loader,
            latency=latency,
            left_alone=left,
            facts={"widths": widths},
        ),
    )


def _checked(
    network: nn.Module,
    amount: float | Mapping[str, float],
    importance: ChannelImportance,
    selection_loader: Iterable[Any] | None,
    round_to: int | None,
    skip: Sequence[str],
) -> dict[str, float]:
    shares = dict(amount) if isinstance(amount, Mapping) else {"": amount}
    for name, share in shares.items():
        check_share("amount", share, "0.5 removes half of the channels", f" for {name}" if name else "")
    check_word("importance", importance, ChannelImportance)
    if importance != "norm" and selection_loader is None:
        raise SettingError(f"importance={importance!r} is measured on data: give selection_loader=, inputs and labels")
    if round_to is not None and round_to < 1:
        raise SettingError(f"round_to={round_to}: at least 1")
    known = {name for name, _ in network.named_modules()}
    unknown = [name for name in (*shares, *skip) if name not in known]
    if unknown:
        raise InputError(f"{unknown}: no such modules; see network.named_modules()")
    return shares


def prunable(
    network: nn.Module, example_inputs: Batch, *, stream: bool = False, skip: Sequence[str] = ()
) -> dict[str, int]:
    """Width of each group of layers that can lose channels, by the module that `prune_channels` knows it by."""
    copy = copied(network, computed=False)
    groups = _groups(copy, named_tensors(copy, example_inputs), stream, {})
    return {g.name: g.width for g in groups if not any(_inside(p.name, s) for p in g.makers for s in skip)}


def round_width(width: int, wanted: float, round_to: int | None) -> int:
    """How many of `width` channels stay where `wanted` are to."""
    step = round_to or (16 if width >= 32 else 8 if width >= 16 else 1)
    return max(step, step * round(wanted / step))


def _groups(network: nn.Module, named: Mapping[str, Tensor], stream: bool, left: dict[str, str]) -> list[Group]:
    calls: dict[nn.Module, int] = {}
    tokens: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _WEIGHTED):

            def hook(module: nn.Module, given: tuple[Tensor], name: str = name) -> None:
                calls[module] = calls.get(module, 0) + 1
                if isinstance(module, nn.Linear) and given[0].ndim > 2:
                    tokens.append(name)

            handles.append(module.register_forward_pre_hook(hook))
    try:
        with evaluating(network), torch.no_grad():
            run_on(network, named)
    finally:
        for handle in handles:
            handle.remove()
    uses: dict[int, int] = {}
    for module in network.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    shared = {
        module
        for module in network.modules()
        if calls.get(module, 1) > 1 or any(uses[id(p)] > 1 for p in module.parameters(recurse=False))
    }
    if tokens and stream:
        raise SettingError(f"stream=True is for convolutional networks; {tokens[0]} works on tokens: leave stream out")
    left |= recurrent(network)
    # Torch-Pruning follows reshaped tokens element by element, and on windowed attention fills the memory
    found = _mlps(network, shared, left) if tokens else _by_torch_pruning(network, named, stream, shared, left)
    return found


def _mlps(network: nn.Module, shared: set[nn.Module], left: dict[str, str]) -> list[Group]:
    """Linear, activation, linear, in one Sequential or in torch's own transformer layers."""
    pairs: list[tuple[str, nn.Linear, str, nn.Linear]] = []
    for path, module in network.named_modules():
        prefix = f"{path}." if path else ""
        if isinstance(module, nn.TransformerEncoderLayer):
            pairs.append((f"{prefix}linear1", module.linear1, f"{prefix}linear2", module.linear2))
        if isinstance(module, nn.Sequential):
            first: tuple[str, nn.Linear] | None = None
            for name, child in module.named_children():
                if isinstance(child, nn.Linear):
                    if first is not None:
                        pairs.append((*first, f"{prefix}{name}", child))
                    first = f"{prefix}{name}", child
                elif not isinstance(child, _ELEMENTWISE):
                    first = None
    groups = []
    for name, one, after, two in pairs:
        if one in shared or two in shared:
            left[name] = "weights that are shared, or run several times"
            continue

        def remove(gone: Sequence[int], one: nn.Linear = one, two: nn.Linear = two) -> None:
            kept = [i for i in range(one.out_features) if i not in set(gone)]
            one.weight = nn.Parameter(one.weight.detach()[kept].clone())
            if one.bias is not None:
                one.bias = nn.Parameter(one.bias.detach()[kept].clone())
            two.weight = nn.Parameter(two.weight.detach()[:, kept].clone())
            one.out_features = two.in_features = len(kept)

        every = torch.arange(one.out_features)
        made, read = Part(name, one, every, every), Part(after, two, every, every)
        groups.append(Group(name, one.out_features, (made,), (), (read,), remove))
    pruned = {id(m) for _, one, _, two in pairs for m in (one, two)}
    for name, module in network.named_modules():
        if isinstance(module, _WEIGHTED) and id(module) not in pruned:
            left[name] = "no hidden layer of an MLP: in networks on tokens these alone are pruned"
    return groups


def _by_torch_pruning(
    network: nn.Module, named: Mapping[str, Tensor], stream: bool, shared: set[nn.Module], left: dict[str, str]
) -> list[Group]:
    import torch_pruning as tp

    modules = {module: name for name, module in network.named_modules()}
    ordered = {name: at for at, name in enumerate(modules.values())}
    for parameter in network.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    graph = tp.DependencyGraph()
    args, kwargs = arguments(network, {name: t[:2] for name, t in named.items()})
    try:
        with evaluating(network), warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            graph.build_dependency(
                network,
                kwargs or args,
                output_transform=lambda out: primary_logits(out),
                verbose=False,
            )
            listed = list(graph.get_all_groups(root_module_types=_WEIGHTED))
    except DynamicError:
        raise
    except Exception as error:  # Torch-Pruning raises anything
        raise WrapError(
            f"Torch-Pruning cannot follow {type(network).__name__}: {error}; prune weights instead"
        ) from error
    groups = []
    for found in listed:
        root = found[0].dep.target.module
        name = modules[root]
        why = _why_not(tp, found, modules, shared, stream)
        if why:
            left[name] = why
            continue
        makers, norms, readers = list[Part](), list[Part](), list[Part]()
        for item in found:
            module = item.dep.target.module
            if module not in modules:
                continue
            part = Part(modules[module], module, torch.tensor(item.root_idxs), torch.tensor(item.idxs))
            if isinstance(module, _WEIGHTED):
                depthwise = getattr(module, "groups", 1) > 1
                out = depthwise or graph.is_out_channel_pruning_fn(item.dep.handler)
                (makers if out else readers).append(part)
            elif isinstance(module, nn.modules.batchnorm._BatchNorm):
                norms.append(part)

        def remove(gone: Sequence[int], root: nn.Module = root) -> None:
            handler = graph.get_pruner_of_module(root).prune_out_channels
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph.get_pruning_group(root, handler, list(gone)).prune()

        groups.append(Group(name, len(found[0].idxs), tuple(makers), tuple(norms), tuple(readers), remove))
    return sorted(groups, key=lambda group: ordered[group.name])


def _why_not(tp: Any, found: Any, modules: Mapping[nn.Module, str], shared: set[nn.Module], stream: bool) -> str:
    """Why a group of layers cannot lose channels, or ''."""
    kinds = tp.ops.OPTYPE
    for item in found:
        node = item.dep.target
        reads = isinstance(node.module, _WEIGHTED) and item.dep.handler != found[0].dep.handler
        if node.type == kinds.OUTPUT or not (reads or node.outputs):
            return "it makes the network's output"
        module = node.module
        if module in shared:
            return "weights that are shared, or run several times"
        if 1 < getattr(module, "groups", 1) < getattr(module, "in_channels", 1):
            return "a grouped convolution is among the layers that depend on it"
        if not stream and node.type in (kinds.CONCAT, kinds.SPLIT, kinds.UNBIND, kinds.EXPAND):
            return "its channels are joined with others, or split"
        operation = str(getattr(node.grad_fn, "name", str)()).lower() if node.type == kinds.ELEMENTWISE else ""
        if node.type == kinds.SLICE or "pad" in operation:
            return "its channels are sliced or padded"
        if not stream and "add" in operation and len(node.inputs) > 1:
            return "it is part of the residual stream: stream=True prunes that too"
        if module not in modules and node.type == kinds.PARAMETER:
            return "a parameter outside layers depends on it"
    return ""


def _check_runs(network: nn.Module, smaller: nn.Module, named: Mapping[str, Tensor]) -> None:
    with torch.no_grad(), evaluating(network), evaluating(smaller):
        before = primary_logits(run_on(network, named))
        try:
            after = primary_logits(run_on(smaller, named))
        except Exception as error:  # user code runs here, with widths it may not expect
            raise WrapError(
                f"{type(network).__name__} does not run with thinner layers: {error}; name the layer in skip=, or "
                "prune with stream=False"
            ) from error
    if before.shape != after.shape:
        raise InputError(
            f"the logits became {list(after.shape)}, of {list(before.shape)}; name the last layer in skip="
        )


def _inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")
