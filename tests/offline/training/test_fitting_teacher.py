"""Training with a teacher, with a penalty, and of networks without exits."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax
from support.networks.fitting_networks import ExitNet, digits, digits_loader, fit
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.policies.errors import BundleError, InputError, SettingError, WrapError


def plain(seed: int = 0, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, classes))


def convolutional(seed: int = 0) -> CifarResNet:
    torch.manual_seed(seed)
    return CifarResNet(8, in_channels=1, width=4)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batch(count: int = 50) -> list[tuple[Tensor, Tensor]]:
    x, y, _, _ = digits()
    return [(x[:count], y[:count])]


def expected(student: Tensor, teacher: Tensor, labels: Tensor, share: float, temperature: float) -> float:
    """Hinton et al. 2015, section 2, in numpy: cross-entropy with soft targets less its least value, times T^2."""
    own, other, y = student.detach().double().numpy(), teacher.detach().double().numpy(), labels.numpy()
    hard = -log_softmax(own, axis=1)[np.arange(len(y)), y].mean()
    target = softmax(other / temperature, axis=1)
    cross = -(target * log_softmax(own / temperature, axis=1)).sum(1).mean()
    entropy = -(target * np.log(target)).sum(1).mean()
    return float((1 - share) * hard + share * temperature**2 * (cross - entropy))


def test_a_plain_network_learns_from_a_teacher_what_the_paper_says() -> None:
    student, teacher = plain(0), plain(1)
    for network in (student, teacher):  # with small logits no temperature differs from another (section 2.1)
        nn.init.normal_(network[3].weight, std=3.0)
    ((x, y),) = batch()
    told = expected(student(x), teacher(x), y, 0.7, 4.0)
    assert told != pytest.approx(expected(student(x), teacher(x), y, 0.7, 3.0), rel=1e-2)
    report = dynamic.fit(
        student,
        batch(),
        mode="distill",
        epochs=1,
        training=dynamic.TrainingConfig(autocast=False),
        distillation=dynamic.DistillationConfig(teacher=teacher, temperature=4.0, share=0.7),
    )
    assert report.loss == (pytest.approx(told, rel=1e-5),)
    assert report.exits == ("last",)


def test_all_exits_learn_from_a_teacher() -> None:
    student, teacher = ExitNet(), plain(1)
    ((x, y),) = batch()
    with torch.no_grad():
        logits = copy.deepcopy(student).train()(x)
    told = [expected(own, teacher(x), y, 1.0, 2.0) for own in logits]
    report = dynamic.fit(
        student,
        batch(),
        mode="distill",
        epochs=1,
        training=dynamic.TrainingConfig(autocast=False),
        distillation=dynamic.DistillationConfig(teacher=teacher, temperature=2.0, share=1.0),
    )
    assert report.loss == pytest.approx(told, rel=1e-4)


def test_of_a_teacher_with_exits_the_last_answers() -> None:
    student, teacher = plain(), ExitNet().eval()
    ((x, y),) = batch()
    told = expected(student(x), teacher(x)[-1], y, 1.0, 2.0)
    report = dynamic.fit(
        student,
        batch(),
        mode="distill",
        epochs=1,
        training=dynamic.TrainingConfig(autocast=False),
        distillation=dynamic.DistillationConfig(teacher=teacher, temperature=2.0, share=1.0),
    )
    assert report.loss == (pytest.approx(told, rel=1e-5),)


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_teacher_comes_back_as_it_was(channels_last: bool) -> None:
    teacher = convolutional(1).train()
    teacher.layer2.eval()
    teacher.linear.weight.requires_grad_(False)
    if channels_last:
        teacher.to(memory_format=torch.channels_last)
    before, modes = weights(teacher), [m.training for m in teacher.modules()]
    strides = [p.stride() for p in teacher.parameters()]
    options: dict[str, Any] = {"epochs": 1, "channels_last": True}
    fit(convolutional(), digits_loader(count=200), mode="distill", teacher=teacher, **options)
    assert same(before, weights(teacher))
    assert [m.training for m in teacher.modules()] == modes
    assert [p.stride() for p in teacher.parameters()] == strides
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.linear.weight.requires_grad
    with pytest.raises(SettingError, match="loss is"):
        fit(convolutional(), digits_loader(count=300), mode="distill", lr=1e30, teacher=teacher, **options)
    assert [m.training for m in teacher.modules()] == modes


def test_a_plain_network_learns_from_labels() -> None:
    network = convolutional().eval()
    _, _, x, y = digits()
    with torch.no_grad():
        before = (network(x).argmax(1) == y).float().mean().item()
    report = dynamic.fit(network, digits_loader(), mode="joint", epochs=5, lr=0.1)
    assert not network.training
    with torch.no_grad():
        after = (network(x).argmax(1) == y).float().mean().item()
    assert before < 0.3
    assert after > 0.8
    assert report.exits == ("last",)
    assert all(p.grad is None for p in network.parameters())


class Breaking:
    """A loader that stops with an interrupt in the middle of the third epoch; the first pass is the peek."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number, given in enumerate(digits_loader(count=500)):
            if self.passes == 4 and number == 3:
                raise KeyboardInterrupt
            yield given

    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("taught", [False, True])
def test_a_plain_run_resumes_bit_for_bit(taught: bool, tmp_path: Path) -> None:
    how: dict[str, Any] = {"mode": "distill", "teacher": plain(1)} if taught else {"mode": "joint"}
    whole, broken, resumed = convolutional(), convolutional(), convolutional()
    path = tmp_path / "run.safetensors"
    fit(whole, digits_loader(count=500), epochs=4, **how)
    with pytest.raises(KeyboardInterrupt):
        fit(broken, Breaking(), epochs=4, checkpoint=path, **how)
    report = fit(resumed, digits_loader(count=500), epochs=4, checkpoint=path, **how)
    assert report.resumed == 2
    assert same(weights(whole), weights(resumed))
    assert not same(weights(whole), weights(broken))


def test_a_checkpoint_of_another_teacher_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    how: dict[str, Any] = {"mode": "distill", "epochs": 1, "checkpoint": path}
    fit(ExitNet(), batch(), teacher=plain(1), **how)
    with pytest.raises(BundleError, match="teacher="):
        fit(ExitNet(), batch(), teacher=plain(2), **how)
    with pytest.raises(BundleError, match="teacher="):
        fit(ExitNet(), batch(), **how)
    assert fit(ExitNet(), batch(), teacher=plain(1), **how).resumed == 1


def test_a_penalty_is_added_to_the_loss() -> None:
    network, reference = plain(), plain()
    ((x, y),) = batch()
    calls = []

    def penalty() -> Tensor:
        calls.append(1)
        return 0.3 * network[1].weight.square().sum()

    loss = nn.functional.cross_entropy(reference(x), y) + 0.3 * reference[1].weight.square().sum()
    gradients = torch.autograd.grad(loss, list(reference.parameters()))
    report = dynamic.fit(
        network,
        batch(),
        mode="joint",
        epochs=1,
        lr=0.01,
        training=dynamic.TrainingConfig(penalty=penalty, weight_decay=0.0, autocast=False),
    )
    assert len(calls) == 1
    assert report.loss[0] == pytest.approx(nn.functional.cross_entropy(reference(x), y).item(), rel=1e-5)
    # the first step of SGD with Nesterov momentum 0.9 goes 1.9 times the gradient
    for after, before, gradient in zip(network.parameters(), reference.parameters(), gradients, strict=True):
        torch.testing.assert_close(after, before - 0.01 * 1.9 * gradient)


class Ordered(nn.Module):
    """Takes named inputs; `Turned` takes them the other way round."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return self.linear(x.flatten(1)) * scale[:, None]


class Turned(Ordered):
    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        return super().forward(x, scale)


def test_named_inputs_reach_the_teacher_by_name() -> None:
    ((x, y),) = batch()
    named = {"scale": torch.rand(len(x)), "x": x}
    report = dynamic.fit(
        Ordered(),
        [(named, y)],
        mode="distill",
        epochs=1,
        training=dynamic.TrainingConfig(autocast=False),
        distillation=dynamic.DistillationConfig(teacher=Turned(), share=1.0),
    )
    assert report.loss[0] == pytest.approx(0, abs=1e-6)  # both say the same


class Short(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(1, 10)


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.full((len(x), 10), torch.nan)


@pytest.mark.parametrize(
    ("teacher", "error", "message"),
    [
        (plain(classes=7), InputError, r"teacher gives \[2, 7\] for 2 inputs, expected \[2, 10\]"),
        (Short(), InputError, r"teacher gives \[1, 10\] for 2 inputs"),
        (Broken(), InputError, "epoch 1 of 1, step 1: the teacher's logits hold NaN"),
        ([plain()], InputError, "teacher is a list. Give a network, of several an Ensemble"),
    ],
)
def test_teachers_that_do_not_fit(teacher: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dynamic.fit(
            plain(), batch(), mode="distill", epochs=1, distillation=dynamic.DistillationConfig(teacher=teacher)
        )


def test_a_teacher_is_another_network() -> None:
    network, part = ExitNet(), plain()
    with pytest.raises(InputError, match=r"shares conv1\.weight with the network it teaches. Give a copy"):
        dynamic.fit(
            network,
            batch(),
            mode="distill",
            epochs=1,
            distillation=dynamic.DistillationConfig(teacher=network.backbone),
        )
    network.requires_grad_(False)
    network.heads.requires_grad_(True)  # its weights stand still, but its flags and statistics do not
    with pytest.raises(InputError, match="shares"):
        dynamic.fit(
            network,
            batch(),
            mode="distill",
            epochs=1,
            distillation=dynamic.DistillationConfig(teacher=network.backbone),
        )
    dynamic.fit(
        part, batch(), mode="distill", epochs=1, distillation=dynamic.DistillationConfig(teacher=copy.deepcopy(part))
    )


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"mode": "joint", "teacher": plain()}, SettingError, "teacher means nothing with mode='joint'"),
        (
            {"mode": "heads", "penalty": lambda: torch.zeros(())},
            SettingError,
            "penalty means nothing with mode='heads'",
        ),
        ({"mode": "heads"}, WrapError, r"Sequential without exits. Call dynamic\.wrap"),
        ({"mode": "distill"}, WrapError, "has no exits to teach: give distillation="),
        ({"mode": "joint", "exit_weights": [0.5, 1]}, SettingError, "2 exit_weights for 1 exits"),
    ],
)
def test_modes_and_what_they_need(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fit(plain(2), batch(), **options)


def test_heads_learn_from_a_teacher_what_the_paper_says() -> None:
    network, teacher = ExitNet(), plain(1)
    nn.init.normal_(teacher[3].weight, std=3.0)
    ((x, y),) = batch()
    network.eval().heads.train()  # as heads are trained
    first, second, _ = network(x)
    told = [expected(own, teacher(x), y, 0.7, 4.0) for own in (first, second)]
    before = weights(network.backbone), weights(teacher)
    options: dict[str, Any] = {"epochs": 1, "cache": False, "autocast": False, "progress": False}
    report = fit(network, batch(), mode="heads", lr=0.1, teacher=teacher, temperature=4.0, distill_share=0.7, **options)
    assert report.loss == pytest.approx(told, rel=1e-4)
    assert same(weights(network.backbone), before[0])
    assert same(weights(teacher), before[1])


def test_the_last_exit_teaches_heads_as_a_copy_of_it_does() -> None:
    own, other = ExitNet(), ExitNet()
    options: dict[str, Any] = {"epochs": 2, "cache": False, "autocast": False, "progress": False}
    fit(own, batch(), mode="heads", teacher=own.backbone, **options)
    fit(other, batch(), mode="heads", teacher=copy.deepcopy(other.backbone), **options)
    for name, wanted in other.heads.state_dict().items():
        torch.testing.assert_close(own.heads.state_dict()[name], wanted, rtol=1e-5, atol=1e-6)
    alone = ExitNet()
    fit(alone, batch(), mode="heads", **options)
    assert not same(weights(alone.heads), weights(own.heads))


def test_what_heads_cannot_learn_from(tmp_path: Path) -> None:
    network = ExitNet()
    with pytest.raises(SettingError, match="heads learn from a teacher with cache=False only"):
        dynamic.fit(network, batch(), mode="heads", distillation=dynamic.DistillationConfig(teacher=plain()))
    with pytest.raises(InputError, match=r"the teacher shares .* with the network it teaches"):
        dynamic.fit(
            network,
            batch(),
            mode="heads",
            training=dynamic.TrainingConfig(cache=False),
            distillation=dynamic.DistillationConfig(teacher=network),
        )
    with pytest.raises(InputError, match=r"the teacher gives \[2, 7\] for 2 inputs, expected \[2, 10\]"):
        dynamic.fit(
            network,
            batch(),
            mode="heads",
            training=dynamic.TrainingConfig(cache=False),
            distillation=dynamic.DistillationConfig(teacher=plain(classes=7)),
        )
    broken = plain()
    nn.init.constant_(broken[3].bias, float("nan"))
    with pytest.raises(InputError, match="the teacher's logits hold NaN or infinity"):
        dynamic.fit(
            network,
            batch(),
            mode="heads",
            training=dynamic.TrainingConfig(cache=False, autocast=False),
            distillation=dynamic.DistillationConfig(teacher=broken),
        )
    options: dict[str, Any] = {"cache": False, "autocast": False, "checkpoint": tmp_path / "heads.ckpt"}
    fit(network, batch(), mode="heads", epochs=1, teacher=network.backbone, **options)
    for other in ({"teacher": plain()}, {"teacher": network.backbone, "temperature": 5.0}, {}):
        with pytest.raises(BundleError):
            fit(network, batch(), mode="heads", epochs=2, **options, **other)
