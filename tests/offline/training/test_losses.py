"""Exit losses against hand calculation, gradient equilibrium against rescaled features."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from torch import Tensor, nn

from dynamic.offline.staged_network import Stage
from dynamic.offline.training.losses import ExitLoss, GradientBalance
from dynamic.policies.errors import SettingError


def test_cross_entropy_of_each_exit() -> None:
    # uniform logits over 4 classes: log 4; logits (log 3, 0) for class 0: -log(3/4)
    logits = [torch.zeros(2, 2), torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])]
    found = ExitLoss((1.0, 1.0))(logits, torch.tensor([0, 0]))
    assert found.tolist() == pytest.approx([math.log(2), math.log(4 / 3)])


def test_weights_ramp_from_a_hundredth() -> None:
    loss = ExitLoss((0.25, 0.5, 1.0), ramp=True)
    assert loss.weights_at(0.0) == pytest.approx((0.01, 0.01, 1.0))
    assert loss.weights_at(0.25) == pytest.approx((0.135, 0.26, 1.0))
    assert loss.weights_at(0.5) == loss.weights_at(1.0) == pytest.approx((0.25, 0.5, 1.0))
    assert ExitLoss((0.0, 1.0), ramp=True).weights_at(0.5) == (0.0, 1.0)
    assert ExitLoss((0.25, 1.0)).weights_at(0.0) == (0.25, 1.0)


def test_distillation_against_scipy() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(3, 5, 4)), rng.integers(0, 4, 5)
    share, temperature = 0.3, 2.5
    found = ExitLoss((1.0,) * 3, distill=share, temperature=temperature)(
        [torch.tensor(x, dtype=torch.float32) for x in logits], torch.tensor(labels)
    )
    hard = [-log_softmax(x, axis=1)[np.arange(5), labels].mean() for x in logits]
    teacher = softmax(logits[-1] / temperature, axis=1)
    for i in range(2):
        apart = (teacher * (np.log(teacher) - log_softmax(logits[i] / temperature, axis=1))).sum(1).mean()
        expected = (1 - share) * hard[i] + share * temperature**2 * apart
        assert found[i].item() == pytest.approx(expected, rel=1e-5)
    assert found[2].item() == pytest.approx(hard[2], rel=1e-5)


def test_the_teacher_learns_from_labels_alone() -> None:
    torch.manual_seed(0)
    logits = [torch.randn(6, 4, requires_grad=True) for _ in range(3)]
    labels = torch.randint(0, 4, (6,))
    ExitLoss((1.0,) * 3, distill=0.5)(logits, labels).sum().backward()
    alone = logits[2].detach().clone().requires_grad_()
    nn.functional.cross_entropy(alone, labels).backward()
    torch.testing.assert_close(logits[2].grad, alone.grad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": ()}, "exit_weights"),
        ({"weights": (1.0, math.nan)}, "exit_weights"),
        ({"weights": (1.0, math.inf)}, "exit_weights"),
        ({"distill": -0.1}, "share=-0.1"),
        ({"temperature": math.inf}, "temperature"),
        ({"label_smoothing": -0.1}, "label_smoothing"),
    ],
)
def test_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        ExitLoss(**{"weights": (1.0, 1.0), **options})


class _Scale(torch.autograd.Function):
    """Identity whose gradient is multiplied: what the paper puts on the features."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


def test_balance_is_the_rescaling_of_features() -> None:
    """Li et al. 2019: 1/(n - i) where block i ends, (n - i - 1) where its output enters the next block."""
    torch.manual_seed(0)
    exits = 4
    bodies = [nn.Sequential(nn.Linear(5, 5), nn.Tanh()) for _ in range(exits)]
    heads = [nn.Linear(5, 3) for _ in range(exits)]
    parameters = [p for m in (*bodies, *heads) for p in m.parameters()]
    x, labels = torch.randn(7, 5), torch.randint(0, 3, (7,))

    def gradients(rescaled: bool) -> list[Tensor]:
        for p in parameters:
            p.grad = None
        feature, total = x, torch.zeros(())
        for i, (body, head) in enumerate(zip(bodies, heads, strict=True)):
            feature = body(feature)
            if rescaled:
                feature = _Scale.apply(feature, 1 / (exits - i))
            total = total + nn.functional.cross_entropy(head(feature), labels)
            if rescaled:
                feature = _Scale.apply(feature, float(exits - i - 1))
        total.backward()
        if not rescaled:
            stages = [Stage(str(i), body, head) for i, (body, head) in enumerate(zip(bodies, heads, strict=True))]
            GradientBalance(stages)((1.0,) * exits)
        return [p.grad.clone() for p in parameters]

    for ours, theirs in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_balance_makes_a_weighted_mean() -> None:
    body, other, head = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    balance = GradientBalance([Stage("a", body, head), Stage("b", nn.Sequential(body, other), nn.Identity())])
    for module in (body, other, head):
        module.weight.grad = torch.ones(1, 1)
    balance((0.25, 1.0))
    # body belongs to the first stage: 1 / 1.25; other to the second: 1 / 1
    assert [m.weight.grad.item() for m in (body, other, head)] == pytest.approx([0.8, 1.0, 1.0])
