"""README.md and docs/: Python blocks run, printed output is real, links lead somewhere, figures stand in results.

The blocks of a page run one after the other, in names that `tests/support/pages/page_names.py` lists. A block may be
marked in an HTML comment before it:

- `<!-- output -->`: a block of text that the Python block before it prints. Numbers and names in quotes may differ.
- `<!-- compiled only: REASON -->`: the Python block is compiled and not run.
"""

import contextlib
import io
import json
import re
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from pathlib import Path
from typing import Any

import pytest
from support.pages.page_names import namespace
from support.pages.public_names import public
from sybil import Example, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = 14  # blocks in all: signals, servers, Ray, torchrun, a Hub, a tracker, an encoder, a long measurement
HELPERS = {"dynamic.DynamicError", "dynamic.DynamicWarning", "dynamic.models.with_remedy"} | {
    f"dynamic.models.compress.{name}" for name in ("baked", "masks", "measure")
}
COMPILED = re.compile(r"<!-- compiled only: \S[^>]*-->\s*\Z")
OUTPUT = re.compile(r"<!-- output -->\s*\Z")


def page_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


class Page:
    """The blocks of one page, which run in its namespace."""

    def __init__(self, path: Path, names: dict[str, Any]) -> None:
        self.printed = ""
        parsers = [PythonCodeBlockParser(), CodeBlockParser("text", self.compare)]
        self.document = Sybil(parsers=parsers, path=str(ROOT)).parse(path)
        self.document.namespace.update(names)

    def run(self) -> None:
        """Run every block in its order."""
        for example in self.document.examples():
            if example.region.evaluator == self.compare:
                example.evaluate()
            elif COMPILED.search(example.document.text[: example.region.start]):
                compile(str(example.parsed), example.path, "exec", flags=PyCF_ALLOW_TOP_LEVEL_AWAIT)
            else:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    example.evaluate()
                self.printed = printed.getvalue()

    def compare(self, example: Example) -> None:
        """Compare a block that is marked as output with what the Python block before it printed."""
        if OUTPUT.search(example.document.text[: example.region.start]):
            assert pattern(example.parsed) == pattern(self.printed), self.printed


def pattern(text: str) -> str:
    """A text without numbers, names in quotes, spaces, and what a decision adds where two points take the same time."""
    text = " ".join(re.sub(r"'[^']*'", "NAME", text).split())  # first: lines may break anywhere
    text = re.sub(r" \(times within \d+% count as equal\)", "", text.replace(" at the smallest batch", ""))
    return re.sub(r"\b\d+(\.\d+)?(e-?\d+)?\b", "N", text)


def test_points_of_the_same_time_print_the_same_pattern() -> None:
    fastest, equal, broken, batch = (
        f"0.4 ms. 'drop 0.05' is the fastest{words} of 2 of 3 points. No limit excludes a point"
        for words in (
            "",
            " (times within 17% count as equal)",
            " (times\nwithin 17% count as equal)",
            " at the smallest batch",
        )
    )
    assert pattern(fastest) == pattern(equal) == pattern(broken) == pattern(batch)
    assert pattern(fastest) != pattern(fastest.replace("fastest", "safest"))


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.mark.parametrize("path", [path for path in PAGES if "```python" in path.read_text("utf-8")], ids=page_name)
def test_the_python_of_a_page_runs(path: Path, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Page(path, namespace(shared, tmp_path)).run()


def test_the_reference_has_every_public_name() -> None:
    text = "\n".join(path.read_text("utf-8") for path in (ROOT / "docs" / "reference").glob("*.md"))
    shown = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    named = set(re.findall(r"^\| `(\w+Error)` \|", text, re.MULTILINE))
    expected = {one.name for one in public() if one.owner is None} - HELPERS
    assert {name for name in expected - shown if name.rpartition(".")[2] not in named} == set()
    assert shown - expected == set()


FENCE = re.compile(r"^(?P<fence>`{3,}).*?^(?P=fence)$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a page, as mkdocs and git hosts make them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "benchmarks" / "README.md"], ids=page_name)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(FENCE.sub("", path.read_text("utf-8"))):
        file = (path.parent / target).resolve() if target else path
        if not file.is_file() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


def test_few_blocks_are_compiled_only() -> None:
    count = sum(len(re.findall(r"<!-- compiled only: ", path.read_text("utf-8"))) for path in PAGES)
    assert count <= NOT_RUN


def test_the_readme_is_short_and_has_the_test_command() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) < 150
    assert re.search(r"<!-- tests -->\n```bash\n.*pytest.*\n```", text)


def figure(name: str, *keys: str) -> Any:
    value = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text("utf-8"))
    for key in keys:
        value = value[key]
    return value


ENGINE = ("engines", "onnxruntime f32")
TEXT, EXITS = ("text/intents_cascade", "tasks", "clinc150", "onnxruntime"), "bag, exits f32"
MODERN = ("runtime/as_users_run_modern", *ENGINE)
TORCH, ALONE = ("rows", "bundle, torch"), ("rows", "bundle, single graph, ONNX Runtime")
USERS = ("over_splits", "ratio", "mean")
OWN_TIME = ("engines", "onnxruntime", "cold", "runtime", "added_of_medians_us")
IN_README = [  # words of README.md, the figure they quote, its rounding
    ("**{}** of the latency of int8 MiniLM-L6", figure(*TEXT, "over_splits", EXITS, "ratio_to_int8"), ".2f"),
    ("at its accuracy ({})", figure(*TEXT, "over_splits", EXITS, "accuracy"), ".3f"),
    ("95th percentile {}, CPU", figure(*TEXT, "over_splits", EXITS, "p95_ratio_to_int8"), ".2f"),
    *(
        (words, figure("runtime/as_users_run_modern", "engines", engine, "against", network, key), rounding)
        for engine, network, key, words, rounding in (
            ("onnxruntime f32", "resnet56-int8", "mean", "**{}** of the latency and 0", ".2f"),
            ("onnxruntime f32", "resnet56-int8", "cpu", "of the latency and {} of the CPU time", ".2f"),
            ("onnxruntime f32", "modern-int8", "mean", "more accuracy. **{}** and", ".2f"),
            ("onnxruntime f32", "modern-int8", "cpu", "** and {} of the fastest one", ".2f"),
            ("onnxruntime f32", "resnet56-int8", "p95", "latency is {} of", ".2f"),
            ("onnxruntime f32", "modern-int8", "p95", "the first and {} of the second", ".1f"),
            ("openvino f32", "resnet56-int8", "mean", "| **{}** and 0", ".2f"),
            ("openvino f32", "resnet56-int8", "cpu", "** and {}, **", ".2f"),
            ("openvino f32", "modern-int8", "mean", ", **{}** and", ".2f"),
            ("openvino f32", "modern-int8", "cpu", "** and {} of the same", ".2f"),
            ("openvino f32", "resnet56-int8", "p95", "the second ({} and", ".2f"),
            ("openvino f32", "modern-int8", "p95", "and {} on OpenVINO)", ".2f"),
        )
    ),
    ("measured {} points above its", 100 * figure(*MODERN, "over_splits", "gain", "mean"), ".1f"),
    ("CPU time {} |", figure(*TEXT, "one", EXITS, "cpu_ms") / figure(*TEXT, "one", "MiniLM-L6 int8", "cpu_ms"), ".2f"),
    ("**{} MB** resident", figure("memory/footprint", *ALONE, "resident_mb", "median"), ".0f"),
    ("resident, {} s from start", figure("memory/footprint", *ALONE, "first_answer_s", "median"), ".2f"),
    ("In torch {} MB", figure("memory/footprint", *TORCH, "resident_mb", "median"), ".0f"),
    ("{} of the mean latency on ONNX Runtime at", figure("cascades/headline", *ENGINE, "ratio"), ".3f"),
    ("mean latency {} on ONNX Runtime and 0", figure("runtime/as_users_run", *ENGINE, *USERS), ".2f"),
    ("Runtime and {} on OpenVINO (median", figure("runtime/as_users_run", "engines", "openvino f32", *USERS), ".2f"),
    ("little: [{} ms]", figure("runtime/overhead", *OWN_TIME) / 1000, ".2f"),
    ("exits on your own network. {} torchvision", figure("wrapping/wrap_torchvision", "passing"), "d"),
]


@pytest.mark.parametrize(("words", "value", "rounding"), IN_README, ids=[words for words, *_ in IN_README])
def test_figures_of_the_readme_stand_in_results(words: str, value: float, rounding: str) -> None:
    assert words.format(format(value, rounding)) in (ROOT / "README.md").read_text("utf-8")
