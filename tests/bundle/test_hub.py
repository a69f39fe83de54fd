"""Model cards, and bundles on a Hub: a small server in this process that speaks the few endpoints that are used."""

import base64
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
from torch import nn

import dynamic
from dynamic.bundle.sharing.hub import copy_without_links
from dynamic.bundle.sharing.model_card import CARD, model_card
from dynamic.errors import BundleError, CorruptError

COMMIT = "c0ffee" + "0" * 34


@pytest.fixture(scope="module")
def bundle() -> dynamic.Bundle:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(12, w), nn.ReLU(), nn.Linear(w, 3)) for w in (2, 8)]
    held_out = [(torch.randn(300, 3, 2, 2), torch.arange(300) % 3)]
    names = ("cat: black", 'do"g', "# fish | ü")  # which YAML and Markdown would take for something else
    return dynamic.build(networks, held_out, preprocess=dynamic.Preprocess.of(), classes=names, progress=False)


@pytest.fixture(scope="module")
def shelf(bundle: dynamic.Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.save(tmp_path_factory.mktemp("shelves") / "pets").folder


@dataclass
class Hub:
    """One repository: files by name. `asked`: every request."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 200


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Silence."""

    @property
    def _place(self) -> str:
        return f"http://{self.headers['Host']}/me/pets"

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any) -> None:
        self._send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status != 200:
            self._send(b"{}", self.hub.status)
        elif "/resolve/" in path:
            content = self.hub.files[path.partition("/resolve/")[2].partition("/")[2]]
            self._send(content, headers={"ETag": f'"{sha1(content).hexdigest()}"'})
        elif "/tree/" in path:
            self._json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
                    for name, content in self.hub.files.items()
                ]
            )
        else:  # the repository
            siblings = [{"rfilename": name} for name in self.hub.files]
            self._json({"id": "me/pets", "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlparse(self.path).path)
        self.hub.asked.append(f"POST {path}")
        if self.hub.status != 200:
            self._send(b"{}", self.hub.status)
        elif path == "/api/repos/create":
            self._json({"url": self._place, "id": "me/pets", "name": "me/pets"})
        elif "/preupload/" in path:
            asked = json.loads(body)["files"]
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]
            self._json({"files": files})
        elif "/commit/" in path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.hub.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    del self.hub.files[entry["value"]["path"]]
            self._json({"commitUrl": f"{self._place}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._json({})


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub on this machine, and an empty cache. Nothing is asked of any other."""
    own = Hub()
    handler = type("OwnHandler", (Handler,), {"hub": own})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    disable_progress_bars()
    yield own
    enable_progress_bars()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_card_is_saved_with_the_bundle(shelf: Path) -> None:
    card = huggingface_hub.ModelCard.load(shelf / CARD)  # the Hub's own reader
    bundle = dynamic.load(shelf)
    data = card.data.to_dict()
    assert data["library_name"] == "dynamic-inference"
    assert data["pipeline_tag"] == "image-classification"
    results = card.data.eval_results
    assert results is not None
    assert [result.metric_name for result in results] == [f"accuracy at point {p.name}" for p in bundle.ladder.points]
    for result, point in zip(results, bundle.ladder.points, strict=True):
        assert result.metric_value == pytest.approx(point.accuracy.mid, rel=1e-5)
        assert result.dataset_name == f"{point.n} held-out inputs that certified"
    for words in ("## Certificate", "It is void for", "dynamic.load('pets')", 'cat: black, do"g, # fish'):
        assert words in card.text
    assert CARD not in bundle.hashes


def test_the_task_is_that_of_the_preprocessing(bundle: dynamic.Bundle) -> None:
    sound = object.__new__(dynamic.data.SoundPreprocess)
    text = object.__new__(dynamic.TextPreprocess)
    for preprocess, task in ((sound, "audio-classification"), (text, "text-classification")):
        assert f"pipeline_tag: {task}\n" in model_card(replace(bundle, preprocess=preprocess), "x")
    assert "pipeline_tag" not in model_card(replace(bundle, preprocess=None), "x")


def test_an_edited_card_does_not_alter_the_bundle(shelf: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shelf, tmp_path / "copy"))
    (copy / CARD).write_text("mine")
    assert dynamic.load(copy).ladder == dynamic.load(shelf).ladder
    (copy / CARD).unlink()
    dynamic.load(copy)


def test_a_bundle_goes_to_the_hub_and_back(
    shelf: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(shelf, tmp_path / "copy"))
    (copy / CARD).write_text("---\nlicense: mit\n---\nmine")
    (copy / "costs").mkdir(exist_ok=True)
    (copy / "costs" / "other.json").write_text("{}")
    hub.files["weights/old.safetensors"] = b"of a larger bundle"
    bundle = dynamic.load(copy)
    assert bundle.push_to_hub("me/pets").endswith("me/pets")
    assert set(hub.files) == {CARD, "bundle.json", *bundle.hashes}
    assert hub.files[CARD] == b"---\nlicense: mit\n---\nmine"
    there = dynamic.load("hf://me/pets")
    assert there.ladder == bundle.ladder
    assert not any(path.is_symlink() for path in there.folder.rglob("*"))
    x = np.zeros((2, 2, 3), np.uint8)
    with there.runtime(monitor=dynamic.FixedMonitor(dynamic.Snapshot(0.0))) as run:
        assert run(x).name in ("cat: black", 'do"g', "# fish | ü")
    assert list((there.folder / "costs").iterdir())  # what is measured is kept for the next time
    assert dynamic.load(Path("hf://me/pets")).folder == there.folder  # as a command line gives it
    count = len(hub.asked)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert dynamic.load("hf://me/pets").folder == there.folder
    assert len(hub.asked) == count


def test_what_is_not_there_is_said(shelf: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.status = 404
    with pytest.raises(BundleError, match=r"hf://me/nothing cannot be downloaded .*Check name, revision and network"):
        dynamic.load("hf://me/nothing")
    hub.status = 403
    with pytest.raises(BundleError, match=r"me/pets cannot be uploaded .*Log in with `hf auth login`"):
        dynamic.load(shelf).push_to_hub("me/pets")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BundleError, match="hf://me/pets cannot be downloaded"):
        dynamic.load("hf://me/pets")


def test_a_link_out_of_the_cache_is_not_followed(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--pets" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (tmp_path / "secret").write_text("of somebody else")
    (snapshot / "records.npz").symlink_to(tmp_path / "secret")
    (tmp_path / "copy").mkdir()
    with pytest.raises(BundleError, match="leads out of the cache"):
        copy_without_links(snapshot, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


@pytest.mark.parametrize("name", ["hf://", "hf://me", "hf://../me", "hf://me/pets/../../x", "hf://me/pets@"])
def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(BundleError, match="names no repository"):
        dynamic.load(name)


def test_an_altered_file_of_the_hub_is_refused(shelf: Path, hub: Hub) -> None:
    dynamic.load(shelf).push_to_hub("me/pets")
    hub.files["graph.onnx"] = bytes(len(hub.files["graph.onnx"]))
    with pytest.raises(CorruptError, match=r"graph\.onnx"):
        dynamic.load("hf://me/pets")
