"""Charts of stages, their scores and their reliability, and of the simulated day."""

from dataclasses import asdict

from dynamic.report.page.chart_parts import RIGHT, WRONG, Chart, Spec, axis, tips, vega_lite
from dynamic.report.page.content import Content


def stage_charts(content: Content) -> list[Chart]:
    """For each stage its scores before and after the temperature, and its reliability."""
    drawn = []
    for stage in content.stages:
        for scaled, word in ((False, "before"), (True, "after")):
            bins = [asdict(row) for row in content.scores if row.stage == stage and row.scaled == scaled]
            rows = [
                {"low": row["low"], "high": row["high"], "answer": answer, "inputs": row[answer]}
                for row in bins
                for answer in ("right", "wrong")
            ]
            color = {"field": "answer", "type": "nominal", "title": None, "scale": {"range": [RIGHT, WRONG]}}
            spec = vega_lite(
                rows,
                mark={"type": "bar"},
                encoding={
                    "x": {**axis("low", f"score ({content.score_word})"), "bin": {"binned": True}},
                    "x2": {"field": "high"},
                    "y": {"field": "inputs", "type": "quantitative", "title": "inputs", "stack": True},
                    "color": color | {"legend": {"orient": "top"}},
                    "tooltip": tips({"low": "from", "high": "to", "answer": "answers", "inputs": "inputs"}),
                },
                height=150,
            )
            title = f"{stage}: scores {word} temperature scaling"
            drawn.append(
                Chart(f"scores-{stage}-{word}", title, spec, f"Histogram of {title}, right and wrong answers.")
            )
        drawn.append(_reliability(content, stage))
    return drawn


def _reliability(content: Content, stage: str) -> Chart:
    rows = [
        asdict(row) | {"scaling": "after" if row.scaled else "before"}
        for row in content.reliability
        if row.stage == stage
    ]
    square = {"zero": True, "domain": [0, 1]}
    layers: list[Spec] = [
        {
            "data": {"values": [{"v": 0}, {"v": 1}]},
            "mark": {"type": "line", "strokeDash": [3, 3], "opacity": 0.5, "color": "#888"},
            "encoding": {"x": {"field": "v", "type": "quantitative"}, "y": {"field": "v", "type": "quantitative"}},
        },
        {
            "mark": {"type": "line", "point": True},
            "encoding": {
                "x": {**axis("confidence", "confidence"), "scale": square},
                "y": {**axis("accuracy", "share that is right"), "scale": square},
                "color": {
                    "field": "scaling",
                    "type": "nominal",
                    "title": "temperature",
                    "sort": ["before", "after"],
                    "legend": {"orient": "top"},
                },
                "tooltip": tips({"confidence": "confidence", "accuracy": "right", "count": "inputs"}),
            },
        },
    ]
    title = f"{stage}: is its confidence right?"
    about = "Share of right answers against confidence, before and after temperature scaling. The diagonal is ideal."
    return Chart(f"reliability-{stage}", title, vega_lite(rows, layer=layers, height=200), about)


def day_charts(content: Content) -> list[Chart]:
    """Figures over the hours, each with a line at the hour that the reader set."""
    day = content.day
    if day is None:
        return []
    figures = {
        "battery": ("battery", "%"),
        "temperature_c": ("temperature (C)", ".0f"),
        "p95_ms": ("latency, p95 (ms)", "~g"),
        "accuracy": ("accuracy of the point", ".1%"),
        "load": ("load by others (cores in demand, as a share)", "~g"),
    }
    drawn = []
    for name, (title, form) in figures.items():
        rows = [{"hour": moment.hour, "value": getattr(moment, name)} for moment in day.moments]
        if all(row["value"] is None for row in rows):
            continue
        hours = {"values": list(range(0, 25, 4))}
        x = {"field": "hour", "type": "quantitative", "title": "hour of the day", "axis": hours}
        x |= {"scale": {"domain": [0, 24]}}
        y = {**axis("value", None, zero=name == "load", format=form)}
        layers: list[Spec] = [
            {"mark": {"type": "line", "interpolate": "step-after"}, "encoding": {"x": x, "y": y}},
            {
                "data": {"values": [{}]},
                "transform": [{"calculate": "hour", "as": "hour"}],
                "mark": {"type": "rule", "color": WRONG, "strokeWidth": 2},
                "encoding": {"x": x},
            },
        ]
        if name == "p95_ms" and day.limit_ms is not None:
            limit: Spec = {"type": "rule", "strokeDash": [4, 4], "color": WRONG}
            layers.append({"mark": limit, "encoding": {"y": {"datum": day.limit_ms}}})
        about = f"{title} over 24 simulated hours."
        drawn.append(Chart(f"day-{name}", title, vega_lite(rows, layer=layers, height=110), about))
    return drawn
