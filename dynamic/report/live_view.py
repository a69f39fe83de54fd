"""A runtime at work in the terminal: decisions with their reasons, stages, the device, latency against the budget."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from dynamic.extras import with_remedy
from dynamic.policies.errors import SettingError
from dynamic.report.live_state import DRIFT, LiveState, device_words, latency_words, live_state
from dynamic.runtime.result import Result
from dynamic.runtime.runtime import Runtime

if TYPE_CHECKING:
    from rich.console import RenderableType

_RECENT = 500  # results whose percentile is shown
_CHANGES = 5  # changes that are shown
_BAR = 24  # columns


class LiveView:
    """Shows a runtime until its block ends. See `dynamic.watch`.

    Args:
        run: The runtime.
        stream: Where it writes.
        every_s: Seconds between two pictures, or two lines.
        clock: Gives seconds.
    """

    def __init__(
        self, run: Runtime, stream: TextIO, every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._run, self._stream, self._every_s, self._clock = run, stream, every_s, clock
        self._latencies_ms: deque[float] = deque(maxlen=_RECENT)
        self._changes: deque[str] = deque(maxlen=_CHANGES)
        self._point, self._start_s = "", clock()
        self._state: LiveState | None = None
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self._live: Any = None

    def add(self, result: Result) -> None:
        """Hand in a result, so that the view has percentiles of latency. It is optional.

        Args:
            result: What `run(x)` gave.
        """
        self._latencies_ms.append(result.latency_ms)

    def refresh(self) -> LiveState:
        """Read the runtime, and note a change of the operating point."""
        with self._lock:
            state = live_state(self._run, self._state, list(self._latencies_ms), self._clock())
            point = "" if state.decision is None else state.decision.point.name
            if point != self._point:
                self._point = point
                self._changes.append(f"{state.time_s - self._start_s:7.1f} s  {point}")
            self._state = state
            return state

    def line(self) -> str:
        """The state in one line, for a log."""
        state = self.refresh()
        shares = " ".join(f"{share:.0%}" for share in state.stats.stage_shares)
        device = ", ".join(f"{name} {words}" for name, words in device_words(state).items())
        reason = "no request yet" if state.decision is None else state.decision.reason
        return (
            f"{state.stats.requests} requests, point {self._point or 'none'!r}, exits {shares}, "
            f"{latency_words(state)}, {device}, drift {DRIFT[state.stats.drift]}. {reason}"
        )

    def picture(self) -> "RenderableType":
        """The state as a panel of rich, for a terminal of 80 columns or more."""
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        state = self.refresh()
        grid = Table.grid(padding=(0, 1), expand=True)
        grid.add_column(width=10, style="bold", no_wrap=True)
        grid.add_column(ratio=1, overflow="fold")
        decision, stats = state.decision, state.stats
        if decision is not None:
            violated = ", ".join(decision.violated_limits)
            grid.add_row("point", Text(decision.point.name + (f", violates {violated}" if violated else "")))
            grid.add_row("reason", Text(str(decision.reason)))
        share = None if state.predicted_ms is None else state.predicted_ms / (state.budget.latency_ms or float("inf"))
        bar = "" if not share else f"{_bar(share)} "
        grid.add_row("latency", Text(bar + latency_words(state)))
        for number, (name, part) in enumerate(zip(state.stages, stats.stage_shares, strict=False)):
            grid.add_row("exits" if not number else "", Text(f"{_bar(part)} {part:4.0%} {name}"))
        for name, words in device_words(state).items():
            grid.add_row(name, Text(words))
        grid.add_row("drift", Text(DRIFT[stats.drift]))
        shed = f", {stats.shed} shed" if stats.shed else ""
        certified = f"{stats.certified_share:.0%} certified"
        grid.add_row("requests", Text(f"{stats.requests}, {state.rate_hz:.3g} a second, {certified}{shed}"))
        for number, change in enumerate(reversed(self._changes)):
            grid.add_row("changes" if not number else "", Text(change))
        return Panel(grid, title=Text(state.title), title_align="left", subtitle="Ctrl-C ends", padding=(0, 1))

    def __enter__(self) -> Self:
        if self._stream.isatty():
            try:
                from rich.console import Console
                from rich.live import Live
            except ModuleNotFoundError as error:
                raise with_remedy(error, "the live view") from error
            self._live = Live(
                get_renderable=self.picture,
                console=Console(file=self._stream),
                refresh_per_second=1 / self._every_s,
                vertical_overflow="crop",
            )
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._print_lines, name="dynamic live view", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.set()
        if self._live is not None:
            self._live.stop()  # after a last picture
        if self._thread is not None:
            self._thread.join()
            print(self.line(), file=self._stream, flush=True)

    def _print_lines(self) -> None:
        while not self._ends.wait(self._every_s):
            print(self.line(), file=self._stream, flush=True)


def watch(run: Runtime, stream: TextIO | None = None, *, every_s: float | None = None) -> LiveView:
    """Show a runtime at work, in a `with` block around the requests.

    On a terminal it is a panel that is drawn again four times a second, which needs the extra "cli". Elsewhere it is a
    line every ten seconds. Reading the runtime makes no request wait.

    Args:
        run: The runtime.
        stream: Where to write. None: the standard output.
        every_s: Seconds between two pictures or lines, above 0. None: 0.25 on a terminal, else 10.

    Returns:
        The view. `view.add(result)` lets it show percentiles of latency.

    Raises:
        SettingError: `every_s` is not above 0.
        ModuleNotFoundError: rich is missing. The message names the extra.

    Example:
        >>> import io
        >>> lines = io.StringIO()
        >>> with bundle.runtime() as run, dynamic.watch(run, lines) as view:
        ...     view.add(run(x))
        >>> lines.getvalue().splitlines()[-1].startswith("1 requests, point ")
        True
    """
    target = sys.stdout if stream is None else stream
    if every_s is None:
        every_s = 0.25 if target.isatty() else 10.0
    if not 0 < every_s < float("inf"):
        raise SettingError(f"every_s={every_s!r} must be a number of seconds above 0")
    return LiveView(run, target, every_s)


def _bar(share: float) -> str:
    full = round(min(max(share, 0.0), 1.0) * _BAR)
    return "█" * full + "░" * (_BAR - full)
