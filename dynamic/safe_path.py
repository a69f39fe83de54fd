"""Nothing is imported from the working folder: a bundle that was downloaded may hold a `psutil.py`.

`python -m dynamic` puts the working folder first on the path. It is removed before anything else is imported. Other
ways to start Python (`python -m pytest`, a notebook) keep the path that the user chose.
"""

# nothing else is imported here: the working folder could answer it
import os
import sys

PACKAGE = "dynamic"
# of a child: its path, then the module, are the first arguments
_CHILD = (
    "import os, runpy, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def leave_working_folder() -> None:
    """Remove the working folder from the path where `python -m` runs a module of this package."""
    if sys.argv[:1] != ["-m"] or sys.flags.safe_path:  # "-m": Python looks for the module right now
        return
    word = sys.orig_argv[-len(sys.argv)] if len(sys.orig_argv) >= len(sys.argv) else ""
    module = word.partition("m")[2] if word.startswith("-") else word  # `-mdynamic` is one word
    if module.partition(".")[0] == PACKAGE and sys.path and sys.path[0] == os.getcwd():
        del sys.path[0]


def child_command(module: str, *arguments: str, untrusted: tuple[str, ...] = ()) -> list[str]:
    """The command of a child process that runs a module of this package with the imports of this process.

    Args:
        module: The module.
        arguments: Its arguments.
        untrusted: Folders of data. Nothing is imported from them or from the working folder.

    Returns:
        The command.
    """
    # -I: neither the working folder nor PYTHONPATH nor PYTHONSTARTUP is looked at, nor `sitecustomize` found there
    return [sys.executable, "-I", "-c", _CHILD, os.pathsep.join(child_path(untrusted)), module, *arguments]


def child_path(untrusted: tuple[str, ...] = ()) -> list[str]:
    """The path of this process without the working folder and folders of data.

    Args:
        untrusted: Folders to exclude with everything in them, such as the bundle that is measured.

    Returns:
        Absolute folders and zips. The folder of this package is always among them.
    """
    own = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    working, data = os.path.realpath(os.getcwd()), [os.path.realpath(folder) for folder in untrusted]
    path = []
    for entry in dict.fromkeys(os.path.abspath(entry) for entry in sys.path if entry):
        place = os.path.realpath(entry)
        within = any(place == folder or place.startswith(folder + os.sep) for folder in data)
        if entry == own or not (place == working or within):
            path.append(entry)
    return path if own in path else [*path, own]  # an editable install is on no path


leave_working_folder()
