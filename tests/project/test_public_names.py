"""The public names are a promise: a change of this list is a change for users."""

import importlib
import subprocess
import sys

import pytest

import dynamic

NAMES = [
    "BatchResult",
    "Battery",
    "Budget",
    "BudgetPolicy",
    "Bundle",
    "Callback",
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
    "MLflowLogger",
    "Monitor",
    "OnnxRuntimeOptions",
    "OpenVinoOptions",
    "OperatingPoint",
    "Policy",
    "Prediction",
    "Preprocess",
    "RayBatches",
    "Records",
    "Runtime",
    "ShedError",
    "Snapshot",
    "Statistics",
    "TextPreprocess",
    "TorchOptions",
    "TraceMonitor",
    "TrainingConfig",
    "WandbLogger",
    "at_resolution",
    "build",
    "calibrate",
    "certify",
    "export",
    "family",
    "fit",
    "load",
    "map_dataset",
    "onnx_model",
    "plot",
    "recertify",
    "select_exits",
    "slim",
    "watch",
    "wrap",
]
ROOMS = {
    "dynamic.policies": [
        "Budget",
        "BudgetPolicy",
        "Combiner",
        "CostedPoint",
        "Costs",
        "Decision",
        "Feedback",
        "FixedPolicy",
        "Frontier",
        "Interval",
        "Ladder",
        "OperatingPoint",
        "Policy",
        "Records",
        "Replay",
        "Search",
        "Snapshot",
        "certify",
        "replay",
    ],
    "dynamic.simulate": [
        "SCENARIOS",
        "Bursts",
        "Bursty",
        "Constant",
        "Device",
        "Diurnal",
        "Environment",
        "Faults",
        "Line",
        "Outage",
        "Poisson",
        "Process",
        "Recorded",
        "Scenario",
        "Schedule",
        "Sensors",
        "SimulatedChange",
        "SimulationReport",
        "Stalls",
        "Steps",
        "Workload",
        "device",
        "devices",
        "oracle",
        "scenario",
        "scenarios",
        "simulate",
    ],
    "dynamic.data": [
        "RGB",
        "CenterCrop",
        "Gray",
        "ImageSet",
        "LogMel",
        "Normalize",
        "Preprocess",
        "Resize",
        "Scale",
        "Sound",
        "SoundPreprocess",
        "TextPreprocess",
        "digits",
        "load_images",
        "load_sound",
        "stratified_halves",
        "windows",
    ],
    "dynamic.serve": ["ServeOptions", "Server", "application"],
}


def test_public_names() -> None:
    assert dynamic.__all__ == NAMES


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_of_a_room(room: str) -> None:
    module = importlib.import_module(room)
    assert module.__all__ == ROOMS[room]
    assert all(hasattr(module, name) for name in ROOMS[room])


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
