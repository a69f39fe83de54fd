"""Batches of texts of several lengths: what of their padding the rows need that are still in the batch.

A batch is padded to its longest text. Once that has left, the rest is shorter. Where a later network starts from the
inputs again, it gets the rest cut to its own longest text.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.inputs.dimensions import Ranges

_WHOLE = ("int", "uint", "bool")  # how the names of their dtypes begin
MASK = "attention_mask"  # 1 at tokens, 0 at padding: the name that encoders of all libraries have for it


@dataclass(frozen=True)
class Padding:
    """The inputs that texts are padded in.

    Args:
        mask: The input that says what is padding `[B, N]`.
        inputs: All inputs of that length, the mask too, each `[B, N]` or `[B, N, ...]`.
        least: The least length that the networks take.
    """

    mask: str
    inputs: tuple[str, ...]
    least: int

    @classmethod
    def of(cls, ranges: Mapping[str, Ranges], dtypes: Mapping[str, str]) -> "Padding | None":
        """The padding of inputs with these ranges and dtypes.

        None: there is no mask of whole numbers, or its length is fixed or comes in steps. A mask of floats may be what
        is added to scores, which is 0 at tokens.
        """
        span = next(iter(ranges.get(MASK) or ()), None)
        if span is None or span.factor != 1 or len(ranges[MASK]) != 1 or not dtypes[MASK].startswith(_WHOLE):
            return None
        places = {
            name: [d for d, own in enumerate(spans) if own and own.name == span.name] for name, spans in ranges.items()
        }
        if any(where not in ([], [0]) for where in places.values()):
            return None
        return cls(MASK, tuple(name for name, where in places.items() if where), max(1, span.size(span.min)))

    def cut(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The inputs without positions that are padding in every row, at the end.

        Args:
            inputs: By name, each `[B, ...]`.

        Returns:
            The same, or shorter ones.

        Example:
            >>> from dynamic.engines.inputs.padding import Padding
            >>> padding = Padding("attention_mask", ("input_ids", "attention_mask"), least=1)
            >>> ids, mask = np.array([[5, 6, 0, 0], [7, 0, 0, 0]]), np.array([[1, 1, 0, 0], [1, 0, 0, 0]])
            >>> padding.cut({"input_ids": ids, "attention_mask": mask})["input_ids"].tolist()
            [[5, 6], [7, 0]]
        """
        mask = inputs[self.mask]
        used = np.flatnonzero(mask.any(axis=0))
        if not len(used):  # not a token anywhere: nothing is known
            return dict(inputs)
        length = max(self.least, int(used[-1]) + 1)
        if length >= mask.shape[1]:
            return dict(inputs)
        return {n: np.ascontiguousarray(a[:, :length]) if n in self.inputs else a for n, a in inputs.items()}
