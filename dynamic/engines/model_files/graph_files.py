"""The files of a bundle as they were when it was loaded: one that has changed since then is not run."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import gettempdir
from typing import Protocol, TypeVar

from dynamic.engines.model_files.external_data import external_files
from dynamic.policies.errors import BundleError, EngineError
from dynamic.storage.atomic_write import copy_file
from dynamic.storage.regular_files import file_fault
from dynamic.storage.temporary_files import TemporaryFolder

_TRIES = 1000  # to load a graph from a folder that others exchange meanwhile

State = tuple[int, int, int, int, int]  # device, inode, size, and the times of content and of attributes


T = TypeVar("T")


class Held(Protocol):
    """Files of one version of a bundle that are open."""

    def place(self) -> Path | None:
        """Where this version lies. None where another took its place."""

    def state(self) -> tuple[int, ...] | None:
        """What tells the folder that lies there now from one that takes its place. None where there is none."""

    def on_disk(self, names: Sequence[str]) -> AbstractContextManager[Path]:
        """Copies under their names, in a temporary folder that goes after the block. Raises BundleError or OSError."""


class BundleFiles:
    """Graphs and weights under `folder`, checked whenever one is loaded.

    `hashes`: SHA-256 of each file by its name in the folder. A file that has none there is not run. Without `hashes`
    nothing is checked: the folder was written by this process. `held`: the same files, open, for when another bundle
    lies in `folder`.
    """

    def __init__(self, folder: Path, hashes: Mapping[str, str] | None = None, held: Held | None = None) -> None:
        self.folder, self._hashes, self._held = folder, None if hashes is None else dict(hashes), held
        self._loaded: dict[str, dict[str, State]] = {}  # by graph, of its files when it was loaded

    def load(self, graph: str, read: Callable[[Path], T]) -> T:
        """Load a graph of the version that `hashes` are of, also where another bundle lies in the folder by now.

        Args:
            graph: The graph's name in the folder.
            read: Loads it from a path. Its weights lie beside it.

        Returns:
            What `read` gives.

        Raises:
            EngineError: A file was altered, or cannot be read.
        """
        held = self._held
        for tries in range(1, _TRIES + 1):
            before = None if held is None else held.state()
            try:
                with self.verify(graph) as path:
                    return read(path)
            except Exception:
                if held is None:
                    raise
                if held.place() != self.folder:
                    break
                # it lies there: whoever exchanged the folder meanwhile is why this failed, or it fails again
                if tries == _TRIES or held.state() == before:
                    raise
        assert held is not None
        with self._on_disk(held.on_disk([graph])) as folder:
            self._check(graph, folder)
            names = [graph, *self._weights(graph, folder)]
        with self._on_disk(held.on_disk(names)) as folder:
            for name in names:
                self._check(name, folder)
            self._loaded[graph] = {}
            return read(folder / graph)

    @contextmanager
    def verify(self, graph: str) -> Iterator[Path]:
        """The path of a graph, to be loaded inside the block.

        Args:
            graph: The graph's name in the folder. The weights that it refers to are checked too.

        Yields:
            The path of the graph. One among links is a temporary copy, as engines refuse weights that are a link.

        Raises:
            EngineError: A file differs from what was loaded first, has changed while the block ran, lies outside the
                folder, or is not in the manifest.
        """
        if self._hashes is None:
            yield self.folder / graph
            return
        states = {graph: self._check(graph)}
        states |= {name: self._check(name) for name in self._weights(graph)}
        names = list(states)
        if any(self._is_linked(name) for name in names):
            copies = self._copies(names) if self._held is None else self._held.on_disk(names)
            with self._on_disk(copies) as folder:
                for name in names:
                    self._check(name, folder)
                yield folder / graph
        else:
            yield self.folder / graph
        for name, state in states.items():
            if self._state(name) != state:  # some network volumes number files anew: the content decides
                states[name] = self._check(name)
        self._loaded[graph] = states

    def check_loaded(self, graph: str) -> None:
        """Check files that a loaded graph may have mapped: one that is overwritten in place changes under it.

        A file that was replaced or removed does not matter: the one that was mapped is still there.

        Args:
            graph: The graph's name in the folder.

        Raises:
            EngineError: A file was overwritten in place.
        """
        states = self._loaded.get(graph, {})
        for name, state in states.items():
            try:
                now = self._state(name)
            except EngineError:  # removed
                continue
            if now != state and now[:2] == state[:2]:
                states[name] = self._check(name)

    def _weights(self, graph: str, folder: Path | None = None) -> tuple[str, ...]:
        """The files that a graph refers to, by its text in the bundle's folder or another."""
        try:
            return external_files((folder or self.folder) / graph, graph)
        except (OSError, ValueError) as error:
            raise self._changed(graph, f"does not read ({error})") from error

    def _is_linked(self, name: str) -> bool:
        """Whether a file, or a folder between it and the bundle's, is a link."""
        path = PurePosixPath(name)
        return any((self.folder / part).is_symlink() for part in (path, *path.parents[:-1]))

    @contextmanager
    def _copies(self, names: Sequence[str]) -> Iterator[Path]:
        """Copies of files for a caller that has none open."""
        with TemporaryFolder("held") as folder:
            for name in names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                copy_file(self.folder / name, folder / name)
            yield folder

    @contextmanager
    def _on_disk(self, copies: AbstractContextManager[Path]) -> Iterator[Path]:
        """Copies of files. An error of the disk is one of the engine: another may need less room."""
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(copies)
            except (OSError, BundleError) as error:
                raise EngineError(f"files of {self.folder} cannot be copied to {gettempdir()}: {error}") from error
            yield folder

    def _check(self, name: str, folder: Path | None = None) -> State:
        """Check a file, or its copy in another `folder`. Returns its state, of a copy none."""
        if self._hashes is None or name not in self._hashes:
            raise self._changed(name, "is not in the bundle's manifest")
        state = self._state(name) if folder is None else (0, 0, 0, 0, 0)
        try:
            fault = file_fault(folder or self.folder, name, self._hashes[name])
        except OSError as error:
            fault = f"cannot be read ({error.strerror})"
        if fault is not None:
            raise self._changed(name, f"{fault} after the bundle was loaded" if fault == "was altered" else fault)
        return state

    def _state(self, name: str) -> State:
        try:
            stat = (self.folder / name).stat()
        except OSError as error:
            raise self._changed(name, f"cannot be read ({error.strerror})") from error
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns

    def _changed(self, name: str, what: str) -> EngineError:
        return EngineError(
            f"{name} in {self.folder} {what}, so it is not run: copy the bundle again, then load it again, "
            "and put it to work with run.swap(bundle)"
        )
