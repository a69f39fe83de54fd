"""What a folder holds that a project could start from: data, networks, classes. Nothing is decoded, nothing runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamic.cli.sources.data_sets.examples import Examples, Kind
from dynamic.cli.sources.data_sets.named_data import SPLITS, data_named
from dynamic.cli.sources.data_sets.text_tables import ENDINGS
from dynamic.policies.errors import InputError

# a network that is there for each kind of data where the folder holds none
_USUAL: dict[Kind, str] = {
    "images": "torchvision:mobilenet_v3_small",
    "texts": "hf:./my-classifier",
    "sounds": "mine.py:network",
    "batches": "mine.py:network",
}
_MOST_ENTRIES = 200  # of a folder that are looked at


@dataclass(frozen=True)
class Survey:
    """What data are, for the questions of `init`.

    Args:
        data: Name of the data set.
        kind: What it holds.
        count: Number of examples that would be held out, before they are divided.
        classes: Names of the classes.
        least: The rarest class and how many examples it has.
        split: The split that would be held out. None: there is one.
        train_split: The split that would train. None: half of the data.
    """

    data: str
    kind: Kind
    count: int
    classes: tuple[str, ...]
    least: tuple[str, int]
    split: str | None
    train_split: str | None

    def __str__(self) -> str:
        names = ", ".join(self.classes[:4]) + (", ..." if len(self.classes) > 4 else "")
        where = "" if self.split is None else f" in split {self.split!r}"
        train = "half of them train" if self.train_split is None else f"split {self.train_split!r} trains"
        name, count = self.least
        return (
            f"{self.data}: {self.count} {self.kind}{where} of {len(self.classes)} classes ({names}), "
            f"of {name!r} {count}. For exits, {train}"
        )


def survey(data: str) -> Survey:
    """Look at a data set.

    Args:
        data: Its name.

    Returns:
        What it is.

    Raises:
        InputError: There is nothing of that name, or it does not fit.
    """
    examples = data_named(data)
    if examples.kind == "batches":
        return Survey(data, "batches", 0, examples.classes, ("", 0), None, None)
    counts = Counter(examples.classes[label] for label in examples.labels)
    least = min(counts.items(), key=lambda item: item[1])
    return Survey(
        data, examples.kind, len(examples), examples.classes, least, examples.split, _train_split(data, examples)
    )


def _train_split(data: str, examples: Examples) -> str | None:
    if examples.split is None:
        return None
    train = data_named(data, role="train").split
    return train if train in SPLITS["train"] else None


def data_in(folder: Path) -> str | None:
    """The first data set that a folder holds. None: it holds none."""
    entries = sorted(folder.iterdir(), key=lambda path: (path.is_file(), path.name))[:_MOST_ENTRIES]
    for path in entries:
        is_candidate = path.is_dir() or path.suffix.lower() in (*ENDINGS, ".zip")
        if path.name.startswith((".", "_")) or not is_candidate:
            continue
        try:
            data_named(str(path))
        except InputError:
            continue
        return str(path) + ("/" if path.is_dir() else "")
    return None


def tokenizer_for(facts: Survey) -> str | None:
    """The tokenizer in the working folder, or beside texts. None: there is none, or these are no texts."""
    places = (Path("tokenizer.json"), Path(facts.data).parent / "tokenizer.json")
    return next((str(path) for path in places if facts.kind == "texts" and path.is_file()), None)


def networks_in(folder: Path, kind: Kind) -> Sequence[str]:
    """Networks that a folder holds, or the usual one for a kind of data."""
    saved = [path.name for ending in ("*.safetensors", "*.onnx") for path in sorted(folder.glob(ending))]
    hugging = [f"hf:./{path.parent.name}" for path in sorted(folder.glob("*/config.json"))]
    return [*hugging, *saved][:1] or [_USUAL[kind]]
