"""A family as a picture: accuracy against latency, networks alone and, once there is one, the cascade."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic.bundle import Bundle
from dynamic.models.compress.advising import networks_alone
from dynamic.policies.errors import DynamicError

if TYPE_CHECKING:
    from dynamic.models.compress.families import Family


def draw(family: Family, path: Path, bundle: Bundle | None = None) -> Path:
    """Write the picture to `path`; its ending says the format. See `Family.chart`."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise DynamicError('pictures need matplotlib: pip install "dynamic-inference[plot]"') from error
    # a figure of its own: pyplot's settings and windows are the user's
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    kept = [m for m in family.kept if m is not family.reference]
    beaten = [m for m in family.members if m.beaten is not None]
    rest = [m for m in family.members if m not in family.kept and m.beaten is None]
    looks = (
        ("alone, kept", kept, "s", "tab:blue"),
        ("alone, beaten", beaten, "x", "tab:gray"),
        ("alone, not faster than the reference", rest, "^", "tab:gray"),
        ("reference", [family.reference], "*", "black"),
    )
    for label, members, marker, color in looks:
        points = [(m.name, m.latency_ms, m.accuracy) for m in members]
        _scatter(axes, points, marker, color, label)
    held = len(family.reference.right)
    title = f"{family.engine} {family.precision}; networks alone on {held} selection inputs"
    if bundle is not None:
        # other inputs than the family's: the networks are drawn again as they did on these
        points = [(a.name, a.mean_ms, a.accuracy) for a in networks_alone(bundle)]
        _scatter(axes, points, "s", "tab:orange", "alone, calibration inputs", hollow=True, named=False)
        several = [p for p in bundle.frontier.points if max(p.point.shares) < 1]
        points = [(p.point.name, p.mean_ms[0], p.point.accuracy[1]) for p in several]
        _scatter(axes, points, "o", "tab:orange", "cascade, calibration inputs")
        axes.plot([x for _, x, _ in points], [100 * y for _, _, y in points], color="tab:orange")
    axes.set(xlabel="latency of one input (ms)", ylabel="accuracy (%)", title=title)
    axes.set_xlim(0, 1.25 * axes.dataLim.x1)  # room for the name of the slowest
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _scatter(
    axes: Any,
    points: list[tuple[str, float, float]],
    marker: str,
    color: str,
    label: str,
    hollow: bool = False,
    named: bool = True,
) -> None:
    """Points (name, ms, accuracy) of one kind."""
    if not points:
        return
    x, y = [ms for _, ms, _ in points], [100 * accuracy for _, _, accuracy in points]
    face = "none" if hollow else color
    axes.plot(x, y, marker, color=color, markerfacecolor=face, label=label, zorder=3, linestyle="")
    for name, ms, accuracy in points if named else []:
        at, offset = (ms, 100 * accuracy), (6, -11)
        axes.annotate(name, at, offset, textcoords="offset points", fontsize=8, color=color)
