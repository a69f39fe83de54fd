"""The page of a report: its numbers are those of the bundle, and nothing in it asks for a network."""

import base64
import io
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vl_convert
from PIL import Image
from torch import nn

import dynamic
from dynamic.errors import InputError
from dynamic.policies import BudgetPolicy, replay
from dynamic.report.page.answers import point_answers
from dynamic.report.page.charts import charts
from dynamic.report.page.evidence import Watched, evidence_of
from dynamic.report.page.page import Report

CLASSES = ("north", "east <&>", "south", "west")


def _inputs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures `[N, 1, 4, 4]` whose class is a bright quarter, some faint."""
    random = torch.Generator().manual_seed(seed)
    label = torch.arange(count) % 4
    x = torch.randn(count, 1, 4, 4, generator=random) * 0.5
    strength = 0.2 + torch.rand(count, generator=random)
    for i in range(count):
        row, column = divmod(int(label[i]), 2)
        x[i, 0, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] += strength[i]
    return x, label


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    torch.manual_seed(0)
    x, y = _inputs(400, 1)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, w), nn.ReLU(), nn.Linear(w, 4)) for w in (2, 32)]
    for network in networks:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
        for _ in range(80):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x), y).backward()
            optimizer.step()
    held = [_inputs(600, 2)]
    built = dynamic.build(networks, held, classes=CLASSES, max_drops=(0.02, 0.1), progress=False)
    folder = tmp_path_factory.mktemp("page") / "shelf"
    profiled = built.save(folder).profile(batch=(1,), seconds=0.02, progress=False)
    assert profiled.costs is not None
    fixed = dict.fromkeys(("latency_ms", "latency_p95_ms", "cpu_ms"), ((0.1,), (1.0,)))  # whatever is fast here
    costs = replace(profiled.costs, **fixed, head_ms=((0.0,), (0.0,)), call_ms=(0.01,), noise=0.0)
    return profiled.with_costs(costs, None)


@pytest.fixture(scope="module")
def report(bundle: dynamic.Bundle) -> Report:
    return bundle.report(progress=False)


class _Page(HTMLParser):
    """The tags with their attributes, the texts of tables, and the JSON that scripts read."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.json: dict[str, Any] = {}
        self._inside: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") if tag == "script" else tag

    def handle_data(self, data: str) -> None:
        if self._inside in ("content", "specs"):
            self.json[self._inside] = json.loads(data)
            self._inside = None
        elif self._inside in ("td", "th", "span", "label", "input"):
            self.cells.append(data.strip())


@pytest.fixture(scope="module")
def page(report: Report) -> _Page:
    return _Page(report.html)


def test_it_is_small_and_asks_for_nothing(report: Report, page: _Page) -> None:
    assert len(report.html.encode()) < 3_000_000
    for tag, attributes in page.tags:
        for name in ("src", "href", "data", "action", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), (tag, name, value)
        assert tag not in ("iframe", "object", "embed", "base", "form")
    (policy,) = (a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'")  # a browser refuses whatever a script might ask for
    assert re.search(r"https?:", policy) is None
    style = report.html[report.html.index("<style>") : report.html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_points_are_those_of_the_bundle(bundle: dynamic.Bundle, page: _Page) -> None:
    rows = page.json["content"]["points"]
    assert [row["name"] for row in rows] == [point.name for point in bundle.ladder.points]
    on_frontier = {point.name: point for point in bundle.frontier.points}
    for row, point in zip(rows, bundle.ladder.points, strict=True):
        assert row["accuracy"] == list(point.accuracy)
        assert (row["risk"], row["bound"], row["shares"]) == (point.risk, point.bound, list(point.shares))
        assert row["on_frontier"] == (point.name in on_frontier)
        if row["on_frontier"]:
            cost = on_frontier[point.name]
            assert (row["mean_ms"], row["p95_ms"], row["cpu_ms"]) == (cost.mean_ms[0], cost.p95_ms[0], cost.cpu_ms[0])
        assert f"{point.accuracy.mid:.2%}" in page.cells
        assert f"({point.accuracy.low:.2%} to {point.accuracy.high:.2%})" in page.cells
        assert f"{point.risk:.4f}" in page.cells
        assert f"{row['mean_ms']:.3f}" in page.cells


def test_each_budget_picks_its_point(bundle: dynamic.Bundle, report: Report) -> None:
    policy, picked = BudgetPolicy(), 0
    for row in report.content.points:
        if row.budget is not None:
            budget = eval(row.budget, {"dynamic": dynamic})
            decision, _ = policy.decide(bundle.frontier, budget, dynamic.Snapshot(0.0), policy.initial())
            assert decision.point.name == row.name
            picked += 1
    assert picked >= 2


def test_costs_are_those_of_the_profile(bundle: dynamic.Bundle, page: _Page) -> None:
    costs = bundle.costs
    assert costs is not None
    for s, row in enumerate(page.json["content"]["stage_costs"]):
        assert row["p50_ms"] == costs.latency_ms[s][0]
        assert row["p95_ms"] == costs.latency_p95_ms[s][0]
        assert row["cpu_ms"] == costs.cpu_ms[s][0]
        assert row["memory_mb"] == costs.memory_mb[bundle.ladder.backbone[s]]


def test_answers_are_counted_on_the_certifying_records(bundle: dynamic.Bundle, report: Report) -> None:
    records = bundle.records.select(bundle.records.part == 1)
    assert records.label is not None
    reference = records.logits[:, -1].argmax(1) == records.label
    for point, own in zip(bundle.ladder.points, report.content.answers, strict=True):
        run = replay(records.logits, bundle.combiner(), thresholds=point.thresholds, backbone=records.backbone)
        right = run.prediction == records.label
        assert (own.lost, own.gained) == (int((reference & ~right).sum()), int((right & ~reference).sum()))
        assert own.accuracy == point.accuracy  # the ladder measured it on these records
        assert [stage.count for stage in own.stages] == np.bincount(run.stage, minlength=2).tolist()
        assert sum(row.count for row in own.classes) == len(records)
        for row in own.classes:
            of_class = records.label == CLASSES.index(row.name)
            assert row.drop == pytest.approx(reference[of_class].mean() - right[of_class].mean())
        assert sum(pair.count for pair in own.confusions) <= own.lost


def test_scores_and_temperatures(bundle: dynamic.Bundle, report: Report) -> None:
    records = bundle.records.select(bundle.records.part == 1)
    for stage, name in enumerate(report.content.stages):
        for scaled in (False, True):
            bins = [row for row in report.content.scores if (row.stage, row.scaled) == (name, scaled)]
            assert sum(row.right + row.wrong for row in bins) == len(records)
        (row,) = (row for row in report.content.calibration if row.stage == name)
        assert row.temperature == bundle.ladder.temperature[stage]
        # the error by hand (Guo et al. 2017, eq. 3)
        scaled_logits = records.logits[:, stage].astype(np.float64) / row.temperature
        probability = np.exp(scaled_logits - scaled_logits.max(1, keepdims=True))
        probability /= probability.sum(1, keepdims=True)
        confidence, right = probability.max(1), probability.argmax(1) == records.label
        number = np.minimum((confidence * 10).astype(int), 9)
        error = sum(abs((confidence - right)[number == b].sum()) for b in range(10)) / len(records)
        assert row.error_after == pytest.approx(error, abs=1e-4)


def test_every_chart_compiles_and_has_words(report: Report) -> None:
    every = charts(report.content)
    assert {"frontier", "exits", "classes", "costs", "day-battery"} <= {chart.key for chart in every}
    for chart in every:
        vega = vl_convert.vegalite_to_vega(chart.spec)
        assert {"picked", "hour"} <= {signal["name"] for signal in vega["signals"]}
        assert len(chart.about) > 20
    labels = re.findall(r'role="img" aria-label="([^"]+)"', report.html)
    assert len(labels) == len(every)


def test_names_of_classes_cannot_leave_their_place(report: Report) -> None:
    body = report.html[: report.html.index('<script type="application/json"')]
    assert "east &lt;&amp;&gt;" in body
    assert "east <&>" not in report.html


def test_pictures_come_from_the_loader(bundle: dynamic.Bundle) -> None:
    x, y = _inputs(80, 3)
    report = bundle.report(eval_loader=[(x[:40], y[:40].numpy()), (x[40:], y[40:].numpy())], progress=False)
    (reference, *_) = report.content.answers
    examples = [one for stage in reference.stages for one in (*stage.easy, *stage.hard)]
    assert examples
    assert {one.record for one in examples} <= set(report.content.pictures)
    for number, uri in report.content.pictures.items():
        image = Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))
        gray = np.asarray(image.convert("L"), np.float64)
        assert image.size == (4, 4)
        assert np.corrcoef(gray.ravel(), x[number, 0].numpy().ravel())[0, 1] > 0.9
    assert f'data-picture="{examples[0].record}"' in report.html
    assert all(one.truth == CLASSES[int(y[one.record])] for one in examples)
    last = reference.stages[-1]
    assert min(one.score for one in last.easy) >= max(one.score for one in last.hard)
    assert not any("pictures" in line for line in report.content.missing)
    assert "the 80 inputs that were given" in report.html


def test_texts_are_shown_where_inputs_are_texts(bundle: dynamic.Bundle) -> None:
    """Inputs of this bundle are arrays, so the texts go in where a loader of texts would have put them."""
    x, y = _inputs(40, 3)
    evidence = evidence_of(bundle, [(x, y.numpy())], False)
    texts = tuple(f"question <b>{i}</b>" for i in range(40))
    shown = point_answers(bundle.ladder, replace(evidence, thumbnails=(), texts=texts), bundle.classes)
    hidden = point_answers(bundle.ladder, replace(evidence, thumbnails=()), bundle.classes)
    assert any(stage.easy for stage in shown[0].stages)
    assert not any(stage.easy for stage in hidden[0].stages)


def test_a_loader_s_texts_are_kept_up_to_a_length() -> None:
    watched = Watched([(["short", "long " * 100], np.array([0, 1])), (np.zeros((1, 5)), np.array([0]))])
    assert len(list(watched)) == 2
    assert watched.texts == ["short", f"{('long ' * 100)[:160]}..."]
    assert watched.thumbnails == []


def test_what_is_missing_is_said(bundle: dynamic.Bundle) -> None:
    report = replace(bundle, costs=None).report(progress=False)
    assert report.content.day is None
    assert any("was not profiled" in line for line in report.content.missing)
    assert any("give images or texts with eval_loader" in line for line in report.content.missing)
    assert "A simulated day" not in report.html
    assert "What each stage costs here" not in report.html


def test_accuracies_without_labels_are_agreement_and_those_of_labelled_inputs_are_not() -> None:
    torch.manual_seed(0)
    networks = [nn.Sequential(nn.Flatten(), nn.Linear(16, w), nn.ReLU(), nn.Linear(w, 4)) for w in (2, 32)]
    built = dynamic.build(networks, [_inputs(400, 5)[0]], risk="disagreement", classes=CLASSES, progress=False)
    x, y = _inputs(80, 6)
    content = built.report(eval_loader=[(x, y.numpy())], progress=False).content
    assert (content.ladder_word, content.accuracy_word) == ("agreement with the reference", "accuracy")


def test_a_notebook_gets_a_frame(report: Report) -> None:
    text = report._repr_html_()
    assert text.startswith("<iframe title=")
    assert "<!doctype" not in text  # it is escaped
    assert len(repr(report)) < 80


def test_the_same_seed_gives_the_same_page(bundle: dynamic.Bundle, report: Report, tmp_path: Path) -> None:
    again = bundle.report(tmp_path / "new" / "report.html", progress=False)
    assert again.html == report.html == (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_the_command_writes_the_page(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from dynamic.cli.app import app

    shutil.copytree(bundle.folder, tmp_path / "shelf")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "shelf"), "-o", str(tmp_path / "out.html")])
    assert done.exit_code == 0, done.output
    assert "missing: Examples" in done.output
    assert (tmp_path / "out.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    files = CliRunner().invoke(app, ["report", str(tmp_path / "shelf"), "--images", str(tmp_path)])
    assert isinstance(files.exception, InputError)  # this bundle has no preprocessing, so it takes no files


def test_many_large_pictures_leave_the_page_small(bundle: dynamic.Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _inputs(120, 4)
    evidence = evidence_of(bundle, [(x, y.numpy())], False)
    noise = np.random.default_rng(0).integers(0, 256, (120, 64, 64, 3), dtype=np.uint8)  # nothing packs it
    large = replace(evidence, thumbnails=tuple(noise))
    monkeypatch.setattr("dynamic.report.page.content.evidence_of", lambda *_: large)
    monkeypatch.setattr("dynamic.report.page.content._PICTURE_BYTES", 50_000)
    report = bundle.report(progress=False)
    assert 0 < sum(map(len, report.content.pictures.values())) <= 50_000
    assert any("are left out to keep the page small" in line for line in report.content.missing)
    shown = re.findall(r'data-picture="(\d+)"', report.html)
    assert {int(number) for number in shown} == set(report.content.pictures)
