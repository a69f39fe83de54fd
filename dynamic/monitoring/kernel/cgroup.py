"""The limits of a container: the control groups of this process, v1, v2, or both on one machine."""

from dataclasses import dataclass, field
from pathlib import Path

from dynamic.monitoring.contract import UnknownLimitError
from dynamic.monitoring.kernel.kernel_files import is_there, word

# files that container runtimes create in a container
_MARKS = (
    ".dockerenv",
    "run/.containerenv",  # podman
    "run/systemd/container",  # LXC, systemd-nspawn
    "dev/.lxc-boot-id",
    "dev/lxd/sock",
    "var/run/secrets/kubernetes.io",
    "run/secrets/kubernetes.io",
)


@dataclass(frozen=True)
class Hierarchy:
    """The folders of one controller: the group of this process first, then every visible group above it.

    Args:
        version: 1 or 2.
        levels: The folders.
        doubt: Why these may not be the groups of this process. None where they are.
    """

    version: int
    levels: tuple[Path, ...]
    doubt: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class _Mount:
    root: str  # the group that is mounted
    point: str  # where
    version: int
    controllers: tuple[str, ...]  # of v1


def hierarchy(root: Path, controller: str | None) -> Hierarchy | None:
    """The groups of this process for a controller. Formats: cgroups(7), "/proc files", and proc_pid_mountinfo(5).

    Args:
        root: The file tree.
        controller: "memory", "cpu" and others. None: those of v2.

    Returns:
        The groups. None where there are none.

    Raises:
        UnknownLimitError: There are groups, or this is a container, and none can be seen.
        PermissionError: Files may not be read.
    """
    lines = (word(root / "proc/self/cgroup") or "").splitlines()
    groups = [parts for line in lines if len(parts := line.split(":", 2)) == 3]
    first = [path for _, names, path in groups if names and controller in names.split(",")]
    unified = [path for _, names, path in groups if not names]
    if not first and not unified:
        if controller is not None and not groups and (mark := container_mark(root)):
            raise _unknown(f"{mark} marks a container, and /proc/self/cgroup names no group")
        return None
    version, path = (1, first[0]) if first else (2, unified[0])
    mounts = [m for m in _mounts(root) if m.version == version and (version == 2 or controller in m.controllers)]
    if not mounts:
        mark = container_mark(root)
        if path == "/" and mark is None:
            return None
        where = f"in group {path}" if path != "/" else f"in a container ({mark})"
        raise _unknown(f"this process runs {where}, and no mount of control groups shows it")
    folders = [(_folder(root, mount, path), mount) for mount in mounts]
    # of several mounts, the one through which this process's group is seen
    folder, mount = next(
        ((folder, mount) for folder, mount in folders if folder is not None and _is_folder(folder)), (None, mounts[0])
    )
    top = root / mount.point.lstrip("/")
    doubt = None
    if folder is None:
        doubt = f"this process runs in group {path}, and {mount.point} does not show it (it shows {mount.root})"
        folder = _folder(root, mount, path) or top
    levels = [folder, *folder.parents]
    visible = tuple(level for level in levels[: levels.index(top) + 1] if _is_folder(level))
    if not visible:
        raise _unknown(f"this process runs in group {path}, and {mount.point} cannot be seen")
    return Hierarchy(version, visible, doubt)


def container_mark(root: Path) -> str | None:
    """The file that marks a container.

    Args:
        root: The file tree.

    Returns:
        Its path in the tree. None where there is none.
    """
    return next((f"/{mark}" for mark in _MARKS if is_there(root / mark)), None)


def undetermined(doubt: str) -> str:
    """A message on limits that cannot be determined, with the remedy.

    Args:
        doubt: The reason.

    Returns:
        The message.
    """
    return (
        f"limits of a container cannot be determined: {doubt}. Mount its control groups at /sys/fs/cgroup, or give "
        "Monitor(memory=function, cpu=function) and threads=... of the engine"
    )


def _unknown(doubt: str) -> UnknownLimitError:
    return UnknownLimitError(undetermined(doubt))


def _folder(root: Path, mount: _Mount, path: str) -> Path | None:
    """The folder of a group below a mount. None where it is not there."""
    below = _below(path, mount.root)
    return None if below is None else root / mount.point.lstrip("/") / below


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # forbidden: nothing can be read below it
        return False


def _below(path: str, top: str) -> str | None:
    """The path of a group from `top` down. None where the group is not below it."""
    if ".." in path.split("/"):  # of a group outside this process's namespace
        return None
    if top == "/":
        return path.strip("/")
    return path[len(top) :].strip("/") if path == top or path.startswith(f"{top}/") else None


def _mounts(root: Path) -> list[_Mount]:
    try:
        text = word(root / "proc/self/mountinfo")
    except PermissionError:
        text = None
    if text is None:
        return _usual(root)
    mounts = []
    for line in text.splitlines():
        before, separator, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if separator and len(left) >= 5 and len(right) >= 3 and right[0] in ("cgroup", "cgroup2"):
            version = 2 if right[0] == "cgroup2" else 1
            mounts.append(_Mount(_plain(left[3]), _plain(left[4]), version, tuple(right[2].split(","))))
    return mounts


def _usual(root: Path) -> list[_Mount]:
    """The mounts of nearly every system."""
    top = root / "sys/fs/cgroup"
    v2 = [point for point in (top, top / "unified") if (point / "cgroup.controllers").exists()]
    v1 = [point for point in sorted(top.glob("*")) if point.is_dir() and top not in v2]
    return [
        *(_Mount("/", f"/{point.relative_to(root)}", 2, ()) for point in v2),
        *(_Mount("/", f"/{point.relative_to(root)}", 1, tuple(point.name.split(","))) for point in v1),
    ]


def _plain(escaped: str) -> str:
    r"""A path of mountinfo without its escapes, such as \040 for a blank."""
    for code in ("040", "011", "012", "134"):
        escaped = escaped.replace(f"\\{code}", chr(int(code, 8)))
    return escaped
