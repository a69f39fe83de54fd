"""bf16 and channels-last: where asked, and by default only where the processor has bf16."""

import pytest
import torch
from torch import nn

from dynamic.offline.networks.acceleration import Acceleration
from dynamic.policies.errors import SettingError


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("avx512_bf16", [True, False])
def test_by_default_where_the_processor_has_bf16(amx: bool, avx512_bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    found = Acceleration.choose(nn.Linear(1, 1), None, None, None)
    assert found == Acceleration(torch.device("cpu"), amx or avx512_bf16, amx or avx512_bf16)


def test_as_asked() -> None:
    assert Acceleration.choose(nn.ReLU(), "cpu", True, False) == Acceleration(torch.device("cpu"), True, False)
    assert Acceleration.choose(nn.ReLU(), "cpu", False, True) == Acceleration(torch.device("cpu"), False, True)


def test_autocast_computes_in_bf16() -> None:
    network, x = nn.Linear(4, 4), torch.randn(2, 4)
    for bf16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        with Acceleration(torch.device("cpu"), bf16, False).autocast():
            assert network(x).dtype == dtype


def test_images_alone_change_their_order() -> None:
    placed = Acceleration(torch.device("cpu"), False, True)
    image, row = torch.randn(2, 3, 4, 5), torch.randn(2, 3)
    assert placed.place(image).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(placed.place(image), image)
    assert placed.place(row) is row
    assert Acceleration(torch.device("cpu"), False, False).place(image) is image


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_here() -> None:
    with pytest.raises(SettingError, match="device='cuda' cannot be used here"):
        Acceleration.choose(nn.Linear(1, 1), "cuda", None, None)
