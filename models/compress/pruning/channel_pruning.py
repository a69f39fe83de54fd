"""Channels and hidden neurons removed, so that layers have fewer of them.

Torch-Pruning finds the layers that must lose a channel together (Fang et al. 2023, "DepGraph: Towards Any Structural
Pruning"). By default only channels inside residual branches go, which are most of the channels. The stream, to which
branches are added, keeps its width. That is safe where shortcuts slice or pad, as option A of the CIFAR ResNets does:
Torch-Pruning is not relied on there.

Widths that suit engines: a 3x3 convolution at 16x16 pixels on ONNX Runtime with AVX-512, time against 16 channels.

| channels | 8 | 12 | 16 | 24 | 32 | 48 | 64 |
| --- | --- | --- | --- | --- | --- | --- | --- |
| time | 0.65 | 0.88 | 1 | 2.7 | 2.7 | 5.7 | 11.7 |

The kernels work on blocks of 16: 24 channels cost as much as 32. So `round_to` is 16, for layers under 32 channels 8,
and under 16 channels 1.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.models.compress.argument_checks import check_inputs, check_share
from dynamic.models.compress.layer_replacement import recurrent
from dynamic.models.compress.pruning.channel_scores import ChannelImportance, Group, Part, scores
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, arguments, named_tensors, run_on
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.option_words import check_word
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
    """A copy of a network in which each layer has fewer channels, without those that matter least.

    **Chooses by data** with "activation" and "taylor": batches of `selection_loader` decide which channels go. They
    must not certify, and the network carries their hashes. Fine-tune afterwards (`dynamic.fit`).

    Networks with linear layers on tokens `[B, N, D]`, such as ViT, Swin and ConvNeXt, lose hidden neurons of their MLPs
    (linear, activation, linear) and nothing else.

    The importance of a channel is one of these.

    - "norm": the norm of the weights that make and read it (Fang et al. 2023, section 3.3).
    - "activation": how rarely it is near zero (Hu et al. 2016, "Network Trimming", eq. 1).
    - "taylor": the change of the loss without it, to first order (Molchanov et al. 2019, "Importance Estimation for
    Neural
      Network Pruning", eq. 8).

    Args:
        network: The network. It does not change. Prune a network with exits before wrapping it.
        example_inputs: A batch as the network takes it.
        amount: Share in (0, 1) of the channels of each layer. A dict has one for each module name, and only layers
            inside these modules change.
        importance: "norm", "activation" or "taylor".
        selection_loader: `(inputs, labels [B])` that score channels. Training data are right for this. "norm" needs
            none.
        round_to: Widths are rounded to multiples of this. None: what suits engines.
        stream: Whether channels of the residual stream go too. Not for networks on tokens.
        skip: Names of modules that keep their channels.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.facts["widths"]`: by layer, its width before and after.

    Raises:
        SettingError: A setting is out of range, or data are missing.
        WrapError: Nothing can be pruned, or Torch-Pruning cannot do it.
        InputError: The data are wrong, or a name is of no module.

    Example:
        >>> from dynamic.models import compress
        >>> thin = compress.prune_channels(large, torch.zeros(2, 12), amount=0.5, latency=False)
        >>> thin.report.facts["widths"]
        {'0': [64, 32], '2': [64, 32]}
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(
            f"this {type(network).__name__} has exits that read its channels: prune its backbone, then wrap"
        )
    shares = _shares(network, amount, importance, selection_loader, round_to, skip)
    check_inputs(network, example_inputs)
    smaller = copied(network, computed=False)
    named = named_tensors(smaller, example_inputs)
    trainable = {name: p.requires_grad for name, p in smaller.named_parameters()}
    left_alone: dict[str, str] = {}
    groups = _groups(smaller, named, stream, left_alone)
    names = {part.name for group in groups for part in group.makers}
    unmet = [n for n in shares if n and not any(_inside(name, n) for name in names)]
    if unmet:
        why = ", ".join(f"{name}: {left_alone[name]}" for name in left_alone if any(_inside(name, n) for n in unmet))
        raise WrapError(f"nothing to prune in {unmet} ({why or 'no layer'}): name some of {', '.join(sorted(names))}")
    widths_to_keep: list[tuple[Group, int]] = []
    for group in groups:
        group_shares = [shares[n] for n in sorted(shares, key=len) if any(_inside(p.name, n) for p in group.makers)]
        if any(_inside(p.name, s) for p in group.makers for s in skip):
            left_alone[group.name] = "in skip"
        elif not group_shares:
            left_alone[group.name] = "amount does not name it"
        elif (keep := round_width(group.width, group.width * (1 - group_shares[-1]), round_to)) >= group.width:
            left_alone[group.name] = f"{group.width} channels are too few to remove a multiple of what engines like"
        else:
            widths_to_keep.append((group, keep))
    if not widths_to_keep:
        raise WrapError(f"{type(network).__name__} has no channels that can go: {left_alone or 'no such layers'}")
    recorded = None if selection_loader is None else RecordedLoader(selection_loader)
    importances = scores(smaller, [group for group, _ in widths_to_keep], importance, recorded, named)
    widths = {}
    for (group, keep), score in zip(widths_to_keep, importances, strict=True):
        removed = score.argsort(stable=True)[: group.width - keep].sort().values.tolist()
        try:
            group.remove(removed)
        except Exception as error:  # Torch-Pruning may raise anything
            raise WrapError(f"channels of {group.name} cannot be removed, {error}: name it in skip=") from error
        widths[group.name] = [group.width, keep]
    for name, parameter in smaller.named_parameters():
        parameter.requires_grad_(trainable[name])
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
            left_alone=left_alone,
            facts={"widths": widths},
        ),
    )


def _shares(
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
        raise SettingError(f"round_to={round_to}: give at least 1")
    names = {name for name, _ in network.named_modules()}
    unknown = [name for name in (*shares, *skip) if name not in names]
    if unknown:
        raise InputError(f"{unknown}: no such modules, see network.named_modules()")
    return shares


def prunable(
    network: nn.Module, example_inputs: Batch, *, stream: bool = False, skip: Sequence[str] = ()
) -> dict[str, int]:
    """Width of each group of layers that can lose channels, under the name of the group."""
    copy = copied(network, computed=False)
    groups = _groups(copy, named_tensors(copy, example_inputs), stream, {})
    return {g.name: g.width for g in groups if not any(_inside(p.name, s) for p in g.makers for s in skip)}


def round_width(width: int, target: float, round_to: int | None) -> int:
    """How many of `width` channels remain where `wanted` are to remain."""
    step = round_to or (16 if width >= 32 else 8 if width >= 16 else 1)
    return max(step, step * round(target / step))


def _groups(network: nn.Module, named: Mapping[str, Tensor], stream: bool, left_alone: dict[str, str]) -> list[Group]:
    calls: dict[nn.Module, int] = {}
    tokens: list[str] = []
    handles = []
    for name, module in network.named_modules():
        if isinstance(module, _WEIGHTED):

            def hook(module: nn.Module, inputs: tuple[Tensor], name: str = name) -> None:
                calls[module] = calls.get(module, 0) + 1
                if isinstance(module, nn.Linear) and inputs[0].ndim > 2:
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
        raise SettingError(
            f"stream=True is for convolutional networks, and {tokens[0]} works on tokens: leave stream out"
        )
    left_alone |= recurrent(network)
    # Torch-Pruning follows reshaped tokens element by element, and on windowed attention fills the memory
    return (
        _mlps(network, shared, left_alone) if tokens else _by_torch_pruning(network, named, stream, shared, left_alone)
    )


def _mlps(network: nn.Module, shared: set[nn.Module], left_alone: dict[str, str]) -> list[Group]:
    """Linear, activation, linear, in one Sequential or in the transformer layers of torch."""
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
            left_alone[name] = "weights that are shared, or run several times"
            continue

        def remove(removed: Sequence[int], one: nn.Linear = one, two: nn.Linear = two) -> None:
            rest = [i for i in range(one.out_features) if i not in set(removed)]
            one.weight = nn.Parameter(one.weight.detach()[rest].clone())
            if one.bias is not None:
                one.bias = nn.Parameter(one.bias.detach()[rest].clone())
            two.weight = nn.Parameter(two.weight.detach()[:, rest].clone())
            one.out_features = two.in_features = len(rest)

        every = torch.arange(one.out_features)
        maker, reader = Part(name, one, every, every), Part(after, two, every, every)
        groups.append(Group(name, one.out_features, (maker,), (), (reader,), remove))
    pruned = {id(m) for _, one, _, two in pairs for m in (one, two)}
    for name, module in network.named_modules():
        if isinstance(module, _WEIGHTED) and id(module) not in pruned:
            left_alone[name] = "no hidden layer of an MLP in one Sequential: prune_encoder finds others"
    return groups


def _by_torch_pruning(
    network: nn.Module, named: Mapping[str, Tensor], stream: bool, shared: set[nn.Module], left_alone: dict[str, str]
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
    except Exception as error:  # Torch-Pruning may raise anything
        raise WrapError(
            f"Torch-Pruning cannot follow {type(network).__name__}, {error}: prune weights instead"
        ) from error
    groups = []
    for dependents in listed:
        root = dependents[0].dep.target.module
        name = modules[root]
        why = _why_not(tp, dependents, modules, shared, stream)
        if why:
            left_alone[name] = why
            continue
        makers, norms, readers = list[Part](), list[Part](), list[Part]()
        for item in dependents:
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

        def remove(removed: Sequence[int], root: nn.Module = root) -> None:
            handler = graph.get_pruner_of_module(root).prune_out_channels
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                graph.get_pruning_group(root, handler, list(removed)).prune()

        groups.append(Group(name, len(dependents[0].idxs), tuple(makers), tuple(norms), tuple(readers), remove))
    return sorted(groups, key=lambda group: ordered[group.name])


def _why_not(tp: Any, dependents: Any, modules: Mapping[nn.Module, str], shared: set[nn.Module], stream: bool) -> str:
    """Why a group of layers cannot lose channels, or ''."""
    kinds = tp.ops.OPTYPE
    for item in dependents:
        node = item.dep.target
        reads = isinstance(node.module, _WEIGHTED) and item.dep.handler != dependents[0].dep.handler
        if node.type == kinds.OUTPUT or not (reads or node.outputs):
            return "it makes the network's output"
        module = node.module
        if module in shared:
            return "weights that are shared, or run several times"
        if 1 < getattr(module, "groups", 1) < getattr(module, "in_channels", 1):
            return "a grouped convolution is among the layers that depend on it"
        if not stream and node.type in (kinds.CONCAT, kinds.SPLIT, kinds.UNBIND, kinds.EXPAND):
            return "its channels are concatenated or split"
        operation = str(getattr(node.grad_fn, "name", str)()).lower() if node.type == kinds.ELEMENTWISE else ""
        if node.type == kinds.SLICE or "pad" in operation:
            return "its channels are sliced or padded"
        if not stream and "add" in operation and len(node.inputs) > 1:
            return "it is part of the residual stream, which stream=True prunes too"
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
                f"{type(network).__name__} does not run with fewer channels, {error}: name the layer in skip=, or "
                "prune with stream=False"
            ) from error
    if before.shape != after.shape:
        raise InputError(
            f"the logits became {list(after.shape)}, of {list(before.shape)}: name the last layer in skip="
        )


def _inside(name: str, module: str) -> bool:
    return not module or name == module or name.startswith(f"{module}.")
