"""Failed requests on Ray Serve while inputs get harder, come in a burst, a replica is killed, and the bundle changes.

    python -m benchmarks.serve.faults

A made cascade (`made_networks.py`) whose last network takes 10 ms, in two replicas of one thread each, or split into
head and tail with `--cut 1`. Clients are a process of their own, in an open loop of Poisson arrivals at half of what
saturates it, for 30 s a scene. Half a scene is as usual, then:

- hard mixes: 0, 30 and 100% of inputs continue, throughout.
- burst: for 5 s, requests come 5 times as often.
- killed: the process of one replica gets SIGKILL.
- swapped: another bundle is deployed, and after a quarter of the scene the first one again.

A request that is shed gets 503 with Retry-After. Any other status than 200, and no answer at all, is a failed request.
Recovery is the time until the p95 of each second is at most twice that of the first half, for good.

Every scene is written to `out/serve/faults.json`, and a run that was interrupted goes on there. It takes 6 minutes,
`--smoke` 1 with two scenes.
"""

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import dynamic
from benchmarks.harness.common import progress, save
from benchmarks.serve.arrivals import Clients, Load, Outcomes
from benchmarks.serve.deployed import OUT, Kept, local_serve
from benchmarks.serve.load import saturation
from benchmarks.serve.made_networks import cascade, inputs

TIME_MS, USUAL_HARD, HARD = 10.0, 0.3, (0.0, 0.3, 1.0)
SECONDS, BURST_S, TIMES, OF_SATURATION = 30.0, 5.0, 5.0, 0.5
SENT = 100  # of each kind
DEADLINE_MS, LIMIT_S = 500.0, 30.0  # the deadline, and by when it has to be as usual again


class Bench:
    """An application that runs, and its clients."""

    def __init__(self, port: int, cut: int | None, seconds: float) -> None:
        self.bundles = [cascade(TIME_MS, USUAL_HARD), cascade(TIME_MS * 0.8, USUAL_HARD)]
        self.budget = dynamic.Budget(max_drop=0.05, on_drift="report")
        self.port, self.seconds = port, seconds
        self.how: dict[str, Any] = {"cut": cut, "options": dynamic.serve.ServeOptions(name="made", queue=256)}
        self.how |= {"replicas": 2} if cut is None else {}
        self.handle, _ = self.deploy(0)
        self.url = f"http://127.0.0.1:{port}/v2/models/made/infer"
        parts = [inputs(SENT, hard, seed=3)[0] for hard in (0.0, 1.0)]
        (self.name,) = (one.name for one in self.bundles[0].spec.inputs)
        self.inputs = np.concatenate(parts)

    def deploy(self, number: int) -> tuple[Any, str]:
        """Deploy one of the bundles."""
        from ray import serve

        app = dynamic.serve.application(self.bundles[number], self.budget, **self.how)
        return serve.run(app, name="cascade"), ""

    def items(self, hard: float) -> tuple[int, ...]:
        """Inputs of which so many are hard."""
        count = round(hard * SENT)
        return (*range(SENT - count), *range(SENT, SENT + count))

    def kill(self) -> None:
        """End the process of one replica."""
        state = self.handle.state.remote().result(timeout_s=60)
        os.kill(state["pid"], signal.SIGKILL)

    def swap(self) -> None:
        """Another bundle, and the first one again."""
        self.deploy(1)
        time.sleep(self.seconds / 4)
        self.deploy(0)

    def scene(self, clients: Clients, rate: float, hard: float, act: Callable[[], object] | None) -> Outcomes:
        """One scene. `act` is called in the middle."""
        clients.begin(Load(rate, self.seconds, self.items(hard)))
        timer = None if act is None else threading.Timer(self.seconds / 2, act)
        if timer is not None:
            timer.start()
        outcomes = clients.end()
        if timer is not None:
            timer.join()
        return outcomes

    def burst(self, clients: Clients, more: Clients, rate: float) -> Outcomes:
        """A scene with more clients in its middle."""
        ended: list[Outcomes] = []

        def burst() -> None:
            ended.append(
                more.run(Load((TIMES - 1) * rate, min(BURST_S, self.seconds / 6), self.items(USUAL_HARD), seed=9))
            )

        outcomes = self.scene(clients, rate, USUAL_HARD, burst)
        (added,) = ended
        due_s = np.concatenate([outcomes.due_s, added.due_s + self.seconds / 2])
        order = np.argsort(due_s)
        both = (np.concatenate([getattr(outcomes, n), getattr(added, n)])[order] for n in ("ms", "status"))
        return Outcomes(due_s[order], *both)


def main() -> None:
    """Measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cut", type=int, help="split before this stage. Default: one deployment")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a scene")
    parser.add_argument("--fresh", action="store_true", help="begin anew")
    parser.add_argument("--smoke", action="store_true", help="two short scenes, no figures written")
    options = parser.parse_args()
    seconds = 6.0 if options.smoke else options.seconds
    name = "faults" if options.cut is None else f"faults_cut_{options.cut}"
    kept = Kept(f"{name}-smoke" if options.smoke else name, options.fresh or options.smoke)
    with local_serve(3) as port:  # one more, so that a replica that is killed finds a place at once
        bench = Bench(port, options.cut, seconds)
        folders = [OUT / "bodies", OUT / "more-bodies"]
        first, second = (Clients(bench.url, folder, bench.inputs, bench.name) for folder in folders)
        with first as clients, second as more:
            clients.run(Load(10.0, 2.0, bench.items(USUAL_HARD)))
            if "rate" not in kept:
                top = saturation(clients, bench.items(USUAL_HARD), seconds / 6)
                kept.keep("rate", round(OF_SATURATION * top, 2))
            rate = kept.parts["rate"]
            scenes: dict[str, Callable[[], Outcomes]] = {
                f"{hard:.0%} continue": lambda hard=hard: bench.scene(clients, rate, hard, None)  # type: ignore[misc]
                for hard in HARD
            }
            scenes["burst of 5 times"] = lambda: bench.burst(clients, more, rate)
            scenes["a replica killed"] = lambda: bench.scene(clients, rate, USUAL_HARD, bench.kill)
            scenes["bundle swapped"] = lambda: bench.scene(clients, rate, USUAL_HARD, bench.swap)
            for scene in list(scenes)[-2:] if options.smoke else scenes:
                if scene in kept:
                    continue
                outcomes = scenes[scene]()
                half = outcomes.due_s < seconds / 2
                usual_ms = float(np.percentile(outcomes.ms[half], 95))
                figures = outcomes.figures(seconds, DEADLINE_MS)
                recovery_s = outcomes.recovery_s(seconds / 2, usual_ms) if "continue" not in scene else 0.0
                kept.keep(scene, figures | {"recovery_s": recovery_s})
                progress(f"{scene}: {kept.parts[scene]}")
    figures = {scene: parts for scene, parts in kept.parts.items() if isinstance(parts, dict)}
    failed = sum(one["failed"] for one in figures.values())
    print(f"{failed} failed requests beside those shed, goal 0. As usual again within {LIMIT_S:g} s:")
    for scene, one in figures.items():
        print(f"  {scene}: {one}")
    if not options.smoke:
        print(save(f"serve/{name}", {"failed": failed, "rate_per_s": kept.parts["rate"], "limit_s": LIMIT_S} | figures))


if __name__ == "__main__":
    main()
