"""Shared by all tests: where the real data is, and small deterministic machines."""

import os
from pathlib import Path

# before torch is imported: on a busy machine its threads wait for each other, and seconds become minutes
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

ROOT = Path(__file__).resolve().parent.parent


def data_folder() -> Path | None:
    """The folder with `cifar10.zip` and `weights/`, or None."""
    for candidate in (os.environ.get("DYNAMIC_DATA"), ROOT.parent / "shared" / "data"):
        if candidate and (Path(candidate) / "cifar10.zip").is_file():
            return Path(candidate)
    return None


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real CIFAR-10 and real weights; skips where they are absent."""
    folder = data_folder()
    if folder is None:
        pytest.skip("needs cifar10.zip and weights/ in $DYNAMIC_DATA or ../shared/data (see CONTRIBUTING.md)")
    return folder
