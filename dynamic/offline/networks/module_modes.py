"""Training and evaluation modes that leave the user's modules as they were."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

_REGISTERED = ("_parameters", "_buffers", "_modules")


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put `module` and everything inside into eval mode. At the end each part has its own mode again."""
    with in_mode(module, training=False):
        yield


@contextmanager
def in_mode(module: nn.Module, training: bool) -> Iterator[None]:
    """Put `module` and everything inside into one mode. At the end each part has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.train(training)  # which users override, to keep batch norm frozen for instance
    try:
        yield
    finally:
        for part, before in modes:
            part.training = before


@dataclass(frozen=True)
class TrainingFlags:
    """What a graph of the train mode has fixed of a module: whether it trains, and its dropout rates by attribute."""

    training: bool
    rates: Mapping[str, float]

    def __str__(self) -> str:
        rates = ", ".join(f"{name}={rate}" for name, rate in self.rates.items())
        return f"training={self.training}" + (f" and {rates}" if rates else "")


def training_flags(module: nn.Module) -> dict[str, TrainingFlags]:
    """Those of each module inside, by name.

    Rates are the `p` of dropout modules and all attributes that are floats and have "drop" in their name, such as
    `attention_dropout` and `drop_prob`.
    """
    return {name: TrainingFlags(part.training, _rates(part)) for name, part in module.named_modules()}


def _rates(part: nn.Module) -> dict[str, float]:
    rates = {n: v for n, v in vars(part).items() if isinstance(v, float) and "drop" in n.lower()}
    return rates | {"p": float(part.p)} if isinstance(part, nn.modules.dropout._DropoutNd) else rates


@contextmanager
def calling_parts() -> Iterator[None]:
    """Attention and encoder layers of torch call their parts, as in an exported graph.

    Else they run fused operators in evaluation mode, which read the weights of the parts and call none.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Whatever the code of `module` does to its attributes and buffers meanwhile is undone at the end."""
    parts = [part for part in module.modules() if not isinstance(part, torch.jit.ScriptModule)]  # compiled: no code
    before = [dict(part.__dict__) for part in parts]
    inner = [{name: dict(part.__dict__[name]) for name in _REGISTERED} for part in parts]
    buffers = [(b, b.clone()) for part in parts for b in part._buffers.values() if b is not None]
    try:
        yield
    finally:
        for part, attributes, registered in zip(parts, before, inner, strict=True):
            part.__dict__.clear()
            part.__dict__.update(attributes)
            for name, members in registered.items():
                part.__dict__[name].clear()  # the same dictionary, since views share it
                part.__dict__[name].update(members)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):  # not its version: batch norm's kernels do not count
                    buffer.copy_(value)


def bare(network: nn.Module) -> nn.Module:
    """The network inside what `torch.compile` and `DataParallel` put around one, or the network itself."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def shallow(module: nn.Module) -> nn.Module:
    """`module` with attributes of its own, whose values are shared. Parametrized modules forbid `copy.copy`."""
    duplicate: nn.Module = object.__new__(type(module))  # a graph module's own `__new__` makes a class without forward
    duplicate.__dict__ = dict(module.__dict__)
    return duplicate


def view(module: nn.Module) -> nn.Module:
    """`module` with the same parameters and buffers, and a training flag of its own."""
    duplicate = shallow(module)
    duplicate._modules = {name: None if child is None else view(child) for name, child in module._modules.items()}
    return duplicate
