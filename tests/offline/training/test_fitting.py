"""Training on real handwritten digits: it learns, resumes bit for bit, and refuses what it cannot use."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks.fitting_networks import ExitNet, PooledHead, WholeHead, accuracies, digits, digits_loader, fit
from torch import Tensor, nn

import dynamic
from dynamic.offline.networks.checkpoints import read_tensors
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.policies.errors import BundleError, CorruptError, DynamicError, InputError, SettingError, WrapError

QUICK: dict[str, dict[str, Any]] = {
    "heads": {"epochs": 3},
    "joint": {"epochs": 3, "lr": 0.05},
    "distill": {"epochs": 3, "lr": 0.05},
}


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_heads_learn_on_a_frozen_backbone() -> None:
    network = ExitNet()
    before = accuracies(network)
    report = dynamic.fit(network, digits_loader(), epochs=20)
    after = accuracies(network)
    assert max(before[:2]) < 0.3
    assert min(after[:2]) > 0.5  # linear, on means of 8 and 16 random channels
    assert after[2] == before[2]
    assert report.mode == "heads"
    assert report.exits == ("exit1", "exit2")
    assert report.features_mb == pytest.approx(1200 * (8 + 16) * 4 / 1e6)  # pooled, float32
    assert not report.features_on_disk
    assert report.history_loss[0][0] > report.loss[0]
    assert len(report.history_loss) == report.epochs == 20
    assert "exit2: loss" in str(report)


@pytest.mark.parametrize("mode", ["joint", "distill"])
def test_everything_learns(mode: str) -> None:
    network = ExitNet()
    before = accuracies(network)
    report = dynamic.fit(network, digits_loader(), mode=mode, epochs=6, lr=0.1)
    after = accuracies(network)
    assert max(before) < 0.3
    assert after[0] > 0.5
    assert min(after[1:]) > 0.85
    assert report.exits == ("exit1", "exit2", "exit3")
    assert report.features_mb == 0


def test_distillation_brings_early_exits_closer_to_the_last() -> None:
    _, _, x, _ = digits()
    distance = {}
    for share in (0.0, 1.0):
        network = ExitNet()
        dynamic.fit(
            network,
            digits_loader(),
            mode="distill",
            epochs=6,
            lr=0.1,
            distillation=dynamic.DistillationConfig(share=share),
        )
        with torch.no_grad():
            first, _, last = (y.log_softmax(1) for y in network.eval()(x))
        distance[share] = (last.exp() * (last - first)).sum(1).mean().item()
    assert distance[1.0] < distance[0.0]


def test_heads_mode_touches_nothing_but_the_heads() -> None:
    network = ExitNet().train()
    network.backbone.layer2.eval()  # a mixed state has to come back as it was
    network.backbone.conv1.weight.requires_grad_(False)
    before, modes = weights(network), [m.training for m in network.modules()]
    state = torch.get_rng_state()
    dynamic.fit(network, digits_loader(), epochs=2)
    after = weights(network)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in network.modules()] == modes
    assert not network.backbone.conv1.weight.requires_grad
    assert network.backbone.linear.weight.requires_grad
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(name.startswith("heads.") for name in changed)
    assert changed == {name for name in before if name.startswith("heads.")}
    assert all(p.grad is None for p in network.parameters())


def test_joint_mode_restores_flags_and_memory_order() -> None:
    network = ExitNet().eval()
    report = dynamic.fit(
        network,
        digits_loader(),
        mode="joint",
        epochs=1,
        training=dynamic.TrainingConfig(channels_last=True, autocast=True),
    )
    assert report.channels_last
    assert report.bf16
    assert not any(m.training for m in network.modules())
    assert network.backbone.layer1[0].conv1.weight.is_contiguous()
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in network.parameters())


def test_features_on_disk_give_the_same_weights(tmp_path: Path) -> None:
    memory, disk = ExitNet(), ExitNet()
    dynamic.fit(memory, digits_loader(), epochs=2)
    report = dynamic.fit(
        disk,
        digits_loader(),
        epochs=2,
        training=dynamic.TrainingConfig(memory_limit_mb=0.02, cache_dir=tmp_path / "cache"),
    )
    assert report.features_on_disk
    assert same(weights(memory), weights(disk))
    del report
    assert list((tmp_path / "cache").iterdir()) == []


def test_heads_without_pool_see_whole_features() -> None:
    network = ExitNet(WholeHead)
    report = dynamic.fit(network, digits_loader(), epochs=12)
    assert report.features_mb == pytest.approx(1200 * (8 * 64 + 16 * 16) * 4 / 1e6)
    assert min(accuracies(network)[:2]) > 0.5
    # f32: bf16 rounds before the mean in one and after it in the other. SGD: AdamW enlarges rounding
    network, pooled = ExitNet(WholeHead), ExitNet(PooledHead)
    for either in (network, pooled):
        dynamic.fit(
            either, digits_loader(), epochs=12, training=dynamic.TrainingConfig(optimizer="sgd", autocast=False)
        )
    for one, other in zip(network.heads.parameters(), pooled.heads.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_the_seed_is_all_that_matters() -> None:
    found = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        network = ExitNet()
        torch.manual_seed(disturbance)
        dynamic.fit(network, digits_loader(), mode="joint", epochs=1, seed=seed)
        found.append(weights(network))
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


class Breaking:
    """A loader that raises in the given epoch, half way through it; the first pass is the peek."""

    def __init__(self, epoch: int, error: BaseException) -> None:
        self.left = epoch + 1
        self.error = error

    def __iter__(self) -> Iterator[Any]:
        self.left -= 1
        for number, batch in enumerate(digits_loader()):
            if self.left == 0 and number == 6:
                raise self.error
            yield batch

    def __len__(self) -> int:
        return 12


@pytest.mark.parametrize("mode", ["joint", "distill"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk went away")])
def test_interrupted_and_resumed_ends_with_the_same_weights(mode: str, error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole, broken, resumed = ExitNet(), ExitNet(), ExitNet(seed=5)
    expected = fit(whole, digits_loader(), mode=mode, **QUICK[mode])
    with pytest.raises(type(error)):
        fit(broken, Breaking(3, error), mode=mode, checkpoint=path, **QUICK[mode])
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert not same(weights(broken), weights(whole))
    report = fit(resumed, digits_loader(), mode=mode, checkpoint=path, **QUICK[mode])
    assert report.resumed == 2
    assert same(weights(resumed), weights(whole))
    assert report.history_loss == expected.history_loss


def test_a_finished_run_is_loaded_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first, second = ExitNet(), ExitNet()
    one = dynamic.fit(first, digits_loader(), epochs=3, checkpoint=path)
    two = dynamic.fit(second, digits_loader(), epochs=3, checkpoint=path)
    assert (one.resumed, two.resumed) == (0, 3)
    assert same(weights(first), weights(second))
    assert one.loss == two.loss


# the kernel kills it as its second checkpoint is about to replace the first: at the same step on every machine
KILLED = """
import os, signal, sys, torch
torch.set_num_threads(1)
from support.networks.fitting_networks import ExitNet, digits_loader
import dynamic
mode, epochs, path = sys.argv[1:]
replaced = []
def watch(event, arguments):
    if event == "os.rename" and os.fspath(arguments[1]) == path:
        replaced.append(path)
        if len(replaced) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
dynamic.fit(ExitNet(), digits_loader(), mode=mode, epochs=int(epochs), checkpoint=path)
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("mode", "epochs"), [("heads", 4), ("joint", 3)])
def test_killed_and_resumed_ends_with_the_same_weights(mode: str, epochs: int, tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    command = [sys.executable, "-c", KILLED, mode, str(epochs), str(path)]
    whole, resumed = ExitNet(), ExitNet()
    dynamic.fit(whole, digits_loader(), mode=mode, epochs=epochs)
    killed = subprocess.run(command, cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_tensors(path)[1]["progress"]["epoch"] == 1
    report = dynamic.fit(resumed, digits_loader(), mode=mode, epochs=epochs, checkpoint=path)
    assert report.resumed == 1
    assert same(weights(whole), weights(resumed))


def test_other_settings_network_or_data_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    dynamic.fit(ExitNet(), digits_loader(), epochs=1, lr=0.01, checkpoint=path)
    with pytest.raises(BundleError, match=r"lr=0.01 \(now 0.02\)"):
        dynamic.fit(ExitNet(), digits_loader(), epochs=1, lr=0.02, checkpoint=path)
    with pytest.raises(BundleError, match="network="):
        dynamic.fit(ExitNet(WholeHead), digits_loader(), epochs=1, lr=0.01, checkpoint=path)
    with pytest.raises(BundleError, match="backbone weights="):
        dynamic.fit(ExitNet(seed=1), digits_loader(), epochs=1, lr=0.01, checkpoint=path)
    with pytest.raises(BundleError, match="order of the data="):
        dynamic.fit(ExitNet(), digits_loader(count=1100), epochs=1, lr=0.01, checkpoint=path)


def test_a_damaged_checkpoint_is_refused_and_the_network_untouched(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    dynamic.fit(ExitNet(), digits_loader(), epochs=1, checkpoint=path)
    whole = path.read_bytes()
    network = ExitNet()
    before = weights(network)
    for damaged in (whole[:-10], whole[:40], b"", whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:]):
        path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=re.escape(str(path))):
            dynamic.fit(network, digits_loader(), epochs=1, checkpoint=path)
    assert same(before, weights(network))


def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    with pytest.raises(SettingError, match=r"epoch 1 of 2, step \d+: the loss is (nan|inf). Give a smaller lr"):
        dynamic.fit(ExitNet(), digits_loader(), mode="joint", epochs=2, lr=1e30)
    x, y, _, _ = digits()
    bad = x.clone()
    bad[350] = torch.nan
    batches = [(bad[i : i + 100], y[i : i + 100]) for i in range(0, 1200, 100)]

    class Spoiling:
        passes = 0

        def __iter__(self) -> Iterator[Any]:
            Spoiling.passes += 1
            return iter(batches if Spoiling.passes == 3 else list(digits_loader()))

    with pytest.raises(InputError, match="epoch 2 of 3, step 4: the inputs hold NaN"):
        dynamic.fit(ExitNet(), Spoiling(), mode="joint", epochs=3, checkpoint=path)
    assert read_tensors(path)[1]["progress"]["epoch"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "head"}, "'head' is not known. Use one of heads, joint, distill"),
        ({"memory_limit_mb": 0}, "memory_limit_mb=0"),
        ({"memory_limit_mb": float("nan")}, "memory_limit_mb=nan"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": -1}, "lr=-1"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"optimizer": "adam"}, "'adam' is not known"),
        ({"batch_size": 1}, "batch_size=1"),
        ({"exit_weights": [1, 1, 1]}, "mode='heads'"),
        ({"mode": "joint", "batch_size": 64}, "The loader sets it"),
        ({"mode": "joint", "exit_weights": [1, 1]}, "2 exit_weights for 3 exits"),
        ({"mode": "joint", "exit_weights": [1, -1, 1]}, "not negative"),
        ({"mode": "joint", "exit_weights": [0, 0, 0]}, "not all 0"),
        ({"mode": "distill", "temperature": 0}, "temperature=0"),
        ({"mode": "distill", "distill_share": 1.5}, "share=1.5"),
        ({"device": "nowhere"}, "device='nowhere'"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        fit(ExitNet(), digits_loader(count=100), **options)


@pytest.mark.parametrize("mode", ["heads", "joint"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: [], "gave no batch"),
        (lambda x, y: [x], "without labels"),
        (lambda x, y: [(x, y + 1)], "labels run from 1 to 10. The network has 10 classes"),
        (lambda x, y: [(x, y), (x, y + 1)], "labels run from 1 to 10. The network has 10 classes"),
        (lambda x, y: [(x, y - 1)], "labels run from -1 to 8"),
        (lambda x, y: [(x, y.float())], "class indices"),
        (lambda x, y: [(x, nn.functional.one_hot(y) + 1)], "class indices"),
        (lambda x, y: [(x, y[:-1])], "20 inputs and 19 labels"),
        (lambda x, y: [(x.tolist(), y)], "list"),
    ],
)
def test_data_that_do_not_fit(mode: str, spoil: Any, message: str) -> None:
    x, y, _, _ = digits()
    with pytest.raises(InputError, match=message):
        dynamic.fit(ExitNet(), spoil(x[:20], y[:20]), mode=mode, epochs=1)


def test_an_iterator_is_enough_for_heads_and_not_for_joint() -> None:
    dynamic.fit(ExitNet(), iter(digits_loader(count=200)), epochs=2)
    with pytest.raises(InputError, match="is an iterator"):
        dynamic.fit(ExitNet(), iter(digits_loader(count=200)), mode="joint", epochs=2)


def test_exits_with_other_class_counts() -> None:
    network = ExitNet()
    network.heads[0] = PooledHead(8, 7)
    for mode in ("heads", "joint"):
        with pytest.raises(InputError, match=r"\[2, 7\].*the same classes"):
            dynamic.fit(network, digits_loader(count=100), mode=mode)


class Bare(StagedNetwork):
    """A network whose only exit is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [self.linear(x.flatten(1))]

    @property
    def exit_stages(self) -> tuple[Stage, ...]:
        class Body(nn.Module):
            def __init__(self, linear: nn.Module) -> None:
                super().__init__()
                self.linear = linear

            def forward(self, x: Tensor) -> tuple[Tensor]:
                return (self.linear(x.flatten(1)),)

        return (Stage("all", Body(self.linear), nn.Identity()),)


def test_nothing_to_train() -> None:
    with pytest.raises(WrapError, match="no exit head"):
        dynamic.fit(Bare(), digits_loader(count=100))
    frozen = ExitNet().requires_grad_(False)
    with pytest.raises(WrapError, match="no exit head"):
        dynamic.fit(frozen, digits_loader(count=100))
    with pytest.raises(WrapError, match="requires_grad"):
        dynamic.fit(frozen, digits_loader(count=100), mode="joint")
    with pytest.raises(WrapError, match=r"Call dynamic\.wrap"):
        dynamic.fit(nn.Linear(2, 2), digits_loader(count=100))


def test_a_backbone_that_cannot_be_trained() -> None:
    network = ExitNet()
    network.trainable_backbone = False
    with pytest.raises(WrapError, match="Use mode='heads'"):
        dynamic.fit(network, digits_loader(count=100), mode="joint")
    dynamic.fit(network, digits_loader(count=100), epochs=1)


def test_frozen_parameters_stay_in_joint_mode() -> None:
    network = ExitNet()
    network.backbone.conv1.weight.requires_grad_(False)
    before = network.backbone.conv1.weight.clone()
    dynamic.fit(network, digits_loader(count=300), mode="joint", epochs=1)
    assert torch.equal(before, network.backbone.conv1.weight)


def test_a_loader_without_length_trains() -> None:
    class Endless:
        def __iter__(self) -> Iterator[Any]:
            return iter(digits_loader(count=300))

    report = dynamic.fit(ExitNet(), Endless(), mode="joint", epochs=2, progress=True)
    assert report.loss[-1] < report.history_loss[0][-1]


def test_the_report_says_how_often_exits_are_right_on_held_out_data() -> None:
    network = ExitNet()
    _, _, test_x, test_y = digits()
    report = dynamic.fit(network, digits_loader(), epochs=8, eval_loader=[(test_x, test_y)])
    with torch.no_grad():
        truth = [float((logits.argmax(1) == test_y).float().mean()) for logits in network.eval()(test_x)]
    assert [level.right for level in report.held_out] == pytest.approx(truth)
    assert [level.stage for level in report.held_out] == ["exit1", "exit2", "exit3"]
    assert f"exit1: loss {report.loss[0]:.4f}, held-out accuracy {truth[0]:.4f} of {len(test_y)}" in str(report)
    assert "exit3: not trained, held-out accuracy" in str(report)


def test_without_held_out_data_the_report_says_what_it_shows() -> None:
    report = dynamic.fit(ExitNet(), digits_loader(), epochs=1)
    assert report.held_out == ()
    assert "give eval_loader for held-out accuracy" in str(report)


def test_an_exit_at_chance_after_training_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    _, _, test_x, test_y = digits()
    shuffled = test_y[torch.randperm(len(test_y), generator=torch.Generator().manual_seed(0))]
    with caplog.at_level("WARNING", "dynamic"):
        report = dynamic.fit(ExitNet(), digits_loader(), epochs=1, eval_loader=[(test_x, shuffled)])
    assert all(level.at_chance for level in report.held_out)
    assert "'exit3' is right in" in caplog.text
    assert "it is at chance after training" in caplog.text
    assert "AT CHANCE" in str(report)


@pytest.mark.parametrize(
    "loader",
    [[], 5, torch.zeros(3), [(torch.zeros(4, 3), torch.zeros(4))], [torch.zeros(4, 64)], iter(())],
    ids=["empty", "number", "tensor", "width", "no labels", "used up"],
)
def test_held_out_data_that_do_not_fit_are_refused_before_training(loader: Any) -> None:
    """Neither a head nor a batch of the training data is touched."""
    network = ExitNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def batches() -> Iterator[Any]:
        raise AssertionError("training has begun")
        yield

    with pytest.raises(DynamicError):
        dynamic.fit(network, batches(), epochs=1, eval_loader=loader)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_held_out_data_may_be_an_iterator() -> None:
    _, _, test_x, test_y = digits()
    parts = list(zip(test_x.split(50), test_y.split(50), strict=True))
    report = dynamic.fit(ExitNet(), digits_loader(), epochs=1, eval_loader=iter(parts))
    assert [level.count for level in report.held_out] == [len(test_y)] * 3
