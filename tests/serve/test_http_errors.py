"""Addresses, methods, headers and bytes that are no request."""

import socket

import pytest
from support.serving.serve_cases import (
    INFER,
    LIMIT_S,
    ask,
    number_bundle,
    numbers,
    served,
)


def test_addresses_methods_and_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        port = server.port
        cases = {
            ("GET", "/nothing"): (404, "GET '/nothing': Not Found, see /openapi.json"),
            ("GET", INFER): (405, "Method Not Allowed"),
            ("DELETE", "/v2"): (405, "Method Not Allowed"),
            ("GET", "/v2/models/other"): (404, "there is no model 'other': this server has 'model'"),
            ("GET", "/v2/models/model/versions/2"): (404, "there is no version '2' of 'model': it has '1'"),
            ("GET", "/v2/models/model/versions/2/ready"): (404, "there is no version"),
            ("POST", "/v2/models/other/infer"): (404, "there is no model 'other'"),
            ("POST", "/v2/models/model/versions/x/infer"): (404, "there is no version 'x'"),
        }
        for (method, path), (status, words) in cases.items():
            reply = ask(port, path, b"{}" if method == "POST" else None, method=method)
            assert reply.status == status, path
            assert words in reply.error, path


@pytest.mark.parametrize("header", ["0", "-1", "soon", "inf", "nan", "1e999"])
def test_a_timeout_that_is_none(tmp_path_factory: pytest.TempPathFactory, header: str) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        reply = ask(server.port, INFER, numbers(), headers={"Timeout-Ms": header})
        assert reply.status == 400
        assert "the header Timeout-Ms is" in reply.error


def test_what_is_no_http(tmp_path_factory: pytest.TempPathFactory) -> None:
    with served(number_bundle(tmp_path_factory)) as (server, _):
        for content in (b"\0" * 100, b"GET\r\n\r\n", b"\x16\x03\x01 hello", b"POST " + b"/x" * 5000):
            with socket.create_connection(("127.0.0.1", server.port), LIMIT_S) as client:
                client.sendall(content)
                client.shutdown(socket.SHUT_WR)
                reply = client.recv(100)
                assert not reply or b" 400 " in reply
        assert ask(server.port, "/readyz").status == 200
