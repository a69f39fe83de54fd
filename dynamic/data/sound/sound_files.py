"""wav files, read with the standard library."""

import io
import os
import wave
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dynamic.data.number_steps import is_count
from dynamic.data.sound.waveform import MOST_RATE_HZ, Sound, scaled
from dynamic.policies.errors import InputError

_MOST_BYTES = 2**30  # of samples in one file
_PART_BYTES = 2**20  # that are read at once


def load_sound(source: str | Path | bytes | bytearray | BinaryIO, *, mono: bool = False) -> Sound:
    """Read a wav file of 8, 16, 24 or 32 bits.

    Args:
        source: The file: its path, its content, or an open file.
        mono: Whether several channels become one, by their mean. Else they are an error.

    Returns:
        The sound. Samples are uint8, int16, or int32, which 24 bits fill from above. The mean of channels is float64
        from -1 to 1.

    Raises:
        InputError: The file does not read, holds no sample or more than 2^30 bytes of them, has another format, or
            several channels.

    Example:
        >>> import io, wave
        >>> file = io.BytesIO()
        >>> with wave.open(file, "wb") as writer:
        ...     writer.setparams((1, 2, 8000, 0, "NONE", ""))
        ...     writer.writeframes(np.array([0, 16384], "<i2").tobytes())
        >>> sound = dynamic.data.load_sound(file.getvalue())
        >>> sound.samples.tolist(), sound.rate_hz
        ([0, 16384], 8000)
    """
    name, opened = _opened(source)
    try:
        with wave.open(opened, "rb") as reader:
            channels, width, rate, *_ = reader.getparams()
            if width not in (1, 2, 3, 4):
                raise InputError(f"{name} has samples of {8 * width} bits: convert it to 16")
            if not is_count(rate, MOST_RATE_HZ):
                raise InputError(
                    f"{name} has {rate} samples a second, expected 1 to {MOST_RATE_HZ}: its header is damaged. Convert "
                    "it again, or give its samples with their rate as a dynamic.data.Sound"
                )
            content = _frames(reader, name)
    except InputError:
        raise
    except Exception as error:  # wave raises RuntimeError on damaged sizes, open ValueError and OSError on paths
        raise InputError(
            f"{name} does not read as a wav file of integers ({str(error) or 'it is damaged or ends too early'}): "
            "convert it, for instance with soundfile.read, whose samples and rate make a dynamic.data.Sound"
        ) from error
    frames = len(content) // (width * channels)  # a file that was cut short has fewer than it says
    if not frames:
        raise InputError(f"{name} holds no sample: record it again")
    samples = _samples(content[: frames * width * channels], width).reshape(frames, channels)
    if channels == 1:
        return Sound(samples[:, 0], rate)
    if not mono:
        raise InputError(f"{name} has {channels} channels, expected 1: load_sound(..., mono=True) takes their mean")
    return Sound(scaled(samples).mean(axis=1), rate)


def _opened(source: Any) -> tuple[str, Any]:
    """The file's name for messages, and what `wave` opens."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "the wav file", io.BytesIO(source)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        return path if path.isprintable() else ascii(path), path
    if not hasattr(source, "read"):
        raise InputError(
            f"{source!r:.80} is a {type(source).__name__}, expected a wav file: give its path, its content as bytes, "
            "or an open file"
        )
    name = getattr(source, "name", None)
    return name if isinstance(name, str) and name.isprintable() else "the wav file", source


def _frames(reader: wave.Wave_read, name: str) -> bytes:
    """The samples that are there. Files that were written to a pipe say 4 GB, since their length was not known."""
    parts: list[bytes] = []
    size = 0
    while part := reader.readframes(_PART_BYTES // (reader.getsampwidth() * reader.getnchannels()) + 1):
        size += len(part)
        if size > _MOST_BYTES:
            raise InputError(
                f"{name} holds more than {_MOST_BYTES} bytes of samples, which is the limit: split it into shorter "
                "files, or read parts, for instance with soundfile.blocks, and give them to dynamic.data.windows"
            )
        parts.append(part)
    return b"".join(parts)


def _samples(content: bytes, width: int) -> NDArray[Any]:
    """The samples of little-endian PCM: 8 bits have no sign, 24 bits fill 32 from above."""
    if width != 3:
        return np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width]).astype(
            {1: np.uint8, 2: np.int16, 4: np.int32}[width]
        )
    wide = np.zeros((len(content) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.int32)
