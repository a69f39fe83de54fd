"""How a command is added: with its example, and with the option -c for a file of settings."""

import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dynamic.cli.project.settings_file import defaults_for, read_settings
from dynamic.cli.project.shelf_argument import ShelfCommand

_BESIDE = ("config", "help", "list_devices")  # no settings of a project


def _read(context: typer.Context, value: Path | None) -> None:
    """Take the defaults of the command from a file."""
    if value is None or context.resilient_parsing:
        return
    above = context.parent
    commands: dict[str, Any] = {} if above is None else above.command.commands  # type: ignore[attr-defined]
    options = {
        name: {p.name: bool(p.multiple or p.nargs == -1) for p in command.params if p.name not in _BESIDE}
        for name, command in ((name, _with_multiple(command)) for name, command in commands.items())
    }
    context.default_map = defaults_for(read_settings(value), str(context.info_name), options, value)


def _with_multiple(command: Any) -> Any:
    """A command whose arguments have `multiple` too."""
    for parameter in command.params:
        if not hasattr(parameter, "multiple"):
            parameter.multiple = False
    return command


Config = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", is_eager=True, callback=_read, help="A file of settings, dynamic.toml. See `dynamic init`."
    ),
]


def add(app: typer.Typer, function: Callable[..., Any], *, example: str, config: bool = True) -> None:
    """Add a command.

    Args:
        app: The commands.
        function: Its function.
        example: An invocation, which its help shows.
        config: Whether it has the option -c.
    """
    epilog = f"\b\nExample:\n  {example}"
    if not config:
        app.command(epilog=epilog, cls=ShelfCommand)(function)
        return

    @functools.wraps(function)
    def run(**options: Any) -> None:
        options.pop("config")
        function(**options)

    own = inspect.signature(function, eval_str=True)
    beside = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Config)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), beside])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, "config": Config}
    app.command(epilog=epilog, cls=ShelfCommand)(run)


def is_of_file(context: typer.Context, option: str) -> bool:
    """Whether the value of an option, by the name of its parameter, stands in the file of settings."""
    source = context.get_parameter_source(option)
    return source is not None and source.name == "DEFAULT_MAP"


def note(text: str) -> None:
    """Print a line for the user that is no result."""
    print(text, file=sys.stderr)
