"""The samples of a user's sounds as floats, with an error in words where there are none."""

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import as_numbers
from dynamic.data.sound.log_mel import check_count
from dynamic.policies.errors import InputError

MOST_RATE_HZ = 10_000_000
_LOUDEST = 16.0  # decoders exceed 1 by little, integers that were converted to floats by thousands
_MOST_CHANNELS = 32  # fewer values than this along one side are channels of one sound, not samples


@dataclass(frozen=True, eq=False)
class Sound:
    """A sound with its sample rate, as files have it.

    Args:
        samples: The samples `[T]`: floats from -1 to 1, or integers of 8 bits without sign, 16 or 32 bits.
        rate_hz: Samples a second.

    Raises:
        InputError: The rate is no whole number in range.

    Example:
        >>> sound = dynamic.data.Sound(np.zeros(8000, np.int16), rate_hz=8000)
        >>> sound.seconds
        1.0
    """

    samples: NDArray[Any]
    rate_hz: int

    def __post_init__(self) -> None:
        rate = self.rate_hz.item() if isinstance(self.rate_hz, np.integer) else self.rate_hz
        check_count("Sound(rate_hz", rate, MOST_RATE_HZ)
        object.__setattr__(self, "rate_hz", rate)

    @property
    def seconds(self) -> float:
        """Duration in seconds."""
        return len(self.samples) / self.rate_hz


def samples_of(sound: Any, rate_hz: int) -> NDArray[Any]:
    """The samples of a sound or of a batch, as they are.

    Args:
        sound: A `Sound`, an array `[T]` or `[B, T]`, or `(rate, array)` as scipy.io.wavfile.read returns it.
        rate_hz: The rate that is needed.

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
    if isinstance(sound, (str, bytes, PurePath)):
        raise InputError(
            f"{sound!r:.200} is a path or bytes, and preprocessing takes samples: read it, "
            "dynamic.data.load_sound(path)"
        )
    array = as_numbers(sound, "the sound")
    if array.ndim not in (1, 2) or (array.ndim == 2 and (alone or array.shape[1] < _MOST_CHANNELS < array.shape[0])):
        raise InputError(
            f"the sound has shape {list(array.shape)}, expected [T], or [B, T] for a batch: several channels become "
            "one by their mean, samples.mean(axis), before integers are scaled"
        )
    if array.size == 0:
        raise InputError(f"the sound has shape {list(array.shape)}: it is empty. Give at least one sample")
    if array.dtype.kind != "f" and array.dtype not in (np.uint8, np.int16, np.int32):
        raise InputError(
            f"the sound is of {array.dtype}: give floats from -1 to 1, int16 (which is divided by 32768), int32 (by "
            "2147483648) or uint8 (from which 128 is subtracted before it is divided by 128)"
        )
    return array


def scaled(samples: NDArray[Any]) -> NDArray[np.float64]:
    """Samples as float64 from -1 to 1.

    Args:
        samples: Of a type that `samples_of` lets pass.

    Returns:
        The same, scaled where they are integers.

    Raises:
        InputError: Floats are not finite, or far above 1.
    """
    kind = samples.dtype
    doubles = samples.astype(np.float64)
    if kind == np.uint8:
        return (doubles - 128.0) / 128.0
    if kind in (np.int16, np.int32):
        return doubles / (32768.0 if kind == np.int16 else 2147483648.0)
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
