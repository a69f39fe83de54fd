"""The members of a source, each read by itself: one that fails does not affect the others."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dynamic.monitoring.contract import LeftOut

T = TypeVar("T")


@dataclass(frozen=True)
class Answers(Generic[T]):
    """Values of the members that answered, by name, and the others with the reason.

    Args:
        values: Names and values.
        left_out: Members that did not answer.
        error: The first error of these.
    """

    values: tuple[tuple[str, T], ...]
    left_out: tuple[LeftOut, ...] = ()
    error: OSError | ValueError | None = None

    def needed(self) -> tuple[tuple[str, T], ...]:
        """The values. Raises the first error where no member answered and one has failed."""
        if not self.values and self.error is not None:
            raise self.error
        return self.values


def ask(members: Iterable[tuple[str, Callable[[], T | None]]]) -> Answers[T]:
    """Read each member.

    Args:
        members: Names with functions. A function returns None where the member has no value. It raises OSError where
            the member does not answer, and ValueError on an impossible value.

    Returns:
        The values, and what is excluded with the reason.
    """
    values, left_out = [], []
    first: OSError | ValueError | None = None
    for name, read in members:
        try:
            value = read()
        except (OSError, ValueError) as error:
            left_out.append(LeftOut(name, reason(error)))
            first = first or error
            continue
        if value is not None:
            values.append((name, value))
    return Answers(tuple(values), tuple(left_out), first)


def reason(error: Exception) -> str:
    """An error in a few words.

    Args:
        error: The error of a member.

    Returns:
        The system's words and the file, or the message.
    """
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror} ({error.filename})" if error.filename else error.strerror
    return str(error) or repr(error)
