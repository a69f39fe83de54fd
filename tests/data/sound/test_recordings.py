"""wav files in folders and zips, as images are found there."""

import wave
import zipfile
from pathlib import Path

import pytest

from dynamic.data.sound.recordings import find_recordings
from dynamic.policies.errors import InputError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`test/one/{a,b}.wav`, `train/two/c.WAV`, and what is no recording. The same in `data.zip`."""
    root = tmp_path / "data"
    for number, name in enumerate(("test/one/a.wav", "test/one/b.wav", "train/two/c.WAV")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(root / name), "wb") as writer:
            writer.setparams((1, 2, 8000, 0, "NONE", ""))
            writer.writeframes(bytes([number, 0, 7, 1]))
    (root / "test" / "one" / "notes.txt").write_text("no sound")
    (root / "test" / "one" / ".hidden.wav").write_bytes(b"no sound")
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for file in sorted(root.rglob("*")):
            archive.write(file, file.relative_to(root))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_and_its_zip_hold_the_same(tree: Path, packed: bool) -> None:
    source = tree.with_suffix(".zip") if packed else tree
    found = find_recordings([source])
    assert [(one.folder, one.place.name) for one in found] == [("one", "a.wav"), ("one", "b.wav"), ("two", "c.WAV")]
    assert [one.sound().samples.tolist() for one in found] == [[number, 263] for number in range(3)]
    assert [one.place.name for one in find_recordings([source], "train")] == ["c.WAV"]
    with pytest.raises(InputError, match=r"holds no wav files of split 'val': it has \['test', 'train'\]"):
        find_recordings([source], "val")


def test_the_split_may_be_the_folder_that_is_given(tree: Path) -> None:
    assert len(find_recordings([tree / "test"], "test")) == 2
    with pytest.raises(InputError, match=r"of split 'train': it has \['test'\]"):
        find_recordings([tree / "test"], "train")


def test_a_damaged_recording_of_a_zip_is_named(tree: Path) -> None:
    with zipfile.ZipFile(tree / "damaged.zip", "w") as archive:
        archive.writestr("one/cut.wav", (tree / "test" / "one" / "a.wav").read_bytes()[:20])
    (recording,) = find_recordings([tree / "damaged.zip"])
    with pytest.raises(InputError, match=r"damaged\.zip/one/cut\.wav does not read as a wav file"):
        recording.sound()
