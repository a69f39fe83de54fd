"""What a person sees of the public objects: short, in 80 columns, and with what matters in it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.runtime_cases import QUICK, faked, monitor, shared_blobs, with_ladder
from support.simulation_cases import PLAIN, serve

import dynamic
from dynamic.policies.certification.ladders.point_sentences import point_sentences
from dynamic.policies.ladder import Certificate, Missing
from dynamic.runtime.result import Names
from dynamic.simulate import Constant

FULL = dynamic.Budget(
    latency_ms=20, percentile=0.99, deadline_ms=100, energy_mj=5, memory_mb=300, battery_floor=0.2,
    battery_duration_s=25_200, temperature_c=70, max_drop=0.01, min_accuracy=0.9, on_drift="report", cpu_ms=12,
)  # fmt: skip
SNAPSHOT = dynamic.Snapshot(1.5, cpu_load=0.25, cpu_cores=4, memory_available_mb=812.5, battery=0.75, plugged=False)


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    bundle = with_ladder(shared_blobs(tmp_path_factory))
    changes: list[dynamic.Change] = []
    with faked(bundle, on_change=changes.append) as run:
        one, batch = run(np.zeros(12, np.float32)), run(np.zeros((30, 12), np.float32))
        stats, at_work = run.stats(), repr(run)
    certificate = Certificate("drop", 0.1, "t", 300, None, 100, "2026-01-01", (Missing(0.01, 0.002, 1204, 1800),))
    net = dynamic.wrap(torch.nn.Sequential(*(torch.nn.Linear(12, 12) for _ in range(6))), torch.zeros(1, 12), exits=2)
    return {
        "bundle": bundle,
        "ladder": bundle.ladder,
        "frontier": bundle.frontier,
        "point": QUICK,
        "costed point": bundle.frontier.points[0],
        "costs": bundle.costs,
        "records": bundle.records,
        "budget": FULL,
        "snapshot": SNAPSHOT,
        "decision": one.decision,
        "change": changes[0],
        "prediction": one,
        "batch": batch,
        "statistics": stats,
        "runtime": at_work,
        "certificate": certificate,
        "exits": net.exits,
        "simulation": serve(Constant(2, 20)),
        "device": dynamic.simulate.device("mid-range-phone"),
        "ladder with a certificate": replace(bundle.ladder, certificate=certificate),
    }


def test_everything_fits_a_terminal(objects: dict[str, Any]) -> None:
    for name, value in objects.items():
        for text in (value,) if isinstance(value, str) else (repr(value), str(value)):
            if name in ("bundle", "runtime"):
                text = text.replace(str(objects["bundle"].folder), "shelf")  # as long as the user's own path
            if name == "exits":
                text = "\n".join(map(repr, value))
            widest = max(text.splitlines(), key=len)
            assert len(widest) <= 80, f"{name}: {widest}"
            assert len(repr(value).splitlines()) <= 8, name
            assert "object at 0x" not in text


def test_a_budget_is_written_as_it_was_made() -> None:
    assert repr(dynamic.Budget(latency_ms=80, max_drop=0.01)) == "Budget(latency_ms=80, max_drop=0.01)"
    assert repr(dynamic.Budget()) == "Budget()"
    assert eval(repr(FULL), {"Budget": dynamic.Budget}) == FULL
    assert eval(repr(SNAPSHOT), {"Snapshot": dynamic.Snapshot}) == SNAPSHOT


def test_what_matters_is_in_it(objects: dict[str, Any]) -> None:
    # QUICK: bound 0.1, accuracy 0.8, half of the inputs exit at each stage. It takes 6 ms and 55 MB
    assert repr(objects["point"]) == "OperatingPoint('quick', drop <= 0.1, accuracy 0.8000, exits 50% 50%)"
    quick = next(repr(p) for p in objects["frontier"].points if p.name == "quick")
    assert "mean 6.000 ms" in quick
    assert "55.0 MB" in quick
    one = objects["prediction"]
    assert repr(one).startswith(f"Prediction(label=0, name='a', probability=0.700, stage={one.stage}, ")
    assert repr(objects["ladder"]).startswith("Ladder(3 points: reference, quick, small, certified")
    count = len(objects["records"])
    assert repr(objects["records"]).startswith(f"Records({count} inputs, 2 stages, 4 classes, all labelled, ")
    assert repr(objects["exits"][0]).startswith("PlacedExit(")
    assert f"{PLAIN.name!r}" in repr(objects["simulation"])


def test_a_ladder_is_a_table_with_a_line_for_each_point(objects: dict[str, Any]) -> None:
    head, *rows = str(objects["ladder"]).splitlines()
    assert head.split()[:3] == ["point", "drop", "<="]
    assert [row.split()[0] for row in rows] == ["reference", "quick", "small"]
    assert rows[1].split()[1:4] == ["0.1", "0.0000", "0.8000"]


def test_every_row_of_a_ladder_has_a_sentence(objects: dict[str, Any]) -> None:
    ladder = objects["ladder"]
    best = replace(QUICK, name="best", bound=0.0112, drop=-0.002, risk=-0.002)
    estimate = replace(QUICK, name="drop 0.01", bound=None, target=0.01)
    sentences = point_sentences(replace(ladder, points=(ladder.points[0], best, estimate)))
    assert "which drops are measured against" in sentences["reference"]
    assert "how much they may lose after all: accuracy lost to the reference, at most 0.0112" in sentences["best"]
    assert "more accurate than the reference" in sentences["best"]
    assert "an estimate of at most 0.01" in sentences["drop 0.01"]
    assert sentences["drop 0.01"].endswith("Not certified.")
    assert "best: The most accurate thresholds" in str(
        replace(objects["bundle"], ladder=replace(ladder, points=(ladder.points[0], best)))
    )


def test_names_of_a_batch_are_compared_with_one_name(objects: dict[str, Any]) -> None:
    batch = objects["batch"]
    assert (batch.name == "a").tolist() == (batch.label == 0).tolist() == [True] * 30
    assert not (batch.name != "a").any()
    assert batch.name == ("a",) * 30
    assert batch.name != ("b",) * 30
    assert bool(Names(("cat",)) == "cat")
    assert hash(Names(("cat",))) == hash(("cat",))
    with pytest.raises(ValueError, match="ambiguous"):
        bool(Names(("cat", "dog")) == "cat")


def test_a_snapshot_of_a_monitor_is_short() -> None:
    assert repr(monitor(cpu_load=0.5).latest) == "Snapshot(time_s=0.0, cpu_load=0.5)"
