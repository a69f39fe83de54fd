"""The public names are a promise: a change of this list is a change for users."""

import subprocess
import sys

import dynamic

NAMES = [
    "Battery",
    "Budget",
    "BudgetPolicy",
    "Bundle",
    "Cascade",
    "Change",
    "Costs",
    "Decision",
    "DynamicError",
    "DynamicWarning",
    "FixedMonitor",
    "Frontier",
    "Ladder",
    "Monitor",
    "Point",
    "Policy",
    "Preprocess",
    "Records",
    "Result",
    "Runtime",
    "ShedError",
    "Snapshot",
    "TraceMonitor",
    "build",
    "calibrate",
    "certify",
    "export",
    "family",
    "fit",
    "load",
    "recertify",
    "wrap",
]


def test_public_names() -> None:
    assert dynamic.__all__ == NAMES


def test_every_name_loads() -> None:
    for name in NAMES:
        assert getattr(dynamic, name).__name__ == name


def test_import_alone_loads_nothing_heavy() -> None:
    code = "import dynamic, sys; print([m for m in ('torch', 'onnxruntime', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
