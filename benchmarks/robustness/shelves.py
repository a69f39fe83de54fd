"""Two bundles of the same networks' shapes, and what lies about after they were saved."""

import contextlib
import importlib
import io
import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dynamic

FORK = multiprocessing.get_context("fork")
INPUTS = {"input": np.random.default_rng(0).standard_normal((4, 1, 8, 8)).astype(np.float32)}
DEEPEST = np.array([np.inf], np.float32)  # no input exits before the last stage


def build(seed: int) -> dynamic.Bundle:
    """A bundle of two small networks; another seed, other weights of the same shapes."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    networks = [
        nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 4)) for width in (32, 512)
    ]
    inputs, labels = torch.randn(300, 1, 8, 8), torch.arange(300) % 4
    return dynamic.build(networks, [(inputs, labels)], seed=seed, progress=False)


def build_both(folder: Path, seed: int) -> list[Path]:
    """Save two bundles into a folder, in another process, as engines' threads do not survive forks of this one."""

    _import_all()

    def work() -> None:
        for number in (0, 1):
            build(2 * seed + number).save(folder / str(number)).profile(batch=(1,), seconds=0.01, progress=False)

    child = FORK.Process(target=work)
    child.start()
    child.join()
    if child.exitcode:
        sys.exit("the bundles could not be built")
    return [folder / "0", folder / "1"]


def _import_all() -> None:
    """What a build imports, so that children which are forked have it: 4 s each otherwise. No engine is among it."""
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(nn.Linear(2, 2).eval(), (torch.zeros(1, 2),), dynamo=True, verbose=False)
    importlib.import_module("dynamic.offline.building")


def answers(bundle: dynamic.Bundle) -> Any:
    """Logits of the last stage."""
    engine = replace(bundle, preload=False).open(threads=1, route="stages")  # no canaries run
    try:
        return engine.run(INPUTS, DEEPEST).logits
    finally:
        engine.close()


def left(shelf: Path) -> list[str]:
    """What lies beside and in a shelf and is no part of it."""
    beside = [path.name for path in shelf.parent.iterdir() if path.name.startswith(f".{shelf.name}.")]
    return beside + [path.name for path in shelf.rglob(".*")]
