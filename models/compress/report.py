"""What a compressed network costs, beside the network that it was made from: the contract of this folder.

Every method has the form `compressed = method(network, example_inputs, ...)`. It does not change `network`.
`compressed.network` is a module of its own that takes the same inputs and returns logits of the same shape.
`compressed.report` says what was gained, what it cost, which parts were left alone, and why.
"""

import logging
import math
import statistics
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
from dynamic.engines.options import EngineName, Precision
from dynamic.engines.stage_loop import StageEngine
from dynamic.offline.batches import Batch, arguments, named_tensors
from dynamic.offline.build_steps.record_collection import plain_combiner
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
from dynamic.storage.temporary_files import TemporaryFolder

logger = logging.getLogger("dynamic")

USUAL_DROP = 0.02  # of accuracy: about what a method without fine-tuning loses
_CLEAR = 2.0  # standard errors
_TURNS, _TURN_S = 15, 0.02  # turns of each network, seconds of one


@dataclass(frozen=True)
class Measured:
    """Size and cost of a network.

    Args:
        parameters: Numbers in its weights. Shared weights count once.
        nonzero: How many of them are not 0.
        file_bytes: The stored weights, as safetensors or as the packed file of a method that packs them.
        macs: Multiply-adds of one input.
        latency_ms: Median of one input on the engine. None: not measured.
        accuracy: On `inputs` inputs. None: no data were given.
        chance: Share of the most frequent class among those inputs.
        inputs: How many inputs the accuracy is of.
        latency_spread_ms: Width of the middle half of the turns.
        exported_bytes: The ONNX files that ship. None: nothing was exported.

    Example:
        >>> from dynamic.models import compress
        >>> compress.Measured(10, 8, file_bytes=40, macs=20.0, accuracy=0.5, chance=0.5, inputs=100).at_chance
        True
    """

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
        """Whether the accuracy is not clearly above that of the most frequent class alone."""
        if self.accuracy is None or self.chance is None or not self.inputs:
            return False
        return Level("network", self.accuracy, self.chance, self.inputs).at_chance


@dataclass(frozen=True)
class Report:
    """Two networks beside each other, before and after a method.

    Args:
        method: What was done, in words.
        before: The network that was given.
        after: The network that was made.
        left_alone: Name of a part -> why the method left it alone.
        facts: What else the method reports, as JSON: ranks, sparsity of each layer and the like.
        usual_drop: Accuracy that this method usually loses before fine-tuning.
        notes: What the figures do not show.
        same_work: Whether an engine does the same arithmetic for both networks. A difference in latency is then noise.

    Example:
        >>> from dynamic.models import compress
        >>> before = compress.Measured(10, 10, file_bytes=40, macs=20.0, accuracy=0.9, chance=0.5, inputs=400)
        >>> after = compress.Measured(5, 5, file_bytes=20, macs=10.0, accuracy=0.7, chance=0.5, inputs=400)
        >>> print(compress.Report("by hand", before, after=after).warnings[0])
        accuracy fell by 20.0 points, more than the 2 that are usual here: remove less, or fine-tune (dynamic.fit)
    """

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
        """An accuracy at chance, or a loss of accuracy beyond the usual one."""
        before, after = self.before, self.after
        if before.accuracy is None or after.accuracy is None:
            return ()
        remedy = "remove less, or fine-tune (dynamic.fit)"
        if after.at_chance and not before.at_chance:
            return (
                f"accuracy {after.accuracy:.4f} is at chance, since the most frequent class is {after.chance:.4f} of "
                f"{after.inputs} inputs: {remedy}",
            )
        loss = before.accuracy - after.accuracy
        variance = sum(m.accuracy * (1 - m.accuracy) for m in (before, after) if m.accuracy is not None)
        if loss > self.usual_drop + _CLEAR * math.sqrt(variance / (after.inputs or 1)):
            return (
                f"accuracy fell by {100 * loss:.1f} points, more than the {100 * self.usual_drop:g} that are usual "
                f"here: {remedy}",
            )
        return ()

    def _latency(self) -> str | None:
        """The line on latency. A difference within the spread is not called a gain."""
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
    """A network that was made from another, and its report.

    Args:
        network: The new network.
        report: Its size and cost beside those of the other.

    Example:
        >>> from dynamic.models import compress
        >>> compressed = compress.prune_weights(large, torch.zeros(2, 12), amount=0.5, latency=False)
        >>> compressed.network is large
        False
    """

    network: nn.Module
    report: Report


def copied(network: nn.Module, *, computed: bool = True) -> nn.Module:
    """A deep copy. Without `computed`, weights under `weight_norm` or a mask become ordinary weights of their value."""
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
    """Measure both networks in turns, and log the warnings. `file_bytes` is the size of a packed file."""
    first, second = measure([before, after], example_inputs, eval_loader=eval_loader, latency=latency)
    if file_bytes is not None:
        second = replace(second, file_bytes=file_bytes)
    result = Report(
        method,
        first,
        after=second,
        left_alone=dict(left_alone or {}),
        facts=dict(facts or {}),
        usual_drop=usual_drop,
        notes=tuple(notes),
        same_work=same_work,
    )
    for warning in result.warnings:
        logger.warning("%s: %s", method, warning)
    return result


def measure(
    networks: Sequence[nn.Module],
    example_inputs: Batch,
    *,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
    engine: EngineName = "onnxruntime",
    precision: Precision = "f32",
) -> list[Measured]:
    """Measure networks beside each other.

    Latency is the median of one input at a time, with all exits on. The networks take turns.

    Args:
        networks: The networks, all with the same inputs.
        example_inputs: A batch as the networks take it.
        eval_loader: `(inputs, labels [B])` for accuracy, which torch computes. It chooses nothing. None: no accuracy.
        latency: Whether latency is measured. It is None where a network cannot be exported.
        engine: The engine on which latency is measured.
        precision: Of the engine.

    Returns:
        Size and cost of each network.

    Raises:
        InputError: Inputs or data do not fit the networks.

    Example:
        >>> from dynamic.models import compress
        >>> first, second = compress.measure([small, large], torch.zeros(2, 12), eval_loader=eval_loader, latency=False)
        >>> first.macs, second.macs
        (48.0, 5120.0)
    """
    named = named_tensors(networks[0], example_inputs)
    one = {name: t[:1] for name, t in named.items()}
    timed = _latencies(networks, example_inputs, engine, precision) if latency else [_Timed()] * len(networks)
    measurements = []
    for network, timed_network in zip(networks, timed, strict=True):
        rights = None if eval_loader is None else _rights(network, eval_loader)
        with evaluating(network):
            macs = count_macs(network, *arguments(network, one)).total
        tensors = untied(network.state_dict())
        weights = untied(dict(network.named_parameters(remove_duplicate=False)))
        measurements.append(
            Measured(
                sum(p.numel() for p in weights.values()),
                sum(int(p.count_nonzero()) for p in weights.values()),
                file_bytes=sum(t.numel() * t.element_size() for t in tensors.values()),
                macs=macs,
                latency_ms=timed_network.latency_ms,
                accuracy=None if rights is None else rights.right / rights.count,
                chance=None if rights is None else rights.most_frequent / rights.count,
                inputs=None if rights is None else rights.count,
                latency_spread_ms=timed_network.spread_ms,
                exported_bytes=timed_network.exported_bytes,
            )
        )
    return measurements


def accuracy(network: nn.Module, eval_loader: Iterable[Any]) -> float:
    """Share of `eval_loader` for which the last logits of the network are right. InputError where it is empty."""
    rights = _rights(network, eval_loader)
    return rights.right / rights.count


@dataclass(frozen=True)
class _Rights:
    """How many of `count` inputs are `right`, and how many belong to the most frequent class."""

    right: int
    count: int
    most_frequent: int


def _rights(network: nn.Module, loader: Iterable[Any]) -> _Rights:
    right, count, per_class = 0, 0, Counter[int]()
    with evaluating(network), torch.no_grad():
        for inputs, labels in checked_batches(loader, None):
            logits = last_logits(network, named_tensors(network, inputs))
            right += int((logits.argmax(1).numpy(force=True) == labels).sum())
            count += len(labels)
            per_class.update(labels.tolist())
    if not count:
        raise InputError("the loader gave no batch: it is empty, or an iterator that was read before")
    return _Rights(right, count, max(per_class.values()))


@dataclass(frozen=True)
class _Timed:
    """Latency of one input, the width of the middle half of its turns, and the bytes that were exported."""

    latency_ms: float | None = None
    spread_ms: float | None = None
    exported_bytes: int | None = None


def _latencies(
    networks: Sequence[nn.Module], example_inputs: Batch, engine: EngineName, precision: Precision
) -> list[_Timed]:
    """Latency of each network, in turns. Empty where it cannot be exported."""
    with TemporaryFolder("measure") as folder, ExitStack() as owned:
        runs: list[Callable[[], object] | None] = []
        for number, network in enumerate(networks):
            if other_floats(network) is not None:  # no engine takes it
                runs.append(None)
                continue
            try:
                runs.append(_runnable(network, Path(folder) / str(number), example_inputs, engine, precision, owned))
            except EngineError:  # torch cannot export it, so no engine runs it
                runs.append(None)
        turns = turns_ms(runs)
        sizes = [_exported_bytes(Path(folder) / str(number)) for number in range(len(networks))]
    return [
        _Timed(statistics.median(times), float(np.subtract(*np.percentile(times, [75, 25]))), size)
        if times
        else _Timed()
        for times, size in zip(turns, sizes, strict=True)
    ]


def _exported_bytes(folder: Path) -> int:
    """Bytes of the graphs and weights that ship. A graph without its head is a copy for other routes."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.stem.endswith("_body"))
    return sum(path.stat().st_size for path in files)


def turns_ms(runs: Sequence[Callable[[], object] | None]) -> list[list[float]]:
    """Milliseconds that a call of each takes, by turn. The calls take turns. Empty for None."""
    turns: list[list[float]] = [[] for _ in runs]
    calls = [0 if run is None else max(1, round(_TURN_S / _once(run))) for run in runs]
    for turn in range(_TURNS + 1):
        for run, count, times in zip(runs, calls, turns, strict=True):
            if run is None:
                continue
            begin = time.perf_counter()
            for _ in range(count):
                run()
            if turn:  # the first warms up
                times.append((time.perf_counter() - begin) / count * 1e3)
    return turns


def _once(run: Callable[[], object]) -> float:
    """Seconds of the second call."""
    run()
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def _runnable(
    network: nn.Module, folder: Path, example_inputs: Batch, engine: EngineName, precision: Precision, owned: ExitStack
) -> Callable[[], object]:
    """A call that runs the network on an engine, one input at a time, with all exits on."""
    spec = export_stages(Cascade(network), folder, example_inputs, progress=False)
    opened = open_engine(engine, folder, spec, plain_combiner(spec), precision=precision)
    owned.callback(opened.close)
    named = named_tensors(network, example_inputs)
    return whole_pass(opened.stages, {name: tensor[:1].numpy(force=True) for name, tensor in named.items()})


def whole_pass(engine: StageEngine, inputs: Mapping[str, NDArray[Any]]) -> Callable[[], object]:
    """A call that runs `inputs` through every stage of a network, with all exits on."""
    arrays = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
    executor, stages = engine.executor, len(engine.spec.stages)

    def run() -> None:
        carry = executor.start(arrays)
        for stage in range(stages):
            _, carry = executor.step(stage, carry, True)

    return run
