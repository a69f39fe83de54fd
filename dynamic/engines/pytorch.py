"""torch, eager or compiled, on the CPU or a CUDA device: the reference, and the engine of networks without export."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.forking import forget_after_fork
from dynamic.policies.errors import EngineError


class TorchExecutor:
    """Stages as torch modules, each with `body` and `head`, under inference mode. See `TorchOptions` for the options.

    A forked child computes eagerly on one thread: it has none of the parent's threads, and OpenMP would wait for them.
    This holds for the CPU. CUDA survives no fork.
    """

    name = "torch"
    precision = "f32"

    def __init__(
        self,
        stages: Sequence[Any],
        spec: CascadeSpec,
        device: str = "cpu",
        compile: bool = False,
        threads: int | None = None,
    ) -> None:
        if len(stages) != len(spec.stages):
            raise EngineError(f"{len(stages)} torch stages given: the cascade has {len(spec.stages)}")
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads()
        try:
            self._device = torch.device(device)
            torch.empty(0, device=self._device)
        except (RuntimeError, AssertionError) as error:
            raise EngineError(f"device={device!r} cannot be used by torch: {error}") from error
        self._names = [s.name for s in spec.stages]
        self._inputs, self._backbones = [i.name for i in spec.inputs], spec.backbones
        for stage in stages:
            stage.body.eval(), stage.head.eval()
        self._modules = [(s.body, s.head) for s in stages]
        self._stages = [(_ready(body, compile), _ready(head, compile)) for body, head in self._modules]
        forget_after_fork(self)

    def load(self, backbones: Sequence[int]) -> None:
        """Do nothing: the modules are the caller's and remain in memory."""

    def unload(self, backbones: Sequence[int]) -> bool:
        """Do nothing: the modules are the caller's and remain in memory."""
        return False

    def loaded(self) -> frozenset[int]:
        """All backbones, always."""
        return frozenset(self._backbones)

    def start(self, inputs: Mapping[str, Array]) -> tuple[Tensor, ...]:
        """The inputs as tensors on the device."""
        return tuple(torch.from_numpy(np.ascontiguousarray(inputs[n])).to(self._device) for n in self._inputs)

    def step(
        self, stage: int, carry: tuple[Tensor, ...], head: bool
    ) -> tuple[NDArray[np.float32] | None, tuple[Tensor, ...]]:
        """Run one stage. Raises EngineError with the stage's name where torch fails."""
        body, classify = self._stages[stage]
        try:
            with torch.inference_mode():
                state = body(*carry)
                logits = classify(state[0]) if head else None
        except RuntimeError as error:
            raise EngineError(f"torch failed in stage {self._names[stage]!r}: {error}") from error
        return (None if logits is None else logits.float().cpu().numpy()), state

    def keep(self, carry: tuple[Tensor, ...], rows: NDArray[np.intp]) -> tuple[Tensor, ...]:
        """The carry of these rows alone."""
        index = torch.from_numpy(rows).to(self._device)
        with torch.inference_mode():
            return tuple(tensor.index_select(0, index) for tensor in carry)

    def to_arrays(self, carry: tuple[Tensor, ...]) -> list[Array]:
        """The tensors in memory of the processor."""
        return [tensor.detach().cpu().numpy() for tensor in carry]

    def from_arrays(self, arrays: Sequence[Array]) -> tuple[Tensor, ...]:
        """The arrays as tensors on the device."""
        return tuple(torch.from_numpy(np.ascontiguousarray(array)).to(self._device) for array in arrays)

    def forget(self) -> Any:
        """Reset the threads, and compiled code, which contains their number."""
        torch.set_num_threads(1)
        self.threads = 1
        lost, self._stages = self._stages, list(self._modules)
        return lost

    def close(self) -> None:
        """Do nothing: every module is the caller's."""


def _ready(module: nn.Module, compiled: bool) -> Callable[..., Any]:
    # the number of rows is free, since rows exit. torch still compiles again for one row
    return torch.compile(module, dynamic=None) if compiled and not isinstance(module, nn.Identity) else module
