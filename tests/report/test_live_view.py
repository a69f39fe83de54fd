"""The live view: what it shows is the runtime's, it fits 80 columns, and it ends with its block."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from support.runtime_cases import Clock, Fake, faked, monitor, shared_blobs

import dynamic
from dynamic.data import digits
from dynamic.errors import SettingError
from dynamic.report.live_state import latency_words, live_state
from dynamic.report.live_view import LiveView
from dynamic.runtime.runtime import Runtime

BUDGET = dynamic.Budget(latency_ms=20, memory_mb=300, battery_floor=0.2, temperature_c=70)
# a shell starts jobs in the background with SIGINT ignored, and so would what they start
SHELL = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("dynamic", run_name="__main__", alter_sys=True)
"""
COLORS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
READINGS = {
    "cpu_load": 0.25,
    "memory_process_mb": 120.0,
    "memory_available_mb": 800.0,
    "battery": 0.75,
    "plugged": False,
    "temperature_c": 41.5,
}


@pytest.fixture
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    bundle = shared_blobs(tmp_path_factory)
    with faked(bundle, Fake(), BUDGET, monitor=monitor(**READINGS)) as runtime:
        yield runtime


def _shown(view: LiveView, width: int = 80) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width, force_terminal=True, color_system=None).print(view.picture())
    return stream.getvalue()


def test_the_picture_holds_what_the_runtime_says(run: Runtime) -> None:
    view = LiveView(run, io.StringIO(), 1.0)
    for _ in range(4):
        view.add(run(np.zeros(12, np.float32)))
    text = _shown(view)
    assert max(map(len, text.splitlines())) <= 80
    decision = run.deployment.decision
    assert decision is not None
    words = " ".join(re.sub("[│╭╮╰╯─]", " ", text).split())
    assert f"point {decision.point.name}" in words
    assert str(decision.reason) in words
    for part in ("25% used by others", "120 MB of 300 MB allowed, 800 MB free", "75%, on battery, floor 20%"):
        assert part in words
    assert "41.5 C of 70 C allowed" in words
    assert "limit 20 ms" in words
    for share, stage in zip(run.stats().stage_shares, run.bundle.spec.stages, strict=True):
        assert f"{share:4.0%} {stage.name}" in text
    assert "4, " in words[words.index("requests") :]


def test_before_any_request_it_says_so(run: Runtime) -> None:
    view = LiveView(run, io.StringIO(), 1.0)
    assert view.line().startswith("0 requests, ")
    assert "latency" in _shown(view)


def test_recent_latency_is_that_of_new_requests(run: Runtime) -> None:
    run(np.zeros(12, np.float32))
    first = live_state(run, None, (), 10.0)
    for _ in range(3):
        run(np.zeros(12, np.float32))
    second = live_state(run, first, (1.0, 2.0, 3.0), 12.0)
    total = second.stats.mean_latency_ms * 4 - first.stats.mean_latency_ms
    assert second.recent_ms == pytest.approx(total / 3)
    assert second.rate_hz == 1.5  # 3 in 2 seconds
    assert second.p95_ms == pytest.approx(2.9)
    assert "measured p95 2.9 ms" in latency_words(second)
    assert live_state(run, second, (), 13.0).recent_ms is None


def test_a_change_of_the_point_is_listed(run: Runtime) -> None:
    clock = Clock()
    view = LiveView(run, io.StringIO(), 1.0, clock)
    run(np.zeros(12, np.float32))
    view.refresh()
    clock.now += 2.5
    run.budget = dynamic.Budget(latency_ms=2)  # "small" takes 1 ms, the others 10 and 6
    run(np.zeros(12, np.float32))
    view.refresh()
    assert re.search(r"2\.5 s  small", _shown(view))


def test_without_a_terminal_it_writes_lines_and_ends(run: Runtime) -> None:
    stream = io.StringIO()
    threads = threading.active_count()
    with dynamic.watch(run, stream, every_s=3600) as view:
        view.add(run(np.zeros(12, np.float32)))
    assert threading.active_count() == threads
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("1 requests, point ")
    assert "\x1b" not in line


def test_an_error_of_the_block_is_not_swallowed(run: Runtime) -> None:
    with pytest.raises(KeyboardInterrupt), dynamic.watch(run, io.StringIO(), every_s=3600):
        raise KeyboardInterrupt


def test_a_time_out_of_range_is_refused(run: Runtime) -> None:
    with pytest.raises(SettingError, match="every_s=0 must be a number of seconds above 0"):
        dynamic.watch(run, every_s=0)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of digits, and pictures for it."""
    import torch
    from torch import nn

    folder, pictures = tmp_path_factory.mktemp("live"), digits()
    preprocess = dynamic.Preprocess.of()
    x, y = torch.from_numpy(preprocess(pictures.images[:400])), torch.from_numpy(pictures.labels[:400])
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(64, w), nn.ReLU(), nn.Linear(w, 10)) for w in (4, 32)]
    bundle = dynamic.build(networks, [(x, y)], preprocess=preprocess, classes=pictures.classes, progress=False)
    bundle.save(folder / "shelf").profile(batch=(1,), seconds=0.02, progress=False)
    for number in range(2000):
        name = folder / "pictures" / f"{number}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(pictures.images[number % 1000, ..., 0]).save(name)
    return folder


def test_ctrl_c_on_a_terminal_ends_with_the_summary(shelf: Path) -> None:
    master, slave = pty.openpty()
    # 60,000 pictures take longer than the signal: the folder is given thirty times
    command = [sys.executable, "-c", SHELL, "run", "shelf", *["pictures"] * 30, "--watch"]
    environment = {**os.environ, "COLUMNS": "80", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(
        command, cwd=shelf, stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True
    )
    os.close(slave)
    output, sent = "", False
    while True:
        ready, _, _ = select.select([master], [], [], 120)
        assert ready, f"nothing was written for two minutes: {output[-500:]}"
        try:
            part = os.read(master, 65536).decode(errors="replace")
        except OSError:  # the terminal closed with the process
            break
        if not part:
            break
        output += part
        if not sent and re.search(r"requests +[1-9]", COLORS.sub("", output)):
            process.send_signal(signal.SIGINT)
            sent = True
    os.close(master)
    assert process.wait() == 0, output[-2000:]
    assert sent
    assert "Traceback" not in output
    count = re.search(r"(\d+) inputs, ", output[output.rindex("Ctrl-C ends") :])  # the summary
    assert count is not None
    assert 0 < int(count[1]) < 60_000
    assert "\x1b[?25h" in output  # the cursor is shown again


def test_the_shell_writes_lines_into_a_file(shelf: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamic", "run", "shelf", "pictures/1.png", "pictures/2.png", "--watch"],
        cwd=shelf, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "2 requests, point " in done.stdout
    assert "2 inputs, no classes given" in done.stdout
    assert "\x1b" not in done.stdout
    both = subprocess.run(
        [sys.executable, "-m", "dynamic", "run", "shelf", "pictures/1.png", "--watch", "--json"],
        cwd=shelf, capture_output=True, text=True,
    )  # fmt: skip
    assert both.returncode == 2
    assert "--watch shows a view for people" in both.stderr
