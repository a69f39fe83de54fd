"""`dynamic init`: look at the data, ask at most five questions, write `dynamic.toml`. Imports no torch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamic.cli.project.commands import add
from dynamic.cli.project.data_survey import Survey, data_in, networks_in, survey, tokenizer_for
from dynamic.cli.project.saved_facts import SavedFacts, saved_facts
from dynamic.cli.project.settings_file import NAME
from dynamic.cli.sources.spelled_numbers import not_negative
from dynamic.policies.errors import InputError, SettingError

_ENOUGH = 200  # held-out examples below which few points are certified


def init(
    data: Annotated[str | None, typer.Argument(help="The data by their name. [what this folder holds]")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The file to write.")] = Path(NAME),
    network: Annotated[
        list[str] | None, typer.Option(help="A network by its name, once for each, the smallest first.")
    ] = None,
    exits: Annotated[int | None, typer.Option(help="Exits to add to the last network. 0: none.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Accuracy that may be lost, 0.01 for one point.")] = None,
    latency_ms: Annotated[float | None, typer.Option(help="Milliseconds that a request may take. 0: no limit.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing: take what is found.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file.")] = False,
) -> None:
    """Look at the data, ask at most five questions, and write a file of settings for all commands.

    What is given as an option is not asked.
    """
    if out.exists() and not force:
        raise InputError(f"{out} exists: give --force to replace it, or another file with -o")
    ask = _Asking(silent=yes)
    here = data if data is not None else data_in(Path())
    chosen = here if data is not None else ask.text("Data: a folder of class folders, or a table of texts", here)
    if chosen is None:
        raise InputError(f"{Path().resolve()} holds no data set: name one, dynamic init photos/")
    facts = survey(chosen)
    typer.echo(str(facts))
    names = (
        list(network or ())
        or ask.text(
            "Networks, the smallest first, with spaces between", " ".join(networks_in(Path(), facts.kind))
        ).split()
    )
    last = saved_facts(names[-1]) if names else SavedFacts()
    count = int(ask.number("Exits to add to the last network (0: none)", last.exits_to_add, exits, integer=True))
    drop = ask.number("Accuracy that may be lost", 0.01, max_drop)
    limit_ms = ask.number("Milliseconds that a request may take (0: no limit)", 0.0, latency_ms)
    if not 0 <= drop < 1:
        raise SettingError(f"max_drop={drop:g} must lie from 0 to 1: 0.01 is one point of accuracy")
    if limit_ms < 0:
        raise SettingError(f"latency_ms={limit_ms:g} must be a positive number, or 0 for no limit")
    not_negative("--exits", count)
    tokenizer = None if last.has_tokenizer else tokenizer_for(facts)
    out.write_text(_content(facts, names, count, drop, limit_ms, tokenizer), encoding="utf-8")
    option = "" if out == Path(NAME) else f" -c {out}"
    typer.echo(f"wrote {out}\nnext: dynamic build{option or f' -c {out}'}")


class _Asking:
    """Questions on the terminal, with what is taken where there is no answer."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent

    def text(self, question: str, usual: str | None) -> Any:
        """The answer in words. None: there is nothing usual, and nothing is asked."""
        if self._silent:
            return usual
        return typer.prompt(question, default=usual)

    def number(self, question: str, usual: float, option: float | None, *, integer: bool = False) -> float:
        """The answer as a number: that of the option where it is there."""
        if option is not None or self._silent:
            return usual if option is None else option
        kind: Callable[[Any], Any] = int if integer else float
        return float(typer.prompt(question, default=kind(usual), type=kind))


def _content(
    facts: Survey, networks: list[str], exits: int, drop: float, limit_ms: float, tokenizer: str | None
) -> str:
    """The file, with a line of explanation for each key."""
    quoted = ", ".join(json.dumps(name, ensure_ascii=False) for name in networks)
    few = f"# {facts.count} examples certify few points: some hundred more help\n" if 0 < facts.count < _ENOUGH else ""
    found_splits = {"split": facts.split, "train_split": facts.train_split}
    splits = [f"{key} = {json.dumps(name)}" for key, name in found_splits.items() if name is not None]
    lines = [
        "# Settings of `dynamic COMMAND -c dynamic.toml`. Options of the command line win.",
        "# A key here is for every command that has such an option, one in a table for that command alone.",
        "",
        f"# {facts}",
        f"{few}data = {json.dumps(facts.data, ensure_ascii=False)}",
        *([f"tokenizer = {json.dumps(tokenizer, ensure_ascii=False)}"] if tokenizer else []),
        "",
        "# the folder of the bundle, for the commands that read one",
        'shelf = "shelf"',
        "",
        "[build]",
        f"network = [{quoted}]  # the smallest first",
        *splits,
        'out = "shelf"',
        *([f"exits = {exits}  # at most: fewer where the network has fewer places"] if exits else []),
        "",
        "[fit]",
        f"network = {json.dumps(networks[-1], ensure_ascii=False)}",
        *splits,
        "",
        "[run]",
        f"max_drop = {drop:g}",
        *([f"latency_ms = {limit_ms:g}"] if limit_ms else []),
        "",
        "[serve]",
        f"max_drop = {drop:g}",
        *([f"latency_ms = {limit_ms:g}"] if limit_ms else []),
    ]
    return "\n".join(lines) + "\n"


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, init, example="dynamic init photos/ --yes", config=False)
