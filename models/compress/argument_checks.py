"""Checks of arguments that every method makes before it works."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from dynamic.offline.batches import Batch, named_tensors, taken_by
from dynamic.offline.networks.module_modes import evaluating
from dynamic.policies.errors import SettingError


def is_skipped(name: str, skip: Collection[str]) -> bool:
    """Whether a module, or one that it lies in, is in `skip`."""
    return any(name == one or name.startswith(f"{one}.") for one in skip)


def check_share(name: str, value: Any, meaning: str, where: str = "") -> float:
    """The value where it is a number in (0, 1).

    Args:
        name: Of the argument.
        value: What was given for it.
        meaning: What the share is of, with an example.
        where: What it is for, as the message says it.

    Returns:
        The share.

    Raises:
        SettingError: The value is no number, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise SettingError(f"{name}={value!r}{where} is not in (0, 1): {meaning}")
    return float(value)


def check_fit_options(fit_options: Mapping[str, Any] | None, own: Collection[str]) -> None:
    """Check that no option of `dynamic.fit` is one that the caller sets.

    Args:
        fit_options: What the user gave.
        own: The names that the caller sets.

    Raises:
        SettingError: One of them is given.
    """
    if both := sorted({*(fit_options or {})} & {*own}):
        raise SettingError(f"fit_options={both} are set here: use the argument of that name, or call dynamic.fit")


def check_inputs(network: nn.Module, example_inputs: Batch) -> None:
    """Run the network once on two rows.

    Args:
        network: It does not change.
        example_inputs: A batch as its forward takes it.

    Raises:
        InputError: The network does not take such inputs.
    """
    two = {name: tensor[:2] for name, tensor in named_tensors(network, example_inputs).items()}
    first = next(network.parameters(), None)
    with taken_by(network, two), evaluating(network), torch.no_grad():
        network(*(tensor if first is None else tensor.to(first.device) for tensor in two.values()))
