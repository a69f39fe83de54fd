"""Files of a bundle that change after it was loaded: they are not run, and nothing is certified that rests on them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.engines.model_files.graph_files import BundleFiles
from dynamic.errors import BundleError, CorruptError, EngineError
from dynamic.policies import Decision
from dynamic.policies.records import Records


class Words(nn.Module):
    """An embedding, which engines read where it lies, and a classifier."""

    def __init__(self, seed: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.words, self.last = nn.Embedding(500, width), nn.Linear(width, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.last(self.words(tokens).mean(1))
        return logits


class OperatingPoint:
    """A policy that takes the point of one backbone alone: the last, or the first."""

    def __init__(self, last: bool) -> None:
        self.last = last

    def initial(self) -> None:
        return None

    def decide(self, frontier: Any, budget: Any, snapshot: Any, state: Any) -> Any:
        wanted = max(range(len(frontier.points)), key=lambda i: (1 in frontier.points[i].backbones) == self.last)
        return Decision(frontier.points[wanted], True, (), "always"), state

    def observe(self, state: Any, feedback: Any) -> Any:
        return state


TOKENS = torch.randint(500, (400, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    return [Words(0, 8), Words(1, 256)]


@pytest.fixture(scope="module")
def shelf(networks: list[nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    with torch.no_grad():  # the first is right in two fifths, the last in three
        first, last = (network(TOKENS).argmax(1) for network in networks)
    labels = torch.where(torch.arange(len(TOKENS)) % 5 < 2, first, last)
    path = tmp_path_factory.mktemp("words") / "shelf"
    bundle = dynamic.build(networks, [(TOKENS, labels)], max_drops=(0.4,), floor=0.0)  # networks that know little
    bundle.save(path).profile(batch=(1, 8), seconds=0.05)
    return path


@pytest.fixture
def copy(shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shelf, tmp_path / "shelf"))


def other_bytes(path: Path) -> bytes:
    """Weights of the same size: each number is turned around."""
    return (-np.frombuffer(path.read_bytes(), np.float32)).tobytes()


def over(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:  # in place, as `cp` and `rsync --inplace` do
        file.write(content)


def instead(path: Path, content: bytes) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(content)
    os.utime(fresh, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))  # as `cp -p` does
    fresh.replace(path)


def runtime(path: Path, last: bool = True, engine: str | None = None, **options: Any) -> dynamic.Runtime:
    return dynamic.load(path).runtime(
        monitor=dynamic.FixedMonitor(), policy=OperatingPoint(last), engine=engine, drift_alpha=None, **options
    )


@pytest.mark.parametrize("replace", [over, instead])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_network_whose_weights_were_replaced_after_load_is_not_run(
    copy: Path,
    networks: list[nn.Module],
    engine: str,
    replace: Callable[[Path, bytes], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip(engine)
    with runtime(copy, last=False, engine=engine, fallback=(), route="stages") as run:
        assert run(TOKENS[:50].numpy()).certified == (engine == "onnxruntime"), "as it was calibrated on that"
        run.policy.last = True  # type: ignore[attr-defined]
        replace(copy / "backbones" / "1.weights", other_bytes(copy / "backbones" / "1.weights"))
        result = run(TOKENS[:50].numpy())
    with torch.no_grad():
        small = networks[0](TOKENS[:50]).argmax(1)
    assert result.label.tolist() == small.tolist(), "the network that is as it was answers"
    assert not result.certified
    assert "backbones/1.weights" in caplog.text
    assert "was altered after the bundle was loaded, so it is not run" in caplog.text


@pytest.mark.parametrize(
    ("engine", "change"),
    [
        ("onnxruntime", "instead"),
        ("onnxruntime", "gone"),
        ("openvino", "over"),
        ("openvino", "cut"),
        ("openvino", "gone"),
    ],
)
def test_a_network_that_is_loaded_stays_what_it_was(copy: Path, engine: str, change: str) -> None:
    pytest.importorskip(engine)
    path = copy / "backbones" / "1.weights"
    with runtime(copy, engine=engine, fallback=()) as run:
        before = [run(TOKENS[:1].numpy()).log_probs, run(TOKENS[:50].numpy()).log_probs]
        assert run(TOKENS[:1].numpy()).certified == (engine == "onnxruntime"), "as it was calibrated on that"
        if change == "over":
            over(path, other_bytes(path))
        elif change == "instead":
            instead(path, other_bytes(path))
        elif change == "cut":
            os.truncate(path, 0)
        else:
            path.unlink()
        after = [run(TOKENS[:1].numpy()).log_probs, run(TOKENS[:50].numpy()).log_probs]
    for was, is_now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, is_now)


def test_a_network_whose_weights_are_overwritten_under_it_is_dropped(
    copy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """ONNX Runtime maps weights, so that a file that is written in place changes a session that is loaded."""
    monkeypatch.setattr("dynamic.engines.onnxruntime._LOOK_S", 0.0)
    path = copy / "backbones" / "1.weights"
    with runtime(copy, fallback=(), route="stages") as run:
        assert run(TOKENS[:1].numpy()).certified
        over(path, other_bytes(path))
        assert not run(TOKENS[:1].numpy()).certified
    assert "was altered after the bundle was loaded, so it is not run" in caplog.text


@pytest.mark.parametrize("name", ["graph.onnx", "backbones/0.weights", "backbones/0_0.onnx"])
def test_no_answer_where_every_network_was_replaced(copy: Path, name: str) -> None:
    bundle = dynamic.load(copy)
    for file in (copy / name, copy / "backbones" / "1.weights"):
        content = file.read_bytes()
        over(file, content[:-1] + bytes([content[-1] ^ 1]))
    route = "graph" if name == "graph.onnx" else "stages"
    engine = bundle.open(route=route)
    with pytest.raises(EngineError, match="altered after the bundle was loaded"):
        engine.run({"input": TOKENS.numpy()}, np.array([np.inf if name == "graph.onnx" else -np.inf], np.float32))


def test_a_bundle_that_was_put_in_the_place_of_another_is_not_taken_for_it(
    copy: Path, networks: list[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with runtime(copy, fallback=()) as run:
        others = [Words(2, 8), Words(3, 256)]
        dynamic.build(others, [(TOKENS, torch.arange(400) % 4)]).save(copy)
        with torch.no_grad():  # its own files are open, and loaded only now
            assert run(TOKENS[:50].numpy()).label.tolist() == networks[1](TOKENS[:50]).argmax(1).tolist()
        run.swap(dynamic.load(copy).profile(batch=(1,), seconds=0.02))
        with torch.no_grad():
            assert run(TOKENS[:50].numpy()).label.tolist() == others[1](TOKENS[:50]).argmax(1).tolist()


def test_a_file_that_comes_back_is_run_again(copy: Path) -> None:
    engine = dynamic.load(copy).open(route="stages")
    path = copy / "backbones" / "1.weights"
    content = path.read_bytes()
    over(path, other_bytes(path))
    inputs, thresholds = {"input": TOKENS.numpy()}, np.array([np.inf], np.float32)
    with pytest.raises(EngineError):
        engine.run(inputs, thresholds)
    over(path, content)
    assert np.isfinite(engine.run(inputs, thresholds).logits).all()


def test_altered_files_get_no_new_hashes(copy: Path, tmp_path: Path) -> None:
    bundle = dynamic.load(copy)
    over(copy / "backbones" / "1.weights", other_bytes(copy / "backbones" / "1.weights"))
    for step in (
        lambda: bundle.save(tmp_path / "saved"),
        lambda: dynamic.recertify(bundle, (0.05,)),
        lambda: dynamic.export(bundle, tmp_path / "model.onnx"),
    ):
        with pytest.raises(CorruptError, match=r"backbones/1\.weights was altered"):
            step()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shelf"]


def test_altered_records_are_not_read(copy: Path, tmp_path: Path) -> None:
    bundle = dynamic.load(copy)
    records = Records.load(copy / "records.npz")
    records.select(np.arange(len(records)) % 2 == 0).save(tmp_path / "half.npz")
    (copy / "records.npz").write_bytes((tmp_path / "half.npz").read_bytes())  # in place
    with pytest.raises(CorruptError, match=r"records\.npz was altered"):
        _ = bundle.records


@pytest.mark.skipif(not hasattr(os, "pread"), reason="files are not kept open there")
def test_records_that_were_replaced_are_read_as_they_were(copy: Path) -> None:
    bundle = dynamic.load(copy)
    records = Records.load(copy / "records.npz")
    records.select(np.arange(len(records)) % 2 == 0).save(copy / "records.npz")
    assert len(bundle.records) == len(records)


def test_a_folder_of_links_is_refused_and_its_copy_runs(copy: Path, tmp_path: Path) -> None:
    """As caches of model hubs lay them out: every file is a link to one outside that is named by its hash."""
    linked = tmp_path / "snapshot"
    for number, file in enumerate(sorted(path for path in copy.rglob("*") if path.is_file())):
        blob = tmp_path / "blobs" / str(number)
        link = linked / file.relative_to(copy)
        blob.parent.mkdir(exist_ok=True)
        link.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(blob)
    with pytest.raises(CorruptError, match=r"leads out of the bundle, to .*blobs/\d+.*cp -rL"):
        dynamic.load(linked)
    followed = Path(shutil.copytree(linked, tmp_path / "followed"))
    with runtime(copy) as run:
        own = run(TOKENS.numpy()).log_probs
    with runtime(followed) as run:
        np.testing.assert_allclose(run(TOKENS.numpy()).log_probs, own, rtol=1e-5, atol=1e-5)


def test_weights_that_are_a_link_out_of_the_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    weights = copy / "backbones" / "1.weights"
    weights.rename(tmp_path / "blob")
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(CorruptError, match=r"1\.weights is not used, since it leads out of the bundle.*cp -rL"):
        dynamic.load(copy)


def test_a_volume_that_numbers_its_files_anew_is_run(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(range(10**6))
    monkeypatch.setattr(
        "dynamic.engines.model_files.graph_files.BundleFiles._state", lambda *_: (next(states), 0, 0, 0, 0)
    )
    with runtime(copy, fallback=()) as run:
        assert np.isfinite(run(TOKENS.numpy()).log_probs).all()


def test_a_file_that_changes_while_it_is_loaded_is_not_run(copy: Path) -> None:
    files = BundleFiles(copy, dynamic.load(copy).hashes)
    path = copy / "backbones" / "1.weights"

    def load() -> None:
        with files.verify("graph.onnx") as graph:
            assert graph == copy / "graph.onnx"
            over(path, other_bytes(path))

    with pytest.raises(EngineError, match=r"1\.weights .* was altered"):
        load()


def test_a_bundle_that_may_not_be_read_is_words(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dynamic.storage.regular_files.file_hash", forbidden)
    with pytest.raises(BundleError, match=r"shelf cannot be read \(Permission denied\). Grant the right"):
        dynamic.load(copy)
