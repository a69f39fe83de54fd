"""What chose must not certify: batches are recognized, and networks keep the note of those that chose them."""

import copy
import gc
import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import fx, nn

import dynamic
from dynamic.errors import CalibrationError, InputError
from dynamic.models.compress.report import copied
from dynamic.offline.networks import used_data
from dynamic.offline.networks.used_data import RecordedLoader, batch_hash, check_fresh, hashes_of, remember

X = torch.arange(12, dtype=torch.float32).reshape(3, 4)
LABELS = torch.zeros(3, dtype=torch.int64)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_the_hash_by_hand() -> None:
    assert batch_hash(X) == hashlib.sha256(b"|float32(3, 4)" + X.numpy().tobytes()).hexdigest()
    assert batch_hash((X, X)) == hashlib.sha256(2 * (b"|float32(3, 4)" + X.numpy().tobytes())).hexdigest()


@pytest.mark.parametrize(
    "same",
    [X.clone(), X.numpy(), (X,), [X], {"input": X}, {"input": X, "mask": None},
     X.t().contiguous().t()],
)  # fmt: skip
def test_the_same_arrays_have_one_hash(same: Any) -> None:
    assert batch_hash(same) == batch_hash(X)


@pytest.mark.parametrize("other", [X + 1, X.reshape(4, 3), X[:2], X.int(), X.double(), (X, X), X.flip(0)])
def test_other_arrays_have_another(other: Any) -> None:
    assert batch_hash(other) != batch_hash(X)


def test_the_order_of_named_inputs_does_not_count() -> None:
    assert batch_hash({"a": X, "b": X + 1}) == batch_hash({"b": X + 1, "a": X}) == batch_hash((X, X + 1))


def test_a_loader_is_recorded_while_it_is_read() -> None:
    loader = RecordedLoader([(X, LABELS), (X + 1, LABELS)])
    assert loader.hashes == set()
    assert len(loader) == 2
    assert [int(inputs[0, 0]) for inputs, _ in loader] == [0, 1]
    assert loader.hashes == {batch_hash(X), batch_hash(X + 1)}
    with pytest.raises(InputError, match="is no loader"):
        list(RecordedLoader(X))


def test_notes_add_up_and_survive_copies() -> None:
    chosen = network()
    remember(chosen, ["a"])
    remember(chosen, ["b"])
    for duplicate in (copy.deepcopy(chosen), copied(chosen), copied(chosen, computed=False)):
        assert hashes_of(duplicate) == {"a", "b"}
    assert hashes_of(network()) == set()
    assert list(chosen.state_dict()) == list(network().state_dict())


def test_graph_modules_keep_it_too() -> None:
    traced = fx.symbolic_trace(network())
    remember(traced, ["a"])
    assert hashes_of(copy.deepcopy(copy.deepcopy(traced))) == {"a"}


def test_wrappers_hold_it() -> None:
    chosen = network()
    remember(chosen, ["a"])
    wrapped = dynamic.wrap(chosen, X, exits=1)
    assert hashes_of(wrapped) == {"a"}
    assert hashes_of(copy.deepcopy(wrapped)) == {"a"}
    assert hashes_of(dynamic.Cascade([network(), wrapped])) == {"a"}


def test_a_network_of_the_user_is_not_changed() -> None:
    given = network()
    before = dict(vars(given))
    remember(given, ["a"], on_network=False)
    assert vars(given) == before
    assert hashes_of(given) == {"a"}
    assert hashes_of(copied(given)) == {"a"}  # what is made from it was chosen too
    count = len(used_data._beside)
    del given
    gc.collect()
    assert len(used_data._beside) == count - 1


def test_batches_that_chose_are_refused() -> None:
    chosen, other = network(), network()
    remember(chosen, ["a", "b", "c"])
    check_fresh([chosen, other], ["d", "e"])
    check_fresh([other], ["a", "b"])
    with pytest.raises(CalibrationError, match=r"chose Sequential.*2 of 3 batches.* other images, or allow_reuse=True"):
        check_fresh([chosen, other], ["b", "c", "d"])
    check_fresh([chosen, other], ["b", "c", "d"], allow_reuse=True)


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(TypeError, match="network is a int"):
        remember(3, ["a"])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        batch_hash(np.array([object()]))
