"""Checks that the output of an engine is an answer: of the right shapes, and of numbers."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Output
from dynamic.engines.parts.rest import carries, network_arrays
from dynamic.policies.errors import EngineError

_SMALL = 8192  # values: their dot product takes 1 us where isfinite takes 2, on one thread


def left_at(output: Output, rows: int, spec: CascadeSpec) -> list[int]:
    """The exit stages of the rows of an output.

    Args:
        output: The output of an engine.
        rows: Number of rows of the request.
        spec: The cascade.

    Returns:
        The stages `[B]`.

    Raises:
        EngineError: It is no output of this number of rows, classes and stages.
    """
    try:
        logits, stage, score = output.logits, output.stage, output.score
        fits = logits.shape == (rows, spec.classes) and stage.shape == (rows,) and score.shape == (rows,)
        if fits and logits.dtype.kind == "f" and stage.dtype.kind in "iu":
            stages: list[int] = stage.tolist()
            if min(stages) >= 0 and max(stages) < len(spec.stages):
                return stages
    except AttributeError:  # nothing, or something else
        pass
    raise EngineError(
        f"the engine returned {_text(output)}, expected logits [{rows}, {spec.classes}], scores [{rows}] and stages "
        f"[{rows}] from 0 to {len(spec.stages) - 1}: repair the engine, or name another with engine="
    )


def is_finite(array: Array) -> bool:
    """Whether all values are finite, for arrays of any type."""
    if array.dtype.kind not in "fc":
        return True
    # where it is not finite a square was too large, perhaps. Unlike `dot` it never warns
    if array.size <= _SMALL and array.dtype.char in "fd" and math.isfinite(np.vdot(array, array)):
        return True
    return bool(np.isfinite(array).all())


def finite_rows(array: Array) -> NDArray[np.bool_]:
    """Whether all values of each row `[B, ...]` are finite, `[B]`."""
    if array.dtype.kind not in "fc":
        return np.ones(len(array), bool)
    return np.asarray(np.isfinite(array).reshape(len(array), -1).all(axis=1))


def is_whole(output: Output) -> bool:
    """Whether every row that does not continue elsewhere has an answer from finite logits of its exit stage."""
    if output.rests:
        return bool(answered_rows(output).all())
    # a score is NaN where the stage's own logits were not finite
    return is_finite(output.logits) and not any(score != score for score in output.score.tolist())


def answered_rows(output: Output) -> NDArray[np.bool_]:
    """Whether each row has an answer to which the stage that it left at contributed, or continues elsewhere, `[B]`.

    One whose carry is not finite cannot continue: from a carry, no later stage gets the inputs again.
    """
    answered = finite_rows(output.logits) & ~np.isnan(output.score)
    for rest in output.rests:
        answered[rest.rows] = True
        for array in carries(rest.arrays):
            if not is_finite(array):
                answered[rest.rows] &= finite_rows(array)
    return answered


def silent_rows(output: Output, inputs: Mapping[str, Array]) -> NDArray[np.intp]:
    """The rows of finite inputs that have no answer.

    Args:
        output: What an engine returned for them.
        inputs: By name, each `[B, ...]`. Of rows that began elsewhere, their inputs and carry have to be finite.

    Returns:
        Their numbers `[K]`.
    """
    asked = np.logical_and.reduce([finite_rows(array) for array in network_arrays(inputs)])
    return np.flatnonzero(asked & ~answered_rows(output))


def _text(output: object) -> str:
    parts = [
        f"{name} {list(getattr(getattr(output, name, None), 'shape', ()))}" for name in ("logits", "stage", "score")
    ]
    return ", ".join(parts) if isinstance(output, Output) else f"a {type(output).__name__}"
