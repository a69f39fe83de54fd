"""Runs a script with the Python, numpy and ONNX Runtime of a 64-bit ARM processor, on a processor that is none.

    python tests/arm/emulate.py -c "import dynamic.profiling.machine as m; print(m.instruction_sets())"
    python tests/arm/emulate.py --cpu cortex-a53 script.py ARGUMENTS

QEMU executes the ARM instructions one by one, so answers are those of ARM kernels and times mean nothing. Python comes
from Debian's packages, the libraries from PyPI in the versions of this Python. Both are unpacked once, into `.arm/`.
Nothing is installed, and this system's own list of packages is not touched.

QEMU shows this machine's own `/proc/cpuinfo`. So each processor gets a file of its own, written from what QEMU says
that it can do (the auxiliary vector of a process, from which Linux writes that file too).
"""

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".arm"
SYSTEM, SITE = CACHE / "system", CACHE / "site"
TOOLS = {"qemu-aarch64": "qemu-user", "apt-get": "apt", "dpkg-deb": "dpkg"}  # a command -> its Debian package
DEBIAN = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
LIBRARIES = ("numpy", "psutil", "onnxruntime")
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
# QEMU's name -> implementer and part in /proc/cpuinfo
CPUS = {
    "cortex-a53": ("0x41", "0xd03"),  # products of int8 by multiply and add
    "cortex-a76": ("0x41", "0xd0b"),  # products of int8 by dot product
    "neoverse-n1": ("0x41", "0xd0c"),  # the same, in servers
    "max": ("0x00", "0x051"),  # all that QEMU has: also i8mm, bf16, SVE2 and SME
}
# names in /proc/cpuinfo of the bits of AT_HWCAP, then of AT_HWCAP2 (Linux, arch/arm64/kernel/cpuinfo.c)
FEATURES = (
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 sm3 "
    "sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg",
    "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16 "
    "dgh rng bti mte ecv afp rpres mte3 sme smei16i64 smef64f64 smei8i32 smef16f32 smeb16f32 smef32f32 smefa64 wfxt",
)
_AT_HWCAP, _AT_HWCAP2 = 16, 26
_READ_VECTOR = (
    "import struct; v = dict(struct.iter_unpack('QQ', open('/proc/self/auxv', 'rb').read())); "
    f"print(v.get({_AT_HWCAP}, 0), v.get({_AT_HWCAP2}, 0))"
)


def problem() -> str | None:
    """Why this machine cannot do it, with the remedy, or None."""
    if sys.platform != "linux":
        return f"it needs Debian Linux, this is {sys.platform}"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return None
    return f"it needs {', '.join(missing)}: on Debian, apt-get install {' '.join(TOOLS[tool] for tool in missing)}"


def command(cpu: str, arguments: list[str]) -> list[str]:
    """The command line of this Python on a processor of `CPUS`. Unpacks what is not unpacked yet."""
    _unpack()
    prefix = CACHE / cpu
    prefix.mkdir(exist_ok=True)
    for folder in SYSTEM.iterdir():
        if not (prefix / folder.name).exists():
            (prefix / folder.name).symlink_to(folder)
    info = prefix / "proc" / "cpuinfo"
    if not info.is_file():
        info.parent.mkdir()
        info.write_text(_cpuinfo(cpu), encoding="utf-8")
    return _python(prefix, cpu, arguments)


def _python(prefix: Path, cpu: str, arguments: list[str]) -> list[str]:
    variables = {
        "PYTHONHOME": str(SYSTEM / "usr"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(SITE)]),
        "PYTHONPYCACHEPREFIX": str(CACHE / "pycache"),
        "PYTHONNOUSERSITE": "1",
    }
    options = [part for name, value in variables.items() for part in ("-E", f"{name}={value}")]
    return ["qemu-aarch64", "-L", str(prefix), "-cpu", cpu, *options, str(_interpreter()), *arguments]


def _cpuinfo(cpu: str) -> str:
    """The file that Linux would show on this processor, with as many cores as this machine has."""
    done = subprocess.run(_python(SYSTEM, cpu, ["-S", "-c", _READ_VECTOR]), check=True, capture_output=True, text=True)
    bits = [int(word) for word in done.stdout.split()]
    names = [n for text, bit in zip(FEATURES, bits, strict=True) for i, n in enumerate(text.split()) if bit >> i & 1]
    implementer, part = CPUS[cpu]
    lines = (
        f"Features\t: {' '.join(names)}",
        f"CPU implementer\t: {implementer}",
        "CPU architecture: 8",
        "CPU variant\t: 0x0",
        f"CPU part\t: {part}",
        "CPU revision\t: 0",
        f"Model\t\t: QEMU {cpu}",
    )
    return "".join(f"processor\t: {core}\n" + "\n".join(lines) + "\n\n" for core in range(os.cpu_count() or 1))


def _interpreter() -> Path:
    (found,) = (path for path in (SYSTEM / "usr/bin").glob("python3.*") if path.suffix[1:].isdigit())
    return found


def _unpack() -> None:
    """Fill the folders of the system and of the libraries."""
    if (CACHE / "complete").is_file():
        return
    shutil.rmtree(CACHE, ignore_errors=True)
    for folder in ("lists/partial", "archives/partial", "system", "site"):
        (CACHE / "apt" / folder if "/" in folder else CACHE / folder).mkdir(parents=True)
    (CACHE / "apt/status").touch()  # nothing is installed there: apt-get downloads all that is needed
    settings = (
        "APT::Architecture=arm64", "APT::Architectures=arm64", "APT::Install-Recommends=false",
        "APT::Sandbox::User=", f"Dir::State={CACHE}/apt", f"Dir::State::status={CACHE}/apt/status",
        f"Dir::State::lists={CACHE}/apt/lists", f"Dir::Cache={CACHE}/apt", "Debug::NoLocking=true",
    )  # fmt: skip
    apt = ["apt-get", "-qq", *(part for setting in settings for part in ("-o", setting))]
    _run([*apt, "update"])
    _run([*apt, "-y", "--download-only", "install", *DEBIAN])
    for package in sorted((CACHE / "apt/archives").glob("*.deb")):
        _run(["dpkg-deb", "-x", str(package), str(SYSTEM)])
    platforms = [f"--platform={name}_aarch64" for name in PLATFORMS]
    python = [f"--python-version={_interpreter().name.removeprefix('python')}", "--implementation=cp"]
    pip = [sys.executable, "-m", "pip", "-q", "install", "--only-binary=:all:", f"--target={SITE}"]
    _run([*pip, *platforms, *python, *map(_requirement, LIBRARIES)])
    shutil.rmtree(CACHE / "apt")
    (CACHE / "complete").touch()


def _requirement(library: str) -> str:
    try:
        return f"{library}=={version(library)}"
    except PackageNotFoundError:
        return library


def _run(words: list[str]) -> None:
    """Stops with the command where it fails: it has said why."""
    if subprocess.run(words, stdout=sys.stderr).returncode:
        sys.exit(f"cannot unpack an ARM system into {CACHE}, this failed: {' '.join(words)}")


def main() -> None:
    """Replaces this process by the emulated one."""
    arguments, cpu = sys.argv[1:], "cortex-a76"
    if arguments[:1] == ["--cpu"]:
        cpu, arguments = arguments[1] if len(arguments) > 1 else "", arguments[2:]
    if not arguments:
        sys.exit('give what Python shall run: python tests/arm/emulate.py [--cpu NAME] -c "print(1)"')
    if cpu not in CPUS:
        sys.exit(f"--cpu={cpu!r} is not known. Use one of {', '.join(CPUS)}")
    reason = problem()
    if reason is not None:
        sys.exit(f"cannot emulate ARM: {reason}")
    words = command(cpu, arguments)
    os.execvp(words[0], words)


if __name__ == "__main__":
    main()
