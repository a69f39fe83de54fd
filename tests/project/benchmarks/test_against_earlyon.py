"""The benchmark against a peer library stops with a reason where the peer is not installed."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
# None in sys.modules: not installed, also where it is
WITHOUT = """
import runpy, sys
sys.modules["earlyon"] = None
runpy.run_module("benchmarks.wrapping.against_earlyon", run_name="__main__")
"""


def test_skips_with_a_reason_without_the_peer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "skipped: earlyon is not installed" in done.stdout
