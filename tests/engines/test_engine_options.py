"""Options of engines check themselves, and are of one engine."""

from typing import Any, get_args

import numpy as np
import pytest
from support.engine_cases import Case, four_stages

import dynamic
from dynamic.engines.engine_factory import ENGINES, PRECISIONS, open_engine
from dynamic.engines.options import (
    OPTIONS,
    EngineName,
    OnnxRuntimeOptions,
    OpenVinoOptions,
    TorchOptions,
    engine_options,
)
from dynamic.policies.errors import EngineError, SettingError


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("onnxruntime", {"threads": 0}, "threads=0 must be at least 1"),
        ("openvino", {"threads": 1.5}, "threads=1.5 must be at least 1, a whole number"),
        ("torch", {"threads": -2}, "threads=-2 must be at least 1"),
        ("onnxruntime", {"idle": "nap"}, r"idle='nap' is not known: use one of \('sleep', 'spin'\)"),
        ("openvino", {"route": "rail"}, r"route='rail' is not known: use one of \('graph', 'stages'\)"),
        ("torch", {"compile": "yes"}, "compile='yes' must be True or False"),
        ("openvino", {"idle": "spin"}, r"'openvino' has no option 'idle': its options are \['route', 'threads'\]"),
        ("onnxruntime", {"device": "cpu"}, r"no option 'device': its options are \['idle', 'route', 'threads'\]"),
    ],
)
def test_an_option_that_does_not_exist_or_fit_is_named(name: str, keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        engine_options(name, **keywords)


def test_every_engine_has_options() -> None:
    assert set(OPTIONS) == set(ENGINES) == set(PRECISIONS) == set(get_args(EngineName))
    with pytest.raises(EngineError, match="'steam' is not known"):
        engine_options("steam")


def test_numbers_of_numpy_become_pythons_own() -> None:
    options = OnnxRuntimeOptions(threads=np.int64(2))  # type: ignore[arg-type]
    assert type(options.threads) is int
    assert options == engine_options("onnxruntime", threads=2)


def test_arithmetic_is_what_was_given() -> None:
    assert OnnxRuntimeOptions(threads=2, idle="spin").arithmetic == {}
    assert TorchOptions().arithmetic == {}
    assert TorchOptions(device="cpu").arithmetic == {"device": "cpu"}
    assert TorchOptions(compile=True).arithmetic == {"compile": "True"}


def test_options_are_the_same_as_keywords(case: Case) -> None:
    given = (case.folder, case.spec, case.combiner)
    for opened in (
        open_engine("onnxruntime", *given, options=dynamic.OnnxRuntimeOptions(threads=1, route="stages")),
        open_engine("onnxruntime", *given, threads=1, route="stages"),
    ):
        assert (opened.threads, opened.route(1)) == (1, "stages")
    with pytest.raises(SettingError, match="not of engine 'onnxruntime': give a OnnxRuntimeOptions"):
        open_engine("onnxruntime", *given, options=OpenVinoOptions(threads=1))
    with pytest.raises(SettingError, match=r"\['threads'\] are given: give one or the other"):
        open_engine("onnxruntime", *given, options=OnnxRuntimeOptions(), threads=1)
