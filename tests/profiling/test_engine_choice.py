"""engine="auto": every engine is measured, the fastest is taken, and the choice is kept for this machine."""

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engine_cases import CLASSES, Case, Plain, four_stages

import dynamic
from dynamic.bundle.manifest import MANIFEST
from dynamic.engines.engine_factory import installed
from dynamic.engines.openvino import computes_bf16
from dynamic.errors import EngineError, SettingError
from dynamic.profiling import engine_choice
from dynamic.profiling.engine_choice import CHOICES, Choice, check_precision, choose, chosen

ENGINES = ("onnxruntime", "openvino")
pytestmark = pytest.mark.skipif(not set(ENGINES) <= set(installed()), reason="needs both engines")


def f32(name: str) -> str:
    return "f32"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_choice, "_SECONDS", 0.01)


@pytest.fixture
def case(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Case:
    """The case that all share, whose folder takes no choices of these tests."""
    found = four_stages(tmp_path_factory)
    folder = Path(shutil.copytree(found.folder, tmp_path / "graphs"))
    return replace(found, folder=folder)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What choosing opens, with the options; each engine notes whether it was closed."""
    seen: list[tuple[str, dict[str, Any]]] = []
    real = engine_choice.open_engine

    def watched(name: str, *given: Any, **options: Any) -> Any:
        seen.append((name, options))
        engine = real(name, *given, **options)
        close = engine.close
        monkeypatch.setattr(engine, "close", lambda: (options.update(closed=True), close()))
        return engine

    monkeypatch.setattr(engine_choice, "open_engine", watched)
    return seen


def breaking(monkeypatch: pytest.MonkeyPatch, **broken: Exception) -> None:
    """Opening these engines raises."""
    real = engine_choice.open_engine

    def open_engine(name: str, *given: Any, **options: Any) -> Any:
        if name in broken:
            raise broken[name]
        return real(name, *given, **options)

    monkeypatch.setattr(engine_choice, "open_engine", open_engine)


def choice(case: Case, precision_on: Callable[[str], str] = f32, keep: bool = True, **options: Any) -> Choice:
    return chosen(case.folder, case.spec, case.combiner, precision_on, keep, "a cascade", **options)


def test_the_least_figure_wins(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    found = choose(case.folder, case.spec, case.combiner, f32)
    assert set(found.latency_ms) == set(ENGINES)
    assert all(ms > 0 for ms in found.latency_ms.values())
    assert (found.failed, found.precision) == ({}, dict.fromkeys(ENGINES, "f32"))
    assert found.engine == min(found.latency_ms, key=found.latency_ms.__getitem__)
    for fast in ENGINES:
        took = iter([1.0, 2.0] if fast == ENGINES[0] else [2.0, 1.0])

        class Column:
            leaving = ([next(took)] * 3, [5.0] * 3)

        columns = iter([Column(), type("Other", (), {"leaving": ([next(took)] * 3, [5.0] * 3)})()])
        with monkeypatch.context() as patch:
            patch.setattr(engine_choice, "measure_graph", lambda *given, columns=columns: next(columns))
            assert choose(case.folder, case.spec, case.combiner, f32).engine == fast


def test_it_is_kept_and_reused(case: Case, opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    found = choice(case)
    assert [name for name, _ in opened] == list(ENGINES)
    assert all(options.get("closed") for _, options in opened)
    assert choice(case) == found
    assert len(opened) == 2
    monkeypatch.setattr(engine_choice, "machine_key", lambda: "another")
    choice(case)
    assert len(opened) == 4
    assert len(list((case.folder / "choices").iterdir())) == 2


def test_threads_and_precision_have_choices_of_their_own(case: Case, opened: list[Any]) -> None:
    choice(case)
    assert choice(case, threads=1).threads == 1
    choice(case, lambda name: "bf16" if name == "openvino" else "f32")
    assert [(options["threads"], options["precision"]) for _, options in opened] == [
        (None, "f32"), (None, "f32"), (1, "f32"), (1, "f32"), (None, "f32"), (None, "bf16")
    ]  # fmt: skip
    assert len(list((case.folder / "choices").iterdir())) == 3
    choice(case, threads=1)
    assert len(opened) == 6


@pytest.mark.parametrize("content", ["{", "[]", '{"engine": "onnxruntime"}'])
def test_a_damaged_file_is_measured_again(
    case: Case, opened: list[Any], content: str, caplog: pytest.LogCaptureFixture
) -> None:
    choice(case)
    (file,) = (case.folder / "choices").iterdir()
    file.write_text(content)
    found = choice(case)
    assert "measuring again" in caplog.text
    assert len(opened) == 4
    assert json.loads(file.read_text())["engine"] == found.engine


def test_the_choice_of_another_bundle_is_measured_again(
    case: Case, opened: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    choice(case)
    before = len(opened)
    chosen(case.folder, case.spec, case.combiner, f32, True, "another cascade")
    assert len(opened) == before + len(ENGINES)
    assert "belongs to another bundle" in caplog.text


@pytest.mark.parametrize("engine", ["torch", "unknown"])
def test_a_choice_of_an_engine_that_no_bundle_can_run_is_measured_again(
    case: Case, opened: list[Any], engine: str
) -> None:
    choice(case)
    (path,) = (case.folder / CHOICES).iterdir()
    data = json.loads(path.read_text())
    del data["sha256"]  # as earlier versions wrote it
    forged = data | {"engine": engine, "latency_ms": {engine: 0.001}, "precision": {engine: ""}}
    path.write_text(json.dumps(forged))
    before = len(opened)
    assert choice(case).engine in ENGINES
    assert len(opened) == before + len(ENGINES)


def test_an_engine_that_is_gone_is_not_taken(case: Case, opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    first = choice(case).engine
    (other,) = set(ENGINES) - {first}
    monkeypatch.setattr(engine_choice, "installed", lambda: (other, "torch"))
    assert choice(case).engine == other


def test_no_engine_able(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    (case.folder / "graph.onnx").unlink()
    with pytest.raises(EngineError, match=r"no installed engine runs this cascade: .*onnxruntime.*openvino"):
        choice(case)
    monkeypatch.setattr(engine_choice, "installed", lambda: ("torch",))
    with pytest.raises(EngineError, match="none is installed"):
        choice(case)
    assert not (case.folder / "choices").exists()


def test_a_broken_installation_is_told(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ImportError("no libgomp"), OSError("no libgomp"), ModuleNotFoundError("no libgomp", name="flat")):
        with monkeypatch.context() as patch:
            breaking(patch, onnxruntime=error)
            found = choice(case, keep=False)
        assert (found.engine, found.failed) == ("openvino", {"onnxruntime": "no libgomp"})


def test_an_engine_that_fails_is_closed(case: Case, opened: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise EngineError("out of memory")

    monkeypatch.setattr(engine_choice, "measure_graph", fail)
    with pytest.raises(EngineError, match="out of memory"):
        choice(case)
    assert [options["closed"] for _, options in opened] == [True, True]


@pytest.mark.parametrize("option", [{"idle": "spin"}, {"device": "cpu"}, {"compile": True}, {"colour": "red"}])
def test_options_of_one_engine_need_its_name(case: Case, option: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=rf"option '{next(iter(option))}'.*give it with a named engine"):
        choice(case, **option)
    assert not (case.folder / "choices").exists()


@pytest.mark.parametrize("route", ["graph", "stages"])
def test_a_route_is_the_opened_engine_s_alone(bundle: dynamic.Bundle, route: str) -> None:
    engine = bundle.open("auto", route=route)
    assert {engine.route(rows) for rows in (1, 2)} == {route}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    torch.manual_seed(0)
    data = [(torch.randn(200, 1, 8, 8), torch.arange(200) % CLASSES)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_choice, "_SECONDS", 0.01)
        built = dynamic.build([Plain(), Plain()], data, engine="auto")
    saved = built.save(tmp_path_factory.mktemp("auto") / "shelf")
    (file,) = (saved.folder / "choices").iterdir()  # before any test changes it
    assert json.loads(file.read_text())["engine"] == saved.engine
    return saved


def test_a_bundle_of_auto_is_one_engine_s(bundle: dynamic.Bundle) -> None:
    assert bundle.engine in ENGINES
    loaded = dynamic.load(bundle.folder)
    assert (loaded.engine, loaded.precision) == (bundle.engine, "f32")
    loaded = loaded.profile(batch=(1,), seconds=0.02)
    with loaded.runtime(monitor=dynamic.FixedMonitor()) as run:
        assert run.engine.name == bundle.engine
        assert run(np.zeros((1, 1, 8, 8), np.float32)).label.shape == (1,)


def test_choosing_again_leaves_the_bundle_whole(bundle: dynamic.Bundle) -> None:
    files = json.loads((bundle.folder / MANIFEST).read_text())["files"]
    assert not [name for name in files if name.startswith(("choices/", "costs/"))]
    for file in (bundle.folder / "choices").iterdir():
        file.write_text("{")
    dynamic.load(bundle.folder).open("auto", threads=1).close()
    dynamic.load(bundle.folder).open("auto").close()
    dynamic.load(bundle.folder)
    for file in (bundle.folder / "choices").iterdir():
        file.unlink()
    dynamic.load(bundle.folder)


def test_another_engine_than_the_bundle_s_is_told(
    bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (other,) = set(ENGINES) - {bundle.engine}
    for taken in (bundle.engine, other):
        choice = Choice("", None, {}, taken, {}, {})
        monkeypatch.setattr("dynamic.bundle.bundle_engine.chosen", lambda *given, choice=choice, **options: choice)
        caplog.clear()
        with caplog.at_level(logging.WARNING, "dynamic"):
            assert bundle.open("auto").name == taken
        told = [m for m in caplog.messages if "will not be certified" in m]
        assert len(told) == (taken == other)


def test_each_engine_is_measured_in_what_it_would_run_in(bundle: dynamic.Bundle, opened: list[Any]) -> None:
    short = replace(bundle, engine="openvino", precision="bf16")
    short.open("auto").close()
    assert {name: options["precision"] for name, options in opened} == {"onnxruntime": "f32", "openvino": "bf16"}


def test_bf16_is_for_the_engines_that_have_it(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")
    if computes_bf16():
        found = choice(case, lambda _: "bf16")
        assert found.engine == "openvino"
        assert "precision 'bf16' is not available" in found.failed["onnxruntime"]
    else:
        with pytest.raises(EngineError, match=r"'bf16' is not available on engine 'onnxruntime'.*does not compute in"):
            choice(case, lambda _: "bf16")
    check_precision("bf16")
    monkeypatch.setattr(engine_choice, "installed", lambda: ("onnxruntime", "torch"))
    data = [(torch.randn(8, 1, 8, 8), torch.arange(8) % CLASSES)]
    monkeypatch.setattr("dynamic.offline.build_steps.torch_steps.export_stages", None)  # it must not come so far
    for precision in ("bf16", "f8"):
        with pytest.raises(EngineError, match=f"precision '{precision}' is on no engine that engine='auto' can take"):
            dynamic.build([Plain()], data, engine="auto", precision=precision)


def test_auto_takes_no_options_of_one_engine(bundle: dynamic.Bundle) -> None:
    with pytest.raises(SettingError, match="'idle' is not one of"):
        bundle.runtime(engine="auto", options=dynamic.OnnxRuntimeOptions(idle="spin"))
