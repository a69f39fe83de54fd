"""int8 linear layers of networks that only torch.export captures: encoders of `transformers`."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.networks.encoders import bert, tokens
from torch import Tensor, nn

import dynamic
from dynamic.engines.engine_factory import open_engine
from dynamic.models import compress
from dynamic.models.compress.quantization.int8_arithmetic import RoundedLinear
from dynamic.offline.build_steps.record_collection import plain_combiner
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.policies.errors import CalibrationError, InputError, WrapError

DATA = [tokens(16, seed=1), tokens(16, length=7, seed=2)]
pytestmark = pytest.mark.filterwarnings("ignore:captured with torch.export:dynamic.policies.errors.DynamicWarning")


def int8(network: nn.Module, data: list[dict[str, Tensor]] = DATA) -> nn.Module:
    """The quantized network alone, with whole ranges so that nothing is cut off."""
    return compress.quantize(network, tokens(2), calibration_loader=data, latency=False, ranges="minmax").network


@pytest.fixture(scope="module")
def smaller() -> nn.Module:
    """Of `bert()`. No test changes it."""
    return int8(bert())


def answers(network: nn.Module, batch: dict[str, Tensor]) -> np.ndarray:
    with torch.no_grad():
        output = network(**batch)
    return (output[-1] if isinstance(output, list) else output.logits).numpy()


def linear_names(network: nn.Module) -> list[str]:
    return [name for name, module in network.named_modules() if type(module) is nn.Linear]


def test_each_layer_is_within_the_bound_of_its_rounding(smaller: nn.Module) -> None:
    """Of y = sum w x + b: each x is off by up to half a step s, each w by what its code says, and b by half of s t."""
    network = bert()
    inputs: dict[str, Tensor] = {}
    for name in linear_names(network):
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: inputs.__setitem__(name, args[0])
        )
    answers(network, DATA[0])
    assert len(inputs) == 2 * 6 + 2  # query, key, value, output and two of the block, the pooler and the classifier
    for name, x in inputs.items():
        layer, own = smaller.get_submodule(name), network.get_submodule(name)
        assert isinstance(layer, RoundedLinear)
        step, scales = layer.rounded.grid.scale, layer.weights.scales
        with torch.no_grad():
            moved = (own.weight - layer.weight).abs()
            # half a step t. "portable" moves one weight of each sign by one more, so that no pair can saturate
            assert float((moved / scales[:, None]).max()) <= 1.501
            off = (own(x) - layer(x)).abs()
            bound = (x.abs() @ moved.T) + (own.weight.abs() + moved).sum(1) * step / 2 + scales * step / 2
        assert bool((off <= bound + 1e-4).all()), name
        assert bool((off > 0).any()), name


def test_both_ways_to_int8_give_the_same_numbers() -> None:
    """Layers replaced where they stand, and layers written into the traced stages of a wrapped network."""
    network = bert()
    with_exits = dynamic.wrap(network, tokens(2), exits=1)
    one_length = DATA[:1]  # a wrapped encoder takes the length of its example
    by_graph, in_place = int8(with_exits, one_length), int8(network, one_length)
    np.testing.assert_allclose(answers(by_graph, DATA[0]), answers(in_place, DATA[0]), atol=1e-5)
    assert len(by_graph.heads) == 2
    torch.testing.assert_close(by_graph.heads[0].state_dict(), with_exits.heads[0].state_dict())


def test_close_to_the_float_network_which_stays_as_it_is_and_smaller() -> None:
    network = bert()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = compress.quantize(network, tokens(2), calibration_loader=DATA, latency=False)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    own, other = answers(network, tokens(64, seed=3)), answers(result.network, tokens(64, seed=3))
    assert np.abs(own - other).max() < 0.2 * np.abs(own).max()
    assert (own.argmax(1) == other.argmax(1)).mean() >= 0.9
    assert result.report.after.file_bytes < 0.5 * result.report.before.file_bytes
    assert result.report.facts["layers"] == 14
    assert "bert.embeddings.word_embeddings" in result.report.left_alone


def test_it_takes_every_length_that_the_network_took(smaller: nn.Module) -> None:
    network = bert()
    for length in (1, 5, 24):
        batch = tokens(64, length=max(3, length))
        batch = {name: tensor[:, :length] for name, tensor in batch.items()}
        own, other = answers(network, batch), answers(smaller, batch)
        assert np.abs(own - other).max() < 0.2 * np.abs(own).max(), length


def test_padding_changes_no_answer(smaller: nn.Module) -> None:
    short = tokens(8, length=6)
    longer = {name: nn.functional.pad(tensor, (0, 9)) for name, tensor in short.items()}
    np.testing.assert_allclose(answers(smaller, short), answers(smaller, longer), atol=0.05)


def test_skip_and_what_is_never_called() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.spare = bert(1), nn.Linear(3, 3)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            logits: Tensor = self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits
            return logits

    result = compress.quantize(
        Unused(), tokens(2), calibration_loader=DATA, latency=False, skip=["encoder.classifier", "encoder.bert.pooler"]
    )
    assert result.report.left_alone["encoder.classifier"] == "in skip"
    assert result.report.left_alone["encoder.bert.pooler.dense"] == "in skip"
    assert "does not call it" in result.report.left_alone["spare"]
    assert linear_names(result.network) == ["encoder.bert.pooler.dense", "encoder.classifier", "spare"]


def test_errors_say_what_to_do() -> None:
    with pytest.raises(CalibrationError, match="gave no input"):
        compress.quantize(bert(1), tokens(2), calibration_loader=[], latency=False)
    names = linear_names(bert(1))
    with pytest.raises(InputError, match="nothing can be quantized"):
        compress.quantize(bert(1), tokens(2), calibration_loader=DATA, latency=False, skip=names)


def test_training_is_refused() -> None:
    with pytest.raises(WrapError, match="cannot be trained"):
        int8(bert(1)).train()(**tokens(2))


def test_onnx_runtime_multiplies_in_integers(tmp_path: Path, smaller: nn.Module) -> None:
    export_stages(dynamic.Cascade(smaller), tmp_path, tokens(2), progress=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "backbones" / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "backbones" / "0_0.onnx"), options, providers=["CPUExecutionProvider"])
    graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    kinds = Counter(node.op_type for node in graph.node)
    integer = kinds["MatMulIntegerToFloat"] + kinds["QGemm"]
    assert integer == 14, kinds


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_exits_at_encoder_layers_on_both_engines(tmp_path: Path, engine: str, smaller: nn.Module) -> None:
    by_name = dynamic.wrap(smaller, tokens(2), exits=["bert.encoder.layer.0"])
    assert [place.name for place in by_name.exits] == ["bert.encoder.layer.0"]
    if engine == "onnxruntime":
        by_number = dynamic.wrap(smaller, tokens(2), exits=1)
        assert [place.name for place in by_number.exits] == ["bert.encoder.layer.0"]
    cascade = dynamic.Cascade(by_name.eval())
    spec = export_stages(cascade, tmp_path, tokens(2), progress=False)
    batch = tokens(8, seed=4)
    with torch.no_grad():
        expected = np.stack([logits.numpy() for logits in by_name(**batch)], axis=1)
    opened = open_engine(engine, tmp_path, spec, plain_combiner(spec), None, "f32")
    try:
        actual = opened.stages.all_logits({name: tensor.numpy() for name, tensor in batch.items()})
    finally:
        opened.close()
    # no value of these lies between two codes, where it could fall to either side
    np.testing.assert_allclose(actual, expected, atol=1e-4)
