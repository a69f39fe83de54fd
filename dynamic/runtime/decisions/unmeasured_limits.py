"""Limits of a budget that no sensor of this device can follow: a warning when the budget is set, a line for `stats`."""

import logging
from collections.abc import Mapping

from dynamic.monitoring.contract import NO_ANSWER
from dynamic.monitoring.monitor import Monitor
from dynamic.policies.budget import Budget
from dynamic.policies.control.feasibility import FOLLOWS, NO_SENSOR, unmeasured
from dynamic.runtime.decisions.device_reading import HasLatest, RequestReading

logger = logging.getLogger("dynamic")


class SensorCheck:
    """Compares budgets with what the monitor measures. Warns of a limit once, however often it is set."""

    def __init__(self, monitor: HasLatest, read: RequestReading) -> None:
        self._monitor, self._read = monitor, read
        self._warned: set[str] = set()

    def lines(self, budget: Budget) -> tuple[str, ...]:
        """A sentence for each limit that is not measured now."""
        return tuple(NO_SENSOR[name].format(getattr(budget, name)) for name in self._names(budget))

    def warn(self, budget: Budget) -> None:
        """Log one warning of all limits without a sensor that it has not warned of.

        A sensor that has not answered yet may still do so: the decision's reason names its limit until then, and the
        next snapshot is looked at again.
        """
        names = [name for name in self._names(budget) if name not in self._warned]
        if not names:
            return
        problems = self._problems()
        limits = []
        for name in names:
            problem = problems.get(FOLLOWS[name])
            if problem == NO_ANSWER:
                self._read.news = lambda: self.warn(budget)
                continue
            self._warned.add(name)
            limits.append(NO_SENSOR[name].format(getattr(budget, name)) + (f" ({problem})" if problem else ""))
        if limits:
            logger.warning(
                "limits cannot be kept on this device: %s. The other limits hold. `python -m dynamic doctor` lists the "
                "sensors. Give the monitor a function that measures, or leave the limit out",
                "; ".join(limits),
            )

    def _names(self, budget: Budget) -> tuple[str, ...]:
        """The limits that are not measured, none before the monitor starts. It is read only where a limit needs it.

        No lock of a request is taken: a signal handler may set a budget or ask for statistics.
        """
        if self._read.waits or all(getattr(budget, name) is None for name in FOLLOWS):
            return ()
        return unmeasured(budget, self._read.latest)

    def _problems(self) -> Mapping[str, str]:
        """Why fields are not measured, by field. Another monitor than `Monitor` does not say why."""
        reports = self._monitor.sources() if isinstance(self._monitor, Monitor) else ()
        return {field: report.problem for report in reports if report.problem for field in report.fields}
