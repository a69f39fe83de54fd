"""What a stage starts from, and which of its dimensions are dynamic."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor

from dynamic.engines.contract import InputSpec
from dynamic.engines.inputs.dimensions import Ranges
from dynamic.offline.tracing.sizes.dynamic_shapes import BATCH, range_of, torch_shapes


class Carry:
    """What a stage starts from: to be exported, and which of its dimensions are dynamic.

    `own`: at the size of the example. `others`: at other sizes. `ranges`: of the inputs. `numbers`: by name of a
    dynamic dimension, for `own` and each of `others`. `first`: whether it is the inputs themselves. `inputs`: of the
    cascade.
    """

    def __init__(
        self,
        own: tuple[Tensor, ...],
        others: Sequence[tuple[Tensor, ...]],
        ranges: Mapping[str, Ranges],
        numbers: Sequence[Mapping[str, int]],
        first: bool,
        inputs: tuple[InputSpec, ...],
    ) -> None:
        self._ranges, self._first, self.inputs = ranges, first, inputs
        self.free = [
            {d for d in range(1, tensor.ndim) for other in others if other[i].shape[d] != tensor.shape[d]}
            for i, tensor in enumerate(own)
        ]
        # torch.export takes a size of 1 for a constant
        candidates = (own, *others)
        self.tensors = max(candidates, key=lambda tensors: min(self._sizes(tensors), default=2) >= 2)
        spans = {span.name: span for listed in ranges.values() for span in listed if span is not None}
        self._spans: dict[str, Ranges] = {
            f"carry_{i}": tuple(
                range_of([run[i].shape[d] for run in candidates], numbers, spans) if d in self.free[i] else None
                for d in range(1, tensor.ndim)
            )
            for i, tensor in enumerate(own)
        }

    def _sizes(self, tensors: tuple[Tensor, ...]) -> list[int]:
        return [t.shape[d] for t, free in zip(tensors, self.free, strict=True) for d in free]

    @property
    def shapes(self) -> list[tuple[dict[int, Any], ...]]:
        """What is dynamic, in the words of torch.export, in the order of attempts.

        Where one tensor has half the size of another, torch cannot know that they meet again. So sizes are given as
        multiples of a size of the inputs first.
        """
        batch = torch.export.Dim(BATCH)
        if self._first and self._ranges:
            return [tuple(torch_shapes(self._ranges, batch))]
        unrelated = tuple({0: batch, **dict.fromkeys(sorted(free), torch.export.Dim.AUTO)} for free in self.free)
        if not any(any(spans) for spans in self._spans.values()):
            return [unrelated]
        related = zip(unrelated, torch_shapes(self._spans, batch), strict=True)
        return [tuple(free | spans for free, spans in related), unrelated]

    def fixed(self, model: onnx.ModelProto) -> str | None:
        """The first input of a graph that has a number for a dynamic dimension, and which dimension, in words."""
        for value, free in zip(model.graph.input, self.free, strict=True):
            for d in sorted(free):
                size = value.type.tensor_type.shape.dim[d].dim_value
                if size:
                    return f"{size} in dimension {d} of input {value.name!r}"
        return None
