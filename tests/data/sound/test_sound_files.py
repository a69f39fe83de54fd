"""wav files, written by the standard library and by scipy."""

import io
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from dynamic.data import load_sound
from dynamic.policies.errors import InputError


def wav(content: bytes, channels: int = 1, width: int = 2, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((channels, width, rate, 0, "NONE", ""))
        writer.writeframes(content)
    return file.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32])
def test_what_scipy_writes(dtype: Any, tmp_path: Path) -> None:
    limits = np.iinfo(dtype)
    samples = np.random.default_rng(0).integers(limits.min, limits.max, 500, dtype=dtype, endpoint=True)
    wavfile.write(tmp_path / "a.wav", 16000, samples)
    for source in (tmp_path / "a.wav", str(tmp_path / "a.wav"), (tmp_path / "a.wav").read_bytes()):
        sound = load_sound(source)
        assert sound.rate_hz == 16000
        assert sound.samples.dtype == dtype
        np.testing.assert_array_equal(sound.samples, samples)


def test_24_bits_fill_32_from_above() -> None:
    values = [0, 1, -1, 2**23 - 1, -(2**23)]
    content = b"".join(value.to_bytes(3, "little", signed=True) for value in values)
    assert load_sound(wav(content, width=3)).samples.tolist() == [value * 256 for value in values]


def test_several_channels_become_one_if_asked() -> None:
    content = np.array([[16384, 0], [-16384, -32768]], "<i2").tobytes()
    with pytest.raises(InputError, match=r"2 channels, expected 1: .*mono=True"):
        load_sound(wav(content, channels=2))
    assert load_sound(wav(content, channels=2), mono=True).samples.tolist() == [0.25, -0.75]
    eight = np.array([[128, 192]], np.uint8).tobytes()
    assert load_sound(wav(eight, channels=2, width=1), mono=True).samples.tolist() == [0.25]


def test_a_file_that_was_cut_short_has_what_is_there() -> None:
    whole = wav(np.arange(100, dtype="<i2").tobytes())
    assert load_sound(whole[:-51]).samples.tolist() == list(range(74))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not read"),
        (b"RIFF", "does not read"),
        (b"ID3" + bytes(100), "does not read"),
        (wav(b""), "no sample"),
    ],
)
def test_what_is_no_wav_file(content: bytes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load_sound(content)


def test_floats_and_missing_files(tmp_path: Path) -> None:
    wavfile.write(tmp_path / "floats.wav", 8000, np.zeros(10, np.float32))
    with pytest.raises(InputError, match="soundfile"):
        load_sound(tmp_path / "floats.wav")
    with pytest.raises(InputError, match=r"missing\.wav"):
        load_sound(tmp_path / "missing.wav")
