"""The processes that train one network together, as `torchrun` starts them. Without a group it is this one alone."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from dynamic.policies.errors import SettingError

T = TypeVar("T")


class Processes:
    """Keeps the weights of all processes the same: the loss of a step is the mean over the rows of all of them.

    That is data parallelism as of Goyal et al. 2017, "Accurate, Large Minibatch SGD", section 3, with one difference.
    Processes may have batches of different sizes, and no row counts more than another. So the weights are those that
    one process reaches with the batches of all, but for the rounding of sums and what random layers draw.

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

    def in_step(self, batches: Iterable[T], together: bool) -> Iterator[T | None]:
        """The batches, and None where this process has no more while another has.

        Args:
            batches: Of this process.
            together: Whether every process needs a batch in every step.

        Yields:
            A batch for each step of any process.

        Raises:
            SettingError: One has more batches than another, and they are needed together.
        """
        if self.count == 1:
            yield from batches
            return
        iterator = iter(batches)
        while True:
            batch = next(iterator, None)
            has = float(batch is not None)
            if not self.most(has):
                return
            if together and self.most(-has) == 0.0:
                raise SettingError(
                    "some processes have more batches than others, and batch norms need the rows of all in every step: "
                    "give each as many, as a DistributedSampler does"
                )
            yield batch

    def most(self, number: float) -> float:
        """The largest number that a process gives."""
        if self.count == 1:
            return number
        most = torch.tensor(number, dtype=torch.float64, device=self._device)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        return float(most)

    def rows_of_step(self, rows: int, is_finite: bool) -> tuple[int, bool]:
        """(the rows of all processes, whether all losses are finite).

        Args:
            rows: Of this process. 0: it has no batch.
            is_finite: Whether its own loss is.

        Returns:
            Both.
        """
        if self.count == 1:
            return rows, is_finite
        both = self.total(torch.tensor([float(rows), float(not is_finite)], dtype=torch.float64))
        return int(both[0]), not both[1]

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Put the sum of the gradients of all processes into the parameters.

        A parameter without a gradient in any process keeps none, so that no optimizer moves it.

        Args:
            parameters: The parameters, in the same order everywhere.
        """
        if self.count == 1:
            return
        kind = torch.float64 if any(p.dtype == torch.float64 for p in parameters) else torch.float32
        presence = torch.tensor(
            [float(p.grad is not None) for p in parameters], device=parameters[0].device, dtype=kind
        )
        parts = [presence.new_zeros(p.numel()) if p.grad is None else p.grad.reshape(-1).to(kind) for p in parameters]
        flat = torch.cat([*parts, presence])
        distributed.all_reduce(flat)
        start = 0
        for parameter, have in zip(parameters, flat[-len(parameters) :].tolist(), strict=True):
            end = start + parameter.numel()
            if have:
                parameter.grad = flat[start:end].to(parameter.dtype).reshape(parameter.shape)
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
