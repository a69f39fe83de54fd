"""One set of weights at several widths: Yu et al. 2019, "Slimmable Neural Networks".

Each width uses the leading channels of every layer. It has batch norms of its own, since their statistics differ
(section 3.3). Each width is a module tree that holds the shared parameters, so nothing has to be switched.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dynamic.models.compress.layer_replacement import input_of, run, swap
from dynamic.models.compress.report import copied
from dynamic.models.resnet import BasicBlock
from dynamic.offline.batches import Batch
from dynamic.offline.networks.module_modes import view
from dynamic.offline.networks.network_copies import deep_copy
from dynamic.offline.networks.used_data import hashes_of, remember
from dynamic.offline.staged_network import Stage, StagedNetwork, primary_logits
from dynamic.offline.training.configs import TrainingConfig
from dynamic.policies.errors import InputError, SettingError, WrapError

Plain = TypeVar("Plain", nn.Conv2d, nn.Linear)

WIDTHS = (0.25, 0.5, 0.75, 1.0)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
_REMEDY = "give a function from width to network instead"


def slimmable(
    network: nn.Module | Callable[[float], nn.Module],
    example_inputs: Batch,
    *,
    widths: Sequence[float] = WIDTHS,
    round_to: int = 1,
) -> "Slimmable":
    """A network that answers at each of several widths.

    Channels are shares of those of the full network. The classes do not change. Convolutions of groups keep the
    channels of a group and have fewer groups.

    A module must be a network of Conv2d, Linear and batch norms, with or without residual branches. Its code must take
    channel counts from its inputs. `CifarResNet` works too. For other networks give a function from width to network,
    such as `lambda width: CifarResNet(20, width=round(16 * width))`. They may have other norms. They start from the
    weights of the widest.

    Narrow widths are at chance before training. `dynamic.fit(net, loader, mode="joint", training=net.summed)` sums the
    losses of all widths. With `mode="distill"` the narrow widths learn from the full one (Yu and Huang 2019,
    "Universally Slimmable Networks and Improved Training Techniques", section 3.3).

    Args:
        network: The full network, which does not change, or a function that makes the network of a width.
        example_inputs: A batch as the network takes it.
        widths: Rising shares of the channels, the last 1.
        round_to: Channels are rounded to multiples of this. Engines are fast at 8 or 16.

    Returns:
        One network of all widths. `extract(0.5)` makes a plain network of one.

    Raises:
        SettingError: `widths` or `round_to` is out of range.
        InputError: The inputs do not fit.
        WrapError: A layer cannot be treated, or the network cannot be so narrow.

    Example:
        >>> from dynamic.models import compress
        >>> net = compress.slimmable(large, torch.zeros(2, 12), widths=(0.5, 1.0))
        >>> [tuple(logits.shape) for logits in net(torch.zeros(2, 12))]
        [(2, 4), (2, 4)]
    """
    shares = _shares(widths, round_to)
    if isinstance(network, StagedNetwork):
        raise WrapError(f"this {type(network).__name__} has exits: give the plain network, and put exits on an extract")
    if isinstance(network, nn.Module):
        full = copied(network)
        check_layers(full, (_BatchNorm,))
        classes = _classes(full, example_inputs)
        trees = [narrow(full, example_inputs, share, round_to) for share in shares[:-1]]
    else:
        full, trees = network(shares[-1]), [network(share) for share in shares[:-1]]
        for tree in (*trees, full):
            check_layers(tree, _NORMS)
        classes = _classes(full, example_inputs)
    for share, tree in zip(shares, trees, strict=False):
        count = _classes(tree, example_inputs)
        if count != classes:
            raise WrapError(f"at width {share:g} the network gives {count} classes, at full width {classes}: {_REMEDY}")
        share_weights(full, tree)
    return Slimmable(shares, [*trees, full])


class Slimmable(StagedNetwork):
    """A network at several widths. As a cascade of one backbone, each width starts from the input again.

    Args:
        widths: Rising shares, the last 1.
        networks: The network of each width.
    """

    def __init__(self, widths: Sequence[float], networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.networks = nn.ModuleList(networks)

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """Logits `[B, C]` of each width, narrow first. The arguments are those of the full network."""
        return [primary_logits(network(*args, **kwargs)) for network in self.networks]

    def at(self, width: float) -> nn.Module:
        """The network of one width, which shares the weights. SettingError where there is no such width."""
        if width not in self.widths:
            raise SettingError(f"width {width} is none of {self.widths}: give one of these")
        return self.networks[self.widths.index(width)]

    def extract(self, width: float) -> nn.Module:
        """A plain network of one width that shares nothing."""
        single = deep_copy(self.at(width))
        remember(single, hashes_of(self))
        swap(single, {m: m.plain() for m in single.modules() if isinstance(m, (SlimConv2d, SlimLinear))})
        return single

    @property
    def summed(self) -> TrainingConfig:
        """The `training` of `dynamic.fit` with which the loss is the plain sum over widths (algorithm 1)."""
        return TrainingConfig(exit_weights=(1.0,) * len(self.widths), ramp=False, rescale_gradients=False)

    @property
    def backbone(self) -> nn.Module:
        """The full network."""
        return self.networks[-1]

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        """One stage a width, in evaluation mode. The carry is its logits and the inputs."""
        last = len(self.widths) - 1
        bodies = [_Width(view(network), i == 0, i == last) for i, network in enumerate(self.networks)]
        names = [f"width {width:g}" for width in self.widths]
        return tuple(Stage(name, body, nn.Identity()).eval() for name, body in zip(names, bodies, strict=True))


class _Width(nn.Module):
    def __init__(self, network: nn.Module, first: bool, last: bool) -> None:
        super().__init__()
        self.network, self.first, self.last = network, first, last

    def forward(self, *carry: Tensor) -> tuple[Tensor, ...]:
        inputs = carry if self.first else carry[1:]
        logits = primary_logits(self.network(*inputs))
        return (logits,) if self.last else (logits, *inputs)


class SlimConv2d(nn.Conv2d):
    """The leading channels of `full`, as many as `thin` has."""

    def __init__(self, thin: nn.Conv2d, full: nn.Conv2d) -> None:
        super().__init__(**_conv_options(thin), device="meta")
        self.weight = full.weight
        self.bias = full.bias
        self.train(thin.training)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution of this width."""
        features: Tensor = self._conv_forward(input, *self._own())
        return features

    def plain(self) -> nn.Conv2d:
        """A convolution with a copy of the weights of this width."""
        conv = nn.Conv2d(**_conv_options(self), device=self.weight.device, dtype=self.weight.dtype)
        return _filled(conv, *self._own(), self)

    def _own(self) -> tuple[Tensor, Tensor | None]:
        # some kernels add up in another order where this is not contiguous, other than in an extracted network
        weight = self.weight[: self.out_channels, : self.in_channels // self.groups].contiguous()
        return weight, None if self.bias is None else self.bias[: self.out_channels]


class SlimLinear(nn.Linear):
    """The leading features of `full`, as many as `thin` has."""

    def __init__(self, thin: nn.Linear, full: nn.Linear) -> None:
        super().__init__(thin.in_features, thin.out_features, thin.bias is not None, device="meta")
        self.weight = full.weight
        self.bias = full.bias
        self.train(thin.training)

    def forward(self, input: Tensor) -> Tensor:
        """The linear layer of this width."""
        return F.linear(input, *self._own())

    def plain(self) -> nn.Linear:
        """A linear layer with a copy of the weights of this width."""
        layer = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        return _filled(layer.to(self.weight.device, self.weight.dtype), *self._own(), self)

    def _own(self) -> tuple[Tensor, Tensor | None]:
        weight = self.weight[: self.out_features, : self.in_features].contiguous()
        return weight, None if self.bias is None else self.bias[: self.out_features]


def narrow(network: nn.Module, example_inputs: Batch, width: float, round_to: int) -> nn.Module:
    """A copy with the leading channels of each layer, cut while the example passes: layers take what comes in."""
    thin = copied(network)
    last = _last_layer(network, example_inputs)
    names = {module: name for name, module in thin.named_modules()}
    visited: set[nn.Module] = set()

    def channels(full: int) -> int:
        return min(full, max(1, math.floor(full * width / round_to + 0.5)) * round_to)

    def cut(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module in visited:
            return
        visited.add(module)
        x = args[0] if isinstance(module, BasicBlock) else input_of(args, kwargs)
        if isinstance(module, BasicBlock):  # the padding of its shortcut is a number of its own
            module.new_channels = channels(module.conv2.out_channels) - x.shape[1]
        elif isinstance(module, nn.Conv2d):
            each = module.in_channels // module.groups
            if module.groups > 1 and x.shape[1] % each:
                raise WrapError(
                    f"{names[module]} has groups of {each} channels and would get {x.shape[1]} at width {width:g}: "
                    "give widths, or a round_to, that leave whole groups"
                )
            groups = 1 if module.groups == 1 else x.shape[1] // each
            outs = (
                channels(module.out_channels) if module.groups == 1 else groups * (module.out_channels // module.groups)
            )
            outs = module.out_channels if names[module] == last else outs
            module.in_channels, module.out_channels, module.groups = x.shape[1], outs, groups
            _cut(module, outs, x.shape[1] // groups)
        elif isinstance(module, nn.Linear):
            outs = module.out_features if names[module] == last else channels(module.out_features)
            module.in_features, module.out_features = x.shape[-1], outs
            _cut(module, outs, x.shape[-1])
        elif isinstance(module, _BatchNorm):
            module.num_features = x.shape[1]
            _cut(module, x.shape[1])

    kinds = (nn.Conv2d, nn.Linear, _BatchNorm, BasicBlock)
    hooks = [m.register_forward_pre_hook(cut, with_kwargs=True) for m in thin.modules() if isinstance(m, kinds)]
    try:
        run(thin, example_inputs)
    except InputError as error:
        raise WrapError(
            f"{type(network).__name__} does not run at width {width:g}, {error.__cause__}: {_REMEDY}"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    return thin


def share_weights(full: nn.Module, thin: nn.Module) -> None:
    """Let the layers of `thin` use the leading part of the parameters of `full`. WrapError where they do not fit."""
    own = dict(full.named_modules(remove_duplicate=False))
    replacements: dict[nn.Module, nn.Module] = {}
    for name, module in thin.named_modules():
        wide = own.get(name)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if not isinstance(wide, type(module)) or (wide.bias is None) != (module.bias is None):
            raise WrapError(f"{name} is a {type(module).__name__} at one width and differs at another: {_REMEDY}")
        small, large = module.weight.shape, wide.weight.shape
        if any(a > b for a, b in zip(small, large, strict=True)) or small[2:] != large[2:]:
            raise WrapError(f"{name} has weights {list(small)} at a smaller width and {list(large)} at full: {_REMEDY}")
        if isinstance(module, nn.Conv2d) and isinstance(wide, nn.Conv2d):
            replacements[module] = SlimConv2d(module, wide)
        elif isinstance(module, nn.Linear) and isinstance(wide, nn.Linear):
            replacements[module] = SlimLinear(module, wide)
    swap(thin, replacements)


def check_layers(network: nn.Module, norms: tuple[type[nn.Module], ...]) -> None:
    """WrapError where a module has parameters that cannot be narrowed."""
    wrong = []
    for name, module in network.named_modules():
        is_treated = type(module) in (nn.Conv2d, nn.Linear) or isinstance(module, norms)
        if not is_treated and any(True for _ in module.parameters(recurse=False)):
            wrong.append(f"{name or 'the network itself'} ({type(module).__name__})")
    if wrong:
        more = f" and {len(wrong) - 3} more" if wrong[3:] else ""
        raise WrapError(f"{', '.join(wrong[:3])}{more} cannot be narrowed: {_REMEDY}")


def _classes(network: nn.Module, example_inputs: Batch) -> int:
    logits = primary_logits(run(network, example_inputs))
    if logits.ndim != 2:
        raise InputError(f"{type(network).__name__} gives {list(logits.shape)}: logits [B, C] are needed")
    return logits.shape[1]


def _last_layer(network: nn.Module, example_inputs: Batch) -> str:
    """The name of the convolution or linear layer that runs last: it makes the logits."""
    order: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: order.append(name))
        for name, module in network.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    try:
        run(network, example_inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if not order:
        raise WrapError(f"no convolution or linear layer ran in this {type(network).__name__}: {_REMEDY}")
    return order[-1]


def _cut(module: nn.Module, *sizes: int) -> None:
    """Keep the leading part of every parameter and statistic, in as many dimensions as there are sizes."""
    which = tuple(slice(size) for size in sizes)
    for name, parameter in list(module.named_parameters(recurse=False)):
        part = parameter.detach()[which[: parameter.ndim]].clone()
        setattr(module, name, nn.Parameter(part, requires_grad=parameter.requires_grad))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.ndim:
            setattr(module, name, buffer[which[0]].clone())


def _conv_options(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return {**{name: getattr(conv, name) for name in names}, "bias": conv.bias is not None}


def _filled(layer: Plain, weight: Tensor, bias: Tensor | None, old: nn.Module) -> Plain:
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    layer.train(old.training)
    frozen = not next(old.parameters()).requires_grad
    layer.requires_grad_(not frozen)
    return layer


def _shares(widths: Sequence[float], round_to: int) -> tuple[float, ...]:
    numbers = not isinstance(widths, (str, bool)) and isinstance(widths, Iterable)
    if not numbers or not all(isinstance(w, (int, float)) and not isinstance(w, bool) for w in (*widths,)):
        raise SettingError(f"widths={widths!r}: give rising shares above 0, the last 1, such as (0.25, 0.5, 1.0)")
    shares = tuple(float(width) for width in widths)
    if not shares or shares != tuple(sorted(set(shares))) or shares[-1] != 1 or not shares[0] > 0:
        raise SettingError(f"widths={shares}: give rising shares above 0, the last 1")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise SettingError(f"round_to={round_to!r}: give a whole number from 1")
    return shares
