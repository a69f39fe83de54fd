"""Public functions, classes and methods explain every parameter, say what they raise, and show an example that runs.

`python tests/project/test_docstrings.py [PART OF A NAME]` lists what is missing.
"""

import doctest
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1]))  # run as a script

from support.pages.doc_examples import namespace
from support.pages.public_names import Public, public

NAMES = list(public())
SECTION = re.compile(r"^(Args|Attributes|Returns|Yields|Raises|Example|Examples):[ \t]*$", re.MULTILINE)


def sections(doc: str) -> dict[str, str]:
    """The Google sections of a docstring: name -> text."""
    found = list(SECTION.finditer(doc))
    ends = [*(match.start() for match in found), len(doc)][1:]
    return {match[1]: doc[match.end() : end] for match, end in zip(found, ends, strict=True)}


def entries(text: str) -> set[str]:
    """The names that an Args section explains: `name: words`, or `first, second: words`, four spaces in."""
    names = set()
    for line in text.splitlines():
        match = re.match(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*): \S", line)
        if match:
            names |= {name.strip().lstrip("*") for name in match[1].split(",")}
    return names


def missing(one: Public) -> list[str]:
    """What a docstring lacks. Properties and methods without parameters need their summary line alone."""
    doc, lacks = one.doc, []
    parts = sections(doc)
    if not doc.strip() or not doc.splitlines()[0].rstrip().endswith((".", "?", ":")):
        lacks.append("a summary line that ends with a full stop")
    explained = entries(parts.get("Args", "")) | entries(parts.get("Attributes", ""))
    lacks += [f"{name} in Args" for name in one.parameters if name not in explained]
    lacks += [
        f"no {name!r} among its parameters" for name in sorted(entries(parts.get("Args", "")) - {*one.parameters})
    ]
    is_error = isinstance(one.value, type) and issubclass(one.value, Exception | Warning)
    whole = (one.owner is None or one.parameters) and not is_error
    if whole and not isinstance(one.value, type) and "Raises" not in parts:
        lacks.append("Raises")
    if whole and ">>>" not in parts.get("Example", "") + parts.get("Examples", ""):
        lacks.append("Example")
    if one.owner is None and ">>>" in doc and "+SKIP" in doc:
        lacks.append("an Example that runs")
    return lacks


@pytest.mark.parametrize("one", NAMES, ids=lambda one: one.name)
def test_a_docstring_is_whole(one: Public) -> None:
    assert missing(one) == []


@pytest.mark.parametrize("one", [one for one in NAMES if ">>>" in one.doc], ids=lambda one: one.name)
def test_the_example_runs(
    one: Public, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, folder = namespace(tmp_path_factory)
    monkeypatch.chdir(folder)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    test = doctest.DocTestParser().get_doctest(one.doc, names, one.name, None, 0)
    output: list[str] = []
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=output.append)
    assert result.failed == 0, "".join(output)


if __name__ == "__main__":
    part = sys.argv[1] if len(sys.argv) > 1 else ""
    lines = [(one.name, missing(one)) for one in NAMES if part in one.name]
    for name, lacks in lines:
        if lacks:
            print(f"{name}: {'; '.join(lacks)}")
    print(f"{sum(not lacks for _, lacks in lines)} of {len(lines)} are whole")
