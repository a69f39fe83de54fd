"""The networks of `compatibility.py`, by name, with random weights and an input for each."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

LENGTH, CLASSES = 16, 7  # of the classifiers of transformers
TEXT = (
    *("albert", "bert", "camembert", "convbert", "deberta-v2", "distilbert", "electra", "mobilebert", "modernbert"),
    *("mpnet", "nystromformer", "roberta", "xlm-roberta", "squeezebert"),
)
IMAGE = ("convnext", "resnet", "swin", "vit")
AUDIO = ("audio-spectrogram-transformer", "wav2vec2")
SMALL = {
    "vocab_size": 200,
    "hidden_size": 32,
    "embedding_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "num_labels": CLASSES,
    "pad_token_id": 0,
}
OWN: dict[str, dict[str, Any]] = {
    "distilbert": {"dim": 32, "n_layers": 4, "n_heads": 4, "hidden_dim": 64},
    "mobilebert": {"true_hidden_size": 32, "intra_bottleneck_size": 32},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 16},
    "nystromformer": {"num_landmarks": 4, "segment_means_seq_len": LENGTH},
    "convnext": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1]},
    "resnet": {"hidden_sizes": [16, 32, 48, 64], "depths": [1, 1, 2, 1], "embedding_size": 16},
    "swin": {"embed_dim": 16, "depths": [1, 1, 2, 1], "image_size": 64, "window_size": 2},
    "vit": {"image_size": 32, "patch_size": 8},
    "audio-spectrogram-transformer": {"max_length": 64, "num_mel_bins": 32},
    "wav2vec2": {"conv_dim": [16] * 3, "conv_kernel": [10, 3, 3], "conv_stride": [5, 2, 2], "classifier_proj_size": 16},
}
OWN["swin"] |= {"num_attention_heads": [1, 2, 2, 4]}  # of each stage
OWN["wav2vec2"] |= {"num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4}


def timm_names(count: int, most_parameters: float) -> list[str]:
    """The smallest network of each family, and then the next smallest of all, until there are `count`, by turns."""
    import timm
    import torch

    sizes: dict[str, int] = {}
    with torch.device("meta"):
        for name in timm.list_models(pretrained=False):
            try:
                sizes[name] = sum(parameter.numel() for parameter in timm.create_model(name).parameters())
            except Exception as error:  # some compute tables of numbers when they are made
                print(f"{name} is not counted: {type(error).__name__}: {error}"[:150], flush=True)
    by_size = sorted((name for name in sizes if sizes[name] <= most_parameters), key=lambda name: (sizes[name], name))
    families: dict[str, str] = {}
    for name in by_size:
        families.setdefault(name.split("_")[0], name)
    chosen = list(families.values())
    chosen += [name for name in by_size if name not in chosen][: max(0, count - len(chosen))]
    return by_turns({f"timm:{name}": sizes[name] for name in chosen[:count]})


def by_turns(sizes: Mapping[str, int]) -> list[str]:
    """The names of timm with the smallest of each of its modules first, then the next of each, smaller ones first."""
    seen: Counter[str] = Counter()
    turns: dict[str, tuple[int, int]] = {}
    for name in sorted(sizes, key=lambda name: (sizes[name], name)):
        turns[name] = (seen[family(name)], sizes[name])
        seen[family(name)] += 1
    return sorted(turns, key=turns.__getitem__)


def family(name: str) -> str:
    """The module of timm that makes a network, or the kind of its inputs for one of transformers."""
    source, kind = name.split(":", 1)
    if source != "timm":
        return "text" if kind in TEXT else "image" if kind in IMAGE else "audio"
    import timm

    module: str = timm.model_entrypoint(kind).__module__
    return module.rpartition(".")[2]


def transformers_names() -> list[str]:
    """20 classifiers of texts, images and sounds."""
    return [f"transformers:{kind}" for kind in (*TEXT, *IMAGE, *AUDIO)]


def made(name: str) -> tuple[nn.Module, Callable[[int], Any]]:
    """A network in eval mode, and a function that gives a batch of so many inputs: a tensor, or tensors by name."""
    import torch

    torch.manual_seed(0)
    source, kind = name.split(":", 1)
    if source == "timm":
        import timm

        network: nn.Module = timm.create_model(kind).eval()
        cfg: Any = network.default_cfg
        size = cfg["input_size"]
        return network, lambda rows: torch.randn(rows, *size)
    from transformers import AutoConfig, AutoModelForAudioClassification, AutoModelForImageClassification
    from transformers import AutoModelForSequenceClassification as AutoModelForTexts

    config = AutoConfig.for_model(kind, **SMALL | OWN.get(kind, {}))
    config.use_cache = False
    if kind in TEXT:

        def texts(rows: int) -> dict[str, Any]:
            return {
                "input_ids": torch.randint(1, 200, (rows, LENGTH)),
                "attention_mask": torch.ones(rows, LENGTH, dtype=torch.int64),
            }

        return AutoModelForTexts.from_config(config).eval(), texts
    if kind in IMAGE:
        pixels = getattr(config, "image_size", 64)
        network = AutoModelForImageClassification.from_config(config).eval()
        return network, lambda rows: torch.randn(rows, 3, pixels, pixels)
    network = AutoModelForAudioClassification.from_config(config).eval()
    if kind == "wav2vec2":
        return network, lambda rows: torch.randn(rows, 1600)
    return network, lambda rows: torch.randn(rows, 64, 32)


def other_size(x: Any, multiple: int = 1) -> tuple[Any, Any]:
    """A batch of another length or image size, and the shapes that allow it, as `torch.export` takes them.

    Sides of images come in steps of 32 pixels, or `multiple` times that where it divides their size: some networks pad
    where 64 do not divide a side.
    """
    import torch
    from torch.export import Dim

    if isinstance(x, dict):  # texts
        length = Dim("length", min=2, max=4 * LENGTH)
        longer = {key: torch.cat([tensor, tensor], dim=1) for key, tensor in x.items()}
        return longer, {key: {1: length} for key in x}
    if x.ndim == 2:  # waveforms
        return torch.cat([x, x], dim=1), ({1: Dim("samples", min=x.shape[1], max=4 * x.shape[1])},)
    if x.ndim == 3:  # spectrograms
        return torch.cat([x, x], dim=1), ({1: Dim("frames", min=x.shape[1], max=4 * x.shape[1])},)
    size = x.shape[-1]
    step = math.gcd(size, 32 * multiple)
    least, most = size // step, size // step + 2
    sides = {2: step * Dim("height", min=least, max=most), 3: step * Dim("width", min=least, max=most)}
    return torch.randn(len(x), x.shape[1], size + step, size + 2 * step), (sides,)
