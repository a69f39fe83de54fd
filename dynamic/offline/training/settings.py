"""The settings of a training run, with their defaults for each mode."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from dynamic.policies.errors import SettingError
from dynamic.policies.validation.numbers import plain

MODES = ("heads", "joint", "distill")


@dataclass(frozen=True)
class Settings:
    """What the user asked for, defaults filled in and checked."""

    mode: str
    epochs: int
    lr: float
    weight_decay: float
    optimizer: str
    batch_size: int | None
    label_smoothing: float
    seed: int

    @staticmethod
    def of(
        mode: str,
        epochs: int | None,
        lr: float | None,
        weight_decay: float | None,
        optimizer: str | None,
        batch_size: int | None,
        memory_limit_mb: float,
        label_smoothing: float,
        seed: int,
    ) -> "Settings":
        if mode not in MODES:
            raise SettingError(f"mode={mode!r} is not known; use one of {', '.join(MODES)}")
        heads = mode == "heads"
        kind = optimizer or ("adamw" if heads else "sgd")
        usual = {"adamw": (3e-3, 1e-1), "sgd": (5e-2, 1e-4)}
        if kind not in usual:
            raise SettingError(f"optimizer={optimizer!r} is not known; use 'adamw' or 'sgd'")
        found = Settings(
            mode,
            20 if epochs is None else plain(epochs),
            usual[kind][0] if lr is None else plain(lr),
            usual[kind][1] if weight_decay is None else plain(weight_decay),
            kind,
            plain(batch_size),
            plain(label_smoothing),
            plain(seed),
        )
        for name in ("epochs", "batch_size", "seed"):
            value = getattr(found, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise SettingError(f"{name}={value!r} must be a whole number")
        for name in ("lr", "weight_decay", "label_smoothing"):
            value = getattr(found, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise SettingError(f"{name}={value!r} must be a number")
        if found.epochs < 1:
            raise SettingError(f"epochs={epochs}: at least 1")
        if not 0 < found.lr < math.inf:
            raise SettingError(f"lr={lr} has to be positive and finite")
        if not 0 <= found.weight_decay < math.inf:
            raise SettingError(f"weight_decay={weight_decay} has to be finite and not negative")
        if batch_size is not None and batch_size < 2:
            raise SettingError(f"batch_size={batch_size}: at least 2")
        if not memory_limit_mb > 0:
            raise SettingError(f"memory_limit_mb={memory_limit_mb} has to be positive; the default is 1024")
        return found

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
