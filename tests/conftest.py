"""Shared by all tests: where the real data is, and what makes outcomes independent of order, load and draws."""

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# before torch is imported: on a busy machine its threads wait for each other, and seconds become minutes
os.environ.setdefault("OMP_NUM_THREADS", "1")
# before mlflow and huggingface_hub are imported: tests send nothing anywhere
os.environ.update(dict.fromkeys(("MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"), "true"))

import hypothesis
import numpy as np
import pytest
from support.networks.export_registry import share_registry
from support.process_state import process_state

ROOT = Path(__file__).resolve().parent.parent

# the same examples in each run, and none of them is judged by how long it takes
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


def pytest_configure(config: pytest.Config) -> None:
    """Seeds are set here alone: those of pytest-randomly differ from run to run."""
    if hasattr(config.option, "randomly_reset_seed"):
        config.option.randomly_reset_seed = False


def seed() -> None:
    """Set the global generators: what a test or a fixture draws depends on nothing that ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup() -> Iterator[None]:
    share_registry()
    seed()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    share_registry()
    seed()
    return (yield)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of this run, for child processes too: what an earlier run left must not decide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module", autouse=True)
def quick_profiles(request: pytest.FixtureRequest) -> Iterator[None]:
    """Costs are measured for a moment, but for the tests of profiles themselves."""
    from support.quick_profiles import be_quick

    with pytest.MonkeyPatch.context() as patch:
        if "tests/profiling" not in request.node.nodeid:
            be_quick(patch)
        yield


@pytest.fixture(autouse=True)
def nothing_is_left_to_later_tests(own_cache: None) -> Iterator[None]:
    """A test that changes the process for those after it fails itself, not they."""
    before = process_state()
    yield
    after = process_state()
    changed = {name: (before[name], after[name]) for name in before if after[name] != before[name]}
    assert not changed, f"a test left to later ones (before, after): {changed}"


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
