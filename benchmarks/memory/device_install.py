"""What the installation on a device takes: size on disk, memory, and time to the first answer. On ARM, equal answers.

    python -m benchmarks.memory.device_install
    python -m benchmarks.memory.device_install --arm cortex-a76
    python -m benchmarks.memory.device_install --arm cortex-a76 --shelf shelf/ --photos photos/

The wheel is built and installed into an empty environment, with what it depends on and nothing else. Fresh processes of
that environment import the library, load a bundle of ResNet-20, 32 and 56 and answer one image. Each says when, and how
much memory it holds. The first process is not counted: it reads the files into the system's cache.

`--shelf` and `--photos` take a bundle that is there and pictures of one size for it. With `--arm` the same wheel and
libraries of the index for 64-bit ARM are unpacked into a folder, and QEMU runs them (tests/arm/emulate.py). Compared
are probabilities of images with those of x86-64. Times mean nothing there.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save, spread
from benchmarks.memory.footprint import make
from dynamic.data.picture_files import find_pictures

NOT_MEASURED = ("ARM hardware", "macOS and Windows", "memory while the wheel is installed")
ARM_PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")

_FIRST_ANSWER = """
import json, sys, time
began = time.perf_counter()
import psutil
def now():
    return {"s": time.perf_counter() - began, "resident_mb": psutil.Process().memory_info().rss / 1e6}
import numpy as np
import dynamic
found = {"import": now()}
run = dynamic.load(sys.argv[1] + "/shelf").runtime(dynamic.Budget(max_drop=0.01))
found["load"] = now()
run(np.load(sys.argv[1] + "/image.npy"))
found["first answer"] = now()
run(np.load(sys.argv[1] + "/image.npy"))
found["second answer"] = now()
assert "torch" not in sys.modules
print(json.dumps(found))
"""
_PROBABILITIES = """
import json, sys
if len(sys.argv) > 2:
    sys.path.insert(0, sys.argv[2])
import numpy as np
import dynamic
images, found = np.load(sys.argv[1] + "/images.npy"), {}
bundle = dynamic.load(sys.argv[1] + "/shelf")
for name, budget in (("reference", dynamic.Budget()), ("max_drop 0.05", dynamic.Budget(max_drop=0.05))):
    with bundle.runtime(budget) as run:
        found[name] = np.asarray(run.predict_proba(list(images)), np.float64).tolist()
print(json.dumps({"file": dynamic.__file__, "rows": found}))
"""


def wheel(folder: Path) -> Path:
    """The wheel of this checkout."""
    subprocess.run(["git", "archive", "-o", str(folder / "source.tar"), "HEAD"], cwd=ROOT, check=True)
    (folder / "source").mkdir()
    subprocess.run(["tar", "-xf", str(folder / "source.tar"), "-C", str(folder / "source")], check=True)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "-o", str(folder), str(folder / "source")]
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (found,) = folder.glob("*.whl")
    return found


def environment(folder: Path, file: Path) -> tuple[Path, dict[str, float]]:
    """The Python of an environment with the wheel alone, and megabytes on disk of each distribution."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", str(file)], check=True, stderr=subprocess.DEVNULL)
    listed = subprocess.run(
        [str(python), "-m", "pip", "list", "--format", "json"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    sizes = {}
    for one in json.loads(listed):
        if one["name"] not in ("pip", "setuptools"):
            sizes[f"{one['name']} {one['version']}"] = _megabytes(python, one["name"])
    return python, sizes


def _megabytes(python: Path, name: str) -> float:
    code = (
        "import sys; from importlib.metadata import files\n"
        "print(sum(f.locate().stat().st_size for f in files(sys.argv[1]) if f.locate().is_file()))"
    )
    done = subprocess.run([str(python), "-c", code, name], check=True, stdout=subprocess.PIPE, text=True)
    return round(int(done.stdout) / 1e6, 1)


def said(command: list[str], folder: Path, code: str, *arguments: str) -> dict[str, Any]:
    """What a fresh process prints as JSON. Nothing of this checkout is on its path."""
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [*command, "-c", code, str(folder), *arguments], cwd=folder, env=plain, stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"a process failed: {command}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def arm_answers(folder: Path, file: Path, cpu: str) -> dict[str, Any]:
    """Probabilities on an emulated processor, with the wheel and the libraries that the index has for it."""
    from tests.arm.emulate import command, problem

    reason = problem()
    if reason is not None:
        sys.exit(f"cannot emulate ARM: {reason}")
    emulated = command(cpu, [])
    site, python = folder / "arm", Path(emulated[-1]).name.removeprefix("python")
    platforms = [part for name in ARM_PLATFORMS for part in ("--platform", name)]
    target = ["--only-binary=:all:", "--target", str(site), "--python-version", python, "--implementation", "cp"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *target, *platforms, str(file)], check=True)
    installed = sorted(path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    return said(emulated, folder, _PROBABILITIES, str(site)) | {"installed": installed}


def compared(here: dict[str, Any], there: dict[str, Any]) -> dict[str, Any]:
    """The largest difference of a probability, and the share of equal classes, by the budget."""
    rows = {}
    for name, own in here["rows"].items():
        ours, theirs = np.array(own), np.array(there["rows"][name])
        rows[name] = {
            "images": len(ours),
            "largest_difference": float(np.abs(ours - theirs).max()),
            "equal_classes": float((ours.argmax(1) == theirs.argmax(1)).mean()),
        }
    return rows


def main() -> None:
    """Install, measure and compare, then table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--processes", type=int, default=9, help="fresh processes that are counted")
    parser.add_argument("--arm", metavar="CPU", help="compare answers on this emulated processor: cortex-a76, ...")
    parser.add_argument("--images", type=int, default=8, help="images that --arm compares")
    parser.add_argument("--shelf", type=Path, help="a bundle for images, instead of ResNets on CIFAR-10")
    parser.add_argument("--photos", type=Path, help="pictures for that bundle")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as given:
        folder = Path(given)
        progress("building the wheel and a bundle")
        file = wheel(folder)
        if options.shelf is None or options.photos is None:
            make(data_folder(options.data), folder, images=options.images)
        else:
            shutil.copytree(options.shelf, folder / "shelf")
            pictures = find_pictures([options.photos], None)[: options.images]
            np.save(folder / "images.npy", np.stack([np.asarray(one.pixels(3)) for one in pictures]))
            np.save(folder / "image.npy", np.load(folder / "images.npy")[0])
        python, sizes = environment(folder / "environment", file)
        if options.arm:
            here = said([str(python)], folder, _PROBABILITIES)
            there = arm_answers(folder, file, options.arm)
            rows = compared(here, there)
            figures = {"cpu": options.arm, "installed": there["installed"], "rows": rows}
            print(json.dumps(rows, indent=1))
            print(save("memory/device_install_on_arm", figures))
            return
        turns = [said([str(python)], folder, _FIRST_ANSWER) for _ in range(options.processes + 1)][1:]
        shelf_mb = round(sum(path.stat().st_size for path in (folder / "shelf").rglob("*") if path.is_file()) / 1e6, 1)
        shutil.rmtree(folder / "environment")
    steps = {
        step: {figure: spread([turn[step][figure] for turn in turns]) for figure in ("s", "resident_mb")}
        for step in turns[0]
    }
    print(f"on disk: {sum(sizes.values()):.1f} MB ({', '.join(f'{n} {mb:g} MB' for n, mb in sizes.items())})")
    for step, figures in steps.items():
        print(f"{step:14}{figures['s']['median']:8.3f} s{figures['resident_mb']['median']:8.1f} MB")
    print(f"not measured: {', '.join(NOT_MEASURED)}")
    total = round(sum(sizes.values()), 1)
    figures = {"python": platform.python_version(), "disk_mb": total, "sizes_mb": sizes, "bundle_mb": shelf_mb}
    print(save("memory/device_install", figures | {"steps": steps, "not_measured": NOT_MEASURED}))


if __name__ == "__main__":
    main()
