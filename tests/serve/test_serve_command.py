"""`python -m dynamic serve` as a process: its answers, its end, and what stops it from starting."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
from support.serving.gates import until
from support.serving.serve_cases import LIMIT_S, PIXELS, X, ask, encoded, image_bundle, number_bundle, numbers

ROOT = Path(__file__).resolve().parents[2]
ONE = numbers(X[:1], name="input")


def environment(**more: str) -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "error"} | more


@contextmanager
def started(
    folder: Path, *arguments: str, code: str | None = None, **more: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server as a process, and the line that it prints once it listens."""
    command = ["-m", "dynamic", "serve", *arguments] if code is None else ["-c", code]
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment(**more),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline()
        finally:
            process.kill()


def port_of(line: str) -> int:
    return int(line.partition("127.0.0.1:")[2].partition("/")[0])


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and what is on stderr."""
    _, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, err


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shelf`, of numbers, and `pictures`."""
    folder = tmp_path_factory.mktemp("desk")
    number_bundle(tmp_path_factory).save(folder / "shelf")
    image_bundle(tmp_path_factory).save(folder / "pictures")
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_until_a_signal(desk: Path, number: signal.Signals) -> None:
    arguments = ("shelf", "--port", "0", "--grpc-port", "0", "--latency-ms", "10000", "--workers", "1")
    with started(desk, *arguments) as (process, line):
        port = port_of(line)
        assert line.startswith(f"shelf: http://127.0.0.1:{port}/v2/models/shelf, gRPC on 127.0.0.1:")
        assert ask(port, "/readyz").status == 200
        assert len(ask(port, "/v2/models/shelf/infer", ONE).output("label")) == 1
        with triton_grpc.InferenceServerClient(line.rstrip().rpartition(" ")[2]) as client:
            assert client.is_model_ready("shelf")
        process.send_signal(number)
        assert ended(process) == (0, "")


def test_options_of_the_command(desk: Path) -> None:
    (desk / "token").write_text("secret\n")
    arguments = (
        "pictures",
        "--port",
        "0",
        "--name",
        "camera",
        "--token-file",
        "token",
        "--log-json",
        "--max-drop",
        "0.5",
    )
    with started(desk, *arguments) as (process, line):
        headers = {"Content-Type": "image/png"}
        path, port = "/v2/models/camera/infer", port_of(line)
        assert ask(port, path, encoded(PIXELS[0]), headers=headers).status == 401
        headers["Authorization"] = "Bearer secret"
        assert ask(port, path, encoded(PIXELS[0]), headers=headers).status == 200
        process.send_signal(signal.SIGTERM)
        code, err = ended(process)
        assert code == 0
        assert [line[:8] for line in err.splitlines()] == ['{"time":'] * 2


def test_the_folder_one_is_in(desk: Path) -> None:
    with started(desk / "shelf", ".", "--port", "0") as (process, line):
        port = port_of(line)
        assert line == f"shelf: http://127.0.0.1:{port}/v2/models/shelf\n"
        assert len(ask(port, "/v2/models/shelf/infer", ONE).output("label")) == 1
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")


def test_a_token_of_the_environment(desk: Path) -> None:
    with started(desk, "shelf", "--port", "0", DYNAMIC_SERVE_TOKEN="secret\n") as (process, line):
        assert ask(port_of(line), "/v2").status == 401
        assert ask(port_of(line), "/v2", headers={"Authorization": "Bearer secret"}).status == 200
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (0, "")


GATED = """
import sys, time
from pathlib import Path
import dynamic
from dynamic.serve import ServeOptions
from dynamic.serve.opening import serve_until_signal
from dynamic.policies import BudgetPolicy

bundle = dynamic.load("shelf")
engine = bundle.open(threads=1)
run_engine = engine.run

def gated(*arguments, **options):
    Path("entered").touch()
    while not Path("go").exists():
        time.sleep(0.01)
    return run_engine(*arguments, **options)

engine.run = gated
monitor = dynamic.FixedMonitor()
run = dynamic.Runtime.on_engine(bundle, bundle.frontier, engine, dynamic.Budget(), monitor, BudgetPolicy())
sys.exit(not serve_until_signal(run, ServeOptions(port=0, drain_s=DRAIN_S)))
"""


@pytest.mark.parametrize(("drain_s", "code"), [("100", 0), ("0.2", 1)])
def test_a_signal_while_a_request_runs(desk: Path, drain_s: str, code: int) -> None:
    for name in ("entered", "go"):
        (desk / name).unlink(missing_ok=True)
    with (
        started(desk, code=GATED.replace("DRAIN_S", drain_s)) as (process, line),
        ThreadPoolExecutor(1) as clients,
    ):
        port = port_of(line)
        running = clients.submit(ask, port, "/v2/models/shelf/infer", ONE)
        until((desk / "entered").exists, "a request runs")
        process.send_signal(signal.SIGTERM)
        if code == 0:
            until(lambda: ask(port, "/readyz").status == 503, "it is not ready any more")
            assert ask(port, "/v2/models/shelf/infer", ONE).status == 503
            (desk / "go").touch()
            assert running.result().status == 200
        assert ended(process)[0] == code
        if code:
            (desk / "go").touch()
            assert running.exception() is not None or running.result().status >= 500


def refused(desk: Path, *arguments: str, **more: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dynamic", "serve", *arguments],
        cwd=desk,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
        timeout=LIMIT_S,
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


def test_a_port_in_use(desk: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, line = refused(desk, "shelf", "--port", port)
        assert (code, line.startswith(f"error: 127.0.0.1:{port} cannot be listened on (Address already in use)")) == (
            1,
            True,
        )
        code, line = refused(desk, "shelf", "--port", "0", "--grpc-port", port)
        assert (code, "give another address with --host or --grpc-port" in line) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("nowhere",), 1, "nowhere"),
        (("shelf", "--engine", "tensorrt"), 1, "tensorrt"),
        (("shelf", "--latency-ms", "1e-6"), 2, "meets the budget on this machine: "),
        (("shelf", "--latency-ms", "-1"), 2, "--latency-ms -1.0 must be a positive number"),
        (("shelf", "--workers", "0"), 2, "--workers 0 must be a whole number of at least 1"),
        (("shelf", "--port", "70000"), 2, "--port 70000 must be a whole number of at least 0 and at most 65535"),
        (("shelf", "--token-file", "nothing"), 2, "--token-file nothing does not read"),
        (("shelf", "--name", "a/b"), 2, "--name 'a/b' must be a word without a slash"),
    ],
)
def test_what_stops_it_from_starting(desk: Path, arguments: tuple[str, ...], code: int, words: str) -> None:
    returned, line = (
        refused(desk, *arguments, "--port", "0") if "--port" not in arguments else refused(desk, *arguments)
    )
    assert returned == code
    assert line.startswith("error: ")
    assert words in line


def test_without_its_extra(desk: Path) -> None:
    hide = "import sys; sys.modules['uvicorn'] = None; sys.argv = ['dynamic', 'serve', 'shelf']; "
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}from dynamic.__main__ import main; main()"],
        cwd=desk,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr == (
        'error: dynamic.serve needs uvicorn, which is not installed: pip install "dynamic-inference[serve]"\n'
    )
