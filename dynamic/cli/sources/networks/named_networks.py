"""Networks by the names that commands take."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.cli.sources.factories import call, names_python, object_at
from dynamic.cli.sources.networks.hugging_face import hugging_face_network
from dynamic.cli.sources.networks.network_files import Recipe, put_saved_weights, read_recipe, recipe_of
from dynamic.cli.sources.networks.network_weights import RANDOM, with_weights
from dynamic.cli.sources.networks.text_networks import any_length, taken_inputs, text_example, tokenizer_at
from dynamic.cli.sources.networks.zoo_networks import timm_network, torchvision_network
from dynamic.data.preprocessing import Preprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.offline.build_steps.preprocessing_data import as_data
from dynamic.offline.staged_network import StagedNetwork
from dynamic.offline.tracing.wrap_network import wrap
from dynamic.policies.errors import CorruptError, InputError, SettingError

FORMS = (
    "torchvision:resnet18, timm:NAME, hf:FOLDER, file.onnx, file.safetensors of fit or wrap, file.py:function or "
    "module:factory"
)


@dataclass(frozen=True)
class NamedNetwork:
    """A network that was named on the command line.

    Args:
        name: Of its stage.
        network: The module in eval mode, or the path of an ONNX file.
        recipe: What makes it again.
        preprocess: What makes its inputs, as data. None: it does not say.
        channels: Of the images that it takes. None: it does not say.
        example: Inputs of a network of texts. None: those of the data.
        dynamic_shapes: Its dimensions without a fixed size.
    """

    name: str
    network: nn.Module | str
    recipe: Recipe
    preprocess: Any = None
    channels: int | None = None
    example: dict[str, Tensor] | None = field(default=None, repr=False)
    dynamic_shapes: Any = None

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of its classes, where it has them."""
        return self.recipe.classes

    @property
    def has_exits(self) -> bool:
        """Whether it has exits already."""
        return isinstance(self.network, StagedNetwork)

    def can_change_classes(self, classes: tuple[str, ...]) -> bool:
        """Whether it can be made for these classes, and has others now."""
        makes = self.recipe.source.partition(":")[0] in ("torchvision", "timm", "hf")
        if not makes or not classes or isinstance(self.network, str):
            return False
        layers = [module for module in self.network.modules() if isinstance(module, nn.Linear)]
        return bool(layers) and layers[-1].out_features != len(classes)

    def module(self, what: str) -> nn.Module:
        """The module. Raises InputError where it is an ONNX file."""
        if isinstance(self.network, str):
            raise InputError(
                f"{self.network} is an ONNX file, which {what}: name the network that it was exported from"
            )
        return self.network

    def for_texts(self, preprocess: Any) -> "NamedNetwork":
        """The same with an example, where it takes texts of any length and brings none. Otherwise as it is.

        Raises InputError where it takes nothing that a tokenizer makes.
        """
        plain = self.example is None and isinstance(self.network, nn.Module) and not self.has_exits
        if not plain or not isinstance(preprocess, TextPreprocess):
            return self
        inputs, longest = taken_inputs(self.module("is read"), self.name), self.recipe.max_tokens
        example = text_example(preprocess, inputs, longest)
        return replace(self, example=example, dynamic_shapes=any_length(inputs, longest))

    def with_tokenizer(self, file: str) -> "NamedNetwork":
        """The same for the texts of a tokenizer file, or of a folder that holds one. Raises as `from_file`."""
        texts = tokenizer_at(file)
        return replace(self, preprocess=texts, recipe=self.recipe.with_preprocess(texts)).for_texts(texts)

    def wrapped(self, exits: int | tuple[str, ...], shape: tuple[int, ...] | None) -> "NamedNetwork":
        """The same with exits.

        Args:
            exits: How many, or the names of the modules that they read.
            shape: Of one input, without the batch. None: the network has an example.

        Returns:
            The network with exits.

        Raises:
            InputError: It has exits already, is an ONNX file, or no shape is known.
            WrapError: It cannot be cut.
        """
        module = self.module("is not cut into stages")
        if self.has_exits:
            raise InputError(
                f"network {self.name} has exits already: leave out --exits, or name the network without them"
            )
        example: Any = self.example
        if example is None:
            if shape is None:
                raise InputError(
                    f"network {self.name} takes several inputs, and nothing says which: give --tokenizer "
                    "tokenizer.json where it takes texts, or put exits on it in Python with dynamic.wrap"
                )
            example = torch.zeros(2, *shape)
        chosen = exits if isinstance(exits, int) else list(exits)
        net = wrap(module, example, exits=chosen, dynamic_shapes=self.dynamic_shapes)
        places = tuple(one.name for one in net.exits)
        recipe = replace(self.recipe, exits=exits, places=places, shape=shape)
        return replace(self, network=net, recipe=recipe)


def network_named(
    text: str, weights: str | None = None, *, outputs: int | None = None, max_tokens: int | None = None
) -> NamedNetwork:
    """The network of a name.

    Args:
        text: The name: see `FORMS`.
        weights: A file of weights, or "random". None: its own.
        outputs: Its number of classes, where it can be made for any. None: its own.
        max_tokens: The longest text of a network of texts. None: as long as it takes.

    Returns:
        The network.

    Raises:
        SettingError: The name has another form.
        InputError: There is no such network, or weights do not fit.
        CorruptError: A file does not read.
    """
    prefix, _, rest = text.partition(":")
    recipe = Recipe(text, outputs=outputs, max_tokens=max_tokens)
    if prefix == "torchvision" and rest:
        network, transforms, classes, count = torchvision_network(rest, weights, outputs)
        recipe = replace(recipe, classes=classes, outputs=count)
        return _of_images(rest, network, recipe, as_data(transforms))
    if prefix == "timm" and rest:
        network, preprocess, count = timm_network(rest, weights, outputs)
        recipe = replace(recipe, outputs=count)
        return _of_images(rest.partition(".")[0], network, recipe, preprocess)
    if prefix == "hf" and rest:
        one = hugging_face_network(rest, weights, outputs, max_tokens)
        recipe = replace(recipe, classes=one.classes, outputs=one.outputs)
        name = Path(rest).name
        if one.example is None:
            return _of_images(name, one.network, recipe, one.preprocess)
        return NamedNetwork(name, one.network, recipe, one.preprocess, None, one.example, one.dynamic_shapes)
    if text.endswith(".onnx"):
        return _of_onnx(text, weights, recipe)
    if text.endswith(".safetensors"):
        return _saved(Path(text), weights, max_tokens)
    if names_python(text):
        return _of_factory(text, weights, recipe)
    raise SettingError(f"network {text!r} is no name that is known: give {FORMS}")


def _of_images(name: str, network: nn.Module, recipe: Recipe, preprocess: Any) -> NamedNetwork:
    return NamedNetwork(name, network, recipe.with_preprocess(preprocess), preprocess, 3)


def _of_onnx(text: str, weights: str | None, recipe: Recipe) -> NamedNetwork:
    if weights is not None:
        raise SettingError(f"--weights {weights} for {text}: an ONNX file holds its weights. Leave out --weights")
    path = Path(text)
    if not path.is_file():
        raise InputError(f"network {text!r} does not exist: give the path of an ONNX file")
    own = recipe_of(path) or recipe
    return NamedNetwork(path.stem, text, own, own.preprocessing())


def _saved(path: Path, weights: str | None, max_tokens: int | None) -> NamedNetwork:
    """A network that a command wrote."""
    if not path.is_file():
        raise InputError(f"network '{path}' does not exist: give a file that fit or wrap wrote")
    if weights is not None:
        raise SettingError(f"--weights {weights} for {path}: it holds its weights. Leave out --weights")
    recipe = read_recipe(path)
    recipe = replace(recipe, max_tokens=max_tokens or recipe.max_tokens)
    base = network_named(recipe.source, RANDOM, outputs=recipe.outputs, max_tokens=recipe.max_tokens)
    preprocess = recipe.preprocessing() or base.preprocess
    own = replace(base, name=path.stem, recipe=replace(recipe, exits=0), preprocess=preprocess)
    own = own.for_texts(preprocess)
    if recipe.exits:
        own = own.wrapped(recipe.exits, recipe.shape)
        if own.recipe.places != recipe.places:
            raise CorruptError(
                f"{path} has exits at {', '.join(recipe.places)}, and {recipe.source} now has them at "
                f"{', '.join(own.recipe.places)}: the network has changed since. Run fit or wrap again"
            )
    module = own.module("is not read here")
    put_saved_weights(module, path)
    module.eval()
    return replace(own, recipe=recipe)


def _of_factory(text: str, weights: str | None, recipe: Recipe) -> NamedNetwork:
    maker = object_at(text, "network")
    network = maker if isinstance(maker, nn.Module) else call(maker, text, "network") if callable(maker) else maker
    if not isinstance(network, nn.Module):
        raise InputError(f"network {text!r} gave a {type(network).__name__}: its factory must return a torch.nn.Module")
    if weights is not None and weights != RANDOM:
        own: nn.Module = network
        network, _ = with_weights(lambda _: own, weights)
    preprocess = as_data(getattr(network, "preprocess", None))
    channels = None
    if isinstance(preprocess, Preprocess):
        first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
        channels = first.in_channels if first is not None and first.in_channels in (1, 3) else None
    name, recipe = text.rpartition(":")[2], recipe.with_preprocess(preprocess)
    return NamedNetwork(name, network, recipe, preprocess, channels).for_texts(preprocess)
