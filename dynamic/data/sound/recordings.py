"""wav files and folders of them, for the shell."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dynamic.data.sound.sound_files import load_sound
from dynamic.data.sound.waveform import Sound
from dynamic.policies.errors import InputError

ENDING = ".wav"


@dataclass(frozen=True)
class Recording:
    """A wav file.

    Args:
        name: Its path, for messages.
        folder: Name of the folder that it is in, which may be its class.
    """

    name: str
    folder: str

    def sound(self) -> Sound:
        """Read the file.

        Returns:
            The sound. Several channels become one, by their mean.

        Raises:
            InputError: The file does not read.
        """
        return load_sound(self.name, mono=True)


def find_recordings(paths: Iterable[Path], split: str | None = None) -> list[Recording]:
    """Find every wav file at some paths.

    Args:
        paths: Files of any name, and folders, in which files that end in .wav are taken.
        split: Name of the folder above the class folders. None: files of all folders.

    Returns:
        The files. Those of a folder come by name, and what is hidden is left out.

    Raises:
        InputError: A path does not exist or holds no wav file.
    """
    recordings: list[Recording] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path} does not exist: give wav files or folders of them")
        if not path.is_dir():
            recordings.append(Recording(str(path), path.absolute().parent.name))
            continue
        files = [file for file in sorted(path.rglob("*")) if _is_recording(file, path)]
        chosen = [file for file in files if split is None or file.absolute().parent.parent.name == split]
        if not chosen:
            wanted = f" of split {split!r}" if files else f": they end in {ENDING}"
            raise InputError(f"{path} holds no wav files{wanted}: give another folder, or the files")
        recordings += [Recording(str(file), file.absolute().parent.name) for file in chosen]
    return recordings


def _is_recording(file: Path, source: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(source).parts)
    return file.suffix.lower() == ENDING and not hidden and file.is_file()
