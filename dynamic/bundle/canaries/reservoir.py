"""A sample of the calibration inputs, from which canaries are made."""

from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.canaries.canary_set import LEAST, MOST, Canaries
from dynamic.engines.contract import Array

MOST_HELD_BYTES = 256_000_000  # of rows, where there are several sizes
_MOST_HELD_SIZES = 256
_ROW_BYTES = 1024  # of a row beside its values
Shapes = tuple[tuple[int, ...], ...]  # of the inputs, without the batch


class Reservoir:
    """A sample of inputs without replacement from a stream of unknown length (Vitter 1985, algorithm R).

    Canaries run as one batch. So inputs of each size are sampled for themselves, and the most frequent size counts.
    Where rows of several sizes would take more than `most_bytes`, those of the rarest size are dropped.

    Args:
        size: Rows of each size.
        seed: Of the draw.
        most_bytes: Of all rows, where there are several sizes.
    """

    def __init__(self, size: int = MOST, seed: int = 0, most_bytes: int = MOST_HELD_BYTES) -> None:
        self._size, self._seed, self._most_bytes = size, seed, most_bytes
        self._counts: Counter[Shapes] = Counter()
        self._samples: dict[Shapes, _Sample] = {}
        self._count = 0
        self.held_bytes = 0  # of all rows

    def add(self, inputs: Mapping[str, Array]) -> None:
        """Consider the rows of one batch."""
        shapes = tuple(array.shape[1:] for array in inputs.values())
        rows = len(next(iter(inputs.values())))
        sample = self._samples.get(shapes) or self._new_sample(shapes, rows, sum(a[:1].nbytes for a in inputs.values()))
        before = 0 if sample is None else sample.held_bytes
        for row in range(rows):
            if sample is not None:
                sample.add(inputs, row, self._count)
            self._count += 1
        self.held_bytes += 0 if sample is None else sample.held_bytes - before
        self._counts[shapes] += rows
        while len(self._samples) > 1 and self.held_bytes > self._most_bytes:
            self._drop(self._rarest())

    def _new_sample(self, shapes: Shapes, rows: int, row_bytes: int) -> "_Sample | None":
        """A sample for rows of another size. None: there is no room, and no size that is rarer."""
        needed = min(rows, self._size) * (row_bytes + _ROW_BYTES)
        full = len(self._samples) >= _MOST_HELD_SIZES or self.held_bytes + needed > self._most_bytes
        if self._samples and full:
            rarest = self._rarest()
            if self._counts[shapes] + rows <= self._counts[rarest]:
                return None
            if len(self._samples) >= _MOST_HELD_SIZES:
                self._drop(rarest)
        self._samples[shapes] = _Sample(self._size, self._seed, row_bytes + _ROW_BYTES)
        return self._samples[shapes]

    def _drop(self, shapes: Shapes) -> None:
        self.held_bytes -= self._samples.pop(shapes).held_bytes

    def _rarest(self) -> Shapes:
        """The newest of the sizes that were least frequent."""
        return min(reversed(self._samples), key=self._counts.__getitem__)

    def canaries(
        self,
        logits: NDArray[np.float32],
        run: Callable[[Mapping[str, Array]], NDArray[np.float32]] | None = None,
    ) -> Canaries:
        """The sample of the most frequent size.

        Where that has fewer than `LEAST` rows, rows of larger sizes are cut to it. The most frequent size that so has
        `LEAST` rows counts.

        Args:
            logits: Of all rows, `[all, S, C]`.
            run: Gives the logits `[N, S, C]` of inputs that were cut. None: none is cut.

        Returns:
            The canaries.
        """
        sizes = sorted(self._samples, key=lambda shapes: -self._counts[shapes])  # the first of those that are equal
        shapes, most = sizes[0], 0
        for candidate in sizes:
            rows = len(self._samples[candidate].rows)
            if rows < LEAST and run is not None:
                rows += len(self._larger(candidate))
            if rows > most:
                shapes, most = candidate, rows
            if most >= LEAST or run is None:
                break
        sample = self._samples[shapes]
        inputs, own = _stacked(sample.rows), logits[sample.places]
        if run is not None and len(own) < LEAST and (larger := self._larger(shapes)):
            more = _stacked(larger[: LEAST - len(own)])
            own = np.concatenate([own, run(more)])
            inputs = {name: np.concatenate([array, more[name]]) for name, array in inputs.items()}
        return Canaries(inputs, own, "calibration")

    def _larger(self, shapes: Shapes) -> list[dict[str, Array]]:
        """Up to `LEAST` rows of larger sizes, cut to `shapes`, one of each size before the second of one."""
        others = [
            sample.rows
            for size, sample in self._samples.items()
            if size != shapes
            and all(
                len(a) == len(b) and all(x >= y for x, y in zip(a, b, strict=True))
                for a, b in zip(size, shapes, strict=True)
            )
        ]
        turns = max(map(len, others), default=0)
        rows = [own[turn] for turn in range(turns) for own in others if turn < len(own)][:LEAST]
        return [
            {
                name: np.ascontiguousarray(array[tuple(slice(side) for side in shape)])
                for (name, array), shape in zip(row.items(), shapes, strict=True)
            }
            for row in rows
        ]


def _stacked(rows: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


class _Sample:
    """Rows of one size, and their places among all."""

    def __init__(self, size: int, seed: int, row_bytes: int) -> None:
        self._size, self._seed, self._row_bytes = size, seed, row_bytes
        self._random: np.random.Generator | None = None  # which many sizes never need
        self.rows: list[dict[str, Array]] = []
        self.places: list[int] = []
        self._count = 0

    @property
    def held_bytes(self) -> int:
        return len(self.rows) * self._row_bytes

    def add(self, inputs: Mapping[str, Array], row: int, number: int) -> None:
        """Consider a row of a batch, which is the one of this `number` among all."""
        place = self._count if self._count < self._size else self._drawn()
        self._count += 1
        if place >= self._size:
            return
        values = {name: np.array(array[row]) for name, array in inputs.items()}  # the batch is not held
        if place == len(self.rows):
            self.rows.append(values)
            self.places.append(number)
        else:
            self.rows[place], self.places[place] = values, number

    def _drawn(self) -> int:
        if self._random is None:
            self._random = np.random.default_rng(self._seed)
        return int(self._random.integers(self._count + 1))
