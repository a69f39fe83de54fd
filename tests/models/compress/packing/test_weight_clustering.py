"""Shared values against scikit-learn's k-means, gradients by hand, and training that keeps them shared."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from sklearn.cluster import KMeans
from support.networks.fitting_networks import digits, digits_loader, fit
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.packing.weight_clustering import centroids, cluster, nearest, settle, share_values
from dynamic.models.compress.pruning.weight_pruning import masks, prune_weights
from dynamic.models.compress.report import copied
from dynamic.policies.errors import InputError, SettingError

PICTURE = torch.zeros(2, 1, 8, 8)


def small(seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    return CifarResNet(8, in_channels=1, width=8).eval()


def distinct(weight: Tensor) -> int:
    return len(torch.unique(weight[weight != 0]))


@pytest.mark.parametrize("number", [1, 2, 5, 16])
def test_centroids_are_those_of_kmeans(number: int) -> None:
    values = np.random.default_rng(number).normal(size=2000)
    found = centroids(values, number)
    begin = np.linspace(values.min(), values.max(), number)[:, None]
    theirs = KMeans(number, init=begin, n_init=1, max_iter=1000, tol=0, algorithm="lloyd").fit(values[:, None])
    assert found == pytest.approx(np.sort(theirs.cluster_centers_[:, 0]), abs=1e-9)
    assert (
        nearest(values, found).tolist()
        == np.argsort(np.argsort(theirs.cluster_centers_[:, 0]))[theirs.labels_].tolist()
    )


def test_by_hand() -> None:
    values = np.array([0.0, 1.0, 10.0, 11.0, 12.0])
    assert centroids(values, 2).tolist() == [0.5, 11.0]
    assert nearest(values, np.array([0.5, 11.0])).tolist() == [0, 0, 1, 1, 1]
    assert nearest(np.array([5.75]), np.array([0.5, 11.0])).tolist() == [1]  # halfway: the upper one


def test_no_centroid_stays_empty() -> None:
    """Linear steps from 0 to 100 leave all but two without values."""
    values = np.array([0.0, 1.0, 2.0, 3.0, 99.0, 100.0])
    found = centroids(values, 5)
    assert len(np.unique(nearest(values, found))) == 5
    assert np.square(values - found[nearest(values, found)]).sum() == pytest.approx(0.5)  # one pair of neighbours


def test_weights_take_few_values_and_zeros_stay() -> None:
    network = small()
    before = {name: t.clone() for name, t in network.state_dict().items()}
    pruned = prune_weights(network, PICTURE, amount=0.5, latency=False).network
    compressed = cluster(pruned, PICTURE, clusters={"conv": 4, "linear": 6}, latency=False)
    made = dict(compressed.network.named_parameters())
    assert made.keys() == dict(network.named_parameters()).keys()
    for name, weight in made.items():
        if weight.ndim == 4:
            assert distinct(weight) == 4
        elif weight.ndim == 2:
            assert distinct(weight) == 6
        else:
            assert torch.equal(weight, before[name])
    held = masks(pruned)
    assert len(held) == 8
    assert all(torch.equal(made[name] != 0, mask) for name, mask in held.items())
    assert compressed.report.facts["clusters"]["linear.weight"] == 6
    assert all(torch.equal(before[name], t) for name, t in network.state_dict().items())


def test_each_value_is_the_mean_of_its_weights() -> None:
    network = nn.Sequential(nn.Linear(3, 2, bias=False))
    network[0].weight.data = torch.tensor([[0.0, 1.0, 3.0], [-5.0, -4.0, 8.0]])
    found = cluster(network, torch.zeros(1, 3), clusters=3, latency=False).network
    assert found[0].weight.tolist() == [[0.0, 2.0, 2.0], [-4.5, -4.5, 8.0]]


def test_the_gradient_of_a_value_is_the_sum_over_its_weights() -> None:
    network = nn.Sequential(nn.Linear(3, 2, bias=False))
    network[0].weight.data = torch.tensor([[0.0, 1.0, 3.0], [-5.0, -4.0, 8.0]])
    share_values(network, 3)
    x = torch.tensor([[1.0, 10.0, 100.0]])
    (network(x) * torch.tensor([[1.0, 2.0]])).sum().backward()
    # d/dw = [[1, 10, 100], [2, 20, 200]]; values: -4.5 (2 + 20), 2 (10 + 100), 8 (200); the zero has none
    (table,) = network.parameters()
    assert table.tolist() == [-4.5, 2.0, 8.0]
    assert table.grad is not None
    assert table.grad.tolist() == [22.0, 110.0, 200.0]


@pytest.mark.parametrize("fast", [False, True], ids=["f32", "bf16 channels last"])
def test_training_keeps_the_values_shared(fast: bool) -> None:
    network = small()
    dynamic.fit(network, digits_loader(), mode="joint", epochs=2, lr=0.1, progress=False)
    shared = copied(network)
    share_values(shared, 3)
    untrained = copied(network)
    settle(shared, untrained)
    options: dict[str, Any] = {"autocast": fast, "channels_last": fast, "progress": False}
    fit(shared, digits_loader(), mode="joint", epochs=2, lr=1e-3, optimizer="adamw", **options)
    trained = copied(network)
    settle(shared, trained)
    assert [n for n, _ in trained.named_parameters()] == [n for n, _ in network.named_parameters()]
    assert all(distinct(w) == 3 for w in trained.parameters() if w.ndim > 1)
    assert not torch.equal(trained.linear.weight, untrained.linear.weight)
    _, _, x, y = digits()
    right = [(net.eval()(x).argmax(1) == y).float().mean().item() for net in (untrained, trained)]
    assert right[1] > right[0] + 0.05


def test_cluster_trains_and_goes_on_alike(tmp_path: Path) -> None:
    network, loader = small(), digits_loader(count=300)
    options: dict[str, Any] = {"train_loader": loader, "latency": False, "progress": False}
    whole = cluster(network, PICTURE, clusters=4, epochs=2, **options)
    kept = cluster(network, PICTURE, clusters=4, epochs=2, checkpoint=tmp_path / "run", **options)
    again = cluster(network, PICTURE, clusters=4, epochs=2, checkpoint=tmp_path / "run", **options)
    bare = cluster(network, PICTURE, clusters=4, latency=False)
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(kept.network.state_dict()[name], tensor)
        assert torch.equal(again.network.state_dict()[name], tensor)
    assert not torch.equal(bare.network.linear.weight, whole.network.linear.weight)
    assert all(distinct(w) <= 4 for w in whole.network.parameters() if w.ndim > 1)


def test_shared_weights_stay_shared() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    shared = copied(network)
    share_values(shared, 3)
    assert len(list(shared.parameters())) == 3  # one table, two biases
    made = cluster(network, torch.zeros(1, 4), clusters=3, latency=False).network
    assert made[2].weight is made[0].weight
    assert distinct(made[0].weight) == 3
    assert network[2].weight is network[0].weight


def test_exits_as_the_backbone() -> None:
    torch.manual_seed(0)
    network = dynamic.wrap(small(), PICTURE, exits=2)
    found = cluster(network, PICTURE, clusters=5, latency=False).network
    weights = [w for w in found.parameters() if w.ndim > 1]
    assert all(distinct(w) == 5 for w in weights)
    assert len(weights) == len([w for w in network.parameters() if w.ndim > 1])
    assert [x.shape for x in found(PICTURE)] == [x.shape for x in network(PICTURE)]
    trained = cluster(
        network, PICTURE, clusters=5, train_loader=digits_loader(count=200), epochs=1, latency=False
    ).network
    assert all(distinct(w) <= 5 for w in trained.parameters() if w.ndim > 1)
    assert not torch.equal(trained.backbone.linear.weight, found.backbone.linear.weight)


def narrow(name: str) -> nn.Module:
    """Networks of torchvision with random weights, the large ones as small as their class allows."""
    models = torchvision.models
    torch.manual_seed(0)
    if name == "vit_b_16":
        return models.VisionTransformer(32, 16, 2, 4, 64, 128, num_classes=10)
    if name == "swin_t":
        return models.SwinTransformer([4, 4], 24, [2, 2], [2, 4], [4, 4], num_classes=10)
    if name == "convnext_tiny":
        return models.ConvNeXt([models.convnext.CNBlockConfig(n, 2 * n, 2) for n in (24, 48)], num_classes=10)
    return models.get_model(name, weights=None)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "swin_t", "vit_b_16"])
def test_torchvision(name: str) -> None:
    network = narrow(name)
    x = torch.randn(1, 3, 32, 32)
    found = cluster(network, x, clusters=4, latency=False, reduce=True)
    weights = {n: w for n, w in found.network.named_parameters() if n in found.report.facts["clusters"]}
    assert len(weights) > 8
    assert all(distinct(w) <= 4 for w in weights.values())
    left = [n for n, w in network.named_parameters() if w.ndim > 1 and n not in weights]
    assert sorted(found.report.left_alone) == sorted(left)
    assert found.network.eval()(x).shape == network.eval()(x).shape


def test_what_is_left_alone() -> None:
    network = nn.ModuleDict({"words": nn.Embedding(9, 4), "one": nn.Linear(4, 8), "two": nn.Linear(8, 8)})
    left = share_values(network, {"linear": 2}, skip=("two",))
    assert left == {"words.weight": "Embedding is neither a convolution nor a linear layer", "two.weight": "in skip"}
    conv = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2))
    assert share_values(conv, {"linear": 2}) == {"0.weight": "clusters does not name conv"}
    zero = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(zero[0].weight)
    assert share_values(zero, 2, reduce=True) == {"0.weight": "all its weights are 0"}


def test_fewer_weights_than_clusters() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 9))
    with pytest.raises(InputError, match=r"0\.weight has 4 distinct weights besides 0, fewer than clusters=5"):
        cluster(network, torch.zeros(1, 2), clusters=5, latency=False)
    assert [n for n, _ in network.named_parameters()] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    found = cluster(network, torch.zeros(1, 2), clusters=5, reduce=True, latency=False)
    assert found.report.facts["clusters"] == {"0.weight": 4, "1.weight": 5}
    assert torch.equal(found.network[0].weight, network[0].weight)


def test_bad_settings() -> None:
    network, x = small(), PICTURE
    with pytest.raises(SettingError, match="clusters=0 for conv"):
        cluster(network, x, clusters=0)
    with pytest.raises(SettingError, match=r"clusters='dense' is not known\. Use one of conv, linear"):
        cluster(network, x, clusters={"dense": 4})
    with pytest.raises(SettingError, match="epochs=3 and train_loader=None"):
        cluster(network, x, clusters=4, epochs=3)
    with pytest.raises(InputError, match=r"skip=\['layer9'\]"):
        cluster(network, x, clusters=4, skip=("layer9",))
    network.linear.weight.data[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"linear\.weight holds NaN"):
        cluster(network, x, clusters=4)
