"""Cascade, ladder, records and canaries of some backbones alone."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.canaries.canary_set import Canaries
from dynamic.engines.contract import CascadeSpec
from dynamic.policies.ladder import Ladder, OperatingPoint
from dynamic.policies.records import Records

T = TypeVar("T")


class Part:
    """The stages of some backbones. Backbones and stages are counted from 0 again, in the same order.

    Every point that needs none but these backbones gives the answers that it gave before. An earlier backbone that it
    does not run leaves no trace. No input goes beyond the last backbone that it needs. An input with NaN logits
    did, and now exits at the last stage.

    Args:
        spec: The whole cascade.
        backbones: The numbers of the backbones.
    """

    def __init__(self, spec: CascadeSpec, backbones: Collection[int]) -> None:
        self._spec = spec
        self._number = {old: new for new, old in enumerate(sorted(backbones))}
        self.stages: NDArray[np.intp] = np.flatnonzero([stage.backbone in self._number for stage in spec.stages])

    def spec(self) -> CascadeSpec:
        """The cascade of these stages."""
        stages = [self._spec.stages[s] for s in self.stages]
        return replace(
            self._spec, stages=tuple(replace(stage, backbone=self._number[stage.backbone]) for stage in stages)
        )

    def ladder(self, ladder: Ladder, points: Sequence[OperatingPoint], left_out: Sequence[str]) -> Ladder:
        """The ladder of these points, with why it lacks the others. Bounds hold at once, so those of some do too."""
        own = tuple(self._point(point) for point in points)
        return replace(
            ladder,
            temperature=self._some(ladder.temperature),
            backbone=tuple(self._number[b] for b in self._some(ladder.backbone)),
            stage_names=self._some(ladder.stage_names),
            points=own,
            certified=ladder.certified and any(p.bound is not None for p in own),
            left_out=(*ladder.left_out, *left_out),
        )

    def records(self, records: Records) -> Records:
        """The records of these stages."""
        return replace(
            records,
            logits=records.logits[:, self.stages],
            backbone=tuple(self._number[b] for b in self._some(records.backbone)),
            macs=self._some(records.macs),
            head_macs=self._some(records.head_macs),
            stage_names=self._some(records.stage_names),
        )

    def canaries(self, canaries: Canaries) -> Canaries:
        """The canaries with the logits of these stages."""
        return Canaries(canaries.inputs, canaries.logits[:, self.stages], canaries.source)

    def _point(self, point: OperatingPoint) -> OperatingPoint:
        return replace(
            point,
            thresholds=tuple(point.thresholds[s] for s in self.stages[:-1]),
            backbones=tuple(self._number[b] for b in point.backbones),
            shares=self._some(point.shares),
            exits=self._some(point.exits) if point.exits else (),
        )

    def _some(self, values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[s] for s in self.stages)
