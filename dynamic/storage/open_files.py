"""The files of one version of a bundle, kept open: they can be read after another version took its place on the disk.

A file that is open stays whole when its folder is replaced or removed. Nothing on the disk says that it is still in
use, so that nothing is left there when this process is killed.
"""

import contextlib
import errno
import logging
import os
import stat
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dynamic.policies.errors import BundleError
from dynamic.storage.atomic_write import copy_file
from dynamic.storage.file_locks import process_identity
from dynamic.storage.json_files import MOST_BYTES
from dynamic.storage.regular_files import read_bytes
from dynamic.storage.temporary_files import TemporaryFolder
from dynamic.storage.versioned_folder import standing

try:
    import resource
except ImportError:  # Windows, where no files are held
    resource = None  # type: ignore[assignment]

_PIECE = 1 << 20  # bytes
_TOO_MANY = (errno.EMFILE, errno.ENFILE)
_SHARE = 0.5  # of the files that the process may open, for all bundles together
_owners: dict[int, object] = {}  # by descriptor: what opened it last

logger = logging.getLogger("dynamic")


class HeldFiles:
    """Open files of a bundle by name, and where the version that they belong to lies.

    Args:
        folder: The folder of the bundle.
        last: Name of the manifest.
        manifest: The manifest as it was read.
        descriptors: The open files.
        sizes: Bytes of every file, of those too that are not open.
    """

    def __init__(
        self, folder: Path, last: str, manifest: bytes, descriptors: Mapping[str, int], sizes: Mapping[str, int]
    ) -> None:
        self.folder, self._last, self._manifest, self._sizes = folder, last, manifest, dict(sizes)
        states = {name: os.fstat(descriptor) for name, descriptor in descriptors.items()}
        self._files = {name: (descriptors[name], state.st_dev, state.st_ino) for name, state in states.items()}
        self._owner = object()  # a descriptor that was closed by somebody else may be another bundle's by now
        _owners.update(dict.fromkeys(descriptors.values(), self._owner))
        weakref.finalize(self, _close, tuple(self._files.values()), self._owner, process_identity())

    @classmethod
    def of(cls, folder: Path, base: Path, last: str, names: Iterable[str]) -> "HeldFiles":
        """Open files of a bundle.

        Args:
            folder: The folder of the bundle.
            base: Where its content lies now (see `standing`).
            last: Name of the manifest.
            names: The files to keep open. None are kept where the process may not open so many.

        Returns:
            The open files.

        Raises:
            ValueError: One of them is a pipe or a device.
            OSError: A file cannot be opened.
        """
        names, descriptors = tuple(names), dict[str, int]()
        manifest = read_bytes(base / last, None, MOST_BYTES)
        sizes = {name: os.stat(base / name).st_size for name in names}
        try:
            if hasattr(os, "pread") and _has_room(
                folder, len(names)
            ):  # Windows replaces no folder whose files are open
                for name in names:
                    descriptors[name] = os.open(base / name, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hold it
                    if not stat.S_ISREG(os.fstat(descriptors[name]).st_mode):
                        raise ValueError(f"{name} in {folder} is no file")
        except (OSError, ValueError) as error:
            for descriptor in descriptors.values():
                os.close(descriptor)
            if not isinstance(error, OSError) or error.errno not in _TOO_MANY:
                raise
            descriptors = {}
        return cls(folder, last, manifest, descriptors, sizes)

    def place(self) -> Path | None:
        """Where this version lies. None where another took its place, or it was removed."""
        base = standing(self.folder, self._last)
        return base if self._is_in(base) else None

    def state(self) -> tuple[int, ...] | None:
        """What tells the folder that lies there now from one that takes its place. None where there is none."""
        return folder_state(standing(self.folder, self._last), self._last)

    @contextmanager
    def open_place(self) -> Iterator[Path | None]:
        """`place`, for writing: what is written stays with this version where another takes its place meanwhile.

        Yields:
            The folder, or None.
        """
        place = self.place()
        if place is None or not hasattr(os, "O_DIRECTORY"):
            yield place
            return
        try:
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | getattr(os, "O_PATH", 0))
        except OSError:  # it was replaced just now
            yield None
            return
        try:
            opened = Path(f"/proc/self/fd/{descriptor}")  # the folder itself, whatever its name is by now
            if not os.path.isdir(opened):  # a system without it
                yield place
            else:
                yield opened if self._is_in(opened) else None
        finally:
            os.close(descriptor)

    def _is_in(self, base: Path) -> bool:
        try:
            return read_bytes(base / self._last, None, MOST_BYTES) == self._manifest
        except (OSError, ValueError):
            return False

    def size(self, name: str) -> int:
        """Bytes of a file of this version, open or not."""
        return self._sizes[name]

    @property
    def manifest(self) -> bytes:
        """The manifest as it was read."""
        return self._manifest

    def holds(self, name: str) -> bool:
        """Whether a file is open. A daemon closes what it did not open itself."""
        return name in self._files and _is_open(*self._files[name], self._owner)

    def copy(self, name: str, target: Path) -> None:
        """Copy a file that is open, or still lies where it was.

        Args:
            name: Its name in the bundle.
            target: The copy, in a folder of our own.

        Raises:
            BundleError: It is neither.
            OSError: It cannot be read or written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if not self.holds(name) and (place := self.place()) is not None:
            copy_file(place / name, target)
            return
        descriptor = self._descriptor(name)
        state, offset = os.fstat(descriptor), 0
        with target.open("xb") as file:
            while piece := os.pread(descriptor, _PIECE, offset):
                file.write(piece)
                offset += len(piece)
        with contextlib.suppress(OSError):  # some volumes keep no times
            os.utime(target, ns=(state.st_atime_ns, state.st_mtime_ns))

    @contextmanager
    def on_disk(self, names: Iterable[str]) -> Iterator[Path]:
        """Copies of open files under their names, in a temporary folder.

        Args:
            names: Their names in the bundle.

        Yields:
            The folder, which goes after the block.

        Raises:
            BundleError: A file is not open.
            OSError: It cannot be read or written.
        """
        with TemporaryFolder("held") as folder:
            for name in names:
                self.copy(name, folder / name)
            yield folder

    def _descriptor(self, name: str) -> int:
        if not self.holds(name):
            raise BundleError(
                f"{self.folder} was replaced or removed after it was loaded, and its {name} is not open: load it again"
            )
        return self._files[name][0]

    def __reduce__(self) -> tuple[object, ...]:
        """In another process, the files are opened again where this version still lies."""
        return _again, (self.folder, self._last, self._manifest, tuple(self._files), self._sizes)


def folder_state(base: Path, last: str) -> tuple[int, ...] | None:
    """What tells a folder and its manifest from those that take its place.

    Args:
        base: The folder.
        last: Name of the manifest.

    Returns:
        Numbers that are others for another folder. None where there is no such folder, or no manifest in it.
    """
    try:
        own, manifest = base.stat(), (base / last).stat()
    except OSError:
        return None
    return own.st_dev, own.st_ino, manifest.st_dev, manifest.st_ino, manifest.st_size, manifest.st_mtime_ns


def _has_room(folder: Path, count: int) -> bool:
    """Whether so many more files may stay open: a service needs descriptors for its connections too."""
    if resource is None:
        return True
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    open_now = len(_owners)
    if limit == resource.RLIM_INFINITY or open_now + count <= _SHARE * limit:
        return True
    logger.warning(
        "the %d files of %s are not kept open: bundles of this process have %d open, the limit is %d of %d "
        "(ulimit -n). Once another bundle lies there, networks of this one that are not loaded yet cannot be loaded",
        count,
        folder,
        open_now,
        int(_SHARE * limit),
        limit,
    )
    return False


def _again(folder: Path, last: str, manifest: bytes, names: tuple[str, ...], sizes: Mapping[str, int]) -> HeldFiles:
    place = HeldFiles(folder, last, manifest, {}, sizes).place()
    if place is not None:
        with contextlib.suppress(OSError, ValueError):
            opened = HeldFiles.of(folder, place, last, names)
            opened._sizes = dict(sizes)
            return opened
    return HeldFiles(folder, last, manifest, {}, sizes)


def _is_open(descriptor: int, device: int, inode: int, owner: object) -> bool:
    """Whether a descriptor is still that of a file that its owner opened."""
    try:
        state = os.fstat(descriptor)
    except OSError:
        return False
    return _owners.get(descriptor) is owner and (state.st_dev, state.st_ino) == (device, inode)


def _close(files: Iterable[tuple[int, int, int]], owner: object, process: tuple[int, int]) -> None:
    """Close what is still open, where this process has opened it: a child's number may be any file by now."""
    for descriptor, device, inode in files:
        is_open = _is_open(descriptor, device, inode, owner)
        if _owners.get(descriptor) is owner:
            del _owners[descriptor]  # before it is closed: from then on others may be given its number
        if is_open and process == process_identity():
            with contextlib.suppress(OSError):
                os.close(descriptor)
