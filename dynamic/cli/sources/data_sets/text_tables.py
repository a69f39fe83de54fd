"""Texts with their classes from CSV and JSON Lines."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamic.policies.errors import InputError

ENDINGS = (".csv", ".tsv", ".jsonl")
_TEXT = ("text", "sentence", "utterance", "query", "content")
_CLASS = ("label", "class", "category", "intent", "target")


def read_texts(path: Path) -> list[tuple[str, str, str]]:
    """(where, text, class) of each row of a table.

    A CSV file begins with the names of its columns, and a line of JSON is an object. The text stands in a column called
    text, sentence, utterance, query or content, the class in label, class, category, intent or target. A table of two
    columns may have other names: the text is the first.

    Args:
        path: The file, in UTF-8.

    Returns:
        The rows, those without a text left out.

    Raises:
        InputError: The file does not read, has no such column, or a row lacks one.
    """
    return [(where, text, str(label)) for where, text, label in read_rows(path)]


def read_rows(path: Path, *, needs_class: bool = True) -> list[tuple[str, str, str | None]]:
    """The same where texts may lack a class.

    Args:
        path: The file, in UTF-8.
        needs_class: Whether a text without a class is an error. Otherwise its class is None.

    Returns:
        The rows, those without a text left out.

    Raises:
        InputError: As for `read_texts`.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path} does not read ({error}): give a table of texts in UTF-8") from error
    rows = list(_of_json(path, content) if path.suffix.lower() == ".jsonl" else _of_csv(path, content))
    if not rows:
        raise InputError(f"{path} holds no rows: give a line for each text, with a column text and a column label")
    columns = list(dict.fromkeys(name for _, row in rows[:100] for name in row))
    text, label = _columns(path, columns, needs_class)
    texts: list[tuple[str, str, str | None]] = []
    for where, row in rows:
        value = None if label is None else row.get(label)
        if row.get(text) is None or (needs_class and value is None):
            raise InputError(f"{where} has no {text if row.get(text) is None else label!r}: give both, or remove it")
        name = None if value is None else str(value).strip()
        if str(row[text]).strip():
            texts.append((where, str(row[text]).strip(), name if needs_class else name or None))
    return texts


def _of_csv(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    lines = content.splitlines(keepends=True)
    first = lines[0] if lines else ""
    delimiter = "\t" if path.suffix.lower() == ".tsv" or first.count("\t") > first.count(",") else ","
    try:
        reader = csv.DictReader(lines, delimiter=delimiter)
        for row in reader:
            yield f"{path}:{reader.line_num}", {k: v for k, v in row.items() if k is not None}
    except csv.Error as error:
        raise InputError(
            f"{path} does not read as CSV ({error}): write it with a line of column names first"
        ) from error


def _of_json(path: Path, content: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(
                f'{path}:{number} is no JSON ({error}): give an object a line, {{"text": "...", "label": "..."}}'
            ) from error
        if not isinstance(row, dict):
            raise InputError(f'{path}:{number} is no object: give {{"text": "...", "label": "..."}} in each line')
        yield f"{path}:{number}", row


def _columns(path: Path, columns: list[str], needs_class: bool) -> tuple[str, str | None]:
    by_name = {name.strip().lower(): name for name in columns}
    text = next((by_name[name] for name in _TEXT if name in by_name), None)
    label = next((by_name[name] for name in _CLASS if name in by_name), None)
    if text is None and label is None and len(columns) == 2:
        return columns[0], columns[1]
    if text is not None and label is None and not needs_class and len(columns) != 2:
        return text, None
    others = [name for name in columns if name not in (text, label)]
    if len(columns) == 2 and len(others) == 1:
        return text or others[0], label or others[0]
    if text is None or label is None:
        missing = "text" if text is None else "label"
        remedy = "name the columns text and label"
        if not needs_class:
            remedy += ". A file with one text a line and no names of columns is called .txt"
        raise InputError(f"{path} has the columns {columns}, and none called {missing!r}: {remedy}")
    return text, label
