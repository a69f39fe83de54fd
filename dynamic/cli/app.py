"""The shell commands: one file for each group, and what is common to all.

Commands import torch only where they need it, and only when they are called. The others run where there is none.
"""

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import dynamic
from dynamic.cli import build_commands, device_commands, run_commands, simulate_commands
from dynamic.cli.project import init_command
from dynamic.cli.serving import serve_commands
from dynamic.cli.sharing import slim_command
from dynamic.cli.training import compress_command, training_commands
from dynamic.errors import DynamicError, SettingError
from dynamic.extras import with_remedy

app = typer.Typer(
    help="Adaptive inference: spend on each input what it needs and no more than the device can spare.",
    epilog="\b\nFrom a network and pictures to a deployment:\n"
    "  dynamic build torchvision:resnet18 photos/ --exits 3 -o shelf\n"
    "  dynamic profile shelf\n"
    "  dynamic run shelf new_photos/ --latency-ms 20\n\n"
    "Exit codes: 0 done, 1 an error, 2 a setting or option out of range, 130 after Ctrl-C. doctor: 1 where the bundle "
    "does not answer here.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    A user's mistake prints one line. The exit code is 2 for a setting out of range or an option that does not exist,
    130 after Ctrl-C, and 1 for everything else. A full or read-only disk is no bug and prints a line too.

    Args:
        arguments: The arguments. None: those of the process.
    """
    profiling = logging.getLogger("dynamic.profiling.stage_profile")
    level = profiling.level
    profiling.setLevel(logging.ERROR)  # a command prints the doubts of a profile with its figures
    lines = logging.StreamHandler()  # of progress, where there is no terminal for a bar
    steps = logging.getLogger("dynamic.progress")
    steps_level = steps.level
    steps.setLevel(logging.INFO)
    steps.addHandler(lines)
    try:
        app(arguments)
    except (DynamicError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingError) else 1)
    except ModuleNotFoundError as error:
        line = str(with_remedy(error, "this command"))
        if "pip install" not in line:  # of another package
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    finally:
        profiling.setLevel(level)
        steps.setLevel(steps_level)
        steps.removeHandler(lines)


for group in (
    init_command,
    training_commands,
    compress_command,
    build_commands,
    run_commands,
    serve_commands,
    simulate_commands,
    device_commands,
    slim_command,
):
    group.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dynamic-inference {dynamic.__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""
