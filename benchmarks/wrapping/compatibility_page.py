"""The page `docs/compatibility.md`, which `python -m benchmarks.wrapping.compatibility_page` writes."""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.harness.common import ROOT
from benchmarks.wrapping.compatibility import CHECKS, NEEDED, RESULT, TIMM_COUNT, works
from benchmarks.wrapping.compatibility_networks import transformers_names

PAGE = ROOT / "docs" / "compatibility.md"
PASSES = """| check | what passes |
| --- | --- |
| number | `wrap(network, x, exits=3)` |
| exact | The last logits are those of the network, bit for bit. After torch.export within 1e-5 |
| heads | Every parameter of every head gets a finite gradient |
| name | `wrap(network, x, exits=[name of a module])` |
| size | The graph of `dynamic_shapes=` on ONNX Runtime gives the network's logits at another length or image size, \
sides in steps of 32 pixels, else of 64. \
A network that refuses another size itself passes, and is counted as one of one size |
| export | `dynamic.export` writes one graph, that of any size where there is one. ONNX Runtime loads it |
| parity | Its logits for another batch are torch's within 1e-3 of their spread, at the first exit and at full depth |
| int8 | Of some networks: logits after `quantize` correlate with those in float32 by 0.9 or more |"""


class Kind(NamedTuple):
    """A kind of failure: what its message holds, the reason in words, and the remedy."""

    pattern: str
    reason: str
    remedy: str


KINDS = (
    Kind(
        r"size of tensor a .* must match .*attention_mask|nystromformer.*attention_mask",
        "The network itself fails on a mask with padding. A mask of ones it takes for none, which a tracer cannot",
        "Give texts of one length without a mask, or use another encoder",
    ),
    Kind(
        r"mixes the rows of a batch",
        "The network mixes the rows of a batch, so that no row has an answer of its own",
        "Write it so that each row is answered alone",
    ),
    Kind(
        r"places where it can be cut|place where it can be cut",
        "The network has fewer places where it can be cut than exits were asked for",
        "Ask for fewer exits, name modules, or put the network whole into a cascade",
    ),
    Kind(
        r"cannot be read from the graph or from another input size",
        "Which dimension of a feature holds the channels is not known",
        "Give `layout=`, or name other modules",
    ),
    Kind(
        r"exit .* (lies where|reads|gives a)|does not return one tensor|does not run in eval mode",
        "No head can read what the named module gives",
        "Name another module: the message lists some",
    ),
    Kind(
        r"decides otherwise there than in the graph",
        "The code takes another branch at other sizes, and a graph has one",
        "Give `Dim` limits between which the branch is the same, or wrap a network for each size",
    ),
    Kind(
        r"dynamic_shapes allows|does not run at .* which",
        "The network itself does not run at all sizes between the least and the largest",
        "Give `Dim` other limits or steps, or leave the size fixed",
    ),
    Kind(
        r"a size went into it as a number|cannot be computed from what crosses|takes the size as a Python number",
        "A size is a number in the network's code, so that a graph of it is for one size",
        "Leave the size fixed: wrap a network for each size, as `dynamic.at_resolution` does",
    ),
    Kind(
        r"neither torch\.fx nor torch\.export captures",
        "No tracer captures the network's code",
        "Follow the message, which names the line: a branch on values becomes `torch.where` or a setting",
    ),
    Kind(
        r"torch cannot export stage",
        "The exporter of torch does not know an operator",
        "Replace the operator, or run the bundle with `engine='torch'`",
    ),
    Kind(r"CPU time", "The checks took longer than their limit", "Raise `--limit`"),
    Kind(r"the process ended", "The process ended before its time", "Run it alone, with more memory"),
)
BY_CHECK = {
    "exact": ("The graph gives other logits than the network", "Report the network"),
    "heads": ("A head gets no gradient", "Report the network"),
    "name": ("An exit has another name than was asked for", "Report the network"),
    "size": ("The graph gives other logits than the network at another size", "Leave the size fixed"),
    "parity": ("ONNX Runtime gives other logits than torch", "Use `engine='torch'`, and report the network"),
    "int8": ("Logits in int8 do not follow those in float32", "Leave layers out with `skip=`, or train with rounding"),
}


def kind_of(check: str, reason: str | None) -> tuple[str, str]:
    """The reason of a failure in words, and the remedy. Raises LookupError on one that nobody has looked at."""
    if reason is None:
        return BY_CHECK[check]
    for kind in KINDS:
        if re.search(kind.pattern, reason):
            return kind.reason, kind.remedy
    raise LookupError(f"{check}: no kind of failure fits {reason!r}: add one to KINDS, with its remedy")


def failures(rows: Iterable[dict[str, Any]]) -> dict[tuple[str, str], dict[str, list[str]]]:
    """By reason and remedy, for each network the checks that failed for it."""
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for check in CHECKS:
            reason = row["reasons"].get(check)
            if row[check] is False or reason is not None:
                found[kind_of(check, reason)][row["network"]].append(check)
        if "end" in row["reasons"]:
            found[kind_of("end", row["reasons"]["end"])][row["network"]].append("end")
    return found


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(rows: Sequence[dict[str, Any]], check: str) -> str:
    """How many pass a check, of how many. int8 is checked on demand."""
    some = [row for row in rows if check in NEEDED or row[check] is not None]
    return f"{sum(row[check] is True for row in some)}/{len(some)}" if some else ""


def by_family(rows: Sequence[dict[str, Any]]) -> str:
    """How many networks of each family work, and pass each check."""
    families: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        families[f"{row['network'].split(':')[0]} {row['family']}"].append(row)
    lines = []
    for name, some in sorted(families.items()):
        alone = sum("own size alone" in row for row in some)
        size = share(some, "size") + (f" ({alone} of one size)" if alone else "")
        checks = [size if check == "size" else share(some, check) for check in CHECKS]
        lines.append([name, f"{sum(map(works, some))}/{len(some)}", *checks])
    return table(("family", "work", *CHECKS), lines)


def page(result: dict[str, Any]) -> str:
    """The page."""
    rows = result["rows"]
    parts = {source: [row for row in rows if row["network"].startswith(source)] for source in ("timm", "transformers")}
    sums = ", ".join(
        f"{len(some)} of the {count} of {source} were tried and {sum(map(works, some))} work"
        for (source, some), count in zip(parts.items(), (TIMM_COUNT, len(transformers_names())), strict=True)
    )
    dates = sorted({row["date"] for row in rows})
    versions = ", ".join(f"{name} {version}" for name, version in sorted(result["versions"].items()))
    tried = {row["network"] for row in rows}
    left = [name for name in result["networks"] if name not in tried]
    lines = [
        [reason, remedy, ", ".join(f"{name.split(':')[1]} ({', '.join(checks)})" for name, checks in networks.items())]
        for (reason, remedy), networks in sorted(failures(rows).items(), key=lambda entry: -len(entry[1]))
    ]
    return "\n".join(
        [
            "# Networks of timm and transformers",
            "",
            "This page is written by `python -m benchmarks.wrapping.compatibility_page` from",
            "[compatibility.json](../benchmarks/results/wrapping/compatibility.json), which has every network by name.",
            "",
            f"Of {len(result['networks'])} networks, {len(rows)} were tried: {sums}. All have random weights. Those of",
            "timm are the smallest of each family below 150 M parameters, and those of transformers are small",
            "configurations of classifiers. One of each module of timm comes first, then a second of each.",
            "A network works where all checks but int8 pass.",
            "",
            f"Measured {' to '.join(dict.fromkeys((dates[0], dates[-1])))} on {result['machine']}, with {versions}.",
            "",
            PASSES,
            "",
            "## By family",
            "",
            by_family(rows),
            "",
            "## What fails",
            "",
            table(("reason", "remedy", "networks, and the checks that failed"), lines) if lines else "Nothing.",
            "",
            "## Not tried",
            "",
            f"{len(left)} networks{':' if left else '.'} {', '.join(name.split(':')[1] for name in left)}",
            "",
        ]
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(json.loads(RESULT.read_text(encoding="utf-8"))), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)} is written ({', '.join(NEEDED)} have to pass)")


if __name__ == "__main__":
    main()
