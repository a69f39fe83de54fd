"""The settings of a training run, with their defaults for each mode."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynamic.offline.loggers.callbacks import Callbacks
from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.used_batches import UsedBatches
from dynamic.offline.option_words import Mode, Optimizer, check_word
from dynamic.offline.staged_network import StagedNetwork
from dynamic.offline.training.configs import TrainingConfig, check_number, check_whole
from dynamic.offline.training.parallel.processes import Processes
from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain

_EPOCHS = 20
_RATES = {"adamw": (3e-3, 1e-1), "sgd": (5e-2, 1e-4)}  # learning rate and weight decay


@dataclass(frozen=True)
class Settings:
    """What the user set, with defaults filled in. A checkpoint compares these fields."""

    mode: Mode
    epochs: int
    lr: float
    weight_decay: float
    optimizer: Optimizer
    batch_size: int | None
    label_smoothing: float
    seed: int

    @staticmethod
    def of(mode: Mode, epochs: int | None, lr: float | None, training: TrainingConfig, seed: int) -> "Settings":
        """The settings of a run. Raises SettingError on a value out of range."""
        check_word("mode", mode, Mode)
        optimizer: Optimizer = training.optimizer or ("adamw" if mode == "heads" else "sgd")
        usual_lr, usual_decay = _RATES[optimizer]
        settings = Settings(
            mode=mode,
            epochs=_EPOCHS if epochs is None else plain(epochs),
            lr=usual_lr if lr is None else plain(lr),
            weight_decay=usual_decay if training.weight_decay is None else training.weight_decay,
            optimizer=optimizer,
            batch_size=training.batch_size,
            label_smoothing=training.label_smoothing,
            seed=plain(seed),
        )
        check_whole("epochs", settings.epochs, 1)
        if isinstance(settings.seed, bool) or not isinstance(settings.seed, int):
            raise SettingError(f"seed={settings.seed!r} must be a whole number")
        check_number("lr", settings.lr)
        if not 0 < settings.lr < math.inf:
            raise SettingError(f"lr={settings.lr} has to be positive and finite")
        return settings

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Weight decay on matrices and kernels only."""
        listed = list({id(p): p for p in parameters if p.requires_grad}.values())
        groups = [
            {"params": [p for p in listed if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in listed if p.ndim <= 1], "weight_decay": 0.0},
        ]
        groups = [group for group in groups if group["params"]]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr)
        return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, nesterov=True)


@dataclass(frozen=True, eq=False)
class TrainingRun:
    """A network on its device, the data, and the settings with defaults filled in."""

    network: StagedNetwork
    loader: Iterable[Any]
    settings: Settings
    training: TrainingConfig
    acceleration: Acceleration
    checkpoint: str | Path | None
    progress: bool | None
    used_batches: UsedBatches
    callbacks: Callbacks = field(default_factory=Callbacks)
    processes: Processes = field(default_factory=Processes)
