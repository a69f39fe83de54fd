"""docs/reference/command-line.md lists every command with its options, as they are.

`python tests/project/test_command_page.py` writes the tables again.
"""

import re
import sys
from pathlib import Path
from typing import Any

import typer

from dynamic.cli import app

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "command-line.md"
TABLE = re.compile(r"(<!-- options of (\w+) -->\n\n)(?:\|.*\n)*")


def commands() -> dict[str, Any]:
    return typer.main.get_command(app.app).commands  # type: ignore[attr-defined]


def table(command: Any) -> str:
    """The arguments and options of a command, with their defaults."""
    rows = ["| option | meaning |", "| --- | --- |"]
    for parameter in command.params:
        is_option = parameter.param_type_name == "option"
        names = ", ".join(f"`{name}`" for name in (parameter.opts if is_option else [parameter.name.upper()]))
        default = parameter.default if is_option and parameter.default not in (None, False) else None
        end = " Required." if is_option and parameter.required else "" if default is None else f" Default: `{default}`."
        rows.append(f"| {names} | {parameter.help.replace('<', '&lt;')}{end} |")
    return "\n".join(rows) + "\n"


def with_tables(text: str) -> str:
    known = commands()
    return TABLE.sub(lambda match: match[1] + table(known[match[2]]), text)


def test_the_page_lists_every_command_and_option() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert [match[2] for match in TABLE.finditer(text)] == list(commands())
    assert text == with_tables(text), f"run python {Path(__file__).name}"


if __name__ == "__main__":
    sys.exit(not PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8"))
