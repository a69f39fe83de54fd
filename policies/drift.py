"""Whether inputs still look like those of the calibration, told without labels."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ScoreBins:
    """What calibration inputs scored at a stage that is the first to be evaluated.

    `edges [E]`, rising; `counts [E + 1]`: calibration inputs by bin, bin b holding `edges[b - 1] < score <= edges[b]`.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
