"""`python -m dynamic COMMAND`, and the command `dynamic`. `dynamic --help` lists all."""

import sys

try:
    import typer as typer
except ModuleNotFoundError as error:  # an extra of its own: devices run without a shell
    if error.name != "typer":
        raise
    from dynamic.cli.bare_shell import main as bare_main

    sys.exit(bare_main(sys.argv[1:]))

from dynamic.cli.app import main as main

if __name__ == "__main__":
    main()
