"""What a bundle, an input or a machine can do wrong, tried at random, section by section.

    python -m benchmarks.robustness                       # all of it
    python -m benchmarks.robustness --short               # seconds, as the tests do
    python -m benchmarks.robustness --only kills writers  # these alone
    python -m benchmarks.robustness --again               # sections that are done too

Figures are saved after each section. A run that was interrupted continues with the next one.
A section is one file with a function `(seed, amount) -> counts`. It stands in `SECTIONS` with what it counts by.
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.common import RESULTS, _version
from dynamic.profiling.machine import machine_name
from dynamic.storage.atomic_write import replace_text

Counts = dict[str, Any]


@dataclass(frozen=True)
class Section:
    """One thing that is tried: `name` of its file and function, how much of it, and which counts have to be 0."""

    name: str
    amount: float  # a number of trials, or seconds, as the section says
    short: float
    zero: tuple[str, ...]

    def run(self, seed: int, amount: float) -> Counts:
        """What was counted. The file is imported only now: one section needs torch, another must not have it."""
        function: Callable[[int, float], Counts] = getattr(
            importlib.import_module(f"benchmarks.robustness.{self.name}"), self.name
        )
        return function(seed, amount)


SECTIONS = (
    Section("kills", amount=300, short=4, zero=("lost", "left", "left_temporary")),
    Section("writers", amount=60, short=2, zero=("failed_loads", "mixed_loads", "failed_saves", "left")),
    Section("altered", amount=5000, short=30, zero=("raw", "silent_point", "silent_answer", "silent_loss_of_costs")),
    Section("inputs", 3000, 100, ("raw", "certified_without_answer", "certified_not_finite", "wrong_answers")),
    Section("buffers", amount=1000, short=20, zero=("wrong", "peaks_above_limit")),
    Section("swaps", amount=50, short=3, zero=("failed", "below_goal")),
    Section("planted", amount=8, short=1, zero=("ran", "failed")),
)


def main() -> None:
    """Run what is not done yet; exits with an error where a count that has to be 0 is not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--only", nargs="*", choices=[section.name for section in SECTIONS])
    parser.add_argument("--again", action="store_true", help="sections that are done too")
    parser.add_argument("--results", type=Path, default=RESULTS / "robustness" / "robustness.json")
    options = parser.parse_args()
    done = earlier(options.results)
    wrong = []
    for section in SECTIONS:
        if options.only and section.name not in options.only:
            continue
        amount = section.short if options.short else section.amount
        settings = {"seed": options.seed, "amount": amount}
        if options.again or done.get(section.name, {}).get("settings") != settings:
            print(f"{section.name}: {amount:g}", file=sys.stderr, flush=True)
            began = time.monotonic()
            counts = section.run(options.seed, amount)
            done[section.name] = {"settings": settings, "seconds": round(time.monotonic() - began), "counts": counts}
            save(options.results, done)
        wrong += [f"{section.name}: {key}" for key in section.zero if done[section.name]["counts"][key]]
    print(table(done))
    if wrong:
        sys.exit(f"not 0: {', '.join(wrong)}")


def earlier(path: Path) -> dict[str, Any]:
    """The sections of a file that an earlier run saved; empty where there is none."""
    try:
        sections: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["sections"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return sections


def save(path: Path, sections: dict[str, Any]) -> None:
    """Write the sections with command, versions and machine."""
    packages = ("dynamic-inference", "numpy", "onnxruntime", "openvino", "torch")
    about = {
        "command": "python -m benchmarks.robustness",
        "machine": machine_name(),
        "versions": {"python": sys.version.split()[0], **{p: v for p in packages if (v := _version(p))}},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(about | {"sections": sections}, indent=1) + "\n")


def table(sections: dict[str, Any]) -> str:
    """The counts as a Markdown table."""
    lines = ["| section | amount | counts |", "| --- | --- | --- |"]
    for name, section in sections.items():
        counts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in section["counts"].items())
        lines.append(f"| {name} | {section['settings']['amount']:g} | {counts} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
