"""Do the stages of a bundle that was calibrated on x86-64 answer the same on 64-bit ARM?

    python -m benchmarks.processors.int8_on_arm NAME=SHELF NAME=SHELF

Each bundle's canaries run on ARM processors that QEMU emulates (tests/arm/emulate.py): one without instructions for
dot products of int8, one with them, one with everything that QEMU has. Compared are the logits of every stage with
those that the bundle holds from its calibration. Times mean nothing there. Emulation is slow, so figures are written
after every eight canaries of every stage, and a run may be ended early. Then the bundles check themselves.

ONNX Runtime converts int8 activations to uint8 on x86-64. On ARM it does not ("session.qdqisint8allowed"), and then
it runs convolutions from uint8 to int8 in float32. Both settings run: "default", and "converted" as on x86-64.
"""

import argparse
import json
import platform
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import dynamic
from dynamic.profiling.machine import instruction_sets, machine_name

EMULATE = Path(__file__).resolve().parents[2] / "tests" / "arm" / "emulate.py"
CPUS = ("cortex-a53", "cortex-a76", "max")
CHUNK = 8
OPTION = "session.qdqisint8allowed"


class Converted(onnxruntime.SessionOptions):  # type: ignore[misc]
    """Options by which ONNX Runtime converts int8 activations to uint8 on every processor."""

    def __init__(self) -> None:
        super().__init__()
        self.add_session_config_entry(OPTION, "0")


FORMS = {"converted": Converted, "default": onnxruntime.SessionOptions}


@dataclass
class Comparison:
    """One stage with one setting: the canaries `[n, ...]` and their logits `[n, C]` in calibration."""

    place: tuple[str, str, str]  # bundle, form, stage
    graph: Path
    inputs: dict[str, NDArray[Any]]
    expected: NDArray[np.float32]

    def __post_init__(self) -> None:
        options = FORMS[self.place[1]]()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(self.graph), options, providers=["CPUExecutionProvider"])
        self.logits = np.empty((0, self.expected.shape[1]), np.float32)

    def advance(self) -> dict[str, Any]:
        """Runs the next canaries and gives the figures of all that ran."""
        done = len(self.logits)
        part = {name: array[done : done + CHUNK] for name, array in self.inputs.items()}
        self.logits = np.concatenate([self.logits, self.session.run(["logits"], part)[0]])
        expected = self.expected[: len(self.logits)]
        largest = float(np.abs(self.logits - expected).max())
        return {
            "canaries": len(self.logits),
            "largest_difference": largest,
            "share_of_largest_logit": largest / float(np.abs(expected).max()),
            "identical_logits": float((self.logits == expected).mean()),
            "labels_agree": float((self.logits.argmax(1) == expected.argmax(1)).mean()),
        }


def comparisons(shelves: dict[str, Path]) -> Iterator[Comparison]:
    """Every int8 stage in both forms, and every other stage once: the setting does not matter to it."""
    seen = set()
    for name, shelf in shelves.items():
        bundle = dynamic.load(shelf)
        canaries = bundle.canaries
        assert canaries is not None
        assert len(set(bundle.spec.backbone)) == len(bundle.spec.stages), "every network must have one stage"
        for s, stage in enumerate(bundle.spec.stages):
            graph = shelf / stage.graph
            is_int8 = b"QuantizeLinear" in graph.read_bytes()
            for form in FORMS if is_int8 else ["default"]:
                key = (form, stage.name, canaries.logits[:, s].tobytes())
                if key not in seen:
                    seen.add(key)
                    yield Comparison((name, form, stage.name), graph, dict(canaries.inputs), canaries.logits[:, s])


def inside(shelves: dict[str, Path]) -> None:
    """Runs on the emulated processor, and prints lines of JSON: where a figure belongs, and the figure."""
    versions = {"python": platform.python_version(), **{p: version(p) for p in ("numpy", "onnxruntime")}}
    _print(["machine"], machine_name())
    _print(["instruction_sets"], instruction_sets())
    _print(["versions"], versions)
    left = list(comparisons(shelves))
    while left:
        for comparison in left:
            _print(["stages", *comparison.place], comparison.advance())
        left = [c for c in left if len(c.logits) < len(c.expected)]
    for form, options in FORMS.items():
        onnxruntime.SessionOptions = options  # what the engine takes
        for name, shelf in shelves.items():
            report = dynamic.load(shelf).check(again=True)
            assert report is not None
            _print(["checks", name, form], {"text": str(report), **report.to_json()})


def _print(place: list[str], value: Any) -> None:
    print(json.dumps([place, value]), flush=True)


def emulate(cpu: str, shelves: dict[str, Path], lines: "queue.Queue[tuple[str, str]]") -> None:
    """Puts every line of one processor into the queue, and at the end its exit status."""
    with tempfile.TemporaryDirectory() as folder:  # a check is kept in the bundle's folder
        for name, shelf in shelves.items():
            shutil.copytree(shelf, Path(folder) / name)
        given = [f"{name}={Path(folder) / name}" for name in shelves]
        words = [sys.executable, str(EMULATE), "--cpu", cpu, "-m", __spec__.name, "--inside", *given]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.put((cpu, line))
    lines.put((cpu, json.dumps([["exit_status"], process.returncode])))


def main() -> None:
    """Prints figures as they come and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shelves", nargs="+", metavar="NAME=SHELF")
    parser.add_argument("--cpus", nargs="+", default=CPUS)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    shelves = {name: Path(path) for name, path in (text.split("=", 1) for text in options.shelves)}
    if options.inside:
        inside(shelves)
        return
    from benchmarks.harness.common import save

    qemu = subprocess.run(["qemu-aarch64", "--version"], check=True, capture_output=True, text=True)
    calibrated = {name: str(dynamic.load(shelf).calibrated_on) for name, shelf in shelves.items()}
    processors: dict[str, Any] = {cpu: {} for cpu in options.cpus}
    result = {
        "command": " ".join(["python -m benchmarks.processors.int8_on_arm", *(f"{name}=SHELF" for name in shelves)]),
        "qemu": qemu.stdout.splitlines()[0],
        "calibrated_on": calibrated,
        "processors": processors,
    }
    lines: queue.Queue[tuple[str, str]] = queue.Queue()
    for cpu in options.cpus:
        threading.Thread(target=emulate, args=(cpu, shelves, lines), daemon=True).start()
    while not all("exit_status" in own for own in processors.values()):
        cpu, line = lines.get()
        place, value = json.loads(line)
        folder = processors[cpu]
        for part in place[:-1]:
            folder = folder.setdefault(part, {})
        folder[place[-1]] = value
        print(cpu, *place, json.dumps(value), flush=True)
        save("processors/int8_on_arm", result)


if __name__ == "__main__":
    main()
