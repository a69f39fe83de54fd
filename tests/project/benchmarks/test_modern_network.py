"""The modern CIFAR-10 network of the benchmarks: its two forms agree, and training continues where it stopped."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from benchmarks.cascades import modern_network
from benchmarks.cascades.modern_network import Images, Recipe, Trained, average_decay, deployed, rate_factor, train
from benchmarks.runtime import as_users_run
from dynamic.data import ImageSet
from dynamic.offline.networks.checkpoints import read_tensors


def pictures(count: int = 20) -> ImageSet:
    random = np.random.default_rng(3)
    images = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return ImageSet(images, random.integers(0, 10, count), tuple("abcdefghij"))


def test_the_deployed_form_is_the_same_function_times_the_scale() -> None:
    network = Trained()
    for group in network.groups:
        for norm in group.norms:
            torch.nn.init.normal_(norm.bias)
            torch.nn.init.normal_(norm.running_mean)
            torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    inputs = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(deployed(network, 0.25)(inputs), 0.25 * network.eval()(inputs))


def test_whitened_patches_have_unit_covariance() -> None:
    """Neighbouring pixels are correlated at first, so that the filters have something to do."""
    network = Trained()
    images = F.avg_pool2d(torch.randn(200, 3, 34, 34), 3, stride=1)
    network.whiten(images)
    with torch.no_grad():
        outputs = network.whitening(images).transpose(0, 1).flatten(1)  # [24, patches]
    torch.testing.assert_close(torch.cov(outputs[:12]), torch.eye(12), atol=0.06, rtol=0)
    torch.testing.assert_close(outputs[12:], -outputs[:12])


def test_an_image_is_mirrored_in_every_other_epoch() -> None:
    images = pictures()
    loader = Images(images, shift=0, seed=0)
    chosen, nowhere = np.arange(20), np.zeros((20, 2), np.int64)
    first, second, third = (loader.pixels(chosen, nowhere, epoch) for epoch in range(3))
    assert np.array_equal(second, first[:, :, ::-1])
    assert np.array_equal(third, first)
    unmirrored = [np.array_equal(a, b) for a, b in zip(first, images.images, strict=True)]
    assert 0 < sum(unmirrored) < 20


def test_a_shift_moves_the_image_and_reflects_at_its_border() -> None:
    images = pictures(1)
    loader = Images(images, shift=2, seed=0)
    loader.mirrored_first[:] = False
    (moved,) = loader.pixels(np.array([0]), np.array([[0, 2]]), 0)
    assert np.array_equal(moved[2:], images.images[0, :-2])
    assert np.array_equal(moved[:2], images.images[0, [2, 1]])


def test_schedules() -> None:
    """Corners by hand, and one value between. Up to the highest rate, after two epochs, nothing depends on the end."""
    assert [rate_factor(epoch, 10) for epoch in (0, 2, 10)] == pytest.approx([0.2, 1.0, 0.07])
    assert rate_factor(6, 10) == pytest.approx((1.0 + 0.07) / 2)
    assert rate_factor(1.5, 10) == rate_factor(1.5, 99) == pytest.approx(0.8)
    last = 0.7737809375  # 0.95 ** 5
    assert [average_decay(epoch, 10) for epoch in (1, 2, 6, 10)] == pytest.approx([0, 0, last / 8, last])


def test_training_continues_after_the_last_whole_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, recipe = pictures(), Recipe(epochs=4, batch=4, whitening_epochs=1)
    whole, facts = train(images, recipe, tmp_path / "whole.safetensors", 2)
    assert len(facts["losses"]) == 4

    def interrupted(text: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(modern_network, "progress", interrupted)  # it is called after the checkpoint
        with pytest.raises(KeyboardInterrupt):
            train(images, recipe, tmp_path / "parts.safetensors", 2)
    learned_bias = read_tensors(tmp_path / "parts.safetensors")[0]["network.whitening.bias"]
    torch.testing.assert_close(whole.state_dict()["0.bias"], learned_bias)  # learned in the first epoch alone
    assert learned_bias.abs().max() > 0
    parts, continued = train(images, recipe, tmp_path / "parts.safetensors", 2)
    assert continued["losses"] == facts["losses"]
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    with pytest.raises(SystemExit, match="4 epochs, not 5"):
        train(images, replace(recipe, epochs=5), tmp_path / "parts.safetensors", 2)


def test_without_weights_the_static_networks_are_the_others_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(modern_network, "FILE", modern_network.FILE.with_name("absent.safetensors"))
    assert as_users_run.modern_networks(tmp_path, "modern int8") == {}
    assert modern_network.COMMAND in capsys.readouterr().err
    with pytest.raises(SystemExit):
        as_users_run.modern(tmp_path)
