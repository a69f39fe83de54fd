"""Multiply-adds of networks that are int8 in part, counted by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dynamic
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.offline.tracing.multiply_adds import cost_macs, count_macs

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONV, LAST = 8 * 3 * 9 * 6 * 6, 288 * 10  # multiply-adds of the two layers


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).eval()


@pytest.mark.parametrize(
    ("skip", "cost"),
    [((), 0.5 * (CONV + LAST)), (("0",), CONV + 0.5 * LAST), (("3",), 0.5 * CONV + LAST)],
)
def test_only_layers_in_int8_count_half(skip: tuple[str, ...], cost: float) -> None:
    small = quantize(network(), X, calibration_loader=[X], skip=skip, latency=False).network
    assert count_macs(small, (X,)).total == CONV + LAST
    assert cost_macs(small, (X,)) == cost
    assert cost_macs(network(), (X,)) == CONV + LAST


def test_after_it_was_traced_again_too() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10)
    )
    small = quantize(plain.eval(), X, calibration_loader=[X], skip=("2",), latency=False).network
    net = dynamic.wrap(small, X, exits=1)
    whole = 0.5 * CONV + 8 * 8 * 9 * 4 * 4 + 0.5 * 128 * 10
    carry, cost = (X,), 0.0
    for stage in net.exit_stages:
        cost += cost_macs(stage.body, carry)
        carry = stage.body(*carry)
    assert cost == whole


def test_a_matrix_product_of_a_sequence() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Flatten(), nn.Linear(40, 3)).eval()
    x = torch.randn(4, 5, 6)
    small = quantize(plain, x, calibration_loader=[x], skip=("3",), latency=False).network
    assert cost_macs(small, (x,)) == 0.5 * 5 * 6 * 8 + 40 * 3


def test_scores_and_sums_of_attention_are_counted() -> None:
    """5 texts of 7 positions, 2 heads of 4 numbers, 9 positions that are read, some of them masked."""

    class Attention(nn.Module):
        def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    query, key, value = torch.randn(5, 2, 7, 4), torch.randn(5, 2, 9, 4), torch.randn(5, 2, 9, 4)
    mask = torch.arange(9).expand(5, 1, 7, 9) < 6
    counted = count_macs(Attention(), (query, key, value, mask))
    assert counted.total == 2 * 7 * 9 * (4 + 4)
    assert set(counted.not_counted) <= {"scalar_tensor", "where"}  # which put the mask into numbers
