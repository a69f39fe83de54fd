"""What students learn from teachers: the paper's own example, ensembles and hints by hand, networks users have."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from support.networks.fitting_networks import ExitNet, digits, digits_loader, fit
from torch import Tensor, nn

import dynamic
from dynamic.models import CifarResNet
from dynamic.models.compress.distillation.distillation import Ensemble, distill
from dynamic.models.compress.distillation.feature_hints import Hints
from dynamic.policies.errors import BundleError, InputError, SettingError, WrapError

X = torch.zeros(2, 1, 8, 8)


def plain(seed: int = 0, hidden: int = 64, classes: int = 10) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def convolutional(seed: int = 0, width: int = 4, depth: int = 8) -> CifarResNet:
    torch.manual_seed(seed)
    return CifarResNet(depth, in_channels=1, width=width)


def weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def batch(count: int = 50) -> list[tuple[Tensor, Tensor]]:
    x, y, _, _ = digits()
    return [(x[:count], y[:count])]


def quick(student: nn.Module, teachers: Any, **options: Any) -> Any:
    given = {"epochs": 1, "latency": False, **options}
    fit_options = {name: given.pop(name) for name in ("lr", "autocast", "mode") if name in given}
    loader = given.pop("loader", batch())
    return distill(student, X, teacher=teachers, train_loader=loader, fit_options=fit_options, **given)


def test_a_student_recognizes_a_digit_it_never_saw() -> None:
    """Hinton et al. 2015, section 3: a student that is taught without a single 3, from soft targets alone."""
    x, y, test_x, test_y = digits()
    teacher = plain(hidden=100)
    dynamic.fit(
        teacher, digits_loader(), mode="joint", epochs=30, lr=0.1, training=dynamic.TrainingConfig(autocast=False)
    )
    others = y != 3
    loader = [(a, b) for a, b in zip(x[others].split(100), y[others].split(100), strict=True)]
    options: dict[str, Any] = {"epochs": 60, "lr": 0.02, "autocast": False}
    taught = quick(plain(1, 30), teacher, loader=loader, temperature=8.0, distill_share=1.0, **options).network
    control = plain(1, 30)
    fit(control, loader, mode="joint", **options)

    def found(network: nn.Module) -> tuple[float, float, float]:
        """Share of the 3s, and of the others, that is right, and of the 3s with the bias of that class corrected: so
        that as many inputs as are 3s are called so (the paper sets it by the test set too)."""
        with torch.no_grad():
            logits = network.eval()(test_x)
        right = logits.argmax(1) == test_y
        threes = test_y == 3
        lead = logits[:, 3] - torch.cat([logits[:, :3], logits[:, 4:]], 1).max(1).values
        called = lead >= lead.sort(descending=True).values[int(threes.sum()) - 1]
        return tuple(m.float().mean().item() for m in (right[threes], right[~threes], called[threes]))

    seen, never, alone = found(teacher), found(taught), found(control)
    assert seen[0] > 0.7
    assert never[0] > 0.7  # most, from how much the other digits look like a 3
    assert never[1] > 0.88
    assert never[2] > 0.7
    assert alone[0] == 0
    assert alone[1] > 0.8
    assert alone[2] < 0.5


def test_an_ensemble_gives_the_mean_of_the_softened_distributions() -> None:
    ((x, _),) = batch()
    members = [plain(seed) for seed in range(3)]
    with torch.no_grad():
        each = [m(x).numpy() * 30 for m in members]
        for m in members:
            m[3].weight.mul_(30)
            m[3].bias.mul_(30)
    for temperature in (1.0, 4.0):
        wanted = np.mean([softmax(z / temperature, axis=1) for z in each], axis=0)
        with torch.no_grad():
            got = Ensemble(members, temperature)(x)
        np.testing.assert_allclose(softmax(got.numpy() / temperature, axis=1), wanted, rtol=1e-3, atol=1e-6)
    # not the geometric mean, which is that of the mean logits
    assert abs(softmax(np.mean(each, axis=0), axis=1) - wanted).max() > 0.1
    assert torch.isfinite(Ensemble([plain(), plain(1)], 0.01)(1e4 * x)).all()


def test_of_a_member_with_exits_the_last_answers() -> None:
    ((x, _),) = batch()
    member = ExitNet().eval()
    with torch.no_grad():
        torch.testing.assert_close(Ensemble([member])(x).softmax(1), member(x)[-1].softmax(1))


def test_ensembles_that_do_not_fit() -> None:
    with pytest.raises(InputError, match="no networks"):
        Ensemble([])
    with pytest.raises(InputError, match="no networks"):
        quick(plain(), [])
    with pytest.raises(SettingError, match="temperature=0"):
        Ensemble([plain()], 0)
    with pytest.raises(InputError, match=r"give \[\[50, 10\], \[50, 7\]\]"):
        Ensemble([plain(), plain(classes=7)])(batch()[0][0])


def test_several_teachers_teach_as_their_ensemble() -> None:
    teachers = [plain(1), ExitNet(), convolutional()]
    several = quick(plain(), teachers, seed=3, temperature=2.0)
    as_one = quick(plain(), Ensemble(teachers, 2.0), seed=3, temperature=2.0)
    assert same(weights(several.network), weights(as_one.network))
    assert several.report.facts["teachers"] == 3
    assert several.report.before.parameters == sum(p.numel() for t in teachers for p in t.parameters())
    assert same(weights(quick(plain(), [teachers[0]]).network), weights(quick(plain(), teachers[0]).network))


def test_neither_student_nor_teachers_are_touched_and_the_report_says_what_was_gained() -> None:
    student, teacher = convolutional(0).train(), convolutional(1, 8, 14)
    teacher.layer1.eval()
    kept = [(n, weights(n), [m.training for m in n.modules()]) for n in (student, teacher)]
    made = quick(student, teacher, eval_loader=batch(), hints={"layer2": "layer2"}, epochs=2, seed=1)
    for network, before, modes in kept:
        assert same(before, weights(network))
        assert [m.training for m in network.modules()] == modes
        assert not any(m._forward_hooks for m in network.modules())
    assert not same(weights(student), weights(made.network))
    assert made.network.state_dict().keys() == student.state_dict().keys()  # what hints needed is gone
    assert not any(m._forward_hooks for m in made.network.modules())
    found = made.report
    assert found.before.parameters == sum(p.numel() for p in teacher.parameters())
    assert found.after.parameters == sum(p.numel() for p in student.parameters())
    assert found.after.macs < found.before.macs
    assert 0 <= found.after.accuracy <= 1
    assert found.facts["hints"] == {"layer2": "layer2"}
    assert (found.facts["epochs"], found.facts["temperature"], found.facts["distill_share"]) == (2, 4.0, 0.9)
    assert "distillation" in str(found)


def test_latency_of_an_ensemble_is_measured() -> None:
    found = distill(plain(), X, teacher=[plain(1), plain(2)], train_loader=batch(), epochs=1).report
    assert found.before.latency_ms is not None
    assert found.after.latency_ms is not None


def test_a_wrapped_student_learns_at_all_exits() -> None:
    teacher = convolutional(1, 8)
    dynamic.fit(teacher, digits_loader(), mode="joint", epochs=6, lr=0.1)
    student = dynamic.wrap(convolutional(0, 8), X, exits=["layer1", "layer2"])
    _, _, x, _ = digits()

    def agree(network: nn.Module) -> list[float]:
        with torch.no_grad():
            told = teacher.eval()(x).argmax(1)
            return [(z.argmax(1) == told).float().mean().item() for z in network.eval()(x)]

    before = agree(student)
    made = quick(student, teacher, loader=digits_loader(), epochs=6, lr=0.1, distill_share=1.0)
    after = agree(made.network)
    assert all(new > old + 0.2 for old, new in zip(before, after, strict=True))
    assert agree(student) == before
    assert len(made.report.facts["training_loss"]) == 3


def test_hints_are_a_mean_squared_difference_behind_a_linear_map() -> None:
    student, teacher = plain(hidden=12), plain(1, hidden=20)
    ((x, _),) = batch()
    with Hints(student, teacher, {"1": "1"}, 2.5, X) as hints:
        teacher(x)
        student(x)
        found = hints()
        (mapped,) = hints._maps.values()
        wanted = 2.5 * ((mapped(student[:2](x)) - teacher[:2](x)) ** 2).mean()
        assert found.item() == pytest.approx(wanted.item(), rel=1e-5)
        found.backward()
        assert {id(p) for p in mapped.parameters()} < {id(p) for p in student.parameters()}
    assert all(p.grad is not None for p in (*student[1].parameters(), *mapped.parameters()))
    assert all(p.grad is None for p in student[3].parameters())
    assert student.state_dict().keys() == plain().state_dict().keys()


def test_images_are_mapped_by_a_1x1_convolution_and_averaged_to_the_smaller() -> None:
    student, teacher = convolutional(0, 4).eval(), convolutional(1, 8).eval()
    ((x, _),) = batch()
    with Hints(student, teacher, {"layer3": "layer1"}, 1.0, X) as hints, torch.no_grad():
        theirs = teacher.layer1(torch.relu(teacher.bn1(teacher.conv1(x))))
        mine = student.layer3(student.layer2(student.layer1(torch.relu(student.bn1(student.conv1(x))))))
        teacher(x)
        student(x)
        (mapped,) = hints._maps.values()
        mine = nn.functional.conv2d(mine, mapped.weight[:, :, None, None], mapped.bias)
        wanted = (mine - nn.functional.avg_pool2d(theirs, 4)).square().mean()
        assert hints().item() == pytest.approx(wanted.item(), rel=1e-4)


def test_what_is_changed_in_place_behind_a_hint_is_not_seen() -> None:
    layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.ReLU(inplace=True))
    other = copy.deepcopy(layers)
    ((x, _),) = batch()
    with Hints(layers, other, {"1": "1"}, 1.0, X) as hints:
        other(x)
        layers(x)
        assert (hints._teacher_features["1"] < 0).any()
        assert (hints._student_features["1"] < 0).any()


def test_hints_bring_features_closer() -> None:
    teacher = convolutional(1, 8)
    dynamic.fit(teacher, digits_loader(), mode="joint", epochs=4, lr=0.1)
    ((x, _),) = batch(400)

    def residual(network: nn.Module) -> float:
        """Of the teacher's feature after the best linear map of the student's, as a share of its variance."""
        seen: list[Tensor] = []
        handles = [n.layer2.register_forward_hook(lambda m, i, o: seen.append(o)) for n in (network, teacher)]
        with torch.no_grad():
            network.eval()(x)
            teacher.eval()(x)
        for handle in handles:
            handle.remove()
        mine, theirs = (s.permute(0, 2, 3, 1).flatten(0, 2).double().numpy() for s in seen)
        mine = np.column_stack([mine, np.ones(len(mine))])
        rest = theirs - mine @ np.linalg.lstsq(mine, theirs, rcond=None)[0]
        return float((rest**2).sum() / ((theirs - theirs.mean(0)) ** 2).sum())

    options: dict[str, Any] = {"loader": digits_loader(), "epochs": 8, "lr": 0.03}
    without = quick(convolutional(), teacher, **options).network
    hinted = quick(convolutional(), teacher, hints={"layer2": "layer2"}, hint_weight=3.0, **options).network
    assert residual(hinted) < 0.9 * residual(without)


def test_hints_to_a_member_and_from_inside_a_wrapped_student() -> None:
    student = dynamic.wrap(convolutional(), X, exits=["layer1"])
    teachers = [convolutional(1, 8), plain()]
    made = quick(student, teachers, hints={"backbone.layer2.0.conv2": "members.0.layer2.0.conv2"})
    assert len(made.network(X)) == 2
    with pytest.raises(InputError, match=r"'backbone\.layer2' of the student did not run as a module"):
        quick(student, teachers, hints={"backbone.layer2": "members.0.layer2"})
    assert not any(m._forward_hooks for m in teachers[0].modules())


def test_a_run_with_hints_resumes_and_others_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    teacher = convolutional(1)
    options: dict[str, Any] = {
        "hints": {"layer2": "layer2"},
        "seed": 2,
        "epochs": 2,
        "loader": digits_loader(count=300),
    }
    whole = quick(convolutional(), teacher, **options)

    class Interrupted:
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            if self.passes == 3:
                raise KeyboardInterrupt
            return iter(digits_loader(count=300))

        def __len__(self) -> int:
            return 3

    with pytest.raises(KeyboardInterrupt):
        quick(convolutional(), teacher, checkpoint=path, **{**options, "loader": Interrupted()})
    assert not any(m._forward_hooks for m in teacher.modules())
    resumed = quick(convolutional(5), teacher, checkpoint=path, **options)
    assert resumed.report.facts["resumed"] == 1
    assert same(weights(whole.network), weights(resumed.network))
    for other in ({"hint_weight": 2.0}, {"hints": {"layer2": "layer2.0"}}, {"hints": None}):
        with pytest.raises(BundleError, match="network="):
            quick(convolutional(), teacher, checkpoint=path, **{**options, **other})


def test_a_run_with_hints_is_told_by_its_seed_and_leaves_the_generator_alone() -> None:
    found = []
    for seed, disturbance in ((1, 5), (1, 6), (2, 5)):
        student, teacher = convolutional(), convolutional(1)
        torch.manual_seed(disturbance)
        before = torch.get_rng_state()
        # one batch in one order: the seed is seen in the maps alone
        found.append(weights(quick(student, teacher, hints={"layer2": "layer2"}, seed=seed).network))
        assert torch.equal(torch.get_rng_state(), before)
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


class Pair(nn.Module):
    """Its layer gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.LSTM(8, 10)
        self.unused = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.both(x[:, 0])
        return out.mean(1)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ({"layer9": "1"}, "student has no layer 'layer9': name one, such as conv1"),
        ({"conv1": "7"}, "teacher has no layer '7': name one, such as 0, 1"),
        ({"layer1.0.conv9": "1"}, "student has no layer 'layer1.0.conv9'"),
        ({"layer1": "1"}, r"'layer1' -> '1': features \[2, 4, 8, 8\] and \[2, 64\] do not fit"),
    ],
)
def test_hints_that_do_not_fit(hints: dict[str, str], message: str) -> None:
    teacher = plain()
    with pytest.raises(InputError, match=message):
        quick(convolutional(), teacher, hints=hints)
    assert not any(m._forward_hooks for m in teacher.modules())


def test_layers_that_no_hint_can_read() -> None:
    with pytest.raises(InputError, match="'both' of the student gives no tensor"):
        quick(Pair(), plain(), hints={"both": "1"})
    with pytest.raises(InputError, match="'unused' of the student did not run"):
        quick(Pair(), plain(), hints={"unused": "1"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distill_share": 1.5}, "share=1.5"),
        ({"distill_share": float("nan")}, "share=nan"),
        ({"temperature": 0.0}, "temperature=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"hints": {"1": "1"}, "hint_weight": 0.0}, "hint_weight=0"),
        ({"hints": {"1": "1"}, "hint_weight": float("inf")}, "hint_weight=inf"),
        ({"mode": "joint"}, r"fit_options=.'mode'. are set here"),
    ],
)
def test_settings_out_of_range(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        quick(plain(), plain(1), **options)


def test_students_and_data_that_do_not_fit() -> None:
    with pytest.raises(WrapError, match="every parameter is frozen"):
        quick(plain().requires_grad_(False), plain(1))
    with pytest.raises(InputError, match=r"teacher gives \[2, 7\]"):
        quick(plain(), plain(classes=7))
    with pytest.raises(InputError, match="gave no batch"):
        quick(plain(), plain(1), loader=[])
    with pytest.raises(InputError, match="teacher is a str"):
        quick(plain(), ["resnet"])


def test_weights_that_are_shared_stay_shared() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.Linear(64, 10))
    student[3].weight = student[1].weight
    made = quick(student, plain()).network
    assert made[3].weight is made[1].weight
    assert made[1].weight is not student[1].weight


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "convnext_tiny", "vit", "swin_t"])
def test_networks_that_users_have(name: str) -> None:
    import torchvision

    torch.manual_seed(0)
    if name == "vit":
        small = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64, "num_classes": 10}
        student: nn.Module = torchvision.models.VisionTransformer(image_size=32, patch_size=8, **small)
        teacher: nn.Module = torchvision.models.VisionTransformer(
            image_size=32, patch_size=8, **{**small, "hidden_dim": 48}
        )
        hints = {"encoder.layers.encoder_layer_0": "encoder.layers.encoder_layer_1"}  # [B, N, D]
    else:
        student = torchvision.models.get_model(name, weights=None, num_classes=10)
        torch.manual_seed(1)
        teacher = CifarResNet(8, width=4)
        where = {
            "resnet18": {"layer2": "layer1"},
            "mobilenet_v3_small": {"features.3": "layer3"},
            "convnext_tiny": {"features.1": "layer2"},
            "swin_t": {"features.1": "layer3"},  # [B, H, W, C]
        }
        hints = where[name]
    torch.manual_seed(2)
    loader = [(torch.randn(4, 3, 32, 32), torch.arange(4))]
    made = distill(
        student,
        loader[0][0],
        teacher=teacher,
        train_loader=loader,
        epochs=1,
        fit_options={"lr": 1e-3},
        hints=hints,
        eval_loader=loader,
        latency=False,
    )
    assert made.network(loader[0][0]).shape == (4, 10)
    assert not torch.equal(*(next(p for p in n.parameters() if p.ndim > 1) for n in (student, made.network)))
    assert made.report.after.macs != made.report.before.macs
