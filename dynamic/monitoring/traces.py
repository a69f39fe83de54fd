"""Files of recorded snapshots: JSON lines, a header first, then one snapshot a line."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from dynamic.policies.errors import CorruptError, SchemaError
from dynamic.policies.snapshot import Snapshot
from dynamic.policies.validation.fields import MOST, flag, items, mapping, number, short, text, texts, whole
from dynamic.policies.validation.numbers import plain
from dynamic.storage.json_files import parse_json
from dynamic.storage.regular_files import read_bytes

SCHEMA = 1
_KIND = "dynamic trace"
_MOST_BYTES = 2**30  # a snapshot takes 300
_FLAGS = {"plugged", "throttled"}
_COUNTS = {"rows", "queue_length", "servers", "size"}
_NUMBERS = {f.name for f in fields(Snapshot)} - _FLAGS - _COUNTS - {"missing"}
_SHARE, _AMOUNT = (0.0, 1.5), (0.0, MOST)  # a worn battery reports a little more than its charge
_RANGES = {
    **dict.fromkeys(("cpu_load", "cpu_pressure", "memory_pressure", "battery"), _SHARE),
    **dict.fromkeys(("cpu_cores", "frequency_ratio", "memory_available_mb", "memory_process_mb"), _AMOUNT),
    **dict.fromkeys(("battery_mwh", "waited_ms"), _AMOUNT),
    "temperature_c": (-300.0, 10_000.0),
}

logger = logging.getLogger("dynamic")


@dataclass(frozen=True)
class Trace:
    """A recorded trace.

    Args:
        machine: The machine, in words.
        date: Date of the first snapshot (ISO 8601, UTC).
        sources: Origin of the readings, by source.
        snapshots: The snapshots in order.
    """

    machine: str
    date: str
    sources: Mapping[str, str]
    snapshots: tuple[Snapshot, ...]


class TraceWriter:
    """Write a trace. The header is written at once, and every snapshot when it is added.

    The file therefore holds every added snapshot however the recording ends, an empty battery included.

    Args:
        file: A text file that is open for writing.
        machine: The machine, in words.
        date: Date of the first snapshot (ISO 8601, UTC).
        sources: Origin of the readings, by source.
    """

    def __init__(self, file: TextIO, machine: str, date: str, sources: Mapping[str, str]) -> None:
        self._file = file
        header = {"kind": _KIND, "schema": SCHEMA, "machine": machine, "date": date, "sources": dict(sources)}
        self._line(header)

    def add(self, snapshot: Snapshot) -> None:
        """Append a snapshot without its fields that are None."""
        fields = {name: plain(value) for name, value in asdict(snapshot).items()}
        self._line({name: value for name, value in fields.items() if value is not None and value != ()})

    def _line(self, data: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(data) + "\n")
        self._file.flush()


def read_trace(path: Path) -> Trace:
    """Read what `TraceWriter` wrote.

    A last line that was cut short is skipped with a warning on logger "dynamic".

    Args:
        path: The file.

    Returns:
        The trace.

    Raises:
        CorruptError: Another line is no snapshot. The message names it.
        SchemaError: A newer version of this library wrote the file.
        OSError: The file cannot be read.
    """
    try:
        content = read_bytes(path, None, _MOST_BYTES).decode("utf-8")
    except ValueError as error:  # not in UTF-8 either
        raise CorruptError(f"{path} is no recorded trace: {error}") from error
    lines = content.splitlines()
    is_whole = content.endswith("\n")
    header = _header(path, lines[0] if lines else "")
    snapshots: list[Snapshot] = []
    for at, line in enumerate(lines[1:], 2):
        try:
            snapshot = _snapshot(parse_json(line))
        except ValueError as error:
            if at == len(lines) and not is_whole:
                logger.warning("%s: line %d was cut short and is left out", path, at)
                break
            raise CorruptError(f"{path}, line {at} is no snapshot: {error}") from error
        if snapshots and snapshot.time_s < snapshots[-1].time_s:
            raise CorruptError(f"{path}, line {at}: time_s falls to {snapshot.time_s}. Traces cannot be joined")
        snapshots.append(snapshot)
    if not snapshots:
        raise CorruptError(f"{path} holds no snapshot: record it for longer")
    return Trace(str(header["machine"]), str(header["date"]), dict(header["sources"]), tuple(snapshots))


def _header(path: Path, line: str) -> Mapping[str, Any]:
    try:
        header = mapping(parse_json(line), "header")
        if header["kind"] != _KIND:
            raise ValueError("its first line is no header")
        schema = whole(header["schema"], "schema", 1)
        values = {
            "machine": text(header["machine"], "machine"),
            "date": text(header["date"], "date"),
            "sources": texts(header["sources"], "sources"),
        }
    except (ValueError, KeyError) as error:
        raise CorruptError(
            f"{path} is no recorded trace ({error!r}): python -m dynamic record writes one, a header first"
        ) from error
    if schema > SCHEMA:
        raise SchemaError(f"{path} has schema {schema}. This version reads up to {SCHEMA}: update dynamic-inference")
    return values


def _snapshot(data: Any) -> Snapshot:
    if not isinstance(data, dict) or "time_s" not in data:
        raise ValueError("it has no time_s")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name in _COUNTS:
            values[name] = whole(value, name)
        elif name in _NUMBERS:
            values[name] = number(value, name, *_RANGES.get(name, (-MOST, MOST)))
        elif name in _FLAGS:
            values[name] = flag(value, name)
        elif name == "missing":
            values[name] = items(value, name, text)
        else:
            raise ValueError(f"{name:.80}={short(value)} is not of a snapshot")
    return Snapshot(**values)
