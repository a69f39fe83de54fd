"""What charts in Vega-Lite share. Vega draws them as SVG in the browser.

The page sets two signals. `picked` is the operating point that the reader selected, `hour` the time of the day.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Spec = dict[str, Any]
PICKED = "datum.name == picked"
RIGHT, WRONG = "#0072b2", "#d55e00"  # two that the colour-blind tell apart (Okabe and Ito 2008)


@dataclass(frozen=True)
class Chart:
    """One chart.

    Args:
        key: Where it stands in the page.
        title: Its title.
        spec: Vega-Lite.
        about: What it shows, for readers that do not see it.
    """

    key: str
    title: str
    spec: Spec
    about: str


def vega_lite(values: Sequence[Any], *, height: int, **parts: Any) -> Spec:
    """A chart as wide as its place in the page.

    Args:
        values: The rows of its data.
        height: Pixels.
        parts: Further parts of the specification.

    Returns:
        The specification.
    """
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": "picked", "value": "reference"}, {"name": "hour", "value": 12}],
        "data": {"values": list(values)},
        **parts,
    }


def axis(field: str, title: str | None, *, zero: bool = True, format: str = "~g", padding: int = 0) -> Spec:
    """The channel of a quantity.

    Args:
        field: Its field.
        title: Of the axis. None: there is none.
        zero: Whether the axis begins at 0.
        format: Of the labels.
        padding: Pixels at both ends.

    Returns:
        The channel.
    """
    return {
        "field": field,
        "type": "quantitative",
        "title": title,
        "scale": {"zero": zero, "nice": not padding, "padding": padding},
        "axis": {"format": format, "tickCount": 6},
    }


def tips(fields: dict[str, str]) -> list[Spec]:
    """A tooltip with these fields and their titles."""
    return [{"field": field, "title": title} for field, title in fields.items()]
