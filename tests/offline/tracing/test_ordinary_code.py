"""What people write in networks, and what counting, copying, tracing and building make of it."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import dynamic
from dynamic.errors import EngineError, InputError, TraceError
from dynamic.models.compress import prune_channels
from dynamic.models.compress.distillation.distillation import distill
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.models.compress.report import accuracy, copied
from dynamic.offline.networks.network_copies import plain
from dynamic.offline.tracing.multiply_adds import count_macs

TOKENS = torch.randn(60, 5, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(60) % 3


class ClassToken(nn.Module):
    """A class token of which a layer sees nothing else, as in CaiT."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.norm, self.query, self.both = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 16)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        token = self.norm(self.token.expand(x.shape[0], -1, -1))
        key, value = self.both(x).chunk(2, dim=-1)
        seen = (self.query(token) @ key.transpose(1, 2)).softmax(-1) @ value
        return self.out((token + seen)[:, 0])


class Latents(nn.Module):
    """Learned latents that attend to the input, as in Perceiver and in SigLIP's pooling."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.latents = nn.Parameter(torch.randn(1, 4, 8))
        self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        latents = self.latents.expand(x.shape[0], -1, -1)
        return self.out(self.attention(latents, x, x)[0].mean(1))


class Indexed(nn.Module):
    """Rows, views and transposes of parameters go into layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.one, self.two = nn.Parameter(torch.randn(3, 8)), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(x.mean(1)) + self.one(self.table[0][None]) + self.one(self.table.view(8, 3).t())[:1])


class Recurrent(nn.Module):
    """An initial state that is learned."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.state = nn.Parameter(torch.zeros(1, 1, 8))
        self.layer, self.out = nn.GRU(8, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x, self.state.expand(-1, x.shape[0], -1).contiguous())[0][:, -1])


# by hand, for one row: LayerNorm and softmax multiply nothing
MACS = {
    ClassToken: 8 * 8 + 5 * 8 * 16 + 5 * 8 + 5 * 8 + 8 * 3,
    Latents: 4 * 8 * 8 + 2 * 5 * 8 * 8 + 2 * (4 * 5 * 8) + 4 * 8 * 8 + 8 * 3,
    Indexed: None,  # what is the same for all rows is shared among them
    Recurrent: None,
}


@pytest.mark.filterwarnings("ignore:only .* of the multiply-adds are in int8")
@pytest.mark.parametrize("kind", MACS)
def test_a_view_of_a_parameter_is_counted(kind: type[nn.Module]) -> None:
    network = kind().eval()
    found = count_macs(network, (TOKENS[:2],)).total
    assert found > 0
    if MACS[kind] is not None:
        assert found == MACS[kind]
    bundle = dynamic.build(network, [(TOKENS, LABELS)])
    assert bundle.records.macs == (found,)
    assert quantize(network, TOKENS[:2], calibration_loader=[TOKENS], latency=False).report.before.macs > 0


class Uncountable(nn.Module):
    """An operator that refuses to run under any dispatch mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

        x = self.one(x.mean(1))
        if _get_current_dispatch_mode_stack():
            raise NotImplementedError("no mode is taken here")
        return self.two(x)


def test_what_cannot_be_counted_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "dynamic")
    network = Uncountable().eval()
    found = count_macs(network, (TOKENS[:2],))
    assert found.total == 8 * 8  # what ran before
    assert "Uncountable in part: no mode is taken here" in found.not_counted
    assert "counted in part only: no mode is taken here" in caplog.text
    assert dynamic.build(network, [(TOKENS, LABELS)], engine="torch").records.macs == (64.0,)


def test_a_network_that_fails_by_itself_says_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes cannot be multiplied"):
        count_macs(nn.Linear(9, 3), (TOKENS[:2],))


class Scaled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 1.5


def masked(layer: nn.Module) -> nn.Module:
    return prune.l1_unstructured(layer, "weight", 0.5)  # type: ignore[no-any-return, no-untyped-call]


def parametrized(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", Scaled())


COMPUTED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "masked": masked,
    "parametrized": parametrized,
    "new weight_norm": parametrizations.weight_norm,
    "new spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
}


class Convolutions(nn.Module):
    def __init__(self, change: Callable[[nn.Module], nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # weight_norm and spectral_norm are deprecated, and in use
            self.one, self.norm = change(nn.Conv2d(1, 8, 3, padding=1)), nn.BatchNorm2d(8)
            self.two, self.out = change(nn.Conv2d(8, 8, 3, padding=1)), change(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.two(torch.relu(self.norm(self.one(x))))).mean((2, 3)))


class Keeps(nn.Module):
    """Keeps what it computed, as networks that show their attention do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.out = nn.Conv2d(1, 8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.relu(self.one(x))
        self.all = {"features": [self.last]}
        return self.out(self.last.mean((2, 3)))


PICTURES = torch.randn(60, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def used(name: str) -> nn.Module:
    """A network that has run, in train mode and in eval mode."""
    network = Keeps() if name == "keeps" else Convolutions(COMPUTED[name])
    network.train()(PICTURES)
    network.eval()(PICTURES)
    return network


@pytest.mark.parametrize("name", [*COMPUTED, "keeps"])
def test_networks_with_computed_weights_are_copied_and_compressed(name: str) -> None:
    network = used(name)
    with torch.no_grad():
        expected = network(PICTURES)
        made = copied(network)
        assert torch.equal(made(PICTURES), expected)
        for parameter in made.parameters():
            parameter.zero_()  # nothing is shared
        assert torch.equal(network(PICTURES), expected)
        ordinary = plain(copied(network))
        torch.testing.assert_close(ordinary(PICTURES), expected, rtol=0, atol=1e-6)
        assert {n for n, _ in ordinary.named_parameters()} >= {"one.weight", "out.weight"}
    int8 = quantize(network, PICTURES[:2], calibration_loader=[PICTURES], latency=False)
    assert int8.report.left_alone == {}
    assert (int8.network(PICTURES) - expected).abs().max() < 0.1 * expected.abs().max()
    if name != "keeps":
        smaller = prune_channels(network, PICTURES[:2], amount=0.5, latency=False).network
        assert smaller(PICTURES).shape == (60, 3)


@pytest.mark.parametrize("name", ["weight_norm", "masked", "keeps"])
def test_they_wrap_build_and_learn(name: str) -> None:
    network, loader = used(name), [(PICTURES, LABELS)]
    net = dynamic.wrap(network, PICTURES[:2], exits=["one"])
    dynamic.fit(net, loader, epochs=1)
    with torch.no_grad():
        assert torch.equal(net.eval()(PICTURES)[-1], network(PICTURES))
    assert len(dynamic.build(net, loader, allow_reuse=True).spec.stages) == 2
    student = distill(used(name), PICTURES[:2], teacher=network, train_loader=loader, epochs=1, latency=False).network
    assert student(PICTURES).shape == (60, 3)


def test_one_logit_with_a_sigmoid_is_named_by_all() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid()).eval()
    loader = [(PICTURES, LABELS % 2)]
    work: list[Callable[[], object]] = [
        lambda: dynamic.wrap(network, PICTURES[:2], exits=["1"]),
        lambda: dynamic.fit(network, loader, mode="joint", epochs=1),
        lambda: dynamic.calibrate(network, loader),
        lambda: dynamic.build(network, loader),
        lambda: dynamic.build(network, loader, risk="disagreement", engine="torch"),
        lambda: accuracy(network, loader),
        lambda: dynamic.family(network, loader, methods=[]),
    ]
    remedy = r"gives 1 logit for each input.*torch\.cat\(\[torch\.zeros_like\(x\), x\], 1\)"
    for run in work:
        with pytest.raises(InputError, match=remedy):
            run()


def test_one_logit_without_a_dimension_of_its_own_is_named_too() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(64, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(x.flatten(1)).squeeze(-1)  # type: ignore[no-any-return]

    with pytest.raises(InputError, match="gives 1 logit for each input"):
        dynamic.build(Flat(), [(PICTURES, LABELS % 2)])


def test_the_remedy_for_one_logit_is_the_same_classifier() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            logit = self.inner(x)
            return torch.cat([torch.zeros_like(logit), logit], 1)

    two = Two().eval()
    with torch.no_grad():
        torch.testing.assert_close(two(PICTURES).softmax(1)[:, 1], inner(PICTURES)[:, 0].sigmoid())
    assert dynamic.build(two, [(PICTURES, LABELS % 2)]).spec.classes == 2


class Bessel(nn.Module):
    """An operator that ONNX does not have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.special.bessel_j0(self.one(x.flatten(1))))


def test_engine_torch_needs_no_export(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    network, loader = Bessel().eval(), [(PICTURES, LABELS)]
    with pytest.raises(EngineError, match="Use engine='torch'"):
        dynamic.build(network, loader)
    caplog.set_level(logging.WARNING, "dynamic")
    net = dynamic.wrap(network, PICTURES[:2], exits=["one"])
    cascade = dynamic.Cascade([network, net])
    built = dynamic.build(cascade, loader, engine="torch")
    assert "for engine 'torch' alone" in caplog.text
    built.save(tmp_path / "shelf")
    assert not (tmp_path / "shelf" / "backbones").exists()
    bundle = dynamic.load(tmp_path / "shelf", modules=cascade).profile((1,), seconds=0.02, progress=False)
    with bundle.runtime(monitor=dynamic.FixedMonitor()) as run, torch.no_grad():
        result = run(PICTURES[:5].numpy())
        assert result.label.tolist() == network(PICTURES[:5]).argmax(1).tolist()
    again = dynamic.recertify(bundle, (0.5,))
    assert again.engine == "torch"
    for run_on_other in (
        lambda: bundle.runtime(engine="onnxruntime"),
        lambda: dynamic.export(bundle, tmp_path / "all.onnx"),
    ):
        with pytest.raises(EngineError, match="torch could not export its networks"):
            run_on_other()
    with pytest.raises(EngineError, match="holds no torch modules"):
        dynamic.load(tmp_path / "shelf").runtime()


def test_engine_torch_writes_graphs_where_it_can(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    built = dynamic.build(network, [(PICTURES, LABELS)], engine="torch")
    output = built.open("onnxruntime").run({"input": PICTURES[:3].numpy()}, np.empty(0, np.float32))
    with torch.no_grad():
        assert output.logits.argmax(1).tolist() == network(PICTURES[:3]).argmax(1).tolist()


class Mapped(nn.Module):
    """A layer under vmap: torch.export captures a graph that does not run by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.vmap(self.one)(x.flatten(1))
        return found


def test_what_cannot_be_traced_ends_in_an_error_of_ours() -> None:
    with pytest.raises(TraceError, match="captured graph, which does not run"):
        dynamic.wrap(Mapped().eval(), PICTURES[:2], exits=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # deprecated, and in use
        inside = torch.jit.script(nn.Linear(64, 8))
    scripted: Any = nn.Sequential(nn.Flatten(), inside, nn.ReLU(), nn.Linear(8, 3)).eval()
    net = dynamic.wrap(scripted, PICTURES[:2], exits=["2"])
    with torch.no_grad():
        assert torch.equal(net.eval()(PICTURES)[-1], scripted(PICTURES))


class Around(nn.Module):
    """What `torch.compile` gives, as far as it concerns us: calls would compile for minutes."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self._orig_mod = inner

    def forward(self, *_: Any) -> Tensor:
        raise AssertionError("the compiled network was run")


def both(inner: nn.Module) -> nn.Module:
    return Around(nn.DataParallel(inner))


@pytest.mark.parametrize("around", [Around, nn.DataParallel, both, torch.compile])
def test_what_stands_around_a_network_is_taken_off(around: Any) -> None:
    inner = Convolutions(lambda layer: layer).eval()
    given = around(inner)
    net = dynamic.wrap(given, PICTURES[:2], exits=["one"])
    assert net.backbone is inner
    bundle = dynamic.build(given, [(PICTURES, LABELS)])
    assert [stage.name for stage in bundle.spec.stages] == ["Convolutions"]


def test_random_numbers_in_evaluation_mode_are_named() -> None:
    class Noisy(Convolutions):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.dropout(x, 0.5))

    network = Noisy(lambda layer: layer).eval()
    with pytest.raises(InputError, match="draws random numbers there"):
        dynamic.build(network, [(PICTURES, LABELS)])
    assert dynamic.fit(network, [(PICTURES, LABELS)], mode="joint", epochs=1).epochs == 1


class Assigned(nn.Module):
    """Features are written into a part of others, as in MViT. torch.fx does not follow `len` of a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.classes = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        features = self.one(x)
        if len(features) > 0:
            features[:, 1:] = features[:, 1:] * 2
            features[:, 0] = self.two(x[:, 0])
        return self.classes(torch.relu(features).mean(1))  # type: ignore[no-any-return]


def test_heads_learn_behind_features_that_are_assigned() -> None:
    """Raised "derivative for aten::copy is not implemented"."""
    network, x = Assigned().eval(), torch.randn(5, 6, 4)
    with torch.no_grad():
        expected = network(x)
    net = dynamic.wrap(network, x, exits=1).eval()
    assert net.tracer == "export"
    early, last = net(x)
    torch.testing.assert_close(last, expected, rtol=0, atol=1e-6)
    (early.square().sum() + last.square().sum()).backward()
    own = {name: parameter.grad for name, parameter in net.named_parameters()}
    assert all(grad is not None and grad.any() for grad in own.values()), own
    found = net.backbone.two.weight.grad.clone()
    net.zero_grad()
    early, _ = net(x)
    early.square().sum().backward()
    through_exit = net.backbone.two.weight.grad.clone()
    network.zero_grad()
    network(x).square().sum().backward()
    torch.testing.assert_close(found, through_exit + network.two.weight.grad)
