"""From waveforms to the input of a network: one length, one scale, and log-mel features."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import OneInput, Side, fits
from dynamic.data.number_steps import Floats, check_count, own_numbers
from dynamic.data.sound.log_mel import LogMel, levels_of
from dynamic.data.sound.waveform import MOST_RATE_HZ, Sound, samples_of, scaled
from dynamic.policies.errors import CorruptError, InputError, SchemaError, SettingError
from dynamic.policies.validation.fields import items, mapping, short

Shorter = Literal["error", "pad"]
Longer = Literal["error", "cut"]
_USUAL = LogMel()
SOUND, LOG_MEL = "sound", "log_mel"
_MOST_SAMPLES = 2**24
_KINDS = {
    SOUND: frozenset(("rate_hz", "samples", "shorter", "longer")),
    LOG_MEL: frozenset(LogMel.__dataclass_fields__),
}


@dataclass(frozen=True)
class SoundPreprocess(OneInput):
    """The steps from a waveform to the float32 input of a network.

    Integers are scaled to -1..1: int16 is divided by 32768, int32 by 2147483648, and uint8 is (x - 128) / 128. Floats
    are taken as they are. Every sound then has `samples` samples, of which features are computed. Training calls the
    same object, so that the device computes what the network has learned from.

    Args:
        rate_hz: Samples a second. A sound of another rate is refused.
        samples: Length of the network's input.
        features: The log-mel features. None: the network takes the waveform.
        shorter: What a shorter sound is: an "error", or "pad", which adds zeros behind it.
        longer: What a longer sound is: an "error", or "cut", which keeps its beginning. `windows` cuts a stream.

    Raises:
        SettingError: A number is out of range, a word is unknown, or sounds are too short for the features.

    Example:
        >>> preprocess = dynamic.data.SoundPreprocess(8000, 8000, dynamic.data.LogMel(mels=40, fft=256, hop=80))
        >>> preprocess(np.zeros(8000, np.int16)).shape
        (1, 1, 40, 101)
    """

    for_images: ClassVar[bool] = False
    rate_hz: int
    samples: int
    features: LogMel | None = _USUAL
    shorter: Shorter = "error"
    longer: Longer = "error"

    def __post_init__(self) -> None:
        own_numbers(self)
        check_count("SoundPreprocess(rate_hz", self.rate_hz, MOST_RATE_HZ)
        check_count("SoundPreprocess(samples", self.samples, _MOST_SAMPLES)
        for name, words in (("shorter", get_args(Shorter)), ("longer", get_args(Longer))):
            if getattr(self, name) not in words:
                raise SettingError(f"SoundPreprocess({name}={getattr(self, name)!r:.80}): use one of {words}")
        if self.features is None:
            return
        if not isinstance(self.features, LogMel):
            raise SettingError(f"SoundPreprocess(features={short(self.features)}): give a LogMel, or None")
        self.features.check_rate(self.rate_hz)
        if self.samples < (least := self.features.least_samples()):
            raise SettingError(
                f"SoundPreprocess(samples={self.samples}) is too short for features of {self.features.fft} samples, "
                f"which need at least {least}: give more samples, or a smaller fft"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what a sound becomes: `[1, mels, frames]`, or `[T]` of a waveform."""
        if self.features is None:
            return (self.samples,)
        return 1, self.features.mels, self.features.frames(self.samples)

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest."""
        values = asdict(self)
        features = values.pop("features")
        steps = [{"step": SOUND} | values]
        return {"steps": steps if features is None else [*steps, {"step": LOG_MEL} | features]}

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """Read what `to_json` returned.

        Args:
            data: The plain data.

        Returns:
            The preprocessing.

        Raises:
            SchemaError: A step or a setting is unknown to this version.
            CorruptError: The data do not read.

        Example:
            >>> preprocess = dynamic.data.SoundPreprocess(16000, 16000)
            >>> dynamic.data.SoundPreprocess.from_json(preprocess.to_json()) == preprocess
            True
        """
        try:
            steps = items(data["steps"], "steps", mapping, most=len(_KINDS))
            by_kind: dict[str, dict[str, Any]] = {}
            for kind, entry in zip((SOUND, LOG_MEL), steps, strict=False):
                settings = {name: value for name, value in entry.items() if name != "step"}
                if entry["step"] != kind or not _KINDS[kind].issuperset(settings):
                    raise SchemaError(
                        f"preprocessing step {short(entry)} is not known to this version: update dynamic-inference"
                    )
                by_kind[kind] = settings
            features = LogMel(**by_kind[LOG_MEL]) if LOG_MEL in by_kind else None
            return cls(**by_kind[SOUND], features=features)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
            raise CorruptError(
                f"preprocessing {short(data)} does not read ({error}): build the bundle again"
            ) from error

    def __call__(self, sounds: Any, shape: Sequence[Side] | None = None) -> Floats:
        """Preprocess sounds.

        Args:
            sounds: A `Sound`, an array `[T]`, a batch `[B, T]`, a list of sounds of any lengths, or `(rate, array)`
                as scipy.io.wavfile.read returns it.
            shape: Required shape of the result without its batch dimension. None: any.

        Returns:
            float32 `[B, 1, mels, frames]`, or `[B, T]` of waveforms.

        Raises:
            InputError: A sound is of another rate, length, kind or dtype, is stereo, or is not finite.

        Example:
            >>> preprocess = dynamic.data.SoundPreprocess(8000, 4000, features=None, shorter="pad")
            >>> preprocess([np.ones(3000), np.ones(4000)]).sum(axis=1).tolist()
            [3000.0, 4000.0]
        """
        try:
            rows = self._rows(sounds)
            self.check_shape(shape)
            return np.stack([self._one(row) for row in rows])
        except MemoryError as error:
            raise InputError(f"the sounds do not fit in memory ({error}): give fewer at a time") from error

    def check(self, sounds: Any, shape: Sequence[Side]) -> None:
        """Check that sounds can be preprocessed, without computing their features.

        Args:
            sounds: Sounds as for a call.
            shape: Required shape of the result without its batch dimension.

        Raises:
            InputError: As a call does, but for values that are not finite or far above 1.

        Example:
            >>> preprocess = dynamic.data.SoundPreprocess(8000, 4000, features=None)
            >>> preprocess.check(np.zeros(4000), (4000,))
        """
        self._rows(sounds)
        self.check_shape(shape)

    def is_single(self, sounds: Any) -> bool:
        """Return whether this is one sound, and not a batch.

        Args:
            sounds: Sounds as for a call.

        Returns:
            Whether it is one.

        Raises:
            InputError: It is neither.

        Example:
            >>> dynamic.data.SoundPreprocess(8000, 4000).is_single(np.zeros(4000))
            True
        """
        return not _is_list(sounds) and samples_of(sounds, self.rate_hz, self.samples).ndim == 1

    def check_packages(self) -> None:
        """Check the packages that it needs: none beside numpy."""

    def _rows(self, sounds: Any) -> list[NDArray[Any]]:
        """The samples of each sound, whose lengths fit."""
        if not _is_list(sounds):
            samples = samples_of(sounds, self.rate_hz, self.samples)
            rows = [samples] if samples.ndim == 1 else list(samples)
        else:
            if not len(sounds):
                raise InputError("no sounds: give at least one")
            if np.isscalar(sounds[0]) and not isinstance(sounds[0], (str, bytes)):
                raise InputError(
                    f"the sounds are a list of {len(sounds)} numbers, expected one of arrays [T]: give one sound as an "
                    "array, np.asarray(samples)"
                )
            rows = [samples_of(sound, self.rate_hz, self.samples) for sound in sounds]
            shape = next((row.shape for row in rows if row.ndim != 1), None)
            if shape is not None:
                raise InputError(
                    f"a sound of the list has shape {list(shape)}, expected [T]: average its channels first"
                )
        for row in rows:
            self._check_length(len(row))
        return rows

    def _check_length(self, length: int) -> None:
        if length < self.samples and self.shorter == "error":
            raise InputError(
                f"the sound has {length} samples, {length / self.rate_hz:g} s, and is too short: expected "
                f'{self.samples}. Give more of it, or build with shorter="pad"'
            )
        if length > self.samples and self.longer == "error":
            raise InputError(
                f"the sound has {length} samples, {length / self.rate_hz:g} s, and is too long: expected "
                f"{self.samples}. Cut it into windows, dynamic.data.windows(samples, {self.samples}), or build with "
                'longer="cut"'
            )

    def check_shape(self, shape: Sequence[Side] | None) -> None:
        """Check that this is what a network takes.

        Args:
            shape: Shape of the network's input without its batch dimension. None: any.

        Raises:
            InputError: A sound becomes something else.

        Example:
            >>> dynamic.data.SoundPreprocess(8000, 4000, features=None).check_shape((4000,))
        """
        if shape is not None and not fits(self.shape, shape):
            raise InputError(
                f"preprocessing makes {list(self.shape)} of a sound, and the network takes "
                f"[{', '.join(map(str, shape))}]: build with the preprocessing that made its training inputs"
            )

    def _one(self, row: NDArray[Any]) -> Floats:
        doubles = scaled(row[: self.samples])
        if len(doubles) < self.samples:
            doubles = np.pad(doubles, (0, self.samples - len(doubles)))
        if self.features is None:
            return doubles.astype(np.float32)
        return levels_of(doubles, self.features, self.rate_hz)[None]


def _is_list(sounds: Any) -> bool:
    """Whether these are several sounds: a list, or a tuple that is no `(rate, array)`."""
    if isinstance(sounds, tuple):
        return not (len(sounds) == 2 and isinstance(sounds[0], (int, np.integer)))
    return isinstance(sounds, list)


def is_sound(data: Any) -> bool:
    """Whether plain data of a manifest are those of a sound's preprocessing."""
    try:
        return bool(data["steps"][0]["step"] == SOUND)
    except (KeyError, TypeError, IndexError):
        return False


__all__ = ["Sound", "SoundPreprocess", "is_sound"]
