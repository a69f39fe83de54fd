"""Training a network of several exits: its heads alone, or everything."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.networks.float_types import check_halves
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.staged_network import Stage, StagedNetwork, primary_logits
from dynamic.offline.training.acceleration import Acceleration
from dynamic.offline.training.exit_accuracy import checked_loader, held_out_levels
from dynamic.offline.training.head_training import HeadFit, fit_heads
from dynamic.offline.training.joint_training import fit_all
from dynamic.offline.training.losses import ExitLoss
from dynamic.offline.training.settings import Settings
from dynamic.policies.certification.floor import Level
from dynamic.policies.errors import InputError, SettingError, WrapError

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class FitReport:
    """What training did. `loss` and `accuracy` `[S]` of the trained `exits` are means over the last epoch, on
    training data, while the weights moved: no estimate of accuracy on new data. `history_loss` and
    `history_accuracy` are those of each epoch `[epochs, S]`. `resumed` epochs came from the checkpoint.
    `features_mb` is 0 where none were kept. `held_out`: how often each exit of the network is right on `eval_loader`,
    beside chance; empty without one.
    """

    mode: str
    exits: tuple[str, ...]
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    history_loss: tuple[tuple[float, ...], ...]
    history_accuracy: tuple[tuple[float, ...], ...]
    epochs: int
    resumed: int
    seconds: float
    device: str
    bf16: bool
    channels_last: bool
    features_mb: float
    features_on_disk: bool
    held_out: tuple[Level, ...] = ()

    def __str__(self) -> str:
        how = f"{self.device}, {'bf16' if self.bf16 else 'f32'}{', channels last' if self.channels_last else ''}"
        head = f"{self.mode}: {self.epochs} epochs ({self.resumed} resumed), {self.seconds:.1f} s on {how}"
        if self.features_mb:
            head += f"; features {self.features_mb:.1f} MB {'on disk' if self.features_on_disk else 'in memory'}"
        rows = zip(self.exits, self.loss, self.accuracy, strict=True)
        known = {level.stage: level for level in self.held_out}
        lines = [
            f"  {name}: loss {x:.4f}, {_held_out(known.pop(name, None))}training accuracy {a:.4f}"
            for name, x, a in rows
        ]
        lines += [f"  {name}: not trained, {_held_out(level).removesuffix(', ')}" for name, level in known.items()]
        if not self.held_out:
            lines.append(
                "  training accuracy is of data that exits learned from: give eval_loader for held-out accuracy"
            )
        return "\n".join([head, *lines])


def _held_out(level: Level | None) -> str:
    if level is None:
        return ""
    chance = f" (AT CHANCE, {level.chance:.4f})" if level.at_chance else ""
    return f"held-out accuracy {level.right:.4f} of {level.count}{chance}, "


def fit(
    network: nn.Module,
    train_loader: Iterable[Any],
    mode: str = "heads",
    *,
    teacher: nn.Module | None = None,
    penalty: Callable[[], Tensor] | None = None,
    epochs: int | None = None,
    lr: float | None = None,
    weight_decay: float | None = None,
    label_smoothing: float = 0.0,
    optimizer: str | None = None,
    batch_size: int | None = None,
    exit_weights: Sequence[float] | None = None,
    ramp: bool | None = None,
    rescale_gradients: bool = True,
    temperature: float = 3.0,
    distill_share: float = 0.5,
    seed: int = 0,
    device: torch.device | str | None = None,
    checkpoint: str | Path | None = None,
    memory_limit_mb: float = 1024,
    cache: bool = True,
    cache_dir: str | Path | None = None,
    autocast: bool | None = None,
    channels_last: bool | None = None,
    progress: bool | None = None,
    eval_loader: Iterable[Any] | None = None,
) -> FitReport:
    """Train the exits of `network`, in place, on a loader of `(inputs, labels [B])`.

    A plain network is one exit, its own: "joint" trains it on labels, "distill" on a teacher. `mode`:

    - "heads": the backbone is frozen and in evaluation mode: none of its weights and statistics moves. The
      loader is read once; what the heads see is kept (in memory, or beyond `memory_limit_mb` in files in
      `cache_dir`) and all heads train on it together, in batches of `batch_size`. Augmentation is what that one
      reading gives: a loader that passes several times over the data gives more. With `cache=False` nothing is kept:
      the loader is read, and the backbone run, in every epoch; for heads that see large features, as `ConvHead` and
      `BlockHead` do. Then heads can learn from a `teacher` too, by `distill_share` and `temperature`:
      `teacher=network.backbone` is the last exit, at the price of running the backbone to its end.
    - "joint": everything trains. The sum of the exits' losses with `exit_weights [S]` (None: the share of the
      exits up to each, 1 for the last), the early ones ramped up in the first half where `ramp` (None: yes; Kaya et
      al. 2019, "Shallow-Deep Networks"), gradients balanced between the exits where `rescale_gradients` (Li et al.
      2019, "Improved Techniques for Training Adaptive Deep Networks").
    - "distill": as "joint", and a share `distill_share` of the early exits' losses comes from the last exit's
      answer softened by `temperature` (Hinton et al. 2015, "Distilling the Knowledge in a Neural Network"); with
      `teacher`, another network for the same task (an `Ensemble` of several), all exits learn from that one instead.

    `penalty`, a function, is called after each forward of "joint" and "distill"; what it gives is added to the loss. A
    checkpoint does not know it, and goes on with another one.

    Defaults: 20 epochs; "heads" AdamW with lr 0.003 and weight decay 0.1, the others SGD with Nesterov momentum 0.9,
    lr 0.05 and weight decay 0.0001 (none on biases and norms). `optimizer` is "adamw" or "sgd"; the rate falls as a
    cosine. `autocast` (bf16) and `channels_last`: None is where the processor gains from it, as told by the report.

    `checkpoint` is a file, replaced after every epoch; when it exists, training goes on from it. A run that was
    killed and started again ends with the same weights, bit for bit, as one that was not, on the same machine,
    number of threads and versions: each epoch draws all random numbers (torch, numpy, `random`, the loader's
    generators) from `seed` and its own number, and the global generators come back as they were. A loader with
    randomness from elsewhere breaks this.

    `eval_loader`: `(inputs, labels [B])` that nothing learned from. The report then says how often each exit is right
    on them, and an exit at chance is logged. They choose nothing.

    On an error or interrupt the network keeps the weights of that moment and its train or eval flags come
    back; the checkpoint keeps the last whole epoch.

    Raises SettingError on a setting out of range and a loss that is not finite, InputError on data that do not
    fit, WrapError where there is nothing to train or the backbone cannot be trained, CorruptError on a
    damaged checkpoint, BundleError on one of another network or other settings.
    """
    begin = time.perf_counter()
    settings = Settings.of(
        mode, epochs, lr, weight_decay, optimizer, batch_size, memory_limit_mb, label_smoothing, seed
    )
    if penalty is not None and mode == "heads":
        raise SettingError("a penalty means nothing with mode='heads'; use mode='joint', or leave it")
    if teacher is not None and mode == "joint":
        raise SettingError("a teacher means nothing with mode='joint'; use mode='distill', or leave it")
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise InputError(
            f"teacher is a {type(teacher).__name__}; give a network, of several an Ensemble "
            f"(dynamic.models.compress.distillation.distillation)"
        )
    if not isinstance(network, StagedNetwork):
        if mode == "heads":
            raise WrapError(f"fit got a {type(network).__name__} without exits; call dynamic.wrap on it first")
        if mode == "distill" and teacher is None:
            raise WrapError(f"this {type(network).__name__} has no exits to teach: give teacher=, or use mode='joint'")
        network = _Plain(network)
    if mode != "heads" and not getattr(network, "trainable_backbone", True):
        raise WrapError(
            f"the backbone of this {type(network).__name__} was captured for evaluation only, so mode={mode!r} "
            f"cannot train it; use mode='heads'"
        )
    check_halves(network)
    if teacher is not None:
        check_halves(teacher)
    acceleration = Acceleration.choose(network, device, autocast, channels_last)
    with evaluating(network), _placed(network, acceleration):
        if eval_loader is not None:
            eval_loader = checked_loader(network, eval_loader)
        if mode == "heads":
            if exit_weights is not None:
                raise SettingError("exit_weights mean nothing with mode='heads', whose heads share no weight; leave it")
            loss = None if teacher is None else ExitLoss((1.0,), False, distill_share, temperature, label_smoothing)
            with _teaching(teacher, acceleration):
                done = fit_heads(
                    network,
                    train_loader,
                    settings,
                    acceleration,
                    memory_limit_mb,
                    cache_dir,
                    checkpoint,
                    progress,
                    cache,
                    loss,
                    teacher,
                )
        else:
            names = tuple(stage.name for stage in network.exit_stages)
            weights = _exit_weights(exit_weights, len(names))
            share = distill_share if mode == "distill" else 0.0
            loss = ExitLoss(weights, True if ramp is None else ramp, share, temperature, label_smoothing)
            with _teaching(teacher, acceleration):
                history = fit_all(
                    network,
                    train_loader,
                    settings,
                    loss,
                    rescale_gradients,
                    acceleration,
                    checkpoint,
                    progress,
                    teacher,
                    penalty,
                )
            done = HeadFit(names, history, 0.0, False)
        held_out = () if eval_loader is None else held_out_levels(network, eval_loader)
    for level in held_out:
        if level.at_chance:
            logger.warning("%s: it is at chance after training", level)
    return FitReport(
        mode=mode,
        exits=done.exits,
        loss=done.history.loss[-1],
        accuracy=done.history.accuracy[-1],
        history_loss=done.history.loss,
        history_accuracy=done.history.accuracy,
        epochs=settings.epochs,
        resumed=done.history.resumed,
        seconds=time.perf_counter() - begin,
        device=str(acceleration.device),
        bf16=acceleration.bf16,
        channels_last=acceleration.channels_last,
        features_mb=done.features_mb,
        features_on_disk=done.features_on_disk,
        held_out=held_out,
    )


def _exit_weights(given: Sequence[float] | None, exits: int) -> tuple[float, ...]:
    if given is None:
        return tuple((i + 1) / exits for i in range(exits))
    if len(given) != exits:
        raise SettingError(f"{len(given)} exit_weights for {exits} exits; give one each, the network's own included")
    return tuple(float(w) for w in given)


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
    """A teacher on the device and in evaluation mode; as it was afterwards."""
    if teacher is None:
        yield
        return
    with evaluating(teacher), _placed(teacher, acceleration):
        yield


@contextmanager
def _placed(network: nn.Module, acceleration: Acceleration) -> Iterator[None]:
    """The network on the device and in the memory order of training; back where it was afterwards."""
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
