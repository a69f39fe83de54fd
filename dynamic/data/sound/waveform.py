"""The samples of a user's sounds as floats, with an error in words where there are none."""

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import as_numbers
from dynamic.data.number_steps import is_count
from dynamic.policies.errors import InputError
from dynamic.policies.validation.numbers import plain

MOST_RATE_HZ = 10_000_000
_LOUDEST = 16.0  # decoders exceed 1 by little, integers that were converted to floats by thousands
_MOST_CHANNELS = 32  # fewer values than this along one side are channels of one sound, not samples
_ZERO_AND_FULL = {  # what silence is, and the distance from it to full scale
    np.dtype(np.uint8): (128.0, 128.0),
    np.dtype(np.int16): (0.0, 32768.0),
    np.dtype(np.int32): (0.0, 2147483648.0),
}


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound with its sample rate, as files have it.

    Args:
        samples: The samples `[T]`: floats from -1 to 1, or integers of 8 bits without sign, 16 or 32 bits.
        rate_hz: Samples a second.

    Raises:
        InputError: The rate is no whole number in range, or the samples are no array of numbers.

    Example:
        >>> sound = dynamic.data.Sound(np.zeros(8000, np.int16), rate_hz=8000)
        >>> sound.seconds
        1.0
    """

    samples: NDArray[Any]
    rate_hz: int

    def __post_init__(self) -> None:
        rate = plain(self.rate_hz)
        if not is_count(rate, MOST_RATE_HZ):
            raise InputError(f"Sound(rate_hz={rate!r:.80}): give a whole number from 1 to {MOST_RATE_HZ}")
        object.__setattr__(self, "rate_hz", rate)
        object.__setattr__(self, "samples", numbers_of(self.samples, "the sound"))

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate_hz


def numbers_of(samples: Any, what: str) -> NDArray[Any]:
    """Samples as an array in the byte order of this machine.

    Args:
        samples: An array, or what converts to one.
        what: Its name for messages.

    Returns:
        The array `[...]`, with at least one dimension. scipy reads files of other machines in their byte order.

    Raises:
        InputError: It is a path, a number, or no array of numbers.
    """
    if isinstance(samples, (str, bytes, PurePath)):
        raise InputError(
            f"{samples!r:.200} is a path or bytes, and {what} has to be samples: read it, dynamic.data.load_sound(path)"
        )
    array = as_numbers(samples, what)
    if not array.ndim:
        raise InputError(f"{what} is one number, of shape [], expected samples [T]: give an array")
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def samples_of(sound: Any, rate_hz: int, samples: int = 0) -> NDArray[Any]:
    """The samples of a sound or of a batch, as they are.

    Args:
        sound: A `Sound`, an array `[T]` or `[B, T]`, or `(rate, array)` as scipy.io.wavfile.read returns it.
        rate_hz: The rate that is needed.
        samples: The length that is needed. Rows `[B, samples]` are a batch even where they are short.

    Returns:
        The samples `[T]` or `[B, T]`, checked for their type, not for their values.

    Raises:
        InputError: The rate is another, there are several channels, or it is something else.
    """
    if isinstance(sound, tuple) and len(sound) == 2 and isinstance(sound[0], (int, np.integer)):
        sound = Sound(sound[1], int(sound[0]))
    alone = isinstance(sound, Sound)
    if isinstance(sound, Sound):
        check_rate(sound.rate_hz, rate_hz)
        sound = sound.samples
    array = numbers_of(sound, "the sound")
    if array.ndim not in (1, 2) or (array.ndim == 2 and (alone or _has_channels(array, samples))):
        raise InputError(
            f"the sound has shape {list(array.shape)}, expected [T], or [B, T] for a batch: several channels become "
            "one by their mean, samples.mean(axis), before integers are scaled. Give many short sounds as a list"
        )
    if array.size == 0:
        raise InputError(f"the sound has shape {list(array.shape)}: it is empty. Give at least one sample")
    if array.dtype.kind != "f" and array.dtype not in _ZERO_AND_FULL:
        raise InputError(
            f"the sound is of {array.dtype}: give floats from -1 to 1, int16 (which is divided by 32768), int32 (by "
            "2147483648) or uint8 (from which 128 is subtracted before it is divided by 128)"
        )
    return array


def _has_channels(array: NDArray[Any], samples: int) -> bool:
    """Whether rows `[T, channels]` are the samples of one sound, and no batch."""
    rows, columns = array.shape
    return bool(columns != samples and columns < _MOST_CHANNELS < rows)


def scaled(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Samples as float64 from -1 to 1.

    Args:
        samples: Of a type that `samples_of` lets pass, of any shape.

    Returns:
        The same, scaled where they are integers.

    Raises:
        InputError: Floats are not finite, or far above 1.
    """
    doubles = samples.astype(np.float64)
    if samples.dtype in _ZERO_AND_FULL:
        zero, full = _ZERO_AND_FULL[samples.dtype]
        return (doubles - zero) / full
    peak = float(np.abs(doubles).max())
    if not peak <= _LOUDEST:
        if math.isfinite(peak):
            raise InputError(
                f"the sound has floats up to {peak:g}, and -1 to 1 is full scale: divide them by that of their "
                "integers, 32768 for 16 bits, or give the integers"
            )
        raise InputError("the sound has values that are not finite: replace them, np.nan_to_num(samples)")
    return doubles


def check_rate(actual_hz: int, needed_hz: int) -> None:
    """Raises InputError where a sound has another sample rate than the network was trained with."""
    if actual_hz != needed_hz:
        common = math.gcd(actual_hz, needed_hz)
        raise InputError(
            f"the sound has {actual_hz} samples a second, expected {needed_hz}: resample it first, for instance "
            f"scipy.signal.resample_poly(samples, {needed_hz // common}, {actual_hz // common})"
        )
