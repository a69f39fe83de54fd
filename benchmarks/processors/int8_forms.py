"""Which int8 form gives the same answers on every processor, and what does it cost?

    rm -rf out/int8_forms && python -m benchmarks.processors.int8_forms
    python tests/avx2/limit.py python -m benchmarks.processors.int8_forms

The second command runs the engines on AVX2 alone, where products are added in 16 bits. Compared are weights with all 8
bits ("full"), with 7 bits ("seven_bits"), with as many bits as cannot saturate ("portable", the default of
`compress.quantize`), and unsigned weights with 8 bits ("u8u8"). Each is compared with torch's own execution of the same
int8 network: label agreement and the largest difference of a logit, as a share of the largest logit. Latency is of one
input at a time, contenders in processes that take turns, each at the best of its settings.

ResNet-56 has the given weights and answers the CIFAR-10 test split. MobileNetV2 at 224 pixels has ImageNet weights and
answers photographs. ResNet-18 and MobileNetV3 at 224 pixels are trained by `large_cifar.py` and answer enlarged images
of the CIFAR-10 test split.
"""

import argparse
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

import dynamic
from benchmarks.harness import cifar, large_cifar, photographs
from benchmarks.harness.alternating import (
    ENGINES,
    HEADER,
    Contender,
    alternate,
    circumstances,
    columns,
    engines_here,
    row_of,
    settings,
    winners,
    workers,
)
from benchmarks.harness.alternating_worker import UNSPLIT, Job
from benchmarks.harness.common import RESULTS, ROOT, add_data_option, data_folder, progress, save
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.profiling.machine import instruction_sets

FORMS = ("full", "seven_bits", "portable", "u8u8")
CALIBRATION = 512  # training images
ROWS = 64  # different inputs that are timed
BLOCKS = {"resnet56": 20, "mobilenet_v2": 5, "resnet18": 5, "mobilenet_v3": 5}
LIMITED = "limited to AVX2"


@dataclass(frozen=True)
class Task:
    """A network with what it is calibrated on, what it answers, and the labels of that."""

    network: nn.Module
    calibration: list[Tensor]
    inputs: NDArray[np.float32]
    labels: NDArray[np.int64]


def task(name: str, data: Path, images: int) -> Task:
    """The network `name` with `images` test images."""
    if name == "mobilenet_v2":
        inputs, labels = photographs.photographs(data, 224)
        half = len(inputs) - images
        calibration = photographs.as_batches(inputs[: min(half, CALIBRATION)])
        return Task(photographs.mobilenet_v2(data), calibration, inputs[half:], labels[half:])
    train, test = cifar.images(data, "train"), cifar.images(data, "test")
    order = np.random.default_rng(0).permutation(len(train))
    some = cifar.batches(train.select(order[: CALIBRATION + 50]), 50)
    tests = [cifar.PREPROCESS(test.images[i : i + 50]) for i in range(0, images, 50)]
    if name == "resnet56":
        (network,) = cifar.networks(data, [name])
        calibration = [inputs for inputs, _ in some]
        return Task(network, calibration, np.concatenate(tests), test.labels[:images])
    calibration = [large_cifar.enlarged(inputs) for inputs, _ in some]
    inputs = np.concatenate([large_cifar.enlarged(torch.from_numpy(part)).numpy() for part in tests])
    return Task(large_cifar.network(name, data), calibration, inputs, test.labels[:images])


def unsigned_weights(path: Path) -> None:
    """Write the int8 weights of a graph as uint8 with zero point 128: the same values."""
    model = onnx.load(path)
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in held:
            continue
        for name in (node.input[0], node.input[2]):
            values = numpy_helper.to_array(held[name])
            if values.dtype == np.int8:
                codes = (values.astype(np.int16) + 128).astype(np.uint8)
                held[name].CopyFrom(numpy_helper.from_array(codes, name))
    onnx.save(model, path)


def prepare(found: Task, folder: Path) -> dict[str, Any]:
    """Write f32 and every form with torch's own logits under `folder`. Gives the channels that could saturate.

    They are written once, and read by the run on the other kind of processor: there, ranges and codes might differ.
    """
    kept = folder / "prepared.json"
    if kept.is_file():
        found_here: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found_here
    np.save(folder / "inputs.npy", found.inputs[:ROWS])
    saturating = {}
    for form in ("f32", *FORMS):
        progress(f"{folder.name}: {form}")
        network = found.network
        if form != "f32":
            weights: Any = "full" if form == "u8u8" else form
            example = found.calibration[0][:2]
            made = quantize(network, example, calibration_loader=found.calibration, weight_range=weights, latency=False)
            network, facts = made.network, made.report.facts
            saturating[form] = sum(facts["saturating_channels"].values())
        export_stages(dynamic.Cascade(network), folder / form, found.calibration[0][:2], progress=False)
        if form == "u8u8":
            unsigned_weights(folder / form / UNSPLIT)
        with torch.no_grad():
            parts = torch.from_numpy(found.inputs).split(50)
            np.save(folder / form / "torch.npy", torch.cat([network(part) for part in parts]).numpy())
    kept.write_text(json.dumps(saturating), encoding="utf-8")
    return saturating


def answers(graph: Path, engine: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logits `[N, C]` of a graph on an engine."""
    parts = [inputs[i : i + 50] for i in range(0, len(inputs), 50)]
    if engine == "onnxruntime":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return np.concatenate([session.run(None, {name: part})[0] for part in parts])
    import openvino

    model = openvino.Core().compile_model(str(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.concatenate([model(part)[0].copy() for part in parts])


def correctness(found: Task, folder: Path, engine: str, form: str) -> dict[str, float | None]:
    """Accuracy, and how far the engine is from torch's own execution."""
    logits = answers(folder / form / UNSPLIT, engine, found.inputs)
    own = np.load(folder / form / "torch.npy")
    return {
        "difference_between_processors": between_processors(folder, engine, form, logits),
        "accuracy": round(float((logits.argmax(1) == found.labels).mean()), 4),
        "accuracy_torch": round(float((own.argmax(1) == found.labels).mean()), 4),
        "agreement": round(float((logits.argmax(1) == own.argmax(1)).mean()), 4),
        "largest_difference": round(float(np.abs(logits - own).max() / np.abs(own).max()), 4),
    }


def between_processors(folder: Path, engine: str, form: str, logits: NDArray[np.float32]) -> float | None:
    """The largest difference to what the same graph gave on the other kind of processor, in the run before."""
    kept = ROOT / "out" / "int8_forms"
    kept.mkdir(parents=True, exist_ok=True)
    name = f"{folder.name}-{engine}-{form}.npy"
    limited = "cpuid_mask" in os.environ.get("LD_PRELOAD", "")
    np.save(kept / f"{'avx2' if limited else 'own'}-{name}", logits)
    other = kept / f"{'own' if limited else 'avx2'}-{name}"
    if not other.is_file():
        return None
    return round(float(np.abs(logits - np.load(other)).max() / np.abs(logits).max()), 6)


def latencies(folder: Path, engine: str, calls: int, block: int) -> dict[str, Any]:
    """Rows by form, each against "full", which took turns with it."""
    name = f"{engine} f32"
    listed = [
        Contender(form, Job(*ENGINES[name], str(folder / form), None, setting, str(folder / "inputs.npy")))
        for form in ("f32", *FORMS)
        for setting in settings(engine, bare=True)
        if setting.fixed
    ]
    with workers(listed) as running:
        chosen, _ = winners(running, listed, [i % ROWS for i in range(max(calls // 4, block))], block)
        took = alternate(running, chosen, [i % ROWS for i in range(calls)], block)
    base = next(took[c.key] for c in chosen if c.name == "full")
    return {c.name: row_of(took[c.key], base, c) for c in chosen}


def main() -> None:
    """Tables and JSON; what was measured on another kind of processor stays in the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--networks", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), metavar="NETWORK")
    parser.add_argument("--calls", type=int, default=1000, help="of each contender, a fifth of them at 224 pixels")
    parser.add_argument("--images", type=int, default=10_000, help="test images of ResNet-56")
    parser.add_argument("--large-images", type=int, default=500, help="test images at 224 pixels")
    options = parser.parse_args()
    data = data_folder(options.data)
    limited = "cpuid_mask" in os.environ.get("LD_PRELOAD", "")
    processor = LIMITED if limited else "as it is"
    engines = [name.split()[0] for name in engines_here(["onnxruntime f32", "openvino f32"])[0]]
    path = RESULTS / "processors" / "int8_forms.json"
    figures = json.loads(path.read_text(encoding="utf-8"))["processors"] if path.is_file() else {}
    own = figures.setdefault(processor, {})
    own["instruction_sets"] = LIMITED if limited else list(instruction_sets())
    for name in options.networks:
        large = name != "resnet56"
        count = options.large_images if large else options.images
        found = task(name, data, count)
        folder = ROOT / "out" / "int8_forms" / f"{name}-{count}"
        folder.mkdir(parents=True, exist_ok=True)
        row: dict[str, Any] = {"images": len(found.inputs), "saturating_channels": prepare(found, folder)}
        for engine in engines:
            row[engine] = {"correctness": {form: correctness(found, folder, engine, form) for form in ("f32", *FORMS)}}
            print(f"\n{name}, {engine}, processor {processor}")
            for form, values in row[engine]["correctness"].items():
                print(f"{form:12}{values}", flush=True)
            calls = options.calls // 5 if large else options.calls
            if calls:
                row[engine]["latency"] = latencies(folder, engine, calls, BLOCKS[name])
                print(f"{'':12}{HEADER}")
                for form, values in row[engine]["latency"].items():
                    print(f"{form:12}{columns(values)}", flush=True)
        own[name] = row
    print(circumstances())
    print(save("processors/int8_forms", {"processors": figures}))


if __name__ == "__main__":
    main()
