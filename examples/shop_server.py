"""A shop's server, from noon to six in the morning in a minute: a rush, lights that go off, a bundle that is replaced.

    python examples/shop_server.py [--hour 4]

Four cameras send frames with 16 products each (handwritten digits; the bundle in out/digits is made on the first run,
half a minute) to one real runtime: nothing is simulated but the time of day, an hour of which lasts `--hour` seconds,
and the light. The server is one of 2 CPUs and 1 GB. Its queue is bounded: what waits longest is given up.

    17:00 three times as many frames come, more than the largest network can answer
    21:00 the lights go off, and images are not what they were: the drift test tells
    22:00 another budget: while inputs drift, no savings, whatever it costs in time
    23:00 closing time: as many frames as before
    03:00 another bundle is put in its place while requests run
"""

import argparse
import logging
import shutil
import tempfile
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import digits_bundle
import numpy as np
import psutil
from numpy.typing import NDArray

import dynamic
from dynamic import BatchResult, Change, Prediction, Statistics
from dynamic.data import ImageSet
from dynamic.errors import ShedError
from dynamic.policies import Budget, Decision, Frontier, Policy, Snapshot

OPENS, RUSH, DARK, CAREFUL, CLOSED, SWAP, ENDS = 12, 17, 21, 22, 23, 27, 30  # hours; 27 is three in the morning
EVENTS = {
    RUSH: "three times as many frames",
    DARK: "the lights go off",
    CAREFUL: 'another budget, priority=("memory", "drop"): no savings while inputs drift',
    CLOSED: "closing time: as many frames as before, and the first budget again",
    SWAP: "another bundle is swapped in",
}
ROWS, QUEUE = 16, 32
BUSY = 0.6  # share of the time that the largest network would be busy before the rush


@dataclass(frozen=True, slots=True)
class Answer:
    """One frame's, sent at `hour` and done at `done`; what follows is None where it was given up."""

    hour: float
    done: float
    latency_ms: float | None = None
    right: float | None = None
    certified: bool | None = None
    point: str | None = None
    violated_limits: tuple[str, ...] = ()
    reason: str | None = None


@dataclass(eq=False)
class Log:
    """What happened, with the time of day in hours."""

    limit_ms: float = 0.0
    answers: list[Answer] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)
    changes: list[tuple[float, Change]] = field(default_factory=list)
    memory_mb: list[tuple[float, float]] = field(default_factory=list)
    stats: Statistics | None = None

    def between(self, from_h: float, to_h: float) -> list[Answer]:
        """Frames that were sent then."""
        return [answer for answer in self.answers if from_h <= answer.hour < to_h]

    def read_memory(self, hour: float) -> None:
        """Note what this process holds."""
        self.memory_mb.append((hour, psutil.Process().memory_info().rss / 1e6))

    def memory(self, from_h: float, to_h: float) -> float:
        """Resident memory then, in MB: the median, or the nearest reading where a busy machine left none."""
        inside = [mb for hour, mb in self.memory_mb if from_h <= hour < to_h]
        nearest = min(self.memory_mb, key=lambda reading: max(from_h - reading[0], reading[0] - to_h))
        return median(inside) if inside else nearest[1]


class Clock:
    """The time of day, in hours from midnight on."""

    def __init__(self, hour_s: float) -> None:
        self.hour_s = hour_s
        self.begin()

    def begin(self) -> None:
        """It is noon."""
        self._began = time.monotonic()

    def __call__(self) -> float:
        return OPENS + (time.monotonic() - self._began) / self.hour_s

    def wait(self, until: float) -> None:
        """Sleep; not at all where that time is past."""
        time.sleep(max(0.0, (until - self()) * self.hour_s))


class Largest(Policy):
    """The largest network alone, and no other in memory."""

    def decide(self, frontier: Frontier, budget: Budget, snapshot: Snapshot, state: Any) -> tuple[Decision, Any]:
        """Always the same."""
        return Decision(frontier.points[0], keep_loaded=frontier.points[0].backbones), state


def frame_ms(bundle: dynamic.Bundle, images: ImageSet) -> float:
    """What the largest network takes for a frame on this machine while nothing disturbs it."""
    with bundle.runtime(policy=Largest(), drift_alpha=None) as run:
        return quantiles((run(images.images[:ROWS]).latency_ms for _ in range(60)), n=10)[0]


def live(
    bundle: dynamic.Bundle,
    images: ImageSet,
    hour_s: float,
    memory_mb: float = 1000.0,
    monitor: dynamic.Monitor | None = None,
    seed: int = 0,
) -> Log:
    """The shop's day and night; `hour_s`: seconds that an hour lasts."""
    alone_ms = frame_ms(bundle, images)
    log, random = Log(limit_ms=8 * alone_ms), np.random.default_rng(seed)
    budget = Budget(latency_ms=log.limit_ms, memory_mb=memory_mb)
    careful = replace(budget, priority=("memory", "drop"))
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as aside:
        shutil.copytree(bundle.folder, Path(folder) / "new")
        newer = dynamic.load(Path(folder) / "new")  # as a new version would come; this one is the same again
        clock = Clock(hour_s)
        with bundle.runtime(
            budget, monitor=monitor, queue=QUEUE, on_change=lambda change: log.changes.append((clock(), change))
        ) as run:
            run(images.images[:ROWS])  # loads what it needs
            clock.begin()
            watching = aside.submit(_watch, log, clock)
            swapping: Future[None] | None = None
            futures: list[Future[Prediction | BatchResult]] = []
            hour = float(OPENS)
            while hour < ENDS:
                clock.wait(hour)
                wanted = careful if CAREFUL <= hour < CLOSED else budget
                if run.budget is not wanted:
                    run.budget = wanted
                if hour >= SWAP and swapping is None:
                    swapping = aside.submit(run.swap, newer)  # requests go on meanwhile
                chosen = random.integers(len(images.images), size=ROWS)
                seen = images.images[chosen]
                future = run.submit(seen // 3 if hour >= DARK else seen)
                future.add_done_callback(partial(_enter, log, clock, hour, images.labels[chosen]))
                futures = [*(waiting for waiting in futures if not waiting.done()), future]
                rate = 3 if RUSH <= hour < CLOSED else 1
                hour += random.exponential(alone_ms / 1e3 / BUSY / rate) / hour_s
            wait(futures)
            watching.result()
            assert swapping is not None
            swapping.result()  # raises what it has raised
            log.stats = run.stats()
    return log


def _enter(
    log: Log, clock: Clock, hour: float, labels: NDArray[np.int64], future: "Future[Prediction | BatchResult]"
) -> None:
    error, done = future.exception(), clock()
    if isinstance(error, ShedError):
        log.answers.append(Answer(hour, done))
    elif error is not None:
        log.failures.append(error)
    else:
        result = future.result()
        decision, right = result.decision, float(np.mean(result.label == labels))
        why = decision.point.name, decision.violated_limits, decision.reason
        log.answers.append(Answer(hour, done, result.latency_ms, right, result.certified, *why))
        log.read_memory(done)  # on a busy machine the thread that watches may sleep for hours of this day


def _watch(log: Log, clock: Clock) -> None:
    while clock() < ENDS:
        log.read_memory(clock())
        time.sleep(clock.hour_s / 40)


def tell(log: Log) -> None:
    """The timeline, the hours, and what there is to hold."""
    assert log.stats is not None
    told = sorted([*((hour, f"*** {what} ***") for hour, what in EVENTS.items()), *_in_words(log)])
    print(f"an hour of the day in a few seconds, 95% of frames within {log.limit_ms:.0f} ms wanted")
    for hour, text in told:
        print(f"{_clock(hour)}  {text}")
    print("\nhour    frames  given up  p95 ms  accuracy  certified  MB  points")
    for start in range(OPENS, ENDS):
        sent = log.between(start, start + 1)
        answered = [answer for answer in sent if answer.latency_ms is not None]
        points = Counter(answer.point for answer in answered)
        shares = ", ".join(f"{name} {count / len(answered):.0%}" for name, count in points.most_common())
        print(
            f"{_clock(start)}  {len(sent):6}  {len(sent) - len(answered):8}  {p95_ms(answered):6.1f}  "
            f"{np.mean([answer.right for answer in answered]):8.1%}  "
            f"{np.mean([answer.certified for answer in answered]):9.0%}  {log.memory(start, start + 1):.0f}  {shares}"
        )
    stats = log.stats
    print(
        f"\n{stats.requests} frames answered and {stats.shed} given up, {len(log.failures)} failed; at most "
        f"{stats.queue_longest} waited, of {QUEUE} that may; memory {log.memory(OPENS + 1, RUSH):.0f} MB before the "
        f"rush, {log.memory(SWAP + 1, ENDS):.0f} MB after the swap"
    )


def p95_ms(answers: list[Answer]) -> float:
    """Of frames that were answered."""
    return float(np.percentile([a.latency_ms for a in answers if a.latency_ms is not None], 95))


def _in_words(log: Log) -> list[tuple[float, str]]:
    """Changes of decision: the first two of an hour, the first where inputs have drifted, and how many there were."""
    found: list[tuple[float, str]] = []
    for start in range(OPENS, ENDS):
        mine = [(hour, change) for hour, change in log.changes if start <= hour < start + 1]
        drifted = [(hour, change) for hour, change in mine if "drifted" in change.decision.reason]
        shown = dict.fromkeys([*mine[:2], *drifted[:1]])
        found += [(hour, change.decision.reason) for hour, change in shown]
        if len(mine) > len(shown):
            found.append((start + 0.999, f"{len(mine) - len(shown)} more changes in this hour"))
    return found


def _clock(hour: float) -> str:
    minutes = int(hour * 60 + 1e-6)
    return f"{minutes // 60 % 24:02}:{minutes % 60:02}"


def draw(log: Log, path: Path) -> None:
    """Frames, latency, points and memory over the hours."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (count, latency, share, memory) = plt.subplots(4, 1, figsize=(11, 9), sharex=True)
    edges = np.arange(OPENS, ENDS + 0.01, 0.25)
    answered = [answer for answer in log.answers if answer.latency_ms is not None]
    shed = [answer.hour for answer in log.answers if answer.latency_ms is None]
    hours = [answer.hour for answer in answered]
    count.hist([hours, shed], edges, stacked=True, label=["answered", "given up"], color=["C0", "C3"])
    count.set_ylabel("frames in a quarter")
    count.legend(loc="upper right", fontsize="small")
    latency.plot(hours, [answer.latency_ms for answer in answered], ".", markersize=2)
    latency.axhline(log.limit_ms, color="red", linestyle=":")
    latency.set_ylabel("latency, ms")
    names = list(dict.fromkeys(answer.point for answer in answered))
    kinds = [np.histogram([a.hour for a in answered if a.point == name], edges)[0] for name in names]
    share.stackplot(edges[:-1], np.array(kinds) / np.maximum(sum(kinds), 1), labels=names, step="post")
    share.set_ylabel("share of the points")
    share.legend(loc="lower left", fontsize="small")
    memory.plot(*zip(*log.memory_mb, strict=True))
    memory.set_ylabel("resident memory, MB")
    memory.set_xlabel("time of day")
    memory.set_xticks(range(OPENS, ENDS + 1, 2), [_clock(hour) for hour in range(OPENS, ENDS + 1, 2)])
    for axes in (count, latency, share, memory):
        for hour in EVENTS:
            axes.axvline(hour, color="0.3", linewidth=0.8)
    figure.suptitle("A shop's server, an hour in a few seconds; 17:00 rush, 21:00 dark, 22:00 careful, 03:00 swap")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Live through day and night, tell it and draw it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hour", type=float, default=4.0, help="seconds that an hour lasts")
    given = parser.parse_args()
    logging.basicConfig(format="log: %(message)s")  # the runtime tells of drift, once
    bundle, images = digits_bundle.ready()
    log = live(bundle, images, given.hour)
    tell(log)
    draw(log, Path("out/shop_server.png"))
    print("the picture is out/shop_server.png")


if __name__ == "__main__":
    main()
