"""Log-mel features against torch.stft, scipy and filters computed by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal

from dynamic.data import LogMel, Sound
from dynamic.policies.errors import InputError, SettingError

RATE = 8000
Doubles = np.ndarray[Any, Any]


def chirp(count: int, seed: int = 0) -> Doubles:
    """A tone that rises, in noise: every filter has energy, and some have little."""
    random, time = np.random.default_rng(seed), np.arange(count) / RATE
    return 0.5 * np.sin(2 * np.pi * (200 + 900 * time) * time) + random.normal(0, 0.01, count)


def triangles(mels: int, fft: int, low: float, high: float) -> Doubles:
    """HTK's filters `[mels, fft // 2 + 1]`, one value after the other, as its book defines them."""
    edge = [
        700 * (10 ** (mel / 2595) - 1)
        for mel in np.linspace(2595 * np.log10(1 + low / 700), 2595 * np.log10(1 + high / 700), mels + 2)
    ]
    bank = np.zeros((mels, fft // 2 + 1))
    for m in range(mels):
        for k in range(fft // 2 + 1):
            hz = k * RATE / fft
            if edge[m] < hz <= edge[m + 1]:
                bank[m, k] = (hz - edge[m]) / (edge[m + 1] - edge[m])
            elif edge[m + 1] < hz < edge[m + 2]:
                bank[m, k] = (edge[m + 2] - hz) / (edge[m + 2] - edge[m + 1])
    return bank


def by_torch(sound: Doubles, features: LogMel, dtype: torch.dtype) -> Doubles:
    """What training with torch computes: torch.stft, HTK's filters, the logarithm."""
    window = features.fft if features.window is None else features.window
    make = torch.hann_window if features.window_shape == "hann" else torch.hamming_window
    spectrum = torch.stft(
        torch.from_numpy(sound).to(dtype),
        features.fft,
        features.hop,
        window,
        make(window, dtype=dtype),
        center=features.padding != "none",
        pad_mode="reflect" if features.padding == "reflect" else "constant",
        return_complex=True,
    )
    high = RATE / 2 if features.high_hz is None else features.high_hz
    bank = torch.from_numpy(triangles(features.mels, features.fft, features.low_hz, high)).to(dtype)
    mel = bank @ spectrum.abs().pow(features.power)
    mel = mel + features.floor if features.floor_mode == "add" else mel.clamp(min=features.floor)
    levels = torch.log(mel) if features.log == "natural" else 10 * torch.log10(mel)
    return ((levels - features.mean) / features.std).numpy()


SETTINGS = [
    LogMel(mels=40, fft=256, hop=80),
    LogMel(mels=20, fft=256, window=200, hop=100, low_hz=50.0, high_hz=3600.0, window_shape="hamming"),
    LogMel(mels=23, fft=255, window=201, hop=77, padding="zeros", power=1.0, log="decibel", floor_mode="maximum"),
    LogMel(mels=32, fft=512, window=400, hop=160, padding="none", mean=-4.0, std=3.0, floor=1e-3),
]


@pytest.mark.parametrize("count", [1024, 4001, 8000])
@pytest.mark.parametrize("features", SETTINGS)
def test_features_are_those_of_torch(features: LogMel, count: int) -> None:
    own = features(chirp(count), RATE)
    assert own.dtype == np.float32
    assert own.flags.c_contiguous
    assert own.shape == (features.mels, features.frames(count))
    np.testing.assert_allclose(own, by_torch(chirp(count), features, torch.float64), rtol=1e-6, atol=1e-5)


def test_features_are_those_of_torch_in_float32() -> None:
    features = LogMel(mels=40, fft=256, hop=80)
    sound = chirp(8000).astype(np.float32)
    # torch rounds the spectrum, which shows where a filter holds little energy
    np.testing.assert_allclose(features(sound, RATE), by_torch(sound, features, torch.float32), rtol=1e-5, atol=1e-5)


def test_the_spectrum_is_that_of_scipy() -> None:
    features = LogMel(mels=24, fft=256, hop=64, padding="none")
    window = signal.get_window("hann", 256)  # periodic
    transform = signal.ShortTimeFFT(window, hop=64, fs=RATE, scale_to=None)
    sound = chirp(4000)
    # slice p of scipy is around sample 64 p, and ours begins there
    spectrum = transform.stft(sound, p0=2, p1=2 + features.frames(4000))
    expected = np.log(triangles(24, 256, 0.0, 4000.0) @ np.abs(spectrum) ** 2 + 1e-6)
    np.testing.assert_allclose(features(sound, RATE), expected, rtol=0, atol=1e-5)


def impulse_response(features: LogMel) -> Doubles:
    """The sum of every filter: one impulse in the middle of the window has the power 1 at every frequency."""
    sound = np.zeros(features.fft)
    sound[features.fft // 2] = 1.0  # where the periodic window is 1
    return np.exp(features(sound, RATE)[:, 0].astype(np.float64)) - features.floor


def test_filters_on_slaneys_scale_are_as_computed_by_hand() -> None:
    # 0 to 1000 Hz are 15 mel, linear: edges at 0, 250, 500, 750, 1000. Spectra lie 125 Hz apart, and each filter of
    # height 1 holds 0.5 + 1 + 0.5. Of equal area, it is 2 / 500 as high
    by_height = LogMel(mels=3, fft=64, hop=64, high_hz=1000.0, mel_scale="slaney", padding="none")
    by_area = LogMel(mels=3, fft=64, hop=64, high_hz=1000.0, mel_scale="slaney", padding="none", area_normalized=True)
    np.testing.assert_allclose(impulse_response(by_height), [2.0, 2.0, 2.0], rtol=1e-6)
    np.testing.assert_allclose(impulse_response(by_area), [0.008, 0.008, 0.008], rtol=1e-4)


def test_slaneys_scale_is_logarithmic_above_1000_hz() -> None:
    # 27 mel above 1000 Hz is 6400 Hz, so 13.5 is sqrt(6.4) of it: edges 1000, 2529.82 and, above 8 kHz, 6400
    features = LogMel(mels=1, fft=16, hop=16, low_hz=1000.0, high_hz=6400.0, mel_scale="slaney", padding="none")
    sound = np.zeros(16)
    sound[8] = 1.0
    middle = 1000 * 6.4**0.5
    falling = [(6400 - hz) / (6400 - middle) for hz in (3000, 4000, 5000, 6000)]
    expected = (2000 - 1000) / (middle - 1000) + sum(falling)
    energy = np.exp(float(features(sound, 16000)[0, 0])) - 1e-6
    assert energy == pytest.approx(expected, rel=1e-5)


def test_silence_is_the_floor() -> None:
    assert LogMel(floor=1e-6)(np.zeros(800), 16000) == pytest.approx(np.log(1e-6))
    assert LogMel(floor=1e-10, floor_mode="maximum", log="decibel")(np.zeros(800), 16000) == pytest.approx(-100.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mels": 0}, "mels=0"),
        ({"mels": 2.5}, "mels=2.5"),
        ({"fft": 1}, "fft=1"),
        ({"fft": 2**20}, "65536"),
        ({"hop": True}, "hop=True"),
        ({"window": 500}, "window=500"),
        ({"low_hz": -1.0}, "low_hz=-1.0"),
        ({"low_hz": 100.0, "high_hz": 90.0}, "more than low_hz=100.0"),
        ({"floor": 0.0}, "floor=0.0"),
        ({"std": 0.0}, "std=0.0"),
        ({"mean": float("nan")}, "mean=nan"),
        ({"log": "ln"}, "natural"),
        ({"padding": "edge"}, "reflect"),
        ({"mel_scale": "bark"}, "slaney"),
        ({"area_normalized": 1}, "area_normalized=1"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingError, match=words):
        LogMel(**settings)


def test_filters_above_half_the_rate_are_refused() -> None:
    with pytest.raises(SettingError, match=r"high_hz=5000.*up to 4000 Hz"):
        LogMel(high_hz=5000.0)(np.zeros(8000), RATE)


@pytest.mark.parametrize(("padding", "least"), [("reflect", 201), ("zeros", 1), ("none", 400)])
def test_a_sound_that_is_too_short(padding: Any, least: int) -> None:
    features = LogMel(padding=padding)
    assert features(np.zeros(least), 16000).shape == (64, features.frames(least))
    if least > 1:
        with pytest.raises(InputError, match=f"need at least {least}"):
            features(np.zeros(least - 1), 16000)


@pytest.mark.parametrize(("dtype", "zero", "full"), [(np.uint8, 128, 128), (np.int16, 0, 2**15), (np.int32, 0, 2**31)])
@pytest.mark.parametrize("order", ["=", ">"])
def test_integers_are_as_loud_as_the_floats_they_stand_for(dtype: Any, zero: int, full: int, order: str) -> None:
    floats = np.round(0.9 * np.sin(np.arange(800) / 5) * 100) / 128  # whole numbers in each type
    integers = (floats * full + zero).astype(np.dtype(dtype).newbyteorder(order))
    features = LogMel()
    np.testing.assert_array_equal(features(integers, 16000), features(floats, 16000))
    np.testing.assert_array_equal(features(Sound(integers, 16000), 16000), features(floats, 16000))


@pytest.mark.parametrize(
    ("sound", "rate_hz", "error", "words"),
    [
        (np.full(800, np.nan), 16000, InputError, "not finite"),
        (np.full(800, -np.inf), 16000, InputError, "not finite"),
        (np.full(800, 12000.0), 16000, InputError, "up to 12000.*32768"),
        (np.zeros(800, np.int64), 16000, InputError, "int64"),
        (np.zeros((2, 800)), 16000, InputError, r"shape \[2, 800\], expected \[T\]"),
        (None, 16000, InputError, "NoneType"),
        (Sound(np.zeros(800), 8000), 16000, InputError, "8000 samples a second, expected 16000"),
        (np.zeros(800), 0, SettingError, "rate_hz=0"),
        (np.zeros(800), 16000.0, SettingError, "rate_hz=16000.0"),
    ],
)
def test_what_is_no_sound(sound: Any, rate_hz: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        LogMel()(sound, rate_hz)
