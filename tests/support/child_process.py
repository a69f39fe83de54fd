"""Work in a forked child."""

import os
import pickle
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import pytest

LIMIT_S = 120


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked child; fails where the child does not end in time."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads: that is what is tested
        child = os.fork()
    if child == 0:
        try:
            answer = pickle.dumps(work())
        except BaseException:
            answer = pickle.dumps(traceback.format_exc())
        os.write(writing, answer)  # fits the pipe: nobody reads before the child has ended
        os._exit(0)
    os.close(writing)
    ends = time.monotonic() + LIMIT_S
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"the child hung: not done after {LIMIT_S} s")
        time.sleep(0.01)
    assert ended[1] == 0, f"the child ended with {os.waitstatus_to_exitcode(ended[1])}"
    with os.fdopen(reading, "rb") as file:
        answer = pickle.loads(file.read())
    assert not isinstance(answer, str), answer
    return answer
