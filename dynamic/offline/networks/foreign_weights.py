"""Weights that other programs wrote: files of `torch.save`, and the names that wrappers give."""

import pickle
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dynamic.policies.errors import CorruptError

_INSIDE = ("state_dict", "model_state_dict", "model", "network", "net")  # where training scripts put the weights
_PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # how files of torch.save begin, and those from before torch 1.6


def is_pickled(path: Path) -> bool:
    """Whether `torch.save` wrote the file, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLED)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `state_dict` that `torch.save` wrote. Only tensors and plain containers are read.

    Raises CorruptError on any other file, and on one that is damaged.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):  # of the command line, which training scripts save too
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptError(
            f"{path} holds Python objects, whose code is not run, or is damaged. Save network.state_dict() alone, or "
            "use save_weights"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{path} is not a whole file of torch.save ({reason:.160}). Get it again") from error
    for _ in range(2):  # a training script's dict, in a trainer's
        inner = [
            content[key] for key in _INSIDE if isinstance(content, Mapping) and isinstance(content.get(key), Mapping)
        ]
        content = inner[0] if inner else content
    named = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, Mapping) else {}
    if not named:
        contents = (
            f"the keys {few([str(k) for k in content])}" if isinstance(content, Mapping) else type(content).__name__
        )
        raise CorruptError(f"{path} holds {contents} and no weights by name. Save network.state_dict()")
    return named


def renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's `own` names, where the two differ by what stands before every name alone.

    That is "module." of DataParallel, "_orig_mod." of torch.compile (inside names too), and the attribute of a trainer.
    """
    mine, theirs = ({n.replace("_orig_mod.", ""): n for n in names} for names in (own, tensors))
    for stripped in (mine, _without_first(mine)):
        names = theirs
        for _ in range(3):
            if set(names) & set(stripped):
                return {stripped.get(name, name): tensors[before] for name, before in names.items()}
            names = _without_first(names)
    return dict(tensors)


def _without_first(names: Mapping[str, str]) -> dict[str, str]:
    """The names without their first part, where all have the same, else unchanged."""
    same = len({name.partition(".")[0] for name in names}) == 1 and all("." in name for name in names)
    return {name.partition(".")[2] if same else name: before for name, before in names.items()}


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return "nothing" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")
