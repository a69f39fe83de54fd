"""More requests than are answered, requests whose time is over, and a server that ends while they run."""

import asyncio
import json
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import tritonclient.http as triton
from support.runtime_cases import Clock, Notes, faked
from support.serving.gates import gated, metric, until
from support.serving.serve_cases import INFER, Reply, X, ask, number_bundle, numbers, served
from tritonclient.utils import InferenceServerException

from dynamic.policies import FixedPolicy
from dynamic.serve import ServeOptions
from dynamic.serve.http.answers import HttpAnswer
from dynamic.serve.http.json_messages import JsonRequest
from dynamic.serve.request_errors import RequestError
from dynamic.serve.service import Service

ONE = numbers(X[:1], name="input")


def test_the_queue_is_bounded(tmp_path_factory: pytest.TempPathFactory) -> None:
    with gated(number_bundle(tmp_path_factory), queue=2) as (server, gate, engine), ThreadPoolExecutor(4) as clients:
        port = server.port
        replies: list[Future[Reply]] = [clients.submit(ask, port, INFER, ONE)]
        until(lambda: gate.entered == 1, "the first runs")
        for waiting in (1, 2):
            replies.append(clients.submit(ask, port, INFER, ONE))
            until(lambda waiting=waiting: metric(port, "dynamic_queue_length") == waiting, "it waits")  # type: ignore[misc]
        assert metric(port, "dynamic_queue_age_seconds") > 0
        assert metric(port, "dynamic_busy_workers") == 1
        replies.append(clients.submit(ask, port, INFER, ONE))
        shed = replies[1].result()  # it has waited longest
        assert (shed.status, shed.headers["retry-after"]) == (503, "1")
        assert "2 requests waited already, the limit. Send again after 1 s" in shed.error
        gate.open.set()
        assert [replies[number].result().status for number in (0, 2, 3)] == [200] * 3
        assert metric(port, "dynamic_shed_requests_total") == 1
        assert metric(port, "dynamic_requests_total", protocol="http", outcome="shed") == 1
        assert metric(port, "dynamic_queue_length") == 0
        assert len(engine.calls) == 3


def test_the_policy_knows_how_long_a_request_has_waited(tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = Notes()
    with (
        gated(number_bundle(tmp_path_factory), policy=policy) as (server, gate, _),
        ThreadPoolExecutor(3) as clients,
    ):
        replies = [clients.submit(ask, server.port, INFER, ONE)]
        until(lambda: gate.entered == 1, "the first runs")
        for waiting in (1, 2):
            replies.append(clients.submit(ask, server.port, INFER, ONE))
            until(lambda waiting=waiting: metric(server.port, "dynamic_queue_length") == waiting, "it waits")  # type: ignore[misc]
        began = time.perf_counter()
        time.sleep(0.02)
        least_ms = (time.perf_counter() - began) * 1e3
        gate.open.set()
        assert [reply.result().status for reply in replies] == [200] * 3
        second, third = policy.requests[-2:]
        assert (second[1], third[1]) == (1, 0), "requests behind it"
        assert second[0] is not None
        assert third[0] is not None
        assert min(second[0], third[0]) >= least_ms
        assert metric(server.port, "dynamic_waited_seconds_count") == 3
        assert metric(server.port, "dynamic_waited_seconds_sum") >= 2 * least_ms / 1e3


def test_an_upload_is_no_wait_in_the_queue(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts for the latency and the timeout alone. The body takes 100 s to come, and nothing else takes time."""
    clock, policy = Clock(), Notes()
    monkeypatch.setattr("dynamic.serve.service.time", SimpleNamespace(perf_counter=clock, monotonic=time.monotonic))
    body = json.dumps(ONE).encode()
    with faked(number_bundle(tmp_path_factory), policy=policy, clock=clock) as run:
        service = Service(run, ServeOptions(name="model"))

        def infer(timeout_ms: float | None) -> HttpAnswer:
            async def receive() -> JsonRequest:
                clock.now += 100.0
                return JsonRequest(body, None, ("model", "1"), timeout_ms, most=10_000)

            return asyncio.run(service.infer("http", receive))

        assert b"label" in infer(None).body
        assert policy.requests[-1] == (0.0, 0)
        text = service.metrics.text().decode()
        assert "dynamic_waited_seconds_sum 0.0" in text
        assert 'dynamic_request_seconds_sum{protocol="http"} 100.0' in text
        with pytest.raises(RequestError, match="not answered within its timeout of 99000 ms"):
            infer(99_000.0)
        service.waiting.close()


@pytest.mark.parametrize("how", ["header", "parameter", "option"])
def test_a_request_whose_time_is_over_is_not_run(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    options = {"timeout_ms": 50} if how == "option" else {}
    bundle = number_bundle(tmp_path_factory)
    with gated(bundle, **options) as (server, gate, engine), ThreadPoolExecutor(2) as clients:
        first = clients.submit(ask, server.port, INFER, ONE, headers={"Timeout-Ms": "1e6"})
        until(lambda: gate.entered == 1, "the first runs")
        content = ONE | {"parameters": {"timeout": 50_000}} if how == "parameter" else ONE
        late = ask(server.port, INFER, content, headers={"Timeout-Ms": "50"} if how == "header" else {})
        assert late.status == 504
        assert "not answered within its timeout of 50 ms" in late.error
        assert metric(server.port, "dynamic_queue_length") == 0, "it waits for nothing"
        gate.open.set()
        assert first.result().status == 200
        assert ask(server.port, INFER, ONE, headers={"Timeout-Ms": "1e6"}).status == 200
        assert len(engine.calls) == 2
        assert metric(server.port, "dynamic_requests_total", protocol="http", outcome="expired") == 1


def test_a_request_that_runs_too_long(tmp_path_factory: pytest.TempPathFactory) -> None:
    with gated(number_bundle(tmp_path_factory)) as (server, gate, _):
        client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
        tensor = triton.InferInput("input", [1, 12], "FP32")
        tensor.set_data_from_numpy(X[:1])
        with pytest.raises(InferenceServerException, match="timeout of 50 ms"):
            client.infer("model", [tensor], timeout=50_000)
        gate.open.set()
        assert client.infer("model", [tensor], timeout=10**9).as_numpy("label").tolist() == [0]
        client.close()


def test_a_server_that_ends_answers_what_it_accepted(tmp_path_factory: pytest.TempPathFactory) -> None:
    with gated(number_bundle(tmp_path_factory)) as (server, gate, engine), ThreadPoolExecutor(3) as clients:
        port = server.port
        running = clients.submit(ask, port, INFER, ONE)
        until(lambda: gate.entered == 1, "the first runs")
        waiting = clients.submit(ask, port, INFER, ONE)
        until(lambda: metric(port, "dynamic_queue_length") == 1, "the second waits")
        end = clients.submit(server.close)
        until(lambda: ask(port, "/readyz").status == 503, "it is not ready any more")
        assert ask(port, "/v2/models/model/ready").json == {"name": "model", "ready": False}
        assert ask(port, "/healthz").status == 200
        refused = ask(port, INFER, ONE)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "this server is ending" in refused.error
        gate.open.set()
        assert (running.result().status, waiting.result().status) == (200, 200)
        assert end.result() is True
        assert len(engine.calls) == 2
        with pytest.raises(ConnectionRefusedError):
            ask(port, "/readyz")
        assert server.close() is True
        assert not server.is_running


def test_a_server_waits_no_longer_than_it_is_told(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamic.serve.server.SENT_S", 0)
    with gated(number_bundle(tmp_path_factory), drain_s=0.1) as (server, gate, _), ThreadPoolExecutor(1) as clients:
        running = clients.submit(ask, server.port, INFER, ONE)
        until(lambda: gate.entered == 1, "the first runs")
        assert server.close() is False
        assert running.exception() is not None or running.result().status >= 500
        gate.open.set()


def test_many_clients_get_their_own_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    rows = np.random.default_rng(5).standard_normal((64, 12)).astype(np.float32)
    bundle, policy = number_bundle(tmp_path_factory), FixedPolicy("reference")
    with served(bundle, policy=policy, workers=4, queue=64) as (server, run):
        expected = run(rows).probabilities
        barrier = threading.Barrier(16)

        def probabilities(number: int) -> list[list[float]]:
            barrier.wait()
            place = slice(4 * number, 4 * number + 4)
            replies = [ask(server.port, INFER, numbers(rows[i : i + 1], name="input")) for i in range(64)[place]]
            return [reply.output("probabilities") for reply in replies]

        with ThreadPoolExecutor(16) as clients:
            found = [row for part in clients.map(probabilities, range(16)) for row in part]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
