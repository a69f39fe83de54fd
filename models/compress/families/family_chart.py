"""A family as a picture: accuracy against latency, of networks alone and of the cascade."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamic.bundle.bundle import Bundle
from dynamic.models.compress.families.cascade_advice import networks_alone
from dynamic.models.compress.families.family_members import Member
from dynamic.policies.errors import DynamicError
from dynamic.report.figures import file_figure, save_figure


def draw(
    members: Sequence[Member], cascade_members: Sequence[Member], ran_on: str, path: Path, bundle: Bundle | None
) -> Path:
    """Write the picture to `path`, whose suffix is the format. The last of `members` is the reference."""
    try:
        figure = file_figure(7.5, 4.8)
    except ModuleNotFoundError as error:
        raise DynamicError('pictures need matplotlib: pip install "dynamic-inference[plot]"') from error
    axes = figure.subplots()
    reference = members[-1]
    beaten = [m for m in members if m.beaten is not None]
    rest = [m for m in members if m not in cascade_members and m.beaten is None]
    looks = (
        ("alone, in the cascade", [m for m in cascade_members if m is not reference], "s", "tab:blue"),
        ("alone, beaten", beaten, "x", "tab:gray"),
        ("alone, not faster than the reference", rest, "^", "tab:gray"),
        ("reference", [reference], "*", "black"),
    )
    for label, networks, marker, color in looks:
        points = [(m.name, m.latency_ms, m.accuracy) for m in networks]
        _scatter(axes, points, marker, color, label)
    title = f"{ran_on}, networks alone on {len(reference.right)} selection inputs"
    if bundle is not None:
        # the bundle has other inputs than the family, so its networks are drawn again
        points = [(a.name, a.mean_ms, a.accuracy) for a in networks_alone(bundle)]
        _scatter(axes, points, "s", "tab:orange", "alone, calibration inputs", hollow=True, named=False)
        several = [p for p in bundle.frontier.points if max(p.shares) < 1]
        points = [(p.name, p.mean_ms[0], p.accuracy.mid) for p in several]
        _scatter(axes, points, "o", "tab:orange", "cascade, calibration inputs")
        axes.plot([x for _, x, _ in points], [100 * y for _, _, y in points], color="tab:orange")
    axes.set(xlabel="latency of one input (ms)", ylabel="accuracy (%)", title=title)
    axes.set_xlim(0, 1.25 * axes.dataLim.x1)  # space for the name of the slowest
    axes.margins(y=0.15)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    return save_figure(figure, path)


def _scatter(
    axes: Any,
    points: list[tuple[str, float, float]],
    marker: str,
    color: str,
    label: str,
    hollow: bool = False,
    named: bool = True,
) -> None:
    """Draw points (name, ms, accuracy) of one kind."""
    if not points:
        return
    x, y = [ms for _, ms, _ in points], [100 * accuracy for _, _, accuracy in points]
    face = "none" if hollow else color
    axes.plot(x, y, marker, color=color, markerfacecolor=face, label=label, zorder=3, linestyle="")
    for name, ms, accuracy in points if named else []:
        at, offset = (ms, 100 * accuracy), (6, -11)
        axes.annotate(name, at, offset, textcoords="offset points", fontsize=8, color=color)
