"""The policy without Python: golden decisions, and a port that gives them from JSON alone."""

import ast
import json
import linecache
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from inspect import CO_OPTIMIZED
from itertools import pairwise
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
from support.policies.port_mutations import MUTATIONS, PORT, mutated, noticed
from support.policy_cases import INF, learned, make_costs, make_ladder, make_point, make_records

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import load
from dynamic.bundle.bundle_writer import write
from dynamic.bundle.golden_vectors import figures, golden, to_text
from dynamic.bundle.manifest import MANIFEST, manifest_hash
from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.policies.budget import Budget
from dynamic.policies.certification.certificates import certify
from dynamic.policies.control import battery, budget_policy, device_state, slowdown, switching, thermal
from dynamic.policies.control import limits as limit_functions
from dynamic.policies.control.budget_policy import BudgetPolicy, BudgetState
from dynamic.policies.costs import Costs
from dynamic.policies.decision import Decision, Feedback
from dynamic.policies.fast_paths import Rank
from dynamic.policies.frontier import Frontier
from dynamic.policies.ladder import Ladder
from dynamic.policies.snapshot import Snapshot

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
    write(folder / "made", spec, LADDER, RECORDS, "onnxruntime", "f32", "c", None, None, None)
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
    assert file.stat().st_size < 400_000
    assert max(len(line) for line in file.read_text().splitlines() if line.startswith("{")) < 900
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
    assert {budget.get("percentile", 0.95) for budget in budgets(shelf)} == {0.95, None}


def budgets(shelf: Path) -> list[dict[str, Any]]:
    """Of every case: what was not written is as before."""
    found: list[dict[str, Any]] = []
    for sequence in read(shelf)["sequences"]:
        budget: dict[str, Any] = {}
        for case in sequence["cases"]:
            budget = case.get("budget", budget)
            found.append(budget)
    return found


def test_every_limit_binds_and_gives_way(shelf: Path) -> None:
    for name, device in read(shelf)["devices"].items():
        own = [c for s in read(shelf)["sequences"] if s["device"] == name for c in s["cases"]]
        assert len(own) >= 40
        points = Counter(c["decision"]["point"] for c in own)
        assert set(points) <= {p["name"] for p in device["points"]}
        if name == "made up":
            assert len(points) == 7
            assert min(points.values()) >= 2
        assert all(c["decision"]["feasible"] == (not c["decision"]["violated_limits"]) for c in own)
    assert Counter(c["feedback"]["drift"] for c in cases(shelf) if "feedback" in c)[True] > 50
    assert {budget.get("on_drift") for budget in budgets(shelf)} == {None, "report"}
    asked = Counter(field for budget in budgets(shelf) for field in budget)
    assert set(asked) == set(Budget.__dataclass_fields__)
    violated_limits = Counter(limit for c in cases(shelf) for limit in c["decision"]["violated_limits"])
    fields = (
        "memory_mb",
        "deadline_ms",
        "battery_duration_s",
        "temperature_c",
        "latency_ms",
        "energy_mj",
        "max_drop",
        "min_accuracy",
    )
    assert set(violated_limits) == set(fields)
    assert min(violated_limits[field] for field in fields) >= 3
    assert {type(c["decision"]["keep_loaded"]) for c in cases(shelf)} == {list, type(None)}


def test_every_reading_is_missing_now_and_then(shelf: Path) -> None:
    given = Counter(name for case in cases(shelf) for name in case["snapshot"])
    # told to people, and no policy reads them. And the size: a port decides for inputs of the example's
    unused = {"frequency_ratio", "power_mw", "missing", "size"}
    assert set(given) == set(Snapshot.__dataclass_fields__) - unused
    assert all(30 < count < 1000 for name, count in given.items() if name != "time_s")


def test_requests_wait_and_a_clock_is_set_back(shelf: Path) -> None:
    waits = [(c["snapshot"].get("waited_ms"), c["snapshot"].get("queue_length")) for c in cases(shelf)]
    assert sum(w is not None and q is None for w, q in waits) > 10
    assert sum(w is None and q is not None for w, q in waits) > 10
    assert sum(w is not None and q is not None for w, q in waits) > 10
    passed_s = [
        round(after["snapshot"].get("time_s", 0.0) - before["snapshot"].get("time_s", 0.0), 1)
        for sequence in read(shelf)["sequences"]
        for before, after in pairwise(sequence["cases"])
    ]
    assert sum(s < 0 for s in passed_s) > 20
    assert passed_s.count(0.0) > 20
    assert sum(s > 10 for s in passed_s) > 20


def test_a_better_point_waits_for_16_requests_and_then_runs(shelf: Path) -> None:
    turns = Counter[int]()
    for _, decision, before, after in replayed(shelf):
        if (
            before.switch_delay.better
            and after.switch_delay == before.switch_delay.after_change()
            and after.current != before.current
        ):
            assert not decision.one_request_only
            turns[before.switch_delay.better + 1] += 1
    assert turns[16] >= 3
    assert turns[32] >= 1  # after one that came too early
    assert set(turns) == {16, 32}


def stand_in(device: dict[str, Any]) -> Any:
    """A frontier that knows nothing but the figures."""
    points, batch = device["points"], device["batch"]

    def latency(percentile: float | None, rows: int, spread: float = 0.0, size: None = None) -> Rank:
        at, wide = batch.index(rows), next((i for i, s in enumerate(device["spreads"]) if s >= spread), -1)
        return Rank([p["mean_ms"][at] if percentile is None else p["p95_ms"][wide][at] for p in points])

    def point(p: dict[str, Any]) -> Any:
        certified = SimpleNamespace(name=p["name"], bound=None)  # for words alone
        return SimpleNamespace(
            name=p["name"],
            operating_point=certified,
            backbones=frozenset(p["backbones"]),
            energy_mj=None if p["energy_mj"] is None else (p["energy_mj"],),
            cpu_ms=(p["cpu_ms"],),
        )

    metered = points[0]["energy_mj"] is not None
    mean_ms = [p["mean_ms"][0] for p in points]
    effort = Rank([p["energy_mj"] if metered else p["cpu_ms"] for p in points])
    return SimpleNamespace(
        points=[point(p) for p in points],
        costs=SimpleNamespace(
            threads=device["threads"],
            memory_mb=device["memory_mb"],
            idle_mw=device["idle_mw"],
            energy_mj=() if metered else None,
            noise=0.0,  # for words alone
        ),
        latency=latency,
        first_answer=lambda rows, size=None: Rank([p["first_ms"][batch.index(rows)] for p in points]),
        effort=effort,
        ranked=lambda kind, size: {"effort": effort}[kind],
        memory=Rank([p["memory_mb"] for p in points]),
        drop=Rank([p["promised_drop"] for p in points]),
        accuracy=Rank([-p["accuracy"] for p in points], ties=mean_ms),
        mean=Rank(mean_ms),
        within=lambda resident: sum(1 << i for i, p in enumerate(points) if set(p["backbones"]) <= resident),
    )


def replayed(shelf: Path) -> Iterator[tuple[dict[str, Any], Decision, BudgetState, BudgetState]]:
    """The library's own policy on the written figures: case, decision, the state before and after it."""
    policy, data = BudgetPolicy(), read(shelf)
    for sequence in data["sequences"]:
        device, state, budget = data["devices"][sequence["device"]], policy.initial(), Budget()
        frontier = stand_in(device)
        for case in sequence["cases"]:
            budget = Budget.from_json(case["budget"]) if "budget" in case else budget
            seen, before = Snapshot(**{"time_s": 0.0} | case["snapshot"]), state
            decision, state = policy.decide(frontier, budget, seen, before)
            yield case, decision, before, state
            if "feedback" in case:
                stage, rows = case["feedback"]["stage"], seen.rows or 1
                figure = next(p for p in device["points"] if p["name"] == decision.point.name)
                expected_ms = figure["path_ms"][stage][device["batch"].index(rows)]
                took_ms, drift = case["feedback"]["latency_ms"], case["feedback"]["drift"]
                fed = Feedback(
                    decision.point, [stage], [rows], [took_ms], [expected_ms], device["threads"], seen, drift
                )
                state = policy.observe(state, fed)


def test_figures_are_all_that_the_policy_needs_and_every_branch_occurs(shelf: Path) -> None:
    rooms = (budget_policy, thermal, switching, battery, device_state, slowdown)
    files = [str(room.__file__) for room in rooms]
    files += [str(path) for path in Path(str(limit_functions.__file__)).parent.glob("*.py")]
    ran, before = {file: set[int]() for file in files}, sys.gettrace()

    def trace(frame: Any, event: str, _: Any) -> Any:
        found = ran.get(frame.f_code.co_filename)
        if found is None:
            return None
        if event == "line":
            found.add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        decided = [(case, decision) for case, decision, _, _ in replayed(shelf)]
        reasons = "\n".join(decision.reason for _, decision in decided)
    finally:
        sys.settrace(before)
    for case, decision in decided:
        resident = None if decision.keep_loaded is None else sorted(decision.keep_loaded)
        assert case["decision"] == {
            "point": decision.point.name,
            "feasible": decision.feasible,
            "violated_limits": list(decision.violated_limits),
            "keep_loaded": resident,
        }
    missed = {
        linecache.getline(file, line).strip()
        for file, found in ran.items()
        for line in set(lines(compile(Path(file).read_text(encoding="utf-8"), file, "exec"))) - found
    }
    assert missed <= CANNOT_OCCUR
    for words in ("MB are needed", "floor", "fastest", "most accurate", "safest", "have drifted"):
        assert words in reasons
    for words in (
        "must last",
        "even without inference",
        "at the cheapest point",
        "slows this process down",
        "wait behind",
    ):
        assert words in reasons


# what no thousand cases from the start show, or no policy of its own asks
CANNOT_OCCUR = {
    # names of limits, which cases do not choose
    "for name in limits:",
    "if name not in LIMITS:",
    'raise SettingError(f"limits name {name!r}, which is none of {PRIORITY}")',
    "self.limits = tuple(limits)",
    # a limit that the budget lacks, which `active` excludes, and a battery without a drain
    "return",
    "return math.inf",
    # a thousand calm requests after a change that came too early
    "return SwitchDelay(self.needed // 2, 0, _PREMATURE * self.needed // 2)",
    # inputs of another size than the example's, which a port knows nothing of
    "loaded = frontier.within(device.resident | frontier.points[base].backbones)",
    "point = rank.first(points & loaded & ~better | 1 << base)",
    "better = usual & rank.before(base)  # these are delayed, or skipped after heat: for this request too",
    'rank = frontier.ranked("mean" if saves(budget) else "accuracy", device.size)',
    # feedback on another request than the last
    "load, cores = newest(snapshot.cpu_load, self.cpu_load), newest(snapshot.cpu_cores, self.cpu_cores)",
    "contention = fair_share(load, cores, newest(snapshot.cpu_pressure, self.cpu_pressure), feedback.threads)",
}


def lines(code: CodeType) -> Iterator[int]:
    """Lines of the functions in a module's code, without those of a class's own body."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            if inner.co_flags & CO_OPTIMIZED:
                yield from (n for _, _, n in inner.co_lines() if n is not None and n > inner.co_firstlineno)
            yield from lines(inner)


# the port


def test_the_port_is_short_and_needs_nothing() -> None:
    text = PORT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 360
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
    assert f" {own.point.name} {own.feasible} {list(own.violated_limits)}" in chosen


@pytest.mark.parametrize(("old", "new"), MUTATIONS)
def test_a_port_with_one_thing_wrong_is_found_out(old: str, new: str, written: dict[str, Any]) -> None:
    port = compile(mutated(old, new), "port", "exec")
    assert any(noticed(port, written["devices"], sequence) for sequence in written["sequences"])


@pytest.fixture(scope="module")
def written(shelf: Path) -> Any:
    return read(shelf)


@pytest.mark.parametrize("by", [1 + 2e-8, 1 - 2e-8])
def test_no_case_hangs_on_rounding(
    shelf: Path,
    by: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = PORT.read_text(encoding="utf-8")
    slow = 'math.exp(state["mean"]) * contention(device, state)'
    assert text.count(slow) == 1
    (tmp_path / "port.py").write_text(text.replace(slow, f"{slow} * {by!r}"), encoding="utf-8")
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
    (older / MANIFEST).write_text(json.dumps(manifest | {"sha256": manifest_hash(manifest)}))
    assert load(older).ladder == LADDER


def test_figures_by_hand() -> None:
    # a stage of 10 ms (p95 15) for everybody, then one of 100: half go on
    ladder = make_ladder([make_point("half", (0.5,), (0.5, 0.5), accuracy=0.9, target=0.0, risk=0.01)], (0, 1))
    ladder = replace(ladder, points=(replace(ladder.points[0], backbones=(0, 1)),))
    costs = make_costs([[10], [100]], memory_mb=(5.0, 7.0), call_ms=(1.0,), threads=3, cpu_ms=((20.0,), (300.0,)))
    found = figures(Frontier.of(ladder, costs))
    (point,) = found.pop("points")
    assert found.pop("spreads")[0] == 0
    assert found == {"threads": 3, "batch": [1], "memory_mb": [5.0, 7.0], "idle_mw": None}
    spread = point.pop("p95_ms")
    assert spread[0] == pytest.approx([111], abs=0.01)
    assert spread[-1][0] > 200
    assert point == {
        "name": "half",
        "backbones": [0, 1],
        "accuracy": 0.9,
        "promised_drop": 0.01,
        "memory_mb": 12.0,
        "energy_mj": None,
        "mean_ms": [61.0],
        "cpu_ms": 170.0,
        "first_ms": [11.0],
        "path_ms": [[11.0], [111.0]],
    }


def test_a_sequence_ends_where_every_further_case_lies_on_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else `build` would never end on a ladder whose points cannot be told apart."""
    cases = "dynamic.bundle.golden_vectors.cases"
    monkeypatch.setattr(f"{cases}.SPREADS", (1.0,))
    monkeypatch.setattr(f"{cases}.CLOSE", 1e9)  # every state lies on that limit
    monkeypatch.setattr(f"{cases}._MOST_REJECTED", 20)
    assert all(sequence["cases"] == [] for sequence in golden(LADDER)["sequences"])
