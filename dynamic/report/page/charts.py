"""The charts of a report in their order."""

from dynamic.report.page.chart_parts import Chart
from dynamic.report.page.content import Content
from dynamic.report.page.point_charts import classes_chart, costs_chart, exits_chart, frontier_chart
from dynamic.report.page.stage_charts import day_charts, stage_charts


def charts(content: Content) -> tuple[Chart, ...]:
    """Every chart of a page. What the content lacks has none.

    Args:
        content: The figures.

    Returns:
        The charts, in the order of the page.
    """
    drawn = [frontier_chart(content), exits_chart(content), classes_chart(content), costs_chart(content)]
    drawn += [*stage_charts(content), *day_charts(content)]
    return tuple(chart for chart in drawn if chart is not None)
