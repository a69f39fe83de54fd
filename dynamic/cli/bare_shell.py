"""The shell of an installation without the extra `cli`: `doctor`, and one line for every other command."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dynamic.cli.doctor import examine
from dynamic.extras import remedy


def main(arguments: Sequence[str]) -> int:
    """Run `doctor`, or print what the command needs.

    Args:
        arguments: The arguments after `python -m dynamic`.

    Returns:
        The exit code.
    """
    if list(arguments[:1]) != ["doctor"]:
        command = " ".join(["python -m dynamic", *arguments[:1]])
        print(f"error: {remedy('typer', command)} (doctor alone runs without it)", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser("python -m dynamic doctor")
    parser.add_argument("shelf", nargs="?", type=Path, help="the bundle's folder, to be checked too")
    parser.add_argument("--root", type=Path, default=Path("/"), help="where the system's files lie")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments[1:])
    text, code = examine(options.shelf, options.json, options.root)
    try:
        print(text, flush=True)
    except BrokenPipeError:  # `doctor | head` has read enough. Python flushes once more at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code
