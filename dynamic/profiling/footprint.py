"""Memory of a backbone: growth of a process in 10^6 bytes.

    python -m dynamic.profiling.footprint BUNDLE BACKBONE THREADS ENGINE PRECISION

It prints three numbers: memory of the process without a backbone, of one more row while the backbone runs, and of the
backbone, which remains afterwards.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

from dynamic.engines.contract import Array

_ROWS = (8, 64, 512)  # as many until what they take is clear
_CLEAR_BYTES = 4e6
# the smallest model there is: y = relu(x), as an ONNX file
_RELU = bytes.fromhex(
    "080712003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


def _warm_onnxruntime() -> None:
    import onnxruntime

    onnxruntime.InferenceSession(_RELU, providers=["CPUExecutionProvider"]).run(None, {"x": np.zeros(1, np.float32)})


def _warm_openvino() -> None:
    from dynamic.engines.openvino import new_core

    core = new_core()
    core.compile_model(core.read_model(_RELU), "CPU")([np.zeros(1, np.float32)])


_WARM = {"onnxruntime": _warm_onnxruntime, "openvino": _warm_openvino}


def main(folder: str, backbone: str, threads: str, name: str, precision: str) -> None:
    """Load one backbone of a bundle, run it, and print memory of process, row and backbone, in 10^6 bytes."""
    import dynamic.runtime.runtime  # noqa: F401  # what a process of the runtime holds anyway
    from dynamic.bundle.bundle_reader import read
    from dynamic.engines.engine_factory import open_engine
    from dynamic.engines.memory import trim_memory
    from dynamic.profiling.example_inputs import example_arrays

    bundle = read(Path(folder), verify=False)
    engine = open_engine(
        name,
        bundle.folder,
        bundle.spec,
        bundle.combiner(),
        precision=precision,
        threads=int(threads),
        hashes=bundle.hashes,
    )
    inputs = example_arrays(bundle.spec, 1)
    # what the first model of a process costs is the engine's, not the backbone's
    _WARM[name]()
    process = psutil.Process()
    before = process.memory_info().rss

    def run(some: dict[str, Array]) -> None:
        carry = engine.executor.start(some)
        for stage, spec in enumerate(bundle.spec.stages):
            if spec.backbone == int(backbone):
                _, carry = engine.executor.step(stage, carry, True)

    run(inputs)
    trim_memory()  # as the runtime does under a limit
    stays = process.memory_info().rss - before
    taken, rows = 0.0, 0
    for rows in _ROWS:
        batch = example_arrays(bundle.spec, rows)
        taken = _grows(lambda batch=batch: run(batch))  # type: ignore[misc]
        if taken >= _CLEAR_BYTES:
            break
    print(before / 1e6, taken / rows / 1e6, stays / 1e6)


def _grows(work: Callable[[], None]) -> float:
    """Largest growth of resident memory while this runs, in bytes."""
    process = psutil.Process()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # proc(5): forget the peak so far
        before = process.memory_info().rss
        work()
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):  # a system that keeps no peak: what is there afterwards
        before = process.memory_info().rss
        work()
        peak = process.memory_info().rss
    return max(float(peak - before), 0.0)


if __name__ == "__main__":
    main(*sys.argv[1:])
