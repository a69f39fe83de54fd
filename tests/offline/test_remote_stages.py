"""Calibration of stages that run in other processes: labels, engines and loaders that only look like it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import dynamic
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.measurements.stage_answers import StageAnswers
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import open_engine
from dynamic.offline.build_steps.record_collection import plain_combiner

INPUTS = torch.randn(600, 12, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(600) % 4
BATCHES = [(INPUTS[at : at + 300], LABELS[at : at + 300]) for at in (0, 300)]


def networks() -> list[nn.Module]:
    torch.manual_seed(3)
    return [nn.Linear(12, 4), nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))]


class Remote(list[Any]):
    """Batches whose stages run elsewhere, on machines of these names."""

    machines = ("far", "far")
    labels: Any = LABELS.numpy()

    def stage_answers(self, folder: Path, spec: CascadeSpec, engine: str, precision: str) -> Iterator[StageAnswers]:
        opened = open_engine(engine, folder, spec, plain_combiner(spec), precision=precision)
        try:
            identity = EngineIdentity.of(opened.stages)
            for number, ((inputs, _), machine) in enumerate(zip(self, self.machines, strict=True)):
                logits = opened.all_logits({spec.inputs[0].name: inputs.numpy()})
                labels = self.labels[300 * number : 300 * (number + 1)]
                yield StageAnswers(logits, labels, replace(identity, machine=machine))
        finally:
            opened.close()


def test_records_name_the_machine_that_ran_the_stages() -> None:
    there, here = (dynamic.calibrate(networks(), loader, progress=False) for loader in (Remote(BATCHES), BATCHES))
    assert '"machine": "far"' in (there.made_on or "")
    assert '"machine": "far"' not in (here.made_on or "")
    np.testing.assert_array_equal(there.logits, here.logits)
    assert there.fingerprint == here.fingerprint


def test_machines_that_differ_are_refused() -> None:
    loader = Remote(BATCHES)
    loader.machines = ("far", "farther")
    with pytest.raises(dynamic.errors.CalibrationError, match=r"logits come from .* far.* and from .* farther"):
        dynamic.calibrate(networks(), loader, progress=False)


def test_labels_are_checked_as_those_of_a_loader() -> None:
    loader = Remote(BATCHES)
    loader.labels = LABELS.numpy() + 0.2
    with pytest.raises(dynamic.errors.InputError, match=r"labels are float64 of shape .*expected class indices"):
        dynamic.calibrate(networks(), loader, progress=False)


@pytest.mark.parametrize("logits", [torch.zeros(600, 4), [0.0, 1.0]])
def test_a_loader_may_have_logits_of_its_own(logits: Any) -> None:
    class Taught(list[Any]):
        """It keeps what a teacher said."""

    loader = Taught(BATCHES)
    loader.logits = logits  # type: ignore[attr-defined]
    records = dynamic.calibrate(networks(), loader, progress=False)
    np.testing.assert_array_equal(records.logits, dynamic.calibrate(networks(), BATCHES, progress=False).logits)
