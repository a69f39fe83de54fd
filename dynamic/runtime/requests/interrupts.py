"""Whether code runs inside a signal handler, which must not wait for anything that the interrupted thread holds."""

import sys
import threading
from types import FrameType


def in_signal_handler() -> bool:
    """Return whether this call comes from a Python signal handler.

    Python calls a handler with the frame that it interrupted, and that frame is also the caller's.
    No ordinary call passes the frame of its own caller, so this identifies a handler whatever kind of callable it is.
    """
    if threading.current_thread() is not threading.main_thread():
        return False  # Python runs handlers on the main thread alone
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_back
        if caller is not None and _receives(frame, caller):
            return True
        frame = caller
    return False


def _receives(frame: FrameType, caller: FrameType) -> bool:
    """Whether `caller` is among the arguments of the call that `frame` is."""
    code = frame.f_code
    named = code.co_argcount + code.co_kwonlyargcount
    more = code.co_varnames[named : named + bool(code.co_flags & 4)]  # 4: *args, see inspect.CO_VARARGS
    values = frame.f_locals
    if any(values.get(name) is caller for name in code.co_varnames[:named]):
        return True
    rest = (values.get(name) for name in more)  # a name that is bound to something else since then holds no arguments
    return any(value is caller for held in rest if type(held) is tuple for value in held)
