"""The simulator against arithmetic by hand: two stages of 10 and 20 ms on a device half as fast."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from support.policy_cases import make_costs

from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder, OperatingPoint
from dynamic.policies.records import Records
from dynamic.simulate import Constant, Device, Poisson, Recorded, SimulationReport, device, devices, simulate

# 1 mWh is 3,600 mJ; half as fast: stages take 20 and 40 ms
DEVICE = Device(
    name="half",
    relative_speed=0.5,
    cores=2,
    memory_mb=1000,
    battery_mwh=1,
    idle_mw=100,
    active_mw=1000,
    source=dict.fromkeys(("relative_speed", "cores", "memory_mb", "battery_mwh", "idle_mw", "active_mw"), "assumption"),
)
COSTS = make_costs([[10], [20]])
SURE, UNSURE = [9.0, 0.0], [0.1, 0.0]  # both say class 0
# records: 0 and 1 are sure at once (1 wrongly), 2 and 3 are not; the last stage is wrong about 3 alone
RECORDS = Records(
    logits=np.array(
        [
            [SURE, [9.0, 0.0]],
            [SURE, [0.0, 9.0]],
            [UNSURE, [0.0, 9.0]],
            [UNSURE, [0.0, 9.0]],
        ],
        np.float32,
    ),
    label=np.array([0, 1, 1, 0]),
    group=None,
    part=np.ones(4, np.int8),
    backbone=(0, 0),
    macs=(1.0, 2.0),
    head_macs=(0.0, 0.0),
    stage_names=("early", "late"),
    fingerprint="f",
)


def point(name: str, threshold: float, accuracy: float, share: float) -> OperatingPoint:
    return OperatingPoint(
        name=name,
        thresholds=(threshold,),
        backbones=(0,),
        target=0.75 - accuracy,
        risk=0.75 - accuracy,
        bound=None,
        delta=None,
        n=4,
        accuracy=(accuracy, accuracy, accuracy),
        shares=(share, 1 - share),
    )


FRONTIER = Frontier.of(
    Ladder(
        temperature=(1.0, 1.0),
        score="max_probability",
        combine="last",
        backbone=(0, 0),
        stage_names=("early", "late"),
        points=(point("reference", np.inf, 0.75, 0.0), point("quick", 0.8, 0.5, 0.5)),
        fingerprint="f",
        certified=False,
    ),
    COSTS,
)


def run(workload: Any, budget: Budget | None = None, device: Device = DEVICE, **options: Any) -> SimulationReport:
    return simulate(
        FRONTIER, RECORDS, device=device, workload=workload, policy=BudgetPolicy(), budget=budget or Budget(), **options
    )


def test_full_depth_by_hand() -> None:
    # 4 requests in 0.4 s, 60 ms each: 100 mW x 0.4 s + 1000 mW x 0.24 s
    report = run(Constant(rate_hz=10, duration_s=0.4))
    assert (report.requests, report.answered, report.queue_longest) == (4, 4, 0)
    assert report.accuracy == 0.75
    assert report.latency_ms == pytest.approx([60, 60, 60, 60])
    assert report.mean_latency_ms == pytest.approx(60)
    assert report.energy_mj == pytest.approx(40 + 240)
    assert report.energy_source == "model"
    assert report.battery_left == pytest.approx(1 - 280 / 3600)
    assert report.hours == pytest.approx(0.4 / 3600)
    assert report.hours_per_charge == pytest.approx(1 / 700)  # 280 mJ in 0.4 s are 700 mW
    assert report.stage_shares == (0.0, 1.0)
    assert report.point_shares == {"reference": 1.0}
    assert [(c.time_s, c.point) for c in report.changes] == [(0.0, "reference")]
    assert report.late_share is None


def test_early_exits_by_hand() -> None:
    # two records leave after 20 ms, one of them wrongly; two take 60 ms
    report = run(Constant(rate_hz=10, duration_s=0.4), Budget(max_drop=0.25, latency_ms=50))
    assert report.accuracy == 0.5
    assert sorted(report.latency_ms) == pytest.approx([20, 20, 60, 60])
    assert report.energy_mj == pytest.approx(40 + 160)
    assert report.stage_shares == (0.5, 0.5)
    assert report.point_shares == {"quick": 1.0}
    assert report.late_share == 0.5


def test_queue_grows_under_overload() -> None:
    # request k arrives at 10k ms and is done at 60(k+1) ms; when the third starts, 120 ms on, all 10 are there
    report = run(Constant(rate_hz=100, duration_s=0.1))
    expected = [60 + 50 * k for k in range(10)]
    assert report.latency_ms == pytest.approx(expected)
    assert report.p95_latency_ms == pytest.approx(np.percentile(expected, 95))
    assert report.queue_longest == 7
    assert report.energy_mj == pytest.approx(0.6 * 1100)
    assert report.hours == pytest.approx(0.6 / 3600)
    assert run(Constant(rate_hz=10, duration_s=1)).queue_longest == 0


def test_battery_at_the_floor_takes_the_cheapest_point() -> None:
    # 70 mJ each 0.1 s; from 0.9 to 0.8 are 360 mJ: 350 are gone at 0.5 s, 420 at 0.6 s
    report = run(Constant(rate_hz=10, duration_s=1), Budget(battery_floor=0.8), battery=0.9)
    assert [(round(c.time_s, 9), c.point) for c in report.changes] == [(0.0, "reference"), (0.6, "quick")]
    assert "floor" in report.changes[1].reason
    assert report.point_shares == pytest.approx({"reference": 0.6, "quick": 0.4})


def test_an_empty_battery_answers_no_more() -> None:
    # 0.1 of 3600 mJ: 350 are gone after 5 requests, the last 10 last 9.09 ms into the sixth
    report = run(Constant(rate_hz=10, duration_s=1), battery=0.1)
    assert (report.requests, report.answered) == (10, 5)
    assert report.battery_left == 0
    assert report.energy_mj == pytest.approx(360)
    assert report.hours == pytest.approx((0.5 + 10 / 1100) / 3600)


def test_background_load_slows_and_is_seen() -> None:
    # both cores busy and one thread more: each gets 2/3 of a core
    report = run(Constant(rate_hz=5, duration_s=0.8), background_load=1.0)
    assert report.latency_ms == pytest.approx([90] * 4)
    # 60 ms fit into 65, 90 do not; the mean of "quick" is then 60
    limit = Budget(latency_ms=65, percentile=None)
    report = run(Constant(rate_hz=5, duration_s=2), limit, background_load=lambda t: float(t >= 1))
    assert [(c.time_s, c.point) for c in report.changes] == [(0.0, "reference"), (1.0, "quick")]


def test_memory_is_what_the_policy_sees() -> None:
    seen = []

    class Watching(BudgetPolicy):
        def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
            seen.append(snapshot)
            return super().decide(frontier, budget, snapshot, state)

    simulate(
        FRONTIER,
        RECORDS,
        device=DEVICE,
        workload=Constant(10, 0.2),
        policy=Watching(),
        budget=Budget(),
        monitor_hz=None,
    )
    assert [(s.memory_process_mb, s.memory_available_mb) for s in seen] == [(60, 940), (110, 890)]
    assert [s.time_s for s in seen] == [0.0, 0.1]
    assert seen[0].battery == 1.0
    assert seen[1].battery == pytest.approx(1 - 70 / 3600)
    assert seen[0].cpu_cores == 2


def test_the_seed_decides_everything() -> None:
    workload = Poisson(rate_hz=15, duration_s=20)
    budget = Budget(latency_ms=200, max_drop=0.25)
    first, again, other = (run(workload, budget, seed=seed) for seed in (1, 1, 2))
    assert first.to_json() == again.to_json()
    np.testing.assert_array_equal(first.latency_ms, again.latency_ms)
    assert first.latency_ms.tolist() != other.latency_ms.tolist()


def test_every_line_says_simulated() -> None:
    report = run(Constant(10, 0.4))
    assert all("simulated" in line for line in str(report).splitlines())
    assert len(str(report).splitlines()) > 5
    data = json.loads(json.dumps(report.to_json()))
    assert data["simulated"] is True
    assert data["changes"][0]["point"] == "reference"


def test_without_labels_accuracy_is_unknown() -> None:
    report = simulate(
        FRONTIER,
        replace(RECORDS, label=None),
        device=DEVICE,
        workload=Constant(10, 0.4),
        policy=BudgetPolicy(),
        budget=Budget(),
    )
    assert report.accuracy is None
    assert "accuracy  unknown" in str(report)


def test_nothing_arrives() -> None:
    quiet = Poisson(rate_hz=1e-9, duration_s=1)
    report = run(quiet)
    assert (report.requests, report.answered) == (0, 0)
    assert report.mean_latency_ms is None
    assert report.energy_mj == pytest.approx(100)
    assert "unknown" in str(report)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(SettingError, match="battery"):
        run(Constant(10, 1), battery=0)
    with pytest.raises(SettingError, match="background_load"):
        run(Constant(10, 1), background_load=-0.5)
    with pytest.raises(InputError, match="no records"):
        simulate(
            FRONTIER,
            RECORDS.select(np.array([], int)),
            device=DEVICE,
            workload=Constant(1, 1),
            policy=BudgetPolicy(),
            budget=Budget(),
        )
    three = replace(
        RECORDS,
        logits=np.zeros((4, 3, 2), np.float32),
        backbone=(0, 0, 0),
        macs=(1.0,) * 3,
        head_macs=(0.0,) * 3,
        stage_names=("a", "b", "c"),
    )
    with pytest.raises(InputError, match="3 stages"):
        simulate(FRONTIER, three, device=DEVICE, workload=Constant(1, 1), policy=BudgetPolicy(), budget=Budget())


def test_arrivals() -> None:
    random = np.random.default_rng(0)
    assert Constant(4, 1).arrivals(random).tolist() == [0.0, 0.25, 0.5, 0.75]
    assert len(Constant(0.1, 30).arrivals(random)) == 3
    assert len(Constant(3, 0.5).arrivals(random)) == 2  # at 0 and 1/3
    times = Poisson(50, 200).arrivals(random)
    assert (np.diff(times) >= 0).all()
    assert 0 <= times[0] <= times[-1] < 200
    # 10,000 expected, standard deviation 100; gaps are exponential: as spread as they are long
    assert abs(len(times) - 10_000) < 500
    assert np.diff(times).std() == pytest.approx(1 / 50, rel=0.1)
    for rate_hz, duration_s in ((0, 1), (1, 0), (-1, 1), (float("nan"), 1), (1, float("inf"))):
        with pytest.raises(SettingError):
            Constant(rate_hz, duration_s)
        with pytest.raises(SettingError):
            Poisson(rate_hz, duration_s)


def test_devices_that_come_along_name_their_sources() -> None:
    found = devices()
    assert "raspberry-pi-5-power-bank" in found
    assert len(found) >= 2
    for name, one in found.items():
        assert device(name) == one
        assert Device.from_json(json.loads(json.dumps(one.to_json()))) == one
        for source in one.source.values():
            assert "https://" in source or source.startswith("assumption")
    with pytest.raises(SettingError, match="raspberry-pi-5-power-bank"):
        device("toaster")


def test_a_device_checks_itself() -> None:
    with pytest.raises(SettingError, match="idle_mw"):
        replace(DEVICE, idle_mw=0)
    with pytest.raises(SettingError, match="source for \\['cores'\\]"):
        replace(DEVICE, source={k: v for k, v in DEVICE.source.items() if k != "cores"})
    with pytest.raises(SettingError, match="is no device"):
        Device.from_json({"name": "x"})


def test_costs_on_a_device() -> None:
    costs = DEVICE.costs(COSTS)
    assert costs.latency_ms == ((20.0,), (40.0,))
    assert costs.cpu_ms == ((20.0,), (40.0,))
    assert costs.energy_mj == ((20.0,), (40.0,))  # 20 ms at 1000 mW
    assert costs.energy_source == "model"
    assert "simulated" in costs.machine
    assert replace(DEVICE, cores=1).costs(replace(COSTS, threads=4)).threads == 1


def test_overhead_is_added_to_every_request_by_hand() -> None:
    plain = simulate(
        FRONTIER, RECORDS, device=DEVICE, workload=Constant(1.0, 4.0), policy=BudgetPolicy(), budget=Budget(), noise=0.0
    )
    slower = replace(DEVICE, overhead_ms=5.0, source={**DEVICE.source, "overhead_ms": "assumption"})
    served = simulate(
        FRONTIER, RECORDS, device=slower, workload=Constant(1.0, 4.0), policy=BudgetPolicy(), budget=Budget(), noise=0.0
    )
    assert served.mean_latency_ms == pytest.approx(plain.mean_latency_ms + 5.0)
    assert served.stage_shares == plain.stage_shares


def test_only_who_finds_the_worker_asleep_waits_for_it_to_wake_by_hand() -> None:
    # stages of 20 and 40 ms; 0 and 1 find nobody before them, 2 comes while 1 is served
    sleepy = replace(DEVICE, wake_ms=7.0, source={**DEVICE.source, "wake_ms": "assumption"})
    workload = Recorded([1.0, 2.0, 2.01], 3.0)
    plain, served = (run(workload, Budget(), d, noise=0.0) for d in (DEVICE, sleepy))
    more = [b - a for a, b in zip(plain.latency_ms, served.latency_ms, strict=True)]
    assert more == pytest.approx([7.0, 7.0, 7.0]), "the third begins when the second is done, which is 7 ms later"
    first = run(Recorded([0.0], 1.0), Budget(), sleepy, noise=0.0)
    assert first.mean_wait_ms == pytest.approx(7.0), "at the very beginning too"
    assert plain.mean_wait_ms is not None
    assert served.mean_wait_ms == pytest.approx(plain.mean_wait_ms + 7.0)


def test_a_request_feels_its_share_of_the_delay_by_others_by_hand() -> None:
    # every core is demanded by others: (b + t) / c is 1 + t / c, so the delay is t / c of the time alone
    more = COSTS.threads / DEVICE.cores
    alone = run(Constant(1.0, 4.0), Budget(), noise=0.0)
    for share in (0.0, 0.5, 1.0, 2.0):
        device = replace(DEVICE, contention_share=share, source={**DEVICE.source, "contention_share": "assumption"})
        loaded = run(Constant(1.0, 4.0), Budget(), device, noise=0.0, background_load=1.0)
        assert list(loaded.latency_ms) == pytest.approx([ms * (1 + share * more) for ms in alone.latency_ms])
    with pytest.raises(SettingError, match=r"contention_share=-0\.1"):
        replace(DEVICE, contention_share=-0.1, source={**DEVICE.source, "contention_share": "assumption"})


def test_who_waits_for_another_waits_for_the_worker_to_take_the_next_by_hand() -> None:
    # 0 and 1 find nobody before them, 2 comes while 1 is served, which takes 20 or 60 ms
    slower = replace(DEVICE, handover_ms=7.0, source={**DEVICE.source, "handover_ms": "assumption"})
    workload = Recorded([1.0, 2.0, 2.01], 3.0)
    plain, served = (run(workload, Budget(), d, noise=0.0) for d in (DEVICE, slower))
    more = [b - a for a, b in zip(plain.latency_ms, served.latency_ms, strict=True)]
    assert more == pytest.approx([0.0, 0.0, 7.0])


def test_a_request_that_is_cut_keeps_its_overhead_by_hand() -> None:
    # two records are unsure after 20 ms, and 40 more make 60; with 5 beside, that would end at 65, beyond 62
    slower = replace(DEVICE, overhead_ms=5.0, source={**DEVICE.source, "overhead_ms": "assumption"})
    budget = Budget(deadline_ms=62.0, max_drop=0.25)
    whole = run(Constant(1.0, 4.0), budget, noise=0.0)
    cut = run(Constant(1.0, 4.0), budget, slower, noise=0.0)
    assert (whole.cut_share, cut.cut_share) == (0.0, 0.5)
    assert sorted(whole.latency_ms) == pytest.approx([20.0, 20.0, 60.0, 60.0])
    assert cut.latency_ms == pytest.approx([25.0] * 4)
