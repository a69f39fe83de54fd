"""Weights and training states as safetensors files that appear whole or not at all. No pickle."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from dynamic.offline.networks.foreign_weights import few, is_pickled, read_pickled, renamed
from dynamic.policies.errors import BundleError, CorruptError, InputError, SchemaError
from dynamic.storage.atomic_write import disk_errors
from dynamic.storage.disk_sync import sync, sync_folder
from dynamic.storage.temporary_files import fresh_folder

SCHEMA = 1
_FACTS, _DIGEST = "dynamic", "sha256"


def save_weights(network: nn.Module, path: str | Path) -> None:
    """Write parameters and buffers to a safetensors file, which appears whole or not at all.

    Tensors that share memory are written once, under their first name.

    Args:
        network: Whose weights are written.
        path: The file, which is replaced.

    Raises:
        DiskError: The disk is full, or refuses.

    Example:
        >>> dynamic.models.save_weights(small, "small.safetensors")
    """
    write_tensors(path, untied(network.state_dict()), {"kind": "weights"})


def load_weights(network: nn.Module, path: str | Path) -> None:
    """Read parameters and buffers, all or none, from what `save_weights` wrote or any file of the same names.

    A file may be safetensors, or what `torch.save` wrote of a `state_dict`, alone or under the key "state_dict" or
    "model". No code of the file is run. Names may begin with what `DataParallel` ("module."), `torch.compile`
    ("_orig_mod.") or a trainer put before all of them.

    Args:
        network: Whose weights are replaced.
        path: The file.

    Raises:
        CorruptError: The file is missing or damaged, holds more than tensors, or holds NaN.
        InputError: It belongs to another network: names or shapes differ.

    Example:
        >>> dynamic.models.save_weights(small, "small.safetensors")
        >>> dynamic.models.load_weights(small, "small.safetensors")
    """
    put_weights(network, read_weights(network, path), path)


def read_weights(network: nn.Module, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a file under the names that the network has. Raises CorruptError as `load_weights` does."""
    source = Path(path)
    tensors = read_pickled(source) if source.is_file() and is_pickled(source) else read_tensors(source)[0]
    return renamed(tensors, network.state_dict())


def put_weights(network: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Copy tensors that were read from `path` into the network of the same names. Raises as `load_weights` does."""
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
            f"{path} belongs to another network than this {type(network).__name__}: it lacks {few(missing)}, "
            f"and holds {few(unexpected)} that the network does not have"
        )
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{path}: {name} has shape {list(tensor.shape)}, the network's has {list(own[name].shape)}. "
                f"Make the network as it was trained (depth, width, classes)"
            )
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise CorruptError(f"{path}: {name} holds NaN. Get the file again, or train again")
    network.load_state_dict(tensors, strict=False)


def write_whole(tensors: Mapping[str, Tensor], path: Path, facts: dict[str, str] | None = None) -> None:
    """Write a safetensors file.

    Args:
        tensors: Tensors that share no memory.
        path: The file.
        facts: Text that the file carries along.

    Raises:
        DiskError: The disk is full, or refuses.
    """
    with disk_errors("the weights", path), _system_errors():
        path.touch()
        rights = stat.S_IMODE(path.stat().st_mode)
        save_file(dict(tensors), path, facts)
        path.chmod(rights)  # the library's files are for one user alone, whatever the umask


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and JSON facts with a hash over both. A reader sees the old file or the new one."""
    target = Path(path)
    plain = {name: _alone(tensor) for name, tensor in tensors.items()}
    text = json.dumps({"schema": SCHEMA, **facts}, sort_keys=True)
    with disk_errors("the weights", target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with fresh_folder(target) as folder:
            fresh = folder / target.name
            write_whole(plain, fresh, {_FACTS: text, _DIGEST: _digest(plain, text)})
            with fresh.open("r+b") as file:
                _order_header(file)
                file.flush()
                sync(file.fileno())
            fresh.replace(target)
        sync_folder(target.parent)


@contextmanager
def _system_errors() -> Iterator[None]:
    """The error of the system that safetensors hides in its text."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise OSError(str(error)) from error
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _order_header(file: BinaryIO) -> None:
    """Put the metadata of a safetensors file in order: the library writes it in another order on each run."""
    size = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(size))
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    if len(text) <= size:  # else the library escapes what json does not, and the file is not changed
        file.seek(8)
        file.write(text.ljust(size))


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a safetensors file and the facts in it. A file of another program has no facts and no hash.

    Raises CorruptError where it is missing, cut short or altered, SchemaError where it is newer than this.
    """
    source = Path(path)
    if not source.is_file():
        raise CorruptError(f"{source} does not exist or is no file. Give the path of a safetensors file")
    try:
        with safe_open(source, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptError(
            f"{source} is not a whole safetensors file ({error}), and none of torch.save. Get it again, or train again"
        ) from error
    if _FACTS not in metadata and _DIGEST not in metadata:
        return tensors, {}
    text = metadata.get(_FACTS, "")
    if metadata.get(_DIGEST) != _digest(tensors, text):
        raise CorruptError(f"{source} was altered after it was written: its hash differs. Remove it")
    facts: dict[str, Any] = json.loads(text)
    if facts["schema"] > SCHEMA:
        raise SchemaError(f"{source} has schema {facts['schema']}, this version reads {SCHEMA}. Upgrade the library")
    return tensors, facts


class Checkpoint:
    """The state of a training run, in one file. With None as path nothing is written.

    `settings` is what has to be the same for a run to end with the same weights: a file of other settings is
    refused with BundleError.
    """

    def __init__(self, path: str | Path | None, settings: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))

    def save(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, progress: Mapping[str, Any]) -> None:
        """Replace the file by the present state. `progress` is JSON."""
        if self.path is None:
            return
        tensors = {f"network.{name}": tensor for name, tensor in untied(state).items()}
        for index, values in optimizer.state_dict()["state"].items():
            tensors.update({f"optimizer.{index}.{name}": value for name, value in values.items() if value is not None})
        facts = {"kind": "checkpoint", "settings": self.settings, "progress": dict(progress)}
        write_tensors(self.path, tensors, facts)

    def load(self, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Copy the saved state into `state` and `optimizer` and return the progress. None: there is no file.

        Raises CorruptError on a damaged file, BundleError on one of another network or other settings.
        """
        if self.path is None or not self.path.exists():
            return None
        tensors, facts = read_tensors(self.path)
        if facts.get("kind") != "checkpoint":
            raise BundleError(f"{self.path} is no training checkpoint. Give another path")
        theirs = facts["settings"]
        changed = [key for key in sorted({*theirs, *self.settings}) if theirs.get(key) != self.settings.get(key)]
        if changed:
            differences = ", ".join(
                f"{k}={_short(theirs.get(k))} (now {_short(self.settings.get(k))})" for k in changed
            )
            raise BundleError(
                f"{self.path} was made with {differences}. Call fit as that run did, or give another path"
            )
        targets = untied(state)
        with torch.no_grad():
            for name, tensor in targets.items():
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
    hasher = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hasher.update(f"|{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        hasher.update(tensor.flatten().view(torch.uint8).numpy().data)
    return hasher.hexdigest()


def _memory(tensor: Tensor) -> tuple[int, ...]:
    """Equal for tensors that are one piece of memory. An empty tensor equals only itself."""
    return (tensor.data_ptr(), tensor.numel()) if tensor.numel() else (-id(tensor), 0)


def untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors that share memory under their first name only."""
    first = {_memory(tensor): name for name, tensor in reversed(list(state.items()))}
    return {name: tensor for name, tensor in state.items() if first[_memory(tensor)] == name}


def _alone(tensor: Tensor) -> Tensor:
    """On the CPU, contiguous, with memory of its own size: safetensors refuses slices of a larger piece."""
    own = tensor.detach().cpu().contiguous()
    return own if own.untyped_storage().nbytes() == own.nbytes else own.clone()


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else text[:12] + "..."
