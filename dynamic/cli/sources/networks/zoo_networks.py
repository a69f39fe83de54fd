"""Networks of torchvision and timm by their names, with their own preprocessing."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from dynamic.cli.sources.networks.network_weights import RANDOM, with_classes, with_weights
from dynamic.data.image_steps import CenterCrop
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess
from dynamic.data.resize_step import Resize
from dynamic.extras import with_remedy
from dynamic.policies.errors import InputError

Make = Callable[[int | None], nn.Module]


def torchvision_network(
    name: str, weights: str | None, outputs: int | None
) -> tuple[nn.Module, Any, tuple[str, ...] | None, int | None]:
    """A classifier of torchvision, its preprocessing, the names of its classes, and how many they are.

    Args:
        name: As `torchvision.models.list_models` has it.
        weights: A file, or "random". None: those that torchvision trained on ImageNet.
        outputs: Number of classes. None: that of the file, or of ImageNet.

    Returns:
        The network in eval mode, its preprocessing, its classes where it has those of ImageNet, and their number where
        it is not the usual one.

    Raises:
        InputError: There is no such network, or its weights could not be downloaded.
    """
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise with_remedy(error, f"network 'torchvision:{name}'") from error
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown("torchvision", name, names)
    trained = models.get_model_weights(name).DEFAULT
    make = partial(_made_by_torchvision, models, name)

    def pretrained() -> nn.Module:
        with _downloading(f"torchvision:{name}"):
            return models.get_model(name, weights=trained)  # type: ignore[no-any-return]

    network, count = _with(make, weights, outputs, pretrained)
    categories = tuple(trained.meta["categories"])
    own = weights is None and outputs in (None, len(categories))
    return network.eval(), trained.transforms(), categories if own else None, count


def timm_network(name: str, weights: str | None, outputs: int | None) -> tuple[nn.Module, Preprocess, int | None]:
    """A classifier of timm, its preprocessing, and its number of classes.

    Args:
        name: As `timm.list_models` has it, with or without the tag of its weights.
        weights: A file, or "random". None: those that timm downloads.
        outputs: Number of classes. None: that of the file, or its usual one.

    Returns:
        The network in eval mode, its preprocessing, and its number of classes where it is not the usual one.

    Raises:
        InputError: There is no such network, or its weights could not be downloaded.
    """
    try:
        import timm.data
    except ModuleNotFoundError as error:
        raise InputError(f"network 'timm:{name}' needs timm, which is not installed: pip install timm") from error
    if not timm.is_model(name):
        raise _unknown("timm", name, timm.list_models())

    create: Any = timm.create_model

    def make(classes: int | None) -> nn.Module:
        return create(name, **({} if classes is None else {"num_classes": classes}))  # type: ignore[no-any-return]

    def pretrained() -> nn.Module:
        with _downloading(f"timm:{name}"):
            return create(name, pretrained=True)  # type: ignore[no-any-return]

    network, count = _with(make, weights, outputs, pretrained)
    described: Any = timm.data
    return network.eval(), _of_timm(described.resolve_model_data_config(network)), count


def _with(
    make: Make, weights: str | None, outputs: int | None, pretrained: Callable[[], nn.Module]
) -> tuple[nn.Module, int | None]:
    """(the network, its number of classes where it is not the usual one)."""
    if weights == RANDOM:
        return make(outputs), outputs
    network, own = (pretrained(), None) if weights is None else with_weights(make, weights)
    return (network, own) if outputs is None else (with_classes(make, network, outputs), outputs)


def _made_by_torchvision(models: Any, name: str, classes: int | None) -> nn.Module:
    count = {} if classes is None else {"num_classes": classes}
    beside = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}  # else it warns
    return models.get_model(name, weights=None, **count, **beside)  # type: ignore[no-any-return]


def _of_timm(config: dict[str, Any]) -> Preprocess:
    """What `timm.data.create_transform` does for evaluation, as data."""
    _, height, width = config["input_size"]
    sides = tuple(math.floor(side / config["crop_pct"]) for side in (height, width))
    resize: Any = sides[0] if config["crop_mode"] == "center" and sides[0] == sides[1] else sides
    crop = CenterCrop((height, width))
    return Preprocess(
        (Resize(resize, config["interpolation"]), crop, Scale(), Normalize(tuple(config["mean"]), tuple(config["std"])))
    )


def _unknown(zoo: str, name: str, names: Sequence[str]) -> InputError:
    near = get_close_matches(name, names, 3)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(names[:3])} and others"
    return InputError(f"network '{zoo}:{name}': {zoo} has no classifier {name!r} among its {len(names)}, {hint}")


@contextmanager
def _downloading(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each library that downloads has errors of its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the weights of {name} could not be downloaded ({reason:.120}): give a file, --weights small.safetensors, "
            "or --weights random where it is trained next"
        ) from error
