"""JSON files of a bundle's folder, read without trust, and the seal of those that each machine adds.

What the manifest lists has its hash there. What a machine measures (costs, choices, checks) comes later, so each such
file has a hash of its own, the **seal**: over its content and over what it is about, so that a file that was copied
from another bundle or under another name does not fit. A seal notices damage. It does not prove who wrote the file.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamic.storage.regular_files import read_bytes

MOST_BYTES = 32 * 2**20  # of one file: names of 20,000 classes take 1 MB
MEASURED_BYTES = 2**20  # of one that a machine adds: costs, a choice of engine, a check take some kB
MOST_VALUES = 2**20  # of one file: an empty list takes 3 bytes of it and 64 of memory
MOST_DEPTH = 24  # brackets within brackets: a ladder has 5
SEAL = "sha256"


def read_json(path: Path, folder: Path, *, most_bytes: int = MOST_BYTES) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        folder: Where it must lie, links followed.
        most_bytes: The largest size.

    Returns:
        What it holds. Nothing is known of it but that it is JSON, of limited size and nesting.

    Raises:
        ValueError: It is no file, or no such JSON, or lies elsewhere.
        OSError: It cannot be read. FileNotFoundError where there is none.
    """
    return parse_json(read_bytes(path, folder, most_bytes))


def parse_json(content: bytes | str) -> Any:
    """What JSON holds, of limited size and nesting.

    Args:
        content: The text, in UTF-8 where it is bytes.

    Returns:
        Plain JSON types.

    Raises:
        ValueError: It is anything else.
    """
    try:
        if isinstance(content, bytes):
            content = content.decode("utf-8")
        if (count := sum(map(content.count, ",[{"))) > MOST_VALUES:  # whatever is in quotes counts too
            raise ValueError(f"it has some {count} values, the limit is {MOST_VALUES}")
        value = json.loads(content)
    except RecursionError as error:
        raise ValueError(f"it nests deeper than {MOST_DEPTH} brackets") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text in UTF-8 ({error.reason} at byte {error.start})") from error
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise ValueError(f"it nests deeper than {MOST_DEPTH} brackets")
        within = [item for item in level if isinstance(item, dict | list)]
        level = [entry for item in within for entry in (item.values() if isinstance(item, dict) else item)]
        depth += 1
    return value


def seal(data: Mapping[str, Any], subject: str) -> dict[str, Any]:
    """The data with its seal.

    Args:
        data: Plain JSON types.
        subject: What the file is about: its folder, its name and the bundle.

    Returns:
        The data with one entry more.
    """
    return {**data, SEAL: _hash(data, subject)}


def unseal(data: Any, subject: str) -> dict[str, Any]:
    """The data without its seal, once that has been checked. Files of earlier versions have none.

    Args:
        data: As it was read.
        subject: See `seal`.

    Returns:
        The data without the seal.

    Raises:
        ValueError: It is no mapping, or the seal is of other data or of another subject.
    """
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not a mapping")
    content = {name: value for name, value in data.items() if name != SEAL}
    if SEAL in data and data[SEAL] != _hash(content, subject):
        raise ValueError("it was altered after it was written, or belongs to another bundle or machine")
    return content


def _hash(data: Mapping[str, Any], subject: str) -> str:
    plain = json.loads(json.dumps(data))  # tuples and lists are the same in a file
    return hashlib.sha256(json.dumps([subject, plain], sort_keys=True).encode()).hexdigest()
