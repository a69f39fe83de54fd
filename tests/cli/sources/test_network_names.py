"""Networks by the names that commands take: what they are, their preprocessing, and what a mistake says."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import dynamic
from dynamic.cli.sources.networks.hugging_face import hugging_face_network
from dynamic.cli.sources.networks.named_networks import network_named
from dynamic.cli.sources.networks.network_files import Recipe, TrainedOn, save_network
from dynamic.errors import CorruptError, InputError, SettingError
from dynamic.models import save_weights

OWN = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.classes = nn.Linear(8, 3)

    def forward(self, x):
        return self.classes(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3)))

def small(): return Small()
def text(): return "no network"
def broken(): raise RuntimeError("no memory")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    path = tmp_path / "own_small_networks.py"
    path.write_text(OWN)
    yield path
    sys.modules.pop("own_small_networks", None)


def image(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (70, 90, 3), np.uint8))


def test_a_network_of_torchvision_has_its_preprocessing() -> None:
    from torchvision.models import SqueezeNet1_1_Weights

    named = network_named("torchvision:squeezenet1_1", "random", outputs=5)
    assert named.network(torch.zeros(1, 3, 64, 64)).shape == (1, 5)  # type: ignore[operator]
    assert (named.name, named.channels, named.recipe.outputs, named.classes) == ("squeezenet1_1", 3, 5, None)
    expected = SqueezeNet1_1_Weights.DEFAULT.transforms()(image())
    np.testing.assert_allclose(named.preprocess(image())[0], expected, atol=1e-5)
    with pytest.raises(InputError, match=r"no classifier 'squeezenet1_2'.*did you mean squeezenet1_"):
        network_named("torchvision:squeezenet1_2")


def test_a_network_of_timm_has_its_preprocessing() -> None:
    timm = pytest.importorskip("timm")
    named = network_named("timm:test_vit", "random", outputs=4)
    module = named.module("is a file")
    config = timm.data.resolve_model_data_config(module)
    expected = timm.data.create_transform(**config, is_training=False)(image())
    inputs = named.preprocess(image())
    np.testing.assert_allclose(inputs[0], expected, atol=1e-5)
    assert module(torch.from_numpy(inputs)).shape == (1, 4)
    with pytest.raises(InputError, match=r"no classifier 'test_vid'.*did you mean"):
        network_named("timm:test_vid")


def test_weights_that_are_not_there_name_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import models

    def offline(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(models, "get_model", offline)
    with pytest.raises(InputError, match=r"could not be downloaded \(no route to host\): give a file, --weights"):
        network_named("torchvision:squeezenet1_1")


def test_weights_of_a_file_say_how_many_classes(tmp_path: Path) -> None:
    from torchvision.models import get_model

    trained = get_model("squeezenet1_1", weights=None, num_classes=7).eval()
    for path in (tmp_path / "seven.safetensors", tmp_path / "seven.pt"):
        if path.suffix == ".pt":
            torch.save(trained.state_dict(), path)
        else:
            save_weights(trained, path)
        named = network_named("torchvision:squeezenet1_1", str(path))
        inputs = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(named.network(inputs), trained(inputs))  # type: ignore[operator]
        assert named.recipe.outputs == 7
        file = tmp_path / "again.safetensors"
        save_network(named.module("is a file"), file, named.recipe)
        torch.testing.assert_close(network_named(str(file)).network(inputs), trained(inputs))  # type: ignore[operator]
        two = network_named("torchvision:squeezenet1_1", str(path), outputs=2).module("is a file")
        assert two(inputs).shape == (1, 2)
        torch.testing.assert_close(two.get_parameter("features.0.weight"), trained.get_parameter("features.0.weight"))
    with pytest.raises(CorruptError, match=r"--weights nowhere.pt does not exist: give a .safetensors or .pt file"):
        network_named("torchvision:squeezenet1_1", "nowhere.pt")
    other = tmp_path / "other.safetensors"
    save_weights(nn.Linear(2, 2), other)
    with pytest.raises(InputError, match=r"belongs to another network"):
        network_named("torchvision:squeezenet1_1", str(other))


def test_a_text_classifier_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {word: at for at, word in enumerate(["[PAD]", "[UNK]", "lights", "off", "on"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    config = transformers.BertConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16, id2label={0: "dark", 1: "bright"}, label2id={"dark": 0, "bright": 1},
    )  # fmt: skip
    bert = transformers.BertForSequenceClassification(config).eval()
    bert.save_pretrained(tmp_path / "bert")
    fast.save_pretrained(tmp_path / "bert")
    named = network_named(f"hf:{tmp_path / 'bert'}", max_tokens=12)
    assert named.classes == ("dark", "bright")
    assert named.example is not None
    assert set(named.example) >= {"input_ids", "attention_mask"}
    inputs = named.preprocess(["lights off", "on"])
    assert inputs["input_ids"].tolist() == [[2, 3], [4, 0]]
    module = named.module("is a file")
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    torch.testing.assert_close(module(**tensors).logits, bert(**tensors).logits)
    assert named.dynamic_shapes["input_ids"][1].max == 12
    four = hugging_face_network(str(tmp_path / "bert"), "random", 4, None)
    assert four.network(**tensors).logits.shape == (2, 4)


def test_a_folder_that_is_no_classifier(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=5, **sizes)).save_pretrained(tmp_path / "bert")
    with pytest.raises(InputError, match=r"is a BertModel: give a classifier"):
        network_named(f"hf:{tmp_path / 'bert'}")
    with pytest.raises(InputError, match=r"does not exist. Give one that save_pretrained wrote"):
        network_named("hf:./nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"does not load"):
        network_named(f"hf:{tmp_path / 'empty'}")


def test_a_function_in_a_file(own: Path, tmp_path: Path) -> None:
    named = network_named(f"{own}:small")
    assert named.name == "small"
    module = named.module("is a file")
    save_weights(module, tmp_path / "small.safetensors")
    again = network_named(f"{own}:small", str(tmp_path / "small.safetensors")).module("is a file")
    inputs = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(again(inputs), module(inputs))
    for name, message in {
        f"{own}:smal": "has no attribute 'smal', did you mean 'small'",
        f"{own}:text": "gave a str: its factory must return a torch.nn.Module",
        f"{own}:broken": r"raised RuntimeError: no memory \(own_small_networks.py, line 16\)",
        f"{tmp_path / 'none.py'}:small": "none.py does not exist",
    }.items():
        with pytest.raises(InputError, match=message):
            network_named(name)
    (tmp_path / "wrong.py").write_text("def (")
    with pytest.raises(InputError, match=r"wrong.py does not run .SyntaxError"):
        network_named(f"{tmp_path / 'wrong.py'}:small")


@pytest.mark.parametrize("name", ["resnet18", "torchvision:", "small.pt", "a b:c", ""])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(SettingError, match=r"is no name that is known: give torchvision:resnet18"):
        network_named(name)


def test_a_network_with_exits_comes_back_from_its_file(own: Path, tmp_path: Path) -> None:
    wrapped = network_named(f"{own}:small").wrapped(1, (1, 8, 8))
    net = wrapped.module("is a file").eval()
    file = tmp_path / "small.safetensors"
    preprocess = dynamic.Preprocess.of((0.5,), (0.25,))
    trained_on = (TrainedOn("/data", None, True, 3),)
    recipe = wrapped.recipe.with_preprocess(preprocess)
    save_network(net, file, Recipe(**(vars(recipe) | {"classes": ("a", "b", "c"), "trained_on": trained_on})))
    again = network_named(str(file))
    assert again.has_exits
    assert (again.name, again.classes, again.preprocess) == ("small", ("a", "b", "c"), preprocess)
    assert again.recipe.trained_on == trained_on
    inputs = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(again.module("is a file")(inputs), net(inputs))
    with pytest.raises(InputError, match=r"has exits already: leave out --exits"):
        again.wrapped(1, (1, 8, 8))
    with pytest.raises(SettingError, match=r"it holds its weights. Leave out --weights"):
        network_named(str(file), "other.pt")


def test_weights_alone_are_no_network(tmp_path: Path) -> None:
    save_weights(nn.Linear(2, 2), tmp_path / "weights.safetensors")
    with pytest.raises(InputError, match=r"holds weights and not what they belong to: name the network.*--weights"):
        network_named(str(tmp_path / "weights.safetensors"))
    with pytest.raises(InputError, match=r"does not exist: give a file that fit or wrap wrote"):
        network_named(str(tmp_path / "none.safetensors"))
    with pytest.raises(InputError, match=r"does not exist: give the path of an ONNX file"):
        network_named(str(tmp_path / "none.onnx"))
