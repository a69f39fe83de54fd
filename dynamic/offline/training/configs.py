"""Settings of a training run that few users change: how weights are trained, and what a teacher adds."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.option_words import Optimizer, check_word
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.validation.numbers import plain


@dataclass(frozen=True)
class TrainingConfig:
    """How `dynamic.fit` trains, beyond epochs and learning rate.

    Args:
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9. None: "adamw" for mode "heads", "sgd" for the others.
        weight_decay: Of matrices and kernels. Biases and norms have none. None: 0.1 for AdamW, 0.0001 for SGD.
        label_smoothing: Share of the label's probability that all classes get, 0 to 1.
        batch_size: Inputs in a step on cached features. None: at most 512, so that an epoch has about fifty steps.
        exit_weights: Weight of each exit's loss `[S]` in modes "joint" and "distill". None: the share of the exits up
            to each, 1 for the last.
        ramp: Whether the weights of early exits rise in the first half of the run (Kaya et al. 2019, "Shallow-Deep
            Networks"). None: yes.
        rescale_gradients: Whether gradients are balanced between the exits (Li et al. 2019, "Improved Techniques for
            Training Adaptive Deep Networks").
        penalty: A function without arguments. It is called after each forward of modes "joint" and "distill", and its
            value is added to the loss. A checkpoint does not hold it.
        cache: Whether mode "heads" computes features once and keeps them. False: the loader is read and the backbone
            is run in every epoch, for heads that read large features, as `ConvHead` and `BlockHead` do.
        cache_dir: Folder for features beyond `memory_limit_mb`. None: the system's temporary folder.
        memory_limit_mb: The most that features take in memory. Beyond it they are in files.
        device: Where training runs. None: where the network's first parameter is.
        autocast: Whether forward runs in bf16. None: where the processor gains from it.
        channels_last: Whether images lie in channels-last order. None: as `autocast`.

    Raises:
        SettingError: A value is out of range.

    Example:
        >>> training = dynamic.TrainingConfig(optimizer="sgd", weight_decay=0.001)
        >>> dynamic.fit(net, train_loader, epochs=1, training=training, progress=False).epochs
        1
    """

    optimizer: Optimizer | None = None
    weight_decay: float | None = None
    label_smoothing: float = 0.0
    batch_size: int | None = None
    exit_weights: Sequence[float] | None = None
    ramp: bool | None = None
    rescale_gradients: bool = True
    penalty: Callable[[], Tensor] | None = None
    cache: bool = True
    cache_dir: str | Path | None = None
    memory_limit_mb: float = 1024
    device: torch.device | str | None = None
    autocast: bool | None = None
    channels_last: bool | None = None

    def __post_init__(self) -> None:
        for name in ("weight_decay", "label_smoothing", "batch_size", "ramp", "rescale_gradients", "cache"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in ("memory_limit_mb", "autocast", "channels_last"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        if self.optimizer is not None:
            check_word("optimizer", self.optimizer, Optimizer)
        if self.weight_decay is not None:
            check_number("weight_decay", self.weight_decay)
            if not 0 <= self.weight_decay < math.inf:
                raise SettingError(f"weight_decay={self.weight_decay} has to be finite and not negative")
        check_number("label_smoothing", self.label_smoothing)
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing={self.label_smoothing} is not in [0, 1)")
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, 2)
        check_number("memory_limit_mb", self.memory_limit_mb)
        if not self.memory_limit_mb > 0:
            raise SettingError(f"memory_limit_mb={self.memory_limit_mb} has to be positive. The default is 1024")
        if self.exit_weights is not None:
            object.__setattr__(self, "exit_weights", _weights(self.exit_weights))
        if self.penalty is not None and not callable(self.penalty):
            raise SettingError(f"penalty is a {type(self.penalty).__name__}. Give a function that returns a tensor")
        for name in ("rescale_gradients", "cache"):
            _check_flag(name, getattr(self, name))
        for name in ("ramp", "autocast", "channels_last"):
            if getattr(self, name) is not None:
                _check_flag(name, getattr(self, name))


@dataclass(frozen=True)
class DistillationConfig:
    """What exits learn from a teacher in `dynamic.fit`, beside the labels.

    Args:
        teacher: Another network for the same task, or an `Ensemble` of several. None: the last exit teaches the early
            ones in mode "distill", and mode "heads" has no teacher. With `teacher=network.backbone` heads learn from
            the last exit, which runs the backbone to its end.
        share: Share of the loss that comes from the teacher, 0 to 1. The rest comes from the labels.
        temperature: Divisor of the logits of teacher and exits in that part of the loss (Hinton et al. 2015,
            "Distilling the Knowledge in a Neural Network").

    Raises:
        InputError: The teacher is no network.
        SettingError: A value is out of range.

    Example:
        >>> distillation = dynamic.DistillationConfig(teacher=large, share=0.9, temperature=4.0)
        >>> dynamic.fit(
        ...     small, train_loader, mode="distill", epochs=1, distillation=distillation, progress=False
        ... ).mode
        'distill'
    """

    teacher: nn.Module | None = None
    share: float = 0.5
    temperature: float = 3.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "share", plain(self.share))
        object.__setattr__(self, "temperature", plain(self.temperature))
        if self.teacher is not None and not isinstance(self.teacher, nn.Module):
            raise InputError(
                f"teacher is a {type(self.teacher).__name__}. Give a network, of several an Ensemble "
                f"(dynamic.models.compress.distillation.distillation)"
            )
        check_number("share", self.share)
        if not 0 <= self.share <= 1:
            raise SettingError(f"share={self.share} is not in [0, 1]: the part of the loss that comes from the teacher")
        check_number("temperature", self.temperature)
        if not 0 < self.temperature < math.inf:
            raise SettingError(f"temperature={self.temperature} has to be positive and finite")


_OF_TEACHERS = {"teacher": "teacher", "distill_share": "share", "temperature": "temperature"}


def fit_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `dynamic.fit` from one flat mapping.

    Args:
        options: Arguments of `fit` and fields of `TrainingConfig`, by name, and "teacher", "temperature" and
            "distill_share".

    Returns:
        The arguments, with a config for the fields of each.

    Raises:
        SettingError: As the configs do.
    """
    names = {field.name for field in fields(TrainingConfig)}
    training = {name: value for name, value in options.items() if name in names}
    distillation = {_OF_TEACHERS[name]: value for name, value in options.items() if name in _OF_TEACHERS}
    arguments = {name: value for name, value in options.items() if name not in names and name not in _OF_TEACHERS}
    if training:
        arguments["training"] = TrainingConfig(**training)
    if distillation:
        arguments["distillation"] = DistillationConfig(**distillation)
    return arguments


def check_number(name: str, value: object) -> None:
    """Raises SettingError on what is no number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise SettingError(f"{name}={value!r} must be a number")


def check_whole(name: str, value: object, least: int) -> None:
    """Raises SettingError on what is no whole number, or below the least."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise SettingError(f"{name}={value!r} must be a whole number")
    if value < least:
        raise SettingError(f"{name}={value}: at least {least}")


def _check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise SettingError(f"{name}={value!r} must be True or False")


def _weights(exit_weights: Sequence[float]) -> tuple[float, ...]:
    weights = tuple(plain(weight) for weight in exit_weights)
    for weight in weights:
        check_number("exit_weights", weight)
    if not weights or not all(0 <= weight < math.inf for weight in weights) or not any(weights):
        raise SettingError(f"exit_weights={weights}: they have to be finite, not negative, not all 0")
    return tuple(float(weight) for weight in weights)
