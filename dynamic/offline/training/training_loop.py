"""The training loop: epochs that can be repeated bit for bit, checkpoints between them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol

import torch
from torch import Tensor

from dynamic.offline.networks.checkpoints import Checkpoint
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.offline.training.losses import GradientBalance
from dynamic.offline.training.parallel.processes import Processes
from dynamic.policies.errors import InputError, SettingError
from dynamic.progress import track

_ELSEWHERE = "the loss of another process is not finite. It says why"


class Loss(Protocol):
    """What training brings down: a loss for each exit, weighted by how much of the run is done."""

    def weights_at(self, fraction: float) -> tuple[float, ...]:
        """The weights `[S]` when `fraction` (0 to 1) of the run is done."""

    def __call__(self, logits: Sequence[Tensor], labels: Tensor, taught: Tensor | None = None) -> Tensor:
        """Each exit's own loss, unweighted `[S]`. `taught [B, C]` are the logits of a teacher, where there is one."""


@dataclass(frozen=True)
class Task:
    """What is trained. `batches()` gives an epoch of (inputs of `forward`, labels [B]), on the device.

    `forward` gives the logits `[B, C]` of each trained exit. `state` is all that training changes, by name.
    `steps` an epoch, None where not known. `loader` is what draws random numbers besides torch's own. `teacher` gives
    the logits `[B, C]` that another network has for the same inputs. `penalty` is called after `forward`, and
    its value is added to the loss. `processes` train together, each with batches of its own, and with `in_step` each
    needs one in every step.
    """

    batches: Callable[[], Iterator[tuple[Sequence[Tensor], Tensor]]]
    forward: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    loss: Loss
    state: Mapping[str, Tensor]
    steps: int | None = None
    balance: GradientBalance | None = None
    loader: Any = None
    teacher: Callable[[Sequence[Tensor]], Tensor] | None = None
    penalty: Callable[[], Tensor] | None = None
    processes: Processes = field(default_factory=Processes)
    in_step: bool = False


@dataclass(frozen=True)
class History:
    """Mean loss and accuracy `[S]` over each epoch, while the weights moved. `resumed` epochs came from a file."""

    loss: tuple[tuple[float, ...], ...]
    accuracy: tuple[tuple[float, ...], ...]
    resumed: int


@dataclass
class _Sums:
    samples: int = 0
    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    history: dict[str, list[list[float]]] = field(default_factory=lambda: {"loss": [], "accuracy": []})

    def add(self, losses: Tensor, logits: Sequence[Tensor], labels: Tensor) -> None:
        right = torch.stack([(x.argmax(1) == labels).sum() for x in logits])
        self.loss = self.loss + losses.detach().double() * len(labels)
        self.correct = self.correct + right
        self.samples += len(labels)

    def close(self, processes: Processes) -> None:
        if not self.samples:
            raise InputError("the loader gave no batch this epoch. Give one that can be iterated again and again")
        samples = float(processes.total(torch.as_tensor(float(self.samples))))
        for name, own in (("loss", self.loss), ("accuracy", self.correct)):
            total = processes.total(torch.as_tensor(own).double())
            self.history[name].append([float(x) / samples for x in total])
        self.samples, self.loss, self.correct = 0, 0.0, 0.0


def train(
    task: Task,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    seed: int,
    checkpoint: Checkpoint,
    shown: bool | None,
    report: Callable[[int, Sequence[float], Sequence[float]], None],
) -> History:
    """Train until `epochs` are done, from the state of `checkpoint`. The learning rate falls as a cosine to 0.

    `report` is called after every epoch, with its number from 1, and loss and accuracy `[S]`.

    Raises SettingError where the loss is no longer finite, InputError where the inputs are not. Then, and
    when interrupted, the checkpoint holds the end of the last whole epoch.
    """
    sums = _Sums()
    progress = checkpoint.load(task.state, optimizer)
    start = 0
    if progress is not None:
        start, sums.history = progress["epoch"], progress["history"]
    processes = task.processes
    processes.check_same(start, "the epoch that the checkpoint holds, which has to lie on a disk that they share,")
    processes.share(task.state.values())
    rates = [group["lr"] for group in optimizer.param_groups]
    total = None if task.steps is None else task.steps * (epochs - start)
    bar = track(range(total) if total is not None else count(), "training", total, shown)
    for epoch in range(start, epochs):
        with seeded(seed, epoch, task.loader, processes.rank):
            for step, batch in enumerate(processes.in_step(task.batches(), task.in_step)):
                done = min(1.0, (epoch + (step / task.steps if task.steps else 0.0)) / epochs)
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2  # Loshchilov, Hutter 2017, eq. 5
                where = f"epoch {epoch + 1} of {epochs}, step {step + 1}"
                if batch is None:
                    _empty_step(task, optimizer, done)
                else:
                    sums.add(*_step(task, optimizer, *batch, done, where, checkpoint))
                next(bar, None)
        sums.close(processes)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        processes.share(task.state.values())  # parameters are the same already, statistics of batch norms are not
        if processes.is_first:
            checkpoint.save(task.state, optimizer, {"epoch": epoch + 1, "history": sums.history})
        report(epoch + 1, sums.history["loss"][-1], sums.history["accuracy"][-1])
    next(bar, None)  # ends the bar
    loss, accuracy = (tuple(tuple(row) for row in sums.history[name]) for name in ("loss", "accuracy"))
    return History(loss, accuracy, start)


def _step(
    task: Task,
    optimizer: torch.optim.Optimizer,
    inputs: Sequence[Tensor],
    labels: Tensor,
    done: float,
    where: str,
    checkpoint: Checkpoint,
) -> tuple[Tensor, Sequence[Tensor], Tensor]:
    weights = task.loss.weights_at(done)
    taught = None if task.teacher is None else task.teacher(inputs)
    logits = task.forward(inputs)
    losses = task.loss(logits, labels, taught)
    total = (losses * losses.new_tensor(weights)).sum()
    if task.penalty is not None:
        total = total + task.penalty()
    is_finite = math.isfinite(total.item())
    rows, all_finite = task.processes.rows_of_step(len(labels), is_finite)
    if is_finite and not all_finite:
        raise SettingError(_ELSEWHERE)
    if not is_finite:
        remark = "" if checkpoint.path is None else f" ({checkpoint.path} holds the epoch before)"
        # heads get the teacher's answer among their inputs: it is checked below
        own = [x for x in inputs if x is not taught and x.is_floating_point()]
        if not all(bool(x.isfinite().all()) for x in own):
            raise InputError(f"{where}: the inputs hold NaN or infinity. Clean the data{remark}")
        if taught is not None and not bool(taught.isfinite().all()):
            raise InputError(f"{where}: the teacher's logits hold NaN or infinity. Give another teacher{remark}")
        raise SettingError(f"{where}: the loss is {total.item()}. Give a smaller lr, or autocast=False{remark}")
    optimizer.zero_grad(set_to_none=True)
    mean = total if rows == len(labels) else total * (len(labels) / rows)  # over the rows of all processes
    mean.backward()  # type: ignore[no-untyped-call]
    _move(task, optimizer, weights)
    return losses, logits, labels


def _empty_step(task: Task, optimizer: torch.optim.Optimizer, done: float) -> None:
    """A step with the rows of other processes alone."""
    _, all_finite = task.processes.rows_of_step(0, is_finite=True)
    if not all_finite:
        raise SettingError(_ELSEWHERE)
    optimizer.zero_grad(set_to_none=True)
    _move(task, optimizer, task.loss.weights_at(done))


def _move(task: Task, optimizer: torch.optim.Optimizer, weights: Sequence[float]) -> None:
    """Move the weights by the gradients of all processes."""
    task.processes.add_gradients([p for group in optimizer.param_groups for p in group["params"]])
    if task.balance is not None:
        task.balance(weights)
    optimizer.step()
