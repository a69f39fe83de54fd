"""Modes "joint" and "distill" on networks that only torch.export captures: encoders of `transformers`."""

import copy
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.networks.encoders import CLASSES, LAYERS, LIMIT, encoder, tokens
from torch import Tensor, nn
from torch.export import Dim

import dynamic
from dynamic.policies.errors import DynamicWarning, WrapError

ADAM: dict[str, Any] = {"training": dynamic.TrainingConfig(optimizer="adamw"), "lr": 5e-3, "progress": False}


def texts(count: int = 48, size: int = 16) -> list[tuple[dict[str, Tensor], Tensor]]:
    """The class is the first token, in fifths of the vocabulary. Two lengths take turns."""
    batches = []
    for number in range(count // size):
        inputs = tokens(size, length=12 - 3 * (number % 2), seed=number)
        batches.append((inputs, (inputs["input_ids"][:, 0] - 3) * CLASSES // 57))
    return batches


@pytest.fixture(scope="module", params=LAYERS)
def net(request: pytest.FixtureRequest) -> Any:
    """One exit behind the first of two layers, at any length. Tests take copies."""
    length = Dim("length", min=1, max=LIMIT)
    shapes = {"input_ids": {1: length}, "attention_mask": {1: length}}
    backbone = encoder(request.param)
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    wrapped = dynamic.wrap(backbone, tokens(2), exits=[f"{LAYERS[request.param]}.0"], dynamic_shapes=shapes)
    assert wrapped.tracer == "export"
    assert wrapped.trainable_backbone
    assert wrapped.why_not_trainable is None
    assert not any(module.training for module in backbone.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    return wrapped.eval()


def last_by_stages(net: Any, inputs: dict[str, Tensor]) -> Tensor:
    """The last logits of the graphs that are exported."""
    carry = tuple(inputs.values())
    for stage in net.exit_stages:
        carry = stage.body(*carry)
    return carry[0]


def test_dropout_draws_what_the_backbone_draws(net: Any) -> None:
    inputs = tokens(6, length=9, seed=5)
    net = copy.deepcopy(net).train()
    with torch.no_grad():
        torch.manual_seed(1)
        first, last = net(**inputs)
        torch.manual_seed(1)
        torch.testing.assert_close(net.backbone(**inputs).logits, last, rtol=0, atol=1e-5)
        torch.manual_seed(2)
        other = net(**inputs)
    assert not torch.allclose(first, other[0], atol=1e-3)
    assert not torch.allclose(last, other[1], atol=1e-3)


@pytest.mark.parametrize("mode", ["joint", "distill"])
def test_everything_learns_and_the_exported_graph_has_the_weights(net: Any, mode: Any) -> None:
    untrained, net = net, copy.deepcopy(net)
    report = dynamic.fit(net, texts(), mode=mode, epochs=16, **ADAM)
    assert report.exits == (net.exits[0].name, "last")
    assert all(last < 0.8 * first for first, last in zip(report.history_loss[0], report.loss, strict=True))
    assert min(report.accuracy) > 0.2 + 4 * math.sqrt(0.2 * 0.8 / 48)  # of 48 texts, four standard errors over chance
    before = dict(untrained.backbone.named_parameters())
    changed = {name for name, p in net.backbone.named_parameters() if not torch.equal(p, before[name])}
    unused = {name for name in before if "position_embeddings" in name or "token_type" in name}
    assert set(before) - changed <= unused
    assert not any(module.training for module in net.modules())
    inputs = tokens(6, length=LIMIT, seed=7)
    with torch.no_grad():
        expected = net.backbone(**inputs).logits
        assert not torch.allclose(untrained.backbone(**inputs).logits, expected, atol=0.1)
        torch.testing.assert_close(net(**inputs)[-1], expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(last_by_stages(net, inputs), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("net", ["bert"], indirect=True)
def test_the_bundle_of_a_trained_encoder_gives_its_logits(net: Any) -> None:
    net = copy.deepcopy(net)
    dynamic.fit(net, texts(), mode="joint", epochs=4, **ADAM)
    inputs = tokens(40, seed=9)
    labels = torch.arange(40) % CLASSES
    bundle = dynamic.build(net, [(inputs, labels)], max_drops=(0.5,), floor=0, progress=False)
    longer = tokens(6, length=LIMIT, seed=7)
    engine = bundle.open()
    try:
        logits = engine.all_logits({name: tensor.numpy() for name, tensor in longer.items()})
    finally:
        engine.close()
    with torch.no_grad():
        expected = torch.stack(net(**longer), 1).numpy()
        np.testing.assert_allclose(logits, expected, atol=2e-5)
        np.testing.assert_allclose(logits[:, -1], net.backbone(**longer).logits.numpy(), atol=2e-5)


class Interrupted(list[Any]):
    """Batches with an interrupt in the middle of the third epoch. The first pass is a look at the data."""

    passes = 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        for number, batch in enumerate(super().__iter__()):
            if self.passes == 4 and number == 1:
                raise KeyboardInterrupt
            yield batch


def test_interrupted_and_resumed_ends_with_the_same_weights(net: Any, tmp_path: Path) -> None:
    whole, broken, resumed = (copy.deepcopy(net) for _ in range(3))
    how: dict[str, Any] = {"mode": "joint", "epochs": 3, **ADAM}
    dynamic.fit(whole, texts(32), **how)
    with pytest.raises(KeyboardInterrupt):
        dynamic.fit(broken, Interrupted(texts(32)), checkpoint=tmp_path / "run.safetensors", **how)
    assert dynamic.fit(resumed, texts(32), checkpoint=tmp_path / "run.safetensors", **how).resumed == 2
    ends = [dict(one.state_dict()) for one in (whole, broken, resumed)]
    assert all(torch.equal(ends[0][name], ends[2][name]) for name in ends[0])
    assert not all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_another_network_teaches(net: Any) -> None:
    teacher = copy.deepcopy(net.backbone)
    dynamic.fit(teacher, texts(), mode="joint", epochs=8, **ADAM)
    taught = copy.deepcopy(net)
    distillation = dynamic.DistillationConfig(teacher=teacher, share=1.0)
    dynamic.fit(taught, texts(), mode="distill", epochs=8, distillation=distillation, **ADAM)

    def distance(network: Any) -> float:
        (inputs, _), *_ = texts()
        with torch.no_grad():
            own, wanted = network(**inputs)[-1].log_softmax(1), teacher(**inputs).logits.log_softmax(1)
        return float(nn.functional.kl_div(own, wanted, log_target=True, reduction="batchmean"))

    assert distance(taught) < 0.5 * distance(net)


def test_a_mode_or_a_rate_that_the_trace_does_not_have_is_refused(net: Any) -> None:
    net = copy.deepcopy(net).train()
    inputs = tokens(6, seed=5)
    dropout = next(name for name, module in net.backbone.named_modules() if isinstance(module, nn.Dropout))
    part = net.backbone.get_submodule(dropout)
    part.eval()
    with pytest.raises(WrapError, match=rf"{dropout!r} has .*False.*net\.train\(\)"):
        net(**inputs)
    net.train()
    part.p = 0.5
    with pytest.raises(WrapError, match=rf"{dropout!r} has .*0\.5.*Set the rates before wrap"):
        net(**inputs)
    net.eval()(**inputs)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_runs_where_it_is_moved(net: Any, training: bool) -> None:
    """Without a second device, shapes alone are computed on "meta": what is made on another device would raise."""
    moved = copy.deepcopy(net).to("meta").train(training)
    inputs = {name: tensor.to("meta") for name, tensor in tokens(6, seed=5).items()}
    for logits in moved(**inputs):
        assert (logits.device.type, logits.shape) == ("meta", (6, CLASSES))


class Frozen(nn.Module):
    """Its first layer runs without gradients, which no graph of torch.fx and torch.export shows."""

    def __init__(self, exported: bool, extra: bool = False, scale: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        self.exported, self.extra, self.scale = exported, extra, scale
        self.first, self.second, self.out = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.aside, self.dropout = nn.Linear(8, 3), nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Any:
        if self.exported and len(x) == 0:  # torch.fx cannot follow len
            return self.out(x)
        with torch.set_grad_enabled(False):
            x = torch.relu(self.first(x))
        y = torch.relu(self.second(x * self.scale))
        aside = self.aside(self.dropout(y))  # drawn before what the logits draw
        logits = self.out(self.dropout(y))
        return {"logits": logits, "aside": aside} if self.extra else logits


def without_weights(network: Frozen) -> Frozen:
    """The network with a last layer of zeros: all it gives is 0."""
    nn.init.zeros_(network.out.weight)
    nn.init.zeros_(network.out.bias)
    return network


FROZEN = {
    "plain": lambda exported: Frozen(exported),
    "two outputs": lambda exported: Frozen(exported, extra=True),
    "two outputs and dropout": lambda exported: Frozen(exported, extra=True, dropout=0.3),
    "small gradients": lambda exported: Frozen(exported, scale=1e-6),
    "a last layer of zeros": lambda exported: without_weights(Frozen(exported)),
}


@pytest.mark.filterwarnings("ignore:captured with torch.export", "ignore:Frozen gives more than logits")
@pytest.mark.parametrize("kind", FROZEN)
@pytest.mark.parametrize("exported", [False, True])
def test_gradients_that_forward_switches_off_are_not_switched_on(exported: bool, kind: str) -> None:
    torch.manual_seed(0)
    net = dynamic.wrap(FROZEN[kind](exported), torch.randn(4, 6), exits=["second"])
    assert net.tracer == ("export" if exported else "fx")
    assert not net.trainable_backbone
    loader = [(torch.randn(8, 6), torch.arange(8) % 3)]
    with pytest.raises(WrapError, match=r"'first\.weight'.*requires_grad=False.*mode='heads'"):
        dynamic.fit(net, loader, mode="joint", epochs=1, progress=False)
    dynamic.fit(net.eval(), loader, epochs=1, progress=False)


@pytest.mark.parametrize("exported", [False, True])
def test_a_part_of_a_gradient_that_forward_switches_off_is_found_too(exported: bool) -> None:
    """The first layer has a gradient by one of two ways. It is a thousandth of that of the last layer."""

    class Half(Frozen):
        def forward(self, x: Tensor) -> Any:
            if self.exported and len(x) == 0:
                return self.out(x)
            with torch.no_grad():
                aside = self.first(x)
            return 1e3 * self.out(1e-4 * torch.relu(self.second(self.first(x) + aside)) + 1)

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DynamicWarning)
        net = dynamic.wrap(Half(exported), torch.randn(4, 6), exits=["second"])
    assert "'first.weight'" in str(net.why_not_trainable)


@pytest.mark.filterwarnings("ignore:Several gives more than logits")
@pytest.mark.parametrize("exported", [False, True])
def test_a_network_of_several_outputs_with_dropout_is_trained(exported: bool) -> None:
    """The dropped output draws random numbers before the logits do. They decide on no other operation's check."""

    class Several(Frozen):
        def forward(self, x: Tensor) -> Any:
            if self.exported and len(x) == 0:
                return self.out(x)
            y = torch.relu(self.second(torch.relu(self.first(x))))
            return {"logits": self.out(self.dropout(y)), "aside": self.aside(self.dropout(y))}

    class AsideFirst(Several):
        def forward(self, x: Tensor) -> Any:
            if self.exported and len(x) == 0:
                return self.out(x)
            y = torch.relu(self.second(torch.relu(self.first(x))))
            aside = self.aside(self.dropout(y))
            return {"logits": self.out(self.dropout(y)), "aside": aside}

    for kind in (Several, AsideFirst):
        torch.manual_seed(0)
        with pytest.warns(DynamicWarning, match="more than logits, aside"):
            net = dynamic.wrap(kind(exported, dropout=0.5), torch.randn(4, 6), exits=["second"])
        assert net.tracer == ("export" if exported else "fx")
        assert net.trainable_backbone
        assert net.why_not_trainable is None


class InPlace(nn.Module):
    """What the exit in front of it gave is changed in place, in train mode alone where it is dropout."""

    def __init__(self, exported: bool, change: nn.Module) -> None:
        super().__init__()
        self.exported = exported
        self.a, self.change, self.out = nn.Linear(6, 8), change, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if self.exported and len(x) == 0:
            return x
        return self.out(self.change(self.a(x)) * 1.5)  # type: ignore[no-any-return]


@pytest.mark.parametrize("change", [nn.ReLU(inplace=True), nn.Dropout(0.5, inplace=True)], ids=["relu", "dropout"])
@pytest.mark.parametrize("exported", [False, True])
def test_an_exit_before_a_change_in_place_is_trained(exported: bool, change: nn.Module) -> None:
    torch.manual_seed(0)
    net = dynamic.wrap(InPlace(exported, change), torch.randn(4, 6), exits=["a"])
    assert net.tracer == ("export" if exported else "fx")
    assert net.trainable_backbone
    before = {name: p.clone() for name, p in net.named_parameters()}
    loader = [(torch.randn(8, 6), torch.arange(8) % 3)]
    dynamic.fit(net, loader, mode="joint", epochs=2, progress=False)
    assert not any(torch.equal(p, before[name]) for name, p in net.named_parameters() if name.endswith("weight"))


class Rates(nn.Module):
    """An attention that has its dropout rate as a number, as ModernBERT's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.out = nn.Linear(6, 8), nn.Identity(), nn.Linear(8, 3)
        self.attention_dropout = 0.1

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == 0:
            return x
        rate = self.attention_dropout if self.training else 0.0
        return self.out(nn.functional.dropout(self.inner(torch.relu(self.first(x))), rate))  # type: ignore[no-any-return]


def test_a_rate_that_is_a_number_is_watched_and_so_are_modules() -> None:
    torch.manual_seed(0)
    backbone = Rates()
    inputs = torch.randn(4, 6)
    net = dynamic.wrap(backbone, inputs, exits=["first"]).train()
    assert net.tracer == "export"
    net(inputs)
    backbone.attention_dropout = 0.5
    with pytest.raises(WrapError, match=r"attention_dropout=0\.5, and had .*attention_dropout=0\.1"):
        net(inputs)
    backbone.attention_dropout = 0.1
    net(inputs)
    del backbone.inner
    with pytest.raises(WrapError, match=r"'inner' was removed since .*wrap it again"):
        net(inputs)


def test_what_cannot_be_trained_says_why() -> None:
    class Halved(nn.Module):
        """In train mode it decides by a value, which no tracer follows."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            scale = 2.0 if len(x) > 0 else 1.0
            if self.training and x.sum() > 0:
                scale = 0.5
            return self.out(torch.relu(self.first(x)) * scale)  # type: ignore[no-any-return]

    with pytest.warns(DynamicWarning, match="only exit heads can be trained, since torch.export cannot trace it in"):
        net = dynamic.wrap(Halved().eval(), torch.randn(4, 6), exits=["first"])
    with pytest.raises(WrapError, match="cannot trace it in train mode"):
        dynamic.fit(net, [(torch.randn(8, 6), torch.arange(8) % 3)], mode="joint", epochs=1, progress=False)


def test_batch_norm_counts_as_in_the_backbone() -> None:
    """Statistics change in place while it trains: they are those of the backbone, its number of batches too."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.out = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(torch.relu(self.norm(self.first(x)))) if len(x) > 0 else x

    torch.manual_seed(0)
    backbone: Any = Normed()
    alone = copy.deepcopy(backbone)
    net = dynamic.wrap(backbone, torch.randn(4, 6), exits=["norm"])
    assert net.tracer == "export"
    assert net.trainable_backbone
    inputs = torch.randn(16, 6)
    with torch.no_grad():
        torch.testing.assert_close(net.train()(inputs)[-1], alone.train()(inputs))
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(backbone.get_buffer(name), buffer)
    assert int(backbone.norm.num_batches_tracked) == 1
