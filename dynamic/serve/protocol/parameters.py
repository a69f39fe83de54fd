"""Parameters of requests and tensors, and limits on what names them."""

from collections.abc import Mapping
from typing import Any

from dynamic.policies.validation.fields import short
from dynamic.serve.request_errors import invalid

MOST_TENSORS = 64  # of a request
_LONGEST_ID = 200
_LONGEST_TIMEOUT = 1e15  # in any unit: beyond it, sums with a clock would lose their fractions
_EXTENSIONS = ("shared_memory_region", "classification")  # that change what an answer means


def checked_id(value: Any) -> str:
    """The sender's own identifier. Raises RequestError where it is no short text."""
    if not isinstance(value, str) or len(value) > _LONGEST_ID:
        raise invalid(f"'id' is {short(value)}: give a text of at most {_LONGEST_ID} characters")
    return value


def refuse_extensions(parameters: Mapping[str, Any]) -> None:
    """Raises RequestError on parameters of extensions that change what an answer means, and that are not there."""
    for name in _EXTENSIONS:
        if parameters.get(name):
            raise invalid(f"parameter {name!r} belongs to an extension that this server does not have: leave it out")


def timeout_of(value: Any, what: str, unit: str, in_a_ms: float) -> float:
    """Milliseconds of a timeout. Raises RequestError where it is no positive number up to a limit."""
    # compared first: float() of a whole number of 400 digits fails
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _LONGEST_TIMEOUT:
        raise invalid(f"{what} is {short(value)}: give a positive number of {unit}, at most {_LONGEST_TIMEOUT:g}")
    return float(value) / in_a_ms


def deadline_of(value: Any, what: str) -> float:
    """Seconds since 1970 of a time in milliseconds. Raises RequestError where it is no positive number."""
    return timeout_of(value, what, "milliseconds since 1970", 1e3)


def as_number(text: str) -> Any:
    """The number of a header, or the text itself where it is none."""
    try:
        return float(text)
    except ValueError:
        return text
