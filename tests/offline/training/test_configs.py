"""Settings of training check themselves when they are made, and one flat mapping gives the same arguments."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dynamic
from dynamic.errors import InputError, SettingError
from dynamic.offline.training.configs import fit_arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "optimizer='adam' is not known. Use one of adamw, sgd"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1 has to be finite"),
        ({"weight_decay": math.inf}, "weight_decay=inf has to be finite"),
        ({"weight_decay": "much"}, "weight_decay='much' must be a number"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0 is not in [0, 1)"),
        ({"label_smoothing": True}, "label_smoothing=True must be a number"),
        ({"batch_size": 1}, "batch_size=1: at least 2"),
        ({"batch_size": 2.5}, "batch_size=2.5 must be a whole number"),
        ({"memory_limit_mb": 0}, "memory_limit_mb=0 has to be positive"),
        ({"memory_limit_mb": math.nan}, "memory_limit_mb=nan has to be positive"),
        ({"exit_weights": ()}, "exit_weights=()"),
        ({"exit_weights": (1.0, math.nan)}, "have to be finite"),
        ({"exit_weights": (1.0, "2")}, "exit_weights='2' must be a number"),
        ({"penalty": 0.1}, "penalty is a float"),
        ({"cache": "no"}, "cache='no' must be True or False"),
        ({"ramp": 1}, "ramp=1 must be True or False"),
        ({"autocast": "bf16"}, "autocast='bf16' must be True or False"),
    ],
)
def test_training_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        dynamic.TrainingConfig(**options)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"share": 1.5}, SettingError, "share=1.5 is not in [0, 1]"),
        ({"share": math.nan}, SettingError, "share=nan is not in [0, 1]"),
        ({"share": "half"}, SettingError, "share='half' must be a number"),
        ({"temperature": 0}, SettingError, "temperature=0 has to be positive"),
        ({"temperature": math.inf}, SettingError, "temperature=inf has to be positive"),
        ({"teacher": [nn.Identity()]}, InputError, "teacher is a list. Give a network"),
    ],
)
def test_distillation_out_of_range(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        dynamic.DistillationConfig(**options)


def test_numbers_of_numpy_become_plain() -> None:
    training = dynamic.TrainingConfig(
        weight_decay=np.float32(0.25),  # type: ignore[arg-type]
        batch_size=np.int64(16),  # type: ignore[arg-type]
        cache=np.False_,  # type: ignore[arg-type]
        exit_weights=np.array([0.5, 1.0]),  # type: ignore[arg-type]
    )
    assert training == dynamic.TrainingConfig(weight_decay=0.25, batch_size=16, cache=False, exit_weights=(0.5, 1.0))
    assert training.cache is False
    assert type(training.batch_size) is int


def test_one_mapping_gives_the_arguments_of_fit() -> None:
    teacher = nn.Linear(2, 2)
    options = {"epochs": 3, "optimizer": "sgd", "device": torch.device("cpu"), "teacher": teacher, "distill_share": 0.9}
    assert fit_arguments(options) == {
        "epochs": 3,
        "training": dynamic.TrainingConfig(optimizer="sgd", device=torch.device("cpu")),
        "distillation": dynamic.DistillationConfig(teacher=teacher, share=0.9),
    }
    assert fit_arguments({"seed": 1}) == {"seed": 1}
    with pytest.raises(TypeError, match="unexpected keyword argument 'patience'"):
        dynamic.fit(teacher, [], **fit_arguments({"patience": 3}))
