"""The recipes of docs/guides/servers.md with the real programs, and children that end by sys.exit."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runtime_cases import shared_blobs

import dynamic
from dynamic.engines import forking
from dynamic.policies.control.fixed_policy import FixedPolicy

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "guides" / "servers.md").read_text(encoding="utf-8")
LIMIT_S = 120
X = np.random.default_rng(0).standard_normal((3, 12)).astype(np.float32)
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def needs(program: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(program) is None, reason=f"{program} is not installed: pip install {program}")


@pytest.fixture
def shelf(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    """A profiled bundle in the folder that programs run in."""
    return shared_blobs(tmp_path_factory).save(tmp_path / "shelf")


def page_files(folder: Path, *names: str) -> None:
    """Write the files that the page shows."""
    for name in names:
        (text,) = re.findall(rf"```python\n# {name}\n(.*?)```", PAGE, re.S)
        (folder / name).write_text(text, encoding="utf-8")


def answers(shelf: dynamic.Bundle) -> list[list[int]]:
    """What each of the bundle's points answers."""
    found = []
    for point in shelf.frontier.points:
        with shelf.runtime(policy=FixedPolicy(point.name), monitor=dynamic.FixedMonitor()) as run:
            found.append(run(X).label.tolist())
    return found


def python(folder: Path, code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=paths(),
        **options,
    )


def paths(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])} | more


def soon(found: Callable[[], Any], what: str) -> Any:
    ends = time.monotonic() + LIMIT_S
    while time.monotonic() < ends:
        if (answer := found()) is not None:
            return answer
        time.sleep(0.05)
    pytest.fail(f"{what}: not within {LIMIT_S} s")


def ended(process: subprocess.Popen[str]) -> int:
    """The exit status, once a program that was asked to end has."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("it hung, and was killed")


OPENS = """
import dynamic, os, sys, time
bundle = dynamic.load("shelf", preload=False)
run = bundle.runtime()
loaded = [name for name in ("onnxruntime", "openvino", "torch") if name in sys.modules]
import threading
print("before", loaded, threading.active_count())
"""
FORKS = """
import numpy as np
sys.stdout.flush()
child = os.fork()
if child == 0:
    print("child", run(np.zeros((1, 12), np.float32)).label.shape, flush=True)
    sys.exit(7)
ends = time.monotonic() + 100
while (done := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < ends:
    time.sleep(0.02)
if done[0] == 0:
    os.kill(child, 9)
print("status", os.waitstatus_to_exitcode(done[1]) if done[0] else "hung")
"""


def test_nothing_is_opened_before_the_first_request(tmp_path: Path, shelf: dynamic.Bundle) -> None:
    done = python(tmp_path, OPENS)
    assert done.stdout.split("\n")[0] == "before [] 1", done.stderr


def test_a_child_of_a_parent_that_has_opened_a_runtime_ends(tmp_path: Path, shelf: dynamic.Bundle) -> None:
    done = python(tmp_path, OPENS + FORKS)
    assert done.stdout.split("\n")[1:3] == ["child (1,)", "status 7"], done.stderr
    assert "forks after" not in done.stderr


CHECKS = """
import numpy as np
sys.stdout.flush()
child = os.fork()
if child == 0:
    before = os.path.exists("shelf/checks")
    results = [run(np.zeros((1, 12), np.float32)) for _ in range(2)]
    print("child", before, len(os.listdir("shelf/checks")), [r.certified for r in results], flush=True)
    sys.exit(7)
print("status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), "onnxruntime" in sys.modules)
"""


def test_a_child_runs_the_canaries_with_its_first_request(tmp_path: Path, shelf: dynamic.Bundle) -> None:
    shutil.rmtree(tmp_path / "shelf" / "checks", ignore_errors=True)
    done = python(tmp_path, OPENS + CHECKS)
    lines = ["before [] 1", "child False 1 [True, True]", "status 7 False"]
    assert done.stdout.split("\n")[:3] == lines, done.stderr


def test_canaries_that_differ_in_the_first_request_certify_nothing(
    tmp_path: Path, shelf: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(dynamic.Bundle, "agrees", lambda *_: bool(asked.append(1)))
    with dynamic.load(tmp_path / "shelf", preload=False).runtime(monitor=dynamic.FixedMonitor()) as run:
        assert (asked, run.stats().drift) == ([], False)
        assert not any(run(X).certified for _ in range(2))
        assert (asked, run.stats().drift) == ([1], None), "inputs are not watched by other scores"


def test_canaries_that_do_not_read_are_said_and_requests_are_answered(
    tmp_path: Path, shelf: dynamic.Bundle, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynamic.bundle.canaries.reports._reports", {})
    shutil.rmtree(tmp_path / "shelf" / "checks")  # or what they said when the costs were measured would be read
    with dynamic.load(tmp_path / "shelf", preload=False).runtime(monitor=dynamic.FixedMonitor()) as run:
        (tmp_path / "shelf" / "canaries.npz").write_bytes(b"")
        assert not run(X).certified
    assert sum("Nothing is certified" in message for message in caplog.messages) == 1


def test_a_limit_without_a_sensor_is_warned_of_with_the_first_request(
    tmp_path: Path, shelf: dynamic.Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    class Late(dynamic.FixedMonitor):
        starts = 0

        def start(self) -> Any:
            self.starts += 1
            return super().start()

    watch = Late()
    budget = dynamic.Budget(temperature_c=70)
    with dynamic.load(tmp_path / "shelf", preload=False).runtime(budget, monitor=watch) as run:
        assert (watch.starts, run.stats().limits_without_sensor, caplog.messages) == (0, (), [])
        run.budget = dynamic.Budget(temperature_c=60)
        assert watch.starts == 0
        run(X)
        assert watch.starts == 1
        assert sum("temperature_c=60 has no sensor" in message for message in caplog.messages) == 1
        assert len(run.stats().limits_without_sensor) == 1


@pytest.mark.parametrize("option", ["", ", preload=True"])
def test_canaries_of_a_runtime_that_preloads_are_checked_before_a_fork(
    tmp_path: Path, shelf: dynamic.Bundle, option: str
) -> None:
    code = OPENS.replace(", preload=False", option) + "if not os.fork(): os._exit(0)\nos.wait()\n"
    done = python(tmp_path, code)
    assert done.stdout.startswith("before ['onnxruntime']"), done.stderr
    assert done.stderr.count("this process forks after it has loaded onnxruntime") == 1


def test_a_fork_after_a_request_is_warned_of_once(tmp_path: Path, shelf: dynamic.Bundle) -> None:
    code = OPENS + "import numpy as np; run(np.zeros((1, 12), np.float32))\n"
    code += "for _ in range(2):\n    child = os.fork()\n    if not child: os._exit(0)\n    os.waitpid(child, 0)\n"
    done = python(tmp_path, code)
    assert done.stderr.count("this process forks after it has loaded onnxruntime") == 1
    assert "preload=False" in done.stderr


def test_the_warning_is_about_engines_alone(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forking, "_warned", False)
    monkeypatch.setattr(forking, "_LIBRARIES", ("no_such_library",))
    forking._before_fork()
    assert not caplog.records


def test_a_swap_and_a_close_before_any_request(tmp_path: Path, shelf: dynamic.Bundle) -> None:
    code = OPENS + "run.swap(bundle); run.close(); print('after', 'onnxruntime' in sys.modules)"
    done = python(tmp_path, code)
    assert "after False" in done.stdout, done.stderr


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@needs("gunicorn")
@pytest.mark.parametrize("preload", [True, False])
def test_gunicorn(tmp_path: Path, shelf: dynamic.Bundle, port: int, preload: bool) -> None:
    page_files(tmp_path, "gunicorn_app.py", "gunicorn_conf.py")
    (line,) = re.findall(r"```bash\n(gunicorn .*)\n```", PAGE)
    command = [word for word in line.split() if preload or word != "--preload"]
    command = [sys.executable, "-m", *command, "--bind", f"127.0.0.1:{port}", "--graceful-timeout", "100"]
    log = (tmp_path / "log").open("w+")
    server = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=log, stderr=subprocess.STDOUT, env=paths())

    def ask() -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LIMIT_S)
        try:
            connection.request("POST", "/", json.dumps(X.tolist()))
            return json.loads(connection.getresponse().read())["label"]
        except (ConnectionError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    try:
        expected = answers(shelf)
        assert soon(ask, "an answer of gunicorn") in expected
        assert all(ask() in expected for _ in range(10))
        began = time.monotonic()
        status = ended(server)
        took_s = time.monotonic() - began
    finally:
        server.kill()
        server.wait()
        log.close()
    output = (tmp_path / "log").read_text()
    assert status == 0, output
    assert took_s < 100, "workers ended on their own, before gunicorn would have killed them"
    assert "forks after" not in output
    assert "Traceback" not in output, output
    assert "SIGABRT" not in output


@needs("celery")
def test_celery(tmp_path: Path, shelf: dynamic.Bundle) -> None:
    page_files(tmp_path, "celery_app.py")
    for name in ("broker", "results"):
        (tmp_path / name).mkdir()
    (line,) = re.findall(r"```bash\n(celery .*)\n```", PAGE)
    where = paths(BROKER="filesystem://", RESULTS=f"file://{tmp_path / 'results'}")
    # a broker without a server, for the test alone
    options = {"data_folder_in": str(tmp_path / "broker"), "data_folder_out": str(tmp_path / "broker")}
    options["control_folder"] = str(tmp_path / "control")
    setting = f"\napp.conf.broker_transport_options = {options!r}\n"
    file = tmp_path / "celery_app.py"
    file.write_text(file.read_text(encoding="utf-8") + setting, encoding="utf-8")
    log = (tmp_path / "log").open("w+")
    command = [sys.executable, "-m", *line.split(), "--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    worker = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=log, stderr=subprocess.STDOUT, env=where)
    try:
        code = f"import celery_app\nfor _ in range(4): print(celery_app.classify.delay({X.tolist()}).get(timeout=40))"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=where, capture_output=True, text=True, timeout=LIMIT_S
        )
        found = done.stdout.split("\n")[:4]
        assert set(found) <= set(map(str, answers(shelf))), done.stderr + (tmp_path / "log").read_text()
        status = ended(worker)
    finally:
        worker.kill()
        worker.wait()
        log.close()
    output = (tmp_path / "log").read_text()
    assert status == 0, output
    assert "Traceback" not in output, output
    assert "SIGABRT" not in output
    assert "forks after" not in output


SERVES = """
import dynamic, numpy as np, signal, sys, time
run = dynamic.load("shelf").runtime(workers=2)
signal.signal(signal.SIGTERM, lambda *_: run.close(drain=True, timeout_s=100))
print("ready", flush=True)
accepted = 0
try:
    while True:
        run(np.zeros((1, 12), np.float32))
        run.submit(np.zeros((2, 12), np.float32)).add_done_callback(lambda f: f.result())
        accepted += 2
        time.sleep(0)
except dynamic.DynamicError as error:
    run.close(drain=True)
    print(type(error).__name__, run.stats().requests + run.stats().shed - accepted in (0, 1), flush=True)
"""


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.2])
def test_sigterm_ends_a_service(tmp_path: Path, shelf: dynamic.Bundle, wait_s: float) -> None:
    service = subprocess.Popen(
        [sys.executable, "-c", SERVES], cwd=tmp_path, text=True, stdout=subprocess.PIPE, env=paths()
    )
    with service:
        try:
            assert service.stdout is not None
            assert service.stdout.readline() == "ready\n"
            time.sleep(wait_s)
            assert ended(service) == 0
            assert service.stdout.read() == "ClosedError True\n"
        finally:
            service.kill()


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    yield
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
