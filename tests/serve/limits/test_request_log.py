"""The log of requests never delays an answer, nor takes its place."""

import io
import json
import threading
from typing import Any

import pytest
from support.serving.serve_cases import INFER, LIMIT_S, X, ask, number_bundle, numbers, served, server_is_well

from dynamic.serve.request_errors import RequestError
from dynamic.serve.request_log import RequestLog, RequestRecord

ONE = numbers(X[:1], name="input")


class Broken(io.StringIO):
    """A file that fails so."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


class Slow(io.StringIO):
    """A file that takes nothing until it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.began = threading.Event()

    def write(self, text: str) -> int:
        self.began.set()
        assert self.open.wait(LIMIT_S)
        return super().write(text)


@pytest.mark.parametrize("error", [BrokenPipeError(), OSError("no space"), ValueError("closed file")])
def test_a_log_that_fails(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("sys.stderr", Broken(error))
    with served(number_bundle(tmp_path_factory), log_json=True) as (server, _):
        assert [ask(server.port, INFER, ONE).status for _ in range(2)] == [200, 200]
        assert ask(server.port, INFER, b"{").status == 400
        assert server_is_well(server.port)


def test_a_log_that_is_slow(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Slow()
    monkeypatch.setattr("sys.stderr", file)
    with served(number_bundle(tmp_path_factory), log_json=True) as (server, _):
        assert [ask(server.port, INFER, ONE).status for _ in range(3)] == [200] * 3
        assert file.began.wait(LIMIT_S)
        assert ask(server.port, "/readyz").status == 200
        file.open.set()
    assert [json.loads(line)["outcome"] for line in file.getvalue().splitlines()] == ["answered"] * 3


def test_lines_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynamic.serve.request_log._MOST_LINES", 2)
    file = Slow()
    log = RequestLog(file)
    log.write(RequestRecord("http", id="0"))
    assert file.began.wait(LIMIT_S), "the first is being written"
    for number in range(1, 5):
        log.write(RequestRecord("http", id=str(number)))
    assert log.lost == 2
    file.open.set()
    log.close(LIMIT_S)
    assert [json.loads(line)["id"] for line in file.getvalue().splitlines()] == ["0", "1", "2"]


def test_lines_that_a_file_refuses_are_counted() -> None:
    log = RequestLog(Broken(BrokenPipeError()))
    for _ in range(3):
        log.write(RequestRecord("http"))
    log.close(LIMIT_S)
    assert log.lost == 3


@pytest.mark.parametrize("value", ["x" * 5000, "\U0001f600" * 5000])
def test_a_message_has_a_limit(value: Any) -> None:
    message = str(RequestError("invalid", value))
    assert message == value[:900] + "..."
    assert str(RequestError("invalid", value[:900])) == value[:900]
