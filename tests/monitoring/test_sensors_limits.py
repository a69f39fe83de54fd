"""Memory and CPU that a container leaves, from files as the kernel writes them."""

from pathlib import Path

import pytest
from support.sensor_cases import V1_MOUNTS, V2_MOUNT, Clock, Tree, forbid

from dynamic.monitoring.kernel.cgroup import Hierarchy, hierarchy
from dynamic.monitoring.reading_merge import merge, shared_load
from dynamic.monitoring.sources.limits import CpuLimit, MemoryLimit

V2 = "sys/fs/cgroup"
V1_MEMORY, V1_CPU = "sys/fs/cgroup/memory", "sys/fs/cgroup/cpu,cpuacct"
NO_LIMIT_V1 = 9223372036854771712


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def v2(tree: Tree, path: str = "/box/app", more: dict[str, str | int] | None = None) -> None:
    tree({"proc/self/cgroup": f"0::{path}\n", "proc/self/mountinfo": V2_MOUNT, f"{V2}{path}/cgroup.procs": "1\n"})
    tree(more or {})


def v1(tree: Tree, path: str = "/docker/abc", more: dict[str, str | int] | None = None) -> None:
    tree(
        {
            "proc/self/cgroup": f"5:memory:{path}\n4:cpu,cpuacct:{path}\n1:name=systemd:/\n",
            "proc/self/mountinfo": V1_MOUNTS,
            f"{V1_MEMORY}{path}/cgroup.procs": "1\n",
            f"{V1_CPU}{path}/cgroup.procs": "1\n",
        }
    )
    tree(more or {})


def memory_mb(tree: Tree) -> float | None:
    return MemoryLimit(tree.root)().fields.get("memory_available_mb")


def test_v2_folders_from_own_group_to_the_top(tree: Tree) -> None:
    v2(tree)
    top = tree.root / V2
    assert hierarchy(tree.root, "memory") == Hierarchy(2, (top / "box/app", top / "box", top))


def test_v1_of_a_container_that_sees_only_its_own_group(tree: Tree) -> None:
    mounts = V1_MOUNTS.replace("0:32 / /", "0:32 /docker/abc /")
    tree({"proc/self/cgroup": "5:memory:/docker/abc/job\n", "proc/self/mountinfo": mounts, f"{V1_MEMORY}/job/x": ""})
    top = tree.root / V1_MEMORY
    assert hierarchy(tree.root, "memory") == Hierarchy(1, (top / "job", top))


def test_a_group_outside_the_namespace_is_seen_from_the_top(tree: Tree) -> None:
    v2(tree, more={"proc/self/cgroup": "0::/../../other\n"})
    assert hierarchy(tree.root, "memory") == Hierarchy(2, (tree.root / V2,))


def test_hybrid_takes_each_controller_where_it_is(tree: Tree) -> None:
    tree(
        {
            "proc/self/cgroup": "5:memory:/a\n0::/b\n",
            "proc/self/mountinfo": V1_MOUNTS + "41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw - cgroup2 cgroup2 rw\n",
            f"{V1_MEMORY}/a/memory.limit_in_bytes": 500_000_000,
            f"{V1_MEMORY}/a/memory.usage_in_bytes": 100_000_000,
            "sys/fs/cgroup/uni fied/b/cpu.max": "50000 100000\n",
        }
    )
    assert memory_mb(tree) == 400
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


def test_without_mountinfo_the_usual_places_are_tried(tree: Tree) -> None:
    v2(tree, more={f"{V2}/cgroup.controllers": "cpu memory\n", f"{V2}/box/memory.max": 7_000_000})
    tree({f"{V2}/box/memory.current": 2_000_000})
    (tree.root / "proc/self/mountinfo").unlink()
    assert memory_mb(tree) == 5
    other = Tree(tree.root / "other")
    v1(other, more={f"{V1_MEMORY}/memory.limit_in_bytes": 8_000_000, f"{V1_MEMORY}/memory.usage_in_bytes": 2_000_000})
    (other.root / "proc/self/mountinfo").unlink()
    assert memory_mb(other) == 6


def test_v2_leaves_limit_less_what_cannot_be_dropped(tree: Tree) -> None:
    v2(
        tree,
        more={
            f"{V2}/box/app/memory.max": 1_000_000_000,
            f"{V2}/box/app/memory.high": "max\n",
            f"{V2}/box/app/memory.current": 700_000_000,
            f"{V2}/box/app/memory.stat": "anon 500000000\ninactive_file 150000000\nactive_file 30000000\n",
        },
    )
    assert memory_mb(tree) == 480  # 1000 - (700 - 150 - 30)
    found = MemoryLimit(tree.root).tightest()
    assert found is not None
    assert (found.amount, found.path) == (1e9, tree.root / V2 / "box/app/memory.max")


def test_the_group_with_the_least_room_counts(tree: Tree) -> None:
    v2(
        tree,
        more={
            f"{V2}/box/app/memory.max": 1_000_000_000,
            f"{V2}/box/app/memory.current": 100_000_000,  # leaves 900
            f"{V2}/box/memory.max": 2_000_000_000,
            f"{V2}/box/memory.high": 1_500_000_000,  # tighter: beyond it the kernel slows the group down
            f"{V2}/box/memory.current": 1_200_000_000,  # others in the box: leaves 300
        },
    )
    assert memory_mb(tree) == 300
    tree({f"{V2}/box/memory.current": 1_600_000_000})
    assert memory_mb(tree) == 0  # never less than nothing


def test_v1_leaves_limit_less_what_cannot_be_dropped(tree: Tree) -> None:
    v1(
        tree,
        more={
            f"{V1_MEMORY}/docker/abc/memory.limit_in_bytes": 256_000_000,
            f"{V1_MEMORY}/docker/abc/memory.usage_in_bytes": 100_000_000,
            f"{V1_MEMORY}/docker/abc/memory.stat": "inactive_file 1\ntotal_inactive_file 20000000\n",
            f"{V1_MEMORY}/memory.limit_in_bytes": NO_LIMIT_V1,
            f"{V1_MEMORY}/memory.usage_in_bytes": 1,
        },
    )
    assert memory_mb(tree) == 176


def test_usage_is_read_anew_each_time(tree: Tree) -> None:
    name = f"{V2}/box/app/memory.current"
    v2(tree, more={f"{V2}/box/app/memory.max": 10_000_000, name: 1_000_000})
    limit = MemoryLimit(tree.root)
    assert limit().fields == {"memory_available_mb": 9}
    tree({name: 4_000_000})
    assert limit().fields == {"memory_available_mb": 6}


def test_limits_are_looked_for_again_after_five_seconds(tree: Tree) -> None:
    v2(tree, more={f"{V2}/box/app/memory.max": "max\n", f"{V2}/box/app/memory.current": 0})
    clock = Clock()
    limit = MemoryLimit(tree.root, clock)
    assert limit().fields == {}
    tree({f"{V2}/box/app/memory.max": 3_000_000})
    clock.now += 4.9
    assert limit().fields == {}
    clock.now += 0.2
    assert limit().fields == {"memory_available_mb": 3}
    tree({f"{V2}/box/app/memory.max": 2_000_000})
    clock.now -= 1000  # a clock that steps backwards
    assert limit().fields == {"memory_available_mb": 2}


def test_containers_without_limits(tree: Tree) -> None:
    v2(tree, more={f"{V2}/box/app/memory.max": "max\n", f"{V2}/box/app/cpu.max": "max 100000\n"})
    assert MemoryLimit(tree.root)().fields == CpuLimit(tree.root)().fields == {}
    other = Tree(tree.root / "other")
    v1(
        other,
        more={
            f"{V1_MEMORY}/docker/abc/memory.limit_in_bytes": NO_LIMIT_V1,
            f"{V1_CPU}/docker/abc/cpu.cfs_quota_us": -1,
            f"{V1_CPU}/docker/abc/cpu.cfs_period_us": 100_000,
        },
    )
    assert MemoryLimit(other.root)().fields == CpuLimit(other.root)().fields == {}
    assert MemoryLimit(other.root).tightest() is CpuLimit(other.root).tightest() is None
    # no control groups at all
    assert MemoryLimit(tree.root / "nothing")().fields == CpuLimit(tree.root / "nothing")().fields == {}


@pytest.mark.parametrize("garbage", ["", "lots\n", "12 34\n", "\x00\x01"])
def test_garbage_is_an_error_that_names_the_file(tree: Tree, garbage: str) -> None:
    v2(tree, more={f"{V2}/box/app/memory.max": garbage, f"{V2}/box/app/cpu.max": garbage or "x y"})
    with pytest.raises(ValueError, match=r"memory\.max"):
        MemoryLimit(tree.root)()
    if garbage != "12 34\n":  # which is a quota
        with pytest.raises(ValueError, match=r"cpu\.max"):
            CpuLimit(tree.root)()


@pytest.mark.parametrize("quota", ["0 100000\n", "1000 0\n", "-5 100000\n"])
def test_quotas_that_cannot_be(tree: Tree, quota: str) -> None:
    v2(tree, more={f"{V2}/box/app/cpu.max": quota})
    with pytest.raises(ValueError, match="no quota"):
        CpuLimit(tree.root)()


def test_garbage_in_the_usage_is_an_error_and_a_stat_that_does_not_read_is_none(tree: Tree) -> None:
    v2(tree, more={f"{V2}/box/app/memory.max": 5_000_000, f"{V2}/box/app/memory.current": 2_000_000})
    assert memory_mb(tree) == 3
    tree({f"{V2}/box/app/memory.stat": "inactive_file many\n"})
    assert memory_mb(tree) == 3, "all that is used counts"
    tree({f"{V2}/box/app/memory.current": "?", f"{V2}/box/app/memory.stat": "inactive_file 1\n"})
    with pytest.raises(ValueError, match=r"memory\.current"):
        memory_mb(tree)
    (tree.root / V2 / "box/app/memory.current").unlink()
    with pytest.raises(FileNotFoundError):
        memory_mb(tree)


def test_forbidden_files_raise(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    v2(tree, more={f"{V2}/box/app/memory.max": 5_000_000, f"{V2}/box/app/cpu.max": "1 2\n"})
    forbid(monkeypatch, tree.root / V2 / "box/app/memory.max", tree.root / V2 / "box/app/cpu.max")
    with pytest.raises(PermissionError, match=r"memory\.max"):
        MemoryLimit(tree.root)()
    with pytest.raises(PermissionError, match=r"cpu\.max"):
        CpuLimit(tree.root)()


def cpu_stat(usage_us: int, throttled: int) -> str:
    return f"usage_usec {usage_us}\nuser_usec 1\nnr_periods 7\nnr_throttled {throttled}\nthrottled_usec 9\n"


def test_v2_quota_load_by_hand(tree: Tree) -> None:
    name = f"{V2}/box/app/cpu.stat"
    v2(tree, more={f"{V2}/box/app/cpu.max": "150000 100000\n", name: cpu_stat(1_000_000, 4)})
    tree({f"{V2}/box/cpu.max": "800000 100000\n"})  # looser
    clock, own_s = Clock(), Clock()
    limit = CpuLimit(tree.root, clock, own_s)
    assert limit().fields == {"quota_cores": 1.5, "quota_load": None}
    clock.now, own_s.now = clock.now + 1, own_s.now + 0.3
    tree({name: cpu_stat(2_200_000, 4)})  # 1.2 s of which 0.3 s were this process's, in 1 s of 1.5 cores
    assert limit().fields["quota_load"] == pytest.approx((1.2 - 0.3) / 1.5)
    clock.now += 0.05  # too short to divide by
    tree({name: cpu_stat(2_300_000, 5)})
    found = limit().fields
    assert found["quota_load"] == pytest.approx((1.2 - 0.3) / 1.5)
    assert "throttled" not in found, "a quota that stops the group is no heat"


def test_v1_quota(tree: Tree) -> None:
    group = f"{V1_CPU}/docker/abc"
    v1(
        tree,
        more={
            f"{group}/cpu.cfs_quota_us": 50_000,
            f"{group}/cpu.cfs_period_us": 100_000,
            f"{group}/cpu.stat": "nr_periods 3\nnr_throttled 1\nthrottled_time 5\n",
            f"{group}/cpuacct.usage": 1_000_000_000,
            f"{V1_CPU}/cpu.cfs_quota_us": -1,
            f"{V1_CPU}/cpu.cfs_period_us": 100_000,
        },
    )
    clock, own_s = Clock(), Clock()
    limit = CpuLimit(tree.root, clock, own_s)
    limit()
    clock.now += 2
    tree({f"{group}/cpuacct.usage": 1_250_000_000})
    found = limit().fields
    assert found["quota_cores"] == 0.5
    assert found["quota_load"] == pytest.approx(0.25 / (2 * 0.5))


def test_a_quota_without_counters_is_a_quota_still(tree: Tree) -> None:
    v2(tree, more={f"{V2}/box/app/cpu.max": "50000 100000\n"})
    assert CpuLimit(tree.root)().fields == {"quota_cores": 0.5, "quota_load": None}


@pytest.mark.parametrize(
    ("cores", "host", "quota", "inside", "expected"),
    [
        (4.0, 0.5, None, None, 0.5),  # no quota
        (4.0, 0.5, 4.0, 0.9, 0.5),  # a quota of all cores
        (4.0, 0.75, 1.0, 0.0, 0.0),  # others keep 3 of 4 cores busy: the one of the quota is free
        (4.0, 0.9, 1.0, 0.0, 0.6),  # 0.4 cores are free
        (4.0, 0.0, 1.0, 0.25, 0.25),  # a quarter of the quota is another's
        (4.0, 0.9, 1.0, 0.25, 0.6),  # the tighter of both
        (4.0, 0.5, 0.5, None, 0.0),
        (4.0, None, 1.0, 0.3, 0.3),
        (4.0, None, 1.0, None, None),
        (None, None, None, None, None),
        (4.0, 1.0, 1.0, None, 1.0),
    ],
)
def test_load_of_what_may_be_used(
    cores: float | None, host: float | None, quota: float | None, inside: float | None, expected: float | None
) -> None:
    assert shared_load(cores, host, quota, inside) == (None if expected is None else pytest.approx(expected))


def test_merging_takes_the_tighter_of_two() -> None:
    merged = merge(
        [
            {"host_load": 0.5},
            {"cpu_cores": 2.0},
            {"quota_cores": 0.5, "quota_load": 0.25},
            {"memory_available_mb": 900.0},
            {"memory_available_mb": 300.0},
            {"throttled": True},
            {"power_mw": None},
        ]
    )
    assert merged == {
        "cpu_load": pytest.approx(0.25),  # of half a core: one of two cores is free
        "cpu_cores": 0.5,
        "throttled": True,
        "memory_available_mb": 300.0,
        "power_mw": None,
    }
    # a user's own load stands
    assert merge([{"cpu_load": 0.1}, {"cpu_cores": 4.0}, {"quota_cores": 1.0, "quota_load": 0.9}]) == {
        "cpu_load": 0.1,
        "cpu_cores": 1.0,
    }
