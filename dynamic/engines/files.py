"""The files of a bundle as they were when it was loaded: one that has changed since then is not run."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from dynamic.engines.external import external_files
from dynamic.engines.inside import check_inside
from dynamic.policies.errors import EngineError

State = tuple[int, int, int, int, int]  # device, inode, size, and the times of content and of attributes


class BundleFiles:
    """Graphs and weights under `folder`, checked whenever one is loaded.

    `hashes`: SHA-256 of each file by its name in the folder. A file that has none there is not run. Without `hashes`
    nothing is checked: the folder was written by this process.
    """

    def __init__(self, folder: Path, hashes: Mapping[str, str] | None = None) -> None:
        self.folder, self._hashes = folder, None if hashes is None else dict(hashes)
        self._loaded: dict[str, dict[str, State]] = {}  # by graph, of its files when it was loaded

    @contextmanager
    def verify(self, graph: str) -> Iterator[Path]:
        """The path of a graph, to be loaded inside the block.

        Args:
            graph: The graph's name in the folder. The weights that it refers to are checked too.

        Yields:
            The path of the graph.

        Raises:
            EngineError: A file differs from what was loaded first, has changed while the block ran, lies outside the
                folder, or is not in the manifest.
        """
        if self._hashes is None:
            yield self.folder / graph
            return
        states = {graph: self._check(graph)}
        states |= {name: self._check(name) for name in self._weights(graph)}
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

    def _weights(self, graph: str) -> tuple[str, ...]:
        """The files that a graph refers to."""
        try:
            return external_files(self.folder / graph, graph)
        except (OSError, ValueError) as error:
            raise self._changed(graph, f"does not read ({error})") from error

    def _check(self, name: str) -> State:
        if self._hashes is None or name not in self._hashes:
            raise self._changed(name, "is not in the bundle's manifest")
        state = self._state(name)
        try:
            check_inside(self.folder / name, self.folder)
            with (self.folder / name).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise self._changed(name, f"cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise self._changed(name, f"is not used, since {error}") from error
        if digest != self._hashes[name]:
            raise self._changed(name, "was altered after the bundle was loaded")
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
