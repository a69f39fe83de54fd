"""Two bundles, processes that end, and mounts. `tests/storage/conftest.py` has the fixtures."""

import functools
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.storage import versioned_folder

LINUX = sys.platform == "linux"
ROOT = LINUX and os.geteuid() == 0
linux = pytest.mark.skipif(not LINUX, reason="needs Linux")
root = pytest.mark.skipif(not ROOT, reason="needs the rights of root")
FORK = multiprocessing.get_context("fork") if LINUX else None


@functools.cache
def built(seed: int) -> Bundle:
    torch.manual_seed(seed)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 4)) for width in (8, 64)]
    inputs, labels = torch.randn(300, 1, 4, 4), torch.arange(300) % 4
    return dynamic.build(networks, [(inputs, labels)])


@pytest.fixture(scope="session")
def one() -> Bundle:
    """A bundle."""
    return built(0)


@pytest.fixture(scope="session")
def other() -> Bundle:
    """Another bundle, of the same shapes."""
    return built(1)


@pytest.fixture(params=["exchange", "rename"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With and without a kernel that exchanges folders."""
    if request.param == "rename":
        monkeypatch.setattr(versioned_folder, "exchange", lambda one, other: False)
    return str(request.param)


INPUTS = {"input": np.random.default_rng(0).standard_normal((5, 1, 4, 4)).astype(np.float32)}
ALL = np.array([np.inf], np.float32)


def logits(bundle: Bundle, **options: Any) -> Any:
    engine = bundle.open(**options)
    try:
        return engine.run(INPUTS, ALL).logits
    finally:
        engine.close()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def forked(work: Any, *args: Any) -> int:
    """What a forked child that runs this ends with."""
    assert FORK is not None
    child = FORK.Process(target=work, args=args)
    child.start()
    child.join(60)
    assert child.exitcode is not None
    return child.exitcode


@contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounts are not allowed here: {done.stderr.decode()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
