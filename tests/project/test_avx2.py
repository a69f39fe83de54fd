"""Engines limited to AVX2, or to AVX-512 without VNNI: what they add, and what a bundle makes of it there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dynamic
from dynamic.errors import EngineError
from dynamic.models.compress.quantization.static_int8 import quantize

LIMIT = Path(__file__).parents[1] / "avx2" / "limit.py"

REPORT = """
import json, sys
import numpy as np
import dynamic
from dynamic.bundle.bundle import Bundle
bundle = dynamic.load(sys.argv[1])
report = bundle.check()
with bundle.runtime(dynamic.Budget(max_drop=0.5), monitor=dynamic.FixedMonitor()) as run:
    result = run(np.ones((1, 64), np.float32))
print(json.dumps({"agrees": report.agrees, "worst": report.worst.share, "stage": report.worst.stage,
    "text": str(report), "certified": result.certified}))
"""


@pytest.fixture(scope="module", params=[[], ["--avx512"]], ids=["avx2", "avx512"])
def limits(request: pytest.FixtureRequest) -> list[str]:
    """Options of `limit.py` that this machine can do."""
    options: list[str] = request.param
    check = subprocess.run(
        [sys.executable, str(LIMIT), *options, "--check"], capture_output=True, text=True, check=False
    )
    if check.returncode:
        pytest.skip(check.stderr.strip())
    return options


class Positive(nn.Module):
    """Weights of one sign: with 8 bits all pairs saturate where inputs are large."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 4, bias=False)
        with torch.no_grad():
            self.layer.weight.uniform_(0.8, 1.0, generator=torch.Generator().manual_seed(seed))
            for c in range(4):
                self.layer.weight[c, 16 * c : 16 * c + 16] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) / 4


class Dear(Positive):
    """The same in float, with a layer before it that changes nothing and costs much."""

    def __init__(self) -> None:
        super().__init__(1)
        self.first = nn.Linear(64, 64, bias=False)
        nn.init.eye_(self.first.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.first(x))


def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Four kinds of inputs, each bright in another quarter. One label in twenty is wrong."""
    random, label = torch.Generator().manual_seed(0), torch.arange(1200) % 4
    x = 0.55 + 0.1 * torch.rand(1200, 64, generator=random)
    for row, c in enumerate(label.tolist()):
        x[row, 16 * c : 16 * c + 16] = 0.9 + 0.1 * torch.rand(16, generator=random)
    return x, torch.where(torch.arange(1200) % 20 == 0, (label + 1) % 4, label)


def limited(shelf: Path, limits: list[str]) -> dict[str, Any]:
    """What a limited process says of a shelf."""
    command = [sys.executable, str(LIMIT), *limits, sys.executable, "-c", REPORT, str(shelf)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report


@pytest.mark.parametrize("weight_range", ["full", "portable"])
def test_a_bundle_notices_a_processor_that_saturates(limits: list[str], weight_range: Any, tmp_path: Path) -> None:
    x, label = images()
    small = quantize(
        Positive(0), x[:2], calibration_loader=[x], ranges="minmax", weight_range=weight_range, latency=False
    ).network
    try:
        bundle = dynamic.build([small, Dear().eval()], [(x, label)], max_drops=(0.5,), progress=False)
    except EngineError:
        if weight_range == "portable":
            raise
        pytest.skip("this processor saturates itself, so that a build refuses full weights")
    assert bundle.ladder.certified
    shelf = bundle.save(tmp_path / "shelf").folder
    # by numpy: what the last layer adds up exactly, and in pairs that saturate
    codes = next(p for p in small.parameters() if p.dtype == torch.int8).numpy().astype(np.int64)
    inputs = np.rint(x[:64].numpy() / x.numpy().max() * 255).astype(np.int64)
    products = inputs[:, None, :] * codes[None]
    exact = products.sum(2)
    pairs = np.clip(products.reshape(64, 4, 32, 2).sum(3), -32768, 32767).sum(2)
    assert (exact == pairs).all() == (weight_range == "portable")
    scale = bundle.records.logits[:64, 0] / exact  # [64, C], one value a column where sums are exact
    report = limited(shelf, limits)
    here_is_exact = bool((np.ptp(scale, axis=0) < 1e-3 * scale.mean(0)).all())  # else this processor saturates itself
    if weight_range == "portable" or not here_is_exact:
        assert report["agrees"], report["text"]
        assert report["certified"] == bundle.ladder.certified
    else:
        assert not report["agrees"], report["text"]
        assert not report["certified"]
        assert report["stage"] == bundle.spec.stages[0].name
        assert report["worst"] > 0.05
