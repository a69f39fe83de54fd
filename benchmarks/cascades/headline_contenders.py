"""What `headline.py` lets take turns: the cascade, calibrated on the engine that is timed, and every static network."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from benchmarks.cascades.cifar_exits import halves, headline_cascade, operating_point
from benchmarks.harness import cifar
from benchmarks.harness.alternating import ENGINES, Contender, settings
from benchmarks.harness.alternating_worker import Job, keep_spec
from dynamic.data import stratified_halves
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.options import EngineName, Precision
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.onnx_export.whole_graph import write_graphs

ROUTES = {"graph": "cascade, graph", "stages": "cascade, stages"}  # rows of the table


@dataclass(frozen=True)
class Split:
    """One split of the images: what it chose, where the graphs with its temperatures lie, and what reports."""

    point: dynamic.OperatingPoint
    folder: Path
    calibration: list[int]  # both shuffled
    report: list[int]


Choose = Callable[[dynamic.Records], tuple[dynamic.Ladder, dynamic.OperatingPoint]]  # from a calibration half


class Prepared:
    """Everything exported under `folder`, and all test images.

    `choose`: what takes a point from a calibration half; `others`: networks that compete alone beside the ResNets.
    """

    def __init__(
        self,
        data: Path,
        folder: Path,
        cascade: dynamic.Cascade | None = None,
        choose: Choose = operating_point,
        others: Mapping[str, nn.Module] | None = None,
    ) -> None:
        self._choose = choose
        self.folder, self.images = folder, cifar.images(data, "test")
        self.labels: NDArray[np.int64] = self.images.labels
        inputs = cifar.PREPROCESS(self.images.images)
        np.save(folder / "inputs.npy", inputs)
        example = torch.from_numpy(inputs[:2])
        self.cascade = cascade or headline_cascade(data)
        self.spec: CascadeSpec = export_stages(self.cascade, folder / "cascade", example, progress=False)
        alone = dict(zip(cifar.NAMES, cifar.networks(data), strict=True)) | dict(others or {})
        self.static = tuple(alone)
        for name, network in alone.items():
            export_stages(dynamic.Cascade(network, names=[name]), folder / name, example, progress=False)

    def records(self, engine: EngineName, precision: Precision) -> dynamic.Records:
        """What every stage says about every image on this engine."""
        batches = cifar.batches(self.images, size=1)  # as it is timed: batches round otherwise, in bf16 visibly
        return dynamic.calibrate(self.cascade, batches, engine=engine, precision=precision, preprocess=cifar.PREPROCESS)

    def split(self, seed: int, records: dynamic.Records) -> Split:
        """Choose the operating point on one half of the images, and write the graph that has its temperatures."""
        calibration, report = stratified_halves(self.labels, seed)
        ladder, point = self._choose(halves(records, seed)[0])
        folder = self.folder / f"cascade-{seed}"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder / "cascade", folder)
        write_graphs(folder, self.spec, ladder)
        keep_spec(folder, self.spec, ladder)
        # in order of classes as they are: whoever takes the first few gets hard and easy ones
        random = np.random.default_rng(seed)
        shuffled = random.permutation(report)
        return Split(point, folder, random.permutation(calibration).tolist(), shuffled.tolist())

    def contenders(self, name: str, split: Split) -> list[Contender]:
        """Both routes through the cascade, and every static network, in every setting."""
        engine, precision = ENGINES[name]
        inputs = str(self.folder / "inputs.npy")
        return [
            Contender(row, Job(engine, precision, str(part), route, setting, inputs), limits)
            for row, part, route, limits in (
                *((row, split.folder, route, split.point.thresholds) for route, row in ROUTES.items()),
                *((network, self.folder / network, None, None) for network in self.static),
            )
            for setting in settings(engine, bare=route is None)
        ]


def on_split(contender: Contender, split: Split) -> Contender:
    """The same cascade, route and settings, with what another split chose."""
    return replace(contender, job=replace(contender.job, folder=str(split.folder)), thresholds=split.point.thresholds)
