"""Options of a server, and the token that a file or the environment has."""

from pathlib import Path
from typing import Any

import pytest

from dynamic.errors import SettingError
from dynamic.serve import ServeOptions
from dynamic.serve.options import checked_name, token_from


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("port", [-1, 65_536, "80", True, 1.5]),
        ("grpc_port", [-1, 65_536, "80"]),
        ("workers", [0, True, 1.0, None]),
        ("queue", [0, "many"]),
        ("max_batch", [0]),
        ("max_request_mb", [0, -1, float("inf"), float("nan"), None, True]),
        ("max_json_mb", [0, float("nan")]),
        ("max_megapixels", [0.0, 1e308]),
        ("timeout_ms", [0, -5.0, float("nan"), 2 * 10**12]),
        ("drain_s", [-1, float("inf"), None]),
        ("host", ["", None]),
        ("name", ["", "a/b", "..", 3]),
        ("token", ["", "schlüssel", "a b", "a\n", " a"]),
    ],
)
def test_values_out_of_range(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SettingError) as raised:
            ServeOptions(**{option: value})
        assert option in str(raised.value)
        assert option == "token" or repr(value) in str(raised.value)


def test_limits() -> None:
    options = ServeOptions(max_request_mb=1.5, drain_s=0, timeout_ms=None, port=65_535)
    assert options.most_bytes == 1_500_000
    assert options.most_json_bytes == 2_000_000
    assert options.most_open_bytes == 24_000_000


def test_a_folder_without_a_name() -> None:
    with pytest.raises(SettingError, match=r"name='' must be a word without a slash.* Give one with --name"):
        checked_name(Path("/").resolve().name)
    assert checked_name("shelf") == "shelf"


def test_a_number_that_is_too_long_to_be_written() -> None:
    with pytest.raises(SettingError, match=r"max_request_mb=.* at most 1e\+12"):
        ServeOptions(max_request_mb=10**5000)


def test_a_token_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\n")
    assert token_from(None, file) == "secret"
    assert token_from("other", None) == "other"
    assert token_from(" other\n", None) == "other", "what clients send is stripped too"
    assert token_from(None, None) is None
    with pytest.raises(SettingError, match="a token is given twice"):
        token_from("other", file)
    file.write_text("\n")
    with pytest.raises(SettingError, match="is empty"):
        token_from(None, file)
    file.write_bytes(b"\xff")
    with pytest.raises(SettingError, match="does not read"):
        token_from(None, file)
