"""What a code block of README.md or docs/ may use without making it.

`np`, `torch`, `nn`, `dynamic`. `small`, `large`: networks trained on 8 x 8 pictures of digits. `network` and `backbone`
are `large`. `example_inputs [1, 1, 8, 8]`. `preprocess`, `classes`. `train_loader`, `calibration_loader`,
`selection_loader`, `eval_loader`: lists of batches of different pictures. `image`, `images` and their `labels`, and
`labelled_batches`: pictures as a camera gives them, uint8. `bundle`: of both networks, profiled, with its `records` and
`frontier`. It lies in "shelf", also in "shelf-2", and a tokenizer of a few words in
"tokenizer.json". The current folder is a temporary one of the page.
"""

import functools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import dynamic
from dynamic.data import digits
from dynamic.models import CifarResNet

STEPS = 80  # of 64 pictures


def _trained(network: nn.Module, x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    optimizer = torch.optim.AdamW(network.train().parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, STEPS)
    for _ in range(STEPS):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def _batches(x: torch.Tensor, y: torch.Tensor, start: int, stop: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(x[i : i + 60], y[i : i + 60]) for i in range(start, stop, 60)]


@functools.cache
def _made(folder: Path) -> dict[str, Any]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two threads wait for each other on a busy machine
    torch.manual_seed(0)
    pictures = digits()
    order = np.random.default_rng(0).permutation(len(pictures.labels))
    images, labels = pictures.images[order], pictures.labels[order]
    preprocess = dynamic.Preprocess.of()
    x, y = torch.from_numpy(preprocess(images)), torch.from_numpy(labels)
    small, large = (
        _trained(CifarResNet(depth, in_channels=1, width=width), x[:600], y[:600]) for depth, width in ((8, 3), (8, 32))
    )
    loaders = {
        "train_loader": _batches(x, y, 0, 600),
        "selection_loader": _batches(x, y, 600, 780),
        "calibration_loader": _batches(x, y, 780, 1500),
        "eval_loader": _batches(x, y, 1500, 1797),
    }
    bundle = dynamic.build(
        dynamic.Cascade([small, large], names=("small", "large")),
        loaders["calibration_loader"],
        max_drops=(0.05,),
        preprocess=preprocess,
        classes=pictures.classes,
        progress=False,
    )
    bundle.save(folder / "shelf").profile(batch=(1, 8), seconds=0.05, progress=False)
    torch.set_num_threads(threads)
    return loaders | {
        "np": np,
        "torch": torch,
        "nn": nn,
        "dynamic": dynamic,
        "small": small,
        "large": large,
        "network": large,
        "backbone": large,
        "example_inputs": x[:1],
        "preprocess": preprocess,
        "classes": pictures.classes,
        "images": list(images[1500:1520]),
        "image": images[1500],
        "labels": labels[1500:1520],
        "labelled_batches": [(images[1500:], labels[1500:])],
    }


def namespace(shared: Path, own: Path) -> dict[str, Any]:
    """Fresh names for one page, whose shelves lie in its `own` folder. What pages share lies in `shared`."""
    names = _made(shared)
    for name in ("shelf", "shelf-2"):
        shutil.copytree(shared / "shelf", own / name)
    tokens = ("[PAD]", "[UNK]", "turn", "the", "lights", "off", "on", "music")
    words = {word: number for number, word in enumerate(tokens)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(own / "tokenizer.json"))
    bundle = dynamic.load(own / "shelf")
    return {**names, "bundle": bundle, "records": bundle.records, "frontier": bundle.frontier}
