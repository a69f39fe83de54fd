"""A bundle in Ray Serve: the answers of `run(x)`, over handles and HTTP, and changes while requests run."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.serving.ray_cases import CLASSES, LIMIT_S, QUIET, ROWS, free_port, local_ray, small_bundle, until_is
from support.serving.serve_cases import ask, numbers

import dynamic

serve = pytest.importorskip("ray.serve", reason='needs Ray Serve: pip install "dynamic-inference[ray]"')
pytestmark = QUIET

EXACT = dynamic.Budget(max_drop=0.0)  # all rows run the last network


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return small_bundle(tmp_path_factory.mktemp("ray") / "shelf")


@pytest.fixture(scope="module")
def expected(bundle: dynamic.Bundle) -> Any:
    with bundle.runtime(EXACT, threads=1, monitor=dynamic.FixedMonitor()) as run:
        return run(ROWS)


@pytest.fixture(scope="module")
def deployed(bundle: dynamic.Bundle) -> Iterator[tuple[Any, int]]:
    """The handle and the port of an application."""
    port = free_port()
    with local_ray():
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        handle = serve.run(dynamic.serve.application(bundle, EXACT), name="cascade")
        try:
            yield handle, port
        finally:
            serve.shutdown()


def result(reply: Any) -> Any:
    return reply.result(timeout_s=LIMIT_S)


def test_handles_answer_as_run_does(deployed: tuple[Any, int], expected: Any) -> None:
    handle, _ = deployed
    replies = [handle.run.remote(row) for row in ROWS[:32]]
    batch = result(handle.run.remote(ROWS[32:]))
    answers = [result(reply) for reply in replies]
    assert [type(answer) for answer in answers] == [dynamic.Prediction] * 32
    assert [answer.label for answer in answers] + batch.label.tolist() == expected.label.tolist()
    assert [answer.name for answer in answers] == [CLASSES[answer.label] for answer in answers]
    assert {answer.stage for answer in answers} == {1} == set(batch.stage.tolist())
    assert {answer.certified for answer in answers} == {expected.certified} == {batch.certified}
    probabilities = np.concatenate([[answer.probabilities for answer in answers], batch.probabilities])
    np.testing.assert_allclose(probabilities, expected.probabilities, rtol=1e-5, atol=1e-6)


def test_http_speaks_the_protocol(deployed: tuple[Any, int], expected: Any) -> None:
    _, port = deployed
    assert ask(port, "/v2/health/ready").json == {"ready": True}
    described = ask(port, "/v2/models/shelf").json
    assert [one["datatype"] for one in described["inputs"]] == ["FP32"]
    name = described["inputs"][0]["name"]
    reply = ask(port, "/v2/models/shelf/infer", numbers(ROWS[:3], name=name))
    assert reply.output("label") == expected.label[:3].tolist()
    np.testing.assert_allclose(reply.output("probabilities"), expected.probabilities[:3].ravel(), rtol=1e-4, atol=1e-6)
    wrong = ask(port, "/v2/models/shelf/infer", numbers(ROWS[:3, :5], name=name))
    assert wrong.status == 400
    assert "[3, 5]" in wrong.error
    assert ask(port, "/v2/models/other").status == 404


def test_an_input_that_does_not_fit_is_the_callers_error(deployed: tuple[Any, int]) -> None:
    handle, _ = deployed
    with pytest.raises(dynamic.errors.InputError, match="12"):
        result(handle.run.remote(ROWS[0, :5]))


def test_late_rows_get_the_answer_of_the_exit(deployed: tuple[Any, int]) -> None:
    handle, port = deployed
    late = result(handle.run.remote(ROWS[0], deadline_s=time.time() - 1.0))
    assert (late.stage, late.certified) == (0, False)
    calm = result(handle.run.remote(ROWS[0], deadline_s=time.time() + 1e6))
    assert calm.stage == 1
    name = ask(port, "/v2/models/shelf").json["inputs"][0]["name"]
    for unix_ms, stage in ((1.0, 0), ((time.time() + 1e6) * 1e3, 1)):
        headers = {"Deadline-Unix-Ms": str(unix_ms)}
        reply = ask(port, "/v2/models/shelf/infer", numbers(ROWS[:1], name=name), headers=headers)
        assert reply.output("stage") == [stage]
    refused = ask(port, "/v2/models/shelf/infer", numbers(ROWS[:1]), headers={"Deadline-Unix-Ms": "soon"})
    assert refused.status == 400


def test_budget_and_bundle_change_without_a_failed_request(
    deployed: tuple[Any, int], bundle: dynamic.Bundle, expected: Any, tmp_path: Path
) -> None:
    """The same process goes on, requests run all the while, and their answers are those of what is at work."""
    handle, _ = deployed
    other = small_bundle(tmp_path / "shelf", seed=1)
    with other.runtime(EXACT, threads=1, monitor=dynamic.FixedMonitor()) as run:
        of_other = run(ROWS).probabilities
    assert np.abs(of_other - expected.probabilities).max() > 1e-2, "the bundles answer differently"
    ended, answers, failures = threading.Event(), list[Any](), list[BaseException]()

    def keep_asking() -> None:
        while not ended.is_set():
            try:
                answers.append(result(handle.run.remote(ROWS[len(answers) % 64])))
            except BaseException as error:
                failures.append(error)

    def state(*names: str) -> tuple[Any, ...]:
        content = result(handle.state.remote())
        return tuple(content["budget"].get(name, content.get(name)) for name in names)

    def answer() -> Any:
        return result(handle.run.remote(ROWS))

    (process,) = state("pid")
    assert set(answer().stage) == {1}
    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        cheap = dynamic.Budget(latency_ms=1e4, max_drop=0.5, on_drift="report")  # rows that repeat alarm the test
        serve.run(dynamic.serve.application(bundle, cheap), name="cascade")
        until_is(lambda: state("max_drop", "latency_ms"), (0.5, 1e4), "the budget")
        assert set(answer().stage) == {0}, "the fastest point suffices"
        serve.run(dynamic.serve.application(other, EXACT), name="cascade")
        until_is(lambda: state("max_drop", "bundle"), (0.0, str(other.folder)), "the bundle")
        changed = answer()
        assert set(changed.stage) == {1}
        np.testing.assert_allclose(changed.probabilities, of_other, rtol=1e-4, atol=1e-6)
        before = len(answers)
        until_is(lambda: len(answers) > before + 1, True, "answers after the last change")
    finally:
        ended.set()
        asking.join()
        serve.run(dynamic.serve.application(bundle, EXACT), name="cascade")
        until_is(lambda: state("bundle"), (str(bundle.folder),), "the first bundle")
    assert failures == []
    assert state("pid") == (process,)
    assert {answer.stage for answer in answers} == {0, 1}


def test_what_cannot_be_taken_changes_nothing(deployed: tuple[Any, int], bundle: dynamic.Bundle) -> None:
    with pytest.raises(dynamic.errors.BundleError):
        dynamic.serve.application(bundle.folder / "nothing")
    with pytest.raises(dynamic.errors.SettingError, match="replicas=0 must be a whole number of at least 1"):
        dynamic.serve.application(bundle, replicas=0)
    with pytest.raises(dynamic.errors.SettingError, match="batch_wait_ms=-1"):
        dynamic.serve.application(bundle, batch_wait_ms=-1)
    with pytest.raises(dynamic.errors.SettingError, match="threads=0 must"):
        dynamic.serve.application(bundle, threads=0)
    with pytest.raises(dynamic.errors.BudgetError):
        dynamic.serve.application(bundle, dynamic.Budget(energy_mj=1.0))
