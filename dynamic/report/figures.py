"""Figures of matplotlib: the only file that imports it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamic.extras import with_remedy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def one_axes(axes: "Axes | None", width: float = 7.0, height: float = 4.2) -> "Axes":
    """These axes, or new ones in a new figure of pyplot, which a notebook then shows."""
    if axes is not None:
        return axes
    return _pyplot().subplots(figsize=(width, height), layout="constrained")[1]  # type: ignore[no-any-return]


def column_of_axes(rows: int, width: float = 7.5, height: float = 1.7) -> Any:
    """Axes below each other `[rows]` with one horizontal scale, in a new figure of pyplot."""
    size = (width, height * rows)
    return _pyplot().subplots(rows, sharex=True, squeeze=False, figsize=size, layout="constrained")[1][:, 0]


def grid_of_axes(count: int, columns: int, side: float = 2.2) -> Any:
    """Axes in rows `[count]`, in a new figure of pyplot. Places that are left over are empty."""
    rows = -(-count // columns)
    size = (side * columns, (side + 1.1) * rows)  # a title above, three lines below
    every = _pyplot().subplots(rows, columns, squeeze=False, figsize=size, layout="constrained")[1].reshape(-1)
    for spare in every[count:]:
        spare.set_axis_off()
    return every[:count]


def _pyplot() -> Any:
    try:
        from matplotlib import pyplot
    except ModuleNotFoundError as error:
        raise with_remedy(error, "a picture") from error
    return pyplot


def file_figure(width: float, height: float) -> "Figure":
    """A figure for a file alone: pyplot's settings and windows belong to the user."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path) -> Path:
    """Write a figure. The suffix of the path is the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
