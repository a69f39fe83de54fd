"""A runtime that is ready to serve, and a server that runs until a signal."""

import signal
import threading
from contextlib import ExitStack
from types import FrameType
from typing import Any

from dynamic.bundle.bundle import Bundle
from dynamic.policies.budget import Budget
from dynamic.policies.control.budget_policy import BudgetPolicy
from dynamic.policies.errors import BudgetError
from dynamic.policies.snapshot import Snapshot
from dynamic.runtime.runtime import Runtime
from dynamic.serve.options import ServeOptions
from dynamic.serve.server import Server

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_LOOK_S = 1.0  # between looks whether the server still runs


def open_runtime(bundle: Bundle, budget: Budget, options: ServeOptions, **engine: Any) -> Runtime:
    """A runtime of a bundle with its networks loaded, so that the first request finds them.

    Args:
        bundle: The bundle. It is profiled first where costs of this machine are missing.
        budget: The limits.
        options: Of the server. Workers count.
        engine: `engine`, `threads`, `options` and `part` as for `Runtime`.

    Returns:
        The runtime.

    Raises:
        BudgetError: No operating point meets the budget, even on an idle device.
        EngineError: The engine is unknown, not installed, or does not load.
    """
    run = Runtime(bundle, budget, workers=options.workers, **engine)
    try:
        policy = BudgetPolicy()
        decision, _ = policy.decide(run.frontier, budget, Snapshot(time_s=0.0), policy.initial())
        if decision.violated_limits:
            raise BudgetError(
                f"no operating point of {bundle.folder} meets the budget on this machine: {decision.reason}"
            )
        run.engine.prepare(decision.point.backbones, 1)
    except BaseException:
        run.close()
        raise
    return run


def serve_until_signal(run: Runtime, options: ServeOptions) -> bool:
    """Serve until SIGTERM or SIGINT, then answer what was accepted and end. A second SIGINT ends at once.

    Args:
        run: The runtime. It is closed.
        options: How to listen, and what to accept.

    Returns:
        Whether every request that was accepted is answered. False also where the server failed.

    Raises:
        DynamicError: A port is in use.
    """
    end_asked = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        end_asked.set()

    with ExitStack() as stack:
        for number in _SIGNALS:
            stack.callback(signal.signal, number, signal.signal(number, end))
        stack.callback(run.close, timeout_s=0.0)
        server = stack.enter_context(Server(run, options))
        host = options.url_host
        grpc = "" if server.grpc_port is None else f", gRPC on {host}:{server.grpc_port}"
        print(f"{server.name}: http://{host}:{server.port}/v2/models/{server.name}{grpc}", flush=True)
        while not end_asked.wait(_LOOK_S):
            if not server.is_running:
                return False
        return server.close()
