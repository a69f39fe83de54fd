"""Against the peer library earlyon 0.3, on the same backbone, trained heads and images.

    pip install earlyon==0.3 && python -m benchmarks.wrapping.against_earlyon

Installs nothing: without earlyon it says so and stops. The backbone is the given ResNet-56 with the heads that
frozen_exits.py trained, put into earlyon's public `EarlyExitWrapper` as its documentation says: an `ExitPoint` on the
module that our exit reads, our head as its exit head, its defaults for everything else.

1. Accuracy and multiply-adds (heads counted) over 20 class-stratified splits of the test images: each library chooses
   thresholds for the same targets on one half, with its own routine (`calibrate_thresholds`, `certify`), and the other
   half reports. earlyon is calibrated as in its README (no temperatures), and with temperatures fitted on a part of
   the calibration half, as it recommends for that. Its routine reads recorded logits here, given to it as a model
   that looks them up; on the first split it also runs on the images, and the model is then the one that is timed.
2. Time on the report half of the first split, for images one by one and in batches: the full network unsplit, earlyon
   as in its README, ours as it comes and with combine="mean", and ours with earlyon's heads, temperatures and
   thresholds, so that at batch 1 both leave at the same exits and the runtime alone differs. In a batch earlyon goes on
   with all inputs until all may leave at once, so there the decisions differ whatever the thresholds.
3. A batch of 64 of which all, or all but one, may leave at the first exit.

All take turns in one process; each is quoted at the best of its settings. 1.00 is the full network in eager torch.
"""

import argparse
import copy
import importlib.util
import statistics
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import dynamic
from benchmarks.cascades import frozen_exits
from benchmarks.harness import cifar
from benchmarks.harness.common import (
    Contender,
    add_data_option,
    best,
    data_folder,
    progress,
    ratio,
    save,
    spread,
    take_turns,
)
from dynamic.data import stratified_halves
from dynamic.engines.engine_factory import open_engine
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.tracing.wrap_network import ExitNetwork
from dynamic.policies.certification.replay import cost_to, replay, shares
from dynamic.policies.scores import Combiner, Score
from dynamic.policies.stage_plan import plan

SPLITS, ROWS = 20, 64
TARGETS, TIMED = (0.005, 0.01, 0.02), 0.01  # accuracy that may be lost on the calibration half
# name -> routing policy of earlyon, whether temperatures are fitted
PEERS = {
    "earlyon, as in its README": ("confidence", False),
    "earlyon, temperatures": ("confidence", True),
    "earlyon, entropy, temperatures": ("entropy", True),
}
OURS: dict[str, dict[str, Any]] = {"dynamic, as it comes": {}, 'dynamic, combine="mean"': {"combine": "mean"}}
FULL, PEER, SAME = "full network", "earlyon, as in its README", "dynamic, earlyon's decisions"
SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "torch": ({"threads": 1}, {"threads": 2}),
    "onnxruntime": ({"threads": 1}, {"threads": 2, "idle": "sleep"}, {"threads": 2, "idle": "spin"}),
    "openvino": ({"threads": 1}, {"threads": 2}),
}
NOT_MEASURED = ["ARM, phones, accelerators", "earlyon's StagedModel: takes nn.Sequential backbones, batch 1", "memory"]
PAUSE_S = 0.1  # worker threads of one engine must not spin beside the next

Inputs = NDArray[np.float32]
Way = Callable[[Inputs], tuple[NDArray[np.float32], Any]]  # [B, ...] -> (logits [B, C], stage, one or [B])
# (name, engine, settings) -> what is timed, and what has to be done before its turn
Listed = dict[tuple[str, str, str], tuple[Way, Callable[[], object]]]


@dataclass(frozen=True, eq=False)
class Rule:
    """When inputs leave, in our words; `together`: a batch leaves as a whole, once all of it may."""

    combiner: Combiner
    limits: NDArray[np.float32]  # [S-1]
    together: bool = False

    def outcome(self, records: dynamic.Records, rows: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(label [N], stage [N]) that it gives on recorded logits, `rows` at a time."""
        if not self.together or rows == 1:
            found = replay(records.logits, self.combiner, thresholds=self.limits, backbone=records.backbone)
            return found.prediction, found.stage
        stage = np.full(len(records), records.stages - 1)
        for start in range(0, len(records), rows):
            part = records.logits[start : start + rows]
            scores = [self.combiner.add(self.combiner.start(), s, part[:, s])[1] for s in range(len(self.limits))]
            fires = [bool((limit < score).all()) for limit, score in zip(self.limits, scores, strict=True)]
            stage[start : start + rows] = next((s for s, fired in enumerate(fires) if fired), records.stages - 1)
        return records.logits[np.arange(len(records)), stage].argmax(1), stage


def compute(rule: Rule, records: dynamic.Records, stage: NDArray[np.int64]) -> float:
    """Mean multiply-adds, evaluated heads included, as a share of the full network's."""
    todo = plan(rule.limits, records.backbone)
    return float(cost_to(todo, records.macs, records.head_macs)[stage].mean() / sum(records.macs))


class LookUp(nn.Module):
    """Of the recorded logits `[B, S, C]`, those of one stage."""

    def __init__(self, stage: int) -> None:
        super().__init__()
        self.stage = stage

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """`[B, S, C]` -> `[B, C]`."""
        return logits[:, self.stage]


def peer_model(
    backbone: nn.Module, layers: Sequence[str], heads: Sequence[nn.Module], shape: tuple[int, ...], policy: str
) -> Any:
    """earlyon's wrapper; it hangs hooks into its backbone, so it gets copies."""
    from earlyon import EarlyExitConfig, EarlyExitWrapper, ExitPoint

    points = [ExitPoint(f"exit_{i}", layer, 1) for i, layer in enumerate(layers)]  # the width is for making heads
    config = EarlyExitConfig("custom", 10, points, routing_policy=policy)
    named = {point.name: copy.deepcopy(head) for point, head in zip(points, heads, strict=True)}
    return EarlyExitWrapper(copy.deepcopy(backbone), named, nn.Identity(), config, input_shape=(1, *shape)).eval()


def peer_rule(model: Any, inputs: torch.Tensor, label: NDArray[np.int64], drop: float, temperatures: bool) -> Rule:
    """Let earlyon calibrate `model`, and say what came out in our words."""
    from earlyon.core.thresholds import calibrate_thresholds

    def loader(which: NDArray[Any]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        chosen, labels = inputs[torch.from_numpy(which)], torch.from_numpy(label[which])
        at = range(0, len(chosen), 100)
        return [(chosen[i : i + 100], labels[i : i + 100]) for i in at]

    everything = np.arange(len(label))
    fitting, searching = stratified_halves(label, 0) if temperatures else (everything, everything)
    options = {"fit_temperature": True, "temperature_loader": loader(fitting)} if temperatures else {}
    calibrate_thresholds(model, loader(searching), target_accuracy_drop=drop, **options)
    config = model.config
    sure = config.routing_policy == "confidence"
    limits = np.array(config.confidence_thresholds if sure else config.entropy_thresholds, np.float32)
    # earlyon leaves at equality, and where entropy is small
    limits = np.nextafter(limits if sure else -limits, np.float32(-np.inf))
    limits[~np.array(config.enabled_exits)] = np.inf
    temperature = tuple(float(config.temperatures[name]) for name in config.head_names)
    score: Score = "max_probability" if sure else "negative_entropy"
    return Rule(Combiner(temperature, score, combine="last"), limits, together=True)


def our_rule(calibration: dynamic.Records, drop: float, options: dict[str, Any]) -> Rule:
    """The point that `certify` gives for a drop, all records used to search; the reference where there is none."""
    ladder = dynamic.certify(replace(calibration, part=np.zeros(len(calibration), np.int8)), (drop,), **options)
    point = [p for p in ladder.points if p.target == drop or p is ladder.points[0]][-1]
    return Rule(
        Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone),
        np.array(point.thresholds, np.float32),
    )


def over_splits(records: dynamic.Records) -> dict[str, Any]:
    """Points below the full network and share of its compute, on the report halves."""
    stages, label = records.stages, records.label
    assert label is not None
    print(f"thresholds by each library's own routine; on the report half, mean and worst of {SPLITS} splits, batch 1")
    print(f"{'target':>8}  {'':32}{'points below':>14}{'worst':>7}{'compute':>9}{'worst':>7}")
    table: dict[str, Any] = {}
    for drop in TARGETS:
        for name in (*PEERS, *OURS):
            rows = []
            for seed in range(SPLITS):
                half, other = stratified_halves(label, seed)
                calibration, report = records.select(half), records.select(other)
                if name in PEERS:
                    policy, temperatures = PEERS[name]
                    body = nn.Sequential(*[nn.Identity() for _ in range(stages - 1)], LookUp(stages - 1))
                    heads, layers = [LookUp(i) for i in range(stages - 1)], [str(i) for i in range(stages - 1)]
                    model = peer_model(body, layers, heads, records.logits.shape[1:], policy)
                    rule = peer_rule(model, torch.from_numpy(calibration.logits), label[half], drop, temperatures)
                else:
                    rule = our_rule(calibration, drop, OURS[name])
                found, stage = rule.outcome(report, 1)
                own = report.logits[:, -1].argmax(1) == label[other]
                below = 100 * float(own.mean() - (found == label[other]).mean())
                rows.append((below, compute(rule, report, stage)))
            below, share = np.array(rows).T
            table[f"{name}, target {drop:g}"] = {
                "points below": {"mean": below.mean(), "worst": below.max(), "sd": below.std(ddof=1)},
                "compute": {"mean": share.mean(), "worst": share.max(), "sd": share.std(ddof=1)},
            }
            print(f"{drop:8g}  {name:32}{below.mean():14.2f}{below.max():7.2f}{share.mean():9.3f}{share.max():7.3f}")
    return table


def ways(full: nn.Module, model: Any, net: ExitNetwork, rules: dict[str, Rule], inputs: Inputs, folder: Path) -> Listed:
    """Every contender: the full network, earlyon (torch alone), and ours on all engines, in all settings."""
    last, example = len(net.exits), torch.from_numpy(inputs[:2])
    cascades = {name: dynamic.Cascade(network) for name, network in ((FULL, full), ("stages", net))}

    def plain(x: Inputs) -> tuple[NDArray[np.float32], Any]:
        with torch.inference_mode():
            return full(torch.from_numpy(x)).numpy(), last

    def peer(x: Inputs) -> tuple[NDArray[np.float32], Any]:
        if len(x) == 1:
            result = model(torch.from_numpy(x), mode="inference")
            return result.prediction.numpy(), result.exit_taken % (last + 1)  # -1: the last
        result = model.forward_inference_batched(torch.from_numpy(x))
        return result.predictions.numpy(), result.exit_taken % (last + 1)

    def ours(engine: Any, limits: NDArray[np.float32]) -> Way:
        def way(x: Inputs) -> tuple[NDArray[np.float32], Any]:
            found = engine.run({"input": x}, limits)
            return found.logits, found.stage if len(limits) else last

        return way

    listed: Listed = {}
    specs = {name: describe(cascade, example) for name, cascade in cascades.items()}
    for kind, settings in SETTINGS.items():
        if importlib.util.find_spec(kind) is None:
            NOT_MEASURED.append(f"{kind}: not installed")
            continue
        if kind != "torch" and not folder.joinpath("stages").exists():
            specs = {name: export_stages(cascade, folder / name, example) for name, cascade in cascades.items()}
        for setting in settings:
            label = ", ".join(str(v) if k != "threads" else f"{v} thread{'s' * (v > 1)}" for k, v in setting.items())
            given: dict[str, Any] = {} if kind == "torch" else setting
            before = partial(torch.set_num_threads, setting["threads"])  # of torch; does nothing to the others
            for name, rule in rules.items():
                part = FULL if name == FULL else "stages"
                if name == PEER and kind != "torch":
                    continue
                if kind == "torch" and name in (FULL, PEER):
                    listed[name, kind, label] = (plain if name == FULL else peer, before)
                    continue
                limits = rule.limits[:0] if name == FULL else rule.limits
                combiner = Combiner((1.0,), "max_probability", combine="last") if name == FULL else rule.combiner
                engine = open_engine(kind, folder / part, specs[part], combiner, cascades[part].stages, **given)
                engine.load(specs[part].backbones)
                listed[name, kind, label] = (ours(engine, limits), before)
    return listed


def time_all(
    listed: Listed, inputs: Inputs, rows: int, count: int
) -> tuple[dict[str, list[float]], dict[tuple[str, str], str]]:
    """Milliseconds by contender; and by name and engine the contender with the best settings."""

    def contender(key: tuple[str, str, str], way: Way, before: Callable[[], object]) -> Contender:
        return Contender(" | ".join(key), lambda i: way(inputs[i : i + rows]), before)

    items = range(0, count * rows, rows)
    contenders = [contender(key, *entry) for key, entry in listed.items()]
    took = take_turns(contenders, items, max(1, -(-count // 15)), PAUSE_S, warm=1)
    pairs = dict.fromkeys(key[:2] for key in listed)
    return took, {pair: best(took, [" | ".join(key) for key in listed if key[:2] == pair]) for pair in pairs}


def on_stream(
    listed: Listed, rules: dict[str, Rule], report: dynamic.Records, inputs: Inputs, rows: int, count: int
) -> dict[str, Any]:
    """Accuracy, exits and time of every contender on the report half, `rows` images at a time."""
    progress(f"timing batch {rows}, {count} requests, {len(listed)} contenders")
    took, chosen = time_all(listed, inputs, rows, count)
    reference = took[chosen[FULL, "torch"]]
    engines = list(dict.fromkeys(engine for _, engine in chosen))
    print(f"\nbatch {rows}, {count} requests: mean ms per image, ratio to the full network in eager torch (quartiles)")
    print(f"{'':30}{'accuracy':>9}{'compute':>8}" + "".join(f"   {engine:24}" for engine in engines))
    table: dict[str, Any] = {}
    for name, rule in rules.items():
        label, stage = rule.outcome(report, rows)
        right, share = float((label == report.label).mean()), compute(rule, report, stage)
        row: dict[str, Any] = {"accuracy": right, "compute": share, "shares": shares(stage, report.stages)}
        cells = ""
        for engine in engines:
            if (name, engine) not in chosen:
                cells += f"   {'-':24}"
                continue
            key = chosen[name, engine]
            # what really ran must be what the records say
            way = listed[tuple(key.split(" | "))][0]  # type: ignore[index]
            same = []
            for i in range(0, count * rows, rows):
                logits, left = way(inputs[i : i + rows])
                here = slice(i, i + rows)
                same.append(np.mean((logits.argmax(1) == label[here]) & (left == stage[here])))
            ms, to = spread([t / rows for t in took[key]], 4), ratio(took[key], reference)
            row[engine] = {"settings": key.split(" | ")[2], "ms per image": ms, "to full": to}
            row[engine]["as recorded"] = round(statistics.fmean(same), 4)
            cells += f"   {ms['mean']:6.3f} {to['ratio']:.2f} ({to['q25']:.2f}-{to['q75']:.2f})".ljust(27)
        table[name] = row
        print(f"{name:30}{right:9.2%}{share:8.3f}{cells}")
    print("\nleft at each exit, and (the last column) not before the end")
    for name, row in table.items():
        print(f"{name:30}" + "".join(f"{share:7.1%}" for share in row["shares"]))
    print("\nbest settings, and how many answers and exits were as recorded")
    for name, row in table.items():
        by_engine = [f"{e} {row[e]['settings']}, {row[e]['as recorded']:.1%}" for e in engines if e in row]
        print(f"{name:30}" + "".join(f"{cell:38}" for cell in by_engine).rstrip())
    again = ratio(took[chosen[SAME, "torch"]], took[chosen[PEER, "torch"]])
    between = f"{again['ratio']:.3f} ({again['q25']:.3f}-{again['q75']:.3f})"
    print(f"\nearlyon's thresholds on torch, our time to earlyon's: {between}")
    return {"requests": count, "rows": table, "ours to earlyon, its thresholds": again}


def one_hard(listed: Listed, rule: Rule, report: dynamic.Records, inputs: Inputs, repeats: int) -> dict[str, Any]:
    """A batch that may leave at the first exit in use, and the same with one image that goes to the end."""
    _, stage = rule.outcome(report, 1)
    easy = np.flatnonzero(stage == stage.min())[:ROWS]
    hard = np.array([*easy[:-1], np.flatnonzero(stage == report.stages - 1)[0]])
    names = (FULL, PEER, SAME)
    on_torch = {key: entry for key, entry in listed.items() if key[1] == "torch" and key[0] in names}
    table: dict[str, Any] = {name: {} for name in names}
    for case, which in (("all leave", easy), ("one stays", hard)):
        took, chosen = time_all(on_torch, np.tile(inputs[which], (repeats, 1, 1, 1)), ROWS, repeats)
        for name in names:
            key = chosen[name, "torch"]
            table[name][case] = spread(took[key], 2) | {"settings": key.split(" | ")[2]}
    print(f"\na batch of {ROWS} on torch, earlyon's thresholds, median ms (quartiles); {repeats} times")
    print(f"{'':30}{'all leave at the first exit':30}one stays to the end")
    for name, row in table.items():
        cells = [f"{c['median']:.1f} ({c['q25']:.1f}-{c['q75']:.1f}), {c['settings']}" for c in row.values()]
        print(f"{name:30}" + "".join(f"{cell:30}" for cell in cells))
    return table


def main() -> None:
    """Accuracy over the splits, then times; table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--single", type=int, default=300, help="images timed one at a time")
    parser.add_argument("--batches", type=int, default=78, help="batches of 64 timed (78: the whole report half)")
    parser.add_argument("--repeats", type=int, default=40, help="of the batch in which one stays")
    options = parser.parse_args()
    if importlib.util.find_spec("earlyon") is None:
        print("skipped: earlyon is not installed; in an environment of its own: pip install earlyon==0.3")
        return
    warnings.filterwarnings("ignore", module="earlyon")  # looked-up logits have no multiply-adds to estimate
    warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)  # earlyon's own imports
    data = data_folder(options.data)
    net = frozen_exits.trained(argparse.Namespace(data=data, train=False))
    (full,) = cifar.networks(data, ["resnet56"])
    test = cifar.images(data, "test")
    records = cifar.records(dynamic.Cascade(net), test, "torch")
    assert records.label is not None
    torch.set_num_threads(1)  # until the timing, which sets its own: what follows is many small tensors
    table = over_splits(records)

    half, other = stratified_halves(records.label, 0)
    other = np.random.default_rng(0).permutation(other)  # batches come with classes mixed
    calibration, report = records.select(half), records.select(other)
    layers = [place.name for place in net.exits]
    policy, temperatures = PEERS[PEER]
    model = peer_model(net.backbone, layers, list(net.heads), (3, 32, 32), policy)
    progress("earlyon calibrates on the images of the first split's calibration half")
    seen = torch.from_numpy(cifar.PREPROCESS(test.images[half]))
    peer = peer_rule(model, seen, records.label[half], TIMED, temperatures)
    nobody = np.full(records.stages - 1, np.inf, np.float32)
    rules = {FULL: Rule(peer.combiner, nobody), PEER: peer}
    rules |= {name: our_rule(calibration, TIMED, given) for name, given in OURS.items()}
    rules[SAME] = replace(peer, together=False)
    inputs = np.ascontiguousarray(cifar.PREPROCESS(test.images[other]))
    print(f"\ntimed: first split, target {TIMED:g}; accuracy and compute of the {len(other)} images of its report half")
    figures: dict[str, Any] = {"splits": table, "exits": layers, "target": TIMED}
    figures["thresholds"] = {n: [t if np.isfinite(t) else "inf" for t in r.limits.tolist()] for n, r in rules.items()}
    with tempfile.TemporaryDirectory() as folder:
        listed = ways(full, model, net, rules, inputs, Path(folder))
        for rows, count in ((1, options.single), (ROWS, options.batches)):
            figures[f"batch {rows}"] = on_stream(listed, rules, report, inputs, rows, count)
        figures["one stays"] = one_hard(listed, peer, report, inputs, options.repeats)
    figures["not measured"] = NOT_MEASURED
    print(f"\nnot measured: {'; '.join(NOT_MEASURED)}")
    print(save("wrapping/against_earlyon", figures))


if __name__ == "__main__":
    main()
