"""Windows of a stream: the same as slices of all samples, however the stream is cut into blocks."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from dynamic.data import Sound, windows
from dynamic.policies.errors import InputError, SettingError


@pytest.mark.parametrize(("samples", "hop"), [(10, 5), (10, 10), (10, 1), (7, 3), (1, 1), (100, 50)])
@pytest.mark.parametrize("last", ["drop", "pad"])
@pytest.mark.parametrize("total", [0, 1, 9, 10, 11, 57, 100])
@pytest.mark.parametrize("seed", range(3))
def test_windows_are_slices(samples: int, hop: int, last: Any, total: int, seed: int) -> None:
    everything = np.arange(1, total + 1, dtype=np.int16)
    expected = [everything[i : i + samples].tolist() for i in range(0, total - samples + 1, hop)]
    shown = (len(expected) - 1) * hop + samples if expected else 0
    if last == "pad" and shown < total:
        rest = everything[len(expected) * hop :].tolist()
        expected.append(rest + [0] * (samples - len(rest)))
    cuts = np.sort(np.random.default_rng(seed).integers(0, total + 1, seed * 4))
    found = list(windows(np.split(everything, cuts), samples, hop, last=last))
    assert [window.tolist() for window in found] == expected
    assert [window.tolist() for window in windows(everything, samples, hop, last=last)] == expected
    assert all(window.dtype == np.int16 for window in found)


def test_a_window_comes_as_soon_as_it_is_complete() -> None:
    given = 0

    def microphone() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal given
        while True:
            given += 1
            yield np.zeros(4)

    stream = windows(microphone(), 10, hop=5)
    next(stream)
    assert given == 3
    next(stream)
    assert given == 4


def test_a_window_is_an_array_of_its_own() -> None:
    block = np.zeros(8)
    first, second = windows([block], 6, hop=2)
    first[:] = 1.0
    assert not second.any()
    assert not block.any()


def test_half_a_window_is_the_default_and_uint8_is_padded_with_silence() -> None:
    sound = Sound(np.full(5, 200, np.uint8), 8000)
    assert [window.tolist() for window in windows(sound, 4, last="pad")] == [[200] * 4, [200, 200, 200, 128]]


def test_what_is_refused() -> None:
    for samples, hop in ((0, 1), (4, 0), (4, 1.5)):
        with pytest.raises(SettingError, match="whole number"):
            windows(np.zeros(9), samples, hop)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="hop=5 exceeds the window of 4"):
        windows(np.zeros(9), 4, 5)
    with pytest.raises(SettingError, match="drop"):
        windows(np.zeros(9), 4, last="keep")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"shape \[9, 2\]"):
        list(windows(np.zeros((9, 2)), 4))
    with pytest.raises(InputError, match="float32, and those before of int16"):
        list(windows([np.zeros(3, np.int16), np.zeros(3, np.float32)], 4))
    for nothing in (None, 3, "a.wav"):
        with pytest.raises(InputError):
            windows(nothing, 4)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    found = windows(np.arange(6), np.int64(4), np.int32(2))  # type: ignore[arg-type]
    assert [window.tolist() for window in found] == [[0, 1, 2, 3], [2, 3, 4, 5]]


def test_blocks_have_one_rate() -> None:
    blocks = [Sound(np.zeros(3), 8000), np.zeros(3), Sound(np.zeros(3), 8000)]
    assert len(list(windows(blocks, 9))) == 1
    with pytest.raises(InputError, match=r"16000 samples a second, expected 8000.*resample"):
        list(windows([*blocks, Sound(np.zeros(3), 16000)], 9))


def test_blocks_of_other_byte_orders_are_joined() -> None:
    blocks = [np.arange(2, dtype=">i2"), np.arange(2, 4, dtype="<i2")]
    (window,) = windows(blocks, 4)
    assert window.tolist() == [0, 1, 2, 3]
    assert window.dtype == np.int16
