"""What a network of texts takes, where nothing but its tokenizer says it."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.data.text.text_preprocessing import USUAL, TextPreprocess
from dynamic.policies.errors import InputError

_LONGEST = 512  # tokens, where nothing says it
_TOKENS = 8  # of the example: an export fixes a length of 1


def tokenizer_at(name: str) -> TextPreprocess:
    """The tokenizer of a file, or of a folder that holds one. Longer texts are cut. Raises as `from_file` does."""
    path = Path(name)
    return TextPreprocess.from_file(path / "tokenizer.json" if path.is_dir() else path, truncate=True)


def taken_inputs(network: nn.Module, name: str) -> tuple[str, ...]:
    """The inputs that a network takes of those that a tokenizer makes.

    Args:
        network: The network.
        name: Its name, for messages.

    Returns:
        Their names.

    Raises:
        InputError: It takes none of them.
    """
    taken = tuple(one for one in USUAL if one in inspect.signature(network.forward).parameters)
    if not taken:
        raise InputError(
            f"network {name} takes none of {', '.join(USUAL)}, which a tokenizer makes: name its arguments so"
        )
    return taken


def text_example(texts: TextPreprocess, inputs: tuple[str, ...], max_tokens: int | None) -> dict[str, Tensor]:
    """Two rows of tokens, of which the second ends with padding.

    Args:
        texts: The tokenizer.
        inputs: Names of the inputs.
        max_tokens: The longest text. None: nothing limits it.

    Returns:
        The inputs by name, int64 `[2, N]` each.
    """
    length = min(_TOKENS, max_tokens or _LONGEST)
    ids = torch.arange(2 * length).reshape(2, length) % texts.vocabulary
    mask = torch.ones_like(ids)
    if length > 1:
        ids[1, -1], mask[1, -1] = texts.pad_id, 0
    every = {"input_ids": ids, "attention_mask": mask}
    return {name: every[name] for name in inputs}


def any_length(inputs: Mapping[str, Any] | tuple[str, ...], max_tokens: int | None) -> dict[str, Any]:
    """The second dimension of each input, which has any size up to the longest text."""
    length = torch.export.Dim("length", min=1, max=max(max_tokens or _LONGEST, 2))
    return {name: {1: length} for name in inputs}
