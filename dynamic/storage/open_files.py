"""The files of one version of a bundle, kept open: they can be read after another version took its place on the disk.

A file that is open stays whole when its folder is replaced or removed. Nothing on the disk says that it is still in
use, so that nothing is left there when this process is killed.
"""

import contextlib
import errno
import os
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dynamic.policies.errors import BundleError
from dynamic.storage.atomic_write import copy_file
from dynamic.storage.temporary_files import TemporaryFolder
from dynamic.storage.versioned_folder import standing

_PIECE = 1 << 20  # bytes
_TOO_MANY = (errno.EMFILE, errno.ENFILE)


class HeldFiles:
    """Open files of a bundle by name, and where the version that they belong to lies."""

    def __init__(self, folder: Path, last: str, manifest: bytes, descriptors: Mapping[str, int]) -> None:
        self.folder, self._last, self._manifest = folder, last, manifest
        states = {name: os.fstat(descriptor) for name, descriptor in descriptors.items()}
        self._files = {name: (descriptors[name], stat.st_dev, stat.st_ino) for name, stat in states.items()}
        weakref.finalize(self, _close, tuple(self._files.values()))

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
            OSError: A file cannot be opened.
        """
        descriptors: dict[str, int] = {}
        try:
            manifest = (base / last).read_bytes()
            for name in names if hasattr(os, "pread") else ():  # Windows replaces no folder whose files are open
                descriptors[name] = os.open(base / name, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except OSError as error:
            for descriptor in descriptors.values():
                os.close(descriptor)
            if error.errno not in _TOO_MANY:
                raise
            descriptors = {}
        return cls(folder, last, manifest, descriptors)

    def place(self) -> Path | None:
        """Where this version lies. None where another took its place, or it was removed."""
        base = standing(self.folder, self._last)
        return base if self._is_in(base) else None

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
            return (base / self._last).read_bytes() == self._manifest
        except OSError:
            return False

    def size(self, name: str) -> int:
        """Bytes of an open file. Raises BundleError where it is not open."""
        return os.fstat(self._descriptor(name)).st_size

    @property
    def manifest(self) -> bytes:
        """The manifest as it was read."""
        return self._manifest

    def holds(self, name: str) -> bool:
        """Whether a file is open. A daemon closes what it did not open itself."""
        return name in self._files and _is_open(*self._files[name])

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
        stat, offset = os.fstat(descriptor), 0
        with target.open("xb") as file:
            while piece := os.pread(descriptor, _PIECE, offset):
                file.write(piece)
                offset += len(piece)
        with contextlib.suppress(OSError):  # some volumes keep no times
            os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))

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
        return _again, (self.folder, self._last, self._manifest, tuple(self._files))


def _again(folder: Path, last: str, manifest: bytes, names: tuple[str, ...]) -> HeldFiles:
    place = HeldFiles(folder, last, manifest, {}).place()
    if place is not None:
        with contextlib.suppress(OSError):
            return HeldFiles.of(folder, place, last, names)
    return HeldFiles(folder, last, manifest, {})


def _is_open(descriptor: int, device: int, inode: int) -> bool:
    try:
        stat = os.fstat(descriptor)
    except OSError:
        return False
    return (stat.st_dev, stat.st_ino) == (device, inode)


def _close(files: Iterable[tuple[int, int, int]]) -> None:
    for held in files:
        if _is_open(*held):
            with contextlib.suppress(OSError):
                os.close(held[0])
