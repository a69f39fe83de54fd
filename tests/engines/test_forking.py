"""A forked child runs the engine that its parent opened, and gives the parent's answers."""

import gc
import os
import shutil
import signal
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from support.child_process import in_child
from support.engine_cases import WAYS, Case, check, four_stages

from dynamic.engines import openvino
from dynamic.engines.openvino import new_core

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_child_gives_the_same_answers(case: Case, way: str) -> None:
    limits = np.array(case.quantiles(0.4), np.float32)
    truth, opened = case.truth(limits.tolist()), case.open(way, threads=2)

    large = {"input": np.concatenate([case.inputs["input"]] * 60)}  # so much that it takes the threads

    def work() -> list[Any]:
        outputs = [opened.run(inputs, limits) for inputs in (large, case.rows(slice(0, 1)))]
        return [(o.logits[:33], o.stage[:33], o.score[:33]) for o in outputs]

    before = work()
    for _ in range(2):  # a second child, and a parent that runs on between them
        for mine, its in zip(before, in_child(work), strict=True):
            for a, b in zip(mine, its, strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-5)
        for mine, again in zip(before, work(), strict=True):
            np.testing.assert_array_equal(mine[0], again[0])
    check(opened.run(case.inputs, limits), truth)


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_child_that_unloads_and_closes_leaves_the_parent_alone(case: Case, way: str) -> None:
    limits = np.array(case.quantiles(0.4), np.float32)
    opened = case.open(way, threads=2)
    before = opened.run(case.inputs, limits)

    def work() -> bool:
        opened.run(case.inputs, limits)
        opened.executor.unload([0])
        opened.close()
        return True

    assert in_child(work)
    ready = opened.graph is not None and opened.graph.ready(33)
    assert ready or opened.loaded() == {0, 1, 2}
    np.testing.assert_array_equal(opened.run(case.inputs, limits).logits, before.logits)


def test_a_grandchild_runs_too(case: Case) -> None:
    opened, limits = case.open("onnxruntime/graph", threads=2), np.array(case.quantiles(0.4), np.float32)
    before = opened.run(case.inputs, limits).logits

    def work() -> Any:
        opened.run(case.inputs, limits)
        return in_child(lambda: opened.run(case.inputs, limits).logits)

    np.testing.assert_allclose(in_child(work), before, rtol=1e-5)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=needs_compiler)])
def test_torch_answers_in_a_child_on_one_thread(case: Case, compiled: bool) -> None:
    limits, threads = np.array(case.quantiles(0.4), np.float32), torch.get_num_threads()
    opened = case.open("torch/stages", threads=2, compile=compiled)
    large = {"input": np.concatenate([case.inputs["input"]] * 300)}  # so much that it takes the threads

    def work() -> list[Any]:
        found = opened.run(large, limits)
        executor: Any = opened.executor
        return [found.logits[:33], torch.get_num_threads(), executor._stages == executor._modules]

    try:
        before, *own = work()
        found, *its = in_child(work)
        assert (own, its) == ([2, not compiled], [1, True]), "the child runs the modules themselves"
        np.testing.assert_allclose(found, before, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(work()[0], before, rtol=1e-4, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_openvino_makes_its_core_when_it_is_wanted(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    monkeypatch.setattr("dynamic.engines.openvino.new_core", lambda: made.append(1) or new_core())
    opened, first = case.open("openvino/stages", threads=1), case.rows(slice(0, 1))
    assert made == []
    opened.run(first, np.zeros(3, np.float32))
    opened.run(case.inputs, np.zeros(3, np.float32))
    assert made == [1]

    executor: Any = opened.executor

    def work() -> list[bool]:
        cores = [executor._models._core is None]  # a core starts threads: not while the process still forks
        opened.run(first, np.zeros(3, np.float32))
        return [*cores, executor._models._core is None]

    assert in_child(work) == [True, False]


def on_a_thread(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


DROPS = {
    "a bundle is closed": lambda opened, other: other.close(),
    "a backbone is unloaded": lambda opened, other: opened.executor.unload([0]),
    "all is unloaded": lambda opened, other: opened.executor.unload([0, 1, 2]),
    "another thread has dropped its request": lambda opened, other: on_a_thread(other.close),
}


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("drop", DROPS)
def test_a_child_after_models_were_dropped(case: Case, way: str, drop: str) -> None:
    """An engine that keeps the threads of a dropped model for the next one would wait for them here for ever."""
    opened, other, first = case.open(way, threads=1), case.open(way, threads=1), case.rows(slice(0, 1))
    limits = np.zeros(3, np.float32)
    before = opened.run(first, limits).logits
    other.run(first, limits)
    on_a_thread(lambda: other.run(first, limits))
    DROPS[drop](opened, other)
    np.testing.assert_allclose(in_child(lambda: opened.run(first, limits).logits), before, rtol=1e-5)
    np.testing.assert_allclose(opened.run(first, limits).logits, before, rtol=1e-5)


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize(
    ("order", "opened_on"),
    [
        ("the first first", "another thread"),
        ("the last first", "the main thread"),
        ("on another thread", "the main thread"),
    ],
)
def test_a_signal_after_bundles_are_closed(case: Case, way: str, opened_on: str, order: str) -> None:
    """An engine that gives the thread a signal stack and takes it away again would end the process here."""

    def work() -> int:
        bundles: list[Any] = []

        def start() -> None:
            bundles.append(case.open(way, threads=1))
            bundles[-1].run(case.rows(slice(0, 1)), np.zeros(3, np.float32))

        def end() -> None:
            bundles.pop(-1 if order == "the last first" else 0).close()
            gc.collect()

        for _ in range(3):
            start() if opened_on == "the main thread" else on_a_thread(start)
        for _ in range(3):
            on_a_thread(end) if order == "on another thread" else end()
        received: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
        signal.raise_signal(signal.SIGUSR1)
        return len(received)

    assert in_child(work) == 1


@pytest.mark.parametrize("enabled", [True, False])
def test_nothing_is_collected_between_the_clearing_and_the_fork(monkeypatch: pytest.MonkeyPatch, enabled: bool) -> None:
    """A model that is dropped there gives its threads back, and the child would wait for them for ever."""
    hooks: dict[str, Any] = {}
    monkeypatch.setattr(os, "register_at_fork", lambda **named: hooks.update(named))
    openvino._clear_before_forks.__wrapped__()
    assert hooks == {
        "before": openvino._clear,
        "after_in_parent": openvino._after_fork,
        "after_in_child": openvino._after_fork_in_child,
    }
    monkeypatch.setattr(openvino, "new_core", lambda: None)
    monkeypatch.setattr(openvino, "_forks", 0)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        openvino._after_fork()  # of a fork that began before the library was loaded
        assert gc.isenabled() == enabled
        openvino._clear()
        openvino._clear()  # another thread forks too
        assert not gc.isenabled()
        openvino._after_fork()
        assert not gc.isenabled()
        openvino._after_fork()
        assert gc.isenabled() == enabled
        openvino._clear()
        openvino._clear()
        openvino._after_fork_in_child()  # where the other thread does not exist
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
