"""A forked child runs the engine that its parent opened, and gives the parent's answers."""

import os
import pickle
import shutil
import signal
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from engine_cases import WAYS, Case, check, four_stages

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
LIMIT_S = 30
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return four_stages(tmp_path_factory)


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` gives in a forked child; fails where the child does not end in time."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads: that is what is tested
        child = os.fork()
    if child == 0:
        try:
            answer = pickle.dumps(work())
        except BaseException:
            answer = pickle.dumps(traceback.format_exc())
        os.write(writing, answer)  # fits the pipe: nobody reads before the child has ended
        os._exit(0)
    os.close(writing)
    ends = time.monotonic() + LIMIT_S
    while os.waitpid(child, os.WNOHANG)[0] == 0:
        if time.monotonic() > ends:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            pytest.fail(f"the child hung: not done after {LIMIT_S} s")
        time.sleep(0.01)
    with os.fdopen(reading, "rb") as file:
        answer = pickle.loads(file.read())
    assert not isinstance(answer, str), answer
    return answer


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


def test_openvino_makes_its_core_when_it_is_wanted(case: Case) -> None:
    opened = case.open("openvino/stages", threads=1)
    opened.run(case.rows(slice(0, 1)), np.zeros(3, np.float32))
    models: Any = opened.executor
    models, made = models._models, []
    make = models._make
    models._make = lambda: made.append(1) or make()
    lost = models.forget()  # as after a fork
    assert (len(lost), made) == (3, [])
    opened.run(case.rows(slice(0, 1)), np.zeros(3, np.float32))
    assert made == [1]
