"""A short form of what `benchmarks/robustness` tries on requests: inputs, buffers and swaps."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.robustness.buffers import buffers
from benchmarks.robustness.inputs import inputs
from benchmarks.robustness.swaps import swaps


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Benchmarks silence the log."""
    logger = logging.getLogger("dynamic")
    level = logger.level
    yield
    logger.setLevel(level)


def test_generated_inputs() -> None:
    counts = inputs(seed=1, count=400, engines=("onnxruntime",))
    assert (counts["tried"], counts["answered"] + counts["refused"]) == (400, 400), counts["errors"]
    for key in ("raw", "certified_without_answer", "certified_not_finite", "wrong_answers"):
        assert counts[key] == 0, counts["errors"]
    assert counts["certified"] > 100


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_one_buffer_and_a_large_picture() -> None:
    counts = buffers(seed=1, count=100, side=6000)
    assert counts["right"] == 100
    assert counts["peaks_above_limit"] == 0, counts["peaks"]


def test_no_request_fails_during_swaps() -> None:
    counts = swaps(seed=1, count=3, seconds=0.05)  # rates depend on the machine: the benchmark judges them
    assert (counts["swaps"], counts["failed"]) == (3, 0)
    assert counts["requests"] > 0
