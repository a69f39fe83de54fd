"""Names say what a value is, not how the code came by it, and no file imports private names of another."""

import ast
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTICIPLES = {"found", "made", "known", "told", "kept", "seen", "given"}
OURS = ("dynamic", "policies", "models", "benchmarks", "examples", "tests", "support")
LIBRARY = sorted(path for room in OURS[:3] for path in (ROOT / room).rglob("*.py"))
EVERY_FILE = sorted(path for room in OURS[:6] for path in (ROOT / room).rglob("*.py"))


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """The line and the name of everything that a file names: variables, attributes, arguments, functions, classes."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store(), lineno=line) | ast.arg(arg=name, lineno=line):
                yield line, name
            case ast.Attribute(attr=name, ctx=ast.Store(), lineno=line):
                yield line, name
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                yield node.lineno, node.name
            case ast.ExceptHandler(name=str(name), lineno=line) | ast.MatchAs(name=str(name), lineno=line):
                yield line, name
            case ast.alias(asname=str(name), lineno=line):
                yield line, name


def participles(source: str) -> list[str]:
    """Each name that is a bare participle, with its line."""
    return [f"{line}: {name}" for line, name in sorted(names(ast.parse(source))) if name.strip("_") in PARTICIPLES]


def by_file(paths: Sequence[Path], check: Callable[[str], list[str]]) -> dict[str, list[str]]:
    """What a check reports of each file, without files of which it reports nothing."""
    reports = {path.relative_to(ROOT).as_posix(): check(path.read_text(encoding="utf-8")) for path in paths}
    return {name: report for name, report in reports.items() if report}


def test_no_name_is_a_participle() -> None:
    assert by_file(LIBRARY, participles) == {}


def test_every_kind_of_name_is_noticed() -> None:
    source = "def made(told):\n    self._kept = found = [seen for seen in told]\n    found_rows = 1\n"
    assert participles(source) == ["1: made", "1: told", "2: _kept", "2: found", "2: seen"]


def private_imports(source: str) -> list[str]:
    """Each private name that is imported from another file of this project, with its line."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.module]
    ours = [node for node in imports if (node.module or "").partition(".")[0] in OURS]
    return [
        f"{node.lineno}: {alias.name}"
        for node in ours
        for alias in node.names
        if alias.name.startswith("_") and not alias.name.startswith("__")
    ]


def test_no_private_name_is_imported() -> None:
    assert by_file(EVERY_FILE, private_imports) == {}


def test_private_imports_are_noticed() -> None:
    source = "from dynamic.x import _a, b\nfrom dynamic import __version__\nfrom torch.utils import _pytree\n"
    assert private_imports(source) == ["1: _a"]
