"""What a compressed network costs, beside the network it was made from: the contract of this folder.

Every method here has the form `compressed = method(network, example_inputs, ...)`: `network` is not touched,
`compressed.network` is a module of its own that takes the same inputs and gives logits of the same shape, and
`compressed.report` says what was gained, what it cost, and which parts were left alone, and why.
"""

import logging
import math
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dynamic.engines.engine_factory import open_engine
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.batches import Batch, arguments, named_tensors
from dynamic.offline.calibration import plain_combiner
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.checkpoints import untied
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.float_types import other_floats
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.network_copies import deep_copy, plain
from dynamic.offline.networks.row_independence import last_logits
from dynamic.offline.networks.used_data import hashes_of, remember
from dynamic.offline.onnx_export.stage_graphs import export_stages
from dynamic.offline.tracing.multiply_adds import count_macs
from dynamic.policies.certification.floor import Level
from dynamic.policies.errors import EngineError, InputError

logger = logging.getLogger("dynamic")

USUAL_DROP = 0.02  # of accuracy: what a method loses, about, that needs no fine-tuning
_CLEAR = 2.0  # standard errors
_TURNS, _TURN_S = 15, 0.02  # how often each network has its turn, and for how long


@dataclass(frozen=True)
class Measured:
    """A network's size and cost. `parameters`: numbers in its weights, each counted once where it is shared; `nonzero`
    of them; `file_bytes`: the weights as stored (safetensors, or the packed file of a method that packs them); `macs`:
    multiply-adds an input; `latency_ms`: median of one input on ONNX Runtime, None where not measured; `accuracy` on
    `inputs` inputs, of which the commonest class is the share `chance`, None without data; `latency_spread_ms`: the
    middle half of the turns; `exported_bytes`: the ONNX files that ship, None where nothing was exported."""

    parameters: int
    nonzero: int
    _: KW_ONLY
    file_bytes: int
    macs: float
    latency_ms: float | None = None
    accuracy: float | None = None
    chance: float | None = None
    inputs: int | None = None
    latency_spread_ms: float | None = None
    exported_bytes: int | None = None

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy is not clearly above that of always answering with the commonest class."""
        if self.accuracy is None or self.chance is None or not self.inputs:
            return False
        return Level("network", self.accuracy, self.chance, self.inputs).at_chance


@dataclass(frozen=True)
class Report:
    """`before` and `after`; `left_alone`: module or part -> why nothing was done there; `facts`: what else the method
    has to say (ranks, sparsity of each layer, ...), JSON. `usual_drop`: the loss of accuracy that this method usually
    has before any fine-tuning; `notes`: what the figures do not say; `same_work`: an engine does the same arithmetic
    for both networks, so that a difference in latency is noise."""

    method: str
    before: Measured
    _: KW_ONLY
    after: Measured
    left_alone: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    usual_drop: float = USUAL_DROP
    notes: tuple[str, ...] = ()
    same_work: bool = False

    @property
    def warnings(self) -> tuple[str, ...]:
        """What nobody would accept without knowing: accuracy at chance, or a loss beyond the usual one."""
        before, after = self.before, self.after
        if before.accuracy is None or after.accuracy is None:
            return ()
        remedy = "take less away, or fine-tune (dynamic.fit)"
        if after.at_chance and not before.at_chance:
            return (
                f"accuracy {after.accuracy:.4f} is at chance: the commonest class alone is {after.chance:.4f} of "
                f"{after.inputs} inputs; {remedy}",
            )
        lost = before.accuracy - after.accuracy
        variance = sum(m.accuracy * (1 - m.accuracy) for m in (before, after) if m.accuracy is not None)
        if lost > self.usual_drop + _CLEAR * math.sqrt(variance / (after.inputs or 1)):
            return (
                f"accuracy fell by {100 * lost:.1f} points, more than the {100 * self.usual_drop:g} that are usual "
                f"here: {remedy}",
            )
        return ()

    def _latency(self) -> str | None:
        """The line on latency, which claims nothing within the spread."""
        before, after = self.before.latency_ms, self.after.latency_ms
        if before is None or after is None:
            return None
        spread = max(self.before.latency_spread_ms or 0.0, self.after.latency_spread_ms or 0.0)
        share = f"{after / before:8.1%}"
        if self.same_work:
            share = "   no gain: an engine does the same arithmetic for both"
        elif abs(after - before) <= spread:
            share = f"   no difference beyond the spread of {spread:.3f} ms"
        return f"  {'latency':14}{before:12.3f} -> {after:10.3f} ms {share}"

    def __str__(self) -> str:
        rows = [("parameters", "parameters", 1e3, "k"), ("nonzero", "nonzero", 1e3, "k")]
        rows += [("weights", "file_bytes", 1e3, "kB")]
        if self.before.exported_bytes is not None and self.after.exported_bytes is not None:
            rows += [("ONNX file", "exported_bytes", 1e3, "kB")]
        rows += [("multiply-adds", "macs", 1e6, "M")]
        lines = [self.method]
        for label, name, unit, suffix in rows:
            old, new = getattr(self.before, name), getattr(self.after, name)
            share = f"{new / old:8.1%}" if old else ""
            lines.append(f"  {label:14}{old / unit:12.1f} -> {new / unit:10.1f} {suffix:3}{share}")
        lines += [line for line in [self._latency()] if line is not None]
        if self.before.accuracy is not None and self.after.accuracy is not None:
            change = 100 * (self.after.accuracy - self.before.accuracy)
            lines.append(
                f"  {'accuracy':14}{self.before.accuracy:12.4f} -> {self.after.accuracy:10.4f}   {change:+.2f} points"
            )
        lines += [f"  WARNING: {warning}" for warning in self.warnings]
        lines += [f"  {note}" for note in self.notes]
        lines += [f"  left alone: {name} ({why})" for name, why in self.left_alone.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Compressed:
    """A network made from another, and what that did."""

    network: nn.Module
    report: Report


def copied(network: nn.Module, *, computed: bool = True) -> nn.Module:
    """A deep copy; without `computed`, weights that are computed, under `weight_norm` or a mask, are ordinary ones."""
    duplicate = deep_copy(network)
    remember(duplicate, hashes_of(network))
    return duplicate if computed else plain(duplicate)


def report(
    method: str,
    before: nn.Module,
    after: nn.Module,
    example_inputs: Batch,
    eval_loader: Iterable[Any] | None = None,
    *,
    latency: bool = True,
    file_bytes: int | None = None,
    left_alone: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
    usual_drop: float = USUAL_DROP,
    notes: Sequence[str] = (),
    same_work: bool = False,
) -> Report:
    """Measure both networks, taking turns, and log what nobody would accept without knowing.

    `data`: a loader of `(inputs, labels)` for accuracy; `file_bytes` of the packed file, where the method makes one.
    For `usual_drop`, `notes` and `same_work` see `Report`.
    """
    first, second = measure([before, after], example_inputs, eval_loader=eval_loader, latency=latency)
    if file_bytes is not None:
        second = replace(second, file_bytes=file_bytes)
    told = Report(
        method,
        first,
        after=second,
        left_alone=dict(left_alone or {}),
        facts=dict(facts or {}),
        usual_drop=usual_drop,
        notes=tuple(notes),
        same_work=same_work,
    )
    for warning in told.warnings:
        logger.warning("%s: %s", method, warning)
    return told


def measure(
    networks: Sequence[nn.Module],
    example_inputs: Batch,
    *,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
    engine: str = "onnxruntime",
    precision: str = "f32",
) -> list[Measured]:
    """Sizes, multiply-adds, and, of networks that take turns, latency; accuracy on `data`, as torch computes it.

    Latency is the median of one input at a time, all exits run, on `engine`; None where the network cannot be
    exported. Raises InputError on inputs or data that do not fit.
    """
    named = named_tensors(networks[0], example_inputs)
    one = {name: t[:1] for name, t in named.items()}
    timed = _latencies(networks, example_inputs, engine, precision) if latency else [_Timed()] * len(networks)
    found = []
    for network, took in zip(networks, timed, strict=True):
        rights = None if eval_loader is None else _rights(network, eval_loader)
        with evaluating(network):
            macs = count_macs(network, *arguments(network, one)).total
        tensors = untied(network.state_dict())
        weights = untied(dict(network.named_parameters(remove_duplicate=False)))
        found.append(
            Measured(
                sum(p.numel() for p in weights.values()),
                sum(int(p.count_nonzero()) for p in weights.values()),
                file_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
                macs=macs,
                latency_ms=took.latency_ms,
                accuracy=None if rights is None else rights.right / rights.count,
                chance=None if rights is None else rights.commonest / rights.count,
                inputs=None if rights is None else rights.count,
                latency_spread_ms=took.spread_ms,
                exported_bytes=took.exported_bytes,
            )
        )
    return found


def accuracy(network: nn.Module, eval_loader: Iterable[Any]) -> float:
    """Share of `data` that the network's own (last) answer has right. Raises InputError on an empty loader."""
    rights = _rights(network, eval_loader)
    return rights.right / rights.count


@dataclass(frozen=True)
class _Rights:
    """How many of `count` inputs were `right`, and how many are of the commonest class."""

    right: int
    count: int
    commonest: int


def _rights(network: nn.Module, loader: Iterable[Any]) -> _Rights:
    right, count, seen = 0, 0, Counter[int]()
    with evaluating(network), torch.no_grad():
        for inputs, labels in checked_batches(loader, None):
            logits = last_logits(network, named_tensors(network, inputs))
            right += int((logits.argmax(1).numpy(force=True) == labels).sum())
            count += len(labels)
            seen.update(labels.tolist())
    if not count:
        raise InputError("the loader gave no batch; it is empty, or an iterator that was already used up")
    return _Rights(right, count, max(seen.values()))


@dataclass(frozen=True)
class _Timed:
    """Latency of one input, the width of the middle half of its turns, and the bytes of what was exported."""

    latency_ms: float | None = None
    spread_ms: float | None = None
    exported_bytes: int | None = None


def _latencies(networks: Sequence[nn.Module], example_inputs: Batch, engine: str, precision: str) -> list[_Timed]:
    """Of each network, in turns; nothing where it cannot be exported."""
    with tempfile.TemporaryDirectory(prefix="dynamic-measure-") as folder, ExitStack() as owned:
        runs: list[Callable[[], object] | None] = []
        for number, network in enumerate(networks):
            if other_floats(network) is not None:  # no engine takes it
                runs.append(None)
                continue
            try:
                runs.append(_runnable(network, Path(folder) / str(number), example_inputs, engine, precision, owned))
            except EngineError:  # torch cannot export it: then no engine runs it either
                runs.append(None)
        took = turns_ms(runs)
        sizes = [_exported_bytes(Path(folder) / str(number)) for number in range(len(networks))]
    return [
        _Timed(statistics.median(times), float(np.subtract(*np.percentile(times, [75, 25]))), size)
        if times
        else _Timed()
        for times, size in zip(took, sizes, strict=True)
    ]


def _exported_bytes(folder: Path) -> int:
    """Bytes of the graphs and weights that ship; a graph without its head is a copy for other routes."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.stem.endswith("_body"))
    return sum(path.stat().st_size for path in files)


def turns_ms(runs: Sequence[Callable[[], object] | None]) -> list[list[float]]:
    """Milliseconds that a call of each takes, by turn; they take turns. Nothing for one that is None."""
    took: list[list[float]] = [[] for _ in runs]
    calls = [0 if run is None else max(1, round(_TURN_S / _once(run))) for run in runs]
    for turn in range(_TURNS + 1):
        for run, count, times in zip(runs, calls, took, strict=True):
            if run is None:
                continue
            begin = time.perf_counter()
            for _ in range(count):
                run()
            if turn:  # the first warms up
                times.append((time.perf_counter() - begin) / count * 1e3)
    return took


def _once(run: Callable[[], object]) -> float:
    """Seconds of one call, the second."""
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _runnable(
    network: nn.Module, folder: Path, example_inputs: Batch, engine: str, precision: str, owned: ExitStack
) -> Callable[[], object]:
    """The network on an engine, one input at a time, all exits run."""
    spec = export_stages(Cascade(network), folder, example_inputs, progress=False)
    opened = open_engine(engine, folder, spec, plain_combiner(spec), precision=precision)
    owned.callback(opened.close)
    named = named_tensors(network, example_inputs)
    return whole_pass(opened.stages, {name: tensor[:1].numpy(force=True) for name, tensor in named.items()})


def whole_pass(engine: StageEngine, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
    """A call runs `inputs` through every stage of a network, all exits on."""
    arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    executor, stages = engine.executor, len(engine.spec.stages)

    def run() -> None:
        carry = executor.start(arrays)
        for stage in range(stages):
            _, carry = executor.step(stage, carry, True)

    return run
