"""Whole days, as the examples live them: what has to hold in them, on bundles made by hand."""

import importlib
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from support.policy_cases import learned, make_records
from support.runtime_cases import shared_blobs

import dynamic
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies import Frontier, Records

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LARGE_MS = 12.0
Given = tuple[Frontier, Records]


def example(name: str) -> Any:
    """The module of an example; they import each other by their bare names, as when they are run."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXAMPLES))


kiosk, shop, own = (example(name) for name in ("kiosk_day", "shop_server", "your_own_policy"))


@pytest.fixture(scope="module")
def given() -> Given:
    """Five points of three networks that cost as much as the example's, on made-up records; and the certifying ones."""
    logits, label = learned(3000, 3, classes=10, reach=(3.5, 6.0))
    part, body = np.arange(3000) % 3 > 0, (1.9e5, 1.6e6, 1.02e7)
    records = make_records(logits, label, (0, 1, 2), part, body, (0.0, 0.0, 0.0))
    ladder = dynamic.certify(records, max_drops=(0.005, 0.01, 0.02, 0.05))
    assert [point.name for point in ladder.points][:2] == ["reference", "drop 0.01"]
    assert len(ladder.points) == 5  # "best" measures below the reference here, and is none
    return Frontier.of(ladder, kiosk.costs(records)), records.select(records.part == 1)


@pytest.fixture(scope="module")
def day(given: Given) -> Any:
    return kiosk.live(*given)


def test_the_kiosk_answers_in_time_every_hour(day: Any) -> None:
    hours = list(day.hours())
    assert [hour.start for hour in hours] == list(range(8, 18))
    assert max(hour.p95_ms for hour in hours) <= kiosk.BUDGET.latency_ms
    assert sum(hour.frames for hour in hours) == day.report.answered == len(day.arrival_s)


def test_the_kiosks_battery_lasts_until_it_closes_and_is_used(day: Any) -> None:
    assert day.report.hours == pytest.approx(10.0, abs=0.001)
    floor = kiosk.BUDGET.battery_floor
    assert floor <= day.report.battery_left <= floor + 0.03
    # not spent early and missed later: after the mains were lost the last hour is no worse than the others
    assert list(day.hours())[-1].accuracy >= max(hour.accuracy for hour in list(day.hours())[4:9])


def test_a_silent_sensor_changes_no_decision(given: Given, day: Any) -> None:
    other = kiosk.live(*given, silent=False)
    silent_s, speaks_s = kiosk.seconds(13), kiosk.seconds(13 + 5 / 60)
    for run in (day, other):
        assert all(abs(change.time_s - at_s) > 10 for change in run.report.changes for at_s in (silent_s, speaks_s))
    # before, meanwhile, and in the quarter after it, as if it had spoken all the time
    for from_s, to_s in ((0.0, silent_s), (silent_s, speaks_s), (speaks_s, speaks_s + 900)):
        mine, others = day.shares(from_s, to_s), other.shares(from_s, to_s)
        assert sum(abs(mine.get(name, 0) - others.get(name, 0)) for name in mine | others) / 2 < 0.1, (mine, others)


def test_in_the_heat_the_kiosk_backs_off_before_anything_else_can_help(day: Any) -> None:
    # at 55 C in the case an idle Pi gets to 80 C: what lies above that is inference
    assert day.report.temperature_max_c < kiosk.BUDGET.temperature_c + 1
    assert day.shares(kiosk.seconds(14.2), kiosk.seconds(14.5)).get("cheapest", 0.0) > 0.5
    assert day.shares(kiosk.seconds(15), kiosk.seconds(18)).get("cheapest", 0.0) < 0.05


@pytest.mark.parametrize("hour", [8, 9, 10, 12, 16, 17])
def test_without_an_event_the_kiosk_changes_its_mind_six_times_an_hour_at_most(day: Any, hour: int) -> None:
    """Decisions that stand: a frame that has waited gets a faster point for itself alone."""
    assert next(found.switches for found in day.hours() if found.start == hour) <= 6


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> tuple[dynamic.Bundle, Any]:
    """The tests' bundle, with the inputs that it was calibrated on in place of the cameras' images."""
    bundle = shared_blobs(tmp_path_factory)
    torch.manual_seed(0)
    centers, label = torch.randn(4, 12), torch.arange(1200) % 4
    inputs = centers[label] + 1.1 * torch.randn(1200, 12)
    return bundle, SimpleNamespace(images=inputs[600:].numpy(), labels=label[600:].numpy())


@pytest.fixture(scope="module")
def night(blobs: tuple[dynamic.Bundle, Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A night on the real engine, made as slow as a larger network's, so that it is overloaded on every machine."""
    bundle, cameras = blobs
    assert bundle.costs is not None
    slow_ms = tuple(tuple(ms + LARGE_MS * stage for ms in row) for stage, row in enumerate(bundle.costs.latency_ms))
    costs = replace(bundle.costs, latency_ms=slow_ms, latency_p95_ms=slow_ms)
    slow = replace(bundle, costs=costs).save(tmp_path_factory.mktemp("night") / "slow")
    run = CascadeEngine.run

    def slowly(engine: CascadeEngine, *args: Any, **options: Any) -> Any:
        output = run(engine, *args, **options)
        time.sleep(LARGE_MS / 1e3 * float((output.stage > 0).any()))
        return output

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CascadeEngine, "run", slowly)
        with dynamic.Monitor(cpu=lambda: 0.0) as monitor:  # whatever else this machine does
            return shop.live(slow, cameras, hour_s=0.7, memory_mb=1e5, monitor=monitor)


def test_no_more_frames_wait_than_may_and_all_that_are_given_up_are_counted(night: Any) -> None:
    given_up = [answer for answer in night.answers if answer.latency_ms is None]
    assert 0 < len(given_up) == night.stats.shed
    assert night.stats.queue_longest <= shop.QUEUE
    assert night.stats.requests == len(night.answers) - len(given_up) + 1  # one before the day began


def test_no_frame_fails_while_the_bundle_is_replaced(night: Any) -> None:
    assert night.failures == []
    assert any(answer.latency_ms is not None for answer in night.between(shop.SWAP, shop.SWAP + 1))
    assert night.stats.engine_failures == night.stats.policy_failures == 0


def test_memory_is_what_it_was_after_the_overload_and_after_the_swap(night: Any) -> None:
    times = ((shop.OPENS + 1, shop.RUSH), (shop.CLOSED + 1, shop.SWAP), (shop.SWAP + 1, shop.ENDS))
    readings = [[mb for hour, mb in night.memory_mb if begins <= hour < ends] for begins, ends in times]
    if not all(readings):
        pytest.skip(f"a busy machine read the memory {list(map(len, readings))} times before, between and after")
    before_mb, between_mb, after_mb = map(median, readings)
    assert between_mb == pytest.approx(before_mb, rel=0.1)
    assert after_mb == pytest.approx(before_mb, rel=0.1)


def test_with_drift_and_overload_what_comes_first_wins(night: Any) -> None:
    answered = [answer for answer in night.answers if answer.latency_ms is not None]
    # time comes first: where frames wait, savings are made although inputs have drifted
    usual = [answer for answer in answered if shop.DARK + 0.3 < answer.done < shop.CAREFUL]
    dark = sum(shop.DARK < answer.done < shop.CAREFUL for answer in answered)
    # some 7 show the drift, and a decision holds until the next snapshot at most, or until a frame waits
    if dark < 64:
        pytest.skip(f"{dark} frames were answered in the dark, too few to show drift: test_budget_policy.py has it")
    assert sum(answer.point != "reference" for answer in usual) > 0.2 * len(usual)
    saving = [answer.reason for answer in usual if answer.point != "reference"]
    assert any("latency_ms" in reason and "drifted" in reason for reason in saving)
    # accuracy comes first: no savings, however late answers are and however many frames are given up
    careful = [answer for answer in answered if shop.CAREFUL + 0.1 < answer.done < shop.CLOSED]
    assert {answer.point for answer in careful} == {"reference"}
    late = [answer for answer in careful if answer.violated_limits]
    assert late
    assert all(answer.violated_limits == ("latency_ms",) for answer in late)
    assert all("drifted" in answer.reason and "is violated" in answer.reason for answer in late)
    lost = [sum(a.latency_ms is None for a in night.between(hour, hour + 1)) for hour in (shop.DARK, shop.CAREFUL)]
    assert lost[0] < lost[1]


def test_after_the_rush_no_frame_is_given_up_and_the_best_point_runs(night: Any) -> None:
    quiet = night.between(shop.CLOSED + 1, shop.SWAP)
    assert sum(answer.latency_ms is None for answer in quiet) < 0.05 * len(quiet)


def test_a_policy_of_ones_own_is_one_method(given: Given) -> None:
    frontier, records = given
    budget = dynamic.Budget(latency_ms=1000)
    phone, requests = own.device("mid-range-phone"), own.Diurnal(mean_hz=0.1, duration_s=24 * own.HOUR_S)
    report = own.simulate(
        frontier, records, device=phone, workload=requests, policy=own.NightAndDay(), budget=budget, plugged=1.0
    )
    night_only = [change for change in report.changes if "night" in change.reason]
    assert {change.point for change in night_only} == {frontier.cheapest.name}
    assert [change.time_s // own.HOUR_S for change in night_only] == [0, 22]
    assert any("by day" in change.reason for change in report.changes)


def test_a_policy_that_raises_fails_no_request(
    blobs: tuple[dynamic.Bundle, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    for policy, failures in ((own.NightAndDay(), 0), (own.Forgetful(), 100)):
        own.on_the_runtime(*blobs, policy, dynamic.Budget())
        printed = capsys.readouterr().out
        assert printed.count("100 answers") == 3
        assert f"{failures} failures of the policy, 0 of 300 requests" in printed
        assert ("its last decision stands" in printed) == bool(failures)
