"""How many labels a certificate needs, in images and with its chance, before and after there are any."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, hypergeom
from support.policy_cases import make_records

from dynamic.policies.certification.certificates import certify, shortage, shortage_lines
from dynamic.policies.certification.few_labels.asking import Asking, DemandSettings, with_oracle_stage
from dynamic.policies.certification.few_labels.label_plan import allowed_losses, curve_text, fewest_draws
from dynamic.policies.certification.risks import RISKS, Evidence, Sample
from dynamic.policies.ladder import Certificate, Ladder, Missing


def certificate(*missing: Missing, groups: int | None = None) -> Certificate:
    return Certificate("drop", 0.1, "exact", 300, groups, 100, "2026-01-01", missing)


def test_a_shortage_counts_images_and_says_the_chance() -> None:
    text = shortage(certificate(Missing(0.01, 0.002, 1204, 1800), Missing(0.02, 0.01, 900)))
    assert text == (
        "400 inputs were given, 300 of them certify. drop 0.01: measured 0.0020, about 1606 inputs give an even "
        "chance, 2400 for nine in ten. drop 0.02: measured 0.0100, about 1200 inputs give an even chance"
    )
    text = shortage(certificate(Missing(0.1, 0.02, None), Missing(0.02, 0.03, None)))
    assert "drop 0.1: measured 0.0200, and no thresholds that pass are cheaper than the last network. " in text
    assert text.endswith(
        "drop 0.02: no thresholds lost less than 0.0300. More inputs, or better exits, may find some that do"
    )
    assert "9 groups certify. drop 0.2: measured 0.1000, about 40 certifying groups give an even chance" in shortage(
        certificate(Missing(0.2, 0.1, 40), groups=9)
    )


def test_a_shortage_as_lines_says_what_would_do_and_what_to_do() -> None:
    missing = Missing(0.01, 0.002, 1204, 1800), Missing(0.02, 0.01, 900), Missing(0.1, 0.2, None)
    assert shortage_lines(certificate(*missing)) == [
        "not certified: drop 0.01, 0.02, 0.1. 400 inputs were given, 300 of them certify",
        "    drop <=  measured  needed: even chance      9 in 10",
        "    0.01       0.0020          1606 inputs  2400 inputs",
        "    0.02       0.0100          1200 inputs",
        "drop 0.1: no thresholds lost less than 0.2000. More inputs, or better exits, may find some that do",
        "to certify them: give more held-out inputs, or allow a larger drop",
    ]
    assert shortage_lines(certificate(Missing(0, None, None)))[1:] == [
        "drop 0: there is nothing cheaper to try. Add exits or a smaller network"
    ]
    assert "    0.2        0.1000  40 certifying groups" in shortage_lines(certificate(Missing(0.2, 0.1, 40), groups=9))


def test_a_shortage_of_labels_is_not_one_of_inputs() -> None:
    """Risks were called measured, though most labels were missing and counted as lost. More inputs were the advice."""
    missing = Missing(0.02, 0.03, None), Missing(0.1, 0.05, 900)
    text = shortage(replace(certificate(*missing), labels=40))
    assert text == (
        "300 inputs certify, 40 of them with a label. A missing label counts as the largest loss that it may give, so "
        "a larger budget of labels may do. drop 0.1: at most 0.0500, about 1200 inputs give an even chance. drop 0.02: "
        "no thresholds lost less than 0.0300. More inputs, or better exits, may find some that do"
    )
    assert shortage(replace(certificate(*missing), labels=300)) == shortage(certificate(*missing))


@pytest.mark.parametrize(("lost", "count", "target"), [(2, 200, 0.03), (10, 400, 0.05), (400, 10_000, 0.045)])
def test_nine_of_ten_are_nine_of_ten(lost: int, count: int, target: float) -> None:
    losses = (np.arange(count) < lost).astype(np.int8)
    evidence = Evidence(RISKS["harm"], Sample(count), losses)
    half, most = evidence.needed(target, 0.1), evidence.needed(target, 0.1, 1.2816)
    assert half is not None
    assert most is not None
    assert half < most
    for needed, low, high in ((half, 0.4, 0.75), (most, 0.8, 0.97)):
        passes = max(c for c in range(needed) if binom.cdf(c, needed, target) <= 0.1)
        assert low <= binom.cdf(passes, needed, lost / count) <= high


def test_a_bundle_of_before_has_neither_batch_nor_likely(tmp_path: Any) -> None:
    random = np.random.default_rng(0)
    label = random.integers(3, size=60)
    logits = random.normal(size=(60, 2, 3))
    ladder = certify(make_records(logits, label, (0, 1), np.arange(60) % 2), (0.01,))
    data = ladder.to_json()
    assert data["certificate"].pop("batch") is None
    for entry in data["certificate"]["missing"]:
        entry.pop("likely")
    again = Ladder.from_json(data)
    assert again.certificate is not None
    assert ladder.certificate is not None
    old = tuple(replace(entry, likely=None) for entry in ladder.certificate.missing)
    assert again.certificate == replace(ladder.certificate, missing=old)


@pytest.mark.parametrize(("target", "level", "batch"), [(0.02, 0.1, None), (0.1, 0.02, None), (0.05, 0.1, 1000)])
def test_the_fewest_draws_are_the_fewest(target: float, level: float, batch: int | None) -> None:
    for lost in (0, 1, 4):

        def p(draws: int, lost: int = lost) -> float:
            if batch is None:
                return float(binom.cdf(lost, draws, target))
            return float(hypergeom.cdf(lost, batch, round(batch * target) + 1 + lost, draws))

        fewest = fewest_draws(lost, target, level, batch, True)
        assert p(fewest) <= level < p(fewest - 1)
        assert allowed_losses(fewest, target, level, batch, True) == lost


def outlook(score: Any, finite: bool = False, **options: Any) -> Asking:
    logits = np.zeros((len(score), 1, 4))
    logits[:, 0, 1] = score
    settings = DemandSettings.of((0.05,), risk="disagreement", **options)
    return Asking(with_oracle_stage(make_records(logits, None)), settings, finite=finite)


def test_the_curve_is_there_before_any_label() -> None:
    asking = outlook(np.random.default_rng(0).uniform(0, 8, 3000))
    plans = asking.curve
    assert [p.budget for p in plans] == [50, 100, 200, 500, 1000, 2000, 3000]
    saved = [p.saved for p in plans]
    assert saved == sorted(saved), "more labels never save less"
    assert all(p.labels <= p.budget for p in plans)
    assert all(0 <= p.chance <= 1 for p in plans)
    text = curve_text(plans)
    assert len(text.splitlines()) == 8
    assert f"{plans[2].saved:5.0%}" in text


def test_a_budget_decides_how_many_inputs_are_drawn() -> None:
    score = np.random.default_rng(0).uniform(0, 8, 5000)
    draws = [outlook(score, budget=budget).plan.draws for budget in (50, 100, 200, 500)]
    assert draws == sorted(draws)
    assert all(n >= fewest_draws(0, 0.05, 0.1, None, True) for n in draws)


def test_in_a_batch_labels_are_worth_what_they_save() -> None:
    score = np.random.default_rng(0).uniform(0, 8, 5000)
    assert outlook(score, finite=True).plan.labels < 0.2 * outlook(score).plan.labels + 500
    assert outlook(score, finite=True, budget=4000).plan.labels < 1000, (
        "4,000 of 5,000 labels would leave little to save"
    )
