"""README.md and docs/: Python blocks run, printed output is real, links lead somewhere, figures stand in results.

The blocks of a page run one after the other, in names that `tests/support/page_names.py` lists. A block may be marked
in an HTML comment before it:

- `<!-- output -->`: a block of text that the Python block before it prints. Numbers and names in quotes may differ.
- `<!-- compiled only: REASON -->`: the Python block is compiled and not run.
"""

import contextlib
import io
import re
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from pathlib import Path
from typing import Any

import pytest
from support.page_names import namespace
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = 8  # blocks in all: a camera, a server that does not end, another machine
COMPILED = re.compile(r"<!-- compiled only: \S[^>]*-->\s*\Z")
OUTPUT = re.compile(r"<!-- output -->\s*\Z")


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Page:
    """The blocks of one page, which run in its namespace."""

    def __init__(self, path: Path, names: dict[str, Any]) -> None:
        self.printed = ""
        parsers = [PythonCodeBlockParser(), CodeBlockParser("text", self.compare)]
        self.document = Sybil(parsers=parsers, path=str(ROOT)).parse(path)
        self.document.namespace.update(names)

    def run(self) -> None:
        """Run every block in its order."""
        for example in self.document.examples():
            if example.region.evaluator == self.compare:
                example.evaluate()
            elif COMPILED.search(example.document.text[: example.region.start]):
                compile(str(example.parsed), example.path, "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT)
            else:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    example.evaluate()
                self.printed = printed.getvalue()

    def compare(self, example: Example) -> None:
        """Compare a block that is marked as output with what the Python block before it printed."""
        if OUTPUT.search(example.document.text[: example.region.start]):
            assert pattern(example.parsed) == pattern(self.printed), self.printed


def pattern(text: str) -> str:
    """A text without its numbers, names in quotes, and spaces."""
    text = re.sub(r"'[^']*'", "NAME", text)
    return " ".join(re.sub(r"\b\d+(\.\d+)?(e-?\d+)?\b", "N", text).split())


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.mark.parametrize("path", [path for path in PAGES if "```python" in path.read_text("utf-8")], ids=page_name)
def test_the_python_of_a_page_runs(path: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Page(path, namespace(shared, tmp_path)).run()
