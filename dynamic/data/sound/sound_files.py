"""wav files, read with the standard library."""

import io
import wave
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from dynamic.data.sound.waveform import Sound
from dynamic.policies.errors import InputError

_MOST_BYTES = 2**30  # of samples in one file


def load_sound(source: str | Path | bytes | BinaryIO, *, mono: bool = False) -> Sound:
    """Read a wav file of 8, 16, 24 or 32 bits.

    Args:
        source: The file: its path, its content, or an open file.
        mono: Whether several channels become one, by their mean. Else they are an error.

    Returns:
        The sound. Samples are uint8, int16, or int32, which 24 bits fill from above. The mean of channels is float64
        from -1 to 1.

    Raises:
        InputError: The file does not read, holds no sample, has another format, or several channels.

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
    name = f"{source}" if isinstance(source, (str, Path)) else "the wav file"
    try:
        if isinstance(source, bytes):
            opened: Any = io.BytesIO(source)
        else:
            opened = str(source) if isinstance(source, Path) else source
        with wave.open(opened, "rb") as reader:
            channels, width, rate, count, *_ = reader.getparams()
            if count * width * channels > _MOST_BYTES:
                raise InputError(
                    f"{name} holds {count * width * channels} bytes of samples, the limit is {_MOST_BYTES}: read it in "
                    "parts, and give them to dynamic.data.windows"
                )
            content = reader.readframes(count)
    except (wave.Error, EOFError, OSError) as error:
        raise InputError(
            f"{name} does not read as a wav file of integers ({error or 'it ends too early'}): convert it, for "
            "instance with soundfile.read, whose samples and rate make a dynamic.data.Sound"
        ) from error
    if width not in (1, 2, 3, 4):
        raise InputError(f"{name} has samples of {8 * width} bits: convert it to 16")
    frames = len(content) // (width * channels)  # a file that was cut short has fewer than it says
    if not frames:
        raise InputError(f"{name} holds no sample: record it again")
    samples = _samples(content[: frames * width * channels], width).reshape(frames, channels)
    if channels == 1:
        return Sound(samples[:, 0], rate)
    if not mono:
        raise InputError(f"{name} has {channels} channels, expected 1: load_sound(..., mono=True) takes their mean")
    zero, full = (128.0, 128.0) if width == 1 else (0.0, 32768.0 if width == 2 else 2147483648.0)
    return Sound((samples.mean(axis=1) - zero) / full, rate)


def _samples(content: bytes, width: int) -> NDArray[Any]:
    """The samples of little-endian PCM: 8 bits have no sign, 24 bits fill 32 from above."""
    if width != 3:
        return np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width]).astype(
            {1: np.uint8, 2: np.int16, 4: np.int32}[width]
        )
    wide = np.zeros((len(content) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
    return wide.view("<i4")[:, 0].astype(np.int32)
