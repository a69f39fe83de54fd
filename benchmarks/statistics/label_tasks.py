"""The tasks of `few_labels.py`: what a proxy and an oracle answer on the same inputs.

- cifar: ResNet-20, then ResNet-56, on the 10,000 test images of CIFAR-10
- clinc: TF-IDF words and a logistic regression, then a linear SVM on words and pairs of words, on the 4,500 test texts
  of CLINC150. The regression has C = 3, with which BARGAIN answers about what the issue of this benchmark measured
- photographs: MobileNetV1 0.75 at 192 pixels, then MobileNetV2 at 224, on 1,000 photographs with ImageNet labels
- synthetic: 10,000 inputs, of which the most confident 8% are wrong 15% of the time
"""

import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import progress
from benchmarks.harness.mobilenet_v1 import SIZES, mobilenet_v1
from benchmarks.harness.photographs import as_batches, mobilenet_v2, photographs

_CLASSES = 40  # of compact logits: scores of 1/40 and more are exact


@dataclass(frozen=True)
class Task:
    """A proxy and an oracle on N inputs.

    Args:
        score: Confidence of the proxy `[N]`.
        wrong: Where the oracle answers otherwise `[N]`.
    """

    score: NDArray[np.float32]
    wrong: NDArray[np.bool_]

    def records(self) -> dynamic.Records:
        """Records with these scores. The proxy answers class 0, and the oracle 0 or 1: agreement is all that counts."""
        count, score = len(self.score), np.clip(self.score.astype(np.float64), 1 / _CLASSES, 1 - 1e-7)
        logits = np.zeros((count, 2, _CLASSES), np.float32)
        logits[:, 0, 0] = np.log(score * (_CLASSES - 1) / (1 - score))
        part = np.ones(count, np.int8)
        return dynamic.Records(
            logits, None, None, part, (0, 1), (1.0, 3.0), (0.0, 0.0), ("proxy", "oracle"), "few_labels"
        )

    def taken(self, rows: NDArray[Any]) -> "Task":
        """Some of the inputs."""
        return Task(self.score[rows], self.wrong[rows])


def confidence(logits: NDArray[Any]) -> NDArray[np.float32]:
    """The largest probability of each row."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(1 / shifted.sum(axis=1), np.float32)


def compared(proxy: NDArray[Any], oracle: NDArray[Any]) -> Task:
    """The task of two models, from their logits `[N, C]`."""
    return Task(confidence(proxy), np.asarray(proxy.argmax(axis=1) != oracle.argmax(axis=1)))


def cifar_task(data: Path) -> Task:
    names = ("resnet20", "resnet32", "resnet56")
    records = cifar.records(dynamic.Cascade(cifar.networks(data, names), names=names), cifar.images(data, "test"))
    return compared(records.logits[:, 0], records.logits[:, 2])


def clinc_task(data: Path) -> Task:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    with zipfile.ZipFile(data / "intents.zip") as file:
        name = next(n for n in file.namelist() if n.endswith("clinc150.json"))
        texts = json.loads(file.read(name))
    train, label = zip(*texts["train"], strict=True)
    test = [text for text, _ in texts["test"]]
    words, pairs = TfidfVectorizer(), TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    proxy = LogisticRegression(C=3).fit(words.fit_transform(train), label)
    oracle = LinearSVC().fit(pairs.fit_transform(train), label)
    return compared(proxy.decision_function(words.transform(test)), oracle.decision_function(pairs.transform(test)))


def photographs_task(data: Path) -> Task:
    def logits(network: nn.Module, pixels: int) -> NDArray[np.float32]:
        inputs, label = photographs(data, pixels)
        with torch.inference_mode():
            answers = np.concatenate([network(batch).numpy() for batch in as_batches(inputs)])
        progress(f"right at {pixels} pixels: {(answers.argmax(axis=1) == label).mean():.3f}")
        return answers

    width = "075"
    return compared(logits(mobilenet_v1(data, width), SIZES[width][1]), logits(mobilenet_v2(data), 224))


def synthetic_task(_: Path) -> Task:
    random, place = np.random.default_rng(0), (np.arange(10_000) + 0.5) / 10_000
    wrong = random.random(10_000) < np.where(place < 0.08, 0.15, 0.35 * place**2.5)
    return Task((1 - 0.9 * place).astype(np.float32), wrong)


TASKS: dict[str, Callable[[Path], Task]] = {
    "cifar": cifar_task,
    "clinc": clinc_task,
    "photographs": photographs_task,
    "synthetic": synthetic_task,
}


def task_named(name: str, data: Path, folder: Path) -> Task:
    """A task, which is computed once and kept in a folder."""
    path = folder / f"task-{name}.npz"
    if not path.is_file():
        progress(f"computing {name}")
        task = TASKS[name](data)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, score=task.score, wrong=task.wrong)
    arrays = np.load(path)
    return Task(arrays["score"], arrays["wrong"])
