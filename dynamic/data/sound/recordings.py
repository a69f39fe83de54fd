"""wav files one by one, from files, folders and zips, for the shell."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dynamic.data.named_files import NamedFile, find_files
from dynamic.data.sound.sound_files import load_sound
from dynamic.data.sound.waveform import Sound
from dynamic.policies.errors import InputError


@dataclass(frozen=True)
class Recording(NamedFile):
    """A wav file that is read on demand. Its fields are those of `NamedFile`."""

    endings: ClassVar = (".wav",)
    plural: ClassVar = "wav files"
    files: ClassVar = "wav files"

    def sound(self) -> Sound:
        """Read the file.

        Returns:
            The sound. Several channels become one, by their mean.

        Raises:
            InputError: The file does not read.
        """
        try:
            content = _Content(self.read())
        except Exception as error:  # zipfile raises RuntimeError for a password, zlib.error for damage, and others
            reason = str(error) or type(error).__name__
            raise InputError(f"{self.name} does not read as a wav file ({reason}): copy it again") from error
        content.name = self.name
        return load_sound(content, mono=True)


class _Content(io.BytesIO):
    """The bytes of a file, with its name for messages."""

    name: str


def find_recordings(paths: Iterable[Path], split: str | None = None) -> list[Recording]:
    """Find every wav file at some paths. See `find_files`.

    Args:
        paths: Files of any name, and folders and zips, in which files that end in .wav are taken.
        split: Name of the folder above the class folders. None: files of all folders.

    Returns:
        The files. Those of a folder or zip come by name.

    Raises:
        InputError: A path does not exist or holds no wav file.
    """
    return find_files(Recording, paths, split)
