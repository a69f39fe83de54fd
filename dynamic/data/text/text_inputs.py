"""What a user gives as texts, and what a network takes of them."""

from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import NamedInput
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.validation.fields import short, whole
from dynamic.policies.validation.numbers import plain

KINDS = ("input_ids", "attention_mask", "token_type_ids")  # what texts become
MOST_LENGTH = 2**20  # tokens of a row
_MOST_LABEL = 2**31 - 1
_MOST_NUMBERS = 2**27  # of an array of all rows: 1 GB


def texts_of(x: Any) -> tuple[list[str], bool]:
    """Texts, and whether they were one alone. InputError on anything else."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "UO" and x.ndim <= 1:
        x = x.tolist()
    if isinstance(x, str):
        return [x], True
    if isinstance(x, (list, tuple)):
        if not x:
            raise InputError("no texts: give at least one")
        others = [one for one in x if not isinstance(one, str)]
        if not others:
            return list(x), False
        raise InputError(f"a list of texts holds a {type(others[0]).__name__} {short(others[0])}: give strings alone")
    hint = ": decode it, content.decode()" if isinstance(x, bytes) else ""
    raise InputError(
        f"a {type(x).__name__} is no text{hint}. This bundle takes a string or a list of strings, or token ids by "
        "name, as {'input_ids': array, ...}"
    )


def labels_of(labels: Any, count: int) -> NDArray[np.int64]:
    """Labels `[B]` of so many texts. InputError where they are no whole numbers from 0, or not one for each."""
    try:
        numbers = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"labels={short(labels)} do not read ({error!s:.100}): give one whole number a text"
        ) from error
    if numbers.shape != (count,):
        raise InputError(f"labels have shape {list(numbers.shape)} for {count} texts: give one for each")
    if numbers.dtype.kind not in "iu":
        raise InputError(
            f"labels are {numbers.dtype}, such as {short(numbers[0].item())}: number the classes from 0, as integers"
        )
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most > _MOST_LABEL:
        raise InputError(f"labels are from {least} to {most}: number the classes from 0 to {_MOST_LABEL} at most")
    return numbers.astype(np.int64)


def setting(value: Any, name: str, low: int, high: int) -> int:
    """A whole number, of numpy or not. SettingError on anything else."""
    try:
        return whole(plain(value), name, low, high)
    except ValueError as error:
        raise SettingError(str(error)) from error


def kinds_of(inputs: Any) -> list[str]:
    """Names of inputs that texts become. InputError on others."""
    names = [inputs] if isinstance(inputs, str) or not isinstance(inputs, Sequence) else list(inputs)
    unknown = [name for name in names if not isinstance(name, str) or name not in KINDS]
    if unknown or not names or isinstance(inputs, str):
        raise InputError(f"inputs={short(unknown or inputs)}: texts become {list(KINDS)}, give a list of these")
    return names


def check_size(rows: int, length: int) -> None:
    """Raises InputError on rows that take too much memory together."""
    if rows * length > _MOST_NUMBERS:
        raise InputError(
            f"{rows} rows of {length} tokens are {rows * length} numbers, and the limit is {_MOST_NUMBERS}: give fewer "
            "texts at once, or a smaller length"
        )


def input_kinds(inputs: Sequence[NamedInput]) -> dict[str, str]:
    """For each input of a network, which of `input_ids`, `attention_mask` and `token_type_ids` it takes.

    Names decide. A network with one input of any name takes the ids. InputError where an input is none of them.
    """
    if len(inputs) == 1 and inputs[0].name not in KINDS:
        kinds = {inputs[0].name: "input_ids"}
    else:
        kinds = {i.name: i.name for i in inputs}
    for i in inputs:
        if kinds[i.name] not in KINDS or len(i.shape) != 1:
            raise InputError(
                f"the network takes {i.name!r} [B, {', '.join(map(str, i.shape))}], and texts become {list(KINDS)} "
                "[B, N]: put a module around it whose forward takes these, or build with preprocess=None"
            )
    return kinds


def lengths_of(inputs: Sequence[NamedInput]) -> tuple[int, int | None, Container[int] | None]:
    """The least and the largest number of tokens of a row, and the numbers between that are allowed (None: all)."""
    side: Any = inputs[0].sides[0]
    if isinstance(side, int):
        return side, side, None
    return max(1, side.size(side.min)), None if side.max is None else side.size(side.max), side


def check_values(named: Mapping[str, NDArray[Any]], vocabulary: int) -> None:
    """Raise InputError on ids and masks, `[B, N]` by name, that no tokenizer of so many ids makes."""
    for name, array in named.items():
        kind = name if name in KINDS else "input_ids"  # a network with one input of any name takes the ids
        if not array.size or kind == "token_type_ids":
            continue
        least, most = array.min(), array.max()
        if kind == "input_ids" and not (least >= 0 and most < vocabulary):
            raise InputError(
                f"input {name!r} holds the token id {least if least < 0 else most}, and the ids of this tokenizer are "
                f"0 to {vocabulary - 1}: give texts, or ids that it made"
            )
        if kind == "attention_mask":
            if not (least >= 0 and most <= 1 and bool(np.isin(array, (0, 1)).all())):
                raise InputError(
                    f"input {name!r} holds {least if least < 0 else most}, and a mask is 1 at tokens and 0 at padding: "
                    "give texts, or the mask that the tokenizer made"
                )
            if not array.any(axis=1).all():
                raise InputError(f"a row of input {name!r} has no token: give at least one 1 in each row")
