"""Sentences are short and hold no semicolon: in docstrings, README and docs (STYLE, section Language).

`python tests/project/test_prose.py [PART OF A PATH]` lists the sentences that are too long, and the semicolons.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LONGEST = 30  # words of a sentence
MOST_LONG = 0.01  # of all sentences
MOST_SEMICOLONS = 1.0  # in 1,000 words
ROOMS = ("dynamic", "policies", "models")


def docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                yield doc


def prose(text: str) -> str:
    """Text without code blocks, examples, tables, headings and links. Inline code becomes one word."""
    text = re.sub(r"```.*?```", "\n\n", text, flags=re.DOTALL)
    text = re.sub(r"^Examples?:.*?(?=^\S|\Z)", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^\s*>>>.*(?:\n(?!\s*$).*)*", "", text, flags=re.MULTILINE)
    text = re.sub(r"``[^`]*``|`[^`]*`", "code", text)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    kept = []
    for line in text.splitlines():
        bare = line.strip()
        ends = bare.startswith(("|", "#", "├", "└", "│", "---", ":::")) or re.match(r"[\w ]+:$", bare)
        kept.append("\n\n" if ends else line)
    return "\n".join(kept)


def sentences(text: str) -> Iterator[str]:
    """The sentences of a text. A paragraph, a list item and an entry of Args end one."""
    blocks = re.split(r"\n\s*\n|\n(?=\s*[-*] )|\n(?=\s*\d+\. )|\n(?=\s*\*{0,2}\w+(?:, \*{0,2}\w+)*: )", prose(text))
    for block in blocks:
        one = " ".join(block.split())
        yield from (part for part in re.split(r"(?<=[.!?:])\s+(?=[A-Z\"'(`*c])", one) if part)


def counted(texts: Iterator[str]) -> tuple[list[str], list[str], int, int]:
    """Sentences that are too long, those with a semicolon, and how many sentences and words there are."""
    long, semicolons, count, words = [], [], 0, 0
    for text in texts:
        for sentence in sentences(text):
            size = len(sentence.split())
            count, words = count + 1, words + size
            if size > LONGEST:
                long.append(sentence)
            if ";" in sentence:
                semicolons.append(sentence)
    return long, semicolons, count, words


def files(name: str) -> list[Path]:
    if name == "pages":
        return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return sorted((ROOT / name).rglob("*.py"))


def texts(path: Path) -> Iterator[str]:
    if path.suffix == ".py":
        yield from docstrings(path)
    else:
        yield path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*ROOMS, "pages"])
def test_sentences_are_short_and_hold_no_semicolon(name: str) -> None:
    long, semicolons, count, words = counted(text for path in files(name) for text in texts(path))
    assert words > 1000
    assert (len(long) / count <= MOST_LONG, len(semicolons) / words * 1000 <= MOST_SEMICOLONS) == (True, True), (
        f"{len(long)} of {count} sentences have more than {LONGEST} words, {len(semicolons)} hold a semicolon. "
        f"python {Path(__file__).relative_to(ROOT)} lists them"
    )


def test_the_count_sees_what_it_should() -> None:
    text = "One two; three.\n\nArgs:\n    name: A word. " + "word " * 31 + ".\n\nExample:\n    >>> a; b\n"
    long, semicolons, count, _ = counted(iter([text]))
    assert (len(long), semicolons, count) == (1, ["One two; three."], 3)


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    total = [0, 0, 0, 0]
    for path in [path for name in (*ROOMS, "pages") for path in files(name) if part in str(path)]:
        long, semicolons, count, words = counted(texts(path))
        total = [a + b for a, b in zip(total, (len(long), len(semicolons), count, words), strict=True)]
        for sentence in dict.fromkeys(long + semicolons):
            print(f"{path.relative_to(ROOT)}: {sentence}")
    print(f"{total[0]} of {total[2]} sentences are too long, {total[1]} hold a semicolon, {total[3]} words")
