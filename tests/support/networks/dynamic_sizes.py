"""Networks that take any size up to a limit: a BERT with a mask, and convolutions of any height and width."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

CLASSES, LIMIT, LENGTH = 4, 64, 12
WORDS = 100


def bert() -> Any:
    """A BERT of two layers with random weights, for up to `LIMIT` tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": WORDS,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": LIMIT,
        "num_labels": CLASSES,
    }
    network: Any = BertForSequenceClassification(BertConfig(**sizes))
    network.eval()
    nn.init.normal_(network.classifier.weight)  # answers that differ
    return network


def texts(rows: int, length: int, seed: int = 0) -> dict[str, Tensor]:
    """Tokens and masks. The rows have lengths of their own, the first all of it."""
    draw = torch.Generator().manual_seed(seed + 1000 * length)
    mask = torch.ones(rows, length, dtype=torch.long)
    for row in range(1, rows):
        mask[row, int(torch.randint(1, length + 1, (1,), generator=draw)) :] = 0
    return {"input_ids": torch.randint(0, WORDS, (rows, length), generator=draw), "attention_mask": mask}


def text_shapes(most: int = LIMIT) -> dict[str, Any]:
    """The dynamic shapes of `texts`."""
    length = Dim("length", min=1, max=most)
    return {"input_ids": {1: length}, "attention_mask": {1: length}}


class Convolutions(nn.Module):
    """Strides, a residual, pooling: for any height and width from 1."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(width)
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.block = nn.Conv2d(width, width, 3, padding=1)
        self.down = nn.Conv2d(width, 16, 3, stride=2, padding=1)
        self.classes = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = x + torch.relu(self.block(x))
        return self.classes(torch.relu(self.down(x)).mean((2, 3)))  # type: ignore[no-any-return]


def image_shapes(most: int = 64) -> tuple[dict[int, Any]]:
    """The dynamic shapes of images."""
    return ({2: Dim("height", min=1, max=most), 3: Dim("width", min=1, max=most)},)
