"""Waveforms as users have them: their lengths, types and rates, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
import torch

from dynamic.data import LogMel, Preprocess, Sound, SoundPreprocess
from dynamic.policies.errors import CorruptError, InputError, SchemaError, SettingError

RAW = SoundPreprocess(8000, 400, features=None)
FEATURES = SoundPreprocess(8000, 4000, LogMel(mels=20, fft=256, hop=100), shorter="pad", longer="cut")


def noise(count: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 0.1, count)


def test_features_of_one_a_batch_and_a_list() -> None:
    one, other = noise(4000), noise(4000, seed=1)
    batch = FEATURES(np.stack([one, other]))
    assert batch.shape == (2, *FEATURES.shape) == (2, 1, 20, 41)
    np.testing.assert_array_equal(FEATURES([one, Sound(other, 8000)]), batch)
    np.testing.assert_array_equal(FEATURES(one), batch[:1])
    np.testing.assert_array_equal(FEATURES((8000, other)), batch[1:])
    np.testing.assert_array_equal(FEATURES(torch.from_numpy(one)), batch[:1])
    np.testing.assert_array_equal(batch[0, 0], LogMel(mels=20, fft=256, hop=100)(one, 8000))


@pytest.mark.parametrize(
    ("dtype", "values", "expected"),
    [
        (np.int16, [-32768, 0, 16384], [-1.0, 0.0, 0.5]),
        (np.int32, [-(2**31), 0, 2**30], [-1.0, 0.0, 0.5]),
        (np.uint8, [0, 128, 192], [-1.0, 0.0, 0.5]),
        (np.float32, [-1.0, 0.0, 0.5], [-1.0, 0.0, 0.5]),
        (np.float64, [-1.5, 0.0, 0.5], [-1.5, 0.0, 0.5]),
        (np.float16, [-1.0, 0.0, 0.5], [-1.0, 0.0, 0.5]),
    ],
)
def test_integers_are_scaled_as_stated(dtype: Any, values: list[float], expected: list[float]) -> None:
    samples = SoundPreprocess(8000, 3, features=None)(np.array(values, dtype))
    assert samples.dtype == np.float32
    assert samples.tolist() == [expected]


def test_lengths() -> None:
    fitting = SoundPreprocess(8000, 4, features=None, shorter="pad", longer="cut")
    assert fitting([np.ones(2), np.ones(4), np.arange(6) / 8]).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 1],
        [0, 0.125, 0.25, 0.375],
    ]


@pytest.mark.parametrize(
    ("sound", "words"),
    [
        (Sound(np.zeros(400), 44100), r"44100 samples a second, expected 8000.*resample_poly\(samples, 80, 441\)"),
        ((16000, np.zeros(400)), r"16000 samples a second.*resample_poly\(samples, 1, 2\)"),
        (Sound(np.zeros((400, 2)), 8000), r"\[400, 2\].*mean"),
        (Sound(np.zeros((2, 400)), 8000), r"\[2, 400\].*mean"),
        (np.zeros((400, 2)), r"\[400, 2\].*mean"),
        ([np.zeros((2, 400))], r"\[2, 400\].*average"),
        (np.zeros((1, 2, 400)), r"\[1, 2, 400\]"),
        (np.zeros(()), r"shape \[\]"),
        (np.zeros(399), r"399 samples, 0.049875 s, and is too short: expected 400.*pad"),
        (np.zeros(401), r"401 samples.*too long.*windows\(samples, 400\)"),
        (np.zeros(0), "empty"),
        (np.zeros((0, 400)), "empty"),
        ([], "at least one"),
        (np.zeros(400, np.int64), "int64.*32768"),
        (np.zeros(400, np.uint16), "uint16"),
        (np.zeros(400, bool), "bool"),
        (np.zeros(400, complex), "complex"),
        (np.full(400, 12000.0), "up to 12000.*32768"),
        (np.full(400, np.nan), "not finite"),
        (np.full(400, np.inf), "not finite"),
        ("a.wav", "load_sound"),
        (None, "NoneType"),
        ([0.1] * 400, "list of 400 numbers.*asarray"),
        ([np.float32(0.1)] * 400, "list of 400 numbers.*asarray"),
        ([np.zeros(400), 0.1], "one number"),
        (np.zeros((400, 16)), r"\[400, 16\].*mean.*as a list"),
    ],
)
def test_what_is_refused(sound: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        RAW(sound)


def test_a_check_refuses_shapes_and_types_without_features() -> None:
    FEATURES.check(noise(10), FEATURES.shape)
    for sound in (np.zeros((400, 2)), Sound(np.zeros(400), 44100), "a.wav", np.zeros(400, np.int64)):
        with pytest.raises(InputError):
            RAW.check(sound, (400,))
    with pytest.raises(InputError, match=r"makes \[1, 20, 41\].*takes \[1, 40, 41\]"):
        FEATURES.check(noise(4000), (1, 40, 41))


def test_one_sound_or_a_batch() -> None:
    assert RAW.is_single(np.zeros(400))
    assert RAW.is_single(Sound(np.zeros(400), 8000))
    assert RAW.is_single((8000, np.zeros(400)))
    assert not RAW.is_single(np.zeros((1, 400)))
    assert not RAW.is_single([np.zeros(400)])


@pytest.mark.parametrize("preprocess", [RAW, FEATURES, SoundPreprocess(16000, 16000, LogMel(high_hz=7600.0))])
def test_it_travels_as_json(preprocess: SoundPreprocess) -> None:
    assert SoundPreprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_a_version_without_sound_asks_for_an_update() -> None:
    with pytest.raises(SchemaError, match="update"):
        Preprocess.from_json(FEATURES.to_json())


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ({"steps": [{"step": "sound", "rate_hz": 8000, "samples": 400, "noise_gate": 1}]}, SchemaError),
        ({"steps": [{"step": "sound", "rate_hz": 8000, "samples": 400}, {"step": "mfcc"}]}, SchemaError),
        ({"steps": [{"step": "sound", "rate_hz": 8000}]}, CorruptError),
        ({"steps": [{"step": "sound", "rate_hz": "8000", "samples": 400}]}, CorruptError),
        ({"steps": [{"step": "sound", "rate_hz": 8000, "samples": 2**40}]}, CorruptError),
        ({"steps": [{"step": "sound", "rate_hz": 8000, "samples": 400}] * 3}, CorruptError),
        ({"steps": []}, CorruptError),
        ({"steps": 3}, CorruptError),
    ],
)
def test_what_does_not_read(data: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        SoundPreprocess.from_json(data)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rate_hz": 0}, "rate_hz=0"),
        ({"samples": -1}, "samples=-1"),
        ({"shorter": "repeat"}, "pad"),
        ({"longer": "random"}, "cut"),
        ({"features": "mfcc"}, "give a LogMel"),
        ({"samples": 100}, "too short for features of 400"),
        ({"features": LogMel(high_hz=8000.0)}, "up to 4000 Hz"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        SoundPreprocess(**({"rate_hz": 8000, "samples": 8000} | settings))


def test_a_batch_of_short_sounds_is_no_sound_of_many_channels() -> None:
    short = SoundPreprocess(8000, 16, features=None)
    batch = np.linspace(-1, 1, 64 * 16).reshape(64, 16)
    np.testing.assert_array_equal(short(batch), batch.astype(np.float32))
    assert not short.is_single(batch)
    with pytest.raises(InputError, match="several channels"):
        short(np.zeros((64, 15)))


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32])
def test_other_byte_orders_are_the_same_sound(dtype: Any) -> None:
    """scipy reads the samples of a file that begins with RIFX in its order."""
    samples = noise(400) if dtype == np.float32 else np.arange(400, dtype=dtype) * 50
    samples = samples.astype(dtype)
    other = samples.astype(samples.dtype.newbyteorder(">"))
    np.testing.assert_array_equal(RAW(other), RAW(samples))
    np.testing.assert_array_equal(RAW((8000, other)), RAW(samples))
    np.testing.assert_array_equal(RAW(other[None]), RAW(samples))


@pytest.mark.parametrize(("samples", "words"), [(None, "NoneType"), (0.5, "one number"), ("a.wav", "load_sound")])
def test_a_sound_of_nothing(samples: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Sound(samples, 8000)


def test_a_sound_of_a_list_has_an_array() -> None:
    assert Sound([0.5] * 8000, np.int64(8000)).seconds == 1.0  # type: ignore[arg-type]
