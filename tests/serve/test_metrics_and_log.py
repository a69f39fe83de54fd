"""What is counted and logged of requests."""

import json
import math

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support.runtime_cases import Takes, faked
from support.serving.serve_cases import INFER, PIXELS, X, ask, encoded, image_bundle, number_bundle, numbers, served

import dynamic
from dynamic.serve import ServeOptions, Server


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample by its name and labels."""
    reply = ask(port, "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_outcome_and_stage(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), drift_alpha=1e-9) as (server, run):
        port = server.port
        stages = [0, 0]
        for rows in (1, 3, 2):
            for stage in ask(port, INFER, numbers(X[:rows], name="input")).output("stage"):
                stages[stage] += 1
        assert ask(port, INFER, b"{").status == 400
        assert ask(port, "/v2/models/other/infer", b"{}").status == 404
        found, stats = samples(port), run.stats()
        http = ("protocol", "http")
        assert found["dynamic_requests_total", (("outcome", "answered"), http)] == 3
        assert found["dynamic_requests_total", (("outcome", "invalid"), http)] == 1
        assert found["dynamic_requests_total", (("outcome", "unknown"), http)] == 1
        assert found["dynamic_request_seconds_count", (http,)] == 3
        assert found["dynamic_request_seconds_bucket", (("le", "+Inf"), http)] == 3
        assert found["dynamic_request_seconds_sum", (http,)] > 0
        assert [found.get(("dynamic_rows_total", (("stage", str(i)),)), 0.0) for i in (0, 1)] == stages
        for stage, share in enumerate(stats.stage_shares):
            assert found["dynamic_stage_share", (("stage", str(stage)),)] == share == stages[stage] / 6
        assert found["dynamic_certified_share", ()] == stats.certified_share
        assert found.get(("dynamic_certified_requests_total", ())) == 3 * stats.certified_share
        assert found["dynamic_drift", ()] == 0
        assert found["dynamic_queue_length", ()] == found["dynamic_queue_age_seconds", ()] == 0
        assert found["dynamic_shed_requests_total", ()] == found["dynamic_engine_failures_total", ()] == 0
        assert 10 < found["dynamic_resident_megabytes", ()] < 1e5
        assert sum(value for (name, _), value in found.items() if name == "dynamic_point_share") == pytest.approx(1)


def test_violated_limits_are_counted(tmp_path_factory: pytest.TempPathFactory) -> None:
    policy = Takes("small", violated_limits=("latency_ms", "memory_mb"), feasible=False)
    with (
        faked(number_bundle(tmp_path_factory), policy=policy, drift_alpha=None) as run,
        Server(run, ServeOptions(port=0, name="model")) as server,
    ):
        for _ in range(2):
            assert ask(server.port, INFER, numbers(X[:1], name="input")).output("point") == ["small"]
        found = samples(server.port)
        for limit in policy.changes["violated_limits"]:
            assert found["dynamic_violated_limit_requests_total", (("limit", limit),)] == 2
        assert found["dynamic_point_share", (("point", "small"),)] == 1
        assert math.isnan(found["dynamic_drift", ()]), "inputs are not watched"


def test_a_line_of_json_for_each_request(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(image_bundle(tmp_path_factory), log_json=True, token="secret") as (server, run):
        points = [point.name for point in run.frontier.points]
        headers = {"Content-Type": "image/png", "Authorization": "Bearer secret"}
        assert ask(server.port, INFER, encoded(PIXELS[0]), headers=headers).status == 200
        assert ask(server.port, INFER, encoded(PIXELS[0])[:40], headers=headers).status == 400
        assert ask(server.port, INFER, b"x", headers={"Authorization": "Bearer other"}).status == 401
        assert ask(server.port, "/readyz").status == 200
    out, err = capsys.readouterr()
    assert out == ""
    assert "secret" not in err
    assert "Bearer other" not in err
    first, second, third = map(json.loads, err.splitlines())
    assert (first["protocol"], first["outcome"], first["error"], first["rows"]) == ("http", "answered", None, 1)
    assert first["latency_ms"] >= first["waited_ms"] > 0
    assert sum(first["stages"].values()) == 1
    assert first["point"] in points
    assert first["violated_limits"] == []
    assert first["time"].endswith("+00:00")
    assert (second["outcome"], second["stages"]) == ("invalid", None)
    assert "does not read as an image" in second["error"]
    assert (third["outcome"], third["id"]) == ("unauthorized", "")


def test_nothing_is_logged_unless_asked(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        assert ask(server.port, INFER, b"{").status == 400
    assert capsys.readouterr() == ("", "")


def test_a_fault_of_the_server_is_logged_and_says_little(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("/a/secret/path")

    with served(number_bundle(tmp_path_factory)) as (server, _):
        monkeypatch.setattr(dynamic.Runtime, "__call__", broken)
        reply = ask(server.port, INFER, numbers(X[:1], name="input"))
        assert reply.status == 500
        assert "(KeyError). The log of the server has more" in reply.error
        assert "secret" not in reply.error
        assert any("a request failed" in message for message in caplog.messages)
        monkeypatch.undo()
        assert ask(server.port, INFER, numbers(X[:1], name="input")).status == 200
        assert samples(server.port)["dynamic_requests_total", (("outcome", "failed"), ("protocol", "http"))] == 1
