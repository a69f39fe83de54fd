"""wav files, written by the standard library and by scipy."""

import io
import os
import struct
import threading
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import wavfile

from dynamic.data import Sound, load_sound
from dynamic.data.sound import sound_files
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


@pytest.mark.parametrize(("channels", "width"), [(1, 2), (2, 3), (1, 1)])
def test_a_damaged_header_is_an_error_in_words_or_a_sound(channels: int, width: int, tmp_path: Path) -> None:
    """Every byte of the header takes every value, as content. Every 16th also as a file."""
    whole = wav(bytes(range(1, 121)), channels, width)
    path = tmp_path / "damaged.wav"
    named: set[bool] = set()
    for place in range(44):
        for value in range(256):
            content = bytearray(whole)
            content[place] = value
            if value % 16 == 0:
                path.write_bytes(content)
            for source in (content, path) if value % 16 == 0 else (content,):
                try:
                    sound = load_sound(source, mono=True)
                except InputError as error:
                    named.add("damaged.wav" in str(error) or source is content)
                else:
                    assert isinstance(sound, Sound)
    assert named == {True}


@pytest.mark.parametrize("rate", [0, 10_000_001, 2**32 - 1])
def test_a_rate_out_of_range_names_the_file(rate: int, tmp_path: Path) -> None:
    content = bytearray(wav(bytes(10)))
    content[24:28] = struct.pack("<I", rate)
    (tmp_path / "rate.wav").write_bytes(content)
    with pytest.raises(InputError, match=rf"rate\.wav has {rate} samples a second, expected 1 to 10000000"):
        load_sound(tmp_path / "rate.wav")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "NoneType, expected a wav file: give its path"),
        (3, "3 is a int"),
        ([1, 2], "is a list"),
        ("a\0b", r"'a\\x00b' does not read"),
        ("\ud800.wav", r"'\\ud800.wav' does not read"),
        (io.StringIO("RIFF"), "does not read"),
    ],
)
def test_what_is_no_source(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        load_sound(source)
    str(caught.value).encode()  # a terminal can show it


def test_content_of_other_types() -> None:
    content = wav(np.arange(5, dtype="<i2").tobytes())
    for source in (bytearray(content), memoryview(content), io.BytesIO(content)):
        assert load_sound(source).samples.tolist() == list(range(5))  # type: ignore[arg-type]


def piped(samples: bytes, size: int) -> bytes:
    """A wav file whose writer did not know its length, with a list of tags, as ffmpeg writes it to a pipe."""
    tags = b"LIST" + struct.pack("<I", 10) + b"INFOISFT\0\0"
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    return b"RIFF" + struct.pack("<I", size) + b"WAVE" + form + tags + b"data" + struct.pack("<I", size) + samples


@pytest.mark.parametrize("size", [2**32 - 1, 2**31 - 1])
def test_a_file_that_was_written_to_a_pipe(size: int, tmp_path: Path) -> None:
    samples = np.arange(1000, dtype="<i2")
    content = piped(samples.tobytes(), size)
    (tmp_path / "piped.wav").write_bytes(content)
    for source in (content, tmp_path / "piped.wav"):
        np.testing.assert_array_equal(load_sound(source).samples, samples)


def test_an_open_pipe() -> None:
    samples = np.arange(50_000, dtype="<i2")
    reading, writing = os.pipe()

    def write() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(piped(samples.tobytes(), 2**32 - 1))

    writer = threading.Thread(target=write)
    writer.start()
    with os.fdopen(reading, "rb") as file:
        sound = load_sound(file)
    writer.join()
    np.testing.assert_array_equal(sound.samples, samples)


def test_more_than_the_limit_is_refused_where_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_files, "_MOST_BYTES", 2000)
    assert len(load_sound(piped(bytes(2000), 2**32 - 1)).samples) == 1000
    with pytest.raises(InputError, match=r"more than 2000 bytes.*soundfile\.blocks.*dynamic\.data\.windows"):
        load_sound(wav(bytes(2002)))
