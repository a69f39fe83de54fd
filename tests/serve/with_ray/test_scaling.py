"""How many replicas the tail has, by hand, and the policy as Ray calls it."""

from pathlib import Path
from typing import Any

import pytest
from support.serving.ray_cases import small_bundle

import dynamic
from dynamic.serve.ray.split.scaling import HEAD_ROWS, PASSED_ROWS, ROW_MS, Rates, Replicas, follow_head, replicas_for

config = pytest.importorskip("ray.serve.config", reason='needs Ray Serve: pip install "dynamic-inference[ray]"')
UP_TO_8 = Replicas(1, 8)


@pytest.mark.parametrize(
    ("rows_per_s", "share", "row_ms", "expected"),
    [
        (100.0, 0.3, 30.0, 2),  # 30 rows of 30 ms are 0.9 s of work a second: 0.9 / 0.7 = 1.29
        (100.0, 0.6, 30.0, 3),  # 1.8 / 0.7 = 2.57
        (100.0, 0.05, 30.0, 1),  # 0.15
        (70.0, 0.5, 20.0, 1),  # 0.7 / 0.7 is one to the point
        (1e4, 0.5, 30.0, 8),  # the most
        (0.0, 0.5, 30.0, 1),  # the least
    ],
)
def test_replicas_by_hand(rows_per_s: float, share: float, row_ms: float, expected: int) -> None:
    assert replicas_for(rows_per_s, share, row_ms, UP_TO_8) == expected


def test_rates_by_hand() -> None:
    now = [10.0]
    rates = Rates(lambda: now[0])
    now[0] = 12.0
    assert rates({"a": 30, "b": 8}) == {"a": 15.0, "b": 4.0}
    now[0] = 16.0
    assert rates({"a": 34, "b": 8}) == {"a": 1.0, "b": 0.0}
    now[0] = 17.0
    assert rates({"a": 0, "b": 8})["a"] == 0.0, "a counter that began anew"


def context(name: str, target: int, reports: dict[str, dict[str, float]] | None) -> Any:
    return config.AutoscalingContext(
        deployment_id=name,
        deployment_name=name,
        app_name="shelf",
        current_num_replicas=target,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=500.0,  # a queue, which says nothing here
        total_queued_requests=400.0,
        aggregated_metrics=reports,
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=None,
    )


def follow(reports: dict[str, dict[str, dict[str, float]] | None]) -> dict[str, int]:
    policy = config.AutoscalingPolicy(policy_function="dynamic.serve.ray.split.scaling:follow_head").get_policy()
    targets, state = policy({name: context(name, 2, report) for name, report in reports.items()})
    assert state == {}
    assert targets == follow_head({name: context(name, 2, report) for name, report in reports.items()})[0]
    return dict(targets)


def test_the_tail_follows_what_all_replicas_of_the_head_pass_on() -> None:
    head = {HEAD_ROWS: {"a": 60.0, "b": 40.0}, PASSED_ROWS: {"a": 20.0, "b": 10.0}}
    tail = {ROW_MS: {"c": 20.0, "d": 40.0}}
    # 30 rows a second of 30 ms: 0.9 / 0.7
    assert follow({"cascade": head, "tail": tail}) == {"cascade": 2, "tail": 2}
    assert follow({"cascade": {HEAD_ROWS: {"a": 200.0}, PASSED_ROWS: {"a": 80.0}}, "tail": tail})["tail"] == 4
    assert follow({"cascade": {HEAD_ROWS: {"a": 0.0}, PASSED_ROWS: {"a": 0.0}}, "tail": tail})["tail"] == 1


def test_before_any_report_nothing_changes() -> None:
    assert follow({"cascade": None, "tail": None}) == {"cascade": 2, "tail": 2}


def test_without_a_report_of_the_head_the_tail_keeps_its_number() -> None:
    """Nothing is known of the rows that arrive: that is no load of 0."""
    tail = {ROW_MS: {"c": 300.0}}
    assert follow({"tail": tail}) == {"tail": 2}
    assert follow({"cascade": None, "tail": tail}) == {"cascade": 2, "tail": 2}
    assert follow({"cascade": {HEAD_ROWS: {}, PASSED_ROWS: {}}, "tail": tail}) == {"cascade": 2, "tail": 2}


@pytest.mark.parametrize(("tail_replicas", "is_reported"), [((1, 4), True), (2, False)])
def test_a_head_of_a_fixed_number_reports_where_the_tail_follows_it(
    tmp_path: Path, tail_replicas: Any, is_reported: bool
) -> None:
    bundle = small_bundle(tmp_path / "shelf")
    head = dynamic.serve.application(bundle, cut=1, replicas=3, tail_replicas=tail_replicas)._bound_deployment
    scaling = head._deployment_config.autoscaling_config
    assert (scaling is not None) == is_reported
    assert head.num_replicas == 3 if scaling is None else (scaling.min_replicas, scaling.max_replicas) == (3, 3)


@pytest.mark.parametrize("value", [0, (0, 2), (3, 2), (1, 2, 3), 1.5, True, "2"])
def test_replicas_that_do_not_exist(value: Any) -> None:
    with pytest.raises(dynamic.errors.SettingError, match=r"tail_replicas=.*must be a whole number of at least 1"):
        Replicas.of(value, "tail_replicas")
    assert Replicas.of(3, "replicas") == Replicas(3, 3)
    assert Replicas.of((1, 4), "replicas") == Replicas(1, 4)
