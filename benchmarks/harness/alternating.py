"""Contenders in processes of their own that take turns, each side at its best settings; no command of its own.

Two inference libraries, or one with two settings, disturb each other in one process: they share thread pools and
allocators, and their threads spin beside each other. Here each contender has a process (`alternating_worker.py`). One
of them works at a time, for a block of items; the others wait for their pipe. The order turns with every block, and a
pause before each turn lets the threads of the one before come to rest.
"""

import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from benchmarks.harness.alternating_worker import OWN, Job, Setting
from benchmarks.harness.common import module_command, module_path, ratio, spread
from dynamic.engines.engine_factory import installed
from dynamic.engines.memory import available_cores
from dynamic.engines.options import EngineName, Precision
from dynamic.profiling.machine import machine_name

PAUSE_S = 0.1  # ONNX Runtime's own spinning goes on for tens of milliseconds
WARM_S = 0.1  # of untimed calls at the start of a turn: clock, caches and threads were another's
ENGINES: dict[str, tuple[EngineName, Precision]] = {
    "onnxruntime f32": ("onnxruntime", "f32"),
    "openvino f32": ("openvino", "f32"),
    "openvino bf16": ("openvino", "bf16"),
}


class WorkerDiedError(RuntimeError):
    """A worker ended before its time; says which, and what it wrote to stderr."""


@dataclass(frozen=True)
class Contender:
    """A job as a row of a table knows it: `name`, and for a cascade the thresholds it runs under."""

    name: str
    job: Job
    thresholds: tuple[float, ...] | None = None

    @property
    def key(self) -> str:
        """Tells contenders of the same row apart."""
        route = f"{self.job.route}, " if self.job.route else ""
        return f"{self.name} | {route}{self.job.setting.name}"


@dataclass
class Timed:
    """`ms` of every item in the order given, and `cpu_ms` per call of every block."""

    ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


class Process:
    """A worker process."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the worker)
        # a session of its own: an interrupt reaches this process alone, which then closes its workers
        self._process = subprocess.Popen(
            module_command("harness.alternating_worker", job.to_json()),
            env=module_path(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is gone."""
        return self._process.poll() is not None

    def ready(self) -> None:
        """Wait until the job is open."""
        self._hear()

    def ask(self, do: str, **told: Any) -> dict[str, Any]:
        """Tell it to do something and wait for the answer; raises WorkerDiedError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **told}) + "\n")
            self._process.stdin.flush()
        except OSError:  # it is gone; why is told by what it wrote
            self._died()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._died()
        found: dict[str, Any] = json.loads(line)
        return found

    def _died(self) -> None:
        code = self._process.wait()
        self._stderr.seek(0)
        wrote = self._stderr.read().decode(errors="replace").strip()
        raise WorkerDiedError(f"the worker of {self.job} ended with code {code}:\n{wrote[-4000:] or '(no message)'}")

    def close(self) -> None:
        """End it: a closed pipe is its signal; killed where it does not listen."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):  # the other end is gone already
                    stream.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._stderr.close()


Workers = Mapping[Job, Process]


@contextmanager
def workers(contenders: Sequence[Contender]) -> Iterator[Workers]:
    """A ready process for every job among the contenders; all are closed in the end, come what may."""
    started: dict[Job, Process] = {}
    try:
        for contender in contenders:
            if contender.job not in started:
                started[contender.job] = Process(contender.job)
                started[contender.job].ready()  # one after the other: compiling takes every core
        yield started
    finally:
        for process in started.values():
            process.close()


def alternate(
    running: Workers,
    contenders: Sequence[Contender],
    items: Sequence[int],
    block: int,
    pause_s: float = PAUSE_S,
    warm_s: float = WARM_S,
    every_s: float | None = None,
) -> dict[str, Timed]:
    """Every contender on every item, by `Contender.key`; one works at a time, for `block` items.

    Before a turn it works untimed for `warm_s`, at least once, on the items of the block before (first: of the last):
    all get the same time, and of a cascade the parts that few go through are found as they are where requests follow
    each other.
    """
    took = {c.key: Timed() for c in contenders}
    for number, start in enumerate(range(0, len(items), block)):
        chosen, others = list(items[start : start + block]), list(items[start - block : start] or items[-block:])
        shift = number % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            time.sleep(pause_s)
            found = running[contender.job].ask(
                "turn", items=chosen, thresholds=contender.thresholds, warm=others, warm_s=warm_s, every_s=every_s
            )
            took[contender.key].ms += found["ms"]
            took[contender.key].cpu_ms.append(found["cpu_ms"] / len(chosen))
    return took


def winners(
    running: Workers, contenders: Sequence[Contender], items: Sequence[int], block: int
) -> tuple[list[Contender], dict[str, dict[str, float]]]:
    """Of each name the contender that is fastest on these items, and mean ms of all by name and setting.

    Chosen on a run of its own: the best of many on the run that is reported would be part luck.
    """
    took = alternate(running, contenders, items, block)
    means = {c.key: statistics.fmean(took[c.key].ms) for c in contenders}
    named: dict[str, list[Contender]] = {}
    for contender in contenders:
        named.setdefault(contender.name, []).append(contender)
    table = {n: {c.key.split(" | ")[1]: round(means[c.key], 3) for c in own} for n, own in named.items()}
    return [min(own, key=lambda c: means[c.key]) for own in named.values()], table


def settings(engine: str, bare: bool) -> list[Setting]:
    """Every way to run that a side may choose from; an unsplit network (`bare`) has more, and gets its best."""
    counts = sorted({1, 2, available_cores()} if available_cores() > 1 else {1})
    idles = (*(("sleep", "spin")), *((OWN,) if bare else ())) if engine == "onnxruntime" else ("",)
    found = [
        Setting(n, idle) for n in counts for idle in (idles if n > 1 else idles[:1])
    ]  # one thread waits for nobody
    return found + [replace(s, fixed=True) for s in found] if bare else found


def engines_here(wanted: Sequence[str] = tuple(ENGINES)) -> tuple[list[str], dict[str, str]]:
    """Names out of `ENGINES` that can be measured on this machine, and why the others cannot."""
    found, skipped = [], {}
    for name in wanted:
        engine, precision = ENGINES[name]
        if engine not in installed():
            skipped[name] = "not installed"
        elif precision == "bf16" and not _has_bf16():
            skipped[name] = "this processor does not compute in bf16"
        else:
            found.append(name)
    return found, skipped


def _has_bf16() -> bool:
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def row_of(ours: Timed, theirs: Timed, contender: Contender) -> dict[str, Any]:
    """A row of a table: a contender against the baseline that took turns with it."""
    return {
        "settings": contender.key.split(" | ")[1],
        "latency_ms": spread(ours.ms),
        "cpu_ms": round(statistics.fmean(ours.cpu_ms), 3),
        "ratio": ratio(ours.ms, theirs.ms),
    }


HEADER = f"{'mean ms':>9}{'p50 (quartiles)':>28}{'p95':>9}{'CPU-ms':>9}   ratio of means (quartiles)  settings"


def columns(found: Mapping[str, Any]) -> str:
    """A row under `HEADER`."""
    ms, to = found["latency_ms"], found["ratio"]
    quartiles = f"{ms['median']:.2f} ({ms['q25']:.2f} to {ms['q75']:.2f})"
    return (
        f"{ms['mean']:9.2f}{quartiles:>28}{ms['p95']:9.2f}{found['cpu_ms']:9.2f}"
        f"   {to['ratio']:.3f} ({to['q25']:.3f} to {to['q75']:.3f})     {found['settings']}"
    )


def not_measured() -> list[str]:
    """What a table from this machine says nothing about."""
    arm = platform.machine().lower() in ("aarch64", "arm64", "armv7l")
    return [
        "x86-64" if arm else "ARM",
        "phones",
        "GPUs and other accelerators",
        "energy",
        "a machine busy with other work",
    ]


def circumstances() -> str:
    """The line under every table."""
    how = f"batch 1, requests one behind the other, {WARM_S} s of warm-up before every turn"
    return f"measured on {machine_name()}, {how}; not measured: {', '.join(not_measured())}"
