"""Texts from files: where lines end, which begin with a class, and the standard input."""

import io
import logging
import sys
from pathlib import Path

import pytest

from dynamic.data.text.text_files import text_lines
from dynamic.policies.errors import InputError

CLASSES = ("lights", "music")


def written(folder: Path, content: bytes) -> Path:
    (folder / "texts.txt").write_bytes(content)
    return folder / "texts.txt"


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\r"])
def test_a_line_ends_at_a_line_feed_alone(tmp_path: Path, inside: str) -> None:
    file = written(tmp_path, f"turn on{inside}the lights\r\n\r\nmusic\n".encode())
    lines = text_lines([file], CLASSES)
    assert [(line.name, line.text) for line in lines] == [
        (f"{file}:1", f"turn on{inside}the lights"),
        (f"{file}:3", "music"),
    ]


def test_a_mark_of_utf_8_is_no_letter(tmp_path: Path) -> None:
    (line,) = text_lines([written(tmp_path, b"\xef\xbb\xbflights\ton")], CLASSES)
    assert (line.true_class, line.text) == ("lights", "on")


def test_a_first_field_that_names_no_class_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = written(tmp_path, b"lights\tturn on\nLights\tturn off\nmusik\tplay\nplay some\n")
    with caplog.at_level(logging.WARNING, "dynamic"):
        lines = text_lines([file], CLASSES)
    assert [(line.true_class, line.text) for line in lines] == [
        ("lights", "turn on"),
        (None, "Lights\tturn off"),
        (None, "musik\tplay"),
        (None, "play some"),
    ]
    (record,) = caplog.records
    assert record.getMessage() == (
        f"2 of 4 lines have a field before a tab that names no class, and are taken whole as texts: {file}:2, {file}:3."
        " The classes are ['lights', 'music']"
    )


@pytest.mark.parametrize("content", [b"a\tb\nc\td\n", b"lights\ton\nmusic\n"])
def test_tabs_and_lines_without_a_class_are_no_fault(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dynamic"):
        assert len(text_lines([written(tmp_path, content)], CLASSES)) == 2
    assert caplog.records == []


def test_the_standard_input_is_utf_8_whatever_the_system_has(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "lights\tgr\u00fcn \u4e00\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="latin-1"))
    (line,) = text_lines([Path("-")], CLASSES)
    assert (line.name, line.true_class, line.text) == ("-:1", "lights", "gr\u00fcn \u4e00")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="latin-1"))
    with pytest.raises(InputError, match="- does not read"):
        text_lines([Path("-")], CLASSES)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match="there is no standard input"):
        text_lines([Path("-")], CLASSES)


def test_files_that_hold_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no text"):
        text_lines([written(tmp_path, b"\n \n")], CLASSES)
    with pytest.raises(InputError, match="give a text file in UTF-8"):
        text_lines([tmp_path / "missing"], CLASSES)
