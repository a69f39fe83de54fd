"""Norms without statistics and numbers of half precision: the same function, or as near as float16 is."""

import pytest
import torch
from torch import nn

from dynamic.models.compress.packing.half_precision import simple_norms, to_half_precision
from dynamic.policies.errors import InputError


def normed() -> nn.Sequential:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(4, affine=False)
    fresh = nn.BatchNorm2d(4, track_running_stats=False)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, eps=0.1), plain, nn.BatchNorm2d(4), fresh).eval()
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point() and not name.startswith("0."):
            tensor.copy_(torch.rand(tensor.shape) * 3)
    return network


def test_norms_by_hand() -> None:
    network = nn.Sequential(nn.BatchNorm1d(1, eps=0.0)).eval()
    network.load_state_dict(
        {"0.weight": torch.tensor([6.0]), "0.bias": torch.tensor([1.0]), "0.running_mean": torch.tensor([5.0])}
        | {"0.running_var": torch.tensor([4.0]), "0.num_batches_tracked": torch.tensor(7)}
    )
    found = simple_norms(network)  # 6 (x - 5) / 2 + 1 = 3 x - 14
    state = {name.removeprefix("0."): tensor.item() for name, tensor in found.state_dict().items()}
    assert state == {"weight": 3, "bias": -14, "running_mean": 0, "running_var": 1, "num_batches_tracked": 7}
    assert network[0].running_mean.item() == 5


def test_norms_compute_the_same() -> None:
    network, x = normed(), torch.randn(5, 3, 8, 8)
    found = simple_norms(network)
    assert not torch.equal(found[1].weight, network[1].weight)
    assert torch.allclose(found.eval()(x), network(x), atol=1e-4)
    assert torch.equal(found[2].running_mean, network[2].running_mean)  # nowhere to put it


def test_rounded_numbers_are_those_of_float16() -> None:
    network = normed()
    network.register_buffer("whole", torch.tensor(3))
    found = to_half_precision(network)
    for name, tensor in found.state_dict().items():
        before = network.state_dict()[name]
        assert tensor.dtype == before.dtype
        assert torch.equal(tensor, before.half().to(before.dtype))
    assert not torch.equal(found[0].weight, network[0].weight)


def test_what_float16_does_not_reach() -> None:
    network = nn.Linear(1, 1)
    network.weight.data.fill_(7e4)
    with pytest.raises(InputError, match=r"weight holds 7e\+04, and float16 ends at 65504: keep it in float32"):
        to_half_precision(network)
