"""Multiply-adds, counted on the running network. What cannot be counted is listed, and never stops the run."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from dynamic.offline.networks.module_modes import calling_parts

logger = logging.getLogger("dynamic")

# moving, reading and making tensors multiplies nothing: not worth a line in the report
_FREE = (
    "view", "reshape", "permute", "transpose", "expand", "slice", "select", "cat", "split", "chunk", "unbind",
    "clone", "copy", "empty", "zeros", "ones", "full", "alias", "detach", "squeeze", "unsqueeze", "flatten",
    "size", "stride", "numel", "contiguous", "to", "lift", "arange", "constant_pad", "roll", "index", "t", "stack",
)  # fmt: skip


def _recurrent(x: Any, weight: Any, recurrent: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Of one direction of one recurrent layer: `x [T, B, D]` times both weight matrices, at each step."""
    return int(2 * x[0] * x[1] * (weight[0] * weight[1] + recurrent[0] * recurrent[1]))


def _attention(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """Of scores `[B, H, N, M]` and their sums of `value [B, H, M, V]`."""
    batch, heads, positions, size = query
    return int(2 * batch * heads * positions * key[2] * (size + value[3]))


# torch's own counter has neither recurrent layers nor the operator that computes attention on a CPU
FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten.mkldnn_rnn_layer: _recurrent,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
}


# a multiply-add of 8 bits beside one of 32: ResNet-18, 20 and 56 took 0.30 to 0.64 of the time on ONNX Runtime and
# OpenVINO (benchmarks/compress/compress_int8.py)
_ROUNDED_COST = 0.5


# of the largest logit, between two runs of such a network: a value between two codes may fall to either side
ROUNDED_LIMIT = 0.15

_CODES = "dequantize_per_channel"  # gives a weight from int8 codes, see `compress/quantization/int8_arithmetic.py`
_VIEWS = ("t", "transpose", "permute", "view", "reshape", "expand", "unsqueeze")  # of a weight, on its way to a product


def rounds(module: nn.Module) -> bool:
    """Whether something in it computes in fewer bits, as `dynamic.models.compress.quantize` makes it."""
    return any(getattr(m, "rounds", False) for m in module.modules())


def cost_macs(module: nn.Module, args: tuple[Tensor, ...]) -> float:
    """Multiply-adds for one input, those with int8 weights at half: what a search goes by without a device."""
    macs = count_macs(module, args)
    return macs.total - (1 - _ROUNDED_COST) * macs.rounded


@dataclass(frozen=True)
class Macs:
    """Multiply-adds for one input, and the operators that ran without being counted. `rounded`: with int8 weights."""

    total: float
    not_counted: tuple[str, ...]
    rounded: float = 0.0


def count_macs(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any] | None = None) -> Macs:
    """Multiply-adds of `module(*args, **kwargs)` divided by the batch: convolutions, linear layers, attention.

    Normalization, activations, pooling and other elementwise work are not multiply-adds and are listed instead.
    """
    keywords = kwargs or {}
    batch = next((len(a) for a in (*args, *keywords.values()) if isinstance(a, Tensor) and a.ndim), 1)
    counter, operators = Counter(), _Operators()
    try:
        with counting(counter), operators:
            module(*args, **keywords)
    except Exception as error:  # an operator that supports no dispatch mode may raise anything
        with torch.no_grad():
            module(*args, **keywords)  # where the network itself is at fault, its own error comes
        name, reason = type(module).__name__, (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning("the multiply-adds of %s are counted in part only: %s", name, reason)
        operators.uncounted.add(f"{name} in part: {reason}")
    macs = counter.get_total_flops() / 2 / batch
    return Macs(macs, tuple(sorted(operators.uncounted | counter.failed)), operators.rounded / 2 / batch)


@dataclass(frozen=True)
class Shares:
    """Shares of the multiply-adds of a network, 0 to 1.

    `convolutions`: of all convolutions. `parts`: of each module with a weight matrix or kernel of its own, without the
    modules inside it.
    """

    convolutions: float
    parts: Mapping[str, float]


def share_macs(module: nn.Module, args: tuple[Tensor, ...], kwargs: Mapping[str, Any]) -> Shares:
    """The shares of `module(*args, **kwargs)`. A network whose operators support no counting has none."""
    counter, own = Counter(), dict[str, float]()
    started, inner = list[float](), list[float]()  # of the modules that run now

    def enter(*_: Any) -> None:
        inner.append(0.0)
        started.append(counter.get_total_flops())

    def leave(name: str) -> None:
        total = counter.get_total_flops() - started.pop()
        own[name] = own.get(name, 0.0) + total - inner.pop()
        if inner:
            inner[-1] += total

    with ExitStack() as hooks:
        for name, part in module.named_modules():
            if any(p.ndim > 1 for p in part.parameters(recurse=False)):
                handles = (
                    part.register_forward_pre_hook(enter),
                    part.register_forward_hook(lambda *_, name=name: leave(name)),
                )
                for handle in handles:
                    hooks.callback(handle.remove)
        try:
            with counting(counter):
                module(*args, **kwargs)
        except Exception:  # an operator that supports no dispatch mode may raise anything
            return Shares(0.0, {})
    total = counter.get_total_flops()
    if not total:
        return Shares(0.0, {})
    convolutions = counter.get_flop_counts().get("Global", {}).get(torch.ops.aten.convolution, 0)
    return Shares(convolutions / total, {name: flops / total for name, flops in own.items()})


class Counter(FlopCounterMode):
    """torch's counter without its tracker of modules, which fails on a view of a parameter under `no_grad`.

    `failed`: operators whose formula raised. They count as 0.
    """

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=FLOPS)
        self.failed: set[str] = set()
        self.mod_tracker: Any = _Whole()
        self.flop_registry = {operator: self._safe(formula) for operator, formula in self.flop_registry.items()}

    def _safe(self, formula: Callable[..., int]) -> Callable[..., int]:
        def counted(*args: Any, **kwargs: Any) -> int:
            try:
                return formula(*args, **kwargs)
            except Exception:  # a formula asserts shapes, on sparse or nested tensors for one
                self.failed.add(getattr(formula, "__name__", "an operator").removesuffix("_flop"))
                return 0

        return counted


class _Whole:
    """Stands in for the tracker of modules: everything belongs to the whole network."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        return None

    def __exit__(self, *_: object) -> None:
        return None


@contextmanager
def counting(counter: Counter) -> Iterator[None]:
    """Count what runs inside, without gradients, and attention in the operators that the counter has formulas for."""
    with calling_parts(), torch.no_grad(), counter:  # the counter has no formula for a fused operator
        yield


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every operator that the counter has no formula for, and the work with weights that came out of int8 codes."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.uncounted: set[str] = set()
        self.rounded = 0
        self._weights: list[Tensor] = []  # held, so that no later tensor has the same identity

    supports_higher_order_operators = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", func)  # a higher-order operator has no overloads
        name = packet.__name__.strip("_")
        if (
            packet not in flop_registry
            and packet not in FLOPS
            and not any(name == f or name.startswith(f"{f}_") for f in _FREE)
        ):
            self.uncounted.add(name)
        result = func(*args, **(kwargs or {}))
        coded = any(arg is weight for arg in args for weight in self._weights if isinstance(arg, Tensor))
        if name == _CODES or (coded and name in _VIEWS):
            self._weights.append(result)
        elif coded and packet in flop_registry:
            self.rounded += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result
