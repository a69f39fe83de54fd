"""Ways to alter a bundle's folder, each drawn from a random generator. Used by `altered.py`."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from dynamic.bundle.manifest import MANIFEST, manifest_hash
from dynamic.storage.regular_files import file_hash

MEASURED = ("costs", "choices", "checks")  # what each machine adds: it has no hash in the manifest
# out of the range of every field, and of every type
WRONG: tuple[Any, ...] = (
    float("nan"), 1e308, -1e308, -7, 10**400, -(10**400), 7.5e15, "word", "", [], {}, [[]], [1], {"a": 1}, [[[["x"]]]],
    "\ud800", "NaN", "1e5", [None], "x" * 20_000,
)  # fmt: skip
# in the range of some fields: noticed where the file has a hash of its own
PLAUSIBLE = (0, 1, -1, 0.5, 2, 1e-3, True, False, None, float("inf"), float("-inf"))
PATHS = (
    "../outside/x.onnx", "/etc/passwd", "", ".", "..", "backbones/../../outside/x.onnx", "backbones\\0_0.onnx",
    "C:\\x.onnx", "a\0b.onnx", "x" * 5000 + ".onnx", "backbones", "bundle.json", "graph.onnx/", "./graph.onnx",
    "\u202e.onnx", "graph.xml", "costs/x.onnx",
)  # fmt: skip
Alteration = Callable[[Path, Random], str]


def files_of(shelf: Path) -> list[Path]:
    """Every file, in a fixed order."""
    return sorted(path for path in shelf.rglob("*") if path.is_file())


def flip(shelf: Path, random: Random) -> str:
    """One bit, or some."""
    path = random.choice(files_of(shelf))
    content = bytearray(path.read_bytes())
    for _ in range(random.choice([1, 1, 1, 8])):
        if content:
            content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)
    return f"flip {path.relative_to(shelf)}"


def cut(shelf: Path, random: Random) -> str:
    """The end is missing, or all of it, or something was put there."""
    path = random.choice(files_of(shelf))
    content = path.read_bytes()
    length = random.choice([0, 1, random.randrange(len(content) + 1)])
    more = random.choice([b"", b"", random.randbytes(100), b"\xff\xfe\x00"])
    path.write_bytes(content[:length] + more)
    return f"cut {path.relative_to(shelf)}"


def swap(shelf: Path, random: Random) -> str:
    """Two files change places, or one is a copy of the other."""
    one, other = random.sample(files_of(shelf), 2)
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    if random.random() < 0.5:
        other.write_bytes(first)
    return f"swap {one.relative_to(shelf)} {other.relative_to(shelf)}"


def odd_file(shelf: Path, random: Random) -> str:
    """A file is missing, a folder, a pipe, or nested without end."""
    path = random.choice(files_of(shelf))
    kind = random.choice(["missing", "folder", "pipe", "nested", "digits", "text"])
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "nested":
        path.write_text(random.choice(["[" * 100_000, '{"a":' * 100_000, "[" * 60 + "]" * 60]))
    elif kind == "digits":
        path.write_text("9" * random.choice([400, 100_000]))
    elif kind == "text":
        path.write_bytes(random.choice([b"\xff\xfe{}", "{}".encode("utf-16"), b"\x00" * 50, b"\xef\xbb\xbf{}"]))
    return f"{kind} {path.relative_to(shelf)}"


def link(shelf: Path, random: Random) -> str:
    """A file or folder is a link: to the same content elsewhere, to nothing, to itself, to a device."""
    entry = random.choice([path for path in sorted(shelf.rglob("*")) if not path.is_symlink()])
    target = shelf.parent / "elsewhere" / entry.name
    target.parent.mkdir(exist_ok=True)
    kind = random.choice(["same", "same", "nowhere", "itself", "device", "above"])
    entry.rename(target)
    places = {
        "same": target,
        "nowhere": shelf / "nowhere",
        "itself": entry,
        "device": Path("/dev/zero"),
        "above": shelf,
    }
    entry.symlink_to(places[kind])
    return f"link {kind} {entry.relative_to(shelf)}"


def json_file(shelf: Path, random: Random, values: tuple[Any, ...], names: list[Path]) -> str:
    """One value of a JSON file is another one, is missing, or is there twice."""
    path = random.choice(names)
    data = json.loads(path.read_text(encoding="utf-8"))
    key = random.choice(sorted(set(data) - {"frontier"}))  # which is derived, and never read back
    holder = data
    if isinstance(data[key], dict | list) and data[key] and random.random() < 0.8:
        holder, key = random.choice(_places(data[key]))
    kind = random.choice(["value"] * 6 + ["missing", "more"])
    if kind == "missing":
        del holder[key]
    elif kind == "more" and isinstance(holder, list):
        holder.append(holder[key])
    elif kind == "more":
        holder[f"{key}x"] = holder[key]
    else:
        holder[key] = random.choice(values)
    path.write_bytes(json.dumps(data).encode("utf-8", "replace"))
    return f"{kind} {path.relative_to(shelf)} {key} {str(holder[key])[:20] if kind == 'value' else ''}"


def measured_value(shelf: Path, random: Random) -> str:
    """In a file that this machine added."""
    names = [path for path in files_of(shelf) if path.relative_to(shelf).parts[0] in MEASURED]
    return json_file(shelf, random, WRONG + PLAUSIBLE, names)


def cost(shelf: Path, random: Random) -> str:
    """A figure that no device has, or a row of them, in costs as an earlier version wrote them: without a hash."""
    path = random.choice(sorted((shelf / "costs").iterdir()))
    data = json.loads(path.read_text(encoding="utf-8"))
    data.pop("sha256", None)
    key = random.choice(["latency_ms", "latency_p95_ms", "head_ms", "cpu_ms", "call_ms", "batch", "memory_mb", "noise"])
    value, holder = random.choice([value for value in WRONG if value != []]), data
    place: Any = key
    if isinstance(data[key], list) and random.random() < 0.8:
        holder, place = data[key], random.randrange(len(data[key]))
        if isinstance(holder[place], list):
            holder[place], value = [value] * len(holder[place]), None
    if value is not None:
        holder[place] = value
    path.write_bytes(json.dumps(data).encode("utf-8", "replace"))
    return f"cost {key} {str(holder[place])[:30]}"


def described_value(shelf: Path, random: Random) -> str:
    """In the manifest or the ladder."""
    return json_file(shelf, random, WRONG, [shelf / MANIFEST, shelf / "ladder.json"])


def path_of_stage(shelf: Path, random: Random) -> str:
    """The manifest names another file for a stage, or another list of files."""
    path = shelf / MANIFEST
    data = json.loads(path.read_text(encoding="utf-8"))
    outside = shelf.parent / "outside"
    shutil.copytree(shelf / "backbones", outside, dirs_exist_ok=True)
    shutil.copy(random.choice(sorted(outside.glob("*.onnx"))), outside / "x.onnx")
    kind = random.choice(["graph", "body_graph", "files", "dropped", "empty", "listed", "absolute", "null"])
    stage = random.choice(data["spec"]["stages"])
    used = [n for n in data["files"] if not n.startswith("weights/") and n != "golden.json"]
    if kind in ("graph", "body_graph"):
        stage[kind] = random.choice(PATHS)
    elif kind == "absolute":
        stage["graph"] = str(outside / "x.onnx")
    elif kind == "files":
        data["files"][random.choice(PATHS)] = {"bytes": 1, "sha256": "0" * 64}
    elif kind == "listed":  # the file outside with its hash: it must not be used either
        name = "../outside/x.onnx"
        entry = {"bytes": (outside / "x.onnx").stat().st_size, "sha256": file_hash(outside / "x.onnx")}
        data["files"][name], stage["graph"] = entry, name
    elif kind == "null":
        data["files"][random.choice(used)]["sha256"] = random.choice([None, "", 0, "z" * 64])
    elif kind == "dropped":
        del data["files"][random.choice(used)]
    else:
        data["files"] = {}
    path.write_text(json.dumps(data), encoding="utf-8")
    return f"path {kind}"


def weights_elsewhere(shelf: Path, random: Random) -> str:
    """A graph names a file outside for its weights."""
    graphs = [path for path in files_of(shelf) if path.suffix == ".onnx" and b".weights" in path.read_bytes()]
    path = random.choice(graphs)
    content = path.read_bytes()
    at = content.index(b".weights") - 1  # one digit: the number of a backbone
    name = content[at : at + 9]
    for folder in (shelf, shelf.parent):
        shutil.copy(next(iter(sorted(shelf.glob("backbones/*.weights")))), folder / "w.data")
    path.write_bytes(content.replace(name, random.choice([b"../w.data", b"/../w.dat", b"..\\w.data", b"8.weights"])))
    return f"weights elsewhere {path.relative_to(shelf)}"


def hash_again(shelf: Path) -> None:
    """Make the manifest's hashes right, as somebody would who alters a bundle on purpose."""
    path = shelf / MANIFEST
    if not path.is_file():  # a pipe, which would hold whoever reads it
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        for name, entry in data["files"].items():
            if (shelf / name).is_file() and not (shelf / name).samefile("/dev/zero") and entry.get("sha256"):
                entry |= {"bytes": (shelf / name).stat().st_size, "sha256": file_hash(shelf / name)}
        data.pop("sha256", None)
        path.write_text(json.dumps(data | {"sha256": manifest_hash(data)}), encoding="utf-8")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # the manifest itself was altered beyond that


def _places(data: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    level = [data]
    while level:
        within = level.pop()
        entries = list(within.items() if isinstance(within, dict) else enumerate(within))
        found += [(within, key) for key, _ in entries]
        level += [value for _, value in entries if isinstance(value, dict | list)]
    return found


AS_IT_LIES: tuple[Alteration, ...] = (
    flip, cut, swap, odd_file, link, measured_value, cost, cost, described_value, path_of_stage
)  # fmt: skip
HASHED_AGAIN: tuple[Alteration, ...] = (
    cut, swap, odd_file, link, described_value, described_value, path_of_stage, weights_elsewhere,
)  # fmt: skip
