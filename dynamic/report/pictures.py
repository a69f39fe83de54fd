"""Pictures of bundles, ladders, frontiers and simulations, as axes of matplotlib."""

from functools import singledispatch
from typing import TYPE_CHECKING, Any

import numpy as np

from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Interval, Ladder
from dynamic.report.answer_pictures import draw_batch, draw_prediction
from dynamic.report.figures import column_of_axes, one_axes
from dynamic.report.reported_bundle import ReportedBundle
from dynamic.report.stages_alone import ladder_word, stages_alone
from dynamic.runtime.result import BatchResult, Prediction, Statistics
from dynamic.simulate.report import SimulationReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _ORANGE = "#0072b2", "#d55e00"  # two that the colour-blind tell apart (Okabe and Ito 2008)


def plot(what: Any, axes: "Axes | None" = None, *, image: Any = None) -> Any:
    """Draw a bundle, a ladder, a frontier, the report of a simulation, the statistics of a runtime, or an answer.

    A bundle that was profiled is accuracy against latency: points of the cascade joined by a line, and each stage
    alone. Before, it is its ladder: accuracy of every point, and where inputs exit. Bars of error are 95% intervals.

    Args:
        what: The object. It is the same as `what.plot()`.
        axes: Axes of matplotlib to draw into. None: new ones. A simulation has several, and always makes its own.
        image: Of an answer the image, of a batch the images. None: an answer is drawn as bars.

    Returns:
        The axes. For a simulation an array of axes `[rows]`, for a batch `[N]`.

    Raises:
        InputError: There is no picture of such an object, or it has no image.
        ModuleNotFoundError: matplotlib is missing. The message names the extra.

    Example:
        >>> axes = dynamic.plot(ladder)
        >>> axes.get_xlabel()
        'share of inputs that exit at each stage'
    """
    if isinstance(what, BatchResult):
        return draw_batch(what, image, axes)
    if isinstance(what, Prediction):
        return draw_prediction(what, image, axes)
    if image is not None:
        raise InputError(f"an image goes with an answer, and a {type(what).__name__} has none: leave image out")
    return _draw(what, axes)


@singledispatch
def _draw(what: Any, axes: "Axes | None") -> Any:
    if isinstance(getattr(what, "ladder", None), Ladder) and hasattr(type(what), "records"):
        return _bundle(what, axes)  # by its contract: a bundle imports its report, not the other way round
    raise InputError(
        f"there is no picture of a {type(what).__name__}: give a Bundle, Ladder, Frontier, SimulationReport, "
        "Statistics, Prediction or BatchResult"
    )


def _bundle(bundle: ReportedBundle, axes: "Axes | None") -> "Axes":
    """Accuracy against latency where the bundle is profiled, else its ladder."""
    if bundle.costs is None:
        return _ladder(bundle.ladder, axes)
    axes = _frontier(bundle.frontier, axes)
    for alone in stages_alone(bundle.frontier, bundle.records):
        _with_interval(axes, alone.mean_ms, alone.accuracy, fmt="s", color=_ORANGE)
        axes.annotate(alone.name, (alone.mean_ms, alone.accuracy.mid), (6, -12), textcoords="offset points", fontsize=8)
    axes.plot([], [], "s", color=_ORANGE, label="one stage alone")
    axes.legend(loc="lower right", fontsize=8)
    return axes


@_draw.register(Frontier)
def _frontier(frontier: Frontier, axes: "Axes | None" = None) -> "Axes":
    axes = one_axes(axes)
    points = sorted(frontier.points, key=lambda point: point.mean_ms[0])
    for point in points:
        _with_interval(axes, point.mean_ms[0], point.accuracy, fmt="o", color=_BLUE)
        axes.annotate(
            point.name, (point.mean_ms[0], point.accuracy.mid), (6, 5), textcoords="offset points", fontsize=8
        )
    x, y = [point.mean_ms[0] for point in points], [point.accuracy.mid for point in points]
    axes.plot(x, y, "-o", color=_BLUE, label="points of the cascade")
    rows = frontier.costs.batch[0]
    axes.set(
        xlabel=f"mean latency of {'one input' if rows == 1 else f'{rows} inputs'} (ms)",
        ylabel=ladder_word(frontier.ladder),
        title=f"{frontier.costs.engine} {frontier.costs.precision}, {frontier.costs.threads} threads",
    )
    axes.grid(alpha=0.3)
    axes.margins(0.12)
    return axes


@_draw.register(Ladder)
def _ladder(ladder: Ladder, axes: "Axes | None" = None) -> "Axes":
    axes = one_axes(axes, height=1.4 + 0.45 * len(ladder.points))
    names = [f"{point.name}\n{point.accuracy.mid:.4f}" for point in ladder.points]
    left = np.zeros(len(names))
    for stage, name in enumerate(ladder.stage_names):
        share = np.array([point.shares[stage] for point in ladder.points])
        shade = 0.25 + 0.6 * stage / max(len(ladder.stage_names) - 1, 1)
        axes.barh(names, share, left=left, label=name, color=_shade(shade))
        left += share
    axes.invert_yaxis()
    axes.set(
        xlabel="share of inputs that exit at each stage",
        xlim=(0, 1),
        title=f"{ladder_word(ladder)} of each point, {'certified' if ladder.certified else 'not certified'}",
    )
    axes.legend(title="stage", fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return axes


@_draw.register(Statistics)
def _statistics(stats: Statistics, axes: "Axes | None" = None) -> "Axes":
    axes = one_axes(axes, height=3.0)
    shares = {f"stage {stage}": share for stage, share in enumerate(stats.stage_shares)}
    bars = axes.barh([*shares, *stats.point_shares], [*shares.values(), *stats.point_shares.values()])
    for bar in bars[: len(shares)]:
        bar.set_color(_ORANGE)
    axes.bar_label(bars, fmt="{:.1%}", fontsize=8, padding=3)
    axes.invert_yaxis()
    axes.set(
        xlabel="share of inputs by stage, and of requests by operating point",
        xlim=(0, 1.15),
        title=f"{stats.requests} requests, mean {stats.mean_latency_ms:.3g} ms",
    )
    return axes


@_draw.register(SimulationReport)
def _simulation(report: SimulationReport, axes: "Axes | None" = None) -> Any:
    if axes is not None:
        raise InputError("a simulation is drawn into several axes: leave `axes` out")
    hours = np.array(report.series["time_s"], float) / 3600
    rows = {
        "latency, p95 (ms)": "p95_latency_ms",
        "battery": "battery",
        "temperature (C)": "temperature_c",
        "accuracy of the point": "point_accuracy",
    }
    shown = {
        label: np.array(report.series[name], float)  # None becomes NaN, which is a gap
        for label, name in rows.items()
        if any(value is not None for value in report.series.get(name, ()))
    }
    every = column_of_axes(max(len(shown), 1))
    for own, (label, values) in zip(every, shown.items(), strict=False):
        own.plot(hours, values, color=_BLUE)
        own.set_ylabel(label, fontsize=8)
        own.grid(alpha=0.3)
        for change in report.changes:
            own.axvline(change.time_s / 3600, color=_ORANGE, alpha=0.4, linewidth=0.7)
    every[0].set_title(f"simulated on {report.device}. A vertical line is a change of operating point", fontsize=9)
    every[-1].set_xlabel("hours")
    return every


def _with_interval(axes: "Axes", x: float, value: Interval, *, fmt: str, color: str) -> None:
    error = [[value.mid - value.low], [value.high - value.mid]]
    axes.errorbar(x, value.mid, yerr=error, fmt=fmt, color=color, capsize=2, alpha=0.8, linewidth=1)


def _shade(value: float) -> tuple[float, float, float]:
    """A blue from light (0) to dark (1)."""
    return (0.85 * (1 - value), 0.92 * (1 - value) + 0.2 * value, 1 - 0.45 * value)
