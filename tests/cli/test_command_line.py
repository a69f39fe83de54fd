"""The shell commands, from images in folders to a report, against the library's own calls."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.shell.wrong_invocations import COMMANDS, UNREAD, write_files
from torch import nn
from typer.main import get_command

import dynamic
from dynamic.__main__ import main
from dynamic.cli.app import app
from dynamic.data import digits
from dynamic.models import save_weights
from dynamic.policies import BudgetPolicy
from dynamic.policies.certification.certificates import wilson
from dynamic.policies.certification.drift import ScoreBins
from dynamic.report.run_tables import run_text
from dynamic.runtime.result import FeedbackEstimate, Statistics
from dynamic.simulate import Poisson, device, simulate

FACTORIES = """
from torch import nn

def small(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
def large(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
def number(): return 7
"""


@dataclass(frozen=True)
class Desk:
    """What a user has lying around: networks, their weights, images; and what the first command printed."""

    folder: Path
    networks: list[nn.Module]
    shelf: Path
    printed: str


def shell(*arguments: str | Path) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as exited:
        main([str(argument) for argument in arguments])
    return int(exited.value.code or 0), out.getvalue(), err.getvalue()


def build_arguments(folder: Path, out: Path) -> list[str]:
    return [
        *("build", "-o", str(out), "--data", str(folder / "data"), "--split", "test", "--mean", "0.5", "--std", "0.25"),
        *("--network", "digit_factories:small", "--weights", str(folder / "small.safetensors")),
        *("--network", "digit_factories:large", "--weights", str(folder / "large.safetensors")),
    ]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    images = digits()
    for split, numbers in {"test": range(900, 1400), "report": range(1400, 1500)}.items():
        for number in numbers:
            place = folder / "data" / split / images.classes[images.labels[number]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[number, ..., 0]).save(place / f"{number}.png")
    (folder / "digit_factories.py").write_text(FACTORIES)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr(sys, "path", [*sys.path])
        sys.path.append(str(folder))
        import digit_factories  # type: ignore[import-not-found]

        inputs = torch.from_numpy(dynamic.Preprocess.of((0.5,), (0.25,))(images.images[:900]))
        labels = torch.from_numpy(images.labels[:900])
        networks = []
        for name, steps in (("small", 80), ("large", 120)):
            torch.manual_seed(0)
            network = getattr(digit_factories, name)()
            optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
            for _ in range(steps):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(inputs), labels).backward()
                optimizer.step()
            save_weights(network, folder / f"{name}.safetensors")
            networks.append(network)
        sys.path.pop()
        sys.modules.pop("digit_factories")

        shelf = folder / "shelf"
        options = ["--limit", "480", "--seed", "3", "--score", "margin", "--max-drop", "0.01", "--max-drop", "0.1"]
        code, out, err = shell(*build_arguments(folder, shelf), *options)
        assert (code, err) == (0, "")
        code, _, _ = shell("profile", shelf, "--seconds", "0.1", "--batch", "1", "--batch", "8")
        assert code == 0
        yield Desk(folder, networks, shelf, out)


def test_build_is_the_library_s(desk: Desk) -> None:
    bundle = dynamic.load(desk.shelf)
    names = ("small", "large")
    assert bundle.cascade == dynamic.Cascade(desk.networks, names=names).fingerprint()
    assert bundle.preprocess == dynamic.Preprocess.of((0.5,), (0.25,))
    assert bundle.classes == tuple("0123456789")
    assert bundle.ladder == dynamic.certify(bundle.records, (0.01, 0.1), score="margin")
    assert len(bundle.records) == 480
    for point in bundle.ladder.points:
        row = rf"^{re.escape(point.name)} .* {point.risk:.4f} .* {point.accuracy.mid:.4f} "
        assert re.search(row, desk.printed, re.MULTILINE), desk.printed
    assert str(desk.shelf) in desk.printed
    assert "certified" in desk.printed


def test_profile_keeps_what_it_prints(desk: Desk) -> None:
    code, out, _ = shell("profile", desk.shelf, "--batch", "1", "--batch", "4", "--seconds", "0.1", "--threads", "1")
    costs = dynamic.load(desk.shelf).costs
    assert code == 0
    assert costs is not None
    assert costs.batch == (1, 4)
    assert costs.threads == 1
    for stage, name in enumerate(("small", "large")):
        for k, rows in enumerate(costs.batch):
            figures = (costs.latency_ms[stage][k], costs.latency_p95_ms[stage][k])
            assert re.search(rf"^{name} +{rows} +{figures[0]:.3f} +{figures[1]:.3f} ", out, re.MULTILINE), out
    assert f"large {costs.memory_mb[1]:.1f} MB" in out
    assert "not measured: energy" in out
    code, out, err = shell("profile", desk.shelf, "--batch", "1", "--seconds", "0.1", "--json")
    assert code == 0
    words = "about 0 s, longer where a request takes more than 10 ms, and some seconds for memory"
    assert err == f"profiling batches of 1: {words}\n"
    figures = json.loads(out)
    costs = dynamic.load(desk.shelf).costs
    assert costs is not None
    assert figures["latency_ms"] == [list(row) for row in costs.latency_ms]
    assert figures["points"][0]["name"] == "reference"


def test_a_report_leaves_out_what_has_no_class_or_does_not_read(desk: Desk, tmp_path: Path) -> None:
    shutil.copytree(desk.folder / "data" / "report", tmp_path / "files")
    (tmp_path / "files" / "7" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "files" / "elsewhere").mkdir()
    shutil.copy(next((tmp_path / "files" / "7").glob("1*.png")), tmp_path / "files" / "elsewhere")
    code, out, err = shell("report", desk.shelf, "-o", tmp_path / "page.html", "--images", tmp_path / "files")
    assert (code, err) == (0, "")
    assert "left out: 2 of 102 inputs, such as " in out
    assert "the 100 inputs that were given" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_run_answers_as_the_library_does(desk: Desk) -> None:
    files = sorted((desk.folder / "data" / "report").rglob("*.png"))
    with dynamic.load(desk.shelf).runtime(dynamic.Budget(max_drop=0.1)) as runtime:
        own = [runtime(np.asarray(Image.open(file))) for file in files]
    right = np.mean([result.name == file.parent.name for result, file in zip(own, files, strict=True)])

    code, out, err = shell("run", desk.shelf, desk.folder / "data", "--split", "report", "--max-drop", "0.1", "--json")
    assert (code, err) == (0, "")
    *rows, last = map(json.loads, out.splitlines())
    assert sorted(row["file"] for row in rows) == [str(file) for file in files]
    by_file = {str(file): result for file, result in zip(files, own, strict=True)}
    assert [row["file"] for row in rows] != [str(file) for file in files], "one class after the other looks like drift"
    own = [by_file[row["file"]] for row in rows]
    assert [row["label"] for row in rows] == [result.label for result in own]
    assert [row["point"] for row in rows] == [result.decision.point.name for result in own]
    assert rows[0]["probability"] == pytest.approx(own[0].probability, rel=1e-5)
    assert last["summary"]["accuracy"] == pytest.approx(right)
    assert last["summary"]["known"] == len(files) == 100
    assert [row["certified"] for row in rows] == [result.certified for result in own]
    estimate = last["summary"]["feedback"]
    assert estimate["count"] == 100
    assert estimate["accuracy"] == pytest.approx(wilson(round(100 * right), 100))
    points = [result.decision.point.operating_point for result in own]
    assert estimate["expected"] == pytest.approx(np.mean([point.accuracy.mid for point in points]))

    code, out, _ = shell(
        "run", desk.shelf, *files[:3], "--latency-ms", "0.000001", "--percentile", "mean", "--in-order"
    )
    own = [by_file[str(file)] for file in files]
    lines = out.splitlines()
    assert code == 0
    assert "is violated" in lines[0]
    assert lines[1].startswith(f"{files[0]}  {own[0].name}  ")
    assert lines[4].startswith("3 inputs, accuracy ")
    assert any(re.search(r"^accuracy .* by 3 labels of feedback, expected 0\.\d{4}$", line) for line in lines)
    assert any("with fingerprint" in line for line in lines), "what the bounds rest on"


@pytest.mark.parametrize("on_drift", [None, "safest", "report"])
def test_run_tells_of_drift(
    desk: Desk, on_drift: str | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # a calibration where nothing scored as low as anything does, and costs far apart
    bundle = dynamic.load(desk.shelf)
    assert bundle.costs is not None
    exits = (ScoreBins((2.0,), (0, 500)),) * 2
    ladder = replace(bundle.ladder, points=tuple(replace(point, exits=exits) for point in bundle.ladder.points))
    far = tuple(tuple(ms * rows for rows in bundle.costs.batch) for ms in (1.0, 100.0))
    costs = replace(bundle.costs, latency_ms=far, latency_p95_ms=far, threads=1)
    monkeypatch.setattr(dynamic, "load", lambda _: replace(bundle, ladder=ladder, costs=costs))
    options = ["--threads", "1", "--max-drop", "0.5", *([] if on_drift is None else ["--on-drift", on_drift])]
    code, out, _ = shell("run", desk.shelf, desk.folder / "data", "--split", "report", *options, "--json")
    assert code == 0
    *rows, last = map(json.loads, out.splitlines())
    assert last["summary"]["drift"] is True
    assert not rows[-1]["certified"]
    assert ("have drifted" in rows[-1]["reason"]) == (on_drift == "safest")
    assert "have drifted" not in rows[0]["reason"]
    assert rows[0]["point"] != "reference"
    assert (rows[-1]["point"] == "reference") == (on_drift == "safest")
    assert len(caplog.records) == 1
    _, out, _ = shell("run", desk.shelf, desk.folder / "data", "--split", "report", *options, "--quiet")
    assert "\ninputs have drifted from those of the calibration" in out


def test_the_text_of_a_run() -> None:
    stats = Statistics(4, 4, (0.75, 0.25), {"best": 1.0}, 0, 0.5, 2.0, None, None)
    lines = run_text(stats, [2.0] * 4, [], ("small", "large")).splitlines()
    assert lines[-1] == "inputs were not watched for drift"
    estimate = FeedbackEstimate(200, (0.85, 0.9, 0.94), 0.925)
    lines = run_text(replace(stats, drift=False, feedback=estimate), [2.0] * 4, [], ("small", "large")).splitlines()
    assert lines[-2] == "no drift from the inputs of the calibration was noticed"
    assert lines[-1] == "accuracy 0.9000 (0.8500 to 0.9400) by 200 labels of feedback, expected 0.9250"
    unlabelled = replace(stats, drift=True, feedback=replace(estimate, expected=None))
    assert run_text(unlabelled, [2.0] * 4, [], ("small", "large")).endswith("of feedback, expected unknown")


def test_run_reads_zips_and_unlabelled_images(desk: Desk, tmp_path: Path) -> None:
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", desk.folder / "data")
    _, folder, _ = shell("run", desk.shelf, desk.folder / "data", "--split", "report", "--quiet")
    code, zipped, _ = shell("run", desk.shelf, packed, "--split", "report", "--quiet")
    assert code == 0
    assert zipped.splitlines()[0] == folder.splitlines()[0]
    assert "of 100 whose class is given" in zipped
    shutil.copy(next((desk.folder / "data" / "report" / "7").iterdir()), tmp_path / "seven.png")
    assert "1 inputs, no classes given" in shell("run", desk.shelf, tmp_path / "seven.png")[1]


def test_run_leaves_out_what_does_not_read_and_lists_it(desk: Desk, tmp_path: Path) -> None:
    good = sorted((desk.folder / "data" / "report" / "7").iterdir())[:3]
    for number, file in enumerate(good):
        shutil.copy(file, tmp_path / f"{number}.png")
    (tmp_path / "3.png").write_bytes(b"")
    Image.new("L", (9, 9)).save(tmp_path / "4.png")  # the network takes 8 x 8
    code, out, err = shell("run", desk.shelf, tmp_path, "--quiet")
    assert (code, err) == (0, "")
    assert out.startswith("3 inputs")
    left_out = out[out.index("2 of 5 inputs were skipped:") :].splitlines()
    assert left_out[1] == f"  {tmp_path / '3.png'}: the file is empty"
    assert left_out[2].startswith(f"  {tmp_path / '4.png'}: ")
    assert "expected [1, 8, 8]" in left_out[2]
    code, out, _ = shell("run", desk.shelf, tmp_path, "--json")
    *rows, last = map(json.loads, out.splitlines())
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    summary = last["summary"]
    assert summary["inputs"] == 3
    assert [Path(entry["file"]).name for entry in summary["left_out"]] == ["3.png", "4.png"]
    code, out, err = shell("run", desk.shelf, tmp_path / "3.png")
    assert (code, out) == (1, "")
    assert (
        err
        == f"error: {tmp_path / '3.png'} does not read as an image (the file is empty): remove it, or copy it again\n"
    )


def test_simulate_reports_as_the_library_does(desk: Desk) -> None:
    options = ["--rate-hz", "2", "--duration-s", "300", "--poisson", "--background-load", "0.5", "--battery", "0.6"]
    code, out, err = shell(
        *("simulate", desk.shelf, "--device", "mid-range-phone", *options),
        *("--max-drop", "0.1", "--battery-floor", "0.3", "--seed", "5", "--json"),
    )
    assert (code, err) == (0, "")
    bundle = dynamic.load(desk.shelf)
    own = simulate(
        bundle.frontier,
        bundle.records.select(bundle.records.part == 1),
        device=device("mid-range-phone"),
        workload=Poisson(2, 300),
        policy=BudgetPolicy(),
        budget=dynamic.Budget(max_drop=0.1, battery_floor=0.3),
        seed=5,
        background_load=0.5,
        battery=0.6,
    )
    assert json.loads(out) == json.loads(json.dumps(own.to_json()))
    code, out, _ = shell("simulate", desk.shelf, "--device", "mid-range-phone", "--duration-s", "10")
    assert code == 0
    assert out.startswith("requests: 1 a second, Constant, for 10 s\nlimits: none\nsurroundings: ambient C ")
    assert "\nsimulated on mid-range phone" in out
    code, out, _ = shell("simulate", "--list")
    assert code == 0
    assert "mid-range-phone: " in out


def test_simulate_runs_a_scenario(desk: Desk) -> None:
    command = ["simulate", desk.shelf, "--device", "mid-range-phone", "--scenario", "contention", "--duration-s", "20"]
    code, out, err = shell(*command, "--deadline-ms", "0.001", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report["simulated"] is True
    assert report["deadline_miss_share"] > 0.9  # the limit that was given, not the scenario's
    assert report["hours"] == pytest.approx(20 / 3600, rel=0.01)
    limits = ["--energy-mj", "1", "--battery-duration-s", "60", "--temperature-c", "40", "--battery-floor", "0.1"]
    assert shell("simulate", desk.shelf, "--device", "laptop", "--duration-s", "5", *limits)[0] == 0


@pytest.fixture(scope="module")
def mistakes(desk: Desk) -> Desk:
    """The desk with files that are wrong."""
    write_files(desk.folder)
    shutil.copytree(desk.folder / "data" / "test" / "3", desk.folder / "one" / "3")
    shutil.copytree(desk.shelf, desk.folder / "corrupt")
    (desk.folder / "corrupt" / "backbones" / "0.weights").write_bytes(b"short")
    return desk


def test_there_are_sixty_wrong_invocations() -> None:
    assert len(COMMANDS) + len(UNREAD) >= 60
    assert {command.split()[0] for command, _, _ in COMMANDS.values()} >= set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", COMMANDS)
def test_a_mistake_prints_one_line(mistakes: Desk, case: str) -> None:
    command, expected, message = COMMANDS[case]
    code, _, err = shell(*command.split())
    assert (code, err.count("\n")) == (expected, 1), err
    assert err.startswith("error: ")
    assert re.search(message, err), err


@pytest.mark.parametrize("case", UNREAD)
def test_a_command_that_does_not_read_says_how_to_get_help(mistakes: Desk, case: str) -> None:
    code, _, err = shell(*UNREAD[case].split())
    assert code == 2
    assert "--help" in err or "requires an argument" in err
    assert "Traceback" not in err


def test_the_device_s_commands_never_import_torch(desk: Desk) -> None:
    code = f"""
import sys
from dynamic.__main__ import main
from dynamic.cli.app import app
for command in ("--version", "profile {desk.shelf} --seconds 0.05", "simulate {desk.shelf} --device mid-range-phone",
                "run {desk.shelf} {desk.folder}/data --split report --quiet"):
    try:
        main(command.split())
    except SystemExit as exited:
        assert not exited.code, command
print([name for name in ("torch", "onnx", "sklearn") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == f"dynamic-inference {dynamic.__version__}"
    assert done.stdout.splitlines()[-1] == "[]"
    # how long a profile takes, and, on a busy machine, how far it is
    others = [line for line in done.stderr.splitlines() if not re.match("profiling|inference", line)]
    assert others == []


def test_python_dash_m(desk: Desk) -> None:
    command = [sys.executable, "-m", "dynamic", "run", "nowhere", "data"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=desk.folder)
    assert done.returncode == 1
    assert done.stderr.startswith("error: nowhere is no bundle")
