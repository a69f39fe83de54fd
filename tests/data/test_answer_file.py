"""Answers on disk: what a file may hold, and what is refused."""

from pathlib import Path

import pytest

from dynamic.data.answer_file import AnswerFile
from dynamic.policies.errors import CorruptError, InputError


def test_answers_are_on_disk_before_the_next_question(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    AnswerFile(path, 10, 3).add({4: 2, 7: 0})
    assert path.read_text() == "row,label\n4,2\n7,0\n"
    again = AnswerFile(path, 10, 3)
    assert again.labels == {4: 2, 7: 0}
    again.add({1: 1})
    assert AnswerFile(path, 10, 3).labels == {4: 2, 7: 0, 1: 1}
    assert [p.name for p in tmp_path.iterdir()] == ["labels.csv"]


def test_questions_are_rows_without_a_label(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    store = AnswerFile(path, 10, 3)
    store.ask([5, 6])
    assert path.read_text() == "row,label\n5,\n6,\n"
    path.write_text("row,label\n5,1\n6,\n")
    filled = AnswerFile(path, 10, 3)
    assert (filled.labels, filled.questions) == ({5: 1}, [6])
    filled.ask([6, 5, 9])
    assert filled.questions == [6, 9]


def test_a_spreadsheet_may_add_spaces_a_mark_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffrow, label\n 5 , 1 \n\n6,0,a remark\n", encoding="utf-8")
    assert AnswerFile(path, 10, 3).labels == {5: 1, 6: 0}


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    store = AnswerFile(None, 10, 3)
    store.add({1: 2})
    assert store.labels == {1: 2}
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("row,label\n10,1\n", "row 10 is none of the 10 inputs: use other records"),
        ("row,label\n-1,1\n", "row -1 is none"),
        ("row,label\n3,3\n", "line 2: label 3 of row 3 is none of 3 classes: give one from 0 to 2"),
        ("row,label\n3,cat\n", "label 'cat' is no whole number"),
        ("row,label\nx,1\n", "row 'x' is no whole number"),
        ("row,label\n3,1\n3,2\n", "row 3 has label 2, and it had 1 before.* decide on one label"),
    ],
)
def test_lines_that_are_wrong(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        AnswerFile(path, 10, 3)


@pytest.mark.parametrize("content", [b"", b"label,row\n1,1\n", b"\xff\xfe\x00", b"PK\x03\x04"])
def test_files_that_are_something_else(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(CorruptError, match=r"labels\.csv does not"):
        AnswerFile(path, 10, 3)


def test_an_answer_that_contradicts_an_earlier_one(tmp_path: Path) -> None:
    store = AnswerFile(tmp_path / "labels.csv", 10, 3)
    store.add({1: 2})
    with pytest.raises(InputError, match="row 1 has label 0, and it had 2 before"):
        store.add({1: 0})
    assert AnswerFile(tmp_path / "labels.csv", 10, 3).labels == {1: 2}


DRAW = {"inputs": 10, "targets": [0.02, 0.05]}


def test_the_draw_is_kept_beside_the_answers(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    file = AnswerFile(path, 10, 4)
    assert file.draw is None
    file.keep_draw(DRAW)
    file.add({1: 2})
    again = AnswerFile(path, 10, 4)
    assert (again.draw, again.labels) == (DRAW, {1: 2})
    assert path.read_text() == "row,label\n1,2\n", "for a person"


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_draw_that_does_not_read(tmp_path: Path, text: str) -> None:
    path = tmp_path / "labels.csv"
    AnswerFile(path, 10, 4).keep_draw(DRAW)
    (tmp_path / "labels.csv.draw.json").write_text(text)
    with pytest.raises(CorruptError, match=r"labels.csv.draw.json does not read .* restore it"):
        AnswerFile(path, 10, 4)
