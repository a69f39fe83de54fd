"""Rows of a request whose later stages run elsewhere, as arrays that any process can continue from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.scores import Floats, Running

Array = NDArray[Any]
_INPUT, _CARRY, _STATE = "input.", "carry.", "state."


@dataclass(frozen=True, eq=False)
class Progress:
    """How far some rows have come.

    Args:
        state: The answers so far, for the combiner.
        answer: Probabilities of the answer so far `[B, C]`. None: no exit has answered.
        score: Its score `[B]`.
        answered: The stage that gave it. -1: none.
    """

    state: Running
    answer: Floats | None
    score: Floats
    answered: int


@dataclass(frozen=True, eq=False)
class Rest:
    """Rows that continue at a later stage.

    Args:
        stage: The stage that comes next.
        rows: Their numbers in the request `[K]`, rising.
        arrays: What they need, by name, each `[K, ...]` (see `packed`).
        size: Of one row, see `CascadeSpec.size_of`.
        version: Of the bundle whose stages ran. Empty: not said.
    """

    stage: int
    rows: NDArray[np.intp]
    arrays: Mapping[str, Array]
    size: int | None = None
    version: str = ""

    @property
    def is_answered(self) -> bool:
        """Whether an exit has answered already."""
        return "answer" in self.arrays

    def between(self, start: int, end: int) -> "Rest | None":
        """The part of it within rows `start` to `end` of the request, numbered from `start`. None: there is none."""
        inside = np.flatnonzero((start <= self.rows) & (self.rows < end))
        if not len(inside):
            return None
        arrays = {name: array[inside] for name, array in self.arrays.items()}
        return replace(self, rows=self.rows[inside] - start, arrays=arrays)


def has_carry(names: Iterable[str]) -> bool:
    """Whether arrays of a `Rest` with these names have a carry."""
    return any(name.startswith(_CARRY) for name in names)


def part_of(rests: Sequence[Rest], start: int, end: int) -> tuple[Rest, ...]:
    """What rows `start` to `end` of a request have of its rests."""
    parts = (rest.between(start, end) for rest in rests)
    return tuple(part for part in parts if part is not None)


def without(rests: Sequence[Rest], rows: NDArray[np.intp]) -> tuple[Rest, ...]:
    """Rests of a request less some rows `[K]` of it."""
    parts = []
    for rest in rests:
        others = np.flatnonzero(~np.isin(rest.rows, rows))
        if len(others):
            arrays = {name: array[others] for name, array in rest.arrays.items()}
            parts.append(replace(rest, rows=rest.rows[others], arrays=arrays))
    return tuple(parts)


def carries(arrays: Mapping[str, Array]) -> list[Array]:
    """The tensors of a carry among arrays that were `packed`."""
    return [array for name, array in arrays.items() if name.startswith(_CARRY)]


def network_arrays(arrays: Mapping[str, Array]) -> list[Array]:
    """What networks get of the arrays of a request: all of them, or inputs and carry of those that were `packed`.

    What an exit gave, such as its score, is NaN for a row that it had no finite logits for.
    """
    inner = [array for name, array in arrays.items() if name.startswith((_INPUT, _CARRY))]
    others = {name for name in arrays if not name.startswith((_INPUT, _CARRY, _STATE))}
    return inner if "answered" in others and others <= {"answered", "answer", "score"} else list(arrays.values())


def renumbered(rests: Sequence[Rest], rows: NDArray[np.intp]) -> tuple[Rest, ...]:
    """Rests of some rows of a request, by the numbers `rows [K]` that these have in the whole request."""
    return tuple(replace(rest, rows=rows[rest.rows]) for rest in rests)


def packed(
    progress: Progress, inputs: Mapping[str, Array] | None, carry: Sequence[Array] | None
) -> Mapping[str, Array]:
    """Progress as arrays by name, each with a row for each row of it.

    What all rows share, such as how many exits have answered, is repeated for each of them. So arrays of several
    requests that ran the same stages may be concatenated, and divided.

    Args:
        progress: How far the rows have come.
        inputs: The inputs `[B, ...]` by name, where a later stage starts from them.
        carry: The tensors `[B, ...]` that the next stage needs. None: it starts from the inputs.

    Returns:
        The arrays.
    """
    rows = len(progress.score)
    arrays: dict[str, Array] = {"answered": np.full(rows, progress.answered)}
    if progress.answer is not None:
        arrays |= {"answer": progress.answer, "score": progress.score}
    for field in fields(Running):
        value = getattr(progress.state, field.name)
        if value is not None:
            arrays[_STATE + field.name] = value if isinstance(value, np.ndarray) else np.full(rows, value)
    arrays |= {_INPUT + name: array for name, array in (inputs or {}).items()}
    return arrays | {f"{_CARRY}{number}": array for number, array in enumerate(carry or ())}


def unpacked(arrays: Mapping[str, Array]) -> tuple[Progress, Mapping[str, Array], list[Array]]:
    """What was `packed`: the progress, the inputs (empty: there are none), and the carry (empty: there is none)."""
    state: dict[str, Any] = {}
    for field in fields(Running):
        value = arrays.get(_STATE + field.name)
        if value is not None:
            state[field.name] = int(value[0]) if isinstance(field.default, int) else value
    answered = arrays["answered"]
    score = arrays.get("score", np.full(len(answered), np.nan, np.float32))
    progress = Progress(Running(**state), arrays.get("answer"), score, int(answered[0]))
    inputs = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
    carry = [arrays[f"{_CARRY}{number}"] for number in range(sum(name.startswith(_CARRY) for name in arrays))]
    return progress, inputs, carry
