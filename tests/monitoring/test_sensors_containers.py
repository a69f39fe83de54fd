"""Containers in the field: long kernel files, groups that cannot be seen, memory that can be dropped, bad levels."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.device_trees import reasons, refuse_with
from support.sensor_cases import V2_MOUNT, Clock, Tree

from dynamic.monitoring.sources.limits import CpuLimit, MemoryLimit
from dynamic.monitoring.sources.memory import Available
from dynamic.monitoring.sources.pressure import Pressure

PAGE = 4096
GROUP = "sys/fs/cgroup/box"


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pread
    monkeypatch.setattr(
        "dynamic.monitoring.kernel.kernel_files.os.pread", lambda handle, size, at: real(handle, min(size, PAGE), at)
    )


def mountinfo(size: int) -> str:
    """So many bytes, the cgroup line last."""
    lines = ""
    number = 100
    while size - len(lines) - len(V2_MOUNT) > 200:
        lines += (
            f"{number} 23 0:40 / /var/lib/containers/{number} rw,nosuid shared:4 - overlay overlay rw,lowerdir=/l\n"
        )
        number += 1
    rest = size - len(lines) - len(V2_MOUNT)
    line = "99 23 0:40 / /x rw - tmpfs tmpfs rw,"
    return lines + line + "a" * (rest - len(line) - 1) + "\n" + V2_MOUNT


def box(tree: Tree, more: dict[str, str | int] | None = None) -> None:
    tree({"proc/self/cgroup": "0::/box\n", "proc/self/mountinfo": V2_MOUNT, f"{GROUP}/cgroup.procs": "1\n"})
    tree(more or {})


@pytest.mark.parametrize("size", [4272, PAGE, PAGE + 1, 3 * PAGE, 300_000])
def test_a_mountinfo_longer_than_a_page(tree: Tree, pages: None, size: int) -> None:
    # libhugetlbfs#43, criu#3129
    text = mountinfo(size)
    assert len(text) == size
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": text,
            f"{GROUP}/memory.max": 300_000_000,
            f"{GROUP}/memory.current": 100_000_000,
            f"{GROUP}/cpu.max": "50000 100000\n",
        }
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 200}
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


def test_entries_behind_the_first_page(tree: Tree, pages: None) -> None:
    filler = "".join(f"entry_{i} 1\n" for i in range(1000))
    tree(
        {
            "proc/self/cgroup": "0::/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            f"{GROUP}/memory.max": 300_000_000,
            f"{GROUP}/memory.current": 200_000_000,
            f"{GROUP}/memory.stat": filler + "inactive_file 50000000\n",
            "proc/meminfo": filler + "MemAvailable: 1000000 kB\n",
        }
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 150}
    assert Available(tree.root)().fields == {"memory_available_mb": 1024}


@pytest.mark.skipif(sys.platform != "linux", reason="mount namespaces are Linux's")
def test_the_kernel_s_own_mountinfo_of_many_mounts(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-m", "true"], capture_output=True).returncode:
        pytest.skip("a mount namespace is not permitted here (unshare -m)")
    code = """
import os, sys
from pathlib import Path
from dynamic.monitoring.kernel.cgroup import hierarchy
from dynamic.monitoring.kernel.kernel_files import KernelFile
file = Path("/proc/self/mountinfo")
whole, handle = file.read_bytes(), os.open(file, os.O_RDONLY)
print(len(whole), len(os.pread(handle, 1 << 20, 0)))
print(KernelFile(file).text().encode() == whole)
if Path(sys.argv[1]).exists():
    print(hierarchy(Path("/"), "memory").levels[-1])
"""
    # mounts that fill a page, and the control group's after them: a bind takes the place of the first mount
    script = """
for i in $(seq 80); do mkdir "$0/$i" && mount -t tmpfs none "$0/$i" || exit 77; done
one=$(awk '/ - cgroup / && /memory/ {print $5; exit}' /proc/self/mountinfo)
group=${one:-$(awk '/ - cgroup2 / {print $5; exit}' /proc/self/mountinfo)}
if [ -n "$group" ]; then mkdir "$0/group" && mount --bind "$group" "$0/group" && umount -l "$group" || exit 77; fi
exec "$1" -c "$2" "$0/group"
"""
    command = [unshare, "-m", "sh", "-c", script, str(tmp_path), sys.executable, code]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip():.200}")
    assert done.returncode == 0, done.stderr
    sizes, same, *top = done.stdout.splitlines()
    size, first = (int(number) for number in sizes.split())
    assert first < size > PAGE  # the kernel's own reads are short
    assert same == "True"
    assert top in ([], [str(tmp_path / "group")])  # [] where no control groups are mounted


@pytest.mark.parametrize(
    "files",
    [
        {"proc/self/cgroup": "0::/box\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"},
        {"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/x rw\n", ".dockerenv": ""},
        {"run/.containerenv": "engine=podman\n"},  # no file of /proc
        {"proc/self/cgroup": "0::/box\n"},  # no mountinfo, and no group in the usual places
        # the group lies outside what is mounted, and what is mounted has no limit: LXC, a namespace inside another
        {"proc/self/cgroup": "0::/../../other\n", "proc/self/mountinfo": V2_MOUNT, "sys/fs/cgroup/cgroup.procs": ""},
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT.replace("0:28 / /", "0:28 /../../.. /"),
            "sys/fs/cgroup/cgroup.procs": "",
        },
    ],
)
def test_limits_that_cannot_be_determined_are_an_error(tree: Tree, files: dict[str, str | int]) -> None:
    tree(files)
    for limit in (MemoryLimit(tree.root), CpuLimit(tree.root)):
        with pytest.raises(ValueError, match="cannot be determined"):
            limit()


def test_a_machine_without_groups_has_no_limits(tree: Tree) -> None:
    assert MemoryLimit(tree.root)().fields == {}
    tree({"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"})
    assert MemoryLimit(tree.root)().fields == CpuLimit(tree.root)().fields == {}


def test_pressure_does_not_need_the_group(tree: Tree) -> None:
    tree({"proc/self/cgroup": "0::/box\n", "proc/self/mountinfo": "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"})
    tree({"proc/pressure/cpu": "some avg10=20.00 avg60=0.00 avg300=0.00 total=1\n"})
    assert Pressure("cpu", tree.root)().fields == {"cpu_pressure": 0.2}


def test_clean_file_pages_of_a_container_are_free(tree: Tree) -> None:
    # kubernetes#43916, ComfyUI#15788: a limit of 512 MB, 505 MB used of which 375 MB are clean file pages
    box(
        tree,
        {
            f"{GROUP}/memory.max": 512_000_000,
            f"{GROUP}/memory.current": 505_000_000,
            f"{GROUP}/memory.stat": "anon 130000000\nfile 375000000\nfile_dirty 0\nfile_writeback 0\n"
            "inactive_anon 0\nactive_anon 130000000\ninactive_file 5000000\nactive_file 370000000\n"
            "unevictable 0\nslab_reclaimable 0\nslab_unreclaimable 0\n",
        },
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 512 - (505 - 375)}


@pytest.mark.parametrize(
    ("stat", "reclaimable_mb"),
    [
        ("inactive_file 100000000\nactive_file 50000000\n", 150),
        # what must be written first is not free yet
        ("inactive_file 100000000\nactive_file 50000000\nfile_dirty 20000000\nfile_writeback 10000000\n", 120),
        ("inactive_file 100000000\nactive_file 0\nslab_reclaimable 30000000\n", 130),
        # shared memory is counted in "file" and cannot be dropped
        ("file 100000000\nshmem 40000000\n", 60),
        ("file 100000000\nshmem 40000000\ninactive_file 30000000\nactive_file 20000000\n", 50),
        ("file 100000000\nshmem 40000000\ninactive_file 30000000\n", 60),
        ("file_dirty 20000000\n", 0),
        ("inactive_file 900000000\n", 400),  # older than what is used: never more than the limit
    ],
)
def test_what_of_a_group_can_be_dropped(tree: Tree, stat: str, reclaimable_mb: int) -> None:
    box(
        tree,
        {f"{GROUP}/memory.max": 500_000_000, f"{GROUP}/memory.current": 400_000_000, f"{GROUP}/memory.stat": stat},
    )
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 100 + reclaimable_mb}


def test_one_group_s_pressure_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    box(tree, {f"{GROUP}/cpu.pressure": "some avg10=9.00 avg60=0.00 avg300=0.00 total=1\n"})
    tree({"proc/pressure/cpu": "some avg10=4.00 avg60=0.00 avg300=0.00 total=1\n"})
    refuse_with(monkeypatch, errno.EACCES, tree.root / f"{GROUP}/cpu.pressure")
    reading = Pressure("cpu", tree.root)()
    assert reading.fields == {"cpu_pressure": 0.04}
    assert "cpu.pressure" in reasons(reading)


def test_one_group_s_pressure_that_cannot_be(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.pressure": "some avg10=4000.00 avg60=0.00 avg300=0.00 total=1\n"})
    tree({"proc/pressure/cpu": "some avg10=4.00 avg60=0.00 avg300=0.00 total=1\n"})
    assert Pressure("cpu", tree.root)().fields == {"cpu_pressure": 0.04}
    tree({f"{GROUP}/cpu.pressure": "some avg10=nan avg60=0.00 avg300=0.00 total=1\n"})
    assert Pressure("cpu", tree.root)().fields == {"cpu_pressure": 0.04}


def test_a_quota_that_cannot_be_leaves_the_others(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.max": "9223372036854775807 100\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"})
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


def test_one_level_of_a_container_that_does_not_answer(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    box(tree, {f"{GROUP}/memory.max": 500_000_000, f"{GROUP}/memory.current": 100_000_000})
    top = "sys/fs/cgroup"
    tree({f"{top}/memory.max": "lots\n", f"{top}/cpu.max": "200000 100000\n", f"{GROUP}/cpu.max": "50000 100000\n"})
    refuse_with(monkeypatch, errno.EACCES, tree.root / top / "cpu.max")
    memory, cpu = MemoryLimit(tree.root)(), CpuLimit(tree.root)()
    assert (memory.fields, cpu.fields["quota_cores"]) == ({"memory_available_mb": 400}, 0.5)
    assert "memory.max" in reasons(memory)
    assert "cpu.max" in reasons(cpu)


def test_a_quota_whose_counter_is_garbage_is_a_quota(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.max": "50000 100000\n", f"{GROUP}/cpu.stat": "usage_usec many\n"})
    reading = CpuLimit(tree.root)()
    assert reading.fields == {"quota_cores": 0.5, "quota_load": None}
    assert "cpu.stat" in reasons(reading)


def test_a_quota_whose_time_is_counted_elsewhere_and_not_shown(tree: Tree) -> None:
    group = "sys/fs/cgroup/cpu/docker/abc"
    tree(
        {
            "proc/self/cgroup": "4:cpu:/docker/abc\n3:cpuacct:/docker/abc\n",
            "proc/self/mountinfo": "32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n",
            f"{group}/cpu.cfs_quota_us": 50_000,
            f"{group}/cpu.cfs_period_us": 100_000,
        }
    )
    assert CpuLimit(tree.root)().fields == {"quota_cores": 0.5, "quota_load": None}


def test_a_second_mount_that_does_not_show_the_group(tree: Tree) -> None:
    other = "29 23 0:27 / /run/other rw - cgroup2 cgroup2 rw\n"
    box(tree, {"proc/self/mountinfo": other + V2_MOUNT, f"{GROUP}/cpu.max": "50000 100000\n"})
    assert CpuLimit(tree.root)().fields["quota_cores"] == 0.5


def test_a_group_s_cpu_time_that_falls(tree: Tree) -> None:
    box(tree, {f"{GROUP}/cpu.max": "100000 100000\n", f"{GROUP}/cpu.stat": "usage_usec 900000000\n"})
    clock, own_s = Clock(), Clock()
    limit = CpuLimit(tree.root, clock, own_s)
    limit()
    clock.now += 1
    tree({f"{GROUP}/cpu.stat": "usage_usec 5000\n"})
    assert limit().fields["quota_load"] is None  # not 0: nothing is known of that second
    clock.now += 1
    tree({f"{GROUP}/cpu.stat": "usage_usec 405000\n"})
    assert limit().fields["quota_load"] == pytest.approx(0.4)
    clock.now -= 5000  # a clock that steps backwards
    tree({f"{GROUP}/cpu.stat": "usage_usec 505000\n"})
    assert limit().fields["quota_load"] is None
    clock.now += 1
    tree({f"{GROUP}/cpu.stat": "usage_usec 755000\n"})
    assert limit().fields["quota_load"] == pytest.approx(0.25)


@pytest.mark.parametrize("garbled", ["inactive_file many\n", "inactive_file\n", None])
def test_a_statistic_that_does_not_read_takes_no_limit_away(tree: Tree, garbled: str | None) -> None:
    """Then all that is used counts."""
    used = {f"{GROUP}/memory.max": 512_000_000, f"{GROUP}/memory.current": 450_000_000}
    box(tree, used if garbled is None else {**used, f"{GROUP}/memory.stat": garbled})
    assert MemoryLimit(tree.root)().fields == {"memory_available_mb": 62}
