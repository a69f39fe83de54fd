"""Memory and time of a fresh process from start to its first answer, with and without torch.

    python benchmarks/footprint.py

A bundle of ResNet-20, 32 and 56 is built on the spot, saved and profiled once, as on a device. Then fresh processes
take turns: the bundle on ONNX Runtime under a budget, ResNet-56 alone on ONNX Runtime, and both in torch. Each answers
one image and says how much memory is resident; time counts from before the process starts until it has answered.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cifar
import numpy as np
from common import add_data_option, data_folder, progress, save, spread

import dynamic
from dynamic.offline.images import stratified_halves

NAMES = ("resnet20", "resnet32", "resnet56")

_END = """
print("answered", flush=True)
import psutil, sys
print(psutil.Process().memory_info().rss / 1e6, "torch" in sys.modules, label, flush=True)
"""
_BUNDLE = """
import sys
import numpy as np
import dynamic
folder = sys.argv[1]
run = dynamic.load(folder + "/shelf").runtime(dynamic.Budget(max_drop=0.01))
label = int(run(np.load(folder + "/image.npy")).label[0])
"""
_SESSION = """
import sys
import numpy as np
import onnxruntime
folder = sys.argv[1]
session = onnxruntime.InferenceSession(folder + "/alone/backbones/0_0.onnx", providers=["CPUExecutionProvider"])
label = int(session.run(None, {"input": np.load(folder + "/input.npy")})[0].argmax())
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
label = int(run(np.load(folder + "/image.npy")).label[0])
"""
PROCESSES = {
    "bundle, ONNX Runtime": _BUNDLE,
    "ResNet-56 alone, ONNX Runtime": _SESSION,
    "bundle, torch": _TORCH_BUNDLE,
    "ResNet-56 alone, torch": _TORCH,
}


def answer(code: str, folder: Path) -> tuple[float, float, bool, int]:
    """(seconds to the answer, resident MB, whether torch was imported, label) of one fresh process."""
    # the child imports what this process imports, wherever that came from
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)}
    command = [sys.executable, "-c", code + _END, str(folder)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        took = time.perf_counter() - began
        rest = process.stdout.readline().split()
    if first.strip() != "answered" or process.returncode:
        sys.exit(f"a process failed: {first}")
    return took, float(rest[0]), rest[1] == "True", int(rest[2])


def make(data: Path, folder: Path) -> None:
    """A bundle as deployed (saved, its costs measured), ResNet-56 alone as one graph, and an image."""
    images = cifar.images(data, "test")
    few = images.select(stratified_halves(images.labels, seed=0)[0][::5])
    loader = cifar.batches(few)
    cascade = dynamic.Cascade(cifar.networks(data, NAMES), names=NAMES)
    bundle = dynamic.build(cascade, loader, preprocess=cifar.PREPROCESS, classes=images.classes)
    saved = bundle.save(folder / "shelf")
    saved.profile(batch=(1,))
    saved.profile(batch=(1,), engine="torch")
    alone = dynamic.Cascade(cifar.networks(data, ["resnet56"]), names=["resnet56"])
    dynamic.export(alone, folder / "alone", loader[0][0])
    np.save(folder / "image.npy", few.images[0])
    np.save(folder / "input.npy", loader[0][0][:1].numpy())


def main() -> None:
    """Take turns, then table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--processes", type=int, default=9, help="fresh processes of each kind")
    options = parser.parse_args()
    data = data_folder(options.data)
    seconds: dict[str, list[float]] = {name: [] for name in PROCESSES}
    memory_mb: dict[str, list[float]] = {name: [] for name in PROCESSES}
    torch_seen: dict[str, bool] = {}
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        progress("building the bundle")
        make(data, folder)
        for turn in range(options.processes + 1):
            for name, code in PROCESSES.items():
                took, resident, saw_torch, _ = answer(code, folder)
                torch_seen[name] = torch_seen.get(name, False) or saw_torch
                if turn:  # the first turn reads the files into the system's cache
                    seconds[name].append(took)
                    memory_mb[name].append(resident)
            progress(f"turn {turn} of {options.processes}")
    if torch_seen["bundle, ONNX Runtime"]:
        sys.exit("running the bundle imported torch")
    rows: dict[str, Any] = {
        name: {
            "first_answer_s": spread(seconds[name]),
            "resident_mb": spread(memory_mb[name], 1),
            "torch_imported": torch_seen[name],
        }
        for name in PROCESSES
    }
    print(f"\nfresh processes to their first answer, medians (quartiles) of {options.processes}")
    print(f"{'':32}{'seconds':>8}{'':18}{'MB':>7}")
    for name, row in rows.items():
        s, mb = row["first_answer_s"], row["resident_mb"]
        print(
            f"{name:32}{s['median']:8.2f} ({s['q25']:.2f} to {s['q75']:.2f}){mb['median']:10.0f} "
            f"({mb['q25']:.0f} to {mb['q75']:.0f})"
        )
    ours, theirs = rows["bundle, ONNX Runtime"], rows["ResNet-56 alone, torch"]
    shares = {
        figure: round(ours[figure]["median"] / theirs[figure]["median"], 3)
        for figure in ("first_answer_s", "resident_mb")
    }
    print(
        f"the bundle against torch: {shares['first_answer_s']:.2f} of the time, "
        f"{shares['resident_mb']:.2f} of the memory"
    )
    print(f"\n{save('footprint', {'processes': options.processes, 'rows': rows, 'bundle_to_torch': shares})}")


if __name__ == "__main__":
    main()
