"""Metrics for Prometheus. Names begin with `dynamic_`."""

import time
from collections import Counter as Counts
from collections.abc import Callable, Iterable
from dataclasses import replace

import psutil
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from dynamic.runtime.requests.request_queue import Waiting
from dynamic.runtime.result import Statistics
from dynamic.runtime.runtime import Runtime
from dynamic.serve.request_log import RequestRecord

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_BUCKETS_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counts requests, and reads the state of a runtime when it is asked.

    Args:
        run: The runtime.
        waiting: The queue before it.
        clock: The clock of the queue, in seconds.
        continues: Whether rows continue elsewhere. The runtime then knows the exit that they continue from. So shares
            of stages and of certified requests, and requests that were cut, are those of the requests that have ended.
    """

    def __init__(
        self,
        run: Runtime,
        waiting: Waiting[object],
        clock: Callable[[], float] = time.perf_counter,
        continues: bool = False,
    ) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "dynamic_requests", "Requests by how they ended.", ("protocol", "outcome"), registry=self._registry
        )
        self._seconds = Histogram(
            "dynamic_request_seconds",
            "Seconds from the arrival of a request until its answer was ready.",
            ("protocol",),
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._waited = Histogram(
            "dynamic_waited_seconds",
            "Seconds in the queue and to decode inputs, before the runtime began.",
            buckets=_BUCKETS_S,
            registry=self._registry,
        )
        self._rows = Counter("dynamic_rows", "Inputs by the stage they exited at.", ("stage",), registry=self._registry)
        self._certified = Counter(
            "dynamic_certified_requests", "Answers that a certificate holds for.", registry=self._registry
        )
        self._violated = Counter(
            "dynamic_violated_limit_requests",
            "Requests answered at a point that does not meet a limit of the budget.",
            ("limit",),
            registry=self._registry,
        )
        self._totals = _Totals() if continues else None
        self._registry.register(_State(run, waiting, clock, self._totals))

    def count(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        self._requests.labels(record.protocol, record.outcome).inc()
        if record.outcome != "answered":
            return
        self._seconds.labels(record.protocol).observe(record.latency_ms / 1e3)
        self._waited.observe(record.waited_ms / 1e3)
        if self._totals is not None:
            self._totals.add(record)
        for stage, rows in (record.stages or {}).items():
            self._rows.labels(str(stage)).inc(rows)
        if record.certified:
            self._certified.inc()
        for limit in record.violated_limits:
            self._violated.labels(limit).inc()

    def text(self) -> bytes:
        """All metrics in the text format of Prometheus, version 0.0.4."""
        return generate_latest(self._registry)


class _Totals:
    """Requests that have ended, wherever their last stage ran."""

    def __init__(self) -> None:
        self.requests = self.certified = self.cut = 0
        self._rows: Counts[int] = Counts()  # by the stage of their exit

    def add(self, record: RequestRecord) -> None:
        """Count a request that was answered."""
        self.requests += 1
        self.certified += bool(record.certified)
        self.cut += record.complete is False
        self._rows.update(record.stages or {})

    def in_place_of(self, stats: Statistics) -> Statistics:
        """The statistics of a runtime, with these figures."""
        rows = max(self._rows.total(), 1)
        shares = tuple(self._rows[stage] / rows for stage in range(len(stats.stage_shares)))
        certified_share = self.certified / max(self.requests, 1)
        return replace(stats, stage_shares=shares, certified_share=certified_share, deadline_cuts=self.cut)


class _State(Collector):
    """The state of a runtime and its queue, read when it is asked for."""

    def __init__(
        self, run: Runtime, waiting: Waiting[object], clock: Callable[[], float], totals: _Totals | None
    ) -> None:
        self._run, self._waiting, self._clock, self._totals = run, waiting, clock, totals
        self._process = psutil.Process()

    def collect(self) -> Iterable[Metric]:
        stats, waiting = self._run.stats(), self._waiting
        if self._totals is not None:
            stats = self._totals.in_place_of(stats)
        stages = GaugeMetricFamily("dynamic_stage_share", "Share of inputs that exited at a stage.", labels=["stage"])
        for number, share in enumerate(stats.stage_shares):
            stages.add_metric([str(number)], share)
        yield stages
        points = GaugeMetricFamily("dynamic_point_share", "Share of requests at a point.", labels=["point"])
        for name, share in stats.point_shares.items():
            points.add_metric([name], share)
        yield points
        oldest = waiting.oldest_came
        gauges = {
            "dynamic_certified_share": ("Share of requests that a certificate holds for.", stats.certified_share),
            "dynamic_drift": ("1 once inputs differ from the calibration's. NaN: not watched.", _number(stats.drift)),
            "dynamic_queue_length": ("Requests that wait.", float(len(waiting))),
            "dynamic_queue_age_seconds": (
                "Seconds that the oldest request has waited.",
                0.0 if oldest is None else max(self._clock() - oldest, 0.0),
            ),
            "dynamic_busy_workers": ("Requests that are being answered.", float(waiting.busy)),
            "dynamic_resident_megabytes": ("Memory of the process, 10^6 bytes.", self._process.memory_info().rss / 1e6),
        }
        for name, (words, value) in gauges.items():
            yield GaugeMetricFamily(name, words, value=value)
        counters = {
            "dynamic_shed_requests": ("Requests dropped since too many waited.", waiting.shed),
            "dynamic_decision_changes": ("How often the point changed.", stats.decision_changes),
            "dynamic_deadline_cuts": ("Requests that a deadline of the budget ended early.", stats.deadline_cuts),
            "dynamic_engine_failures": ("How often an engine failed.", stats.engine_failures),
            "dynamic_policy_failures": ("How often the policy failed.", stats.policy_failures),
        }
        for name, (words, count) in counters.items():
            yield CounterMetricFamily(name, words, value=float(count))


def _number(flag: bool | None) -> float:
    return float("nan") if flag is None else float(flag)
