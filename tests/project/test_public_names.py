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
    "DistillationConfig",
    "DriftOptions",
    "DynamicError",
    "DynamicWarning",
    "FixedMonitor",
    "Frontier",
    "Ladder",
    "Monitor",
    "OperatingPoint",
    "Policy",
    "Preprocess",
    "Records",
    "Result",
    "Runtime",
    "ShedError",
    "Snapshot",
    "Statistics",
    "TraceMonitor",
    "TrainingConfig",
    "build",
    "calibrate",
    "certify",
    "export",
    "family",
    "fit",
    "load",
    "recertify",
    "select_exits",
    "wrap",
]


def test_public_names() -> None:
    assert dynamic.__all__ == NAMES


def test_every_name_loads() -> None:
    for name in NAMES:
        assert getattr(dynamic, name).__name__ == name


def test_without_torch_a_name_that_needs_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['torch'] = None; import dynamic; dynamic.load; dynamic.wrap"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert 'dynamic.wrap needs torch, which is not installed: pip install "dynamic-inference[build]"' in done.stderr


def test_import_alone_loads_nothing_heavy() -> None:
    code = "import dynamic, sys; print([m for m in ('torch', 'onnxruntime', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
