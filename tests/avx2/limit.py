"""Runs a command whose engines see a processor with AVX2 and without AVX-512, VNNI and AMX, at native speed.

    python tests/avx2/limit.py python -m pytest -q tests/engines/test_engines.py
    python tests/avx2/limit.py --avx512 python -m pytest -q tests/models/compress/quantization/test_int8_processors.py
    python tests/avx2/limit.py --check

With `--avx512` the engines see AVX-512 as Skylake-X has it, which has no VNNI either.

ONNX Runtime has no option for this, and an emulator gives no times. So the engines' libraries are copied, their CPUID
instructions trap, and a preloaded handler answers them without the newer features (`cpuid_mask.c`). torch is limited by
its own variables. It needs Linux on x86-64, gcc and objdump. The copies are made once for each version, in `.avx2/`.
"""

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".avx2"
# a package -> its libraries that ask the processor what it can do
LIBRARIES = {
    "onnxruntime": ("capi/onnxruntime_pybind11_state*.so",),
    "openvino": ("libs/libopenvino_intel_cpu_plugin.so", "libs/libopenvino.so.*"),
}
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
# as on Skylake-X
ENVIRONMENT_AVX512 = {
    "DYNAMIC_CPUID_MASK": "avx512",
    "ATEN_CPU_CAPABILITY": "avx512",
    "ONEDNN_MAX_CPU_ISA": "AVX512_CORE",
    "DNNL_MAX_CPU_ISA": "AVX512_CORE",
    "MKL_ENABLE_INSTRUCTIONS": "AVX512",
}
_CPUID, _TRAP = b"\x0f\xa2", b"\xcc\x90"
_SECTION = re.compile(r"^\s*\d+ (\.\S+)\s+[0-9a-f]+\s+([0-9a-f]+)\s+[0-9a-f]+\s+([0-9a-f]+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*([0-9a-f]+):\s+cpuid\s*$")


def problem(avx512: bool = False) -> str | None:
    """Why this machine cannot do it, or None."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return f"it needs Linux on x86-64, this is {sys.platform} on {platform.machine()}"
    if avx512 and "avx512bw" not in instruction_sets():
        return "this processor has no AVX-512"
    missing = [tool for tool in ("gcc", "objdump") if shutil.which(tool) is None]
    return f"it needs {' and '.join(missing)}: install gcc and binutils" if missing else None


def instruction_sets() -> set[str]:
    """The flags of the processor, as Linux lists them."""
    lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def environment(avx512: bool = False) -> dict[str, str]:
    """The variables under which a process is limited. Copies what is not copied yet, one process at a time."""
    CACHE.mkdir(exist_ok=True)
    mask = CACHE / "cpuid_mask.so"
    source = Path(__file__).with_name("cpuid_mask.c")
    import fcntl  # not on every system

    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not mask.is_file() or mask.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["gcc", "-O2", "-shared", "-fPIC", "-o", str(mask), str(source)], check=True)
        packages = [_limited(name) for name in LIBRARIES if find_spec(name) is not None]
    before = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    limits = dict(ENVIRONMENT_AVX512 if avx512 else ENVIRONMENT)
    # code that torch has compiled for the whole processor gives wrong answers to a limited one
    limits["TORCHINDUCTOR_CACHE_DIR"] = str(CACHE / f"inductor-{'avx512' if avx512 else 'avx2'}")
    return limits | {"LD_PRELOAD": str(mask), "PYTHONPATH": os.pathsep.join([*map(str, packages), *before])}


def _limited(package: str) -> Path:
    """A folder with a copy of the package whose libraries trap at CPUID."""
    spec = find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    origin = Path(next(iter(spec.submodule_search_locations)))
    folder = CACHE / f"{package}-{version(package)}"
    if CACHE in origin.parents or (folder / "complete").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(origin, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    for pattern in LIBRARIES[package]:
        for library in (folder / package).glob(pattern):
            print(f"{library.name}: {_trap(library)} CPUID instructions", file=sys.stderr)
    (folder / "complete").touch()
    return folder


def _trap(library: Path) -> int:
    """Replaces every CPUID instruction of a library, and gives their number."""
    code = bytearray(library.read_bytes())
    sections = [
        (int(address, 16), int(offset, 16))
        for name, address, offset in _SECTION.findall(_objdump(library, "-h"))
        if name == ".text"
    ]
    assert len(sections) == 1, f"{library} has {len(sections)} sections of code"
    address, offset = sections[0]
    count = 0
    for place in _instructions(library):
        at = place - address + offset
        assert code[at : at + 2] == _CPUID, f"no CPUID at {place:x} of {library}"
        code[at : at + 2] = _TRAP
        count += 1
    library.write_bytes(code)
    return count


def _instructions(library: Path) -> Iterator[int]:
    command = ["objdump", "-d", "-j", ".text", "--no-show-raw-insn", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            # there are millions of lines, and few of them pass the first test
            if "cpuid" in line and (match := _INSTRUCTION.match(line)):
                yield int(match.group(1), 16)


def _objdump(library: Path, *options: str) -> str:
    return subprocess.run(["objdump", *options, str(library)], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Replaces this process by the command."""
    if not set(sys.argv[1:]) - {"--avx512"}:
        sys.exit("give a command: python tests/avx2/limit.py python -m pytest -q")
    avx512 = sys.argv[1] == "--avx512"
    command = sys.argv[2:] if avx512 else sys.argv[1:]
    reason = problem(avx512)
    if reason is not None:
        sys.exit(f"cannot limit the engines: {reason}")
    if command == ["--check"]:
        return
    os.execvpe(command[0], command, dict(os.environ) | environment(avx512))


if __name__ == "__main__":
    main()
