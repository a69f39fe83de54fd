"""Wrapped networks against the user's own module: the same logits, the same training, and nothing run twice."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.densenet import DenseNet
from torchvision.models.efficientnet import EfficientNet, FusedMBConvConfig, MBConvConfig
from torchvision.models.maxvit import MaxVit
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2
from torchvision.models.vision_transformer import VisionTransformer

import dynamic
from dynamic.errors import DynamicWarning, ExitError, InputError, LayoutError, TraceError
from dynamic.models import CifarResNet


def model(name: str, **options: Any) -> Callable[[], nn.Module]:
    """The network of that name, with random weights."""
    return lambda: torchvision.models.get_model(name, weights=None, num_classes=7, **options)


def swin(**options: Any) -> Callable[[], nn.Module]:
    """A Swin transformer of three groups of two blocks."""
    return lambda: SwinTransformer([4, 4], 16, [2, 2, 2], [1, 2, 4], [4, 4], num_classes=7, **options)


def efficientnet_v2() -> nn.Module:
    """Blocks of both kinds, with and without a residual, instead of 40."""
    blocks = [
        FusedMBConvConfig(1, 3, 1, 24, 24, 2),
        FusedMBConvConfig(4, 3, 2, 24, 48, 2),
        MBConvConfig(4, 3, 2, 48, 64, 2),
        MBConvConfig(6, 3, 1, 64, 80, 2),
    ]
    return EfficientNet(blocks, 0.2, num_classes=7, last_channel=128)


# the smallest network of each torchvision family, on images as small as it takes. Families whose smallest is large have
# the same blocks, fewer of them: `benchmarks/wrapping/wrap_torchvision.py` takes all networks whole
FAMILIES: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "alexnet": (64, model("alexnet")),
    "convnext_tiny": (64, model("convnext_tiny")),
    "densenet": (64, lambda: DenseNet(8, (3, 3, 3, 2), 16, num_classes=7)),
    "efficientnet_b0": (64, model("efficientnet_b0")),
    "efficientnet_v2": (64, efficientnet_v2),
    "googlenet": (64, model("googlenet", init_weights=False)),
    "inception_v3": (96, model("inception_v3", init_weights=False)),
    "maxvit": (64, lambda: MaxVit((64, 64), 8, 2, [8, 16, 16], [1, 1, 1], 8, 0.1, num_classes=7)),
    "mnasnet0_5": (64, model("mnasnet0_5")),
    "mobilenet_v2": (64, model("mobilenet_v2")),
    "mobilenet_v3_small": (64, model("mobilenet_v3_small")),
    "regnet_x_400mf": (64, model("regnet_x_400mf")),
    "resnet18": (64, model("resnet18")),
    "resnext50_32x4d": (64, model("resnext50_32x4d")),
    "shufflenet_v2_x0_5": (64, model("shufflenet_v2_x0_5")),
    "squeezenet1_1": (64, model("squeezenet1_1")),
    "swin": (64, swin()),
    "swin_v2": (64, swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2)),
    "vit": (64, lambda: VisionTransformer(64, 16, 4, 2, 32, 64, num_classes=7)),
}

# one of each kind of layer. The benchmark exports all of them
EXPORTED = ("densenet", "efficientnet_v2", "googlenet", "maxvit", "shufflenet_v2_x0_5", "swin_v2")


def leaf_calls(network: nn.Module) -> tuple[list[str], list[Any]]:
    """Names of leaf modules as they run, and the hooks that note them."""
    seen: list[str] = []

    def note(name: str) -> Any:
        return lambda module, args, output: seen.append(name)

    # torch's own modules: those that a trace keeps as they are
    leaves = [(n, m) for n, m in network.named_modules() if type(m).__module__.startswith("torch.nn.modules")]
    leaves = [(n, m) for n, m in leaves if not isinstance(m, (nn.Sequential, nn.ModuleList))]
    return seen, [m.register_forward_hook(note(n)) for n, m in leaves]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.filterwarnings("ignore::dynamic.errors.DynamicWarning")
def test_every_family_wraps_stops_and_exports(name: str) -> None:
    size, make = FAMILIES[name]
    torch.manual_seed(0)
    backbone = make().eval()
    net = dynamic.wrap(backbone, torch.randn(1, 3, size, size), exits=3).eval()
    x = torch.randn(2, 3, size, size)
    seen, hooks = leaf_calls(backbone)
    with torch.no_grad():
        own = backbone(x)
        whole = list(seen)
        logits = net(x)
        assert net.tracer == "fx"
        assert [tuple(z.shape) for z in logits] == [(2, 7)] * 4
        assert torch.equal(logits[-1], own)
        # stage by stage: the same leaf modules, in the same order, each once; the first stage runs a part of them
        carry: tuple[Tensor, ...] = (x,)
        ran = []
        for stage, z in zip(net.exit_stages, logits, strict=True):
            seen.clear()
            carry = stage.body(*carry)
            ran.append(list(seen))
            torch.testing.assert_close(stage.head(carry[0]), z)
        assert torch.equal(carry[0], own)
    assert [n for part in ran for n in part] == whole
    assert 0 < len(ran[0]) < 0.7 * len(whole)
    for hook in hooks:
        hook.remove()
    if name not in EXPORTED:
        return
    carry = (x,)
    for stage in net.exit_stages:
        batch = torch.export.Dim("batch")
        program = torch.export.export(stage, carry, dynamic_shapes=(tuple({0: batch} for _ in carry),))
        three = tuple(torch.cat([t, t])[:3] for t in carry)
        with torch.no_grad():
            expected = stage(*three)
            for a, b in zip(program.module()(*three), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
            carry = stage.body(*carry)


def resnet() -> CifarResNet:
    torch.manual_seed(0)
    return CifarResNet(14, in_channels=1, width=8).eval()


X = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(3))


def test_the_user_s_module_stays_as_it_was() -> None:
    backbone = resnet()
    backbone.layer2.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    modes, attributes = [m.training for m in backbone.modules()], set(vars(backbone))
    net = dynamic.wrap(backbone, X)
    assert [m.training for m in backbone.modules()] == modes
    assert set(vars(backbone)) == attributes
    assert before.keys() == backbone.state_dict().keys()
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())
    assert net.backbone is backbone
    own = {id(p) for p in backbone.parameters()}
    heads = {id(p) for p in net.heads.parameters()}
    assert {id(p) for p in net.parameters()} == own | heads
    assert {id(p) for s in net.exit_stages for p in s.parameters()} == own | heads, "stages share, they do not copy"


@pytest.mark.parametrize("name", ["resnet18", "convnext_tiny", "efficientnet_b0", "mobilenet_v3_small", "googlenet"])
@pytest.mark.filterwarnings("ignore::dynamic.errors.DynamicWarning")
def test_training_is_the_backbone_s_own(name: str) -> None:
    """Dropout, stochastic depth and batch statistics as in the backbone's train mode, gradients to every weight."""
    torch.manual_seed(0)
    options = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    backbone = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
    twin = copy.deepcopy(backbone).train()
    net = dynamic.wrap(backbone, torch.randn(2, 3, 64, 64), exits=2).train()
    x = torch.randn(4, 3, 64, 64)
    if name == "googlenet":  # its auxiliary classifiers draw random numbers too, where it has them
        twin.aux1 = twin.aux2 = None
    torch.manual_seed(1)
    expected = twin(x)
    expected = expected if isinstance(expected, Tensor) else expected[0]
    torch.manual_seed(1)
    logits = net(x)
    torch.testing.assert_close(logits[-1], expected, rtol=1e-5, atol=1e-5)
    assert not torch.equal(logits[-1], net.eval()(x)[-1]), "train mode must differ from eval mode"
    own, other = dict(backbone.named_buffers()), dict(twin.named_buffers())
    for key in other:
        torch.testing.assert_close(own[key], other[key], rtol=1e-4, atol=1e-4)
    net.train()
    torch.manual_seed(1)
    torch.stack(net(x)).square().sum().backward()
    without = [n for n, p in net.named_parameters() if p.grad is None and "aux" not in n]
    assert net.trainable_backbone
    assert len(without) <= 0.1 * len(list(net.parameters())), f"only dropped paths may go without: {without}"


def test_a_frozen_backbone_is_evaluated_while_heads_train() -> None:
    backbone = resnet()
    net = dynamic.wrap(backbone, X).train()
    backbone.eval()
    with torch.no_grad():
        assert torch.equal(net(X)[-1], backbone(X))
    assert net.heads.training


class Skips(nn.Module):
    """A skip connection across everything, a tuple that is used in pieces, and shapes that are read late."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.act = nn.ReLU(inplace=True)
        self.out = nn.Linear(8 * 16 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        x = self.first(x)
        left, right = x.chunk(2, dim=1)
        skip = x
        for block in self.blocks:
            x = self.act(block(x)) + skip
        x = x + torch.cat([right, left], 1)
        return self.out(x.view(batch, 8 * height * width))


def test_everything_a_later_stage_needs_is_carried() -> None:
    torch.manual_seed(0)
    backbone = Skips().eval()
    for exits in (["blocks.0"], ["first", "blocks.1", "blocks.3"], 3):
        net = dynamic.wrap(backbone, X, exits=exits).eval()
        carry: tuple[Tensor, ...] = (X,)
        with torch.no_grad():
            for stage, logits in zip(net.exit_stages, net(X), strict=True):
                carry = stage.body(*carry)
                torch.testing.assert_close(stage.head(carry[0]), logits)
            assert torch.equal(carry[0], backbone(X))
    named = dynamic.wrap(backbone, X, exits=["blocks.0"])
    assert named.exits[0].carry == 4  # the feature, the skip, and both halves


def test_a_head_reads_its_feature_before_it_is_changed_in_place() -> None:
    """`blocks.0` is rectified in place right after the exit: the head must see it as it was, and learn from it."""
    torch.manual_seed(0)
    backbone = Skips().eval()
    net = dynamic.wrap(backbone, X, exits=["blocks.0"], classifier=lambda d, c: nn.Sequential(nn.Linear(d, c))).eval()
    with torch.no_grad():
        feature = backbone.blocks[0](backbone.first(X))
        assert (feature < 0).any()
        torch.testing.assert_close(net(X)[0], net.heads[0](feature))
        stage = net.exit_stages[0]
        (kept, *rest) = stage.body(X)
        before = kept.clone()
        net.exit_stages[1].body(kept, *rest)
        assert torch.equal(kept, before)
    net.train()
    sum(z.sum() for z in net(X)).backward()  # type: ignore[union-attr]  # raises where autograd's copy was overwritten


def test_copies_are_independent_and_weights_travel(tmp_path: Any) -> None:
    net = dynamic.wrap(resnet(), X).eval()
    twin = copy.deepcopy(net)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(net(X), twin(X), strict=True))
        before = [z.clone() for z in twin(X)]
        for parameter in net.parameters():
            parameter.add_(0.1)
        assert all(torch.equal(a, b) for a, b in zip(twin(X), before, strict=True))
        assert not torch.equal(net(X)[-1], before[-1])
        other = dynamic.wrap(CifarResNet(14, in_channels=1, width=8), X).eval()
        other.load_state_dict(net.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(other(X), net(X), strict=True))
        plain = CifarResNet(14, in_channels=1, width=8).eval()
        plain.load_state_dict(net.backbone.state_dict())
        assert torch.equal(plain(X), net(X)[-1])


def test_moving_the_network_moves_everything() -> None:
    net = dynamic.wrap(torchvision.models.swin_t(num_classes=3), torch.randn(1, 3, 64, 64), exits=1)
    net = net.double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(net(x)[-1], net.backbone(x))
        assert net.exit_stages[0].body(x)[0].dtype == torch.float64


def test_export_and_compile_of_the_whole() -> None:
    net = dynamic.wrap(resnet(), X).eval()
    program = torch.export.export(net, (X,), dynamic_shapes=(({0: torch.export.Dim("batch")},),))
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    with torch.no_grad():
        for found in (program.module()(X[:3]), compiled(X[:3])):
            for a, b in zip(found, net(X[:3]), strict=True):
                torch.testing.assert_close(a, b)


def test_bit_equal_in_channels_last_too() -> None:
    backbone = resnet().to(memory_format=torch.channels_last)
    net = dynamic.wrap(backbone, X).eval()
    x = X.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.equal(net(x)[-1], backbone(x))


def test_places() -> None:
    net = dynamic.wrap(resnet(), X, exits=3)
    shares = [e.share for e in net.exits]
    assert all(abs(s - w) < 0.13 for s, w in zip(shares, (0.25, 0.5, 0.75), strict=True))
    assert all(e.carry == 1 for e in net.exits), "narrow cuts exist, so they are taken"
    fractions = dynamic.wrap(resnet(), X, exits=[0.3, 0.9])
    assert [abs(e.share - w) < 0.1 for e, w in zip(fractions.exits, (0.3, 0.9), strict=True)] == [True, True]
    named = dynamic.wrap(resnet(), X, exits=["layer2", "layer1.0"])
    assert [e.name for e in named.exits] == ["layer1.0", "layer2"]
    # 3x3 convolutions by hand: stem 1*8, layer1 4 of 8*8 at 16x16, then layer2 8*16 + 3 of 16*16 at 8x8
    stem, one = 9 * 1 * 8 * 256, 9 * 8 * 8 * 256
    two = 9 * (8 * 16 + 3 * 16 * 16) * 64
    three = 9 * (16 * 32 + 3 * 32 * 32) * 16
    total = stem + 4 * one + two + three + 32 * 10
    assert named.exits[0].share == pytest.approx((stem + 2 * one) / total)
    assert named.exits[1].share == pytest.approx((stem + 4 * one + two) / total)


class Tokens(nn.Module):
    """Embedding, mixing, and a dict as output; a mask that may be given."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.mix = nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.out = nn.Linear(16, 3)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(tokens)
        if mask is not None:
            x = x * mask[:, :, None]
        for layer in self.mix:
            x = x + torch.relu(layer(x))
        return {"logits": self.out(x.mean(1)), "hidden": x}


def test_tuple_and_dict_inputs() -> None:
    torch.manual_seed(0)
    backbone = Tokens().eval()
    tokens, mask = torch.randint(0, 50, (4, 9)), (torch.rand(4, 9) > 0.3).float()
    with pytest.warns(DynamicWarning, match="hidden"):
        lone = dynamic.wrap(backbone, (tokens,), exits=2).eval()
    with pytest.warns(DynamicWarning, match="hidden"):
        both = dynamic.wrap(backbone, {"mask": mask, "tokens": tokens}, exits=2).eval()
    with torch.no_grad():
        assert torch.equal(lone(tokens)[-1], backbone(tokens)["logits"])
        assert torch.equal(both(tokens, mask)[-1], backbone(tokens, mask)["logits"])
        assert torch.equal(both(mask=mask, tokens=tokens)[-1], backbone(tokens, mask)["logits"])
    assert both.input_names == ("tokens", "mask")
    assert both.dropped == ("hidden",)
    assert [(e.shape, e.channel) for e in both.exits] == [((9, 16), 2)] * 2


def test_auxiliary_logits_are_dropped_and_this_is_said() -> None:
    backbone = torchvision.models.googlenet(weights=None, num_classes=4, aux_logits=True, init_weights=False)
    with pytest.warns(DynamicWarning, match="aux_logits"):
        net = dynamic.wrap(backbone, torch.randn(1, 3, 64, 64), exits=1)
    assert set(net.dropped) == {"aux_logits1", "aux_logits2"}
    assert len(net.train()(torch.randn(2, 3, 64, 64))) == 2


class Ambiguous(nn.Module):
    """16 x 16 x 16: nothing in shapes or operations around `mixed` says where the channels are."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Identity()
        self.weight = nn.Parameter(torch.randn(256, 256) / 16)
        self.out = nn.Parameter(torch.randn(256, 3))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.inner(torch.matmul(x.reshape(-1, 256), self.weight).reshape(-1, 16, 16))
        return torch.matmul(torch.matmul(mixed.reshape(-1, 256), self.weight), self.out)


def test_a_layout_that_cannot_be_told_is_asked_for() -> None:
    x = torch.randn(3, 16, 16)
    with pytest.raises(LayoutError, match=r"inner.*BCN.*BND"):
        dynamic.wrap(Ambiguous(), x, exits=["inner"])
    for layout, channel in (("BCN", 1), ("BND", 2)):
        net = dynamic.wrap(Ambiguous(), x, exits=["inner"], layout={"inner": layout})
        assert net.exits[0].channel == channel
        feature = torch.randn(3, 16, 16)
        expected = torch.cat([feature.mean(3 - channel), feature.amax(3 - channel)], 1)
        assert torch.equal(net.heads[0].pool(feature), expected)
    with pytest.raises(LayoutError, match="BHWC"):
        dynamic.wrap(Ambiguous(), x, exits=["inner"], layout="BHWC")


@pytest.mark.parametrize(
    ("name", "size", "exit_name", "channel", "shape"),
    [
        ("resnet18", 64, "layer2", 1, (128, 8, 8)),
        ("swin_t", 64, "features.1", 3, (16, 16, 96)),
        ("vit_b_16", 32, "encoder.layers.encoder_layer_3", 2, (5, 768)),
        ("convnext_tiny", 64, "features.3", 1, (192, 8, 8)),
    ],
)
def test_layouts_are_told(name: str, size: int, exit_name: str, channel: int, shape: tuple[int, ...]) -> None:
    options = {"image_size": size} if name == "vit_b_16" else {}
    net = dynamic.wrap(
        torchvision.models.get_model(name, num_classes=3, **options), torch.randn(1, 3, size, size), exits=[exit_name]
    )
    assert (net.exits[0].channel, net.exits[0].shape) == (channel, shape)
    head, feature = net.heads[0], torch.randn(2, *shape)
    expected = (
        F.adaptive_avg_pool2d(feature.movedim(channel, 1), head.grid).flatten(1)
        if len(shape) == 3
        else torch.cat([feature.mean(1), feature.amax(1)], 1)
    )
    assert torch.equal(head.pool(feature), expected)


class Lengths(nn.Module):
    """torch.fx cannot follow `len`; torch.export can."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 12) for _ in range(5))
        self.register_buffer("scale", torch.full((12,), 0.5), persistent=False)
        self.out = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if len(x) > 0:
                x = F.relu(layer(x)) * self.scale + torch.tensor(1.5)
        return self.out(F.dropout(x, training=self.training))


def test_what_fx_cannot_follow_is_exported() -> None:
    torch.manual_seed(0)
    backbone, x = Lengths(), torch.randn(5, 12)
    net = dynamic.wrap(backbone, x, exits=["layers.1", "layers.3"])
    assert net.tracer == "export"
    assert net.trainable_backbone
    assert net.state_dict().keys() == {
        *(f"backbone.{k}" for k in backbone.state_dict()),
        *(f"heads.{k}" for k in net.heads.state_dict()),
    }
    net.eval()
    with torch.no_grad():
        own = backbone(x)
        torch.testing.assert_close(net(x)[-1], own, rtol=1e-5, atol=1e-5)
        backbone.layers[0].weight.mul_(2)  # live parameters, not copies
        assert not torch.allclose(backbone(x), own)
        torch.testing.assert_close(net(x)[-1], backbone(x), rtol=1e-5, atol=1e-5)
    loader = [(x, torch.tensor([0, 1, 2, 0, 1]))]
    dynamic.fit(net, loader, epochs=1)
    first = backbone.layers[0].weight.detach().clone()
    dynamic.fit(net, loader, mode="joint", epochs=1)
    assert not torch.equal(backbone.layers[0].weight, first)


def test_exits_inside_what_fx_takes_as_one_operation() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    backbone = nn.Sequential(nn.Linear(4, 16), nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(112, 3)).eval()
    x = torch.randn(2, 7, 4)
    net = dynamic.wrap(backbone, x, exits=["1.layers.0", "1.layers.1"]).eval()
    assert net.tracer == "export"
    assert [(e.channel, e.shape) for e in net.exits] == [(2, (7, 16))] * 2
    with torch.no_grad():
        torch.testing.assert_close(net(x)[-1], backbone(x), rtol=1e-5, atol=1e-5)


class Undecided(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Branch()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(x))


class Branch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x * 2
        return x


def test_a_network_that_neither_tracer_captures() -> None:
    with pytest.raises(TraceError) as raised:
        dynamic.wrap(Undecided(), torch.randn(2, 4), exits=1)
    text = str(raised.value)
    assert "module 'inner' of Undecided" in text
    assert "test_wrap_network.py line" in text
    assert "if x.sum() > 0" in text
    assert "torch.where" in text


class Doubles(nn.Module):
    """Sequence first inside: no cut can split rows there."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 6)
        self.rows = nn.Linear(6, 6)
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return self.out(self.rows(x).mean(1))


@pytest.mark.parametrize(
    ("exits", "message"),
    [
        (0, "at least 1"),
        (True, "give a number"),
        (1.5, "give a number"),
        ("layer1", "list of module names"),
        ([], "give a number"),
        ([0.5, 0.2], "rise"),
        ([0.5, 1.5], "between 0 and 1"),
        (["layer1", 0.5], "between 0 and 1"),
        (["layer4"], r"no exit 'layer4'.*layer[123]"),
        (["layer1.0.conv3"], r"no exit 'layer1.0.conv3'.*layer1.0.conv[12]"),
        (["layer1", "layer1.1"], "nothing lies between"),
        (["linear"], "own output"),
        (40, "do not fit"),
    ],
)
def test_bad_exits(exits: Any, message: str) -> None:
    with pytest.raises(ExitError, match=message):
        dynamic.wrap(resnet(), X, exits=exits)


def test_what_is_no_network() -> None:
    with pytest.raises(InputError, match=r"takes a torch\.nn\.Module. This is a function"):
        dynamic.wrap(lambda x: x, torch.zeros(2, 3))  # type: ignore[arg-type]


def test_raw_pixels_are_pointed_to_preprocessing() -> None:
    with pytest.raises(InputError, match=r"uint8 \[2, 3, 8, 8\].*after preprocessing"):
        dynamic.wrap(nn.Conv2d(3, 4, 3), torch.zeros(2, 3, 8, 8, dtype=torch.uint8))


def test_bad_places_and_inputs() -> None:
    with pytest.raises(ExitError, match=r"first dimension is not the batch.*rows"):
        dynamic.wrap(Doubles(), torch.randn(2, 5, 6), exits=["inner"])
    with pytest.raises(ExitError, match="exits already"):
        dynamic.wrap(dynamic.wrap(resnet(), X), X)
    with pytest.raises(InputError, match="B > 0"):
        dynamic.wrap(resnet(), X[:0])
    with pytest.raises(InputError, match=r"ResNet does not run on .*input float32 \[2, 5, 3, 3\]: .* Give batches"):
        dynamic.wrap(resnet(), torch.zeros(2, 5, 3, 3))
    with pytest.raises(InputError, match=r"logits \[2, C\]"):
        dynamic.wrap(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)), X, exits=1)


def small_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(16, 4, 4, 2, 16, 32, num_classes=5)


def small_swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 16, [1, 1], [2, 2], [4, 4], num_classes=5)


@pytest.mark.parametrize("make", [small_vit, small_swin])
def test_wrapped_networks_ship(make: Any) -> None:
    """From wrap to a bundle on ONNX Runtime and back: the answers are torch's."""
    torch.manual_seed(0)
    backbone = make().eval()
    net = dynamic.wrap(backbone, torch.randn(2, 3, 16, 16), exits=2)
    x, y = torch.randn(40, 3, 16, 16), torch.arange(40) % 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bundle = dynamic.build(net, [(x, y)])
    with torch.no_grad():
        own = [z.numpy() for z in net.eval()(x)]
    np.testing.assert_allclose(bundle.records.logits, np.stack(own, 1), rtol=1e-3, atol=1e-4)
    output = bundle.open().run({"input": x[:7].numpy()}, np.full(2, np.inf, np.float32))
    assert output.logits.argmax(1).tolist() == own[-1][:7].argmax(1).tolist()


def test_buffers_are_looked_up_when_it_runs() -> None:
    """Arithmetic on buffers must not be done once and for all while tracing: weights are loaded later."""
    torch.manual_seed(0)
    backbone = torchvision.models.resnet18(num_classes=3, norm_layer=torchvision.ops.FrozenBatchNorm2d).eval()
    net = dynamic.wrap(backbone, torch.randn(1, 3, 64, 64), exits=1).eval()
    backbone.load_state_dict({k: v + 0.1 if "bn" in k else v for k, v in backbone.state_dict().items()})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(net(x)[-1], backbone(x))
        carry: tuple[Tensor, ...] = (x,)
        for stage in net.exit_stages:
            carry = stage.body(*carry)
        assert torch.equal(carry[0], backbone(x))


class Noisy(nn.Module):
    """Does more in train mode than in eval mode, with a constant of its own in each."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.linear(x))
        y = y + torch.tensor(100.0) if self.training else y * torch.tensor(2.0)
        return x + y


def test_training_finds_the_same_places_again() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(Noisy(), Noisy(), Noisy(), nn.Linear(8, 3))
    seen: list[Tensor] = []
    net = dynamic.wrap(backbone, torch.randn(2, 8), exits=["1"]).train()
    assert net.trainable_backbone
    net.heads[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(4, 8)
    logits = net(x)
    torch.testing.assert_close(seen[0], backbone[1](backbone[0](x)))
    torch.testing.assert_close(logits[-1], backbone(x))


class Remembers(nn.Module):
    """Keeps its last input, counts its calls, and makes a table at the first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.last: Tensor | None = None
        self.table: Tensor | None = None
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.last = x
        self.calls += 1
        if self.table is None:
            self.table = torch.ones(8) * 3
        return x + torch.relu(self.linear(x)) * self.table


def test_what_the_user_s_code_keeps_is_put_back() -> None:
    backbone = nn.Sequential(Remembers(), Remembers(), Remembers(), nn.Linear(8, 3)).eval()
    x = torch.randn(2, 8)
    net = dynamic.wrap(backbone, x, exits=1).eval()
    assert all(m.last is None and m.table is None and m.calls == 0 for m in backbone[:3])
    with torch.no_grad():
        assert torch.equal(net(x)[-1], backbone(x))
    assert isinstance(backbone[0].last, Tensor)


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        part = x[:, :4]
        y = self.inner(x)
        part.clamp_(max=50)
        return self.out(y + x)


def test_views_that_change_across_a_cut_are_seen() -> None:
    """On the example nothing is clamped: the change is told by torch's count of changes, not by values."""
    torch.manual_seed(0)
    backbone, x = Views().eval(), torch.randn(2, 8)
    with pytest.warns(DynamicWarning, match="shares memory"):
        net = dynamic.wrap(backbone, x, exits=["inner"]).eval()
    large = 100 * torch.randn(4, 8)
    with torch.no_grad():
        (first, second), own = net.exit_stages, backbone(large.clone())
        carry = tuple(t[[2, 0]] for t in first.body(large.clone()))
        torch.testing.assert_close(second.body(*carry)[0], own[[2, 0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype: torch.dtype) -> None:
    net = dynamic.wrap(resnet().to(dtype), X.to(dtype), exits=2).eval()
    with torch.no_grad():
        assert [z.dtype for z in net(X.to(dtype))] == [dtype] * 3


def test_parametrized_and_recurrent_layers() -> None:
    torch.manual_seed(0)

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.LSTM(6, 12, batch_first=True)
            self.two = nn.LSTM(12, 12, batch_first=True)
            self.out = nn.utils.parametrizations.weight_norm(nn.Linear(12, 3))

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x)[0]
            return self.out(self.two(x)[0].mean(1))

    backbone, x = Sequence().eval(), torch.randn(3, 5, 6)
    net = dynamic.wrap(backbone, x, exits=1).eval()
    assert [(e.shape, e.channel) for e in net.exits] == [((5, 12), 2)]
    with torch.no_grad():
        assert torch.equal(net(x)[-1], backbone(x))


class Passes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_exits_that_no_head_can_read() -> None:
    with pytest.raises(ExitError, match="floating-point"):
        dynamic.wrap(nn.Sequential(Passes(), nn.Linear(8, 8), nn.Linear(8, 3)), torch.randn(2, 8), exits=["0"])
    with pytest.raises(LayoutError, match="nonsense"):
        dynamic.wrap(resnet(), X, exits=1, layout={"nonsense": "BCHW"})
