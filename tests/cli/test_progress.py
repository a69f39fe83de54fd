"""Progress where stderr is no terminal: lines with count, rate and remaining time, by an injected clock."""

import logging
from collections.abc import Iterator

import pytest

from dynamic import progress
from dynamic.progress import track


def clock(times: list[float]) -> Iterator[float]:
    yield from times


def test_a_line_every_five_seconds(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 5.0)
    # the start, then before each of six items: lines are due at 6 s and at 11 s
    ticks = iter([0.0, 0.0, 2.0, 6.0, 8.0, 10.0, 11.0])
    with caplog.at_level(logging.INFO, "dynamic.progress"):
        assert list(track("abcdef", "training", clock=lambda: next(ticks))) == list("abcdef")
    assert caplog.messages == [
        "training: 2 of 6, 6 s, about 12 s remain",
        "training: 5 of 6, 11 s, about 2 s remain",
    ]


def test_no_total_and_no_lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY_S", 5.0)
    with caplog.at_level(logging.INFO, "dynamic.progress"):
        ticks = iter([0.0, 6.0, 7.0])
        assert list(track(clock([1.0, 2.0]), "reading", clock=lambda: next(ticks))) == [1.0, 2.0]
        assert caplog.messages == ["reading: 0, 6 s"]
        assert list(track("ab", "reading", shown=False)) == ["a", "b"]
    assert len(caplog.messages) == 1


def test_commands_print_the_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from dynamic.cli import app

    def command(_: object) -> None:
        ticks = iter([0.0, 6.0, 7.0])
        list(track("ab", "exporting", clock=lambda: next(ticks)))

    monkeypatch.setattr(progress, "EVERY_S", 5.0)
    monkeypatch.setattr(app, "app", command)
    app.main([])
    assert capsys.readouterr().err == "exporting: 0 of 2, 6 s\n"
    app.logging.getLogger("dynamic.progress").info("after a command nobody prints")
    assert capsys.readouterr().err == ""
