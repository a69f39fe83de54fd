"""Log-mel features of a waveform, in numpy: what torch.stft and a mel filter bank give, without torch."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.data.number_steps import Floats, check_count, own_numbers
from dynamic.data.sound.waveform import MOST_RATE_HZ, Sound, samples_of, scaled
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.validation.numbers import plain

Doubles = NDArray[np.float64]
WindowShape = Literal["hann", "hamming"]
MelScale = Literal["htk", "slaney"]
Padding = Literal["reflect", "zeros", "none"]
Logarithm = Literal["natural", "decibel"]
FloorMode = Literal["add", "maximum"]
_MOST_FFT, _MOST_MELS = 2**16, 2**10
_COSINE = {"hann": 0.5, "hamming": 0.54}  # the constant part of the window
_WORDS = {
    "window_shape": get_args(WindowShape),
    "padding": get_args(Padding),
    "mel_scale": get_args(MelScale),
    "log": get_args(Logarithm),
    "floor_mode": get_args(FloorMode),
}


@dataclass(frozen=True)
class LogMel:
    """Log-mel features: a power spectrum every `hop` samples, `mels` triangular filters on it, and the logarithm.

    The defaults are those of `torchaudio.transforms.MelSpectrogram` with `torch.log(mel + 1e-6)` behind it. For
    librosa's give `mel_scale="slaney"`, `area_normalized=True` and `padding="zeros"`. All is computed in float64 and
    rounded once. So the result is the same on every version of numpy, and within 1e-5 of torch in float64.

    Args:
        mels: Number of filters.
        fft: Samples that a spectrum is computed of.
        window: Samples that the window weighs, in the middle of `fft`. None: `fft`.
        hop: Samples between two spectra.
        low_hz: Lower edge of the first filter.
        high_hz: Upper edge of the last filter. None: half the sample rate.
        window_shape: The window, periodic.
        padding: What `fft // 2` samples before and behind the sound are. "none": spectra begin at the first sample.
        mel_scale: The scale on which filters are equally wide, HTK's or Slaney's.
        area_normalized: Whether filters have equal areas instead of equal heights.
        power: Exponent of the magnitude: 2 for power, 1 for magnitude.
        log: "natural", or "decibel" (10 times the decimal logarithm).
        floor: What keeps the logarithm finite in silence.
        floor_mode: Whether the floor is added, or is the least value.
        mean: It is subtracted from the logarithm.
        std: The difference is divided by it.

    Raises:
        SettingError: A number is out of range, or a word is unknown.

    Example:
        >>> features = dynamic.data.LogMel(mels=40, fft=256, hop=80)
        >>> features(np.zeros(8000), rate_hz=8000).shape
        (40, 101)
    """

    mels: int = 64
    fft: int = 400
    window: int | None = None
    hop: int = 160
    low_hz: float = 0.0
    high_hz: float | None = None
    window_shape: WindowShape = "hann"
    padding: Padding = "reflect"
    mel_scale: MelScale = "htk"
    area_normalized: bool = False
    power: float = 2.0
    log: Logarithm = "natural"
    floor: float = 1e-6
    floor_mode: FloorMode = "add"
    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        own_numbers(self)
        for name, most in (("fft", _MOST_FFT), ("mels", _MOST_MELS), ("hop", _MOST_FFT), ("window", self.fft)):
            value = getattr(self, name)
            if name == "window" and value is None:
                continue
            check_count(f"LogMel({name}", value, most)
        if self.fft < 2:
            raise SettingError(f"LogMel(fft={self.fft}): a spectrum needs at least 2 samples, 400 are usual at 16 kHz")
        for name, words in _WORDS.items():
            if getattr(self, name) not in words:
                raise SettingError(f"LogMel({name}={getattr(self, name)!r:.80}): use one of {words}")
        if not isinstance(self.area_normalized, bool):
            raise SettingError(f"LogMel(area_normalized={self.area_normalized!r:.80}): give True or False")
        for name, above, least in (
            ("low_hz", -1.0, "0 or more"),
            ("high_hz", self.low_hz, f"more than low_hz={self.low_hz}"),
            ("power", 0.0, "a positive number, usually 2"),
            ("floor", 0.0, "a positive number, such as 1e-6"),
            ("std", 0.0, "a positive number"),
            ("mean", -math.inf, "a number"),
        ):
            value = getattr(self, name)
            if name == "high_hz" and value is None:
                continue
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not is_number or not above < value < 1e30 or (name == "low_hz" and value < 0):
                raise SettingError(f"LogMel({name}={value!r:.80}): give {least}")

    def frames(self, samples: int) -> int:
        """Compute the number of spectra of a sound.

        Args:
            samples: Length of the sound.

        Returns:
            The number of spectra. It is below 1 where the sound is too short for one.

        Raises:
            Nothing: any length has an answer.

        Example:
            >>> dynamic.data.LogMel(fft=400, hop=160).frames(16000)
            101
        """
        inside = samples - self.fft if self.padding == "none" else samples + 2 * (self.fft // 2) - self.fft
        return 1 + inside // self.hop

    def least_samples(self) -> int:
        """Return the length of the shortest sound that has features."""
        return {"none": self.fft, "reflect": self.fft // 2 + 1, "zeros": 1}[self.padding]

    def check_rate(self, rate_hz: int) -> None:
        """Check that the filters lie below half the sample rate.

        Args:
            rate_hz: Samples a second.

        Raises:
            SettingError: A filter lies above.

        Example:
            >>> dynamic.data.LogMel(high_hz=4000).check_rate(8000)
        """
        for name, edge in (("low_hz", self.low_hz), ("high_hz", self.high_hz)):
            if edge is not None and (edge > rate_hz / 2 or (name == "low_hz" and edge == rate_hz / 2)):
                raise SettingError(
                    f"LogMel({name}={edge}): a sound of {rate_hz} samples a second has frequencies up to "
                    f"{rate_hz / 2:g} Hz. Give {'less' if name == 'low_hz' else 'at most that'}"
                )

    def __call__(self, samples: Sound | NDArray[Any], rate_hz: int) -> Floats:
        """Compute the features of one sound.

        Args:
            samples: The sound `[T]`: floats from -1 to 1, or integers, which are scaled as in `SoundPreprocess`.
            rate_hz: Samples a second.

        Returns:
            float32 `[mels, frames]`.

        Raises:
            InputError: The sound is too short, of another rate, shape or type, not finite, or far above 1.
            SettingError: A filter lies above half the sample rate, or the rate is no whole number in range.

        Example:
            >>> silence = dynamic.data.LogMel(mels=8, fft=64, hop=32, floor=1.0)(np.zeros(320), 8000)
            >>> silence.shape, float(abs(silence).max())
            ((8, 11), 0.0)
        """
        rate_hz = plain(rate_hz)
        check_count("LogMel()(rate_hz", rate_hz, MOST_RATE_HZ)
        array = samples_of(samples, rate_hz)
        if array.ndim != 1:
            raise InputError(
                f"the sound has shape {list(array.shape)}, expected [T]: give one sound at a time, or several to a "
                "SoundPreprocess"
            )
        return levels_of(scaled(array), self, rate_hz)


def levels_of(samples: Doubles, features: LogMel, rate_hz: int) -> Floats:
    """The features `[mels, frames]` of samples `[T]` that `scaled` gave. InputError where they are too few."""
    if len(samples) < features.least_samples():
        raise InputError(
            f"the sound has {len(samples)} samples, and features of {features.fft} samples with padding="
            f"{features.padding!r} need at least {features.least_samples()}: give a longer one, or a smaller fft"
        )
    bank = _filters(features, rate_hz)
    if features.padding != "none":
        samples = np.pad(samples, features.fft // 2, mode="reflect" if features.padding == "reflect" else "constant")
    parts = np.lib.stride_tricks.sliding_window_view(samples, features.fft)[:: features.hop]  # [frames, fft]
    spectrum = np.fft.rfft(parts * _window(features))
    magnitude = spectrum.real**2 + spectrum.imag**2
    if features.power != 2.0:
        magnitude **= features.power / 2
    energy = bank @ magnitude.T  # [mels, frames]
    energy = energy + features.floor if features.floor_mode == "add" else np.maximum(energy, features.floor)
    levels = 10 * np.log10(energy) if features.log == "decibel" else np.log(energy)
    return np.ascontiguousarray((levels - features.mean) / features.std, np.float32)


@lru_cache(16)
def _window(features: LogMel) -> Doubles:
    """The window `[fft]`, periodic as in torch.hann_window, with zeros around it as in torch.stft."""
    length = features.fft if features.window is None else features.window
    constant = _COSINE[features.window_shape]
    shape = constant - (1 - constant) * np.cos(2 * np.pi * np.arange(length) / length)
    before = (features.fft - length) // 2
    return np.pad(shape, (before, features.fft - length - before))


@lru_cache(16)
def _filters(features: LogMel, rate_hz: int) -> Doubles:
    """The triangular filters `[mels, fft // 2 + 1]`."""
    features.check_rate(rate_hz)
    high = rate_hz / 2 if features.high_hz is None else features.high_hz
    to_mel, to_hz = (_htk, _htk_hz) if features.mel_scale == "htk" else (_slaney, _slaney_hz)
    first, last = to_mel(np.array([features.low_hz, high], np.float64)).tolist()
    edges = to_hz(np.linspace(first, last, features.mels + 2))[:, None]
    hz = np.arange(features.fft // 2 + 1) * (rate_hz / features.fft)
    low, middle, top = edges[:-2], edges[1:-1], edges[2:]
    bank: Doubles = np.maximum(0.0, np.minimum((hz - low) / (middle - low), (top - hz) / (top - middle)))
    if features.area_normalized:
        bank *= 2.0 / (top - low)
    return bank


def _htk(hz: Doubles) -> Doubles:
    """Mel of O'Shaughnessy 1987, "Speech Communication", as in HTK."""
    return 2595.0 * np.log10(1.0 + hz / 700.0)


def _htk_hz(mel: Doubles) -> Doubles:
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0), np.float64)


_LINEAR_HZ, _KNEE_HZ = 200.0 / 3, 1000.0  # Slaney 1998, "Auditory Toolbox": linear below 1 kHz, logarithmic above
_KNEE, _STEP = _KNEE_HZ / _LINEAR_HZ, math.log(6.4) / 27


def _slaney(hz: Doubles) -> Doubles:
    above = np.log(np.maximum(hz, _KNEE_HZ) / _KNEE_HZ) / _STEP + _KNEE
    return np.where(hz < _KNEE_HZ, hz / _LINEAR_HZ, above)


def _slaney_hz(mel: Doubles) -> Doubles:
    return np.where(mel < _KNEE, mel * _LINEAR_HZ, _KNEE_HZ * np.exp(_STEP * (np.maximum(mel, _KNEE) - _KNEE)))
