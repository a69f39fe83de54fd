"""Inputs of scikit-learn's habit: everything at once, or a loader of batches. Arrays of numpy come out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError, SettingError
from dynamic.runtime.result import BatchResult, Result


def answered(run: Callable[[Any], Result], inputs: Any, batch_size: int) -> Iterator[BatchResult]:
    """The answers to all inputs, batch by batch.

    Args:
        run: Answers a batch.
        inputs: As `Runtime.predict` takes them.
        batch_size: Rows of a request, where the inputs are not batches already.

    Yields:
        The answers to each batch.

    Raises:
        InputError: There is one input without a batch dimension, or something that has no rows.
        SettingError: The batch size is below 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise SettingError(f"batch_size={batch_size!r} must be a whole number of at least 1")
    for batch in _batches(inputs, batch_size):
        result = run(batch)
        if not isinstance(result, BatchResult):
            raise InputError(
                "predict takes a batch, and was given one input: give x[None] or [x], or call run(x) for one answer"
            )
        yield result


def predicted(results: Iterable[BatchResult], classes: Sequence[str] | None) -> NDArray[Any]:
    """The class of each row: its name where classes have names, else its number.

    Args:
        results: The answers.
        classes: The names.

    Returns:
        Names as strings of numpy, or numbers int64 `[N]`. "" or -1 where no stage gave a finite answer.
    """
    labels = np.concatenate([np.zeros(0, np.int64), *(result.label for result in results)])
    return labels if classes is None else np.array([*classes, ""])[labels]  # -1 is the last


def probabilities(results: Iterable[BatchResult], classes: int) -> NDArray[np.float32]:
    """The probabilities `[N, C]` of all classes."""
    return np.concatenate([np.zeros((0, classes), np.float32), *(result.probabilities for result in results)])


def _batches(inputs: Any, size: int) -> Iterator[Any]:
    if isinstance(inputs, Mapping):
        yield from ({name: array[rows] for name, array in inputs.items()} for rows in _rows(inputs.values(), size))
    elif isinstance(inputs, tuple):
        yield from (tuple(array[rows] for array in inputs) for rows in _rows(inputs, size))
    elif isinstance(inputs, list) or hasattr(inputs, "shape"):
        yield from (inputs[rows] for rows in _rows((inputs,), size))
    elif isinstance(inputs, Iterable) and not isinstance(inputs, str | bytes):
        for batch in inputs:  # a DataLoader, whose batches are (inputs, labels)
            yield batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
    else:
        raise InputError(f"predict takes a batch or a loader of batches, and was given a {type(inputs).__name__}")


def _rows(arrays: Iterable[Any], size: int) -> Iterator[slice]:
    """The rows of each part. Raises InputError where the arrays have different numbers of rows, or no dimension."""
    try:
        counts = {len(array) for array in arrays}
    except TypeError as error:
        raise InputError(f"predict takes a batch [N, ...], and was given what has no rows ({error})") from error
    if len(counts) != 1:
        raise InputError(f"inputs have {sorted(counts)} rows: each needs the same number")
    return (slice(start, start + size) for start in range(0, counts.pop(), size))
