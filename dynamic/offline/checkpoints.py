"""Weights and training states as safetensors files that appear whole or not at all. No pickle."""

import hashlib
import json
import os
import pickle
import secrets
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamic.policies.errors import BundleError, CorruptError, InputError, SchemaError

SCHEMA = 1
_INSIDE = ("state_dict", "model_state_dict", "model", "network", "net")  # where training scripts put the weights
_PICKLED = (b"PK\x03\x04", b"\x80\x02\x8a\n")  # how files of torch.save begin, and those from before torch 1.6
_FACTS, _DIGEST = "dynamic", "sha256"


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write the parameters and buffers of `network` to the safetensors file `path`, replacing it at once.

    Tensors that share memory are written once, under their first name.
    """
    write_tensors(path, untied(network.state_dict()), {"kind": "weights"})


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Read parameters and buffers written by `save_weights`, or any file of the same names.

    A file may be safetensors, or what `torch.save` wrote of a `state_dict`, alone or under the key "state_dict" or
    "model". That is read without running code from it. Names may begin with what `DataParallel` ("module."),
    `torch.compile` ("_orig_mod.") or a trainer put before all of them.

    All or nothing. Raises CorruptError where the file is missing, damaged, holds more than tensors or holds NaN,
    InputError where it belongs to another network: names or shapes differ.
    """
    source = Path(path)
    tensors = read_pickled(source) if source.is_file() and is_pickled(source) else read_tensors(source)[0]
    put_weights(network, renamed(tensors, network.state_dict()), path)


def is_pickled(path: Path) -> bool:
    """Whether `torch.save` wrote the file, by its first bytes."""
    with path.open("rb") as file:
        return file.read(4).startswith(_PICKLED)


def read_pickled(path: Path) -> dict[str, Tensor]:
    """The tensors of a `state_dict` that `torch.save` wrote; nothing but tensors and plain containers is read.

    Raises CorruptError on any other file, and on one that is damaged.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):  # of the command line, which training scripts save too
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CorruptError(
            f"{path} holds Python objects, whose code is not run, or is damaged; save network.state_dict() alone, or "
            "use save_weights"
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CorruptError(f"{path} is not a whole file of torch.save ({reason:.160}); get it again") from error
    for _ in range(2):  # a training script's dict, in a trainer's
        inner = [found[key] for key in _INSIDE if isinstance(found, Mapping) and isinstance(found.get(key), Mapping)]
        found = inner[0] if inner else found
    named = {str(k): v for k, v in found.items() if isinstance(v, Tensor)} if isinstance(found, Mapping) else {}
    if not named:
        given = f"the keys {_few([str(k) for k in found])}" if isinstance(found, Mapping) else type(found).__name__
        raise CorruptError(f"{path} holds {given} and no weights by name; save network.state_dict()")
    return named


def renamed(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's `own` names, where the two differ by what stands before every name alone.

    That is "module." of DataParallel, "_orig_mod." of torch.compile (inside names too), and the attribute of a trainer.
    """
    mine, theirs = ({n.replace("_orig_mod.", ""): n for n in names} for names in (own, tensors))
    for stripped in (mine, _without_first(mine)):
        given = theirs
        for _ in range(3):
            if set(given) & set(stripped):
                return {stripped.get(name, name): tensors[before] for name, before in given.items()}
            given = _without_first(given)
    return dict(tensors)


def _without_first(names: Mapping[str, str]) -> dict[str, str]:
    """The names without their first part, where all have the same; else as they are."""
    same = len({name.partition(".")[0] for name in names}) == 1 and all("." in name for name in names)
    return {name.partition(".")[2] if same else name: before for name, before in names.items()}


def put_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy tensors that were read from `path` into the network of the same names; raises as `load_weights` does."""
    own = network.state_dict()
    tied = {id_: name for name, id_ in reversed([(n, _memory(t)) for n, t in own.items()])}
    missing = [
        name
        for name in own
        if name not in tensors
        and tied[_memory(own[name])] not in tensors
        and not name.endswith("num_batches_tracked")  # a count that files from before torch 0.4.1 lack
    ]
    unexpected = [name for name in tensors if name not in own]
    if missing or unexpected:
        raise InputError(
            f"{path} belongs to another network than this {type(network).__name__}: it lacks {_few(missing)}, "
            f"and holds {_few(unexpected)} that the network does not have"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} has shape {list(tensor.shape)}, the network's has {list(own[name].shape)}; "
                f"make the network as it was trained (depth, width, classes)"
            )
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise CorruptError(f"{path}: {name} holds NaN; get the file again, or train again")
    network.load_state_dict(tensors, strict=False)


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts with a hash over both; a reader sees the old file or the new one."""
    target = Path(path)
    plain = {name: _alone(tensor) for name, tensor in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        save_file(plain, fresh, {_FACTS: text, _DIGEST: _digest(plain, text)})
        with fresh.open("rb") as file:
            os.fsync(file.fileno())
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file and the facts in it; no facts, and no hash, where others wrote it.

    Raises CorruptError where it is missing, cut short or altered, SchemaError where it is newer than this.
    """
    source = Path(path)
    if not source.is_file():
        raise CorruptError(f"{source} does not exist or is no file; give the path of a safetensors file")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptError(
            f"{source} is not a whole safetensors file ({error}); get it again, or train again"
        ) from error
    if _FACTS not in metadata and _DIGEST not in metadata:
        return tensors, {}
    text = metadata.get(_FACTS, "")
    if metadata.get(_DIGEST) != _digest(tensors, text):
        raise CorruptError(f"{source} was altered after it was written: its hash differs; remove it")
    facts: dict[str, Any] = json.loads(text)
    if facts["schema"] > SCHEMA:
        raise SchemaError(f"{source} has schema {facts['schema']}, this version reads {SCHEMA}; upgrade the library")
    return tensors, facts


class Checkpoint:
    """Where a training run stands, in one file; None as path keeps nothing.

    `settings` is what has to be the same for a run to go on to the same weights: a file made with others is
    refused with BundleError.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def save(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
        """Replace the file by the state of now; `progress` is JSON."""
        if self.path is None:
            return
        tensors = {f"network.{name}": tensor for name, tensor in untied(state).items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None})
        facts = {"kind": "checkpoint", "settings": self.settings, "progress": dict(progress)}
        write_tensors(self.path, tensors, facts)

    def load(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Copy the saved state into `state` and `optimizer` and give the progress; None where there is no file.

        Raises CorruptError on a damaged file, BundleError on one of another network or other settings.
        """
        if self.path is None or not self.path.exists():
            return None
        tensors, facts = read_tensors(self.path)
        if facts.get("kind") != "checkpoint":
            raise BundleError(f"{self.path} is no training checkpoint; give another path")
        theirs = facts["settings"]
        changed = [key for key in sorted({*theirs, *self.settings}) if theirs.get(key) != self.settings.get(key)]
        if changed:
            told = ", ".join(f"{k}={_short(theirs.get(k))} (now {_short(self.settings.get(k))})" for k in changed)
            raise BundleError(f"{self.path} was made with {told}; call fit as that run did, or give another path")
        kept = untied(state)
        with torch.no_grad():
            for name, tensor in kept.items():
                tensor.copy_(tensors[f"network.{name}"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                moments.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        progress: dict[str, Any] = facts["progress"]
        return progress


def signature(state: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes and dtypes: the same for networks that can take each other's weights."""
    text = "|".join(f"{name}{tuple(tensor.shape)}{tensor.dtype}" for name, tensor in state.items())
    return hashlib.sha256(text.encode()).hexdigest()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, dtypes and values."""
    return _digest(tensors, "")


def _digest(tensors: Mapping[str, Tensor], text: str) -> str:
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"|{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Equal for tensors that are one piece of memory; an empty tensor is only itself."""
    return (tensor.data_ptr(), tensor.numel()) if tensor.numel() else (-id(tensor), 0)


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory under their first name only."""
    first = {_memory(tensor): name for name, tensor in reversed(list(state.items()))}
    return {name: tensor for name, tensor in state.items() if first[_memory(tensor)] == name}


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, with memory of its own size: safetensors refuses slices of a larger piece."""
    found = tensor.detach().cpu().contiguous()
    return found if found.untyped_storage().nbytes() == found.nbytes else found.clone()


def _few(names: list[str]) -> str:
    return "nothing" if not names else ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
