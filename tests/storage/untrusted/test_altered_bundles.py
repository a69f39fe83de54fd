"""Bundles that were altered, by hand and at random: refused in words, measured again, or the same answers."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dynamic
from benchmarks.robustness.alterations import hash_again
from benchmarks.robustness.altered import altered, answer, make_images, make_shelf
from dynamic.bundle.canaries.check import kept_report, labels_limit
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.manifest import MANIFEST, manifest_hash
from dynamic.errors import BundleError, CorruptError
from dynamic.profiling import engine_choice
from dynamic.profiling.engine_choice import Choice

NUMBERS: dict[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "negative": -1.0,
    "huge": 10**400,
    "large": 1e300,
    "word": "fast",
    "flag": True,
    "list": [1.0],
    "none": None,
    "nested": [[[[1.0]]]],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "shelf"
    make_shelf(folder)
    return folder


@pytest.fixture
def shelf(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "shelf"))


def edit(path: Path, change: Callable[[Any], Any], seal: bool = False) -> None:
    """Change a JSON file; without its seal, as an earlier version wrote it, unless told."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if not seal and path.name != MANIFEST:
        data.pop("sha256", None)
    changed = change(data)
    path.write_text(json.dumps(data if changed is None else changed), encoding="utf-8")


def only(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def put(data: Any, path: str, value: Any) -> None:
    """Set `a.0.b` of nested lists and mappings."""
    *holders, last = path.split(".")
    for key in holders:
        data = data[int(key)] if isinstance(data, list) else data[key]
    data[int(last) if isinstance(data, list) else last] = value


# costs


@pytest.mark.parametrize("value", NUMBERS.values(), ids=NUMBERS)
@pytest.mark.parametrize("field", ["latency_ms.0.0", "call_ms.0", "cpu_ms.1.1", "memory_mb.0", "noise", "threads"])
def test_costs_out_of_range_are_measured_again(
    shelf: Path, field: str, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    edit(only(shelf / "costs"), lambda data: put(data, field, value))
    assert dynamic.load(shelf).costs is None
    assert "profile() again" in caplog.text


def test_costs_that_are_a_link_that_leads_nowhere_are_measured_again(
    shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = only(shelf / "costs")
    path.unlink()
    path.symlink_to(shelf / "nowhere.json")
    assert dynamic.load(shelf).costs is None
    assert "leads nowhere: call profile() again" in caplog.text


@pytest.mark.parametrize(
    "batch", [[0, 16], [-3, 16], [1.5, 16], ["1", "16"], [16, 1], [1, 1], [], [1], [1, 10**400], [True, 16], "1"]
)
def test_batch_sizes_out_of_range_are_measured_again(shelf: Path, batch: Any, caplog: pytest.LogCaptureFixture) -> None:
    edit(only(shelf / "costs"), lambda data: data.update(batch=batch))
    assert dynamic.load(shelf).costs is None
    assert "profile() again" in caplog.text


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "brackets": b"[" * 100_000,
    "braces": b'{"a":' * 100_000,
    "deep": b"[" * 100 + b"]" * 100,
    "digits": b"9" * 100_000,
    "utf16": "{}".encode("utf-16"),
    "bytes": b"\xff\xfe\x00",
    "zeros": b"\0" * 100,
    "list": b"[]",
    "number": b"1",
    "null": b"null",
    "unknown": b'{"schema": 1}',
    "large": b" " * (33 * 2**20) + b"{}",
}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
@pytest.mark.parametrize("folder", ["costs", "choices", "checks"])
def test_measured_files_that_do_not_read_are_measured_again(
    shelf: Path, folder: str, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    only(shelf / folder).write_bytes(content)
    assert_again(shelf, folder, caplog)


@pytest.mark.parametrize("kind", ["pipe", "folder", "nowhere", "outside", "itself", "device"])
@pytest.mark.parametrize("folder", ["costs", "choices", "checks"])
def test_measured_files_that_are_no_files_are_measured_again(
    shelf: Path, folder: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = only(shelf / folder)
    outside = shelf.parent / "outside"
    path.rename(outside)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        targets = {"nowhere": shelf / "none", "outside": outside, "itself": path, "device": Path("/dev/zero")}
        path.symlink_to(targets[kind])
    if kind == "nowhere" and folder != "costs":
        return  # as if there were none
    assert_again(shelf, folder, caplog, missing=kind == "nowhere")


def assert_again(shelf: Path, folder: str, caplog: pytest.LogCaptureFixture, missing: bool = False) -> None:
    """Read as a runtime does; what would be measured then takes seconds, and is not."""
    bundle = dynamic.load(shelf, preload=False)  # no canaries run
    if folder == "costs":
        assert bundle.costs is None
        assert missing or "profile() again" in caplog.text
    elif folder == "choices":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_choice, "choose", lambda *_, **__: Choice("", 1, {}, "onnxruntime", {}, {}))
            bundle.open("auto", threads=1).close()
        assert "measuring again" in caplog.text
    else:
        name = only(shelf / folder).name
        opened = bundle.open(threads=1)
        assert kept_report(shelf, name, EngineIdentity.of(opened), labels_limit(bundle.ladder)) is None
        assert "The canaries run again" in caplog.text


def test_measured_files_as_they_were_written_are_read(shelf: Path) -> None:
    bundle = dynamic.load(shelf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_choice, "choose", None)
        patch.setattr("dynamic.bundle.canaries.reports.check_canaries", None)
        bundle.open("auto", threads=1).close()
        assert bundle.open(threads=1).agrees


@pytest.mark.parametrize("folder", ["costs", "choices", "checks"])
def test_a_plausible_change_breaks_the_seal(shelf: Path, folder: str, caplog: pytest.LogCaptureFixture) -> None:
    """A figure that could be, so only the hash tells."""
    places = {"costs": "latency_ms.0.0", "choices": "latency_ms.onnxruntime", "checks": "labels_moved"}
    edit(only(shelf / folder), lambda data: put(data, places[folder], 0.0005), seal=True)
    assert_again(shelf, folder, caplog)


@pytest.mark.parametrize("part", ["engine", "precision", "threads"])
def test_costs_of_something_else_are_not_believed(shelf: Path, part: str, caplog: pytest.LogCaptureFixture) -> None:
    other = {"engine": "openvino", "precision": "bf16", "threads": 7}
    edit(only(shelf / "costs"), lambda data: data.update({part: other[part]}))
    assert dynamic.load(shelf).costs is None
    assert "profile() again" in caplog.text


def test_costs_of_another_bundle_do_not_fit(shelf: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = dynamic.load(shelf)
    edit(shelf / MANIFEST, lambda data: data.update(cascade="0" * 64))
    hash_again(shelf)
    assert bundle.costs is not None
    assert dynamic.load(shelf).costs is None
    assert "belongs to another bundle" in caplog.text


def test_costs_of_an_earlier_version_still_read(shelf: Path) -> None:
    known = dynamic.load(shelf).costs
    edit(only(shelf / "costs"), lambda data: None)
    assert dynamic.load(shelf).costs == known


# the ladder and the manifest, hashed again


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("points.0.thresholds.0", float("nan")),
        ("points.1.thresholds.0", 3.0),
        ("points.0.thresholds", []),
        ("points.1.shares.0", -0.5),
        ("points.1.shares", [0.9, 0.9, 0.9]),
        ("points.0.accuracy", [0.9, 0.5, 0.1]),
        ("points.0.accuracy.1", 10**400),
        ("points.1.bound", -5.0),
        ("points.1.bound", "0.1"),
        ("points.0.backbones", [7]),
        ("points.0.backbones", []),
        ("points.0.n", 1.5),
        ("points.0.kind", "none"),
        ("points", []),
        ("points", {}),
        ("temperature.0", 0),
        ("temperature.0", float("inf")),
        ("temperature", [1.0]),
        ("score", "luck"),
        ("combine", ["mean"]),
        ("backbone.0", -1),
        ("backbone", [0, 0, 1]),
        ("certified", 1),
        ("certificate.delta", 2.0),
        ("certificate", "yes"),
        ("points.0.exits.0.counts.0", -1),
        ("points.0.exits.0.edges", [float("nan")]),
        ("floor", 17),
        ("fingerprint", "another"),
        ("schema", True),
        ("schema", -1),
        ("stage_names", ["a", "b", "c"]),
    ],
)
def test_a_ladder_out_of_range_is_refused(shelf: Path, place: str, value: Any) -> None:
    edit(shelf / "ladder.json", lambda data: put(data, place, value))
    hash_again(shelf)
    with pytest.raises(CorruptError, match=r"ladder .*(build|copy)"):
        dynamic.load(shelf)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("engine", "abacus"),
        ("engine", "../../x"),
        ("engine", "*"),
        ("precision", "f8"),
        ("classes", ["a"]),
        ("classes", [1, 2, 3, 4]),
        ("classes", "abcd"),
        ("cascade", None),
        ("files", []),
        ("files.ladder\0json", {"bytes": 1, "sha256": "0" * 64}),
        ("preprocess", {"steps": [{"step": "resize", "size": 10**9}]}),
        ("preprocess", {"steps": [{"step": "center_crop", "size": [10**9, 10**9]}]}),
        ("preprocess", {"steps": [{"step": "normalize", "mean": [1e300], "std": [1.0]}]}),
        ("preprocess", {"steps": [{"step": "normalize", "mean": [10**400], "std": [1.0]}]}),
        ("preprocess", {"steps": [{"step": "scale", "divisor": "255"}]}),
        ("preprocess", [[]]),
        ("calibrated_on", []),
        ("calibrated_on.threads", "two"),
        ("calibrated_on.variables", {"a": 1}),
        ("spec.classes", 10**400),
        ("spec.classes", 0),
        ("spec.inputs", []),
        ("spec.inputs.0.shape", [-1, 8, 8]),
        ("spec.inputs.0.shape", [2**20, 2**20]),
        ("spec.inputs.0.dtype", "object"),
        ("spec.inputs.0.dtype", "O"),
        ("spec.stages", []),
        ("spec.stages.0.backbone", 5),
        ("spec.stages.0.carry", -1),
        ("spec.stages.0.macs", float("nan")),
        ("spec.stages.1.body_graph", None),
        ("spec", None),
        ("schema", "1"),
        ("schema", float("inf")),
    ],
)
def test_a_manifest_out_of_range_is_refused(shelf: Path, place: str, value: Any) -> None:
    edit(shelf / MANIFEST, lambda data: put(data, place, value))
    hash_again(shelf)
    with pytest.raises(CorruptError, match=r"[Bb]uild"):
        dynamic.load(shelf)


def test_each_entry_of_the_manifest_and_the_ladder_is_needed_or_optional(shelf: Path, made: Path) -> None:
    for name in (MANIFEST, "ladder.json"):
        for key in json.loads((made / name).read_text(encoding="utf-8")):
            shutil.copy(made / name, shelf / name)
            edit(shelf / name, lambda data, key=key: {k: v for k, v in data.items() if k != key})  # type: ignore[misc]
            hash_again(shelf)
            try:
                dynamic.load(shelf)
            except BundleError:
                continue
            assert key in ("sha256", "created", "calibrated_on", "floor", "left_out"), key
        shutil.copy(made / name, shelf / name)
        shutil.copy(made / MANIFEST, shelf / MANIFEST)


# paths and links


@pytest.mark.parametrize(
    "name",
    [
        "../outside/x.onnx", "/etc/passwd", "", ".", "..", "backbones/../../outside/x.onnx", "a\\b.onnx", "C:x.onnx",
        "a\0b.onnx", "x" * 5000 + ".onnx", "./backbones/0_0.onnx", "backbones//0_0.onnx", "x.xml", 7, ["x.onnx"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("listed", [False, True], ids=["unlisted", "listed"])
def test_a_stage_outside_the_folder_is_refused(shelf: Path, name: Any, listed: bool) -> None:
    shutil.copytree(shelf / "backbones", shelf.parent / "outside")
    shutil.copy(shelf / "backbones" / "0_0.onnx", shelf.parent / "outside" / "x.onnx")

    def change(data: Any) -> None:
        data["spec"]["stages"][0]["graph"] = name
        if listed and isinstance(name, str):
            data["files"][name] = dict(data["files"]["backbones/0_0.onnx"])

    edit(shelf / MANIFEST, change)
    hash_again(shelf)
    with pytest.raises(CorruptError):
        dynamic.load(shelf)


def test_an_absolute_path_is_refused_although_it_lies_in_the_folder(shelf: Path) -> None:
    edit(shelf / MANIFEST, lambda data: put(data, "spec.stages.0.graph", str(shelf / "backbones" / "0_0.onnx")))
    hash_again(shelf)
    with pytest.raises(CorruptError, match="outside the bundle"):
        dynamic.load(shelf)


@pytest.mark.parametrize(
    "dropped",
    ["everything", "ladder.json", "records.npz", "canaries.npz", "graph.onnx", "graph_single.onnx",
     "backbones/0_0.onnx", "backbones/1_1.onnx", "backbones/1_1_body.onnx", "backbones/1.weights"],
)  # fmt: skip
def test_a_file_that_is_used_must_be_listed(shelf: Path, dropped: str) -> None:
    edit(
        shelf / MANIFEST,
        lambda data: data["files"].clear() if dropped == "everything" else data["files"].pop(dropped) and None,
    )
    hash_again(shelf)
    with pytest.raises(CorruptError, match="list"):
        dynamic.load(shelf)


@pytest.mark.parametrize("digest", [None, "", 0, "z" * 64, "0" * 63])
def test_a_file_without_a_hash_is_refused(shelf: Path, digest: Any) -> None:
    data = json.loads((shelf / MANIFEST).read_text(encoding="utf-8"))
    data["files"]["records.npz"]["sha256"] = digest
    del data["sha256"]
    (shelf / MANIFEST).write_text(json.dumps(data | {"sha256": manifest_hash(data)}), encoding="utf-8")
    with pytest.raises(CorruptError, match="sha256"):
        dynamic.load(shelf)


@pytest.mark.parametrize(
    "name", [MANIFEST, "ladder.json", "records.npz", "graph.onnx", "backbones/1_1.onnx", "backbones"]
)
def test_what_is_a_link_out_of_the_folder_is_refused(shelf: Path, name: str) -> None:
    target = shelf.parent / "elsewhere"
    (shelf / name).rename(target)
    (shelf / name).symlink_to(target)
    with pytest.raises(CorruptError, match="cp -rL"):
        dynamic.load(shelf)


def test_a_bundle_behind_a_link_is_a_bundle(shelf: Path) -> None:
    link = shelf.parent / "link"
    link.symlink_to(shelf)
    assert dynamic.load(link).costs is not None


@pytest.mark.parametrize("location", [b"../x.data", b"/x.weight", b"8.weights", b"a/../../x"])
def test_weights_that_a_graph_names_must_be_listed(shelf: Path, location: bytes) -> None:
    path = shelf / "backbones" / "1_1.onnx"
    content = path.read_bytes()
    assert content.count(b"1.weights") > 0
    for place in (shelf, shelf / "backbones"):
        shutil.copy(shelf / "backbones" / "1.weights", place / "8.weights")
    shutil.copy(shelf / "backbones" / "1.weights", shelf / "x.data")
    path.write_bytes(content.replace(b"1.weights", location))
    hash_again(shelf)
    with pytest.raises(CorruptError, match="for its weights"):
        dynamic.load(shelf)


# paths of the user's own


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "no such folder", "/dev/null"])
def test_a_path_that_is_no_bundle_is_words(path: str) -> None:
    with pytest.raises(BundleError):
        dynamic.load(path)


# at random


def test_bundles_that_were_altered_at_random(made: Path) -> None:
    faults: list[str] = []
    counts = altered(seed=7, count=25, shelf=made, faults=faults)
    assert faults == []
    assert counts["tried"] == 25
    assert counts["raw"] == counts["silent_point"] == counts["silent_answer"] == counts["silent_loss_of_costs"] == 0
    assert counts["refused"] > 5, "most alterations are noticed when the bundle is loaded"


def test_the_bundle_of_the_benchmark_would_show_a_change(made: Path) -> None:
    """Other costs choose another point, and the answers are certified: else nothing could be found out."""
    bundle = dynamic.load(made)
    images, _ = make_images(np.random.default_rng(0), 64)
    assert answer(bundle, images).certified
    assert len(bundle.frontier.points) > 1
    assert bundle.ladder.certified
