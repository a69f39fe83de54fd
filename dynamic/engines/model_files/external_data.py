"""Files that an ONNX graph names for its weights: each must lie in the bundle and have a hash in its manifest.

An engine follows such a name wherever it leads, to `../outside.weights` or `/etc/passwd`. The run side has no library
that reads ONNX, so the few fields that matter are read here, as protocol buffers lay them out
(https://protobuf.dev/programming-guides/encoding/, numbers of fields from onnx.proto).
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_MOST_DEPTH = 64  # graphs within graphs: an `If` for each stage
_LOCATION = b"location"
# message -> its fields that hold messages: of all others nothing can name a file
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}


def external_files(path: Path, name: str) -> tuple[str, ...]:
    """The files that a graph refers to.

    Args:
        path: The ONNX file.
        name: Its name in the bundle, from which the names that it holds are counted.

    Returns:
        Names in the bundle, each once.

    Raises:
        ValueError: It is no ONNX file, or a name leads out of the bundle.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    if _LOCATION not in content:  # most graphs name no file, and a walk takes 1 us a field
        return ()
    folder = PurePosixPath(name).parent
    locations = dict.fromkeys(_locations(memoryview(content), "model", 0))
    return tuple(str(folder / _inside(location)) for location in locations)


def _inside(location: str) -> str:
    parts = PurePosixPath(location).parts
    if not parts or location.startswith("/") or ".." in parts or any(c in location for c in "\\:\0"):
        raise ValueError(f"it names {location!r:.80} for its weights, outside its folder")
    return location


def _locations(content: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MOST_DEPTH:
        raise ValueError(f"it nests deeper than {_MOST_DEPTH} messages")
    if kind == "entry":
        pair = dict(_messages(content))
        if bytes(pair.get(1, b"")) == _LOCATION:
            yield str(bytes(pair.get(2, b"")), "utf-8")
        return
    within = _WITHIN[kind]
    for number, message in _messages(content):
        if number in within:
            yield from _locations(message, within[number], depth + 1)


def _messages(content: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Fields that hold bytes, by number. Numbers are skipped."""
    at, end = 0, len(content)
    while at < end:
        key, at = _varint(content, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, at = _varint(content, at)
        elif wire == 2:
            size, at = _varint(content, at)
            if size > end - at:
                raise ValueError("it is no whole ONNX file")
            yield number, content[at : at + size]
            at += size
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        else:
            raise ValueError("it is no ONNX file")
    if at > end:
        raise ValueError("it is no whole ONNX file")


def _varint(content: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if at >= len(content):
            raise ValueError("it is no whole ONNX file")
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("it is no ONNX file")
