"""Ten minutes in which everything fails that can: no request may be lost, and memory may not grow.

    python -m benchmarks.runtime.soak
    python -m benchmarks.runtime.soak --seconds 60

A small cascade is built on the spot, in a process of its own. Then threads ask for single inputs and batches, directly
and in bursts that overflow the queue, while sensors raise, hang, lie and dawdle, the policy raises and decides
nonsense, the engine fails now and then and for seconds on end, budgets change many times a second, and one bundle is
swapped for another. A request has failed if it raises anything but ShedError.

Memory is resident memory of the process; medians over the second and the last tenth of the time are compared. While all
this goes on it hangs on which networks happen to be in memory, and swings by a fifth either way: that is reported. What
may not grow by more than 2% is memory at rest: fifty times the threads are halted, a fresh bundle is swapped in, its
smallest network answers one request, and freed memory is handed back. glibc keeps the holes of an arena for each thread
that loads networks: what that makes of it shows when run once more with MALLOC_ARENA_MAX=2 in the environment.
"""

import argparse
import contextlib
import functools
import logging
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import dynamic
from benchmarks.harness.common import module_command, module_path, progress, save
from dynamic.engines.memory import trim_memory
from dynamic.engines.route_choice import CascadeEngine
from dynamic.errors import DynamicError, EngineError, SettingError, ShedError
from dynamic.policies import BudgetPolicy, Decision
from dynamic.runtime import fallback

SECONDS, QUEUE, FEATURES, MOST_GROWTH = 600, 64, 12, 0.02
COOL_DOWN_S = 1.0  # of an engine that failed: so that it comes back many times
NOT_MEASURED = ("engine torch", "networks of hundreds of MB", "files that vanish", "a full disk", "a fork")


def build(folder: Path) -> None:
    """Two bundles of the same networks, with ladders that differ."""
    import torch
    from torch import nn

    torch.manual_seed(0)
    centers, label = torch.randn(4, FEATURES), torch.arange(1200) % 4
    inputs = centers[label] + 1.1 * torch.randn(1200, FEATURES)
    small = nn.Sequential(nn.Linear(FEATURES, 2), nn.Linear(2, 4))
    large = nn.Sequential(nn.Linear(FEATURES, 1500), nn.ReLU(), nn.Linear(1500, 1500), nn.ReLU(), nn.Linear(1500, 4))
    for network, steps in ((small, 60), (large, 12)):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.003 if network is large else 0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[:600]), label[:600]).backward()
            optimizer.step()
    for name, targets in (("a", None), ("b", (0.1,))):
        built = dynamic.build([small, large], [(inputs[600:], label[600:])], classes=tuple("abcd"), max_drops=targets)
        built.save(folder / name).profile(batch=(1, 16), seconds=0.2, threads=1)


class Faults:
    """What goes wrong, by chance, and how often it did."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.stopped, self.resting = threading.Event(), False
        self.outage_until = 0.0

    def sensor(self, name: str, value: Callable[[], float]) -> Callable[[], float]:
        """A source that works most of the time."""

        def read() -> Any:
            draw = self.random.random()
            if draw > 0.25:
                return value()
            kind = ("raises", "is stuck", "lies", "is slow")[int(draw * 16)]
            self.count[f"sensor {kind}"] += 1
            if kind == "raises":
                raise OSError(f"{name} is out of order")
            if kind == "lies":
                return self.random.choice([float("nan"), -1e9, 1e9, None, "much", [1]])
            self.stopped.wait(4.0 if kind == "is stuck" else 0.4)
            return value()

        return read

    def engine(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A method of engines that fails at times; one engine stays sound, or nobody could answer."""

        @functools.wraps(run)
        def flaky(engine: CascadeEngine, *given: Any, **options: Any) -> Any:
            now = time.monotonic()
            if engine.name == "onnxruntime" and not (self.resting or self.stopped.is_set()):
                if self.random.random() < 2e-5:
                    self.outage_until = now + self.random.uniform(0.5, 3.0)
                if now < self.outage_until or self.random.random() < 1e-3:
                    self.count["engine fails"] += 1
                    raise EngineError("out of order")
            return run(engine, *given, **options)

        return flaky


class Moody(BudgetPolicy):
    """The default policy on a bad day."""

    faults: Faults

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
        draw = self.faults.random.random()
        if draw > 0.01 or self.faults.resting:
            return super().decide(frontier, budget, snapshot, state)
        self.faults.count["policy fails"] += 1
        if draw > 0.005:
            raise ArithmeticError("lost count")
        return self.faults.random.choice([None, (Decision(frontier), state), (None, None), 7])

    def observe(self, state: Any, feedback: Any) -> Any:
        if self.faults.random.random() < 0.005:
            self.faults.count["policy fails"] += 1
            raise ArithmeticError("did not listen")
        return super().observe(state, feedback)


class Soak:
    """Threads that use one runtime, and what came of it."""

    def __init__(self, run: Any, bundles: list[dynamic.Bundle], faults: Faults, memory_mb: float) -> None:
        self.run, self.bundles, self.faults = run, bundles, faults
        self.asked, self.failed, self.shed = Counter[str](), Counter[str](), 0
        self._lock, self._gates = threading.Lock(), [threading.Lock() for _ in range(8)]
        self._inputs = np.random.default_rng(0).standard_normal((256, FEATURES)).astype(np.float32)
        large = max(bundles[0].costs.memory_mb) if bundles[0].costs else 10.0
        self._budgets = [
            dynamic.Budget(),
            dynamic.Budget(max_drop=0.05),
            dynamic.Budget(latency_ms=0.5, max_drop=0.3),
            dynamic.Budget(latency_ms=5.0),
            dynamic.Budget(deadline_ms=0.3),
            dynamic.Budget(deadline_ms=50.0, max_drop=0.05),
            dynamic.Budget(memory_mb=memory_mb + large / 2),
            dynamic.Budget(memory_mb=memory_mb + 50 * large),
            dynamic.Budget(battery_floor=0.5, temperature_c=60.0),
        ]

    def _note(self, kind: str, work: Callable[[], Any]) -> None:
        try:
            work()
        except ShedError:
            with self._lock:
                self.shed += 1
        except BaseException as error:
            with self._lock:
                self.failed[f"{kind}: {error!r:.200}"] += 1
        with self._lock:
            self.asked[kind] += 1

    def _forever(self, work: Callable[[random.Random], Any], pause_s: float, seed: int) -> None:
        chance = random.Random(seed)
        while not self.faults.stopped.wait(chance.uniform(0.0, 2.0 * pause_s)):
            with self._gates[seed]:
                work(chance)

    def _ask(self, chance: random.Random) -> None:
        rows = chance.choice([1, 1, 1, 2, 16])
        at = chance.randrange(len(self._inputs) - rows)
        self._note("call", lambda: self.run(self._inputs[at : at + rows]))

    def _burst(self, chance: random.Random) -> None:
        futures = [self.run.submit(chance.choice(self._inputs)) for _ in range(chance.choice([1, 8, 30, 150]))]
        for future in futures:
            self._note("submit", functools.partial(future.result, 60))

    def _limit(self, chance: random.Random) -> None:
        try:
            self.run.budget = chance.choice([*self._budgets, dynamic.Budget()])
            if chance.random() < 0.01:
                self.run.budget = dynamic.Budget(energy_mj=1.0)  # has no source: refused
        except SettingError:
            self.faults.count["budget refused"] += 1

    def _swap(self, chance: random.Random) -> None:
        try:
            self.run.swap(chance.choice(self.bundles))
            self.faults.count["swap"] += 1
        except DynamicError as error:  # it may fail: the old one goes on
            self.faults.count[f"swap refused: {error!r:.80}"] += 1

    def _rest(self) -> float:
        """Resident memory in MB while nothing runs, and little is loaded."""
        with contextlib.ExitStack() as halted:
            for gate in self._gates:
                halted.enter_context(gate)
            self.faults.resting = True
            self.run.swap(self.bundles[0])
            self.run.budget = dynamic.Budget(memory_mb=1.0)
            self._note("at rest", lambda: self.run(self._inputs[:1]))
            trim_memory()
            self.faults.resting = False
            return psutil.Process().memory_info().rss / 1e6

    def go(self, seconds: float) -> tuple[list[float], list[float]]:
        """Resident memory in MB, four times a second; and at rest, fifty times."""
        jobs = [(self._ask, 0.002)] * 3 + [(self._burst, 0.05)] * 3 + [(self._limit, 0.05), (self._swap, 3.0)]
        threads = [
            threading.Thread(target=self._forever, args=(work, pause_s, seed))
            for seed, (work, pause_s) in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        process, ends = psutil.Process(), time.monotonic() + seconds
        found: list[float] = []
        rest: list[float] = []
        while (left_s := ends - time.monotonic()) > 0:
            found.append(process.memory_info().rss / 1e6)
            if len(rest) < 50 * (1 - left_s / seconds):
                rest.append(self._rest())
            if len(found) % 40 == 0:
                stats, failures = self.run.stats(), self.failed or "no failures"
                progress(f"{left_s:5.0f} s left, {stats.requests} answered, {found[-1]:.0f} MB, {failures}")
            time.sleep(min(0.25, left_s))
        self.faults.stopped.set()
        for thread in threads:
            thread.join()
        return found, rest


def compared(memory: list[float]) -> dict[str, float]:
    """Medians of the second and the last tenth, and by how much the one is above the other."""
    tenth = max(1, len(memory) // 10)
    early, late = (statistics.median(part) for part in (memory[tenth : 2 * tenth], memory[-tenth:]))
    return {"second_tenth": round(early, 1), "last_tenth": round(late, 1), "growth": round(late / early - 1, 4)}


def main() -> None:
    """Build, soak, report; exits with an error where a request failed or memory grew."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.build:
        build(options.build)
        return
    logging.getLogger("dynamic").setLevel(logging.ERROR)  # thousands of faults are meant
    faults = Faults(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        progress("building")
        subprocess.run(module_command("runtime.soak", "--build", folder), env=module_path(), check=True)
        bundles = [dynamic.load(Path(folder) / name) for name in "ab"]
        fallback.COOL_DOWN_S = COOL_DOWN_S
        CascadeEngine.run = faults.engine(CascadeEngine.run)  # type: ignore[method-assign]
        CascadeEngine.prepare = faults.engine(CascadeEngine.prepare)  # type: ignore[method-assign]
        memory_mb, chance = psutil.Process().memory_info().rss / 1e6, faults.random
        monitor = dynamic.Monitor(
            0.05,
            cpu=faults.sensor("cpu", chance.random),
            memory=faults.sensor("memory", lambda: chance.choice([5.0, 1e3, 1e4])),
            battery=faults.sensor("battery", lambda: 0.5 + 0.02 * chance.random()),
            temperature=faults.sensor("temperature", lambda: 50.0 + 5 * chance.random()),
        )
        policy, changes = Moody(), Counter[str]()
        policy.faults = faults
        began = time.monotonic()
        run = bundles[0].runtime(
            monitor=monitor,
            policy=policy,
            queue=QUEUE,
            workers=2,
            threads=1,
            on_change=lambda change: changes.update([change.after.name]),
        )
        soak = Soak(run, bundles, faults, memory_mb)
        with run:
            memory, rest = soak.go(options.seconds)
        threads = [t.name for t in threading.enumerate() if t.name.startswith("dynamic-w")]
        stats = run.stats()
    at_work, at_rest = compared(memory), compared(rest)
    figures = {
        "seconds": round(time.monotonic() - began),
        "requests": dict(soak.asked),
        "failed": dict(soak.failed),
        "shed": soak.shed,
        "faults": dict(faults.count),
        "changes_told": sum(changes.values()),
        "memory_at_rest_mb": at_rest,
        "memory_at_work_mb": at_work | {"least": round(min(memory), 1), "most": round(max(memory), 1)},
        "left_threads": threads,
        "stats": {
            name: getattr(stats, name)
            for name in (
                "requests", "inputs", "decision_changes", "certified_share", "deadline_cuts", "shed", "queue_longest",
                "engine_failures", "policy_failures",
            )
        },
        "not_measured": NOT_MEASURED,
    }  # fmt: skip
    for name, value in figures.items():
        print(f"{name}: {value}")
    print(f"\n{save('runtime/soak', figures)}")
    answered = sum(soak.asked.values()) - soak.shed - sum(soak.failed.values())
    if (
        soak.failed
        or threads
        or at_rest["growth"] > MOST_GROWTH
        or (answered, soak.shed) != (stats.requests, stats.shed)
    ):
        sys.exit("failed")


if __name__ == "__main__":
    main()
