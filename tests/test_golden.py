"""The policy without Python: golden decisions, and a port that gives them from JSON alone."""

import ast
import json
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
from policy_cases import INF, learned, make_costs, make_ladder, make_point, make_records

from dynamic.bundle import MANIFEST, Bundle, _manifest_hash, load, write
from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.policies import budget_policy
from dynamic.policies.budget import Budget
from dynamic.policies.budget_policy import BudgetPolicy
from dynamic.policies.certification import certify
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.frontier import Frontier
from dynamic.policies.golden import figures, golden, to_text
from dynamic.policies.ladder import Ladder
from dynamic.policies.snapshot import Snapshot

PORT = Path(__file__).resolve().parent.parent / "examples" / "policy_port.py"
BACKBONE = (0, 0, 1)
LOGITS, LABELS = learned(2000, 3, reach=(2.0, 3.0))
RECORDS = make_records(LOGITS, LABELS, BACKBONE, [i % 2 for i in range(2000)], body=(1.0, 1.0, 6.0))
LADDER = certify(RECORDS)
COSTS = make_costs([[4, 20], [5, 30], [30, 130]], (1, 8), memory_mb=(20.0, 90.0), threads=2)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of three stages without graphs, profiled."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "made").mkdir()
    stages = tuple(StageSpec(f"stage{s}", b, 1, f"{s}.onnx", None, 1.0, 0.0) for s, b in enumerate(BACKBONE))
    spec = CascadeSpec((InputSpec("input", (3,), "float32"),), stages, 4)
    write(folder / "made", spec, LADDER, RECORDS, "onnxruntime", "f32", "c", None, None)
    return kept(load(folder / "made"), COSTS, folder / "shelf")


def kept(bundle: Bundle, costs: Costs, folder: Path) -> Path:
    measured = replace(costs, engine="onnxruntime", precision="f32")
    return replace(bundle, costs=measured).save(folder).folder


def read(shelf: Path) -> Any:
    return json.loads((shelf / "golden.json").read_text(encoding="utf-8"))


def cases(shelf: Path) -> list[dict[str, Any]]:
    return [case for sequence in read(shelf)["sequences"] for case in sequence["cases"]]


def answered(
    port: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, int]:
    """How many cases a port says it answers as written, and of how many."""
    monkeypatch.setattr(sys, "argv", [str(port), str(shelf)])
    runpy.run_path(str(port), run_name="__main__")
    words = capsys.readouterr().out.split()
    return int(words[0]), int(words[2])


# what is written


def test_the_ladder_of_these_tests_has_something_to_choose() -> None:
    assert len(Frontier.of(LADDER, COSTS).points) >= 5


def test_a_thousand_readable_cases(shelf: Path) -> None:
    file = shelf / "golden.json"
    assert len(cases(shelf)) == 1000
    assert file.stat().st_size < 300_000
    assert max(len(line) for line in file.read_text().splitlines() if line.startswith('{"budget"')) < 600
    assert "golden.json" in json.loads((shelf / MANIFEST).read_text())["files"]


def test_numbers_read_back_as_they_were_and_the_same_ladder_gives_the_same_cases(shelf: Path) -> None:
    again = golden(LADDER)
    assert json.loads(to_text(again)) == again == read(shelf)
    assert golden(LADDER, seed=1) != again


@pytest.mark.parametrize(
    "ladder",
    [
        make_ladder([make_point("reference", (), (1.0,))], (0,)),
        make_ladder([make_point("reference", (INF,), (0.0, 1.0), backbones=(1,))], (0, 1)),
        make_ladder([make_point("reference", (INF,), (0.0, 1.0)), make_point("same", (-INF,), (1.0, 0.0))], (0, 0)),
        make_ladder(
            [make_point("reference", (INF,), (0.0, 1.0)), make_point("wrong", (-INF,), (1.0, 0.0), risk=0.995)], (0, 0)
        ),
    ],
)
def test_any_ladder_has_cases(ladder: Ladder) -> None:
    made = golden(ladder)
    assert sum(len(s["cases"]) for s in made["sequences"]) == 1000


def test_rows_and_percentiles_are_those_of_the_figures(shelf: Path) -> None:
    assert {case["snapshot"].get("rows") for case in cases(shelf)} == {None, 0, 1, 8}
    assert {case["budget"].get("percentile", 0.95) for case in cases(shelf)} == {0.95, None}


def test_every_limit_binds_and_gives_way(shelf: Path) -> None:
    for name, device in read(shelf)["devices"].items():
        own = [c for s in read(shelf)["sequences"] if s["device"] == name for c in s["cases"]]
        assert len(own) > 300
        points = Counter(c["decision"]["point"] for c in own)
        assert set(points) <= {p["name"] for p in device["points"]}
        if name == "made up":
            assert len(points) == 7
            assert min(points.values()) >= 5
        assert all(c["decision"]["feasible"] == (not c["decision"]["gave_way"]) for c in own)
    assert Counter(c["feedback"]["drift"] for c in cases(shelf) if "feedback" in c)[True] > 100
    assert Counter(c["budget"].get("on_drift") for c in cases(shelf)).keys() == {None, "report"}
    gave_way = Counter(limit for c in cases(shelf) for limit in c["decision"]["gave_way"])
    assert set(gave_way) == {"memory_mb", "latency_ms", "max_drop"}
    assert min(gave_way.values()) > 10


def test_every_reading_is_missing_now_and_then(shelf: Path) -> None:
    given = Counter(name for case in cases(shelf) for name in case["snapshot"])
    assert set(given) == {
        "cpu_load",
        "cpu_cores",
        "memory_available_mb",
        "memory_process_mb",
        "battery",
        "plugged",
        "rows",
    }
    assert all(200 < count < 900 for count in given.values())
    # at the floor, off the mains: equal is low
    assert any(c["snapshot"].get("battery") == c["budget"].get("battery_floor", -1) for c in cases(shelf))


def stand_in(device: dict[str, Any]) -> Any:
    """A frontier that knows nothing but the figures."""

    def latency_ms(percentile: float | None, rows: int) -> tuple[float, ...]:
        name = {0.95: "p95_ms", None: "mean_ms"}[percentile]
        return tuple(p[name][device["batch"].index(rows)] for p in device["points"])

    def point(p: dict[str, Any]) -> Any:
        certified = SimpleNamespace(
            name=p["name"],
            backbones=p["backbones"],
            accuracy=(0.0, p["accuracy"], 1.0),
            promised_drop=p["promised_drop"],
            bound=None,  # for words alone
        )
        return SimpleNamespace(point=certified, mean_ms=p["mean_ms"], cpu_ms=p["cpu_ms"], memory_mb=p["memory_mb"])

    costs = SimpleNamespace(threads=device["threads"], memory_mb=device["memory_mb"])
    return SimpleNamespace(points=[point(p) for p in device["points"]], costs=costs, latency_ms=latency_ms)


def replayed(shelf: Path) -> Iterator[tuple[dict[str, Any], Decision]]:
    """The library's own policy on the written figures."""
    policy = BudgetPolicy()
    for sequence in read(shelf)["sequences"]:
        device, state = read_device(shelf, sequence["device"]), policy.initial()
        frontier = stand_in(device)
        for case in sequence["cases"]:
            seen = Snapshot(time_s=0.0, **case["snapshot"])
            decision, state = policy.decide(frontier, Budget.from_json(case["budget"]), seen, state)
            yield case, decision
            if "feedback" in case:
                stage, at = case["feedback"]["stage"], device["batch"].index(seen.rows or 1)
                figure = next(p for p in device["points"] if p["name"] == decision.point.point.name)
                took_ms, expected_ms = case["feedback"]["latency_ms"], figure["path_ms"][stage][at]
                drift = case["feedback"]["drift"]
                fed = Feedback(decision.point, stage, 1, took_ms, expected_ms, device["threads"], seen, drift)
                state = policy.observe(state, fed)


def read_device(shelf: Path, name: str) -> Any:
    return read(shelf)["devices"][name]


def test_figures_are_all_that_the_policy_needs_and_every_branch_occurs(shelf: Path) -> None:
    ran, before = set(), sys.gettrace()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != budget_policy.__file__:
            return None
        if event == "line":
            ran.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        decided = list(replayed(shelf))
    finally:
        sys.settrace(before)
    for case, decision in decided:
        written = case["decision"]
        found = decision.point.point.name, decision.feasible, list(decision.gave_way)
        assert found == (written["point"], written["feasible"], written["gave_way"])
    everything = {line for method in (BudgetPolicy.decide, BudgetPolicy.observe) for line in lines(method.__code__)} | {
        line
        for function in vars(budget_policy).values()
        if getattr(function, "__module__", "") == budget_policy.__name__ and hasattr(function, "__code__")
        for line in lines(function.__code__)
    }
    assert everything - ran == set()
    reasons = "\n".join(decision.reason for _, decision in decided)
    for words in ("too little for any point", "are free (", "floor", "cheapest", "accurate", "safest", "have drifted"):
        assert words in reasons
    for name in ("memory_mb", "latency_ms", "max_drop"):
        assert f"{name} at most" in reasons


def lines(code: CodeType) -> Iterator[int]:
    """Lines of a function and of those inside it, without the lines of the definition itself."""
    yield from (line for _, _, line in code.co_lines() if line is not None and line > code.co_firstlineno)
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from lines(inner)


# the port


def test_the_port_is_short_and_needs_nothing() -> None:
    text = PORT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 80
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").partition(".")[0])
    assert imported <= set(sys.stdlib_module_names)
    assert not {"importlib", "runpy", "subprocess"} & imported
    assert not any(word in text for word in ("exec(", "eval(", "__import__"))


def test_the_port_agrees_without_site_packages(shelf: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(PORT), str(shelf), "latency_ms=12", "max_drop=0.05"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    counted, chosen = done.stdout.splitlines()
    assert counted == "1000 of 1000 golden cases as written"
    # and decides on costs that were measured
    frontier = Frontier.of(LADDER, COSTS)
    budget = Budget(latency_ms=12, max_drop=0.05)
    own, _ = BudgetPolicy().decide(frontier, budget, Snapshot(0.0), BudgetPolicy().initial())
    assert f" {own.point.point.name} {own.feasible} {list(own.gave_way)}" in chosen


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("_TO_SPARE = 0.9 ", "_TO_SPARE = 1.0 "),
        ("_TO_SPARE = 0.9 ", "_TO_SPARE = 0.93 "),
        ("_NOISE, _FARTHEST = 0.01,", "_NOISE, _FARTHEST = 0.02,"),
        ('"on_drift": "safest"}', '"on_drift": "report"}'),
        ("0.09, 2.0", "0.12, 2.0"),
        ("0.09, 2.0", "0.09, 3.0"),
        ('"percentile": 0.95', '"percentile": None'),
        ("if seen[name] is not None}", "}"),
        ('state["base_mb"] or seen["memory_process_mb"]', 'seen["memory_process_mb"] or state["base_mb"]'),
        ('seen["rows"] or 1', "1"),
        ("load is None or not cores", "True"),
        ("max(1.0, (load", "max(0.0, (load"),
        ('+ device["threads"])', ")"),
        ("need(p) <= budget", "need(p) < budget"),
        ("gave_way.extend([] if fitting else [name])", ""),
        ("if need(p) == min(map(need, left))", ""),
        ('(state["base_mb"] or -math.inf) + p', '(0 if state["base_mb"] else -math.inf) + p'),
        ('sum(device["memory_mb"][b] for b in state["resident"])', "0"),
        ('or [min(left, key=lambda p: p["memory_mb"])]', "or left"),
        ('or [min(left, key=lambda p: p["memory_mb"])]', "or left[:1]"),
        (' and not state["plugged"]', ""),
        ('state["battery"] > budget', 'state["battery"] >= budget'),
        ('p["cpu_ms"][0]', 'p["mean_ms"][0]'),
        ('math.exp(state["mean"])', "1.0"),
        ("> now > 0", ">= now > 0"),
        ('if p["name"] == state["current"]', ""),
        ('if budget["max_drop"] is None else 0, p', 'if budget["max_drop"] is None else -p["accuracy"], p'),
        ('else 0, p["mean_ms"][0]', 'else 0, -p["mean_ms"][0]'),
        ('if state["drift"] and budget["on_drift"] == "safest"', "if False"),
        ('if state["drift"] and budget["on_drift"] == "safest"', 'if budget["on_drift"] == "safest"'),
        ('if state["drift"] and budget["on_drift"] == "safest"', 'if state["drift"]'),
        ('[min(left, key=lambda p: p["promised_drop"])]', 'device["points"][:1]'),
        (
            'min(left, key=lambda p: p["promised_drop"])',
            'min(left, key=lambda p: (p["promised_drop"], -p["accuracy"]))',
        ),
        ('state["drift"] if drift is None else drift', "bool(drift)"),
        ('state["drift"] if drift is None else drift', 'state["drift"] or bool(drift)'),
        ('if budget["memory_mb"] is None else ()', ""),
        ('*(state["resident"] if budget["memory_mb"] is None else ())', ""),
        ("stage[at] * crowd", "stage[at]"),
        ("max(-most, min(most, surprise))", "min(most, surprise)"),
        ('"variance": (1 - gain) * variance', '"variance": variance'),
    ],
)
def test_a_port_with_one_thing_wrong_is_found_out(
    shelf: Path,
    old: str,
    new: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = PORT.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"the port has changed, and this test with it: {old}"
    (tmp_path / "port.py").write_text(text.replace(old, new), encoding="utf-8")
    same, total = answered(tmp_path / "port.py", shelf, monkeypatch, capsys)
    assert total == 1000
    assert same < total


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('math.exp(state["mean"])', 'math.exp(state["mean"]) * (1 + 2e-7)'),
        ('math.exp(state["mean"])', 'math.exp(state["mean"]) * (1 - 2e-7)'),
        ('(load * cores + device["threads"]) / cores', 'load + device["threads"] / cores'),
        ('state["memory_available_mb"] + sum(', '(1 - 2e-7) * state["memory_available_mb"] + sum('),
        ('(state["base_mb"] or -math.inf) + p', '(state["base_mb"] or -math.inf) * (1 + 2e-7) + (1 + 2e-7) * p'),
    ],
)
def test_no_case_hangs_on_rounding(
    shelf: Path,
    old: str,
    new: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = PORT.read_text(encoding="utf-8")
    assert text.count(old) == 1
    (tmp_path / "port.py").write_text(text.replace(old, new), encoding="utf-8")
    assert answered(tmp_path / "port.py", shelf, monkeypatch, capsys) == (1000, 1000)


@pytest.mark.parametrize("where", ["budget", "snapshot", "feedback", None])
def test_a_field_that_the_port_does_not_know_is_an_error(
    shelf: Path, where: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    newer = read(shelf)
    case = next(c for s in newer["sequences"] for c in s["cases"] if "feedback" in c)
    (case if where is None else case[where])["noise_db"] = 5.0
    (tmp_path / "golden.json").write_text(to_text(newer), encoding="utf-8")
    with pytest.raises((ValueError, TypeError), match="noise_db"):
        answered(PORT, tmp_path, monkeypatch, capsys)


# the bundle


def test_costs_carry_their_frontier_and_are_read_without_it(shelf: Path, tmp_path: Path) -> None:
    bundle = load(shelf)
    assert bundle.costs == replace(COSTS, engine="onnxruntime", precision="f32")
    assert costs_file(shelf)["frontier"] == json.loads(json.dumps(figures(bundle.frontier)))
    slower = replace(COSTS, cpu_ms=tuple(tuple(2 * ms for ms in row) for row in COSTS.cpu_ms))
    again = kept(bundle, slower, tmp_path / "again")
    assert costs_file(again)["frontier"] == json.loads(json.dumps(figures(load(again).frontier)))
    assert costs_file(again)["frontier"] != costs_file(shelf)["frontier"]


def costs_file(shelf: Path) -> Any:
    (file,) = (shelf / "costs").iterdir()
    return json.loads(file.read_text(encoding="utf-8"))


def test_costs_written_without_a_frontier_still_read(shelf: Path, tmp_path: Path) -> None:
    older = load(shelf).save(tmp_path / "older").folder
    (file,) = (older / "costs").iterdir()
    costs = costs_file(older)
    del costs["frontier"]
    file.write_text(json.dumps(costs))
    assert load(older).costs == load(shelf).costs
    file.write_text("[]")
    assert load(older).costs is None


def test_a_bundle_without_golden_cases_still_loads(shelf: Path, tmp_path: Path) -> None:
    older = load(shelf).save(tmp_path / "older").folder
    (older / "golden.json").unlink()
    manifest = json.loads((older / MANIFEST).read_text())
    del manifest["files"]["golden.json"], manifest["sha256"]
    (older / MANIFEST).write_text(json.dumps(manifest | {"sha256": _manifest_hash(manifest)}))
    assert load(older).ladder == LADDER


def test_figures_by_hand() -> None:
    # a stage of 10 ms (p95 15) for everybody, then one of 100: half go on
    ladder = make_ladder([make_point("half", (0.5,), (0.5, 0.5), accuracy=0.9, target=0.0, risk=0.01)], (0, 1))
    ladder = replace(ladder, points=(replace(ladder.points[0], backbones=(0, 1)),))
    costs = make_costs([[10], [100]], memory_mb=(5.0, 7.0), call_ms=(1.0,), threads=3, cpu_ms=((20.0,), (300.0,)))
    found = figures(Frontier.of(ladder, costs))
    (point,) = found.pop("points")
    assert found == {"threads": 3, "batch": [1], "memory_mb": [5.0, 7.0]}
    assert point.pop("p95_ms") == pytest.approx([111], abs=0.01)
    assert point == {
        "name": "half",
        "backbones": [0, 1],
        "accuracy": 0.9,
        "promised_drop": 0.01,
        "memory_mb": 12.0,
        "mean_ms": [61.0],
        "cpu_ms": [170.0],
        "path_ms": [[11.0], [111.0]],
    }
