"""What the name of a network says without torch: whether it can take exits, and whether it brings its tokenizer."""

import json
from dataclasses import dataclass
from pathlib import Path

_USUAL_EXITS = 3
_MOST_HEADER = 100_000_000  # bytes, the limit of the format


@dataclass(frozen=True)
class SavedFacts:
    """What `init` needs to know of a network.

    Args:
        exits_to_add: The exits that it usually gets.
        has_tokenizer: Whether it brings its tokenizer.
    """

    exits_to_add: int = _USUAL_EXITS
    has_tokenizer: bool = False


def saved_facts(name: str) -> SavedFacts:
    """Look at the name of a network, and at the header of a file that `fit` or `wrap` wrote.

    Args:
        name: The network.

    Returns:
        The facts. Those of a network without exits where the file does not read: the command that uses it reports that.
    """
    if name.endswith(".onnx"):
        return SavedFacts(exits_to_add=0)
    if not name.endswith(".safetensors"):
        return SavedFacts(has_tokenizer=name.startswith("hf:"))
    try:
        with Path(name).open("rb") as file:
            size = int.from_bytes(file.read(8), "little")  # safetensors: the size of a header in JSON, then the header
            metadata = json.loads(file.read(min(size, _MOST_HEADER)))["__metadata__"]
        recipe = json.loads(metadata["dynamic"])["recipe"]
        exits, preprocess, source = recipe["exits"], recipe["preprocess"], recipe["source"]
        texts = preprocess is not None and preprocess["kind"] == "texts"
    except (OSError, ValueError, KeyError, TypeError):
        return SavedFacts()
    return SavedFacts(0 if exits else _USUAL_EXITS, texts or source.startswith("hf:"))
