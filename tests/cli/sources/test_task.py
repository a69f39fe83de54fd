"""Who trains and who is held out: nothing that trained a network certifies it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import dynamic
from dynamic.cli.sources.networks.named_networks import NamedNetwork
from dynamic.cli.sources.networks.network_files import Recipe, TrainedOn
from dynamic.cli.sources.task import DataOptions, Task, prepared
from dynamic.data import CenterCrop, Gray, Normalize, Resize, Scale
from dynamic.errors import CalibrationError, InputError, SettingError


def pictures(folder: Path, first: int, count: int) -> Path:
    """Pictures of cats and dogs whose value is their number."""
    for number in range(first, first + count):
        place = folder / ("cat" if number % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), number).save(place / f"{number}.png")
    return folder


def network(*trained_on: TrainedOn, classes: tuple[str, ...] | None = None, preprocess: object = None) -> NamedNetwork:
    return NamedNetwork("own", nn.Identity(), Recipe("own:network", classes=classes, trained_on=trained_on), preprocess)


def values(batches: object) -> set[int]:
    return {round(float(row) * 255) for inputs, _ in batches for row in inputs[:, 0, 0, 0]}  # type: ignore[attr-defined]


def ready(networks: list[NamedNetwork], data: Path, *, trains: bool, **options: object) -> Task:
    return prepared(networks, DataOptions(str(data), **options), trains=trains)  # type: ignore[arg-type]


def test_half_of_the_data_train_where_nothing_else_is_named(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pets", 0, 40)
    task = ready([network()], data, trains=True, seed=3)
    train, held_out = values(task.train), values(task.held_out)
    assert not train & held_out
    assert train | held_out == set(range(40))
    assert len(train) == 20
    assert task.trained_on == (TrainedOn(str(data.resolve()), None, True, 3),)
    # what was trained with that lot is held out with the same, whatever the seed of the next command is
    after = network(*task.trained_on)
    assert values(ready([after], data, trains=False, seed=8).held_out) == held_out
    again = ready([after], data, trains=True, seed=8)
    assert (values(again.train), values(again.held_out)) == (train, held_out)
    assert again.trained_on == task.trained_on
    assert values(ready([network()], data, trains=False).held_out) == set(range(40))


def test_what_trained_whole_or_by_two_lots_is_refused(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pets", 0, 8)
    place = str(data.resolve())
    for trained_on in (
        [TrainedOn(place, None, False, 0)],
        [TrainedOn(place, None, True, 0), TrainedOn(place, None, True, 1)],
    ):
        for trains in (False, True):
            with pytest.raises(CalibrationError, match="what trained may not certify"):
                ready([network(*trained_on)], data, trains=trains)
    other = network(TrainedOn(str(tmp_path / "others"), None, False, 0))
    assert len(values(ready([other], data, trains=False).held_out)) == 8


def test_splits(tmp_path: Path) -> None:
    for split, first in (("train", 0), ("val", 100), ("test", 200)):
        pictures(tmp_path / "pets" / split, first, 8)
    data = tmp_path / "pets"
    task = ready([network()], data, trains=True)
    assert (values(task.train), values(task.held_out)) == (set(range(8)), set(range(100, 108)))
    assert task.trained_on == (TrainedOn(str(data.resolve()), "train", False, 0),)
    task = ready([network(*task.trained_on)], data, trains=False, split="test")
    assert values(task.held_out) == set(range(200, 208))
    task = ready([network()], data, trains=True, split="test", train_split="val")
    assert (values(task.train), values(task.held_out)) == (set(range(100, 108)), set(range(200, 208)))
    with pytest.raises(SettingError, match="is what is held out too"):
        ready([network()], data, trains=True, split="test", train_split="test")


def test_labels_are_those_of_the_network_s_classes(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pets", 0, 8)
    task = ready([network(classes=("bird", "dog", "cat"))], data, trains=False)
    assert task.classes == ("bird", "dog", "cat")
    for inputs, labels in task.held_out:
        numbers = np.rint(inputs[:, 0, 0, 0] * 255).astype(int)
        assert labels.tolist() == [2 if number % 2 else 1 for number in numbers]
    assert ready([network(classes=("left", "right"))], data, trains=False).classes == ("cat", "dog")
    with pytest.raises(InputError, match=r"answers 3 classes \(a, b, c\), and .* has 2 \(cat, dog\)"):
        ready([network(classes=("a", "b", "c"))], data, trains=False)


def test_options_replace_steps_of_the_network_s_own_preprocessing(tmp_path: Path) -> None:
    data = pictures(tmp_path / "pets", 0, 8)
    own = dynamic.Preprocess((Resize(8), CenterCrop((6, 6)), Gray(), Scale(), Normalize((0.5,), (0.5,))))
    steps = ready([network(preprocess=own)], data, trains=False).preprocess.steps
    assert steps == own.steps
    task = ready([network(preprocess=own)], data, trains=False, mean="0.1", std="0.2")
    assert task.preprocess.steps == (*own.steps[:4], Normalize((0.1,), (0.2,)))
    task = ready([network(preprocess=own)], data, trains=False, resize="5x4")
    assert task.preprocess.steps == (Resize((5, 4)), *own.steps[2:])
    assert ready([network()], data, trains=False, limit=3).shape == (1, 4, 4)


@pytest.mark.parametrize("options", [{"mean": "a"}, {"std": "inf"}, {"resize": "0"}, {"crop": "1x2x3"}, {"limit": 0}])
def test_options_are_checked_before_anything_is_read(options: dict[str, object]) -> None:
    with pytest.raises(SettingError, match=f"--{next(iter(options))} "):
        DataOptions("nowhere", **options)  # type: ignore[arg-type]
