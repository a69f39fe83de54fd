"""Numbers of numpy are numbers, wherever a setting is given; what is no number is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.networks.fitting_networks import ExitNet, digits_loader, fit
from support.runtime_cases import faked, shared_blobs

import dynamic
from dynamic.errors import SettingError


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return shared_blobs(tmp_path_factory)


def test_of_engines_and_profiles(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    monitor = dynamic.FixedMonitor()
    with bundle.runtime(monitor=monitor, threads=np.int64(1), workers=np.int8(2), queue=np.int64(3)) as run:
        assert run(np.zeros((1, 12), np.float32)).decision.feasible
    saved = bundle.save(tmp_path / "shelf")
    costs = saved.profile(batch=np.array([1, 4]), seconds=np.float32(0.01)).costs
    assert (costs.batch, costs.threads) == ((1, 4), saved.profile((1, 4), seconds=0.01).costs.threads)
    json.dumps(costs.to_json())


def test_of_certificates(bundle: dynamic.Bundle) -> None:
    expected = dynamic.recertify(bundle, [0.05, 0.5], delta=0.25, floor=0.5)
    found = dynamic.recertify(bundle, np.array([0.05, 0.5]), delta=np.float32(0.25), floor=np.float32(0.5))
    assert found.ladder == expected.ladder


def test_of_training() -> None:
    settings: dict[str, Any] = {"epochs": 1, "batch_size": 16, "seed": 3, "lr": 0.5, "weight_decay": 0.25}
    wrapped = {name: np.asarray(value)[()] for name, value in settings.items()}
    assert all(isinstance(value, np.generic) for value in wrapped.values())
    ours, theirs = (fit(ExitNet(), digits_loader(), **given) for given in (settings, wrapped))
    assert ours.history_loss == theirs.history_loss


def test_of_drift_and_monitor() -> None:
    assert dynamic.DriftOptions(every=np.int64(5), only_changed=np.True_).every == 5  # type: ignore[arg-type]
    assert dynamic.DriftOptions(only_changed=np.False_).only_changed is False  # type: ignore[arg-type]
    assert dynamic.Monitor(np.float32(0.5)).interval_s == 0.5  # type: ignore[arg-type]


REFUSED: dict[str, Callable[[dynamic.Bundle], Any]] = {
    "close": lambda bundle: faked(bundle).close(timeout_s="5"),  # type: ignore[arg-type]
    "monitor": lambda _: dynamic.Monitor("0.2"),  # type: ignore[arg-type]
    "drift, a number": lambda _: dynamic.DriftOptions(only_changed=0),  # type: ignore[arg-type]
    "drift, a fraction": lambda _: dynamic.DriftOptions(every=np.float32(1.5)),  # type: ignore[arg-type]
    "fit, a word": lambda _: dynamic.fit(ExitNet(), digits_loader(), epochs="3"),  # type: ignore[arg-type]
    "fit, a fraction": lambda _: dynamic.fit(ExitNet(), digits_loader(), epochs=1.5),  # type: ignore[arg-type]
    "fit, a rate": lambda _: dynamic.fit(ExitNet(), digits_loader(), lr="fast"),  # type: ignore[arg-type]
    "certify": lambda bundle: dynamic.recertify(bundle, np.array(["a"])),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_such_number_is_refused(bundle: dynamic.Bundle, case: str) -> None:
    with pytest.raises(SettingError, match=r"=|holds"):
        REFUSED[case](bundle)
