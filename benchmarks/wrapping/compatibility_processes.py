"""One process a network, forked from one that has loaded the libraries, with limits in CPU time.

A machine that stops these processes for a while, or that has other work, makes no network fail: a limit of wall time
would. A process that waits for ever gets no CPU time. It ends after `IDLE_POLLS` looks at which it had none.
"""

import gc
import multiprocessing
import resource
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

POLL_S, IDLE_POLLS = 1.0, 600

Work = Callable[[str, Connection], None]  # (name, where facts are sent) of a child


def load_libraries() -> None:
    """Load what every child needs, once: 6 s of CPU time for each network otherwise.

    One small export makes torch and onnxscript read their tables. onnxscript parses the source of some 500 functions at
    every export, 0.4 s of CPU time each. Here it does so once.
    """
    import onnxscript._internal.values as values
    import timm  # noqa: F401
    import torch
    from transformers import (  # noqa: F401
        AutoModelForAudioClassification,
        AutoModelForImageClassification,
        AutoModelForSequenceClassification,
    )

    torch.set_num_threads(1)  # children have one each, and a pool of threads does not survive a fork
    parsed: dict[int, tuple[Any, Any]] = {}
    parse = vars(values.TracedOnnxFunction)["function_ir"].fget

    def parsed_once(function: Any) -> Any:
        if id(function) not in parsed:
            parsed[id(function)] = function, parse(function)
        return parsed[id(function)][1]

    values.TracedOnnxFunction.function_ir = property(parsed_once)  # type: ignore[assignment]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.onnx.export(torch.nn.Linear(2, 2), (torch.zeros(2, 2),), dynamo=True, verbose=False)
    gc.collect()
    gc.freeze()  # children then share these pages


@dataclass
class _Child:
    """A network that is being checked."""

    name: str
    process: BaseProcess
    receiver: Connection
    facts: dict[str, Any] = field(default_factory=dict)
    cpu_s: float = 0.0
    idle_polls: int = 0
    polled_s: float = 0.0

    def received(self) -> bool:
        """Take what was sent. Whether the child has ended."""
        try:
            while self.receiver.poll():
                self.facts |= self.receiver.recv()  # a check each, so that a crash keeps those before
        except EOFError:
            return True
        return False

    def poll(self, now_s: float) -> None:
        """Count looks at which the child had no CPU time and was not stopped. Too many end it."""
        if now_s - self.polled_s < POLL_S:
            return
        self.polled_s = now_s
        try:
            process = psutil.Process(self.process.pid)
            times, stopped = process.cpu_times(), process.status() == psutil.STATUS_STOPPED
        except psutil.NoSuchProcess:
            return
        cpu_s = times.user + times.system
        self.idle_polls = 0 if cpu_s > self.cpu_s or stopped else self.idle_polls + 1
        self.cpu_s = max(cpu_s, self.cpu_s)
        if self.idle_polls >= IDLE_POLLS:
            self.facts["reason"] = f"waited without CPU time at {IDLE_POLLS} looks"
            self.process.kill()


def checked(names: Sequence[str], work: Work, processes: int, limit_s: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """What `work` sends for each name, as processes end. `limit_s`: of CPU time for each."""
    context = multiprocessing.get_context("fork")
    waiting, running = list(reversed(names)), list[_Child]()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                receiver, sender = context.Pipe(duplex=False)
                others = [child.receiver for child in running]
                arguments = (waiting[-1], work, sender, [receiver, *others], limit_s)
                process = context.Process(target=_limited, args=arguments, daemon=True)
                process.start()
                sender.close()
                running.append(_Child(waiting.pop(), process, receiver))
            wait([child.receiver for child in running], timeout=POLL_S)
            for child in list(running):
                child.poll(time.monotonic())
                if child.received():
                    child.process.join()
                    running.remove(child)
                    child.receiver.close()
                    if "reason" not in child.facts:  # the child's own last word
                        child.facts["reason"] = _end(child.process.exitcode, limit_s)
                    yield child.name, child.facts
    finally:
        for child in running:
            child.process.kill()
            child.process.join()


def _limited(name: str, work: Work, sender: Connection, inherited: Sequence[Connection], limit_s: float) -> None:
    """Run `work` in a child, which the kernel ends at its limit of CPU time."""
    for connection in inherited:
        connection.close()
    resource.setrlimit(resource.RLIMIT_CPU, (round(limit_s), round(limit_s) + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    work(name, sender)


def _end(code: int | None, limit_s: float) -> str:
    """Why a process ended, in words. Empty: it ended by itself."""
    if not code:
        return ""
    if code == -signal.SIGXCPU:
        return f"took more than {limit_s:g} s of CPU time"
    return f"the process ended with {signal.Signals(-code).name if code < 0 else f'code {code}'}"
