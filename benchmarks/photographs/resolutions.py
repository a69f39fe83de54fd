"""Cascades of networks and resolutions on 1,000 photographs against the best static network of at least their accuracy.

    python -m benchmarks.photographs.resolutions

All members take one picture of 260 pixels and resize it inside. On each engine every member is a bundle of its own, in
f32 and int8. Steps follow each other, and each continues from `out/photographs`, where its results lie:

- records: the bundle of each member, and its logits of all photographs. Nothing is timed.
- members: every member through `run(x)`, by turns. Decoding and resizing are measured on their own.
- splits: on each of 20 splits, one half chooses a cascade and certifies it for a drop of 0.02 (and of 0.05) to its last
  network, and the other half reports. Costs there are sums of the measured times of members. Beside them is what
  thresholds reach that are fitted on the very photographs, and the oracle, whose photographs exit at the first member
  that is right.
- run: the cascade of the first split with a certificate is built and timed through `run(x)`, beside its opponent.

Steps that time something need a machine without other work.
"""

import argparse
import io
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

import dynamic
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, ratio, save, spread
from benchmarks.photographs import members
from benchmarks.photographs.outcomes import Members, Possible, on_split, over_splits
from dynamic.data import stratified_halves
from dynamic.models.compress import quantize

TARGETS, SPLITS = (0.02, 0.05), 20
STEPS = ("records", "members", "splits", "run")
INT8 = " int8"
FOLDER = ROOT / "out" / "photographs"
Loader = list[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Photographs:
    """Pictures `[N, 3, H, W]`, their labels `[N]`, and the milliseconds that decoding and resizing took."""

    pictures: NDArray[np.float32]
    labels: NDArray[np.int64]
    decode_ms: list[float]

    def loader(self, which: NDArray[np.int64] | None = None) -> Loader:
        """Some of them, or all, in batches of 50."""
        some = slice(None) if which is None else which
        images, labels = torch.from_numpy(self.pictures[some]), torch.from_numpy(self.labels[some])
        return list(zip(images.split(50), labels.split(50), strict=True))

    def halves(self, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """One that chooses and certifies, and one that reports."""
        return stratified_halves(np.zeros(len(self.labels), np.int64), seed=seed)


def photographs(data: Path) -> Photographs:
    """All of them, decoded."""
    files, labels = members.photographs(data)
    took, pictures = [], []
    for file in files:
        began = time.perf_counter()
        pictures.append(members.PREPROCESS(Image.open(io.BytesIO(file)))[0])
        took.append((time.perf_counter() - began) * 1e3)
    return Photographs(np.stack(pictures), labels, took)


class Networks:
    """The members by name, in f32 and int8. An int8 network is made when it is needed first."""

    def __init__(self, data: Path, given: Photographs) -> None:
        self._networks: dict[str, nn.Module] = members.members(data)
        self.names = [*self._networks, *(name + INT8 for name in self._networks)]
        self._few = given.loader(np.arange(100))  # 10% of the photographs give the ranges of integers

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self._networks:
            progress(f"int8 of {name.removesuffix(INT8)}")
            network = self._networks[name.removesuffix(INT8)]
            int8 = quantize(network, self._few[0][0], calibration_loader=self._few, latency=False)
            self._networks[name] = int8.network.eval()
        return self._networks[name]


class Engine:
    """The steps on one engine, and the folder of their results."""

    def __init__(self, name: Any, networks: Networks, given: Photographs, requests: int) -> None:
        self.name, self.networks, self.given, self.requests = name, networks, given, requests
        self.folder: Path = FOLDER / name

    def shelf(self, member: str) -> Path:
        """The folder of a member's bundle."""
        return self.folder / "bundles" / member.replace(" ", "-").replace("@", "-at-")

    def records(self) -> None:
        """The bundle of each member, which holds its records."""
        for name in self.networks.names:
            if not (self.shelf(name) / "bundle.json").is_file():
                progress(f"records of {name} on {self.name}")
                bundle = dynamic.build(
                    [self.networks[name]],
                    self.given.loader(),
                    engine=self.name,
                    max_drops=TARGETS,
                    progress=False,
                )
                saved = bundle.save(self.shelf(name))
                saved.profile(batch=(1,), seconds=0.1, progress=False)  # else `runtime` would, and for longer

    def members(self) -> None:
        """Milliseconds and CPU-ms of each member."""
        progress(f"timing {len(self.networks.names)} members on {self.name}")
        bundles = {name: dynamic.load(self.shelf(name)) for name in self.networks.names}
        ms, cpu_ms = timed(bundles, self.given.pictures[: self.requests])
        self._keep("members", {name: {"ms": ms[name], "cpu_ms": cpu_ms[name]} for name in bundles})

    def known(self) -> Members:
        """Records and times of all members."""
        took = self._kept("members")
        each = [dynamic.load(self.shelf(name)).records for name in took]
        logits = np.concatenate([one.logits for one in each], axis=1)
        together = replace(
            each[0],
            logits=logits,
            backbone=tuple(range(len(each))),
            macs=tuple(one.macs[0] for one in each),
            head_macs=(0.0,) * len(each),
            stage_names=tuple(took),
        )
        known = Members(together, list(took), [statistics.fmean(one["ms"]) for one in took.values()])
        assert np.array_equal(known.labels, self.given.labels)
        return known

    def splits(self, count: int) -> None:
        """Certified cascades on halves, and what is possible."""
        known = self.known()
        cascades, possible = known.cascades(), Possible(known)
        found: dict[str, Any] = {f"{target:g}": [] for target in TARGETS} | {"above": []}
        for seed in range(count):
            progress(f"split {seed} of {count} on {self.name}")
            halves = self.given.halves(seed)
            for target in TARGETS:
                found[f"{target:g}"].append(on_split(possible, cascades, halves, target))
            found["above"].append(possible.above(cascades, halves))
        self._keep("splits", found | {"possible": possible.fitted_on_all(cascades)})

    def run(self) -> None:
        """The cascade of the first certified split through `run(x)` beside its opponent, for one photograph and 32."""
        outcomes = self._kept("splits")[f"{TARGETS[0]:g}"]
        seed = next((number for number, one in enumerate(outcomes) if one), None)
        if seed is None:
            self._keep("run", {"missing": "no cascade was certified on any split"})
            return
        outcome, (half, other) = outcomes[seed], self.given.halves(seed)
        names, pictures = outcome["cascade"], self.given.pictures[other]
        cascade = dynamic.Cascade([self.networks[name] for name in names], names=names)
        with tempfile.TemporaryDirectory() as folder:
            built = dynamic.build(
                cascade, self.given.loader(half), engine=self.name, max_drops=TARGETS[:1], progress=False
            )
            bundle = built.save(Path(folder) / "shelf").profile(batch=(1,), progress=False)
            pair = {"cascade": bundle, "opponent": dynamic.load(self.shelf(outcome["opponent"]))}
            ms, cpu_ms = timed(pair, pictures)
            by_32, _ = timed(pair, pictures, rows=32)
            with bundle.runtime(dynamic.Budget(max_drop=TARGETS[0], on_drift="report")) as run:
                right = [run(x).label == y for x, y in zip(pictures, self.given.labels[other], strict=True)]
                shares = run.stats().stage_shares
        found = {
            "split": seed,
            "cascade": names,
            "opponent": outcome["opponent"],
            "accuracy": round(float(np.mean(right)), 4),
            "opponent_accuracy": outcome["opponent_accuracy"],
            "exits": [round(float(share), 3) for share in shares],
            "ratio": ratio(ms["cascade"], ms["opponent"]),
            "ratio_32": ratio(by_32["cascade"], by_32["opponent"]),
            "cascade_ms": spread(ms["cascade"]) | tails(ms["cascade"]),
            "opponent_ms": spread(ms["opponent"]) | tails(ms["opponent"]),
            "cpu_ms": {name: round(value, 3) for name, value in cpu_ms.items()},
        }
        found["ratio_p95"] = round(found["cascade_ms"]["p95"] / found["opponent_ms"]["p95"], 3)
        self._keep("run", found)

    def figures(self) -> dict[str, Any]:
        """Everything that has been measured."""
        known, took, splits = self.known(), self._kept("members"), self._kept("splits")
        accuracy = known.right.mean(0)
        rows = {
            name: {"accuracy": round(float(accuracy[i]), 4), **spread(one["ms"]), **tails(one["ms"])}
            | {"cpu_ms": round(one["cpu_ms"], 3)}
            for i, (name, one) in enumerate(took.items())
        }
        above = [one for one in splits["above"] if one]
        return {
            "members": rows,
            "over_splits": {f"{target:g}": over_splits(splits[f"{target:g}"]) for target in TARGETS},
            "one_point_above": {
                "splits": len(splits["above"]),
                "with_thresholds": len(above),
                **{key: round(statistics.fmean(one[key] for one in above), 4) for key in (above[0] if above else ())},
            },
            "possible": splits["possible"],
            "run": self._kept("run"),
            "splits": splits[f"{TARGETS[0]:g}"],
        }

    def _keep(self, step: str, found: Any) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / f"{step}.json").write_text(json.dumps(found), encoding="utf-8")

    def _kept(self, step: str) -> Any:
        return json.loads((self.folder / f"{step}.json").read_text(encoding="utf-8"))


def timed(
    bundles: Mapping[str, dynamic.Bundle], pictures: NDArray[np.float32], rows: int = 1
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """(milliseconds of each request, mean CPU-ms) of each bundle through `run(x)`, by turns in blocks of 20."""
    ms: dict[str, list[float]] = {name: [] for name in bundles}
    cpu: dict[str, float] = dict.fromkeys(bundles, 0.0)
    requests = [pictures[i : i + rows] for i in range(0, len(pictures) - rows + 1, rows)]
    requests = requests if rows > 1 else [request[0] for request in requests]
    budget = dynamic.Budget(max_drop=TARGETS[0], on_drift="report")
    runs = {name: bundle.runtime(budget) for name, bundle in bundles.items()}
    try:
        for start in range(0, len(requests), 20):
            block = requests[start : start + 20]
            for name in sorted(runs, reverse=bool(start // 20 % 2)):
                runs[name](block[0])  # clock, caches and threads were another's
                for request in block:
                    began, began_cpu = time.perf_counter(), time.process_time()
                    runs[name](request)
                    ms[name].append((time.perf_counter() - began) * 1e3)
                    cpu[name] += (time.process_time() - began_cpu) * 1e3 / len(requests)
    finally:
        for run in runs.values():
            run.close()
    return ms, cpu


def tails(ms: Sequence[float]) -> dict[str, float]:
    """p50, p95 and p99."""
    return {f"p{q}": round(float(np.percentile(ms, q)), 3) for q in (50, 95, 99)}


def show(engine: str, figures: Mapping[str, Any]) -> None:
    """Print a table of members, and what cascades reach."""
    print(f"\n{engine}: {'member':18}{'accuracy':>9}{'mean ms':>9}{'p50':>8}{'p95':>8}{'p99':>8}{'CPU-ms':>8}")
    for name, row in sorted(figures["members"].items(), key=lambda pair: pair[1]["mean"]):
        tail = f"{row['p50']:8.2f}{row['p95']:8.2f}{row['p99']:8.2f}{row['cpu_ms']:8.2f}"
        print(f"{'':12}{name:18}{row['accuracy']:9.3f}{row['mean']:9.2f}{tail}")
    for name in ("over_splits", "one_point_above", "possible", "run"):
        print(f"{name}: {figures[name]}")


def main() -> None:
    """Measure and write `results/photographs/resolutions.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--engines", nargs="+", default=["onnxruntime", "openvino"])
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS, metavar="STEP")
    parser.add_argument("--requests", type=int, default=200, help="photographs timed one at a time, of each member")
    parser.add_argument("--splits", type=int, default=SPLITS)
    options = parser.parse_args()
    data = data_folder(options.data)
    given = photographs(data)
    networks = Networks(data, given)
    figures: dict[str, Any] = {"photographs": len(given.labels), "decode_ms": spread(given.decode_ms)}
    for name in options.engines:
        engine = Engine(name, networks, given, options.requests)
        for step in options.steps:
            engine.splits(options.splits) if step == "splits" else getattr(engine, step)()
        if STEPS[-1] in options.steps:
            figures[name] = engine.figures()
            show(name, figures[name])
    if STEPS[-1] in options.steps:
        print(save("photographs/resolutions", figures))


if __name__ == "__main__":
    main()
