"""MSDNet: the published costs of its exits, and its stages against its forward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynamic.models import MSDNet, MSDNetShape, msdnet_anytime, msdnet_budgeted
from dynamic.policies.errors import SettingError


def millions_at_exits(network: MSDNet) -> list[float]:
    """Multiply-adds up to each classifier, as the authors' counter counts them.

    Products of convolutions and linear layers, a linear layer's bias additions, one for each ReLU input and
    each input of an average pooling; batch norm, padding, concatenation and copies cost nothing.
    """
    total, found = 0, []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, (nn.ReLU, nn.AvgPool2d)):
            total += inputs[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel() + module.bias.numel()
            found.append(total / 1e6)

    for module in network.modules():
        if not list(module.children()):
            module.register_forward_hook(count)
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 32, 32))
    return found


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (msdnet_anytime, [15.1, 25.5, 37.1, 46.3, 57.3, 67.0, 75.9]),
        (msdnet_budgeted, [6.9, 14.4, 27.5, 41.7, 58.5]),
    ],
)
def test_multiply_adds_at_the_exits(make: Callable[[], MSDNet], expected: list[float]) -> None:
    assert millions_at_exits(make()) == pytest.approx(expected, abs=0.06)


@pytest.fixture
def network() -> MSDNet:
    torch.manual_seed(0)
    built = MSDNet(MSDNetShape((1, 2, 1), channels=4, growth=2), classes=5, in_channels=1)
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return built


def test_stages_give_the_logits_of_forward(network: MSDNet) -> None:
    x = torch.randn(3, 1, 32, 32)
    stages = network.exit_stages
    with torch.no_grad():
        expected = network.eval()(x)
        carry: tuple[Tensor, ...] = (x,)
        for stage, logits in zip(stages, expected, strict=True):
            found, *carry = stage(*carry)
            assert torch.equal(found, logits)
            assert torch.equal(stage.head(carry[0]), logits)
    assert len(carry) == 1
    assert torch.equal(carry[0], expected[-1])


def test_carry_has_the_coarsest_scale_first(network: MSDNet) -> None:
    with torch.no_grad():
        carry = network.exit_stages[0](torch.randn(2, 1, 32, 32))[1:]
    assert [x.shape[-1] for x in carry] == [8, 16, 32]


def test_stages_are_views_in_eval_mode(network: MSDNet) -> None:
    network.train()
    stages = network.exit_stages
    assert all(module.training for module in network.modules())
    assert not any(module.training for stage in stages for module in stage.modules())
    own = {id(p) for p in network.parameters()}
    assert {id(p) for stage in stages for p in stage.parameters()} == own
    buffers = {id(b) for b in network.buffers()}
    assert {id(b) for stage in stages for b in stage.buffers()} == buffers


def test_training_moves_what_the_stages_see(network: MSDNet) -> None:
    stages = network.exit_stages
    x = torch.randn(4, 1, 32, 32)
    before = stages[0](x)[0]
    sum(y.sum() for y in network.train()(x)).backward()
    torch.optim.SGD(network.parameters(), 0.1).step()
    with torch.no_grad():
        after = stages[0](x)[0]
        assert not torch.equal(before, after)
        assert torch.equal(after, network.eval()(x)[0])


def test_every_parameter_learns(network: MSDNet) -> None:
    sum(y.square().sum() for y in network.train()(torch.randn(4, 1, 32, 32))).backward()
    idle = [name for name, p in network.named_parameters() if p.grad is None]
    # nobody reads the finer scale of the very last block
    assert {name.split(".")[:2] == ["blocks", "2"] for name in idle} == {True}


def test_stages_export_with_a_dynamic_batch(network: MSDNet) -> None:
    first, second, *_ = network.exit_stages
    batch = torch.export.Dim("batch", min=1, max=64)
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        carry = first(x)[1:]
        program = torch.export.export(second, carry, dynamic_shapes=(tuple({0: batch} for _ in carry),))
        wider = first(torch.randn(5, 1, 32, 32))[1:]
        for found, expected in zip(program.module()(*wider), second(*wider), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": ()}, "at least one layer"),
        ({"steps": (2, 0)}, "at least one layer"),
        ({"growth": 3}, "even"),
        ({"reduction": 0.0}, "reduction"),
        ({"factors": (1, 2)}, "one of each"),
    ],
)
def test_impossible_shapes(change: dict[str, object], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        MSDNetShape(**{"steps": (1, 1), **change})  # type: ignore[arg-type]


def test_no_blocks() -> None:
    with pytest.raises(SettingError, match="blocks=0"):
        msdnet_budgeted(blocks=0)
