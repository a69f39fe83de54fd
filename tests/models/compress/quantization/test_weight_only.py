"""Weights in few bits: codes by hand, files bit for bit."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet, save_weights
from dynamic.models.compress.quantization.weight_only import (
    WeightsCompressed,
    load_codes,
    pack_codes,
    quantize_weights,
    save_codes,
    unpack_codes,
)
from dynamic.policies.errors import CorruptError, InputError, SettingError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return CifarResNet(8, width=8).eval()


def compressed(network: nn.Module, bits: int = 4, x: Tensor = X, **options: object) -> WeightsCompressed:
    return quantize_weights(network, x, bits=bits, latency=False, **options)  # type: ignore[arg-type]


def test_values_by_hand() -> None:
    """A scale that is a power of two, weights on its multiples: nothing is lost."""
    layer = nn.Linear(4, 2, bias=False)
    exact = torch.tensor([[7.0, -7, 3, 0], [0.5, -1, 3.5, 1.5]])
    with torch.no_grad():
        layer.weight.copy_(exact)
    made = compressed(layer, 4, torch.zeros(2, 4))
    assert torch.equal(made.network.weight, exact)  # type: ignore[arg-type]
    coded = made.coded["weight"]
    assert coded.codes.tolist() == [[7, -7, 3, 0], [1, -2, 7, 3]]
    assert coded.scales.tolist() == [[1], [0.5]]
    assert made.report.facts["relative_error"] == {"weight": 0}


def test_groups_have_scales_of_their_own() -> None:
    layer = nn.Linear(5, 1, bias=False)
    exact = torch.tensor([[7.0, 1, 0.07, 0.01, 100]])
    with torch.no_grad():
        layer.weight.copy_(exact)
    whole, groups = (compressed(layer, 4, torch.zeros(2, 5), group=group) for group in (None, 2))
    assert whole.coded["weight"].scales.shape == (1, 1)
    assert groups.coded["weight"].scales.shape == (1, 3)  # the last has one weight
    errors = [m.report.facts["relative_error"]["weight"] for m in (whole, groups)]
    assert errors[1] < errors[0] / 10
    torch.testing.assert_close(groups.network.weight, exact, rtol=0.01, atol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", range(2, 9))
def test_as_many_values_as_bits_allow(bits: int) -> None:
    made = compressed(resnet(), bits)
    for name, coded in made.coded.items():
        most = 2 ** (bits - 1) - 1
        assert int(coded.codes.abs().max()) <= most
        rows = made.network.get_parameter(name).flatten(1)
        assert max(len(row.unique()) for row in rows) <= 2 * most + 1


def test_more_bits_lose_less_and_take_more() -> None:
    network = resnet()
    made = [compressed(network, bits) for bits in range(2, 9)]
    errors = [sum(m.report.facts["relative_error"].values()) for m in made]
    sizes = [m.report.after.file_bytes for m in made]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.02 * len(made[-1].coded)
    assert sizes == sorted(sizes)


def test_the_scale_is_the_best_of_those_tried() -> None:
    """One large weight among many small ones: a scale that reaches to it loses more."""
    layer = nn.Linear(1001, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([torch.linspace(-1, 1, 1000), torch.tensor([1.5])])[None])
    made = compressed(layer, 3, torch.zeros(2, 1001))
    weight, ours = layer.weight.detach(), made.network.get_parameter("weight").detach()
    plain = (weight / 0.5).round().clamp(-3, 3) * 0.5
    assert float((ours - weight).square().sum()) < float((plain - weight).square().sum())


def test_the_original_stays_and_shared_weights_stay_shared() -> None:
    network = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    network[1].weight = network[0].weight
    before = copy.deepcopy(network.state_dict())
    made = compressed(network, 3, torch.zeros(2, 8))
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    first, second = made.network[0], made.network[1]  # type: ignore[index]
    assert first.weight is second.weight
    assert list(made.coded) == ["0.weight"]
    assert not torch.equal(first.weight, network[0].weight)


def test_transposed_convolutions_have_a_scale_for_each_output() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(3, 5, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    made = compressed(network, 4)
    assert made.coded["0.weight"].scales.shape == (5, 1)
    assert made.report.facts["relative_error"]["0.weight"] < 0.2


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_by_bits(bits: int) -> None:
    most = 2 ** (bits - 1) - 1
    codes = np.random.default_rng(0).integers(-most, most + 1, 37).astype(np.int8)
    packed = pack_codes(codes, bits)
    assert len(packed) == -(-37 * bits // 8)
    np.testing.assert_array_equal(unpack_codes(packed, bits, 37), codes)
    with pytest.raises(ValueError, match="bytes"):
        unpack_codes(packed[:-1], bits, 37)


def test_packing_by_hand() -> None:
    assert pack_codes(np.array([-7, 7], np.int8), 4).tolist() == [0b0001_1111]
    assert pack_codes(np.array([-1, 0, 1, 1, 0], np.int8), 2).tolist() == [0b01_10_11_11, 0b10_00_00_00]


@pytest.mark.parametrize(("bits", "group"), [(2, None), (3, 16), (4, 32), (8, None)])
def test_files_give_the_same_bits(tmp_path: Path, bits: int, group: int | None) -> None:
    made = compressed(resnet(), bits, group=group, skip=["linear"])
    size = save_codes(made, tmp_path / "w.safetensors")
    assert size == (tmp_path / "w.safetensors").stat().st_size == made.report.after.file_bytes
    other = resnet(1)
    load_codes(other, tmp_path / "w.safetensors")
    for name, tensor in made.network.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_a_file_is_as_small_as_it_says(tmp_path: Path) -> None:
    layer = nn.Linear(1024, 512, bias=False)
    made = compressed(layer, 4, torch.zeros(2, 1024), group=64)
    scales = 512 * 16 * 2
    assert 1024 * 512 // 2 + scales < made.report.after.file_bytes < 1024 * 512 // 2 + scales + 1000
    assert made.report.before.file_bytes == 4 * 1024 * 512


def test_half_precision_and_wrapped_networks(tmp_path: Path) -> None:
    half = nn.Sequential(nn.Linear(6, 4)).half()
    made = compressed(half, 4, torch.zeros(2, 6).half())
    assert made.network.get_parameter("0.weight").dtype == torch.float16
    save_codes(made, tmp_path / "half.safetensors")
    load_codes(half, tmp_path / "half.safetensors")
    assert torch.equal(half[0].weight, made.network.get_parameter("0.weight"))
    net = dynamic.wrap(resnet(), X, exits=1)
    exits = compressed(net, 6)
    assert len(exits.network(X)) == 2
    assert any(name.startswith("heads.") for name in exits.coded)
    assert exits.network.exit_stages[0].name == net.exit_stages[0].name  # type: ignore[union-attr, index, operator]


def test_damaged_and_foreign_files(tmp_path: Path) -> None:
    made, path = compressed(resnet()), tmp_path / "w.safetensors"
    save_codes(made, path)
    whole = path.read_bytes()
    other = resnet(1)
    before = copy.deepcopy(other.state_dict())
    path.write_bytes(whole[:-7] + bytes([whole[-7] ^ 1]) + whole[-6:])
    with pytest.raises(CorruptError, match="altered"):
        load_codes(other, path)
    path.write_bytes(whole[:-100])
    with pytest.raises(CorruptError):
        load_codes(other, path)
    with pytest.raises(CorruptError, match="does not exist"):
        load_codes(other, tmp_path / "none.safetensors")
    save_weights(other, path)
    with pytest.raises(InputError, match="no weight codes"):
        load_codes(other, path)
    path.write_bytes(whole)
    with pytest.raises(InputError, match="another network"):
        load_codes(CifarResNet(14, width=8), path)
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_weights_changed_since_are_not_saved(tmp_path: Path) -> None:
    made = compressed(resnet())
    with torch.no_grad():
        made.network.get_parameter("conv1.weight")[0] += 1
    with pytest.raises(InputError, match=r"conv1\.weight"):
        save_codes(made, tmp_path / "w.safetensors")


def test_what_is_left_alone() -> None:
    network = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 3), nn.Linear(3, 2))
    tokens = torch.zeros(2, dtype=torch.int64)
    made = compressed(network, 4, tokens, skip=["2"])
    assert set(made.report.left_alone) == {"0.weight", "2.weight"}
    assert torch.equal(made.network.get_parameter("2.weight"), network[2].weight)
    dead = nn.Linear(3, 2)
    nn.init.zeros_(dead.weight)
    assert compressed(dead, 2, torch.zeros(2, 3)).network.get_parameter("weight").abs().sum() == 0


@pytest.mark.parametrize("bits", [1, 9, 4.5, True])
def test_bits_out_of_range(bits: int) -> None:
    with pytest.raises(SettingError, match="2 to 8"):
        compressed(resnet(), bits)


def test_other_bad_input() -> None:
    network = resnet()
    for group in (0, -1, 1.5, True):
        with pytest.raises(SettingError, match="group"):
            compressed(network, 4, group=group)
    with pytest.raises(InputError, match="layer9"):
        compressed(network, 4, skip=["layer9"])
    with pytest.raises(InputError, match="no weight"):
        compressed(nn.ReLU(), 4)
    with torch.no_grad():
        network.get_parameter("conv1.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match=r"conv1\.weight"):
        compressed(network, 4)
    assert compressed(network, 4, skip=["conv1"]).coded
