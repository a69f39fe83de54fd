"""Windows of a stream of samples."""

from collections.abc import Iterable, Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dynamic.data.number_steps import check_count
from dynamic.data.sound.waveform import Sound, check_rate, numbers_of
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.validation.numbers import plain

_MOST = 2**24


def windows(
    stream: Sound | NDArray[Any] | Iterable[Any],
    samples: int,
    hop: int | None = None,
    *,
    last: Literal["drop", "pad"] = "drop",
) -> Iterator[NDArray[Any]]:
    """Cut a stream of samples into windows, as they arrive.

    Window i starts at sample `i * hop`. At most one window and one block are kept in memory.

    Args:
        stream: Blocks of samples `[n]` of any lengths, such as a microphone gives them, or all samples at once.
        samples: Length of a window.
        hop: Samples from one window to the next. None: half a window.
        last: What becomes of samples behind the last whole window: "drop", or "pad", which adds zeros. Zeros are
            silence for floats and for integers with a sign. For uint8 it is 128.

    Yields:
        Windows `[samples]`, of the dtype of the blocks. Each is an array of its own.

    Raises:
        InputError: The stream is nothing of that, or a block has several channels, or another dtype or rate than one
            before.
        SettingError: A length is out of range, `hop` exceeds `samples`, or `last` is unknown.

    Example:
        >>> blocks = (np.arange(3) + 3 * i for i in range(4))
        >>> [window.tolist() for window in dynamic.data.windows(blocks, 6, hop=3)]
        [[0, 1, 2, 3, 4, 5], [3, 4, 5, 6, 7, 8], [6, 7, 8, 9, 10, 11]]
    """
    samples, hop = plain(samples), plain(hop)
    check_count("windows(samples", samples, _MOST)
    hop = max(1, samples // 2) if hop is None else hop
    check_count("windows(hop", hop, _MOST)
    if hop > samples:
        raise SettingError(f"hop={hop} exceeds the window of {samples} samples, and some would be in none: give less")
    if last not in ("drop", "pad"):
        raise SettingError(f"last={last!r:.80} is unknown: use 'drop' or 'pad'")
    if isinstance(stream, Sound):
        stream = stream.samples
    if not isinstance(stream, Iterable) or isinstance(stream, (str, bytes)):
        numbers_of(stream, "the stream")
    return _cut(_blocks(stream), samples, hop, last == "pad")


def _cut(blocks: Iterator[NDArray[Any]], samples: int, hop: int, pad: bool) -> Iterator[NDArray[Any]]:
    rest: NDArray[Any] | None = None  # samples that no complete window began with
    fresh = 0  # of them, how many no window has shown
    for block in blocks:
        if rest is not None and rest.dtype != block.dtype:
            raise InputError(f"a block is of {block.dtype}, and those before of {rest.dtype}: give all of one dtype")
        rest = block if rest is None else np.concatenate([rest, block])
        fresh += len(block)
        start = 0
        while len(rest) - start >= samples:
            yield rest[start : start + samples].copy()
            start += hop
            fresh = len(rest) - start - (samples - hop)
        rest = rest[start:].copy()
    if pad and rest is not None and fresh > 0:
        silence = 128 if rest.dtype == np.uint8 else 0
        yield np.pad(rest, (0, samples - len(rest)), constant_values=silence)


def _blocks(stream: Any) -> Iterator[NDArray[Any]]:
    """The blocks of a stream, checked."""
    at_once = hasattr(stream, "shape") or (isinstance(stream, (list, tuple)) and all(map(np.isscalar, stream)))
    rate_hz: int | None = None
    for block in (stream,) if at_once else stream:
        if isinstance(block, Sound):
            rate_hz = block.rate_hz if rate_hz is None else rate_hz
            check_rate(block.rate_hz, rate_hz)
        array = numbers_of(block.samples if isinstance(block, Sound) else block, "a block of the stream")
        if array.ndim != 1:
            raise InputError(
                f"a block of the stream has shape {list(array.shape)}, expected [n]: average its channels first"
            )
        yield array
