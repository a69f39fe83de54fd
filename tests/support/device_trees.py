"""Kernel files of five devices as people have them, each with something that is missing and something to doubt."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.sensor_cases import V2_MOUNT

from dynamic.monitoring.contract import Reading

Files = dict[str, str | int]

_PRESSURE = "some avg10={:.2f} avg60=0.00 avg300=0.00 total=1\n"
_STAT = "cpu 1 1 1 1 1 1 1 1 1 1\n" + "".join(f"cpu{i} 100 0 100 9000 0 0 0 0 0 0\n" for i in range(256)) + "intr 5\n"


def supply(name: str, kind: str, **attributes: str | int) -> Files:
    """An entry of /sys/class/power_supply."""
    files = {"type": kind} | attributes
    return {f"sys/class/power_supply/{name}/{key}": f"{value}\n" for key, value in files.items()}


def chip(number: int, name: str, **files: str | int) -> Files:
    """A chip of /sys/class/hwmon."""
    folder = f"sys/class/hwmon/hwmon{number}"
    return {f"{folder}/name": f"{name}\n"} | {f"{folder}/{key}": f"{value}\n" for key, value in files.items()}


def zone(number: int, kind: str, value: int) -> Files:
    """A thermal zone."""
    return {
        f"sys/class/thermal/thermal_zone{number}/type": f"{kind}\n",
        f"sys/class/thermal/thermal_zone{number}/temp": f"{value}\n",
    }


def cores(policies: Mapping[int, tuple[str | int, int]]) -> Files:
    """Groups of cores with the frequency now and the highest, in kHz."""
    files: Files = {}
    for number, (now, highest) in policies.items():
        folder = f"sys/devices/system/cpu/cpufreq/policy{number}"
        files |= {f"{folder}/scaling_cur_freq": f"{now}\n", f"{folder}/cpuinfo_max_freq": f"{highest}\n"}
    return files


def own(total_kb: int, available_kb: int) -> Files:
    """Files of the machine and of this process that every Linux has."""
    return {
        "proc/meminfo": f"MemTotal: {total_kb} kB\nMemAvailable: {available_kb} kB\n",
        "proc/self/statm": "99999 20000 5 5\n",
        "proc/stat": _STAT,
    }


def raspberry_pi() -> Files:
    """Throttled by a weak supply, with a battery board whose slot is empty. Its kernel counts no pressure."""
    return {
        **own(3_900_000, 3_000_000),
        "proc/self/cgroup": "0::/user.slice/user-1000.slice/session-1.scope\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/user.slice/user-1000.slice/session-1.scope/cgroup.procs": "1\n",  # without the memory controller
        "sys/devices/platform/soc/soc:firmware/get_throttled": "50005\n",
        **chip(0, "cpu_thermal", temp1_input=61_322),
        **chip(1, "rpi_volt", in0_lcrit_alarm=1),
        **zone(0, "cpu-thermal", 61_322),
        **cores({0: (1_500_000, 1_800_000)}),
        **supply("hat", "Battery", status="Discharging", capacity=0, voltage_now=0),
    }


def laptop() -> Files:
    """Two batteries, one of which says -1, with a USB supply that is stale. Tctl beside Tdie. RAPL is root's."""
    return {
        **own(16_000_000, 9_000_000),
        "proc/self/cgroup": "0::/user.slice/app.scope\n",
        "proc/self/mountinfo": V2_MOUNT,
        "sys/fs/cgroup/user.slice/app.scope/memory.max": "max\n",
        "sys/fs/cgroup/user.slice/app.scope/cpu.max": "max 100000\n",
        "proc/pressure/cpu": _PRESSURE.format(1.5),
        "proc/pressure/memory": _PRESSURE.format(0.0),
        **supply("BAT0", "Battery", status="Unknown", capacity=-1),
        **supply("BAT1", "Battery", status="Discharging", capacity=60, energy_now=30_000_000, energy_full=50_000_000),
        **supply("AC", "Mains", online=0),
        **supply("ucsi-source-psy-USBC000:001", "USB", online=1),
        "sys/class/power_supply/BAT1/power_now": 8_250_000,
        **chip(0, "nvme", temp1_input=40_850),
        **chip(1, "k10temp", temp1_input=82_000, temp1_label="Tctl", temp2_input=55_000, temp2_label="Tdie"),
        **chip(2, "it8665", temp1_input=51_000, temp2_input=127_000),
        **cores({0: (2_000_000, 4_000_000), 1: (3_000_000, 4_000_000), 2: ("<unknown>", 4_000_000)}),
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": 0,
    }


def lxc() -> Files:
    """A container that sees the groups of its host from above, so that its own limits cannot be determined."""
    return {
        **own(8_000_000, 4_000_000),
        "run/systemd/container": "lxc\n",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": V2_MOUNT.replace("0:28 / /", "0:28 /../.. /"),
        "sys/fs/cgroup/cgroup.procs": "1\n",
        "proc/pressure/cpu": _PRESSURE.format(20.0),
        "proc/pressure/memory": "nonsense\n",
        **zone(0, "x86_pkg_temp", 45_000),
        **zone(1, "cpu1", 0),
    }


def pod() -> Files:
    """A pod of Kubernetes: its volumes make mountinfo longer than a page, most of its memory is clean file pages."""
    volumes = "".join(
        f"{100 + i} 23 0:{40 + i} / /var/run/secrets/volume-{i} ro,relatime - tmpfs tmpfs rw,size=524288k\n"
        for i in range(80)
    )
    return {
        **own(64_000_000, 50_000_000),
        "var/run/secrets/kubernetes.io/serviceaccount/namespace": "default",
        "proc/self/cgroup": "0::/\n",
        "proc/self/mountinfo": volumes + V2_MOUNT,
        "sys/fs/cgroup/memory.max": 512_000_000,
        "sys/fs/cgroup/memory.high": "what\n",
        "sys/fs/cgroup/memory.current": 505_000_000,
        "sys/fs/cgroup/memory.stat": "anon 130000000\nfile 375000000\ninactive_file 5000000\nactive_file 370000000\n",
        "sys/fs/cgroup/cpu.max": "50000 100000\n",
        "sys/fs/cgroup/cpu.stat": "usage_usec 1000000\n",
        "sys/fs/cgroup/cpu.pressure": _PRESSURE.format(37.0),
        "sys/fs/cgroup/memory.pressure": _PRESSURE.format(0.0),
    }


def phone() -> Files:
    """An Android phone: `/proc/stat` is refused, zones are in all units, one group of cores is busy, the charger is
    a pad that no supply shows.
    """
    return {
        **own(7_600_000, 2_500_000),
        "proc/self/cgroup": "3:cpuset:/top-app\n2:cpu:/top-app\n0::/uid_10234/pid_4321\n",
        "proc/self/mountinfo": V2_MOUNT + "33 23 0:29 / /dev/cpuctl rw,nosuid - cgroup none rw,cpu\n",
        "dev/cpuctl/top-app/cpu.shares": 1024,
        "sys/fs/cgroup/uid_10234/pid_4321/cgroup.procs": "1\n",
        **supply("battery", "Battery", status="Charging", capacity=117, charge_now=4_000_000, voltage_now=4_300_000),
        **supply("usb", "USB", online=0),
        **supply("bms", "BMS", capacity=99),
        **zone(0, "soc", 99),
        **zone(1, "cpu-0-0-usr", 45_100),
        **zone(2, "cpu-1-0-usr", 127_000),
        **zone(3, "gpuss-0-usr", 60_000),
        **zone(4, "battery", 31_000),
        **cores({0: (900_000, 1_800_000), 4: (1_200_000, 2_400_000), 7: (2_800_000, 2_800_000)}),
    }


def refuse(monkeypatch: pytest.MonkeyPatch, errors: Mapping[Path, int]) -> None:
    """Opening these files fails with these errors, for root as well."""
    real = os.open

    def guarded(path: Any, *more: Any, **named: Any) -> int:
        code = errors.get(Path(path))
        if code is not None:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *more, **named)

    monkeypatch.setattr("dynamic.monitoring.kernel.kernel_files.os.open", guarded)


def refuse_on_phone(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """What the phone's kernel refuses to an application."""
    busy = root / "sys/devices/system/cpu/cpufreq/policy7/scaling_cur_freq"
    refuse(monkeypatch, {root / "proc/stat": errno.EACCES, busy: errno.EBUSY})


def refuse_with(monkeypatch: pytest.MonkeyPatch, code: int, *paths: Path) -> None:
    """Opening these files fails with this error."""
    refuse(monkeypatch, dict.fromkeys(paths, code))


def reasons(reading: Reading) -> str:
    """What a reading has left out, a line for each."""
    return "\n".join(str(item) for item in reading.left_out)
