"""No line of progress on stderr: how many there are depends on how busy the machine is."""

import math
from collections.abc import Iterator

import pytest

from dynamic import progress


@pytest.fixture(autouse=True, scope="package")
def _no_lines_of_progress() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "EVERY_S", math.inf)
        yield
