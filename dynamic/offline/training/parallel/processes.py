"""The processes that train one network together, as `torchrun` starts them. Without a group it is this one alone."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from dynamic.policies.errors import SettingError

T = TypeVar("T")


class Processes:
    """Keeps the weights of all processes the same: gradients are their mean over all rows of a step.

    That is data parallelism as of Goyal et al. 2017, section 3, with one difference: processes may have batches of
    different sizes, or fewer of them, and no row counts more than another. So the weights are those that one process
    reaches with the batches of all, but for the rounding of sums. Batch norms see the rows of their own process.

    Args:
        rank: The number of this process.
        count: How many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @classmethod
    def of_group(cls) -> "Processes":
        """Those of the process group of torch.

        Raises:
            SettingError: `torchrun` has started several processes, and there is no group of them yet.
        """
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        started = os.environ.get("WORLD_SIZE", "1")
        if started.isdecimal() and int(started) > 1:
            raise SettingError(
                f"torchrun started {started} processes (WORLD_SIZE) and they have no group: call "
                "torch.distributed.init_process_group('gloo') before fit, 'nccl' on GPUs, or unset WORLD_SIZE"
            )
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and shows progress."""
        return self.rank == 0

    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the tensors of the first."""
        if self.count == 1:
            return
        with torch.no_grad():
            for tensor in tensors:
                whole = tensor.contiguous()  # channels_last is not
                distributed.broadcast(whole, src=0)
                if whole is not tensor:
                    tensor.copy_(whole)

    def check_same(self, number: int, what: str) -> None:
        """Raises SettingError in all processes where a number is not the same in all."""
        if self.most(number) != -self.most(-number):
            raise SettingError(f"{what} is not the same in all {self.count} processes, here {number}")

    def in_step(self, batches: Iterable[T]) -> Iterator[T | None]:
        """The batches, and None where this process has no more while another has."""
        if self.count == 1:
            yield from batches
            return
        iterator = iter(batches)
        while True:
            batch = next(iterator, None)
            if not self.most(float(batch is not None)):
                return
            yield batch

    def most(self, number: float) -> float:
        """The largest number that a process gives."""
        if self.count == 1:
            return number
        most = torch.tensor(number, dtype=torch.float64, device=self._device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        return float(most)

    def average(self, parameters: Sequence[nn.Parameter], rows: int) -> None:
        """Put the mean of the gradients over all rows into the parameters.

        A parameter without a gradient in any process keeps none, so that no optimizer moves it.

        Args:
            parameters: The parameters, in the same order everywhere.
            rows: Of the batch of this process. 0: it has none.
        """
        if self.count == 1:
            return
        device, kind = parameters[0].device, torch.float32
        found = torch.tensor([float(p.grad is not None) for p in parameters], device=device)
        parts = [torch.zeros(p.numel(), device=device) if p.grad is None else p.grad.reshape(-1) for p in parameters]
        flat = torch.cat([*(part.to(kind) * rows for part in parts), found, found.new_tensor([float(rows)])])
        distributed.all_reduce(flat)
        counts = flat[-1 - len(parameters) :]
        start, total = 0, counts[-1]
        for parameter, have in zip(parameters, counts[:-1].tolist(), strict=True):
            end = start + parameter.numel()
            if have:
                mean = (flat[start:end] / total).to(parameter.dtype)
                parameter.grad = mean.reshape(parameter.shape)
            start = end

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.count == 1:
            return tensor
        summed = tensor.detach().clone().to(self._device)
        distributed.all_reduce(summed)
        return summed

    def union(self, items: Iterable[T]) -> set[T]:
        """What any process has."""
        own = set(items)
        if self.count == 1:
            return own
        each: list[Any] = [None] * self.count
        distributed.all_gather_object(each, own)
        return set().union(*each)

    @property
    def _device(self) -> torch.device:
        """Where the group exchanges tensors."""
        on_gpu = distributed.get_backend() == "nccl"
        return torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
