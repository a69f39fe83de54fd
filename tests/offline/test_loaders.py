"""Loaders as people have them, read alike by wrap, fit, calibrate, build and quantize."""

import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import dynamic
from dynamic.errors import CalibrationError, InputError
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.models.compress.report import accuracy
from dynamic.offline.batches import named_tensors, read_batch, run_on
from dynamic.offline.build_steps.loaders import class_indices

COUNT, CLASSES = 90, 3
X = torch.randn(COUNT, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(COUNT) % CLASSES


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()


def split(size: int = 30) -> list[tuple[Tensor, Tensor]]:
    return list(zip(X.split(size), Y.split(size), strict=True))


class Stream(IterableDataset[Any]):
    """Samples, or with `once` samples that can be read a single time."""

    def __init__(self, once: bool = False) -> None:
        self.once = iter(list(zip(X, Y, strict=True))) if once else None

    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True)) if self.once is None else self.once


class Words(nn.Module):
    """Word numbers and a mask; `positions` stands between them, as in GPT-2's classifier, and `labels` gives a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.one, self.two = nn.Embedding(20, 16), nn.Linear(16, 16), nn.Linear(16, CLASSES)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Tensor:
        if labels is not None:
            raise AssertionError("labels are no input")
        seen = self.words(input_ids)
        if attention_mask is not None:
            seen = seen * attention_mask[..., None]
        if positions is not None:
            seen = seen + positions[..., None]
        hidden: Tensor = torch.relu(self.one(seen.sum(1)))
        return self.two(hidden)  # type: ignore[no-any-return]


IDS = torch.randint(0, 20, (COUNT, 6), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(6) < torch.arange(COUNT)[:, None] % 6 + 1).float()


def collated(size: int = 30, **more: Any) -> list[dict[str, Any]]:
    """As a transformers collator gives them: in no particular order, labels inside."""
    parts = zip(IDS.split(size), MASK.split(size), Y.split(size), strict=True)
    return [{"attention_mask": mask, "labels": y, "input_ids": ids, **more} for ids, mask, y in parts]


def rows(records: Any) -> int:
    assert records.label is not None
    assert records.label.tolist() == Y.tolist()
    return len(records)


# what is clear is taken


def test_a_stream_without_a_length() -> None:
    loader = DataLoader(Stream(), batch_size=25)
    with pytest.raises(TypeError, match="has no len"):
        len(loader)
    net = dynamic.wrap(network(), X[:2], exits=["0"])
    for mode in ("heads", "joint"):
        assert dynamic.fit(net, loader, mode=mode, epochs=2).epochs == 2
    dynamic.fit(net, loader, epochs=2, training=dynamic.TrainingConfig(cache=False))
    assert rows(dynamic.calibrate(net, loader)) == COUNT
    assert dynamic.build(net, loader, allow_reuse=True).records.label is not None
    assert (
        quantize(network(), X[:2], calibration_loader=loader, latency=False, eval_loader=loader).report.after.accuracy
        is not None
    )


def test_a_stream_that_is_read_once_loses_nothing() -> None:
    assert rows(dynamic.calibrate(network(), DataLoader(Stream(once=True), batch_size=25))) == COUNT
    assert rows(dynamic.build(network(), DataLoader(Stream(once=True), batch_size=25)).records) == COUNT
    assert rows(dynamic.calibrate(network(), iter(split()))) == COUNT


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_labels_inside_a_dict(kind: Any) -> None:
    loader: list[Any] = [kind(batch) for batch in collated()]
    net = dynamic.wrap(Words().eval(), loader[0], exits=["one"])
    assert net.input_names == ("input_ids", "attention_mask")
    for mode in ("heads", "joint"):
        dynamic.fit(net, loader, mode=mode, epochs=1)
    plain = Words().eval()
    dynamic.fit(
        plain, loader, mode="distill", epochs=1, distillation=dynamic.DistillationConfig(teacher=Words().eval())
    )
    assert rows(dynamic.calibrate([plain, net], loader)) == COUNT
    bundle = dynamic.build([plain, net], loader, allow_reuse=True)
    assert [i.name for i in bundle.spec.inputs] == ["input_ids", "attention_mask"]
    assert rows(bundle.records) == COUNT
    with torch.no_grad():
        own = plain(IDS, attention_mask=MASK).argmax(1)
    assert accuracy(plain, loader) == int((own == Y).sum()) / COUNT
    assert quantize(plain, loader[0], calibration_loader=loader, latency=False).network(IDS, MASK).shape == (
        COUNT,
        CLASSES,
    )


@pytest.mark.parametrize(
    "labels",
    [
        Y.int(),
        Y.to(torch.uint8),
        Y[:, None],
        nn.functional.one_hot(Y),
        nn.functional.one_hot(Y).float(),
        nn.functional.one_hot(Y).bool(),
        Y.numpy(),
        Y.tolist(),
        tuple(Y.tolist()),
        np.eye(CLASSES)[Y],
    ],
)
def test_labels_whose_meaning_is_clear(labels: Any) -> None:
    assert class_indices(labels).tolist() == Y.tolist()
    assert rows(dynamic.calibrate(network(), [(X, labels)], engine="torch")) == COUNT
    assert dynamic.fit(network(), [(X, labels)], mode="joint", epochs=1).epochs == 1


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, "float64 array"])
def test_inputs_of_another_float_type_are_those_of_the_network(kind: Any) -> None:
    inputs: Any = X.to(kind) if isinstance(kind, torch.dtype) else X.numpy().astype(kind.split()[0])
    loader = [(inputs, Y)]
    expected = named_tensors(network(), inputs)["input"]
    assert expected.dtype == torch.float32
    net = dynamic.wrap(network(), inputs[:2], exits=["0"])
    for mode in ("heads", "joint"):
        dynamic.fit(net, loader, mode=mode, epochs=1)
    records = dynamic.calibrate(net, loader)
    with torch.no_grad():
        np.testing.assert_allclose(records.logits[:, -1], net.eval()(expected)[-1], rtol=0, atol=1e-5)
    assert dynamic.build(net, loader, allow_reuse=True).spec.inputs[0].dtype == "float32"
    assert quantize(
        network(), inputs[:2], calibration_loader=loader, latency=False, eval_loader=loader
    ).report.after.accuracy


def test_no_labels_are_none() -> None:
    assert dynamic.calibrate(network(), [(X, None)], engine="torch").label is None
    assert dynamic.build(network(), [(X, None)], risk="disagreement").records.label is None
    batch = {"input_ids": IDS, "attention_mask": MASK, "labels": None}
    assert dynamic.calibrate(Words().eval(), [batch], engine="torch").label is None
    with pytest.raises(InputError, match="inputs without labels"):
        dynamic.fit(network(), [(X, None)], mode="joint", epochs=1)


# the same error, before any work


def refused(work: Callable[[], object], match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error comes before anything is exported or trained."""
    from dynamic.offline import calibration
    from dynamic.offline.build_steps import torch_steps
    from dynamic.offline.training import training_loop

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was done before the data were checked")

    with monkeypatch.context() as patch:
        patch.setattr(torch_steps, "export_stages", never)
        patch.setattr(calibration, "export_stages", never)
        patch.setattr(training_loop, "_step", never)
        with pytest.raises(InputError, match=match):
            work()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (["cat"] * COUNT, r"labels are a list such as 'cat', expected class indices.*number the classes from 0"),
        ([None] * COUNT, r"labels are a list such as None, expected class indices"),
        (Y.float(), r"labels are torch\.float32 of shape \[90\].*call labels\.long\(\)"),
        (Y > 0, r"labels are torch\.bool of shape \[90\]"),
        (torch.rand(COUNT, CLASSES), r"shape \[90, 3\] and not one-hot"),
        (torch.ones(COUNT, CLASSES), r"shape \[90, 3\] and not one-hot"),
        (torch.zeros(COUNT, 2, 2).long(), r"shape \[90, 2, 2\]"),
        (torch.tensor(1), r"shape \[\].*put a data set of single inputs in a DataLoader"),
        (Y + 1, r"labels run from 1 to 3. The (network|cascade) has 3 classes"),
        (Y - 1, r"labels run from -1 to 1"),
        (Y[:-1], r"90 inputs and 89 labels"),
    ],
)
def test_labels_that_are_none(labels: Any, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = [(X, labels)]
    net = dynamic.wrap(network(), X[:2], exits=["0"])
    for work in (
        lambda: dynamic.fit(net, loader, epochs=1),
        lambda: dynamic.fit(net, loader, epochs=1, training=dynamic.TrainingConfig(cache=False)),
        lambda: dynamic.fit(network(), loader, mode="joint", epochs=1),
        lambda: dynamic.calibrate(network(), loader),
        lambda: dynamic.build(network(), loader),
    ):
        refused(work, match, monkeypatch)
    if "run from" not in match and "89 labels" not in match:
        refused(lambda: quantize(network(), X[:2], calibration_loader=loader, latency=False), match, monkeypatch)


@pytest.mark.parametrize(
    ("batch", "match"),
    [
        ((["a", "b"], Y[:2]), r"input '.*' is a str. Give a tensor"),
        ((None, Y[:2]), r"inputs are a NoneType. Give a tensor, a tuple or a dict"),
        (({"input": "text"}, Y[:2]), r"input 'input' is a str. Give a tensor"),
        (({"pixels": X[:2]}, Y[:2]), r"forward takes no 'pixels', it takes \['input'\]"),
        (({}, Y[:2]), r"a batch holds no input"),
        (({"input": X[:2], "labels": Y[:2]}, Y[:2]), r"labels among its inputs too. Give them once"),
        ({"input": X[:2], "labels": Y[:2], "label": Y[:2]}, r"labels under \['labels', 'label'\]. Give them once"),
        (((X[:2], X[:2]), Y[:2]), r"Sequential does not run on the inputs given"),
        ((X[:2, :5], Y[:2]), r"Sequential does not run on .*\[2, 5\]"),
    ],
)
def test_inputs_that_are_none(batch: Any, match: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for work in (
        lambda: dynamic.fit(dynamic.wrap(network(), X[:2], exits=["0"]), [batch], epochs=1),
        lambda: dynamic.fit(network(), [batch], mode="joint", epochs=1),
        lambda: dynamic.calibrate(network(), [batch]),
        lambda: dynamic.build(network(), [batch]),
    ):
        wanted = match.replace(r"Sequential does not run on the inputs given", r"(does not run on|2 inputs given)")
        refused(work, wanted, monkeypatch)
    if isinstance(batch, tuple) and "once" not in match:
        refused(lambda: dynamic.wrap(network(), batch[0], exits=["0"]), match, monkeypatch)
        refused(lambda: quantize(network(), batch[0], calibration_loader=[X], latency=False), match, monkeypatch)


@pytest.mark.parametrize("loader", [None, 3, "photos/", X, X.numpy(), {"input": X}])
def test_what_is_no_loader(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for work in (
        lambda: dynamic.fit(dynamic.wrap(network(), X[:2], exits=["0"]), loader, epochs=1),
        lambda: dynamic.fit(network(), loader, mode="joint", epochs=1),
        lambda: dynamic.calibrate(network(), loader),
        lambda: dynamic.build(network(), loader),
        lambda: quantize(network(), X[:2], calibration_loader=loader, latency=False),
    ):
        refused(work, r"is no loader. Give batches", monkeypatch)


def test_data_sets_that_are_in_no_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (Stream(), TensorDataset(X, Y)):
        for work in (
            lambda d=data: dynamic.build(network(), d),
            lambda d=data: dynamic.fit(network(), d, mode="joint"),
        ):
            refused(work, "put a data set of single inputs in a DataLoader", monkeypatch)
    with pytest.raises(CalibrationError, match="loader is empty"):
        dynamic.build(network(), [])


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_networks_in_another_float_type_train_and_are_named_where_an_engine_is_asked(kind: torch.dtype) -> None:
    loader = split()
    net = dynamic.wrap(network().to(kind), X[:2], exits=["0"])
    for mode in ("heads", "joint"):
        dynamic.fit(net, loader, mode=mode, epochs=1)
    dynamic.fit(net, loader, epochs=1, training=dynamic.TrainingConfig(cache=False))
    assert {p.dtype for p in net.parameters()} == {kind}
    name = str(kind).removeprefix("torch.")
    work: list[Callable[[], object]] = [
        lambda: dynamic.calibrate(net, loader),
        lambda: dynamic.calibrate(network().to(kind), loader, engine="torch"),
        lambda: dynamic.build([network(), net], loader, allow_reuse=True),
        lambda: quantize(network().to(kind), X[:2], calibration_loader=loader, latency=False),
    ]
    for run in work:
        with pytest.raises(InputError, match=rf"weight is {name}.*call network\.float\(\)"):
            run()
    assert rows(dynamic.calibrate(net.float(), loader)) == COUNT


def test_float16_on_the_cpu_is_named_by_all(monkeypatch: pytest.MonkeyPatch) -> None:
    half, loader = network().half(), split()
    for work in (
        lambda: dynamic.wrap(half, X[:2], exits=["0"]),
        lambda: dynamic.fit(half, loader, mode="joint", epochs=1),
        lambda: dynamic.calibrate(half, loader),
        lambda: dynamic.build(half, loader),
        lambda: quantize(half, X[:2], calibration_loader=loader, latency=False),
    ):
        refused(work, r"0\.weight is float16.*call network\.float\(\)", monkeypatch)


# keyword arguments


def test_a_dict_is_keyword_arguments_whatever_stands_between_them(tmp_path: Path) -> None:
    plain, example = Words().eval(), {"attention_mask": MASK[:2], "input_ids": IDS[:2]}
    assert list(named_tensors(plain, example)) == ["input_ids", "attention_mask"]
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK)
        assert torch.equal(run_on(plain, named_tensors(plain, {"attention_mask": MASK, "input_ids": IDS})), expected)
        net = dynamic.wrap(plain, example, exits=["one"]).eval()
        assert torch.equal(net(input_ids=IDS, attention_mask=MASK)[-1], expected)
    cascade = dynamic.Cascade([Words(), plain, net])
    bundle = dynamic.build(cascade, collated()).save(tmp_path / "shelf")
    inputs = {"input_ids": IDS.numpy(), "attention_mask": MASK.numpy()}
    nobody = np.array([np.inf] * (len(bundle.spec.stages) - 1), np.float32)
    for loaded, engine in (
        (dynamic.load(tmp_path / "shelf"), "onnxruntime"),
        (dynamic.load(tmp_path / "shelf", modules=cascade), "torch"),
    ):
        output = loaded.open(engine).run(inputs, nobody)
        assert output.logits.argmax(1).tolist() == expected.argmax(1).tolist()


class KeywordOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Linear(8, 16), nn.Linear(16, CLASSES)

    def forward(self, first: Tensor, *, scale: float = 1.0, second: Tensor | None = None) -> Tensor:
        both = first if second is None else first + 2 * second
        return self.two(torch.relu(self.one(both * scale)))  # type: ignore[no-any-return]


class Rest(KeywordOnly):
    def forward(self, first: Tensor, **rest: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(first, second=rest.get("second"))


@pytest.mark.parametrize("kind", [KeywordOnly, Rest])
def test_keyword_only_arguments_and_the_rest(kind: type[nn.Module]) -> None:
    plain = kind().eval()
    example = {"second": X[:2], "first": X[:2].flip(0)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dynamic.DynamicWarning)  # torch.fx does not follow **rest
        net = dynamic.wrap(plain, example, exits=["one"]).eval()
    with torch.no_grad():
        torch.testing.assert_close(net(second=X, first=X.flip(0))[-1], plain(X.flip(0), second=X))
    loader = [({"second": X, "first": X.flip(0)}, Y)]
    records = dynamic.calibrate([plain, net], loader)
    with torch.no_grad():
        np.testing.assert_allclose(records.logits[:, 0], plain(X.flip(0), second=X), rtol=0, atol=1e-5)
        np.testing.assert_allclose(records.logits[:, -1], plain(X.flip(0), second=X), rtol=0, atol=1e-5)
    dynamic.fit(plain, loader, mode="joint", epochs=1)


def test_a_required_argument_that_is_missing_and_one_that_does_not_exist() -> None:
    with pytest.raises(InputError, match=r"does not run on the inputs given, attention_mask.*input_ids"):
        dynamic.wrap(Words().eval(), {"attention_mask": MASK[:2]}, exits=["one"])
    with pytest.raises(InputError, match=r"forward takes no 'token_type_ids', it takes \['input_ids', 'positions'"):
        dynamic.build(Words().eval(), collated(token_type_ids=IDS[:30]))


def test_a_pair_of_inputs_alone_is_told_from_a_pair_with_labels() -> None:
    inputs, labels = read_batch((X, Y))
    assert inputs is X
    assert labels is not None
    inputs, labels = read_batch([X])
    assert (len(inputs), labels) == (1, None)
