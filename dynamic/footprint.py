"""`python -m dynamic.footprint BUNDLE BACKBONE THREADS ENGINE PRECISION`: MB that a process grows by for a backbone."""

import sys
from pathlib import Path

import numpy as np
import psutil

# the smallest model there is: y = relu(x), as an ONNX file
_RELU = bytes.fromhex(
    "080712003a330a0c0a0178120179220452656c751201675a0f0a0178120a0a08080112040a02080162"
    "0f0a0179120a0a08080112040a02080142040a00100d"
)


def _warm_onnxruntime() -> None:
    import onnxruntime

    onnxruntime.InferenceSession(_RELU, providers=["CPUExecutionProvider"]).run(None, {"x": np.zeros(1, np.float32)})


def _warm_openvino() -> None:
    import openvino

    core = openvino.Core()
    core.compile_model(core.read_model(_RELU), "CPU")([np.zeros(1, np.float32)])


_WARM = {"onnxruntime": _warm_onnxruntime, "openvino": _warm_openvino}


def main(folder: str, backbone: str, threads: str, name: str, precision: str) -> None:
    """Load one backbone of a bundle, run it once, and print the growth of resident memory in MB (10^6 bytes)."""
    from dynamic.bundle import read
    from dynamic.engines.memory import trim_memory
    from dynamic.engines.opening import open_engine
    from dynamic.profiling import example_arrays

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
    carry = engine.executor.start(inputs)
    for stage, spec in enumerate(bundle.spec.stages):
        if spec.backbone == int(backbone):
            _, carry = engine.executor.step(stage, carry, True)
    trim_memory()  # as the runtime does under a limit
    print((process.memory_info().rss - before) / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
