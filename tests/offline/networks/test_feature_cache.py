"""The features a head reads are those of the network, in memory as on disk."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks.fitting_networks import ExitNet, PooledHead, WholeHead, digits
from torch import nn

from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.feature_cache import FeatureCache, checked_batches, classified, extracted, pooled
from dynamic.policies.errors import InputError

PLAIN = Acceleration(torch.device("cpu"), bf16=False, channels_last=False)


def features(
    network: ExitNet, loader: Any, limit_mb: float = 100.0, folder: Path | None = None
) -> AbstractContextManager[FeatureCache]:
    return extracted(
        network.eval(),
        network.exit_stages,
        [0, 1],
        checked_batches(loader, None),
        PLAIN,
        memory_limit_mb=limit_mb,
        cache_dir=folder,
    )


def batches(count: int = 50) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y, _, _ = digits()
    return [(x[i : i + 20], y[i : i + 20]) for i in range(0, count, 20)]


@pytest.mark.parametrize("head", [PooledHead, WholeHead])
@pytest.mark.parametrize("limit_mb", [100.0, 0.003])
def test_heads_give_the_networks_logits_from_features(head: type[nn.Module], limit_mb: float, tmp_path: Path) -> None:
    network = ExitNet(head)
    loader = batches()
    expected = [torch.cat(parts) for parts in zip(*(network.eval()(x) for x, _ in loader), strict=True)]
    with features(network, loader, limit_mb, tmp_path) as cache:
        assert cache.on_disk == (limit_mb < 1)
        assert len(list(tmp_path.iterdir())) == int(cache.on_disk)
        assert cache.labels.tolist() == torch.cat([y for _, y in loader]).tolist()
        index = np.array([41, 3, 3, 59])
        found, labels = cache.rows(index)
        assert labels.tolist() == cache.labels[index].tolist()
        for i in range(2):
            logits = classified(network.heads[i])(found[i])
            torch.testing.assert_close(logits, expected[i][index])
    assert list(tmp_path.iterdir()) == []


def test_size_in_memory_is_told() -> None:
    with features(ExitNet(), batches()) as cache:
        assert cache.size_mb == 60 * (8 + 16) * 4 / 1e6


def test_the_folder_goes_when_reading_fails(tmp_path: Path) -> None:
    x, y, _, _ = digits()
    with (
        pytest.raises(InputError, match="labels run"),
        features(ExitNet(), [*batches(), (x[:2], y[:2] + 10)], 1e-6, tmp_path),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_inputs_of_several_sizes() -> None:
    x, y, _, _ = digits()
    mixed = [(x[:4], y[:4]), (x[:4, :, :4, :4], y[:4])]
    with features(ExitNet(PooledHead), mixed) as cache:  # pooled, they are all alike
        assert cache.features[0].shape == (8, 8)
    with pytest.raises(InputError, match=r"\[8, 4, 4\] after \[8, 8, 8\].*Resize"), features(ExitNet(WholeHead), mixed):
        pass


def test_order_tells_other_data() -> None:
    orders = []
    for loader in (batches(), batches(), batches()[::-1]):
        with features(ExitNet(), loader) as cache:
            orders.append(cache.order())
    assert orders[0] == orders[1] != orders[2]


def test_only_heads_with_both_methods_are_split() -> None:
    split, whole = PooledHead(3, 2), nn.Flatten()
    x = torch.randn(4, 3, 2, 2)
    torch.testing.assert_close(split.eval()(x), classified(split)(pooled(split)(x)))
    assert torch.equal(pooled(whole)(x), x)
    assert classified(whole) is whole
