"""`python -m dynamic.footprint BUNDLE BACKBONE THREADS`: megabytes that a process grows by for one backbone."""

import sys
from pathlib import Path

import psutil


def main(folder: str, backbone: str, threads: str) -> None:
    """Load one backbone of a bundle, run it once, and print the growth of resident memory in MB (10^6 bytes)."""
    import onnxruntime  # noqa: F401  its own memory is not the backbone's

    from dynamic.bundle import read
    from dynamic.engines.opening import open_engine
    from dynamic.profiling import example_arrays

    bundle = read(Path(folder), verify=False)
    engine = open_engine("onnxruntime", bundle.folder, bundle.spec, bundle.combiner(), threads=int(threads))
    inputs = example_arrays(bundle.spec, 1)
    process = psutil.Process()
    before = process.memory_info().rss
    carry = engine.executor.start(inputs)
    for stage, spec in enumerate(bundle.spec.stages):
        if spec.backbone == int(backbone):
            _, carry = engine.executor.step(stage, carry, True)
    print((process.memory_info().rss - before) / 1e6)


if __name__ == "__main__":
    main(*sys.argv[1:])
