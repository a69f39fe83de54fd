"""Texts that a bundle is to answer: tables, and files with one text a line."""

import logging
from collections.abc import Collection, Iterable
from itertools import groupby
from pathlib import Path

from dynamic.cli.sources.data_sets.text_tables import ENDINGS, read_rows
from dynamic.data.text.text_files import TextLine, text_lines

_SHOWN = 3  # rows in a warning

logger = logging.getLogger("dynamic")


def texts_to_answer(paths: Iterable[Path], classes: Collection[str]) -> list[TextLine]:
    """The texts of files in order.

    A table (.csv, .tsv, .jsonl) is read as `build` reads it, and needs no column of classes. Any other file has one
    text a line. So has a .tsv file whose first line begins with a class. Where some rows have another class than
    those of the bundle, a warning is logged: their answers are not counted as right or wrong.

    Args:
        paths: The files. "-" is the standard input.
        classes: Names of the classes of the bundle.

    Returns:
        The texts.

    Raises:
        InputError: A file does not read, or holds no text.
    """
    texts: list[TextLine] = []
    for is_table, files in groupby(paths, lambda path: _is_table(path, classes)):
        group = list(files)
        texts += _rows(group, classes) if is_table else text_lines(group, classes)
    return texts


def _is_table(path: Path, classes: Collection[str]) -> bool:
    if path.suffix.lower() not in ENDINGS:
        return False
    if path.suffix.lower() != ".tsv" or not path.is_file():
        return True
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.readline().partition("\t")[0] not in classes


def _rows(paths: list[Path], classes: Collection[str]) -> list[TextLine]:
    rows = [row for path in paths for row in read_rows(path, needs_class=False)]
    others = [f"{where} ({label})" for where, _, label in rows if label is not None and label not in classes]
    if others:
        logger.warning(
            "%d of %d rows have a class that the bundle does not answer, and count as neither right nor wrong: %s%s. "
            "The classes are %.200s",
            len(others),
            len(rows),
            ", ".join(others[:_SHOWN]),
            ", ..." if len(others) > _SHOWN else "",
            sorted(classes),
        )
    return [TextLine(where, text, label if label in classes else None) for where, text, label in rows]
