"""A report as one file of HTML: figures, tables, and Vega inlined, so that it loads nothing from elsewhere."""

import html
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dynamic.extras import with_remedy
from dynamic.policies.budget import Budget
from dynamic.policies.errors import BundleError
from dynamic.report.page.chart_parts import Chart
from dynamic.report.page.charts import charts
from dynamic.report.page.content import Content, content_of
from dynamic.report.reported_bundle import ReportedBundle
from dynamic.storage.atomic_write import replace_text

_HERE = Path(__file__).parent
_FRAME_HEIGHT = 900  # pixels of a notebook


@dataclass(frozen=True, eq=False)
class Report:
    """The report of a bundle. A notebook shows it, and `save` writes it.

    Args:
        html: The page.
        content: What it shows, as data.

    Example:
        >>> report = bundle.report(progress=False)
        >>> report.html.startswith("<!doctype html>"), len(report.html) < 3_000_000
        (True, True)
    """

    html: str
    content: Content

    def save(self, path: str | Path) -> Path:
        """Write the page.

        Args:
            path: The file. It is replaced.

        Returns:
            The file.

        Raises:
            DiskError: The disk refuses.

        Example:
            >>> bundle.report(progress=False).save("report.html").name
            'report.html'
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, self.html)
        return path

    def _repr_html_(self) -> str:
        """The page in a frame of its own, so that its style does not meet the notebook's."""
        source = html.escape(self.html, quote=True)
        style = f"width:100%;height:{_FRAME_HEIGHT}px;border:0"
        return f'<iframe title="Report of a bundle" style="{style}" srcdoc="{source}"></iframe>'

    def __repr__(self) -> str:
        points, size = len(self.content.points), len(self.html) / 1e6
        return f"Report({points} operating points, {size:.1f} MB of HTML, save(path) writes it)"


def report_of(
    bundle: ReportedBundle,
    eval_loader: Iterable[Any] | None,
    *,
    device: str,
    budget: Budget | None,
    seed: int,
    progress: bool | None,
) -> Report:
    """Make a report. See `Bundle.report`."""
    if bundle.slim is not None and not bundle.slim.has_reference:
        raise BundleError(
            "this bundle was made by slim without the reference, which a report compares with. Report on the "
            "whole bundle"
        )
    _template(), vega_bundle()  # a package that is missing is named before the work
    content = content_of(bundle, eval_loader, device=device, budget=budget, seed=seed, progress=progress)
    return Report(page_of(content), content)


def page_of(content: Content) -> str:
    """The page of these figures."""
    every = charts(content)
    page: str = _template().render(
        content=content,
        charts={chart.key: chart for chart in every},
        stage_charts=[_charts_of(stage, every) for stage in content.stages],
        day_charts=[chart for chart in every if chart.key.startswith("day-")],
        data=_json(asdict(content)),
        specs=_json({chart.key: chart.spec for chart in every}),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        js=(_HERE / "page.js").read_text(encoding="utf-8"),
        vega=vega_bundle(),
    )
    return page


def _charts_of(stage: str, every: Iterable[Chart]) -> list[Chart]:
    keys = {f"scores-{stage}-before", f"scores-{stage}-after", f"reliability-{stage}"}
    return [chart for chart in every if chart.key in keys]


@cache
def vega_bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script of 0.9 MB, from the wheel of vl-convert."""
    try:
        import vl_convert
    except ModuleNotFoundError as error:
        raise with_remedy(error, "a report") from error
    script: str = vl_convert.javascript_bundle(None)  # type: ignore[arg-type]  # its types lack the default
    return script.replace("</script", "<\\/script")


@cache
def _template() -> Any:
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise with_remedy(error, "a report") from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
    environment.filters |= {"number": _number, "percent": _percent}
    return environment.get_template("page.html")


def _json(data: Any) -> str:
    """JSON that may stand inside a script of HTML. NaN and infinity have no place in it."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None else f"{value:.{digits}f}"


def _percent(value: float | None, digits: int = 2) -> str:
    return "not measured" if value is None else f"{value:.{digits}%}"
