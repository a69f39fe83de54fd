"""Nothing is imported from the working folder: a bundle that was downloaded may hold a `psutil.py`.

`python -m dynamic` puts the working folder first on the path, and an empty part of PYTHONPATH puts it further behind.
It is removed before anything else is imported. Other ways to start Python (`python -m pytest`, a notebook) keep the
path that the user chose.
"""

# nothing else is imported here: the working folder could answer it
import os
import sys

PACKAGE = "dynamic"
_SCRIPTS = ("dynamic", "dynamic.exe", "dynamic-script.py")
# of a child: its path, then the module, are the first arguments
_CHILD = (
    "import os, runpy, sys; sys.path[:] = sys.argv.pop(1).split(os.pathsep); "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def leave_working_folder() -> None:
    """Remove the working folder from the path where a command of this package runs.

    `python -m` puts it first. An empty part of PYTHONPATH, as in `PYTHONPATH=$UNSET:/opt/lib`, puts it there too.
    """
    is_module = _runs_own_module()
    if is_module and not sys.flags.safe_path and sys.path and sys.path[0] == os.getcwd():
        del sys.path[0]
    if sys.flags.ignore_environment:
        return
    if is_module:
        _leave_empty_parts(0)
    elif _runs_own_script():
        _leave_empty_parts(0 if sys.flags.safe_path else 1)


def _runs_own_module() -> bool:
    """Whether `python -m` runs a module of this package."""
    if sys.argv[:1] != ["-m"]:  # "-m": Python looks for the module right now
        return False
    word = sys.orig_argv[-len(sys.argv)] if len(sys.orig_argv) >= len(sys.argv) else ""
    module = word.partition("m")[2] if word.startswith("-") else word  # `-mdynamic` is one word
    return module.partition(".")[0] == PACKAGE


def _runs_own_script() -> bool:
    """Whether the command `dynamic` of the installation runs."""
    return bool(sys.argv) and os.path.basename(sys.argv[0]) in _SCRIPTS


def _leave_empty_parts(start: int) -> None:
    """Take the working folder off the path from an entry on, where only an empty part of PYTHONPATH means it.

    The first entry is the folder of the script, where there is one.
    """
    parts = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if len(parts) < 2 or all(parts):  # a variable that is empty as a whole means nothing
        return
    working = os.getcwd()
    if working not in [os.path.abspath(part) for part in parts if part]:
        sys.path[start:] = [entry for entry in sys.path[start:] if entry != working]


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
