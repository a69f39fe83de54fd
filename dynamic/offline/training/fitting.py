"""Training a network of several exits: its heads alone, or everything."""

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.loggers.callbacks import Callback, Callbacks
from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.float_types import check_halves
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_batches import UsedBatches
from dynamic.offline.networks.used_data import remember
from dynamic.offline.option_words import Mode
from dynamic.offline.staged_network import Stage, StagedNetwork, primary_logits
from dynamic.offline.training.configs import DistillationConfig, TrainingConfig
from dynamic.offline.training.exit_accuracy import checked_loader, held_out_levels
from dynamic.offline.training.fit_report import FitReport
from dynamic.offline.training.head_training import HeadFit, fit_heads
from dynamic.offline.training.joint_training import fit_all
from dynamic.offline.training.losses import ExitLoss
from dynamic.offline.training.parallel.processes import Processes
from dynamic.offline.training.settings import Settings, TrainingRun
from dynamic.policies.errors import SettingError, WrapError

logger = logging.getLogger("dynamic")


def fit(
    network: nn.Module,
    train_loader: Iterable[Any],
    *,
    mode: Mode = "heads",
    epochs: int | None = None,
    lr: float | None = None,
    training: TrainingConfig | None = None,
    distillation: DistillationConfig | None = None,
    eval_loader: Iterable[Any] | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
    callbacks: Sequence[Callback] = (),
) -> FitReport:
    """Train the exits of a network, in place.

    A plain network is one exit, its own: "joint" trains it on labels, "distill" on a teacher.

    After an error or an interrupt the network has the weights of that moment, and its train and eval flags are as
    before. The checkpoint holds the last whole epoch.

    Under `torchrun`, modes "joint" and "distill" train in all processes of the group of `torch.distributed`, each with
    batches of its own. The weights are those that one process reaches with the batches of all, but for rounding, since
    sums have another order. Dropout and other random layers draw other numbers than in one process, and so do loaders
    that augment. Batch norms see the rows of all processes, but for networks that only torch.export captures. The first
    process writes the checkpoint. Losses, and hashes of batches, are of all processes.

    The network remembers hashes of the batches that it was trained on. `build` refuses to calibrate with them.

    Args:
        network: With exits, as `wrap` returns it, or plain.
        train_loader: Batches of `(inputs, labels [B])`. Modes "joint" and "distill" read it in every epoch. Mode
            "heads" reads it once, so augmentation is what that one reading gives.
        mode: What is trained, and on what.
            "heads": the backbone is frozen and in evaluation mode. Its features are computed once, and all heads train
            on them together.
            "joint": everything trains on the weighted sum of the exits' losses.
            "distill": as "joint", and early exits learn from the last exit's answer, or all from a teacher.
        epochs: Passes over the data. None: 20.
        lr: Learning rate, which falls as a cosine to 0. None: 0.003 for AdamW, 0.05 for SGD.
        training: Optimizer, loss weights, feature cache and device. None: their defaults.
        distillation: The teacher, and how much comes from it. None: no teacher, and the defaults for mode "distill".
        eval_loader: Batches of `(inputs, labels [B])` that nothing learned from. The report then has the accuracy of
            each exit on them, and a warning is logged for an exit at chance. They choose nothing.
        checkpoint: A file that is replaced after every epoch. Where it exists, training continues from it, and the
            final weights are the same bits as without the interruption. That holds on the same machine, number of
            threads and versions, with a loader whose randomness comes from torch, numpy, `random` or its generators.
        seed: Of all random numbers. The global generators are as before afterwards.
        progress: Whether a progress bar is shown. None: in a terminal.
        callbacks: What is called at the start, after every epoch and at the end, such as `dynamic.MLflowLogger`.

    Returns:
        Losses and accuracies of each exit, where training ran and how long it took.

    Raises:
        SettingError: A setting is out of range, or the loss is not finite.
        InputError: The data or the teacher do not fit the network.
        WrapError: There is nothing to train, or the backbone cannot be trained.
        CorruptError: The checkpoint is damaged.
        BundleError: The checkpoint is of another network or of other settings.

    Example:
        >>> report = dynamic.fit(net, train_loader, mode="heads", epochs=2, eval_loader=eval_loader, progress=False)
        >>> report.epochs, [level.stage for level in report.held_out]
        (2, ['1', 'last'])
    """
    begin = time.perf_counter()
    training, distillation = training or TrainingConfig(), distillation or DistillationConfig()
    settings = Settings.of(mode, epochs, lr, training, seed)
    network = _trainable(network, mode, training, distillation)
    acceleration = Acceleration.choose(network, training.device, training.autocast, training.channels_last)
    used_batches = UsedBatches()
    processes = Processes.of_group()
    listeners = Callbacks(callbacks if processes.is_first else ())
    if processes.count > 1 and mode == "heads":
        raise SettingError(
            f"mode='heads' trains in one process, and there are {processes.count}: start one, or use mode='joint'"
        )
    run = TrainingRun(
        network,
        train_loader,
        settings,
        training,
        acceleration,
        checkpoint,
        progress if processes.is_first else False,
        used_batches,
        listeners,
        processes,
    )
    teacher = distillation.teacher
    try:
        with listeners.running("on_fit_start", vars(settings)), evaluating(network), _placed(network, acceleration):
            if eval_loader is not None:
                eval_loader = checked_loader(network, eval_loader)
            with _teaching(teacher, acceleration):
                if mode == "heads":
                    result = fit_heads(run, _head_loss(training, distillation), teacher)
                else:
                    loss = _joint_loss(mode, training, distillation, len(network.exit_stages))
                    names = tuple(stage.name for stage in network.exit_stages)
                    result = HeadFit(names, fit_all(run, loss, teacher), 0.0, False)
            used_batches.complete(train_loader, seed)
            used_batches.hashes = processes.union(used_batches.hashes)
            held_out = () if eval_loader is None else held_out_levels(network, eval_loader)
    finally:
        if used_batches.is_training:
            _remember(network, mode, used_batches)
    for level in held_out:
        if level.at_chance:
            logger.warning("%s: it is at chance after training", level)
    report = FitReport(
        mode=mode,
        exits=result.exits,
        loss=result.history.loss[-1],
        accuracy=result.history.accuracy[-1],
        history_loss=result.history.loss,
        history_accuracy=result.history.accuracy,
        epochs=settings.epochs,
        resumed=result.history.resumed,
        seconds=time.perf_counter() - begin,
        device=str(acceleration.device),
        bf16=acceleration.bf16,
        channels_last=acceleration.channels_last,
        features_mb=result.features_mb,
        features_on_disk=result.features_on_disk,
        held_out=held_out,
    )
    listeners.call("on_fit_end", report)
    return report


def _trainable(
    network: nn.Module, mode: Mode, training: TrainingConfig, distillation: DistillationConfig
) -> StagedNetwork:
    """The network as one of exits. Raises SettingError, WrapError or InputError where the mode cannot train it."""
    teacher = distillation.teacher
    if training.penalty is not None and mode == "heads":
        raise SettingError("a penalty means nothing with mode='heads'. Use mode='joint', or leave it")
    if training.exit_weights is not None and mode == "heads":
        raise SettingError("exit_weights mean nothing with mode='heads', whose heads share no weight. Leave it")
    if teacher is not None and mode == "joint":
        raise SettingError("a teacher means nothing with mode='joint'. Use mode='distill', or leave it")
    if not isinstance(network, StagedNetwork):
        kind = type(network).__name__
        if mode == "heads":
            raise WrapError(f"fit got a {kind} without exits. Call dynamic.wrap on it first")
        if mode == "distill" and teacher is None:
            raise WrapError(
                f"this {kind} has no exits to teach: give distillation=DistillationConfig(teacher=...), "
                "or use mode='joint'"
            )
        network = _Plain(network)
    if mode != "heads" and not getattr(network, "trainable_backbone", True):
        why = getattr(network, "why_not_trainable", None) or "it is for evaluation only"
        raise WrapError(
            f"mode={mode!r} cannot train the backbone of this {type(network).__name__}: {why}. Use mode='heads'"
        )
    check_halves(network)
    if teacher is not None:
        check_halves(teacher)
    return network


def _head_loss(training: TrainingConfig, distillation: DistillationConfig) -> ExitLoss | None:
    """What heads learn beside labels, where there is a teacher."""
    if distillation.teacher is None:
        return None
    return ExitLoss((1.0,), False, distillation.share, distillation.temperature, training.label_smoothing)


def _joint_loss(mode: Mode, training: TrainingConfig, distillation: DistillationConfig, exits: int) -> ExitLoss:
    """The loss of modes "joint" and "distill"."""
    weights = _exit_weights(training.exit_weights, exits)
    share = distillation.share if mode == "distill" else 0.0
    ramp = True if training.ramp is None else training.ramp
    return ExitLoss(weights, ramp, share, distillation.temperature, training.label_smoothing)


def _remember(network: StagedNetwork, mode: Mode, used_batches: UsedBatches) -> None:
    """Write the hashes of the batches to what was trained: the network of exits, and its backbone where that moved."""
    if not isinstance(network, _Plain):
        remember(network, used_batches.hashes)
    backbone = getattr(network, "backbone", None)
    if mode != "heads" and isinstance(backbone, nn.Module):
        remember(backbone, used_batches.hashes)


def _exit_weights(weights: Sequence[float] | None, exits: int) -> tuple[float, ...]:
    if weights is None:
        return tuple((i + 1) / exits for i in range(exits))
    if len(weights) != exits:
        raise SettingError(f"{len(weights)} exit_weights for {exits} exits. Give one each, the network's own included")
    return tuple(float(w) for w in weights)


class _Plain(StagedNetwork):
    """A network as its own only exit."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        return (Stage("last", self.backbone, nn.Identity()),)

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        return [primary_logits(self.backbone(*args, **kwargs))]


@contextmanager
def _teaching(teacher: nn.Module | None, acceleration: Acceleration) -> Iterator[None]:
    """A teacher on the device and in evaluation mode. Afterwards it is as before."""
    if teacher is None:
        yield
        return
    with evaluating(teacher), _placed(teacher, acceleration):
        yield


@contextmanager
def _placed(network: nn.Module, acceleration: Acceleration) -> Iterator[None]:
    """The network on the device and in the memory order of training. Afterwards it is as before."""
    first = next(network.parameters(), None)
    before = acceleration.device if first is None else first.device
    network.to(acceleration.device)
    turned = acceleration.channels_last and all(p.is_contiguous() for p in network.parameters() if p.ndim == 4)
    if turned:
        network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        if turned:
            network.to(memory_format=torch.contiguous_format)
        network.to(before)
