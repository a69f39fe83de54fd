"""int8 sums on every processor: numpy computes both arithmetics, 32-bit sums and pairs that saturate in 16 bits."""

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import nn

import dynamic
from dynamic.models.compress.quantization.int8_arithmetic import Grid, Int8Linear
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.models.compress.quantization.sum_scales import without_ties
from dynamic.models.compress.quantization.weight_codes import saturating_channels, weight_codes, weight_scales
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.policies.errors import SettingError


def exact_sum(activations: NDArray[np.int64], weights: NDArray[np.int64]) -> int:
    """What VNNI, AMX and ARM compute: products of codes `[D]`, added in 32 bits."""
    return int((activations * weights).sum())


def saturating_sum(activations: NDArray[np.int64], weights: NDArray[np.int64]) -> int:
    """What `vpmaddubsw` computes: products are added in pairs, each sum is cut off at 16 bits, then added in 32."""
    products = activations * weights
    products = np.pad(products, (0, len(products) % 2))
    return int(np.clip(products.reshape(-1, 2).sum(1), -32768, 32767).sum())


def test_both_arithmetics_by_hand() -> None:
    activations, weights = np.array([255, 255, 3]), np.array([127, 127, -2])
    assert exact_sum(activations, weights) == 64764
    assert saturating_sum(activations, weights) == 32767 - 6
    assert saturating_sum(activations, -weights) == -32768 + 6
    # 255 * 128 = 32640 fits, 255 * 129 = 32895 does not
    assert saturating_sum(np.array([255, 255]), np.array([64, 64])) == 32640
    assert saturating_sum(np.array([255, 255]), np.array([64, 65])) == 32767


@settings(max_examples=200, deadline=None)
@given(arrays(np.float32, (3, 6), elements=st.floats(-100, 100, width=32)), st.integers(0, 5))
def test_portable_codes_never_saturate_whichever_weights_meet(weight: NDArray[np.float32], zeroed: int) -> None:
    weight[:, zeroed] = 0
    tensor = torch.from_numpy(weight)
    codes = weight_codes(tensor, weight_scales(tensor, "portable"), "portable").numpy().astype(np.int64)
    for row in codes:
        for a, b in itertools.permutations(row.tolist(), 2):
            for x, y in itertools.product((0, 255), repeat=2):  # a sum of products is largest at the ends
                pair, both = np.array([x, y]), np.array([a, b])
                assert saturating_sum(pair, both) == exact_sum(pair, both)


def test_full_codes_saturate_and_are_counted() -> None:
    weight = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 0.004, 0.0]])
    codes = weight_codes(weight, weight_scales(weight, "full"), "full")
    assert codes.tolist() == [[127, 127, 0], [127, -127, 0], [127, 1, 0]]
    # 254 can saturate, 127 and -127 cannot meet on one side, and 128 is the largest pair that cannot
    assert saturating_channels(codes) == 1


def test_portable_keeps_all_bits_where_nothing_can_saturate() -> None:
    weight = torch.tensor([[1.0, 1.0, 0.5], [1.0, -1.0, 0.0], [1.0, 0.004, 0.0], [0.0, 0.0, 0.0], [3.0, 1.0, 1.0]])
    codes = weight_codes(weight, weight_scales(weight, "portable"), "portable")
    assert codes.tolist() == [[64, 64, 32], [127, -127, 0], [127, 1, 0], [0, 0, 0], [96, 32, 32]]
    assert saturating_channels(codes) == 0
    seven = weight_codes(weight, weight_scales(weight, "seven_bits"), "seven_bits")
    assert int(seven.abs().max()) == 63


def test_a_pair_that_rounds_up_to_129_is_brought_back() -> None:
    scale = torch.tensor([1.0])
    assert weight_codes(torch.tensor([[64.6, 64.6, 1.0]]), scale, "portable").tolist() == [[63, 65, 1]]
    assert weight_codes(torch.tensor([[-64.6, -64.6, 64.4]]), scale, "portable").tolist() == [[-63, -65, 64]]


def test_a_single_weight_has_no_pair() -> None:
    weight = torch.tensor([[2.0], [-2.0]])
    assert weight_codes(weight, weight_scales(weight, "portable"), "portable").tolist() == [[127], [-127]]


class Sum(nn.Module):
    """One linear layer whose weights are all the same: the pairs of any order saturate alike."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4, bias=False)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([1.0, -1.0, 0.5, 0.25])[:, None].expand(4, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.mark.parametrize("weight_range", ["portable", "full"])
def test_an_engine_adds_exactly_or_saturates_and_portable_weights_only_exactly(
    tmp_path: Path, weight_range: str
) -> None:
    x = torch.ones(2, 64)
    made = quantize(Sum(), x, calibration_loader=[x], ranges="minmax", weight_range=weight_range, latency=False)  # type: ignore[arg-type]
    (layer,) = [m for m in made.network.modules() if isinstance(m, Int8Linear)]
    codes, full = layer.codes.numpy().astype(np.int64), np.full(64, 255)
    step = layer.scales.numpy() / 255
    exact, saturating = (np.array([add(full, row) for row in codes]) * step for add in (exact_sum, saturating_sum))
    export_stages(dynamic.Cascade(made.network), tmp_path, x, progress=False)
    session = onnxruntime.InferenceSession(str(tmp_path / "backbones" / "0_0.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0][0]
    is_exact, is_saturating = (np.allclose(logits, sums, rtol=1e-5) for sums in (exact, saturating))
    if weight_range == "portable":
        assert np.array_equal(exact, saturating)
        assert is_exact
        assert made.report.facts["saturating_channels"] == {}
    else:
        assert not np.allclose(exact, saturating)
        assert is_exact or is_saturating, "the processor decides which"
        assert made.report.facts["saturating_channels"] == {"layer": 4}


def test_an_unknown_weight_range_is_refused() -> None:
    with pytest.raises(SettingError, match=r"weight_range='8 bits' is not known\. Use one of portable"):
        quantize(Sum(), torch.ones(2, 64), calibration_loader=[torch.ones(2, 64)], weight_range="8 bits")  # type: ignore[arg-type]


# ---- sums of two tensors


def closest_tie(result: Grid, first: Grid, second: Grid) -> float:
    """Of all pairs of codes, how close the real sum comes to the middle between two codes of the result."""
    a, b = (np.arange(*(g.codes[0], g.codes[1] + 1)) * g.scale for g in (first, second))
    codes = (a[:, None] + b[None, :]) / result.scale
    inside = codes[(codes > result.codes[0] - 0.5) & (codes < result.codes[1] + 0.5)]
    return float(np.abs(inside % 1 - 0.5).min())


def test_a_sum_has_no_pair_at_a_tie() -> None:
    first, second, result = Grid(0.02, 0, False), Grid(0.02, 0, True), Grid(0.04, 0, False)
    assert closest_tie(result, first, second) == pytest.approx(0, abs=1e-9), "every odd sum is a tie"
    better = without_ties(result, first, second)
    assert closest_tie(better, first, second) > 1e-5
    assert result.scale < better.scale <= result.scale * 1.004
    assert (better.zero_point, better.signed) == (0, False)
