"""The spectrogram network: what it computes, and that it can be cut and shipped."""

import pytest
import torch

import dynamic
from dynamic.models import SpectrogramCNN
from dynamic.policies.errors import SettingError


@pytest.mark.parametrize(("mels", "frames"), [(40, 51), (16, 1), (1, 7), (33, 64)])
def test_shapes(mels: int, frames: int) -> None:
    assert SpectrogramCNN(7, mels, width=4)(torch.randn(3, 1, mels, frames)).shape == (3, 7)


def test_loudness_and_what_lies_30_db_below_the_loudest_change_nothing() -> None:
    network = SpectrogramCNN(5, 24, width=8).eval()
    sound = 4 * torch.randn(2, 1, 24, 40)
    with torch.no_grad():
        expected = network(sound)
        torch.testing.assert_close(network(sound - 3.5), expected, rtol=1e-4, atol=1e-5)
        loudest = sound.amax((1, 2, 3), keepdim=True)
        without_noise = torch.where(sound < loudest - 7, loudest - 20, sound)
        assert (without_noise != sound).any()
        torch.testing.assert_close(network(without_noise), expected, rtol=1e-4, atol=1e-5)


def test_it_gets_exits() -> None:
    sound = torch.randn(2, 1, 24, 40)
    network = SpectrogramCNN(5, 24, width=8).eval()
    net = dynamic.wrap(network, sound, exits=2)
    assert net.tracer == "fx"
    with torch.no_grad():
        logits = net(sound)
        assert len(logits) == 3
        torch.testing.assert_close(logits[-1], network(sound))


@pytest.mark.parametrize(
    "settings", [{"classes": 0}, {"mels": 0}, {"width": 0}, {"classes": 2.5}, {"dropout": 1.0}, {"dropout": -0.1}]
)
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=str(next(iter(settings)))):
        SpectrogramCNN(**({"classes": 5, "mels": 24} | settings))  # type: ignore[arg-type]
