"""Commands that take the bundle from the file of settings, and that speak of their own options."""

import logging
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from dynamic.cli.project.shell_words import ShellWarnings, in_shell_words, option_names
from dynamic.errors import DynamicError

SHELF = "shelf"


class ShelfCommand(TyperCommand):
    """A command whose first argument may stand in the file of settings: `run -c dynamic.toml photos`.

    Errors and warnings name options of the command where the library names arguments of its functions.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        options = option_names(self.params)
        warnings, logger = ShellWarnings(options), logging.getLogger("dynamic")
        logger.addHandler(warnings)
        try:
            return super().invoke(ctx)
        except DynamicError as error:
            error.args = (in_shell_words(str(error), options), *error.args[1:])
            raise
        finally:
            logger.removeHandler(warnings)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse. Where a required argument is missing, the bundle of the file goes in front of the others."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            shelf = (ctx.default_map or {}).get(SHELF)
            missing = error.param is not None and error.param.param_type_name == "argument" and error.param.required
            if shelf is None or not missing or any(Path(one) == Path(shelf) for one in words):
                raise  # whoever names the bundle itself forgot the other argument
            ctx.params.clear()
            try:
                return super().parse_args(ctx, [shelf, *words])
            except typer.BadParameter:
                raise error from None
