"""Workloads against their own means, and times that were recorded."""

from pathlib import Path

import numpy as np
import pytest

from dynamic.policies.errors import SettingError
from dynamic.simulate import Bursty, Constant, Diurnal, Poisson, Recorded, Schedule
from dynamic.simulate.workload import as_workload


def times(workload: object, seed: int = 0) -> np.ndarray:
    found = workload.arrivals(np.random.default_rng(seed))  # type: ignore[attr-defined]
    assert (np.diff(found) >= 0).all()
    assert len(found) == 0 or (found[0] >= 0 and found[-1] < workload.duration_s)  # type: ignore[attr-defined]
    return np.asarray(found)


def test_bursty_has_the_mean_rate_and_more_variance_than_poisson() -> None:
    workload = Bursty(quiet_hz=2, busy_hz=20, quiet_s=8, busy_s=4, duration_s=20_000)
    found = times(workload)
    # (2 x 8 + 20 x 4) / 12 = 8 a second
    assert len(found) / 20_000 == pytest.approx(8, rel=0.06)
    counts = np.bincount(found.astype(int), minlength=20_000)
    assert counts.var() > 3 * counts.mean()  # of a Poisson process they are equal
    quiet = times(Bursty(0, 5, quiet_s=1e9, busy_s=1, duration_s=100))
    assert len(quiet) == 0


def test_diurnal_peaks_where_it_should() -> None:
    workload = Diurnal(mean_hz=50, duration_s=2000, swing=0.5, period_s=1000, peak_s=250)
    found = times(workload)
    assert len(found) == pytest.approx(100_000, rel=0.02)
    phase = found % 1000
    peak, valley = ((phase > a) & (phase < a + 100) for a in (200, 700))
    # the cosine's mean over a tenth of a period around its top: sin(0.1 pi) / (0.1 pi) = 0.984
    assert peak.sum() / 200 == pytest.approx(50 * (1 + 0.5 * 0.984), rel=0.03)
    assert valley.sum() / 200 == pytest.approx(50 * (1 - 0.5 * 0.984), rel=0.04)


def test_schedule_repeats() -> None:
    workload = Schedule((0.0, 60.0), (0.0, 100.0), duration_s=250, period_s=100)
    found = times(workload)
    assert not ((found % 100) < 60).any()
    assert len(found) == pytest.approx(2 * 4000, rel=0.05)  # the third period ends before 260
    assert len(times(Schedule((0.0,), (10.0,), duration_s=100))) == pytest.approx(1000, rel=0.15)


def test_recorded_times(tmp_path: Path) -> None:
    array = np.array([0.5, 1.0, 1.0, 7.25])
    assert times(Recorded(array)).tolist() == array.tolist()
    assert Recorded(array).duration_s == pytest.approx(7.25)
    assert Recorded(array, 10.0).duration_s == 10.0
    np.save(tmp_path / "times.npy", array)
    (tmp_path / "times.txt").write_text("0.5\n1.0\n1.0\n7.25\n")
    for name in ("times.npy", "times.txt"):
        assert Recorded.load(tmp_path / name, 10.0).arrivals(np.random.default_rng(0)).tolist() == array.tolist()
    (tmp_path / "bad.txt").write_text("soon\n")
    with pytest.raises(SettingError, match=r"bad\.txt"):
        Recorded.load(tmp_path / "bad.txt")
    for wrong in ([1.0, 0.5], [-1.0, 0.5], [np.nan]):
        with pytest.raises(SettingError):
            Recorded(np.array(wrong))
    with pytest.raises(SettingError, match="must lie in"):
        Recorded(array, 7.0)


def test_workloads_check_themselves() -> None:
    for make in (
        lambda: Bursty(1, 0, quiet_s=1, busy_s=1, duration_s=1),
        lambda: Bursty(-1, 1, quiet_s=1, busy_s=1, duration_s=1),
        lambda: Diurnal(1, 1, swing=1.5),
        lambda: Schedule((1.0,), (1.0,), duration_s=10),
        lambda: Schedule((0.0, 20.0), (1.0, 1.0), duration_s=10),
        lambda: Schedule((0.0,), (-1.0,), duration_s=10),
    ):
        with pytest.raises(SettingError):
            make()


def test_the_seed_decides() -> None:
    for workload in (
        Poisson(5, 50),
        Bursty(1, 9, quiet_s=5, busy_s=5, duration_s=50),
        Diurnal(5, 50),
        Schedule((0.0,), (5.0,), duration_s=50),
    ):
        assert times(workload, 3).tolist() == times(workload, 3).tolist()
        assert times(workload, 3).tolist() != times(workload, 4).tolist()
    assert times(Constant(5, 50), 3).tolist() == times(Constant(5, 50), 4).tolist()


def test_a_list_of_times_is_a_workload() -> None:
    workload = as_workload([0.1, 0.25, 0.25, 3.0])
    assert times(workload).tolist() == [0.1, 0.25, 0.25, 3.0]
    assert as_workload(workload) is workload
    for wrong in ([0.25, 0.1], [[0.1]], [-1.0], 3.0, [float("nan")]):
        with pytest.raises(SettingError, match=r"times_s"):
            as_workload(wrong)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match=r"workload='often' must be a workload .* or a list of rising times"):
        as_workload("often")  # type: ignore[arg-type]
