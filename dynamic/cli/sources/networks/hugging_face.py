"""Classifiers of the library transformers, from a local folder or by their name on the hub."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.cli.sources.networks.network_weights import RANDOM, with_classes, with_weights
from dynamic.data.image_steps import CenterCrop
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess
from dynamic.data.resize_step import Resize
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.policies.errors import InputError

_FILTERS = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


@dataclass(frozen=True)
class HuggingFaceNetwork:
    """A classifier of transformers.

    Args:
        network: The module in eval mode.
        preprocess: Its tokenizer, or what makes images its inputs.
        classes: Names of its classes. None: it has none of its own.
        example: Inputs of a classifier of texts. None: it takes images.
        dynamic_shapes: The lengths that it takes. None: it takes images.
        outputs: Its number of classes. None: that of its folder.
    """

    network: nn.Module
    preprocess: Preprocess | TextPreprocess
    classes: tuple[str, ...] | None
    example: dict[str, Tensor] | None
    dynamic_shapes: Any
    outputs: int | None


def hugging_face_network(
    name: str, weights: str | None, outputs: int | None, max_tokens: int | None
) -> HuggingFaceNetwork:
    """A classifier of transformers with its tokenizer or its preprocessing of images.

    Args:
        name: A folder that `save_pretrained` wrote, with its tokenizer or image processor, or a name on the hub.
        weights: A file, or "random". None: its own.
        outputs: Number of classes, for random weights. None: its own.
        max_tokens: The longest text. None: as long as the network takes.

    Returns:
        The network.

    Raises:
        InputError: It does not load, or is no classifier of texts or images.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise InputError(
            f"network 'hf:{name}' needs transformers, which is not installed: pip install transformers"
        ) from error
    text = f"hf:{name}"
    if name.startswith((".", "/", "~")) and not Path(name).expanduser().is_dir():
        raise InputError(f"network {text!r}: the folder {name} does not exist. Give one that save_pretrained wrote")
    path = str(Path(name).expanduser())
    try:
        config = transformers.AutoConfig.from_pretrained(path)
        beside = {} if outputs is None else {"num_labels": outputs}
        kind = (config.architectures or [""])[0]
        texts = kind.endswith("ForSequenceClassification")
        if not texts and not kind.endswith("ForImageClassification"):
            raise InputError(
                f"network {text!r} is a {kind or 'network without a head'}: give a classifier of texts or images "
                "(...ForSequenceClassification, ...ForImageClassification)"
            )
        auto: Any = (
            transformers.AutoModelForSequenceClassification if texts else transformers.AutoModelForImageClassification
        )

        def make(count: int | None) -> nn.Module:
            own = {} if count is None else {"num_labels": count}
            made_for = transformers.AutoConfig.from_pretrained(path, **own)
            return auto.from_config(made_for)  # type: ignore[no-any-return]

        count = outputs
        if weights is None:
            network = auto.from_pretrained(path, ignore_mismatched_sizes=outputs is not None, **beside)
        elif weights == RANDOM:
            network = make(outputs)
        else:
            network, count = with_weights(make, weights)
            if outputs is not None:
                network, count = with_classes(make, network, outputs), outputs
        network.eval()
        if texts:
            return replace(_of_texts(transformers, path, network, config, max_tokens), outputs=count)
        images: Any = transformers.AutoImageProcessor
        processor = images.from_pretrained(path)
        return HuggingFaceNetwork(network, _of_images(processor, text), _classes(network.config), None, None, count)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if isinstance(error, InputError):
            raise
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"network {text!r} does not load ({reason:.200}): give a folder that save_pretrained wrote, with its "
            "tokenizer or image processor in it"
        ) from error


def _of_texts(
    transformers: Any, path: str, network: nn.Module, config: Any, max_tokens: int | None
) -> HuggingFaceNetwork:
    import inspect

    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    texts = TextPreprocess.of(tokenizer, truncate=True)
    taken = [name for name in _INPUTS if name in inspect.signature(network.forward).parameters]
    names = [name for name in taken if name in tokenizer.model_input_names]
    example = {n: torch.from_numpy(array) for n, array in texts(["a short text", "text"], inputs=names).items()}
    limits = [getattr(config, "max_position_embeddings", None), tokenizer.model_max_length, max_tokens]
    longest = min((int(limit) for limit in limits if limit is not None and limit < 10**9), default=512)
    length = torch.export.Dim("length", min=1, max=max(longest, 2))
    shapes = {name: {1: length} for name in names}
    return HuggingFaceNetwork(network, texts, _classes(network.config), example, shapes, None)


def _of_images(processor: Any, text: str) -> Preprocess:
    """What an image processor does, as data."""
    steps: list[Any] = []
    size = dict(getattr(processor, "size", None) or {})
    if getattr(processor, "do_resize", False):
        side: Any = size.get("shortest_edge") or (size.get("height"), size.get("width"))
        if isinstance(side, tuple) and None in side:
            raise InputError(f"network {text!r} resizes to {size}, which is not supported: give --resize and --crop")
        steps.append(Resize(side, _FILTERS[int(getattr(processor, "resample", 2) or 0)]))  # type: ignore[arg-type]
    if getattr(processor, "do_center_crop", False):
        crop = dict(processor.crop_size)
        steps.append(CenterCrop((crop["height"], crop["width"])))
    steps.append(Scale())
    if getattr(processor, "do_normalize", False):
        steps.append(Normalize(tuple(processor.image_mean), tuple(processor.image_std)))
    return Preprocess(tuple(steps))


def _classes(config: Any) -> tuple[str, ...] | None:
    """Names of the classes, where they are more than LABEL_0."""
    names = [config.id2label[number] for number in sorted(config.id2label)]
    return None if any(name.startswith("LABEL_") for name in names) else tuple(names)
