"""Data that trained or chose a network do not certify it."""

import copy
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks.fitting_networks import ExitNet, digits, digits_loader
from torch import Tensor, nn

import dynamic
from dynamic.errors import CalibrationError, InputError
from dynamic.offline.networks.network_copies import deep_copy
from dynamic.offline.networks.used_data import batch_hash, check_fresh, hashes_of, remember

X = torch.arange(6, dtype=torch.float32).reshape(2, 3)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def hashes(loader: Any) -> set[str]:
    return {batch_hash(inputs) for inputs, _ in loader}


def parts() -> tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Training batches, and others of the same digits."""
    x, y, test_x, test_y = digits()
    return [(x[i : i + 50], y[i : i + 50]) for i in (0, 50)], [(test_x[:300], test_y[:300])]


def test_the_hash_is_of_bytes_type_and_shape() -> None:
    own = hashlib.sha256(b"|float32(2, 3)" + np.arange(6, dtype="<f4").tobytes()).hexdigest()
    assert batch_hash(X) == own
    assert batch_hash(X.numpy()) == own
    assert batch_hash(X.t().contiguous().t()) == own  # by value, however it lies in memory
    assert len({own, batch_hash(X + 1), batch_hash(X.double()), batch_hash(X.reshape(3, 2))}) == 4
    assert batch_hash({"b": X, "a": X + 1}) == batch_hash({"a": X + 1, "b": X}) == batch_hash((X + 1, X))
    assert batch_hash(X.bfloat16()) == batch_hash(X.bfloat16()) != batch_hash((X + 1).bfloat16())


def test_hashes_travel_with_copies_and_parts_and_not_with_weights() -> None:
    network = plain()
    assert hashes_of(network) == frozenset()
    remember(network, ["one"])
    remember(network, ["two"])
    for other in (network, copy.deepcopy(network), deep_copy(network), nn.Sequential(network)):
        assert hashes_of(other) == {"one", "two"}
    assert list(network.state_dict()) == ["1.weight", "1.bias"]
    fresh = plain()
    fresh.load_state_dict(network.state_dict())
    assert hashes_of(fresh) == frozenset()


def test_a_batch_that_a_network_knows_is_refused() -> None:
    network = plain()
    remember(network, ["one"])
    check_fresh([plain(), network], ["other"], False)
    check_fresh([plain(), network], ["one"], True)
    with pytest.raises(CalibrationError, match=r"chose Sequential.*1 of 2 batches.*allow_reuse=True"):
        check_fresh([plain(), network], ["one", "other"], False)


@pytest.mark.parametrize("options", [{}, {"mode": "joint"}, {"training": dynamic.TrainingConfig(cache=False)}])
def test_fit_records_the_batches_of_one_reading(options: dict[str, Any]) -> None:
    train, _ = parts()
    network = ExitNet()
    dynamic.fit(network, train, epochs=2, progress=False, **options)
    assert hashes_of(network) == hashes(train)
    moved = options.get("mode") == "joint"
    assert hashes_of(network.backbone) == (hashes(train) if moved else set())


def test_an_interrupted_and_a_finished_run_record_too(tmp_path: Path) -> None:
    train, _ = parts()

    class Interrupted(list[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield self[0]
            raise KeyboardInterrupt

    network = plain()
    with pytest.raises(KeyboardInterrupt):
        dynamic.fit(network, Interrupted(train), mode="joint", epochs=1)
    assert hashes_of(network) == hashes(train[:1])
    path = tmp_path / "run.safetensors"
    dynamic.fit(plain(), train, mode="joint", epochs=1, checkpoint=path)
    resumed = plain()
    assert dynamic.fit(resumed, train, mode="joint", epochs=1, checkpoint=path).resumed == 1
    assert hashes_of(resumed) == hashes(train)


def test_data_on_which_nothing_was_trained_are_not_recorded() -> None:
    train, _ = parts()
    network = plain()
    with pytest.raises(InputError, match="labels run from 100"):
        dynamic.fit(network, [(train[0][0], train[0][1] + 100)], mode="joint", epochs=1)
    assert hashes_of(network) == frozenset()


def test_build_refuses_what_trained_a_network() -> None:
    train, other = parts()
    network = plain()
    dynamic.fit(network, train, mode="joint", epochs=1, progress=False)
    small = plain()
    for loader in (train, [*other, train[1]], iter(train), [(x.numpy(), y) for x, y in train]):
        with pytest.raises(CalibrationError, match="a calibration batch trained or chose Sequential"):
            dynamic.build([small, network], loader, progress=False)
        with pytest.raises(CalibrationError, match="a calibration batch trained or chose Sequential"):
            dynamic.build([small, copy.deepcopy(network)], train, progress=False)
    assert len(dynamic.build([small, network], other, progress=False).records) == 300
    assert len(dynamic.build([small, network], train, allow_reuse=True, progress=False).records) == 100


def test_build_refuses_what_chose_exits() -> None:
    x, _, test_x, test_y = digits()
    torch.manual_seed(0)
    backbone = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)
    )
    dynamic.fit(backbone, digits_loader(), mode="joint", epochs=3, progress=False)
    net = dynamic.wrap(backbone.eval(), x[:2], exits=["2"])
    dynamic.fit(net, digits_loader(), epochs=3, progress=False)
    chosen, other = [(test_x[:300], test_y[:300])], [(test_x[300:], test_y[300:])]
    selected = dynamic.select_exits(net, x[:2], selection_loader=chosen, max_drops=(0.05,), progress=False).network
    assert hashes_of(selected) == hashes_of(net) | hashes(chosen)
    assert hashes(chosen).isdisjoint(hashes_of(net))
    with pytest.raises(CalibrationError, match="a calibration batch trained or chose"):
        dynamic.build(selected, chosen, progress=False)
    assert len(dynamic.build(selected, other, progress=False).records) == len(test_y) - 300
