"""Charts of operating points: accuracy against latency, exits, classes, and what stages cost."""

from dataclasses import asdict

from dynamic.report.page.chart_parts import PICKED, RIGHT, WRONG, Chart, Spec, axis, tips, vega_lite
from dynamic.report.page.content import Content

KINDS = ("point of the cascade", "beaten on this machine", "one stage alone")


def frontier_chart(content: Content) -> Chart | None:
    """Accuracy against latency of points and of each stage alone. None: not profiled."""
    if not content.alone:
        return None
    rows = [
        {
            "name": row.name,
            "kind": KINDS[0] if row.on_frontier else KINDS[1],
            "ms": row.mean_ms,
            **row.accuracy._asdict(),
        }
        for row in content.points
    ]
    rows += [{"name": row.name, "kind": KINDS[2], "ms": row.mean_ms, **row.accuracy._asdict()} for row in content.alone]
    right = f"datum.ms > {(min(row['ms'] or 0 for row in rows) + max(row['ms'] or 0 for row in rows)) / 2}"
    x = axis("ms", "mean latency of one input (ms)", zero=False, padding=20)
    y = axis("mid", content.ladder_word, zero=False, format=".1%")
    color: Spec = {"field": "kind", "type": "nominal", "title": None, "scale": {"domain": list(KINDS)}}
    color["legend"] = {"orient": "top", "columns": 1, "labelLimit": 300}
    tip = tips({"name": "name", "ms": "mean ms", "mid": "accuracy", "low": "95% low", "high": "95% high"})
    layers: list[Spec] = [
        {"mark": {"type": "rule", "opacity": 0.5}, "encoding": {"y": {**y, "field": "low"}, "y2": {"field": "high"}}},
        {
            "transform": [{"filter": f"datum.kind == '{KINDS[0]}'"}],
            "mark": {"type": "line", "strokeDash": [4, 3], "opacity": 0.6},
            "encoding": {"y": y, "order": {"field": "ms"}},
        },
        {
            "mark": {"type": "point", "filled": True, "cursor": "pointer", "opacity": 1},
            "encoding": {
                "y": y,
                "shape": {"field": "kind", "type": "nominal", "scale": {"domain": list(KINDS)}},
                "size": {"condition": {"test": PICKED, "value": 260}, "value": 80},
                "tooltip": tip,
            },
        },
        *(
            {
                "transform": [{"filter": which}],
                # to the left in the right half, where a long name would leave the chart
                "mark": {"type": "text", "align": {"expr": f"{right} ? 'right' : 'left'"}, "dy": dy, "fontSize": 12}
                | {"dx": {"expr": f"{right} ? -9 : 9"}},
                "encoding": {"y": y, "text": {"field": "name"}},
            }
            for which, dy in ((f"{PICKED} && datum.kind != '{KINDS[2]}'", -12), (f"datum.kind == '{KINDS[2]}'", 13))
        ),
    ]
    spec = vega_lite(rows, layer=layers, encoding={"x": x, "color": color}, height=340)
    about = f"{content.ladder_word} against mean latency, {len(rows)} marks with 95% intervals."
    return Chart("frontier", "Accuracy against latency", spec, about)


def exits_chart(content: Content) -> Chart:
    """Where inputs exit at each point."""
    rows = [
        {"name": row.name, "stage": stage, "number": number, "share": share}
        for row in content.points
        for number, (stage, share) in enumerate(zip(content.stages, row.shares, strict=True))
    ]
    spec = vega_lite(
        rows,
        mark={"type": "bar", "cursor": "pointer"},
        encoding={
            "y": {"field": "name", "type": "nominal", "sort": None, "title": None, "axis": {"labelLimit": 110}},
            "x": {"field": "share", "type": "quantitative", "title": "share of inputs", "axis": {"format": "%"}},
            "color": {
                "field": "stage",
                "type": "nominal",
                "sort": None,
                "title": "exit at",
                "legend": {"orient": "top", "columns": 3},
            },
            "order": {"field": "number"},
            "opacity": {"condition": {"test": PICKED, "value": 1}, "value": 0.55},
            "tooltip": tips({"name": "point", "stage": "stage", "share": "share of inputs"}),
        },
        height=30 * len(content.points),
    )
    return Chart("exits", "Where inputs exit", spec, f"Shares of {len(content.stages)} stages at each operating point.")


def classes_chart(content: Content) -> Chart | None:
    """Accuracy that each class loses at the selected point. None: there are no records."""
    rows = [asdict(row) | {"name": row.point, "label": row.name} for own in content.answers for row in own.classes]
    if not rows:
        return None
    most = max(len(own.classes) for own in content.answers)
    spec = vega_lite(
        rows,
        transform=[{"filter": PICKED}],
        mark={"type": "bar"},
        encoding={
            "y": {"field": "label", "type": "nominal", "sort": {"field": "drop", "order": "descending"}, "title": None},
            "x": {"field": "drop", "type": "quantitative", "title": "accuracy lost", "axis": {"format": ".1%"}},
            "color": {"condition": {"test": "datum.drop > 0", "value": WRONG}, "value": RIGHT},
            "tooltip": tips(
                {"label": "class", "count": "inputs", "reference.mid": "reference", "accuracy.mid": "point"}
            ),
        },
        height=max(22 * most, 60),
    )
    return Chart("classes", "Accuracy lost by class", spec, "Accuracy that each class loses at the selected point.")


def costs_chart(content: Content) -> Chart | None:
    """Median, p95 and CPU time of each stage. None: not profiled."""
    if not content.stage_costs:
        return None
    names = {"p50_ms": "median ms", "p95_ms": "p95 ms", "cpu_ms": "CPU-ms"}
    rows = [
        {"stage": cost.stage, "figure": word, "ms": getattr(cost, name)}
        for cost in content.stage_costs
        for name, word in names.items()
    ]
    spec = vega_lite(
        rows,
        mark={"type": "bar"},
        encoding={
            "y": {"field": "stage", "type": "nominal", "sort": None, "title": None},
            "yOffset": {"field": "figure", "sort": None},
            "x": {
                "field": "ms",
                "type": "quantitative",
                "title": "milliseconds for one input",
                "axis": {"tickCount": 6},
            },
            "color": {"field": "figure", "type": "nominal", "sort": None, "title": None, "legend": {"orient": "top"}},
            "tooltip": tips({"stage": "stage", "figure": "figure", "ms": "ms"}),
        },
        height=60 * len(content.stages),
    )
    return Chart("costs", "What each stage costs here", spec, "Median, p95 and CPU time of each stage.")
