"""Objects as text: lines of at most 80 columns that hold what matters."""

from dataclasses import dataclass, field

from dynamic.policies.words.short_repr import fields_repr, short_repr, wrapped
from dynamic.policies.words.tables import table


@dataclass(frozen=True)
class Thing:
    size: int = 1
    exact: float = 1.0
    names: tuple[str, ...] = ()
    hidden: int = field(default=0, repr=False)

    def __repr__(self) -> str:
        return fields_repr(self)


def test_only_what_differs_from_the_defaults_is_written() -> None:
    assert repr(Thing()) == "Thing()"
    assert repr(Thing(2, names=("a",), hidden=3)) == "Thing(size=2, names=('a',))"
    assert repr(Thing(True)) == "Thing(size=True)"  # equal to 1, and not the same


def test_long_ones_are_broken_at_spaces() -> None:
    text = short_repr("Thing", [f"part{i}=12345" for i in range(12)])
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith("    ")
    assert " ".join(line.strip() for line in lines) == f"Thing({', '.join(f'part{i}=12345' for i in range(12))})"


def test_wrapped_lines_keep_their_words_and_their_breaks() -> None:
    text = wrapped("one two three\n\n  four five", "    ", width=12)
    assert text == "one two\n    three\n\n  four five"


def test_a_table_breaks_its_last_column() -> None:
    rows = [("a", "1", " ".join(["100%"] * 20)), ("long name", "22", "5%")]
    text = table(("point", "n", "exits"), rows, text_last=True)
    first, second, third, last = text.splitlines()
    assert (first, last) == ("point       n  exits", "long name  22  5%")
    assert second.startswith("a           1  100% 100%")
    assert third == " " * 15 + " ".join(["100%"] * (20 - second.count("100%")))
    assert max(map(len, text.splitlines())) <= 80
