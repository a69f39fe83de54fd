"""What a test may change for all that run after it in the same process."""

import logging
import os
import signal
import sys
from typing import Any

LOGGERS = ("", "dynamic")
SIGNALS = [s for s in (signal.SIGINT, signal.SIGTERM, *(getattr(signal, n, None) for n in ("SIGUSR1", "SIGALRM"))) if s]
# set by libraries when they are imported, and by pytest
NOT_OURS = ("PYTEST_", "TORCH", "_TORCH", "TRITON", "RAY_", "KMP_", "OMP_", "MPL", "COV_")


def process_state() -> dict[str, Any]:
    """Variables, working folder, path, loggers, signal handlers, and torch's switches once it is imported."""
    state: dict[str, Any] = {
        "variables": {name: value for name, value in os.environ.items() if not name.startswith(NOT_OURS)},
        "working folder": os.getcwd(),
        # torch.compile imports setuptools, and Ray brings packages of its own
        "sys.path": [entry for entry in sys.path if not entry.endswith(("_vendor", "thirdparty_files"))],
        "signal handlers": [signal.getsignal(number) for number in SIGNALS],
    }
    for name in LOGGERS:
        logger = logging.getLogger(name)
        own = [handler for handler in logger.handlers if not type(handler).__module__.startswith("_pytest")]
        state[f"logger {name!r}"] = (logger.level, logger.disabled, logger.propagate, own)
    torch = sys.modules.get("torch")
    if torch is not None:
        state["torch"] = (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.is_grad_enabled(),
            torch.are_deterministic_algorithms_enabled(),
        )
    return state
