"""A bundle over Ray Data: every row once, also when an actor is killed."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from support.serving.ray_cases import CLASSES, LIMIT_S, QUIET, blobs, local_ray, small_bundle
from support.serving.serve_cases import image_bundle

import dynamic
from dynamic.serve.ray.dataset import Answers

data = pytest.importorskip("ray.data", reason='needs Ray Data: pip install "dynamic-inference[ray]"')
pytestmark = QUIET

EXACT = dynamic.Budget(max_drop=0.0)
COUNT = 2000


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return small_bundle(tmp_path_factory.mktemp("data") / "shelf")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        data.DataContext.get_current().enable_progress_bars = False
        data.DataContext.get_current().execution_options.preserve_order = True
        yield


def actors() -> list[psutil.Process]:
    """Processes of Ray that answer."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if any("Answers" in word for word in child.cmdline())]


def test_every_row_is_answered_once_though_an_actor_is_killed(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    rows = blobs(COUNT, seed=3)
    name = bundle.spec.inputs[0].name
    table = [{"row": number, name: row} for number, row in enumerate(rows)]
    opened = tmp_path / "opened"

    def gate(batch: dict[str, Any]) -> dict[str, Any]:
        """The second half of the rows comes once a file is there, so that rows are left when the actor is killed."""
        ends = time.monotonic() + LIMIT_S
        while max(batch["row"]) >= COUNT // 2 and not opened.exists():
            assert time.monotonic() < ends, "no actor was killed"
            time.sleep(0.02)
        return batch

    dataset = data.from_items(table, override_num_blocks=40)
    # fewer at once than there are CPUs, or no actor could start
    gated = dataset.map_batches(gate, batch_format="numpy", num_cpus=0.25, concurrency=2)
    answered = dynamic.map_dataset(gated, bundle, EXACT, batch=25, actors=2, cpus=0.5)
    parts: list[dict[str, Any]] = []
    killed = 0
    for part in answered.iter_batches(batch_size=50, batch_format="numpy", prefetch_batches=0):
        parts.append(part)
        if not killed:
            victim = actors()[0]
            victim.kill()
            victim.wait()
            killed = victim.pid
            assert part["row"].max() < COUNT // 2
            opened.touch()
    assert killed
    columns = {column: np.concatenate([part[column] for part in parts]) for column in parts[0]}
    assert sorted(columns["row"].tolist()) == list(range(COUNT))
    order = np.argsort(columns["row"])
    with bundle.runtime(EXACT, threads=1, monitor=dynamic.FixedMonitor(), drift_alpha=None) as run:
        expected = run(rows)
    assert columns["answer_label"][order].tolist() == expected.label.tolist()
    assert columns["answer_name"][order].tolist() == [CLASSES[label] for label in expected.label]
    assert set(columns["answer_stage"].tolist()) == {1}
    assert set(columns["answer_point"].tolist()) == {expected.decision.point.name}
    np.testing.assert_allclose(columns["answer_probability"][order], expected.probability, rtol=1e-4)
    assert name not in columns


def test_images_of_a_folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    bundle = image_bundle(tmp_path_factory)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 10, 9, 3), np.uint8)
    for number, image in enumerate(pixels):
        Image.fromarray(image[: 5 + number]).save(tmp_path / f"{number}.png")
    dataset = data.read_images(str(tmp_path), include_paths=True)
    answers = {Path(row["path"]).stem: row["answer_label"] for row in dynamic.map_dataset(dataset, bundle).take_all()}
    with bundle.runtime(monitor=dynamic.FixedMonitor()) as run:
        expected = {str(number): run(image[: 5 + number]).label for number, image in enumerate(pixels)}
    assert answers == expected


def test_without_a_budget_sorted_rows_change_no_decision(bundle: dynamic.Bundle) -> None:
    """The drift test takes them for drift. Its alarm takes certificates, and the run says so."""
    rows = blobs(12000, seed=3)[::4]  # all of one class. A quarter of them suffices for the alarm
    answers = Answers(bundle.folder, None, None, 1, None)
    parts = [answers({bundle.spec.inputs[0].name: part}) for part in np.array_split(rows, 120)]
    assert answers._run.budget == dynamic.Budget(on_drift="report")
    certified = np.concatenate([part["answer_certified"] for part in parts])
    assert (certified[0], certified[-1]) == (True, False)
    assert len({name for part in parts for name in part["answer_point"]}) == 1
    answers._run.close()


def test_columns_that_do_not_fit_are_named(bundle: dynamic.Bundle) -> None:
    name = bundle.spec.inputs[0].name
    with pytest.raises(Exception, match=r"there is no column .*name the inputs' with column="):
        dynamic.map_dataset(data.from_items([{"row": 1}]), bundle).take_all()
    with pytest.raises(Exception, match="there is a column 'answer_label' already"):
        dynamic.map_dataset(data.from_items([{name: blobs(1, 0)[0], "answer_label": 1}]), bundle).take_all()
    with pytest.raises(dynamic.errors.SettingError, match="actors=0 must be a whole number of at least 1"):
        dynamic.map_dataset(data.from_items([{"row": 1}]), bundle, actors=0)
    with pytest.raises(dynamic.errors.SettingError, match="cpus=-1 must be a number of at least 0"):
        dynamic.map_dataset(data.from_items([{"row": 1}]), bundle, cpus=-1)
    with pytest.raises(dynamic.errors.BundleError):
        dynamic.map_dataset(data.from_items([{"row": 1}]), bundle.folder / "nothing")
