"""Files that an ONNX graph names for its weights: each must lie in the bundle and have a hash in its manifest.

An engine follows such a name wherever it leads, to `../outside.weights` or `/etc/passwd`. Some names are no files for
it: of `*/_ORT_MEM_ADDR_/*` it takes the offset for an address in memory. The run side has no library that reads ONNX,
so the few fields that matter are read here, as protocol buffers lay them out
(https://protobuf.dev/programming-guides/encoding/, numbers of fields from onnx.proto).

What another reader might read in another way is refused: numbers of fields that it cuts off, groups, and the word
`location` in a place that is none of ONNX.
"""

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from dynamic.storage.regular_files import read_bytes

_MOST_BYTES = 2**31  # of a message of protocol buffers
_MOST_DEPTH = 64  # graphs within graphs: an `If` for each stage
_MOST_KEY, _MOST_KEY_BYTES = 2**32 - 1, 5  # some readers cut off what is above, others refuse it
_LOCATION = b"location"
# what `dynamic/offline/onnx_export` writes
_FILE = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9_-][A-Za-z0-9._-]*\.weights")
# message -> its fields that hold messages in which a file may be named
_WITHIN = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
# message -> its other fields of bytes: texts, numbers in a row, and messages that name no file
_OTHER = {
    "model": {2, 3, 4, 6, 8, 14, 26},
    "training": {3, 4},
    "function": {1, 4, 5, 6, 8, 9, 10, 12, 13, 14},
    "graph": {2, 10, 11, 12, 13, 14, 16},
    "node": {1, 2, 3, 4, 6, 7, 8, 9, 10},
    "attribute": {1, 4, 7, 8, 9, 13, 14, 15, 21},
    "sparse": {3},
    "tensor": {1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16},
    "entry": {1, 2},
}


def external_files(path: Path, name: str) -> tuple[str, ...]:
    """The files that a graph refers to.

    Args:
        path: The ONNX file.
        name: Its name in the bundle, from which the names that it holds are counted.

    Returns:
        Names in the bundle, each once.

    Raises:
        ValueError: It is no ONNX file, or names what is no file of weights in its folder.
        OSError: It cannot be read.
    """
    content = read_bytes(path, None, _MOST_BYTES)
    if _LOCATION not in content:  # most graphs name no file, and a walk takes 1 us a field
        return ()
    walk = _Walk(content)
    locations = dict.fromkeys(walk.locations("model", 0, len(content), 0))
    if walk.words != content.count(_LOCATION):
        raise ValueError("it holds the word 'location' where ONNX has no text")
    folder = PurePosixPath(name).parent
    return tuple(str(folder / _weights_name(location)) for location in locations)


def _weights_name(location: str) -> str:
    if _FILE.fullmatch(location) is None:
        raise ValueError(f"it names {location!r:.80} for its weights, which is no file of weights in its folder")
    return location


class _Walk:
    """A walk through the messages of a file. `words`: how often it has met the word `location`."""

    def __init__(self, content: bytes) -> None:
        self._content, self.words = content, 0

    def locations(self, kind: str, start: int, end: int, depth: int) -> Iterator[str]:
        """The names in a message of a kind, which lies from `start` to `end`."""
        if depth > _MOST_DEPTH:
            raise ValueError(f"it nests deeper than {_MOST_DEPTH} messages")
        within, other = _WITHIN[kind], _OTHER[kind]
        pair = {1: b"", 2: b""}  # of an entry. The last one counts, as everywhere in protocol buffers
        for number, first, last in self._fields(start, end):
            if number in within:
                yield from self.locations(within[number], first, last, depth + 1)
            elif number in other:
                self.words += self._content.count(_LOCATION, first, last)
                if kind == "entry":
                    pair[number] = self._content[first:last]
        if kind == "entry" and pair[1] == _LOCATION:
            yield str(pair[2], "utf-8")

    def _fields(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Fields that hold bytes: number, start and end. Numbers are skipped."""
        while at < end:
            start = at
            key, at = self._varint(at, end)
            number, wire = key >> 3, key & 7
            if key > _MOST_KEY or at - start > _MOST_KEY_BYTES or number == 0:
                raise ValueError(f"field {number} in it has a number that protocol buffers do not have")
            if wire == 0:
                _, at = self._varint(at, end)
            elif wire == 2:
                size, at = self._varint(at, end)
                if size > end - at:
                    raise ValueError("it is no whole ONNX file")
                yield number, at, at + size
                at += size
            elif wire in (1, 5):
                at += 8 if wire == 1 else 4
            else:  # groups, which ONNX does not have
                raise ValueError("it is no ONNX file")
        if at > end:
            raise ValueError("it is no whole ONNX file")

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        while shift < 70:
            if at >= end:
                raise ValueError("it is no whole ONNX file")
            byte = self._content[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        raise ValueError("it is no ONNX file")
