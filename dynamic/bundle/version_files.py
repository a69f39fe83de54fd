"""The files of the version of a bundle that was read, also once another version lies in its folder."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import TypeVar

from dynamic.bundle.manifest import MANIFEST, version_of
from dynamic.policies.errors import CorruptError, DynamicError
from dynamic.storage.atomic_write import copy_file, copy_room, disk_errors
from dynamic.storage.open_files import HeldFiles
from dynamic.storage.regular_files import check_hash

T = TypeVar("T")


@dataclass(frozen=True)
class VersionFiles:
    """The files of one version of a bundle.

    Args:
        folder: The folder that it was read from.
        hashes: SHA-256 of every file that the manifest lists, by name.
        open_files: The same files, open. None: the folder never holds another version.
    """

    folder: Path
    hashes: Mapping[str, str]
    open_files: HeldFiles | None

    @property
    def place(self) -> Path | None:
        """Where this version lies now. None where another took its place, or its folder was removed."""
        return self.folder if self.open_files is None else self.open_files.place()

    def size(self, name: str) -> int:
        """Bytes of a file. Raises OSError where there is no such file."""
        return (self.folder / name).stat().st_size if self.open_files is None else self.open_files.size(name)

    def check(self, *names: str, folder: Path | None = None) -> None:
        """Compare files with their hashes.

        Args:
            names: Their names. All files are compared where none is given.
            folder: Where the files lie. None: wherever this version lies now.

        Raises:
            CorruptError: A file is missing or was altered.
        """
        if folder is None:
            with self.folder_of(*(names or self.hashes)):
                return
        for name in names or tuple(self.hashes):
            if name not in self.hashes:
                raise CorruptError(f"{folder}: {name} is not in the manifest. Build or copy the bundle again")
            check_hash(folder, name, self.hashes[name])

    def read(self, name: str, read: Callable[[Path], T]) -> T:
        """The content of one file.

        Args:
            name: Its name.
            read: Reads it from a path.

        Returns:
            What `read` gives. It is of this version, whatever takes its place meanwhile.

        Raises:
            CorruptError: The file is missing or was altered.
        """
        held, place = self.open_files, self.place
        if place is not None:
            try:
                self.check(name, folder=place)
                value = read(place / name)
                if held is None or held.place() == place:
                    return value
            except (DynamicError, OSError):
                if held is None or not held.holds(name):
                    raise
        with _copy_errors(), self._copy_source.on_disk([name]) as folder:
            self.check(name, folder=folder)
            return read(folder / name)

    @contextmanager
    def folder_of(self, *names: str) -> Iterator[Path]:
        """A folder where files lie under their names.

        Args:
            names: Their names.

        Yields:
            The folder. It may be a temporary one, which goes after the block.

        Raises:
            CorruptError: A file is missing or was altered.
        """
        held, place = self.open_files, self.place
        if place is not None:
            try:
                self.check(*names, folder=place)
            except CorruptError:
                if held is None or held.place() is not None:
                    raise
            else:
                yield place
                return
        with ExitStack() as stack:
            with _copy_errors():  # of the copy, not of the block
                folder = stack.enter_context(self._copy_source.on_disk(names))
            self.check(*names, folder=folder)
            yield folder

    @contextmanager
    def whole_folder(self) -> Iterator[Path]:
        """A folder with all files and the manifest, for another process to read. It may be a temporary one."""
        place = self.place
        if place is not None:
            yield place
            return
        with self.folder_of(*self.hashes) as folder:
            (folder / MANIFEST).write_bytes(self._copy_source.manifest)
            yield folder

    def open_place(self) -> AbstractContextManager[Path | None]:
        """`place`, for writing: what is written stays with this version where another takes its place meanwhile."""
        return nullcontext(self.folder) if self.open_files is None else self.open_files.open_place()

    def copy_to(self, folder: Path, rooms: Sequence[str]) -> None:
        """Copy all files, the manifest, and what machines added.

        Args:
            folder: The folder to copy into. It exists.
            rooms: Of what machines added, what to copy. Links and files of other kinds are not copied.

        Raises:
            CorruptError: A file is missing or was altered.
            OSError: The disk refused.
        """
        while True:
            with self.open_place() as place:
                if place is None:
                    break
                try:
                    self._copy_from(place, folder)
                except CorruptError:
                    if not self._was_replaced(place):
                        raise
                else:
                    for room in rooms:
                        copy_room(place / room, folder / room)
                    return
        for name in self.hashes:
            (folder / name).unlink(missing_ok=True)
            self._copy_source.copy(name, folder / name)
        (folder / MANIFEST).write_bytes(self._copy_source.manifest)
        self.check(folder=folder)

    @property
    def _copy_source(self) -> HeldFiles:
        """The open files, once this version lies nowhere."""
        assert self.open_files is not None, "without open files, the folder is the place"
        return self.open_files

    def _copy_from(self, place: Path, folder: Path) -> None:
        for name in (MANIFEST, *self.hashes):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                copy_file(place / name, folder / name)
            except FileNotFoundError as error:
                if not os.path.exists(place / name):
                    raise CorruptError(f"{self.folder}: {name} is missing. Copy the bundle again") from error
                raise
        self.check(folder=folder)

    def _was_replaced(self, place: Path) -> bool:
        """Whether this version lies elsewhere, or nowhere, since its folder was opened as `place`."""
        if self.open_files is None:
            return False
        now = self.open_files.place()
        return now is None or version_of(now) != version_of(place)


def _copy_errors() -> AbstractContextManager[None]:
    return disk_errors("a copy of the bundle's files", Path(gettempdir()))
