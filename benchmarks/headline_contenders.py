"""What `headline.py` lets take turns: the cascade, calibrated on the engine that is timed, and every static network."""

from pathlib import Path

import cifar
import numpy as np
import torch
from alternating import ENGINES, Contender, settings
from alternating_worker import Job, keep_spec
from cifar_exits import headline_cascade, operating_point
from numpy.typing import NDArray

import dynamic
from dynamic.engines.contract import CascadeSpec
from dynamic.offline.exporting import export_stages
from dynamic.offline.graphs import write_graphs
from dynamic.offline.images import ImageSet, stratified_halves

ROUTES = {"graph": "cascade, graph", "stages": "cascade, stages"}  # rows of the table


class Prepared:
    """Everything exported under `folder`, and both halves of the images."""

    def __init__(self, data: Path, folder: Path) -> None:
        images = cifar.images(data, "test")
        calibration, report = stratified_halves(images.labels, seed=0)
        report = np.random.default_rng(0).permutation(report)
        self.folder, self.calibration = folder, images.select(calibration)
        self.labels: NDArray[np.int64] = images.labels[report]
        inputs = cifar.PREPROCESS(images.images[report])
        np.save(folder / "inputs.npy", inputs)
        example = torch.from_numpy(inputs[:2])
        self.cascade = headline_cascade(data)
        self.spec: CascadeSpec = export_stages(self.cascade, folder / "cascade", example, progress=False)
        for name, network in zip(cifar.NAMES, cifar.networks(data), strict=True):
            export_stages(dynamic.Cascade(network, names=[name]), folder / name, example, progress=False)

    def calibrate(self, engine: str, precision: str, count: int | None) -> dynamic.Point:
        """Choose the operating point on this engine, and write the graph that has its temperatures."""
        some: ImageSet = self.calibration
        if count is not None:
            some = some.select(np.random.default_rng(0).permutation(len(some))[:count])
        batches = cifar.batches(some, size=1)  # as it is timed: batches round otherwise, in bf16 visibly
        records = dynamic.calibrate(self.cascade, batches, engine, precision, preprocess=cifar.PREPROCESS)
        ladder, point = operating_point(records)
        write_graphs(self.folder / "cascade", self.spec, ladder)
        keep_spec(self.folder / "cascade", self.spec, ladder)
        return point

    def contenders(self, name: str, point: dynamic.Point) -> list[Contender]:
        """Both routes through the cascade, and every static network, in every setting."""
        engine, precision = ENGINES[name]
        inputs = str(self.folder / "inputs.npy")
        return [
            Contender(row, Job(engine, precision, str(self.folder / part), route, setting, inputs), limits)
            for row, part, route, limits in (
                *((row, "cascade", route, point.thresholds) for route, row in ROUTES.items()),
                *((network, network, None, None) for network in cifar.NAMES),
            )
            for setting in settings(engine, bare=route is None)
        ]
