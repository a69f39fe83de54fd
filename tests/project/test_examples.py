"""Every example, run as a user runs it: offline, in an empty folder; the later ones take the first one's bundle."""

import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dynamic

ROOT = Path(__file__).resolve().parents[2]
NETWORKS = ["resnet8-w8", "resnet14-w16", "resnet14-w40"]


def run(folder: Path, *command: str) -> str:
    """What an example prints."""
    script, *options = command
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}  # where tests share the processor
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / script), *options],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all processes that run these tests."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "examples"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def quickstart(folder: Path) -> str:
    """What the quickstart prints. It runs once, in the first process that needs its bundle."""
    printed = folder / "quickstart.txt"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not printed.exists():
            printed.write_text(run(folder, "quickstart.py", "--steps", "60", "--single", "20"))
    return printed.read_text()


def test_quickstart_compares_the_cascade_with_every_static_network(quickstart: str) -> None:
    number = r"(\d+\.\d+)"
    rows = re.findall(rf"^(\S.*?) +{number}% +{number} +{number} +{number} +{number} +(.*)$", quickstart, re.MULTILINE)
    assert [row[0] for row in rows[:3]] == NETWORKS
    assert all(row[0].startswith("cascade, ") for row in rows[3:])
    for stage, (name, accuracy, *times, left) in enumerate(rows):
        mean_ms, p50_ms, p95_ms, cpu_ms = map(float, times)
        shares = [int(share) for share in re.findall(r"(\d+)%", left)]
        assert 30 < float(accuracy) <= 100, name
        assert 0 < p50_ms <= p95_ms
        assert mean_ms > 0
        assert cpu_ms > 0
        assert sum(shares) == pytest.approx(100, abs=2)
        if stage < 3:
            assert shares[stage] == 100
    assert float(rows[2][1]) > 80  # the last network has learned something


def test_quickstart_says_why_it_decides(quickstart: str) -> None:
    steps = re.split(r"^\[(.*)\]$", quickstart, flags=re.MULTILINE)[1:]
    reasons = dict(zip(steps[::2], steps[1::2], strict=True))
    assert list(reasons)[:2] == ["no limit", "two points of accuracy may go"]
    assert "most accurate" in reasons["no limit"]
    assert "is violated" in reasons["tighter than anything"]
    assert "battery 15% is at or below the floor 20%" in reasons["battery at 15%, floor 20%"]
    assert all(re.search(r"accuracy \d+\.\d% over 200 inputs", text) for text in reasons.values())


def test_quickstart_leaves_a_bundle_and_a_picture(quickstart: str, folder: Path) -> None:
    assert dynamic.load(folder / "out" / "digits").costs is not None
    assert (folder / "out" / "digits.png").read_bytes().startswith(b"\x89PNG")


def test_set_budgets_shows_what_gave_way(quickstart: str, folder: Path) -> None:
    printed = run(folder, "set_budgets.py")
    assert "training" not in printed
    accuracies = [int(percent) for percent in re.findall(r"100 inputs: accuracy (\d+)%", printed)]
    assert len(accuracies) == 9
    assert min(accuracies) > 30
    part = {text.splitlines()[0]: text for text in printed.split("\n\n")}
    assert "not met: latency_ms" in part["sooner than anything can"]
    assert "not met: memory_mb" in part["less memory than the process has"]
    assert "at or below the floor" in part["the battery is at its floor"]
    assert "floor" not in part["the charger is plugged in"].split("\n", 1)[1]


def test_simulate_devices_marks_and_compares(quickstart: str, folder: Path) -> None:
    printed = run(folder, "simulate_devices.py", "--seconds", "20")
    tables = re.findall(r"^SIMULATED (.*?): .*\n.*\n((?:.+\n){5})", printed, re.MULTILINE)
    assert {"mid-range phone", "Raspberry Pi 5 (8 GB) on a power bank"} <= {title for title, _ in tables}
    for _, table in tables:
        rows = [re.split(r"  +", line.strip()) for line in table.splitlines()]
        assert [row[0] for row in rows][::2] == ["last network alone", "budget policy", "knows the future"]
        accuracy, missed, spent_mj = ({row[0]: float(row[i].strip("%")) for row in rows} for i in (1, 2, 4))
        assert min(accuracy.values()) > 30
        assert all(0 <= share <= 100 for share in missed.values())
        # savings were asked for, and the reference is always allowed
        assert spent_mj["and max_drop 0.02"] <= 1.02 * spent_mj["last network alone"]
    for figures in printed.split("picture: ", 1)[1].splitlines()[3:]:
        # on a busy machine the profile says that it is doubtful
        told = ("the budget policy", "DOUBTFUL:")
        assert "simulated" in figures or not figures.strip() or figures.strip().startswith(told)
    assert "simulated on Raspberry Pi 5 (8 GB) on a power bank" in printed
    assert printed.count("(a model, nothing") == 1
    assert (folder / "out" / "simulated_devices.png").read_bytes().startswith(b"\x89PNG")


def test_kiosk_day_lasts_until_it_closes(quickstart: str, folder: Path) -> None:
    printed = run(folder, "kiosk_day.py")
    rows = re.findall(r"^(\d\d):00 +(\d+) +([\d.]+)% +([\d.]+) +(\d+) +([\d.]+)% +([\d.]+)$", printed, re.MULTILINE)
    assert [int(row[0]) for row in rows] == list(range(8, 18))
    assert all(float(row[3]) <= 200 for row in rows)
    assert float(rows[-1][5]) >= 10
    assert all(f"{hour}:00:00                *** " in printed for hour in (11, 13, 15))
    assert "SIMULATED" in printed
    assert (folder / "out" / "kiosk_day.png").read_bytes().startswith(b"\x89PNG")


def test_shop_server_gives_up_frames_and_fails_none(quickstart: str, folder: Path) -> None:
    printed = run(folder, "shop_server.py", "--hour", "0.5")
    total = re.search(
        r"^(\d+) frames answered and (\d+) given up, 0 failed; at most (\d+) waited, of (\d+) that may; "
        r"memory (\d+) MB before the rush, (\d+) MB after the swap$",
        printed,
        re.MULTILINE,
    )
    assert total
    answered, given_up, waited, may, before_mb, after_mb = map(int, total.groups())
    rows = re.findall(r"^\d\d:00 +(\d+) +(\d+) +[\d.]+ ", printed, re.MULTILINE)
    assert len(rows) == 18
    assert sum(int(lost) for _, lost in rows) == given_up
    assert sum(int(sent) for sent, _ in rows) == answered + given_up - 1  # one before the day began
    assert waited <= may
    assert after_mb == pytest.approx(before_mb, rel=0.1)
    # whether enough frames are answered to notice the drift depends on the machine: tests/simulate/test_days.py has it
    assert (folder / "out" / "shop_server.png").read_bytes().startswith(b"\x89PNG")


def test_your_own_policy_runs_and_its_faults_fail_no_request(quickstart: str, folder: Path) -> None:
    printed = run(folder, "your_own_policy.py")
    assert "SIMULATED mid-range phone on its charger" in printed
    assert "it is night, past 3:00: the cheapest" in printed
    assert "0 failures of the policy, 0 of 300 requests" in printed
    assert "100 failures of the policy, 0 of 300 requests" in printed


def test_make_a_family_says_what_is_worth_it(folder: Path) -> None:
    printed = run(folder, "make_a_family.py", "--epochs", "1", "--width", "16", "--targets", "0.6")
    rows = re.findall(r"^(\S+) +(0\.\d{4}|1\.0000) +([\d.]+) +([\d.]+) +([\d.]+) .*$", printed, re.MULTILINE)
    assert {"resnet8-w8", "quantize", "CifarResNet"} <= {row[0] for row in rows}
    assert [row[3] for row in rows if row[0] == "CifarResNet"] == ["1.00"]
    assert "must not certify: give build others" in printed
    alone = re.findall(r"^  (\S+) alone: [\d.]+, ([\d.]+) ms, [\d.]+ MB$", printed, re.MULTILINE)
    assert alone[-1][0] == "CifarResNet"
    assert (folder / "out" / "family.png").read_bytes().startswith(b"\x89PNG")
    assert dynamic.load(folder / "out" / "family").costs is not None


DATA = Path(os.environ.get("DYNAMIC_DATA", ROOT.parent / "shared" / "data"))


@pytest.mark.skipif(not (DATA / "spoken_digits.zip").is_file(), reason="needs spoken_digits.zip in $DYNAMIC_DATA")
def test_classify_sound_reports_on_a_speaker_that_was_not_heard(tmp_path: Path) -> None:
    printed = run(tmp_path, "classify_sound.py", "--data", str(DATA / "spoken_digits.zip"), "--steps", "60")
    assert "On 500 inputs in 1 groups (500 others chose)" in printed
    accuracies = [float(text) for text in re.findall(r"^max_drop 0[.\d]*: accuracy (0\.\d+),", printed, re.MULTILINE)]
    assert len(accuracies) == 4
    assert min(accuracies) > 0.3  # ten classes
    assert (tmp_path / "out" / "sound.png").read_bytes().startswith(b"\x89PNG")
    assert dynamic.load(tmp_path / "out" / "sound").costs is not None


@pytest.mark.skipif(not (DATA / "imagenet_open_1000.zip").is_file(), reason="needs photographs in $DYNAMIC_DATA")
def test_classify_photos_compares_networks_and_cascade(tmp_path: Path) -> None:
    printed = run(tmp_path, "classify_photos.py", "--data", str(DATA), "--report", "60")
    rows = re.findall(r"^(\S.*?) +([\d.]+)% +[\d.]+ +[\d.]+  (.*)$", printed, re.MULTILINE)
    assert [name for name, _, _ in rows][:3] == ["025_128", "050_160", "075_192"]
    assert rows[2][2].split() == ["0%", "0%", "100%"]
    accuracies = [float(accuracy) for _, accuracy, _ in rows]
    assert accuracies[0] > 20  # of 1,000 classes; 45% of many photographs, and 60 have a standard error of 6
    assert accuracies[2] > 50
    assert (tmp_path / "out" / "photos.png").read_bytes().startswith(b"\x89PNG")
    assert dynamic.load(tmp_path / "out" / "photos").costs is not None


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("classify_sound.py", "missing is not there. Download"),
        ("classify_photos.py", "--help"),
        ("classify_text.py", "missing is not there. Download"),
    ],
)
def test_an_example_says_where_its_data_comes_from(script: str, words: str, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / script), "--data", "missing"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert words in done.stderr
