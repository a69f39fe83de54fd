"""Answers of an oracle, kept on disk before the next question."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamic.policies.errors import CorruptError, InputError
from dynamic.policies.validation.fields import mapping
from dynamic.storage.atomic_write import replace_text

HEAD = ("row", "label")
_MOST_ROWS = 10_000_000


class AnswerFile:
    """A CSV file of rows and labels. A row without a label is a question.

    Beside it lies a file with `.draw.json` behind its name: the draw of inputs that the answers belong to.

    Args:
        path: The CSV file. None: answers are kept in memory alone.
        count: Rows that there are.
        classes: Classes that labels may have.

    Raises:
        CorruptError: when a line or the draw does not read.
        InputError: when a row or a label is none that there is, or two labels of one row differ.
    """

    def __init__(self, path: Path | None, count: int, classes: int) -> None:
        self.path, self._count, self._classes = path, count, classes
        self.labels: dict[int, int] = {}
        self.questions: list[int] = []
        self.draw: Mapping[str, Any] | None = None
        self._draw_path = None if path is None else path.with_name(f"{path.name}.draw.json")
        if self._draw_path is not None and self._draw_path.exists():
            self.draw = _draw(self._draw_path)
        if path is not None and path.exists():
            self._read(path)

    def add(self, answers: Mapping[int, int]) -> None:
        """Keep answers, in memory and on disk. Raises InputError where one contradicts an earlier one."""
        for row, label in answers.items():
            self._check(row, label, "the oracle")
        self.labels |= answers
        self.questions = [row for row in self.questions if row not in answers]
        self._write()

    def keep_draw(self, draw: Mapping[str, Any]) -> None:
        """Keep the draw that answers belong to, in memory and on disk."""
        self.draw = dict(draw)
        if self._draw_path is not None:
            replace_text(self._draw_path, json.dumps(self.draw))

    def ask(self, rows: Iterable[int]) -> None:
        """Write questions down: rows whose labels a person fills in."""
        self.questions += [row for row in rows if row not in self.labels and row not in self.questions]
        self._write()

    def _read(self, path: Path) -> None:
        try:
            lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise CorruptError(f"{path} does not read as CSV ({error}): give another file, or remove it") from error
        if not lines or tuple(cell.strip() for cell in lines[0][:2]) != HEAD or len(lines) > _MOST_ROWS:
            raise CorruptError(f"{path} does not begin with the line 'row,label': give another file, or remove it")
        for number, line in enumerate(lines[1:], 2):
            cells = [cell.strip() for cell in line[:2]]
            if not any(cells):
                continue
            where = f"{path}, line {number}"
            row, label = (
                _whole(cells[:1], where, "row"),
                _whole(cells[1:], where, "label") if cells[1:] != [""] else None,
            )
            if row is None or not 0 <= row < self._count:
                raise InputError(f"{where}: row {cells[0]} is none of the {self._count} inputs: use other records")
            if label is None:
                self.questions.append(row)
                continue
            self._check(row, label, where)
            self.labels[row] = label
        self.questions = [row for row in dict.fromkeys(self.questions) if row not in self.labels]

    def _check(self, row: int, label: int, where: str) -> None:
        if not 0 <= label < self._classes:
            raise InputError(
                f"{where}: label {label} of row {row} is none of {self._classes} classes: give one from 0 to "
                f"{self._classes - 1}"
            )
        if self.labels.get(row, label) != label:
            raise InputError(
                f"{where}: row {row} has label {label}, and it had {self.labels[row]} before. An oracle that "
                "contradicts itself certifies nothing: decide on one label"
            )

    def _write(self) -> None:
        if self.path is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(HEAD)
        writer.writerows(self.labels.items())
        writer.writerows((row, "") for row in self.questions)
        replace_text(self.path, text.getvalue())


def _draw(path: Path) -> dict[str, Any]:
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")), "draw")
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptError(
            f"{path} does not read ({error}): restore it. A new draw of the same inputs would spend the guarantee"
        ) from error


def _whole(cells: Sequence[str], where: str, name: str) -> int | None:
    if not cells:
        return None
    try:
        return int(cells[0])
    except ValueError as error:
        raise InputError(f"{where}: {name} {cells[0]!r:.40} is no whole number: correct the line") from error
