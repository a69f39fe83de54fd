"""Code that lies in a bundle or in the working folder: no command and no child process may run it.

    python -m benchmarks.robustness.planted

A bundle gets a module for every name that Python or this library may import, and commands run inside it. Each module
notes that it ran. The file is not called code.py, since Python's own `code` would be answered by it.

`python -m` looks into the working folder before any package can object. Names that Python itself imports so early are
measured with an empty package, and left out for that start alone. `python -P -m dynamic` and the command `dynamic` have
no such gap.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.robustness.altered import make_images, make_shelf

# a name that is built into Python is never looked for
STANDARD = tuple(
    sorted(sys.stdlib_module_names - set(sys.builtin_module_names) - {"__future__", "antigravity", "this"})
)
OTHERS = (
    "numpy", "psutil", "onnxruntime", "openvino", "torch", "torchvision", "onnx", "onnxscript", "safetensors", "tqdm",
    "PIL", "typer", "click", "rich", "shellingham", "flatbuffers", "packaging", "sympy", "networkx", "matplotlib",
    "scipy", "sklearn", "torch_pruning", "bitarray", "google", "platformdirs", "typing_extensions", "jinja2",
    "policies", "models", "sitecustomize", "usercustomize",
)  # fmt: skip
NOTE = "import os\nopen(os.environ['RAN'], 'a').write(__name__ + '\\n')\n"
SCRIPT = "import sys\nfrom dynamic.__main__ import main\nsys.exit(main())\n"
LIBRARY = "import dynamic\ndynamic.load('.').profile((1,), 0.02, progress=False)\n"
STARTS = ("script", "-P -m", "-m")
COMMANDS = {
    "doctor": "doctor .",
    "profile": "profile . --seconds 0.02 --batch 1",
    "run": "run . {data}/a --quiet",
    "record": "record {out}/trace.jsonl --seconds 0.5 --hz 5",
    "simulate": "simulate . --device mid-range-phone --duration-s 5",
    "export": "export . {out}/model.onnx",
    "certify": "certify . {out}/again",
    "build": "build -o {out}/built --network dynamic.models:resnet20 --data {large}",
}


def planted(
    seed: int = 0,
    count: float = math.inf,
    commands: Sequence[str] = tuple(COMMANDS),
    starts: Sequence[str] = STARTS,
    shelf: Path | None = None,
) -> dict[str, Any]:
    """Run commands inside a bundle that holds a module for every name.

    Args:
        seed: Nothing is drawn here.
        count: Of the commands, the first so many run.
        commands: Those of `COMMANDS`.
        starts: How the shell starts them, of `STARTS`.
        shelf: A bundle that `altered.make_shelf` wrote. None: it is made.

    Returns:
        `tried` commands, those that `failed`, the modules that `ran` by command, which must be none, and those that
        Python's own start runs, `before`.
    """
    del seed
    commands = commands[: int(min(count, len(commands)))]
    ran: dict[str, list[str]] = {}
    failed: list[str] = []
    tried = 0
    with tempfile.TemporaryDirectory(prefix="planted-") as place:
        folder = Path(place)
        if shelf is None:
            shelf = folder / "shelf"
            make_shelf(shelf)
        _write_images(folder)
        early = _early(folder)
        for start in starts:
            for command in (*commands, "library"):
                if command == "library" and start != "script":
                    continue
                tried += 1
                working = Path(shutil.copytree(shelf, folder / "working"))
                gaps = {*early, "dynamic"} if start == "-m" else set()
                for name in {*STANDARD, *OTHERS, "dynamic"} - gaps:
                    (working / f"{name}.py").write_text(NOTE, encoding="utf-8")
                out = folder / f"out{tried}"
                out.mkdir()
                words = COMMANDS.get(command, "").format(data=folder / "data", large=folder / "large", out=out).split()
                names, code = _run([*_start(folder, start, command), *words], working, folder)
                if names:
                    ran[f"{command}, {start}"] = names
                if code:
                    failed.append(f"{command}, {start}")
                shutil.rmtree(working)
    return {"tried": tried, "ran": ran, "failed": failed, "before": sorted(early)}


def _start(folder: Path, start: str, command: str) -> list[str]:
    if start != "script":
        return [sys.executable, *start.split(), "dynamic"]
    script = folder / "bin" / ("library" if command == "library" else "dynamic-command")  # as pip writes one
    script.parent.mkdir(exist_ok=True)
    script.write_text(LIBRARY if command == "library" else SCRIPT, encoding="utf-8")
    return [sys.executable, str(script)]


def _early(folder: Path) -> set[str]:
    """What `python -m` imports from the working folder before it runs the first line of a package."""
    working = folder / "early"
    (working / "empty").mkdir(parents=True)
    for name in ("__init__", "__main__"):
        (working / "empty" / f"{name}.py").touch()
    found: set[str] = set()
    while True:  # one that runs may end the start, and hide others
        for name in {*STANDARD, *OTHERS}:
            (working / f"{name}.py").unlink(missing_ok=True)
            if name not in found:
                (working / f"{name}.py").write_text(NOTE, encoding="utf-8")
        names, _ = _run([sys.executable, "-m", "empty"], working, folder, tells=False)
        if not set(names) - found:
            return found
        found |= set(names)


def _run(command: list[str], working: Path, folder: Path, tells: bool = True) -> tuple[list[str], int]:
    """The planted modules that ran, and the exit code."""
    note = folder / "ran"
    note.unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env |= {"RAN": str(note), "XDG_CACHE_HOME": str(folder / "cache")}
    done = subprocess.run(command, cwd=working, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode and tells:
        print(" ".join(command), done.stderr[-2000:], file=sys.stderr)
    return sorted(set(note.read_text(encoding="utf-8").split())) if note.exists() else [], done.returncode


def _write_images(folder: Path) -> None:
    """Pictures for `run`, and larger ones in colour for `build`."""
    from PIL import Image

    images, labels = make_images(np.random.default_rng(0), 40)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        large = np.kron(image, np.ones((4, 4, 3), np.uint8))
        for name, picture, of in (("data", image[..., 0], "abcd"[label]), ("large", large, str(number % 10))):
            place = folder / name / of
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(place / f"{number}.png")


def main() -> None:
    """Print what ran; exit with 1 where anything did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commands", nargs="*", default=tuple(COMMANDS), choices=tuple(COMMANDS))
    found = planted(commands=parser.parse_args().commands)
    print(json.dumps(found, indent=1))
    sys.exit(1 if found["ran"] or found["failed"] else 0)


if __name__ == "__main__":
    main()
