"""Which settings of a machine change answers, and do the canaries notice?

    python -m benchmarks.processors.processor_switches

int8 ResNet-20 and int8 ResNet-56 before the given ResNet-56 are built as bundles on this machine: with portable and
with full weights, on ONNX Runtime, OpenVINO and OpenVINO bf16, certified on half of the CIFAR-10 test split. Then each
bundle is checked in processes of their own, with one setting changed.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.alternating import ENGINES, engines_here
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from dynamic.bundle.fingerprint import KERNEL_VARIABLES
from dynamic.models.compress.quantization.static_int8 import quantize
from dynamic.profiling.machine import instruction_sets

CALIBRATION = 512
LIMIT = ROOT / "tests" / "avx2" / "limit.py"
# name -> (variables, threads, whether the engines' libraries are limited to AVX2)
SWITCHES: dict[str, tuple[dict[str, str], int, bool]] = {
    "as it is": ({}, 2, False),
    "1 thread": ({}, 1, False),
    "ONEDNN_MAX_CPU_ISA=AVX2": ({"ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2"}, 2, False),
    "ONEDNN_DEFAULT_FPMATH_MODE=BF16": ({"ONEDNN_DEFAULT_FPMATH_MODE": "BF16"}, 2, False),
    "OPENBLAS_CORETYPE=Haswell": ({"OPENBLAS_CORETYPE": "Haswell"}, 2, False),
    "processor without AVX-512 and VNNI": ({}, 2, True),
}
_CHILD = """
import json, logging, sys, time
logging.getLogger("dynamic").setLevel("ERROR")
import dynamic
bundle = dynamic.load(sys.argv[1])
began = time.perf_counter()
try:
    report = bundle.check(threads=int(sys.argv[2]), progress=False)  # the first time here: the shelf was just built
except dynamic.DynamicError as error:
    print(json.dumps({"problem": str(error)}))
    sys.exit()
took = time.perf_counter() - began
if report.problem is not None:
    print(json.dumps({"problem": report.problem}))
else:
    print(json.dumps({"agrees": report.agrees, "count": report.count, "largest": report.worst.share,
        "stage": report.worst.stage, "labels_moved": report.labels_moved, "exits_moved": report.exits_moved,
        "graph_differs": report.graph_differs, "seconds": round(took, 2)}))
"""


def bundles(data: Path, folder: Path) -> dict[str, Path]:
    """Saved bundles by name."""
    small, large = cifar.networks(data, ["resnet20", "resnet56"])
    train, test = cifar.images(data, "train"), cifar.images(data, "test")
    some = train.select(np.random.default_rng(0).permutation(len(train))[:CALIBRATION])
    inputs = [inputs for inputs, _ in cifar.batches(some, 64)]
    half = cifar.batches(test.select(np.arange(0, len(test), 2)))
    saved = {}
    for form in ("portable", "full"):
        int8 = [
            quantize(n, inputs[0][:2], calibration_loader=inputs, weight_range=form, latency=False).network
            for n in (small, large)
        ]
        for name in engines_here()[0]:
            engine, precision = ENGINES[name]
            progress(f"building: {form} weights on {name}")
            bundle = dynamic.build(
                [*int8, large], half, engine=engine, precision=precision, max_drops=(0.005, 0.01), progress=False
            )
            saved[f"{form}, {name}"] = bundle.save(folder / f"{form}-{engine}-{precision}").folder
    return saved


def checked(shelf: Path, switch: str) -> dict[str, Any]:
    """What the canaries say under a switch."""
    variables, threads, limited = SWITCHES[switch]
    command = [sys.executable, "-c", _CHILD, str(shelf), str(threads)]
    if limited:
        command = [sys.executable, str(LIMIT), *command]
    inherited = {name: value for name, value in os.environ.items() if name not in KERNEL_VARIABLES}
    done = subprocess.run(command, env=inherited | variables, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"problem": done.stderr.strip().splitlines()[-1]}
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return row


def main() -> None:
    """A table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    options = parser.parse_args()
    folder = ROOT / "out" / "processor_switches"
    figures: dict[str, dict[str, Any]] = {}
    for name, shelf in bundles(data_folder(options.data), folder).items():
        figures[name] = {"canaries_bytes": (shelf / "canaries.npz").stat().st_size}
        print(f"\n{name}\n{'':38}{'agrees':>8}{'largest':>10}{'labels':>9}{'exits':>8}{'graph':>8}{'s':>7}")
        for switch in SWITCHES:
            row = figures[name][switch] = checked(shelf, switch)
            if "problem" in row:
                print(f"{switch:38}{row['problem'][:90]}")
                continue
            shares = "".join(f"{row[k]:{w}.2%}" for k, w in (("largest", 10), ("labels_moved", 9), ("exits_moved", 8)))
            print(
                f"{switch:38}{row['agrees']!s:>8}{shares}{row['graph_differs']:8.1%}{row['seconds']:7.2f}", flush=True
            )
    print(save("processors/processor_switches", {"instruction_sets": instruction_sets(), "bundles": figures}))


if __name__ == "__main__":
    main()
