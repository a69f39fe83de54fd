"""What pictures show equals what the objects hold, and nothing draws at import."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot
from support.simulation_cases import FRONTIER, PLAIN, RECORDS, WARM

import dynamic
from dynamic.policies.errors import InputError
from dynamic.policies.frontier import Frontier
from dynamic.report.stages_alone import stages_alone
from dynamic.runtime.result import Statistics
from dynamic.simulate import Constant, simulate


@pytest.fixture(autouse=True)
def figures() -> Iterator[None]:
    pyplot.switch_backend("agg")
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def frontier() -> Frontier:
    return FRONTIER


def test_importing_the_room_loads_no_library_of_pictures() -> None:
    code = "import sys, dynamic; dynamic.plot; print([m for m in ('matplotlib', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_missing_library_is_named_with_its_extra() -> None:
    code = "import sys; sys.modules['matplotlib'] = None\nfrom dynamic.report.figures import one_axes; one_axes(None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert 'a picture needs matplotlib, which is not installed: pip install "dynamic-inference[plot]"' in done.stderr


def test_a_ladder_shows_the_shares_of_every_point(frontier: Frontier) -> None:
    ladder = frontier.ladder
    axes = ladder.plot()
    drawn = [[bar.get_width() for bar in stage] for stage in axes.containers]  # [S][points]
    assert np.allclose(np.transpose(drawn), [point.shares for point in ladder.points])
    names = [label.get_text().partition("\n")[0] for label in axes.get_yticklabels()]
    assert names == [point.name for point in ladder.points]


def test_a_frontier_shows_accuracy_against_latency(frontier: Frontier) -> None:
    axes = frontier.plot()
    line = next(line for line in axes.lines if line.get_label() == "points of the cascade")
    points = sorted(frontier.points, key=lambda point: point.mean_ms[0])
    assert line.get_xdata().tolist() == [point.mean_ms[0] for point in points]
    assert line.get_ydata().tolist() == [point.accuracy.mid for point in points]
    ends = [container.lines[2][0].get_segments()[0][:, 1].tolist() for container in axes.containers]
    assert ends == [[point.accuracy.low, point.accuracy.high] for point in points]


def test_axes_that_are_given_are_drawn_into(frontier: Frontier) -> None:
    _, own = pyplot.subplots()
    assert frontier.plot(own) is own
    assert dynamic.plot(frontier.ladder, own) is own
    assert pyplot.get_fignums() == [own.figure.number]


def test_stages_alone_by_hand(frontier: Frontier) -> None:
    early, late = stages_alone(frontier, RECORDS)
    # `early` says class 0 four times, of labels 0, 1, 1, 0. `late` is wrong about the last alone
    assert (early.accuracy.mid, late.accuracy.mid) == (0.5, 0.75)
    assert (early.mean_ms, late.mean_ms) == (20.0, 40.0)  # other networks are not run
    assert (early.memory_mb, late.memory_mb) == (50.0, 80.0)


def test_a_simulation_is_drawn_over_time(frontier: Frontier) -> None:
    arguments = {"workload": Constant(2, 20), "policy": dynamic.BudgetPolicy(), "budget": dynamic.Budget()}
    report = simulate(frontier, RECORDS, device=WARM, **arguments)
    rows = report.plot()
    labels = [axes.get_ylabel() for axes in rows]
    assert labels == ["latency, p95 (ms)", "battery", "temperature (C)", "accuracy of the point"]
    assert np.allclose(rows[1].lines[0].get_ydata(), np.array(report.series["battery"], float), equal_nan=True)
    assert rows[0].lines[0].get_xdata().tolist() == [time_s / 3600 for time_s in report.series["time_s"]]
    cold = simulate(frontier, RECORDS, device=PLAIN, **arguments)
    assert "temperature (C)" not in [axes.get_ylabel() for axes in cold.plot()]


def test_statistics_are_bars() -> None:
    stats = Statistics(4, 4, (0.25, 0.75), {"reference": 1.0}, 0, 1.0, 12.5, False, None)
    axes = stats.plot()
    assert [bar.get_width() for bar in axes.patches] == [0.25, 0.75, 1.0]


def test_another_object_has_no_picture() -> None:
    with pytest.raises(InputError, match="there is no picture of a int: give a Bundle"):
        dynamic.plot(7)


def test_groups_count_as_one_draw_each(frontier: Frontier) -> None:
    grouped = replace(RECORDS, group=np.array([0, 0, 0, 1]))
    early, late = stages_alone(frontier, grouped)
    # right answers by group: `early` 1 of 3 and 1 of 1, `late` 3 of 3 and 0 of 1
    assert early.accuracy.mid == pytest.approx(2 / 3)
    assert late.accuracy.mid == 0.5
    alone = stages_alone(frontier, RECORDS)[1]
    assert late.accuracy.high - late.accuracy.low > alone.accuracy.high - alone.accuracy.low
