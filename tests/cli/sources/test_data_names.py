"""Data sets by the names that commands take, each read and compared with what was written."""

import json
import shutil
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import dynamic
from dynamic.cli.sources.data_sets.batches import batches_of
from dynamic.cli.sources.data_sets.named_data import data_named
from dynamic.cli.sources.data_sets.text_tables import read_texts
from dynamic.errors import InputError


def pictures(folder: Path, sizes: tuple[tuple[int, int], ...] = ((8, 8),), per_class: int = 3) -> Path:
    """A folder of gray pictures whose value tells their class: 0 for cats, 100 for dogs."""
    for value, name in ((0, "cat"), (100, "dog")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            size = sizes[number % len(sizes)]
            Image.new("L", size, value + number).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_a_folder_or_zip_of_pictures(tmp_path: Path, packed: bool) -> None:
    source = pictures(tmp_path / "pets")
    if packed:
        source = Path(shutil.make_archive(str(tmp_path / "packed"), "zip", source))
    examples = data_named(str(source))
    assert (examples.kind, examples.classes, len(examples)) == ("images", ("cat", "dog"), 6)
    ((inputs, labels),) = batches_of(examples, dynamic.Preprocess.of((0.5,), (0.5,)), None, None)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = (np.array([0, 1, 2, 100, 101, 102]) / 255 - 0.5) / 0.5
    np.testing.assert_allclose(inputs[:, 0, 0, 0], expected, atol=1e-6)


def test_pictures_of_several_sizes_are_resized_as_single_ones_are(tmp_path: Path) -> None:
    examples = data_named(str(pictures(tmp_path / "pets", ((8, 8), (12, 9)))))
    preprocess = dynamic.Preprocess.of((0.5,), (0.5,), resize=6, crop=6)
    ((inputs, _),) = batches_of(examples, preprocess, None, None)
    for row, item in zip(inputs, examples.items, strict=True):
        np.testing.assert_allclose(row, preprocess(item.pixels())[0], atol=1e-6)
    with pytest.raises(InputError, match=r"2 sizes, .*: give --resize 256 --crop 224"):
        batches_of(examples, dynamic.Preprocess.of(), None, None)


def test_pictures_that_do_not_read_are_all_named(tmp_path: Path) -> None:
    source = pictures(tmp_path / "pets")
    for name in ("cat/0.png", "dog/1.png"):
        (source / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"2 of 6 files .* cat/0.png \(.*dog/1.png .*: remove them"):
        batches_of(data_named(str(source)), dynamic.Preprocess.of(), None, None)


def test_the_usual_splits_are_chosen_by_role(tmp_path: Path) -> None:
    for split, count in (("train", 4), ("val", 2), ("test", 3)):
        pictures(tmp_path / "pets" / split, per_class=count)
    source = str(tmp_path / "pets")
    assert (data_named(source).split, len(data_named(source))) == ("val", 4)
    assert data_named(source, role="train").split == "train"
    assert len(data_named(source, "test")) == 6
    with pytest.raises(InputError, match=r"no split 'vel'"):
        data_named(source, "vel")


def test_halves_are_by_lot_and_keep_the_classes(tmp_path: Path) -> None:
    examples = data_named(str(pictures(tmp_path / "pets", per_class=10)))
    train, held_out = examples.halves(seed=3)
    assert sorted(item.name for half in (train, held_out) for item in half.items) == [i.name for i in examples.items]
    assert np.bincount(train.labels).tolist() == np.bincount(held_out.labels).tolist() == [5, 5]
    assert [i.name for i in examples.halves(seed=3)[0].items] == [i.name for i in train.items]
    assert [i.name for i in examples.halves(seed=4)[0].items] != [i.name for i in train.items]


def test_a_folder_of_sounds(tmp_path: Path) -> None:
    for value, name in ((100, "low"), (9000, "high")):
        (tmp_path / "calls" / name).mkdir(parents=True)
        with wave.open(str(tmp_path / "calls" / name / "0.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(np.full(800, value, np.int16).tobytes())
    examples = data_named(str(tmp_path / "calls"))
    assert (examples.kind, examples.classes) == ("sounds", ("high", "low"))
    ((inputs, labels),) = batches_of(examples, dynamic.data.SoundPreprocess(8000, 800, None), None, None)
    np.testing.assert_allclose(inputs[:, 0] * 32768, [9000, 100], rtol=1e-5)
    assert labels.tolist() == [0, 1]
    with pytest.raises(InputError, match=r"holds sounds, and the network has nothing: give --preprocess"):
        batches_of(examples, None, None, None)


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_a_table_of_texts(tmp_path: Path, ending: str) -> None:
    rows = [("lights, off", "lights"), ('say "hi"', "music"), ("", "music")]
    path = tmp_path / f"texts.{ending}"
    if ending == "jsonl":
        path.write_text("\n".join(json.dumps({"label": label, "text": text}) for text, label in rows) + "\n\n")
    else:
        cut = "," if ending == "csv" else "\t"
        quoted = [f'"{text.replace(chr(34), chr(34) * 2)}"{cut}{label}' for text, label in rows]
        path.write_text("\n".join([f"text{cut}label", *quoted]))
    assert [(text, label) for _, text, label in read_texts(path)] == rows[:2]
    examples = data_named(str(path))
    assert (examples.kind, examples.classes, examples.labels.tolist()) == ("texts", ("lights", "music"), [0, 1])


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = tmp_path / "texts.csv"
    path.write_text("utterance,intent\na,x\nb,y\n")
    assert [row[1:] for row in read_texts(path)] == [("a", "x"), ("b", "y")]
    path.write_text("words,kind\na,x\nb,y\n")
    assert [row[1:] for row in read_texts(path)] == [("a", "x"), ("b", "y")]
    path.write_text("id,words,label\n1,a,x\n")
    with pytest.raises(InputError, match=r"columns \['id', 'words', 'label'\], and none called 'text'"):
        read_texts(path)
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "a", "label": "x"}\n{"text": "b"}\n')
    with pytest.raises(InputError, match=r"texts.jsonl:2 has no 'label'"):
        read_texts(path)
    path.write_text("{text}\n")
    with pytest.raises(InputError, match=r"texts.jsonl:1 is no JSON"):
        read_texts(path)


def test_a_data_set_of_torchvision(tmp_path: Path) -> None:
    import pickle

    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    values = np.arange(4 * 3072, dtype=np.uint64).reshape(4, 3072) % 251
    with pytest.raises(InputError, match=r"give --root"):
        data_named("torchvision:CIFAR10")
    with pytest.raises(InputError, match=r"did you mean .*CIFAR10"):
        data_named("torchvision:CIFAR1", root=str(tmp_path))
    with pytest.raises(InputError, match=r"do not load from .*download=True"):
        data_named("torchvision:CIFAR10", root=str(tmp_path))
    # torchvision's own check is of the published files, and this is about how its data set is read
    from torchvision.datasets import CIFAR10

    (folder / "test_batch").write_bytes(pickle.dumps({"data": values.astype(np.uint8), "labels": [3, 1, 3, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {i}" for i in range(10)]}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CIFAR10, "_check_integrity", lambda _: True)
        patch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": None})
        examples = data_named("torchvision:CIFAR10", root=str(tmp_path))
    assert (examples.split, examples.labels.tolist(), len(examples.classes)) == ("test", [3, 1, 3, 0], 10)
    ((inputs, _),) = batches_of(examples, dynamic.Preprocess.of(), 3, None)
    np.testing.assert_allclose(inputs.reshape(4, 3072) * 255, values, atol=1e-3)


def test_a_function_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_data", raising=False)
    file = tmp_path / "own_data.py"
    file.write_text(
        "import numpy as np, torch\n"
        "def batches(): return [(np.zeros((2, 4), np.float32), np.array([0, 1]))] * 3\n"
        "def rows(): return torch.utils.data.TensorDataset(torch.zeros(70, 4), torch.zeros(70, dtype=torch.long))\n"
        "def broken(): return 1 / 0\n"
        "number = 7\n"
    )
    examples = data_named(f"{file}:batches")
    assert (examples.kind, len(list(batches_of(examples, None, None, None)))) == ("batches", 3)
    sizes = [len(labels) for _, labels in batches_of(data_named(f"{file}:rows"), None, None, None)]
    assert sizes == [64, 6]
    with pytest.raises(InputError, match=r"raised ZeroDivisionError: .* \(own_data.py, line 4\)"):
        data_named(f"{file}:broken")
    with pytest.raises(InputError, match=r"gave a int: return a DataLoader"):
        data_named(f"{file}:number")
    with pytest.raises(InputError, match=r"no attribute 'batchs', did you mean 'batches'"):
        data_named(f"{file}:batchs")
    with pytest.raises(InputError, match=r"batches, which are not divided: name data that train"):
        examples.halves(0)
    sys.modules.pop("own_data")


def test_what_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"do not exist: give a folder or zip"):
        data_named(str(tmp_path / "nothing"))
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(InputError, match=r"no data set that is known"):
        data_named(str(tmp_path / "notes.txt"))
    pictures(tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "dog")
    with pytest.raises(InputError, match=r"the one class \['cat'\]"):
        data_named(str(tmp_path / "alone"))
    pictures(tmp_path / "mixed")
    (tmp_path / "mixed" / "cat" / "0.wav").write_bytes(b"")
    with pytest.raises(InputError, match=r"6 images and 1 wav files"):
        data_named(str(tmp_path / "mixed"))
