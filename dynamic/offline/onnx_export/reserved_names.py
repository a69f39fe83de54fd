"""Names that exported graphs use themselves."""

import re
from collections.abc import Iterable

from dynamic.engines.contract import OUTPUTS, THRESHOLDS
from dynamic.policies.errors import InputError

_TAKEN = (*OUTPUTS, THRESHOLDS)
_NUMBERED = re.compile(r"(next|threshold)_\d+")


def check_names(inputs: Iterable[str]) -> None:
    """Raises InputError on an input that has the name of something else in the graphs."""
    for name in inputs:
        if name in _TAKEN or _NUMBERED.fullmatch(name):
            raise InputError(
                f"the network's input {name!r} has a name that exported graphs use themselves "
                f"({', '.join(_TAKEN)}, next_0, threshold_0, ...): rename the argument of forward"
            )
