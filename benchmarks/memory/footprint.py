"""Memory and time of a fresh process from start to its first answer, with and without torch, and what is given back.

    python -m benchmarks.memory.footprint

A bundle of ResNet-20, 32 and 56 is built on the spot, saved and profiled once, as on a device. Then fresh processes
take turns: the bundle by its single graph, under a memory limit (stage by stage) and on OpenVINO where that is
installed, the same cascade as one exported file on bare ONNX Runtime, ResNet-56 alone, and both in torch. Each answers
one image and says how much memory is resident; time counts from before the process starts until it has answered.

Then a bundle with larger weights (ResNet-18 and 50, random) answers without a limit and is given one that only the
smaller network meets: what stays resident in that process is compared with a fresh one under the limit from the start.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

import dynamic
from benchmarks.harness import cifar
from benchmarks.harness.common import add_data_option, data_folder, progress, save, spread
from dynamic.data import stratified_halves
from dynamic.offline.onnx_export.stage_graphs import export_stages

NAMES = ("resnet20", "resnet32", "resnet56")
OPENVINO = find_spec("openvino") is not None
OURS, THEIRS = "bundle, single graph, ONNX Runtime", "ResNet-56 alone, torch"
NOT_MEASURED = ("ARM", "phones", "accelerators", "memory of the graphics card", "peaks between two readings")

_END = """
print("answered", flush=True)
import psutil, sys
print(psutil.Process().memory_info().rss / 1e6, "torch" in sys.modules, "dynamic" in sys.modules, label, flush=True)
"""
_BUNDLE = """
import sys
import numpy as np
import dynamic
folder = sys.argv[1]
run = dynamic.load(folder + "/shelf").runtime({how})
label = run(np.load(folder + "/image.npy")).label
"""
_SESSION = """
import sys
import numpy as np
import onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(folder + "/alone/backbones/0_0.onnx", providers=["CPUExecutionProvider"])
label = int(session.run(None, {"input": np.load(folder + "/input.npy")})[0].argmax())
"""
_FILE = """
import json, sys
import numpy as np
import onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(folder + "/cascade.onnx", providers=["CPUExecutionProvider"])
points = json.loads(session.get_modelmeta().custom_metadata_map["dynamic.points"])
chosen = points.get("drop 0.01") or list(points.values())[-1]
feed = {"input": np.load(folder + "/image.npy")[None], "thresholds": np.array([float(t) for t in chosen], np.float32)}
label = int(session.run(["logits"], feed)[0].argmax())
"""
_TORCH = """
import sys
import numpy as np
import torch
from dynamic.models import load_weights, resnet56
folder = sys.argv[1]
network = resnet56().eval()
load_weights(network, folder + "/shelf/weights/resnet56.safetensors")
with torch.inference_mode():
    label = int(network(torch.from_numpy(np.load(folder + "/input.npy"))).argmax())
"""
_TORCH_BUNDLE = """
import sys
import numpy as np
import dynamic
from dynamic.models import CifarResNet, load_weights
folder = sys.argv[1]
networks = []
for depth in (20, 32, 56):
    networks.append(CifarResNet(depth).eval())
    load_weights(networks[-1], f"{folder}/shelf/weights/resnet{depth}.safetensors")
names = ["resnet20", "resnet32", "resnet56"]
bundle = dynamic.load(folder + "/shelf", modules=dynamic.Cascade(networks, names=names))
run = bundle.runtime(dynamic.Budget(max_drop=0.01), engine="torch")
label = run(np.load(folder + "/image.npy")).label
"""
# no limit, then one that the smaller network alone meets; or, with "limited", that limit from the start
_GIVEN_BACK = """
import json, sys
import numpy as np, psutil
import dynamic
def resident():
    return psutil.Process().memory_info().rss / 1e6
run = dynamic.load(sys.argv[1] + "/large").runtime(dynamic.Budget(), route="graph")
start, least = resident(), min(p.memory_mb for p in run.frontier.points)
found = {"start": start, "limit": start + 1.2 * least + 10}
if sys.argv[2] == "unlimited":
    run(np.zeros((1, 3, 64, 64), np.float32)), run(np.zeros((8, 3, 64, 64), np.float32))
    found["no limit"] = resident()
run.budget = dynamic.Budget(memory_mb=found["limit"])
result = run(np.zeros((1, 3, 64, 64), np.float32))
found |= {"limited": resident(), "feasible": result.decision.feasible, "point": result.decision.point.name}
print("answered", json.dumps(found), sep="\\n", flush=True)
"""
PROCESSES = {
    OURS: _BUNDLE.format(how='dynamic.Budget(max_drop=0.01), route="graph"'),
    "bundle, memory limit, ONNX Runtime": _BUNDLE.format(how="dynamic.Budget(max_drop=0.01, memory_mb=150)"),
    "exported file, bare ONNX Runtime": _FILE,
    "ResNet-56 alone, bare ONNX Runtime": _SESSION,
    "bundle, torch": _TORCH_BUNDLE,
    THEIRS: _TORCH,
}
if OPENVINO:
    PROCESSES["bundle, single graph, OpenVINO"] = _BUNDLE.format(
        how='dynamic.Budget(max_drop=0.01), engine="openvino", route="graph"'
    )


def answer(code: str, *arguments: str) -> tuple[float, str]:
    """(seconds to the answer, what a fresh process said of itself then)."""
    # the child imports what this process imports, wherever that came from
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        took = time.perf_counter() - began
        rest = process.stdout.readline()
    if first.strip() != "answered" or process.returncode:
        sys.exit(f"a process failed: {first}")
    return took, rest


def make(data: Path, folder: Path, images: int = 1) -> None:
    """A bundle as deployed (saved, its costs measured), the same as one file, ResNet-56 alone, and some images."""
    every = cifar.images(data, "test")
    few = every.select(stratified_halves(every.labels, seed=0)[0][::5])
    loader = cifar.batches(few)
    cascade = dynamic.Cascade(cifar.networks(data, NAMES), names=NAMES)
    bundle = dynamic.build(cascade, loader, preprocess=cifar.PREPROCESS, classes=every.classes)
    saved = bundle.save(folder / "shelf")
    for engine in ("onnxruntime", "torch", *(["openvino"] if OPENVINO else [])):
        saved.profile(batch=(1,), engine=engine)
    dynamic.export(saved, folder / "cascade.onnx", batch="single")
    alone = dynamic.Cascade(cifar.networks(data, ["resnet56"]), names=["resnet56"])
    export_stages(alone, folder / "alone", loader[0][0])
    np.save(folder / "image.npy", few.images[0])
    np.save(folder / "images.npy", few.images[:images])
    np.save(folder / "input.npy", loader[0][0][:1].numpy())


def make_large(folder: Path) -> None:
    """ResNet-18 and 50 with random weights, calibrated on noise: only their size matters."""
    torch.manual_seed(0)
    networks = [network(weights=None).eval() for network in (torchvision.models.resnet18, torchvision.models.resnet50)]
    labels = torch.arange(16) % 2
    loader = [(torch.randn(16, 3, 64, 64), labels) for _ in range(4)]
    dynamic.build(networks, loader).save(folder / "large").profile(batch=(1, 8), seconds=0.2)


def given_back(folder: Path, processes: int) -> dict[str, Any]:
    """Resident MB of a process that got its limit late, and of one that had it from the start."""
    late = [json.loads(answer(_GIVEN_BACK, str(folder), "unlimited")[1]) for _ in range(processes)]
    early = [json.loads(answer(_GIVEN_BACK, str(folder), "limited")[1]) for _ in range(processes)]
    taken = {
        "before the first request": [f["start"] for f in late],
        "no limit": [f["no limit"] for f in late],
        "the limit": [f["limit"] for f in late],
        "then under the limit": [f["limited"] for f in late],
        "limit from the start": [f["limited"] for f in early],
    }
    return {name: spread(values, 1) for name, values in taken.items()} | {"feasible": all(f["feasible"] for f in late)}


def main() -> None:
    """Take turns, then table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--processes", type=int, default=9, help="fresh processes of each kind")
    options = parser.parse_args()
    data = data_folder(options.data)
    rows: dict[str, Any] = {name: {"first_answer_s": [], "resident_mb": []} for name in PROCESSES}
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        progress("building the bundles")
        make(data, folder)
        make_large(folder)
        for turn in range(options.processes + 1):
            for name, code in PROCESSES.items():
                took, said = answer(code + _END, str(folder))
                resident, saw_torch, saw_us, label = said.split()
                rows[name] |= {"torch_imported": saw_torch == "True", "dynamic_imported": saw_us == "True"}
                rows[name]["label"] = int(label)
                if turn:  # the first turn reads the files into the system's cache
                    rows[name]["first_answer_s"].append(took)
                    rows[name]["resident_mb"].append(float(resident))
            progress(f"turn {turn} of {options.processes}")
        back = given_back(folder, max(2, options.processes // 3))
    if any(row["torch_imported"] for name, row in rows.items() if "torch" not in name):
        sys.exit("running without torch imported torch")
    for row in rows.values():
        row |= {"first_answer_s": spread(row["first_answer_s"]), "resident_mb": spread(row["resident_mb"], 1)}
    print(f"\nfresh processes to their first answer, medians (quartiles) of {options.processes}")
    print(f"{'':36}{'seconds':>8}{'':18}{'MB':>7}")
    for name, row in rows.items():
        s, mb = row["first_answer_s"], row["resident_mb"]
        print(
            f"{name:36}{s['median']:8.2f} ({s['q25']:.2f} to {s['q75']:.2f}){mb['median']:10.0f} "
            f"({mb['q25']:.0f} to {mb['q75']:.0f})"
        )
    shares = {
        figure: round(rows[OURS][figure]["median"] / rows[THEIRS][figure]["median"], 3)
        for figure in ("first_answer_s", "resident_mb")
    }
    print(
        f"the bundle against torch: {shares['first_answer_s']:.2f} of the time, "
        f"{shares['resident_mb']:.2f} of the memory"
    )
    print("\nResNet-18 and 50 in one process, resident MB, medians")
    feasible = back.pop("feasible")
    for name, figure in back.items():
        print(f"{name:36}{figure['median']:8.0f} ({figure['q25']:.0f} to {figure['q75']:.0f})")
    back["feasible"] = feasible
    print(f"not measured: {', '.join(NOT_MEASURED)}")
    figures = {"processes": options.processes, "rows": rows, "bundle_to_torch": shares, "given_back": back}
    print(f"\n{save('memory/footprint', figures | {'not_measured': NOT_MEASURED})}")


if __name__ == "__main__":
    main()
