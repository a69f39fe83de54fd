"""What does int8 gain, and what does it cost? Latency and accuracy on the engine, against its own f32 and bf16.

    python -m benchmarks.compress.compress_int8

ResNet-20 and ResNet-56 for CIFAR-10 with the given weights, quantized on 512 training images, answer all 10,000 test
images on each engine; ResNet-18 at 224 has random weights and is timed alone. Timed is one input at a time on the
network's own graph. Contenders are processes of their own that take turns, each at the best of its settings (threads,
waiting, a fixed batch), found on a run of its own; the baseline is the engine's f32. On OpenVINO bf16 runs along, as
what that engine has to be faster than. Goals: latency at most 0.6 of f32's, accuracy at most 0.3 points below.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models import resnet18

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.alternating import (
    ENGINES,
    HEADER,
    Contender,
    alternate,
    circumstances,
    columns,
    engines_here,
    not_measured,
    row_of,
    settings,
    winners,
    workers,
)
from benchmarks.harness.alternating_worker import UNSPLIT, Job
from benchmarks.harness.common import add_data_option, data_folder, progress, save
from dynamic.models.compress.quantization.activation_ranges import RangeMethod
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.offline.onnx_export.stage_graphs import export_stages

CALIBRATION = 512  # training images
ROWS = 64  # different inputs that are timed
BLOCKS = {"resnet20": 20, "resnet56": 20, "resnet18": 5}
LATENCY_GOAL, ACCURACY_GOAL = 0.6, 0.003
# what takes turns on an engine: the row's name, the graph, and the engine with its precision
ROWS_OF = {
    "onnxruntime": (("f32", "f32", "onnxruntime f32"), ("int8", "int8", "onnxruntime f32")),
    "openvino": (
        ("f32", "f32", "openvino f32"),
        ("bf16", "f32", "openvino bf16"),
        ("int8", "int8", "openvino f32"),
        ("int8, rest bf16", "int8", "openvino bf16"),
    ),
}


def prepare(
    network: nn.Module, folder: Path, batches: list[Tensor], timed: Tensor, ranges: RangeMethod
) -> dict[str, Any]:
    """Write `f32/`, `int8/` and `inputs.npy` under `folder`; gives what the quantization says."""
    made = quantize(network, batches[0][:2], calibration_loader=batches, ranges=ranges, latency=False)
    for name, found in (("f32", network), ("int8", made.network)):
        export_stages(dynamic.Cascade(found), folder / name, batches[0][:2], progress=False)
    np.save(folder / "inputs.npy", timed.numpy())
    report = made.report
    return {
        "layers": report.facts["layers"],
        "left_alone": dict(report.left_alone),
        "file_bytes": {"f32": report.before.file_bytes, "int8": report.after.file_bytes},
    }


def random_resnet18(seed: int = 0) -> tuple[nn.Module, list[Tensor]]:
    """torchvision's, with batch statistics of ordinary size, and noise to calibrate on."""
    torch.manual_seed(seed)
    network, images = resnet18(weights=None), torch.randn(ROWS, 3, 224, 224)
    network.train()
    with torch.no_grad():
        for part in images.split(32):
            network(part)
    return network.eval(), list(images.split(16))


def accuracies(folder: Path, engine: str, inputs: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
    """Share of right answers of each row of `ROWS_OF` that this machine can run."""
    found = {}
    for row, graph, name in ROWS_OF[engine]:
        if name in engines_here()[0]:
            progress(f"{folder.name}: accuracy, {engine} {row}")
            answer = _answers(folder / graph / UNSPLIT, *ENGINES[name], inputs)
            found[row] = round(float((answer == labels).mean()), 4)
    return found


def _answers(graph: Path, engine: str, precision: str, inputs: NDArray[np.float32]) -> NDArray[np.int64]:
    parts = [inputs[i : i + 100] for i in range(0, len(inputs), 100)]
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        logits = [session.run(None, {name: part})[0] for part in parts]
    else:
        import openvino

        model = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": precision})
        logits = [model(part)[0] for part in parts]
    labels: NDArray[np.int64] = np.concatenate(logits).argmax(1)
    return labels


def latencies(folder: Path, engine: str, calls: int, block: int) -> dict[str, Any]:
    """Rows by name, each against f32, which took turns with it."""
    listed = [
        Contender(row, Job(*ENGINES[name], str(folder / graph), None, setting, str(folder / "inputs.npy")))
        for row, graph, name in ROWS_OF[engine]
        if name in engines_here()[0]
        for setting in settings(engine, bare=True)
    ]
    with workers(listed) as running:
        chosen, _ = winners(running, listed, [i % ROWS for i in range(max(calls // 4, block))], block)
        took = alternate(running, chosen, [i % ROWS for i in range(calls)], block)
    base = next(took[c.key] for c in chosen if c.name == "f32")
    return {c.name: row_of(took[c.key], base, c) for c in chosen}


def measure(
    name: str, data: Path, folder: Path, engines: list[str], calls: int, test: int, ranges: RangeMethod
) -> dict[str, Any]:
    """Everything about one network."""
    images, labels = None, None
    if name == "resnet18":
        network, batches = random_resnet18()
        timed = torch.cat(batches)
    else:
        (network,) = cifar.networks(data, [name])
        train, tests = cifar.images(data, "train"), cifar.images(data, "test")
        some = train.select(np.random.default_rng(0).permutation(len(train))[:CALIBRATION])
        batches = [inputs for inputs, _ in cifar.batches(some, 64)]
        images, labels = cifar.PREPROCESS(tests.images[:test]), tests.labels[:test]
        timed = torch.from_numpy(images[:ROWS])
    progress(f"{name}: quantizing and exporting")
    folder.mkdir()
    found: dict[str, Any] = prepare(network, folder, batches, timed, ranges) | {"engines": {}}
    for engine in engines:
        progress(f"{name}: timing on {engine}")
        rows = latencies(folder, engine, calls, BLOCKS[name])
        print(f"\n{name}, {engine}, {calls} calls\n{'':16}{HEADER}")
        for row, values in rows.items():
            print(f"{row:16}{columns(values)}")
        told: dict[str, Any] = {"latency": rows, "met": {"latency": rows["int8"]["ratio"]["ratio"] <= LATENCY_GOAL}}
        if images is not None and labels is not None:
            told["accuracy"] = accuracies(folder, engine, images, labels)
            lost = told["accuracy"]["f32"] - told["accuracy"]["int8"]
            told["met"]["accuracy"] = bool(lost <= ACCURACY_GOAL)
            print(f"accuracy on {len(labels)} images: {told['accuracy']}; lost {100 * lost:+.2f} points")
        print("goals met:", told["met"], flush=True)
        found["engines"][engine] = told
    return found


def main() -> None:
    """Tables and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), metavar="NETWORK")
    parser.add_argument("--calls", type=int, default=1000, help="of each contender; a fifth of them for ResNet-18")
    parser.add_argument("--test", type=int, default=10_000, help="test images")
    parser.add_argument(
        "--calibration", choices=get_args(RangeMethod), default="percentile", help="how ranges are found"
    )
    options = parser.parse_args()
    data = data_folder(options.data)
    here, skipped = engines_here()
    engines = [engine for engine in ROWS_OF if f"{engine} f32" in here]
    figures: dict[str, Any] = {
        "calls": options.calls,
        "calibration": {"method": options.calibration, "images": CALIBRATION},
        "goals": {"latency_ratio": LATENCY_GOAL, "accuracy_lost": ACCURACY_GOAL},
        "skipped": skipped,
        "not_measured": not_measured(),
        "networks": {},
    }
    with tempfile.TemporaryDirectory() as given:
        for name in options.networks:
            calls = options.calls // 5 if name == "resnet18" else options.calls
            figures["networks"][name] = measure(
                name, data, Path(given) / name, engines, calls, options.test, options.calibration
            )
    print(circumstances())
    print(save("compress/compress_int8", figures))


if __name__ == "__main__":
    main()
