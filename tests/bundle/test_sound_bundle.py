"""A bundle that takes sounds: from a waveform to an answer, as the networks were trained."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.io import wavfile
from torch import nn

import dynamic
from dynamic.data import LogMel, Sound, SoundPreprocess
from dynamic.policies.errors import CorruptError, InputError, SettingError

RATE = 8000
PREPROCESS = SoundPreprocess(RATE, 2000, LogMel(mels=16, fft=128, hop=64), shorter="pad")
FREQUENCIES = (300, 700, 1500, 3000)


def tone(label: int, seed: int, count: int = 2000) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    """A tone of one of four frequencies in noise, 16 bits."""
    random, time = np.random.default_rng(seed), np.arange(count) / RATE
    wave = np.sin(2 * np.pi * FREQUENCIES[label] * random.uniform(0.9, 1.1) * time) + random.normal(0, 0.5, count)
    return (wave * 3000).astype(np.int16)


def tones(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    labels = np.arange(count) % 4
    sounds = [tone(label, 1000 * seed + i) for i, label in enumerate(labels)]
    return torch.from_numpy(PREPROCESS(sounds)), torch.from_numpy(labels)


def trained(width: int) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 1)), nn.Flatten(), nn.Linear(4 * width, 4)
    )
    x, y = tones(0, 200)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    return [trained(4), trained(16)]


@pytest.fixture(scope="module")
def bundle(networks: list[nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    x, y = tones(1, 400)
    loader = list(zip(x.split(50), y.split(50), strict=True))
    names = [f"{hz} Hz" for hz in FREQUENCIES]
    made = dynamic.build(networks, loader, max_drops=(0.05,), preprocess=PREPROCESS, classes=names, progress=False)
    return made.save(tmp_path_factory.mktemp("sound") / "shelf")


def test_a_waveform_gives_the_answer_of_the_network(bundle: dynamic.Bundle, networks: list[nn.Module]) -> None:
    sounds = [tone(i % 4, 5000 + i) for i in range(12)]
    with torch.no_grad():
        expected = networks[-1](torch.from_numpy(PREPROCESS(sounds))).argmax(1).tolist()
    with dynamic.load(bundle.folder).runtime(dynamic.Budget(max_drop=0.0)) as run:
        for sound, label in zip(sounds, expected, strict=True):
            results = [run(sound), run(Sound(sound, RATE)), run((RATE, sound)), run(sound / 32768)]
            assert all(isinstance(result, dynamic.Prediction) for result in results)
            assert [result.label for result in results] == [label] * 4
            assert results[0].name == f"{FREQUENCIES[label]} Hz"
        several = run([Sound(sound, RATE) for sound in sounds])
        assert isinstance(several, dynamic.BatchResult)
        assert several.label.tolist() == expected
        assert isinstance(run([sounds[0]]), dynamic.BatchResult)
        assert run(np.stack(sounds)).label.tolist() == expected
        assert isinstance(run(tone(1, 7, count=900)), dynamic.Prediction)  # padded


def test_what_does_not_fit_is_refused_and_the_next_request_is_answered(bundle: dynamic.Bundle) -> None:
    with bundle.runtime() as run:
        for sound, words in (
            (Sound(tone(0, 1), 44100), "44100 samples a second, expected 8000"),
            (Sound(np.stack([tone(0, 1)] * 2), RATE), "several channels"),
            (tone(0, 1, count=3000), "too long"),
            (np.full(2000, np.nan), "not finite"),
            (np.full(2000, 3000.0), "32768"),
        ):
            with pytest.raises(InputError, match=words):
                run(sound)
            future = run.submit(sound)
            with pytest.raises(InputError, match=words):
                future.result(60)
        assert run(tone(2, 3)).label == 2
        features = PREPROCESS(tone(2, 3))
        assert run({"input": features}).label.tolist() == [2]


def test_sounds_that_repeat_are_no_camera(bundle: dynamic.Bundle) -> None:
    with bundle.runtime() as run:
        for _ in range(40):
            run(tone(1, 1))
        assert run.stats().near_duplicates == 0
    with pytest.raises(SettingError, match="no input is an image"):
        bundle.runtime(drift=dynamic.DriftOptions(only_changed=True))


def test_it_runs_without_torch(bundle: dynamic.Bundle) -> None:
    code = """
import sys
sys.modules["torch"] = None
import dynamic
sound = dynamic.data.load_sound(sys.argv[2])
with dynamic.load(sys.argv[1]).runtime() as run:
    print(run(sound).name)
    print([run(window).label for window in dynamic.data.windows(sound, 2000)])
"""
    import wave

    path = bundle.folder / "tone.wav"
    with wave.open(str(path), "wb") as writer:
        writer.setparams((1, 2, RATE, 0, "NONE", ""))
        writer.writeframes(tone(3, 11).astype("<i2").tobytes())
    try:
        done = subprocess.run(
            [sys.executable, "-c", "import dynamic.data\n" + code, str(bundle.folder), str(path)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        path.unlink()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["3000 Hz", "[3]"]


def test_preprocessing_that_makes_another_input_is_refused_when_building(networks: list[nn.Module]) -> None:
    x, y = tones(2, 100)
    other = SoundPreprocess(RATE, 2000, LogMel(mels=20, fft=128, hop=64))
    with pytest.raises(InputError, match=r"makes \[1, 20, 32\] of a sound, and the network takes \[1, 16, 32\]"):
        dynamic.build(networks, [(x, y)], preprocess=other, progress=False)


def test_another_feature_is_another_fingerprint(bundle: dynamic.Bundle) -> None:
    from dataclasses import replace

    other = replace(bundle, preprocess=replace(PREPROCESS, features=LogMel(mels=16, fft=128, hop=64, floor=1e-5)))
    assert other.fingerprint("onnxruntime", "f32") != bundle.fingerprint("onnxruntime", "f32")


def test_a_graph_takes_the_features(bundle: dynamic.Bundle, networks: list[nn.Module], tmp_path: Path) -> None:
    session = onnxruntime.InferenceSession(dynamic.export(bundle, tmp_path / "whole.onnx"))
    sounds = [tone(i % 4, 6000 + i) for i in range(6)]
    features = PREPROCESS(sounds)
    logits, stage, _ = session.run(None, {"input": features, "thresholds": np.array([np.inf], np.float32)})
    with torch.no_grad():
        expected = networks[-1](torch.from_numpy(features)).argmax(1).tolist()
    assert logits.argmax(1).tolist() == expected
    assert stage.tolist() == [1] * 6
    metadata = session.get_modelmeta().custom_metadata_map
    assert SoundPreprocess.from_json(json.loads(metadata["dynamic.preprocess"])) == PREPROCESS


def command(bundle: dynamic.Bundle, *arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "dynamic", "run", str(bundle.folder), *arguments]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_the_command_reads_wav_files(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    """A folder with a class folder, a stereo file, one of another rate, a damaged one and two that are none."""
    inside = tmp_path / "test" / "700 Hz"
    inside.mkdir(parents=True)
    wavfile.write(inside / "a.wav", RATE, tone(1, 5001))
    wavfile.write(inside / "b.WAV", RATE, np.stack([tone(1, 5001)] * 2, axis=1))
    wavfile.write(tmp_path / "other.wav", 44100, tone(1, 5001))
    (tmp_path / "damaged.wav").write_bytes((inside / "a.wav").read_bytes()[:30])
    (tmp_path / ".hidden.wav").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no sound")
    done = command(bundle, str(tmp_path), "--json")
    assert done.returncode == 0, done.stderr
    *rows, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(row["file"]).name for row in rows] == ["a.wav", "b.WAV"]
    with dynamic.load(bundle.folder).runtime() as run:
        names = [run(tone(1, 5001)).name] * 2  # type: ignore[union-attr]
    assert [(row["class"], row["name"]) for row in rows] == [("700 Hz", name) for name in names]
    reasons = {Path(left["file"]).name: left["reason"] for left in last["summary"]["left_out"]}
    assert sorted(reasons) == ["damaged.wav", "other.wav"]
    assert "44100 samples a second, expected 8000" in reasons["other.wav"]
    assert "does not read" in reasons["damaged.wav"]
    alone = command(bundle, str(inside / "a.wav"), str(tmp_path), "--split", "test", "--json")
    files = [json.loads(line).get("file", "") for line in alone.stdout.splitlines()]
    assert [Path(file).name for file in files] == ["a.wav", "a.wav", "b.WAV", ""]


@pytest.mark.parametrize(
    ("place", "words"),
    [("missing.wav", "does not exist"), ("", "holds no wav files"), ("picture.png", "does not read as a wav file")],
)
def test_the_command_says_what_it_takes(bundle: dynamic.Bundle, tmp_path: Path, place: str, words: str) -> None:
    (tmp_path / "picture.png").write_bytes(b"no picture")
    done = command(bundle, str(tmp_path / place))
    assert done.returncode == 1
    assert words in " ".join(done.stderr.split())


def test_damaged_settings_are_no_bundle(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    from dynamic.bundle.manifest import MANIFEST, manifest_hash

    archive = tmp_path / "shelf.zip"
    with zipfile.ZipFile(archive, "w") as written:
        for file in bundle.folder.rglob("*"):
            written.write(file, file.relative_to(bundle.folder))
    with zipfile.ZipFile(archive) as read:
        read.extractall(tmp_path / "shelf")
    path = tmp_path / "shelf" / MANIFEST
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    manifest["preprocess"]["steps"][1]["mels"] = 2**30
    path.write_text(json.dumps(manifest | {"sha256": manifest_hash(manifest)}))
    with pytest.raises(CorruptError, match="mels"):
        dynamic.load(tmp_path / "shelf")
