"""Who may ask, from where, and how much they may send."""

import socket
import threading

import pytest
import tritonclient.grpc as triton_grpc
from support.serving.serve_cases import INFER, LIMIT_S, X, ask, number_bundle, numbers, served
from tritonclient.utils import InferenceServerException

import dynamic
from dynamic.errors import DynamicError
from dynamic.serve import ServeOptions, Server

ONE = numbers(X[:1], name="input")
BEARER = {"Authorization": "Bearer secret"}
WRONG = [{}, {"Authorization": "secret"}, {"Authorization": "Basic secret"}, {"Authorization": "Bearer Secret"}]
WRONG += [{"Authorization": "Bearer"}, {"Authorization": "Bearer secret2"}, {"Authorization": "Bearer s\xe9cret"}]


def test_a_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), token="secret", grpc_port=0) as (server, _):
        port = server.port
        for path in ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert ask(port, path).status == 200
        for headers in WRONG:
            for path in ("/v2", "/v2/models/model", "/v2/models/model/ready", "/metrics", "/openapi.json"):
                reply = ask(port, path, headers=headers)
                assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
                assert "send the header 'Authorization: Bearer TOKEN'" in reply.error
                assert "secret" not in reply.error.lower()
            assert ask(port, INFER, ONE, headers=headers).status == 401
            assert ask(port, "/v2/models/other/infer", ONE, headers=headers).status == 401, "no word of what there is"
        assert ask(port, INFER, ONE, headers=BEARER).status == 200
        assert ask(port, "/v2", headers={"authorization": "bearer  secret"}).status == 200
        assert b"dynamic_requests_total" in ask(port, "/metrics", headers=BEARER).body


def test_metrics_that_need_no_token(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), token="secret", open_metrics=True) as (server, _):
        assert b"dynamic_requests_total" in ask(server.port, "/metrics").body
        assert ask(server.port, "/v2").status == 401
        paths = ask(server.port, "/openapi.json", headers=BEARER).json["paths"]
        assert paths["/metrics"]["get"]["security"] == []


def test_a_token_by_grpc(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory), token="secret", grpc_port=0) as (server, _):
        client = triton_grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")
        tensor = triton_grpc.InferInput("input", [1, 12], "FP32")
        tensor.set_data_from_numpy(X[:1])
        assert client.is_server_live()
        assert client.is_server_ready()
        for call in (
            client.get_server_metadata,
            lambda: client.get_model_metadata("model"),
            lambda: client.infer("model", [tensor]),
            lambda: client.infer("model", [tensor], headers={"authorization": "Bearer other"}),
        ):
            with pytest.raises(InferenceServerException, match="the header 'Authorization") as raised:
                call()
            assert raised.value.status() == "StatusCode.UNAUTHENTICATED"
        answer = client.infer("model", [tensor], headers={"authorization": "Bearer secret"})
        assert answer.as_numpy("label").shape == (1,)
        client.close()


def test_a_token_is_shown_nowhere() -> None:
    assert "secret" not in repr(ServeOptions(token="secret"))


def test_who_is_let_in_is_said(tmp_path_factory: pytest.TempPathFactory, caplog: pytest.LogCaptureFixture) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        port = server.port
        assert caplog.messages == []
        assert socket.create_connection(("127.0.0.1", port)).close() is None
        with pytest.raises(OSError):  # another address of this machine
            socket.create_connection(("127.0.0.2", port)).close()
    with served(number_bundle(tmp_path_factory), host="0.0.0.0", token="secret"):
        assert caplog.messages == []
    with served(number_bundle(tmp_path_factory), host="0.0.0.0") as (server, _):
        assert caplog.messages == [
            f"0.0.0.0:{server.port} answers anybody who reaches this machine: set a token, or leave --host out"
        ]
        socket.create_connection(("127.0.0.2", server.port)).close()


@pytest.mark.parametrize("option", ["port", "grpc_port"])
def test_a_port_in_use(tmp_path_factory: pytest.TempPathFactory, option: str) -> None:
    with served(number_bundle(tmp_path_factory), grpc_port=0) as (server, run):
        taken, dashed = getattr(server, option), option.replace("_", "-")
        before = threading.active_count()
        with pytest.raises(DynamicError, match=rf"127.0.0.1:{taken} cannot be listened on.*--{dashed}"):
            Server(run, ServeOptions(**{"port": 0, "grpc_port": 0} | {option: taken}))
        assert threading.active_count() <= before


def test_a_host_that_is_none(tmp_path_factory: pytest.TempPathFactory) -> None:
    with (
        number_bundle(tmp_path_factory).runtime(monitor=dynamic.FixedMonitor()) as run,
        pytest.raises(DynamicError, match=r"192.0.2.1:0 cannot be listened on .*--host"),
    ):
        Server(run, ServeOptions(host="192.0.2.1", port=0))


def raw(port: int, head: str, *parts: bytes) -> bytes:
    """What a client gets that sends these bytes and then waits."""
    with socket.create_connection(("127.0.0.1", port), LIMIT_S) as client:
        # at once: a head that comes alone may be answered before the rest is sent
        client.sendall(b"".join([f"POST {INFER} HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode(), *parts]))
        reply = b""
        while chunk := client.recv(65_536):
            reply += chunk
        return reply


def test_a_body_over_the_limit(tmp_path_factory: pytest.TempPathFactory) -> None:
    words = b"and the limit is 1000: send fewer rows at a time"
    with served(number_bundle(tmp_path_factory), max_request_mb=0.001) as (server, _):
        port = server.port
        # a client that announces it learns so at once, and need not send it
        for head in ("Content-Length: 1000000000000", "Content-Length: 1001\r\nExpect: 100-continue"):
            reply = raw(port, head)
            assert reply.startswith(b"HTTP/1.1 413 "), head
            assert words in reply
        assert b"1000000000000 bytes" in raw(port, "Content-Length: 1000000000000")
        # one that sends it first reads why
        assert words in raw(port, "Content-Length: 1001", b" " * 1001)
        assert words in raw(port, "Content-Length: 8000", b" " * 8000)
        chunk = b"3e8\r\n" + b" " * 1000 + b"\r\n"
        assert words in raw(port, "Transfer-Encoding: chunked", chunk, chunk, b"0\r\n\r\n")
        # and one that never stops is stopped
        endless = raw(port, "Transfer-Encoding: chunked", *[chunk] * 9)
        assert words in endless
        assert b"connection: close" in endless.lower()
        assert ask(port, INFER, ONE).status == 200
        assert ask(port, INFER, b" " * (1000 - 2) + b"{}").status == 400, "1,000 bytes are read"


def test_a_body_that_does_not_come(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
            client.sendall(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf".encode())
        monkeypatch.setattr("dynamic.serve.http.bodies._READ_S", 0.1)
        reply = raw(server.port, "Content-Length: 100\r\nConnection: close", b"half")
        assert reply.startswith(b"HTTP/1.1 400 ")
        assert b"4 of 100 bytes of the body came within 0.1 s" in reply
        assert ask(server.port, "/readyz").status == 200
