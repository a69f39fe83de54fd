"""`predict` and `predict_proba`: what `run` answers, as arrays, whatever form the inputs have."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynamic
from dynamic.errors import InputError, SettingError

CLASSES = ("ant", "bee", "cow")


@pytest.fixture(scope="module", params=[CLASSES, None], ids=["names", "numbers"])
def run(request: pytest.FixtureRequest) -> Iterator[dynamic.Runtime]:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(8, w), nn.ReLU(), nn.Linear(w, 3)) for w in (2, 8)]
    held_out = [(torch.randn(300, 2, 4), torch.arange(300) % 3)]
    bundle = dynamic.build(networks, held_out, classes=request.param, progress=False)
    policy, monitor = dynamic.policies.FixedPolicy("reference"), dynamic.FixedMonitor(dynamic.Snapshot(0.0))
    with bundle.runtime(policy=policy, monitor=monitor, drift_alpha=None) as opened:
        yield opened


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(70, 2, 4)).astype(np.float32)


def test_predictions_are_those_of_single_answers(run: dynamic.Runtime, inputs: np.ndarray) -> None:
    single = [run(row) for row in inputs]
    labels, table = run.predict(inputs, batch_size=16), run.predict_proba(inputs, batch_size=16)
    named = run.bundle.classes is not None
    assert labels.tolist() == [answer.name if named else answer.label for answer in single]
    assert table.dtype == np.float32
    assert np.allclose(table, [answer.probabilities for answer in single], atol=1e-6)
    assert np.allclose(table.sum(axis=1), 1, atol=1e-5)
    assert run.classes_[table.argmax(axis=1)].tolist() == labels.tolist()  # as scikit-learn promises
    assert run.classes_.tolist() == (list(CLASSES) if named else [0, 1, 2])


def test_every_form_of_inputs_gives_the_same(run: dynamic.Runtime, inputs: np.ndarray) -> None:
    expected = run.predict(inputs).tolist()
    (name,) = (i.name for i in run.bundle.spec.inputs)
    tensors = torch.from_numpy(inputs)
    labelled = DataLoader(TensorDataset(tensors, torch.zeros(len(inputs))), batch_size=16)
    forms = [list(inputs), {name: inputs}, (inputs,), tensors, labelled, (inputs[i : i + 7] for i in range(0, 70, 7))]
    for form in forms:
        assert run.predict(form, batch_size=9).tolist() == expected


def test_nothing_in_nothing_out(run: dynamic.Runtime, inputs: np.ndarray) -> None:
    assert run.predict(inputs[:0]).shape == (0,)
    assert run.predict_proba(inputs[:0]).shape == (0, 3)


def test_a_row_without_a_finite_answer(run: dynamic.Runtime, inputs: np.ndarray) -> None:
    rows = inputs[:3].copy()
    rows[1] = np.nan
    missing = "" if run.bundle.classes else -1
    assert [label == missing for label in run.predict(rows)] == [False, True, False]
    assert np.isnan(run.predict_proba(rows)[1]).all()


def test_what_is_no_batch(run: dynamic.Runtime, inputs: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"give x\[None\] or \[x\]"):
        run.predict(inputs[0])
    with pytest.raises(InputError, match="was given a int"):
        run.predict(3)
    with pytest.raises(InputError, match="was given a str"):
        run.predict("turn the lights on")
    with pytest.raises(InputError, match="what has no rows"):
        run.predict(np.float32(3))
    with pytest.raises(SettingError, match="batch_size=0"):
        run.predict(inputs, batch_size=0)
