"""What an example in a docstring may use without making it.

`np`, `torch`, `nn`, `dynamic`. `small` and `large`: two trained networks that take `[B, 12]`, 4 classes. `inputs
[600, 12]` and `labels [600]`: held out, numpy. `x [12]`: one of them. `train_loader`, `calibration_loader`,
`eval_loader`: lists of batches `(inputs, labels)`, torch. `net`: `large` with one exit. `bundle`: of both networks,
profiled. It lies in "shelf". `records`, `ladder`, `costs` and `frontier` of that bundle. A tokenizer of seven words
lies in "tokenizer.json", `small` in "small.onnx". The current folder is a temporary one.
"""

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import nn

import dynamic


@functools.cache
def _made(folder: Path) -> dict[str, Any]:
    torch.manual_seed(0)
    centers, label = torch.randn(4, 12), torch.arange(1200) % 4
    inputs = centers[label] + 0.8 * torch.randn(1200, 12)
    small = nn.Sequential(nn.Linear(12, 4))
    large = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    for network in (small, large):
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[:600]), label[:600]).backward()
            optimizer.step()
        network.eval()
    train = [(inputs[i : i + 100], label[i : i + 100]) for i in range(0, 600, 100)]
    held = [(inputs[i : i + 100], label[i : i + 100]) for i in range(600, 1200, 100)]
    words = {word: number for number, word in enumerate(("[PAD]", "[UNK]", "turn", "the", "lights", "off", "on"))}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.onnx.export(
        small, (torch.zeros(2, 12),), folder / "small.onnx", output_names=["scores"], dynamo=True, verbose=False
    )
    bundle = dynamic.build([small, large], held, classes=("a", "b", "c", "d"), progress=False)
    bundle = bundle.save(folder / "shelf").profile(batch=(1, 8), seconds=0.05, progress=False)
    return {
        "np": np,
        "torch": torch,
        "nn": nn,
        "dynamic": dynamic,
        "small": small,
        "large": large,
        "inputs": inputs[600:].numpy(),
        "labels": label[600:].numpy(),
        "x": inputs[600].numpy(),
        "train_loader": train,
        "calibration_loader": held,
        "eval_loader": held,
        "bundle": bundle,
        "records": bundle.records,
        "ladder": bundle.ladder,
        "costs": bundle.costs,
        "frontier": bundle.frontier,
    }


_folder: list[Path] = []


def namespace(folders: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """Fresh names for one example, and the folder that it runs in."""
    if not _folder:
        _folder.append(folders.mktemp("examples"))
    made = _made(_folder[0])
    # copies: an example that trains a network marks it, and no other may use its data then
    small, large = copy.deepcopy(made["small"]), copy.deepcopy(made["large"])
    net = dynamic.wrap(large, torch.zeros(1, 12), exits=1)
    return {**made, "small": small, "large": large, "net": net}, _folder[0]
