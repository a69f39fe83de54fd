"""Calibration over a data set of Ray Data: the records of a loader, bit for bit."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.serving.ray_cases import QUIET, blobs, local_ray
from torch import nn

import dynamic

data = pytest.importorskip("ray.data", reason='needs Ray Data: pip install "dynamic-inference[ray]"')
pytestmark = QUIET

COUNT, BATCH = 610, 32  # the last batch has 2 rows


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with local_ray():
        data.DataContext.get_current().enable_progress_bars = False
        yield


@pytest.fixture(scope="module")
def networks() -> list[nn.Module]:
    torch.manual_seed(3)
    return [
        nn.Sequential(nn.Linear(12, 2), nn.Linear(2, 4)),
        nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 4)),
    ]


INPUTS, LABELS = blobs(COUNT, seed=5), np.arange(COUNT) % 4


def dataset(blocks: int) -> Any:
    rows = [{"x": row, "label": int(label)} for row, label in zip(INPUTS, LABELS, strict=True)]
    return data.from_items(rows, override_num_blocks=blocks)


def test_the_records_are_the_same_to_the_bit(networks: list[nn.Module]) -> None:
    """The blocks of the data set have other sizes than the batches, and two actors share them."""
    starts = range(0, COUNT, BATCH)
    loader = [(torch.from_numpy(INPUTS[at : at + BATCH]), torch.from_numpy(LABELS[at : at + BATCH])) for at in starts]
    here = dynamic.calibrate(networks, loader, progress=False)
    batches = dynamic.RayBatches(dataset(7), columns="x", batch=BATCH, actors=2, cpus=0.5)
    there = dynamic.calibrate(networks, batches, progress=False)
    assert here.label is not None
    assert there.label is not None
    np.testing.assert_array_equal(there.logits, here.logits)
    np.testing.assert_array_equal(there.label, here.label)
    np.testing.assert_array_equal(there.part, here.part)
    assert there.fingerprint == here.fingerprint
    assert there.made_on == here.made_on
    assert there.stage_names == here.stage_names


def test_records_name_the_engine_of_the_actors(networks: list[nn.Module]) -> None:
    loader = [(torch.from_numpy(INPUTS), torch.from_numpy(LABELS))]
    here = dynamic.calibrate(networks, loader, progress=False)
    threads = json.loads(here.made_on or "")["threads"] + 1
    batches = dynamic.RayBatches(dataset(1), columns="x", batch=COUNT, threads=threads, cpus=0.5)
    there = dynamic.calibrate(networks, batches, progress=False)
    assert json.loads(there.made_on or "") == json.loads(here.made_on or "") | {"threads": threads}
    assert there.fingerprint == here.fingerprint


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(COUNT) % 4 + 0.2, r"labels are float64 of shape .*expected class indices"),
        ((np.arange(COUNT) % 4).astype(str), "expected class indices"),
        (np.eye(4)[np.arange(COUNT) % 4] / 2, "expected class indices"),
    ],
)
def test_labels_that_a_loader_may_not_have(networks: list[nn.Module], labels: Any, message: str) -> None:
    rows = [{"x": row, "label": label} for row, label in zip(INPUTS, labels.tolist(), strict=True)]
    batches = dynamic.RayBatches(data.from_items(rows, override_num_blocks=1), columns="x", cpus=0.5)
    with pytest.raises(dynamic.errors.InputError, match=message):
        dynamic.calibrate(networks, batches, progress=False)


def test_labels_may_be_one_hot(networks: list[nn.Module]) -> None:
    rows = [{"x": row, "label": label} for row, label in zip(INPUTS, np.eye(4)[LABELS], strict=True)]
    batches = dynamic.RayBatches(data.from_items(rows, override_num_blocks=1), columns="x", batch=COUNT, cpus=0.5)
    np.testing.assert_array_equal(dynamic.calibrate(networks, batches, progress=False).label, LABELS)


def test_as_a_loader_it_gives_the_rows_in_their_order() -> None:
    read = list(dynamic.RayBatches(dataset(5), columns={"input": "x"}, batch=BATCH))
    assert [len(labels) for _, labels in read if labels is not None] == [BATCH] * (COUNT // BATCH) + [COUNT % BATCH]
    np.testing.assert_array_equal(np.concatenate([inputs["input"] for inputs, _ in read]), INPUTS)
    (inputs, labels), *_ = dynamic.RayBatches(dataset(1), columns="x", labels=None, batch=COUNT)
    assert labels is None
    np.testing.assert_array_equal(inputs, INPUTS)


def test_what_does_not_fit_is_named(networks: list[nn.Module]) -> None:
    with pytest.raises(dynamic.errors.SettingError, match="actors=0 must be a whole number of at least 1"):
        dynamic.RayBatches(dataset(1), columns="x", actors=0)
    with pytest.raises(dynamic.errors.InputError, match=r"no column 'y', but \['label', 'x'\]"):
        dynamic.calibrate(networks, dynamic.RayBatches(dataset(1), columns="y"), progress=False)
    with pytest.raises(dynamic.errors.SettingError, match="engine='torch' runs in one process"):
        dynamic.calibrate(networks, dynamic.RayBatches(dataset(1), columns="x"), engine="torch", progress=False)
