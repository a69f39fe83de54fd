"""Networks that a command wrote: weights, and what makes the network again. No pickle, no code."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from torch import nn

from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.offline.networks.checkpoints import put_weights, read_tensors, untied, write_tensors
from dynamic.policies.errors import CorruptError, InputError

KIND = "network"
_FACTS = "dynamic"  # key in the properties of an ONNX file


@dataclass(frozen=True)
class TrainedOn:
    """The data that a network learned from, so that none of it certifies.

    Args:
        data: Whole path or name of the data set.
        split: Its split.
        half: Whether the half that the lot of `seed` gives to training, or all of it.
        seed: Of the lot.
    """

    data: str
    split: str | None
    half: bool
    seed: int


@dataclass(frozen=True)
class Recipe:
    """What makes a network again, beside its weights.

    Args:
        source: Name of the network, as a command takes it.
        outputs: Its number of classes. None: its usual one.
        exits: Number of exits, or names of the modules whose results they read. 0: none.
        places: Where the exits are, as the network says.
        shape: Of one input, without the batch. None: the source has an example.
        classes: Names of its classes.
        preprocess: Plain data of its preprocessing, with the tokenizer of texts.
        max_tokens: The longest text.
        trained_on: The data that it learned from.
    """

    source: str
    outputs: int | None = None
    exits: int | tuple[str, ...] = 0
    places: tuple[str, ...] = ()
    shape: tuple[int, ...] | None = None
    classes: tuple[str, ...] | None = None
    preprocess: dict[str, Any] | None = None
    max_tokens: int | None = None
    trained_on: tuple[TrainedOn, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Any, path: str) -> "Recipe":
        """The same again. Raises CorruptError where it does not read."""
        try:
            trained_on = tuple(TrainedOn(**one) for one in data["trained_on"])
            lists: dict[str, Any] = {
                name: None if data[name] is None else tuple(data[name]) for name in ("places", "shape", "classes")
            }
            exits = data["exits"] if isinstance(data["exits"], int) else tuple(data["exits"])
            fields: dict[str, Any] = {name: data[name] for name in ("source", "outputs", "preprocess", "max_tokens")}
            return cls(**fields, **lists, exits=exits, trained_on=trained_on)
        except (KeyError, TypeError) as error:
            raise CorruptError(f"{path} has facts that do not read ({error}): write it again") from error

    def preprocessing(self) -> Preprocess | SoundPreprocess | TextPreprocess | None:
        """The preprocessing as an object."""
        if self.preprocess is None:
            return None
        kind = self.preprocess["kind"]
        if kind == "texts":
            return TextPreprocess.from_json(self.preprocess, self.preprocess["tokenizer"].encode())
        return (SoundPreprocess if kind == "sounds" else Preprocess).from_json(self.preprocess)

    def with_preprocess(self, preprocess: Any) -> "Recipe":
        """The same with a preprocessing. A tokenizer is in it as a whole, so that its file may go."""
        if preprocess is None:
            return replace(self, preprocess=None)
        if isinstance(preprocess, TextPreprocess):
            beside = {"kind": "texts", "tokenizer": preprocess.tokenizer}
            return replace(self, preprocess=beside | preprocess.to_json())
        kind = "sounds" if isinstance(preprocess, SoundPreprocess) else "images"
        return replace(self, preprocess={"kind": kind} | preprocess.to_json())


def save_network(network: nn.Module, path: Path, recipe: Recipe) -> None:
    """Write a network as `file.safetensors`, which every command takes as the name of a network.

    Args:
        network: The network.
        path: The file. It ends in .safetensors.
        recipe: What makes the network again.

    Raises:
        InputError: The file has another ending.
        DiskError: The disk is full, or refuses.
    """
    check_ending(path, ".safetensors")
    write_tensors(path, untied(network.state_dict()), {"kind": KIND, "recipe": recipe.to_json()})


def read_recipe(path: Path) -> Recipe:
    """The recipe of a file that `save_network` wrote.

    Raises InputError where it holds weights alone, CorruptError where it does not read.
    """
    _, facts = read_tensors(path)
    if facts.get("kind") != KIND:
        raise InputError(
            f"{path} holds weights and not what they belong to: name the network, and give them by --weights {path}"
        )
    return Recipe.from_json(facts.get("recipe"), str(path))


def put_saved_weights(network: nn.Module, path: Path) -> None:
    """Read the weights of a file that `save_network` wrote. Raises as `load_weights` does."""
    put_weights(network, read_tensors(path)[0], path)


def note_recipe(model: onnx.ModelProto, recipe: Recipe) -> None:
    """Put a recipe into the properties of an ONNX model."""
    model.metadata_props.add(key=_FACTS, value=json.dumps(recipe.to_json()))


def recipe_of(path: Path) -> Recipe | None:
    """The recipe in an ONNX file. None: another program wrote it, or it does not read."""
    try:
        model = onnx.load(path, load_external_data=False)
    except Exception:  # protobuf has classes of its own, and whoever builds reports it
        return None
    text = next((entry.value for entry in model.metadata_props if entry.key == _FACTS), None)
    return None if text is None else Recipe.from_json(json.loads(text), str(path))


def check_ending(path: Path, ending: str) -> None:
    """Raises InputError on a file of another ending."""
    if path.suffix != ending:
        raise InputError(f"-o {path} must end in {ending}: give {path.with_suffix(ending)}")
