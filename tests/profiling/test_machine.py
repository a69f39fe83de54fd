"""Threads under a container's quota, from files as the kernel writes them."""

from pathlib import Path

import pytest
from support.sensor_cases import V2_MOUNT, Tree, forbid

from dynamic.profiling import machine


@pytest.mark.parametrize(
    ("quota", "threads"),
    [
        ("200000 100000", 2),
        ("150000 100000", 2),  # the second is needed half of the time
        ("50000 100000", 1),
        ("max 100000", None),
        ("800000 100000", None),  # as many as there are
        ("nonsense", None),
    ],
)
def test_no_more_threads_than_a_quota_leaves(
    quota: str, threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_cores", lambda: 8)
    Tree(tmp_path)(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/box/cgroup.procs": "1\n",
            "sys/fs/cgroup/box/cpu.max": f"{quota}\n",
        }
    )
    assert machine.quota_threads(tmp_path) == threads


def test_no_quota_is_no_limit(tmp_path: Path) -> None:
    assert machine.quota_threads(tmp_path) is None


def test_a_quota_that_may_not_be_read_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_no_more_threads_than_a_quota_leaves("200000 100000", 2, tmp_path, monkeypatch)
    forbid(monkeypatch, tmp_path / "sys/fs/cgroup/box/cpu.max")
    assert machine.quota_threads(tmp_path) is None
