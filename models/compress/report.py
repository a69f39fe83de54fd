"""What a compressed network costs, beside the network it was made from: the contract of this folder.

Every method here has the form `compressed = method(network, example_inputs, ...)`: `network` is not touched,
`compressed.network` is a module of its own that takes the same inputs and gives logits of the same shape, and
`compressed.report` says what was gained, what it cost, and which parts were left alone, and why.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dynamic.engines.loop import StageEngine
from dynamic.engines.opening import open_engine
from dynamic.offline.calibration import plain_combiner
from dynamic.offline.cascade import Cascade
from dynamic.offline.checkpoints import untied
from dynamic.offline.compute import count_macs
from dynamic.offline.copying import deep_copy, plain
from dynamic.offline.exporting import export_stages
from dynamic.offline.features import checked_batches
from dynamic.offline.floats import other_floats
from dynamic.offline.inputs import Batch, arguments, named_tensors
from dynamic.offline.modes import evaluating
from dynamic.offline.rowwise import last_logits
from dynamic.policies.errors import EngineError, InputError

_TURNS, _TURN_S = 15, 0.02  # how often each network has its turn, and for how long


@dataclass(frozen=True)
class Measured:
    """A network's size and cost. `parameters`: numbers in its weights, each counted once where it is shared; `nonzero`
    of them; `file_bytes` as stored (float32 safetensors unless the method packs it); `macs`: multiply-adds an input;
    `latency_ms`: median of one input on ONNX Runtime, None where not measured; `accuracy`: None without data."""

    parameters: int
    nonzero: int
    file_bytes: int
    macs: float
    latency_ms: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Report:
    """`before` and `after`; `left_alone`: module or part -> why nothing was done there; `facts`: what else the method
    has to say (ranks, sparsity of each layer, ...), JSON."""

    method: str
    before: Measured
    after: Measured
    left_alone: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = [("parameters", "parameters", 1e3, "k"), ("nonzero", "nonzero", 1e3, "k")]
        rows += [("file", "file_bytes", 1e3, "kB"), ("multiply-adds", "macs", 1e6, "M")]
        lines = [self.method]
        for label, name, unit, suffix in rows:
            old, new = getattr(self.before, name), getattr(self.after, name)
            share = f"{new / old:8.1%}" if old else ""
            lines.append(f"  {label:14}{old / unit:12.1f} -> {new / unit:10.1f} {suffix:3}{share}")
        if self.before.latency_ms is not None and self.after.latency_ms is not None:
            share = f"{self.after.latency_ms / self.before.latency_ms:8.1%}"
            lines.append(f"  {'latency':14}{self.before.latency_ms:12.3f} -> {self.after.latency_ms:10.3f} ms {share}")
        if self.before.accuracy is not None and self.after.accuracy is not None:
            change = 100 * (self.after.accuracy - self.before.accuracy)
            lines.append(
                f"  {'accuracy':14}{self.before.accuracy:12.4f} -> {self.after.accuracy:10.4f}   {change:+.2f} points"
            )
        lines += [f"  left alone: {name} ({why})" for name, why in self.left_alone.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Compressed:
    """A network made from another, and what that did."""

    network: nn.Module
    report: Report


def copied(network: nn.Module, *, computed: bool = True) -> nn.Module:
    """A deep copy; without `computed`, weights that are computed, under `weight_norm` or a mask, are ordinary ones."""
    made = deep_copy(network)
    return made if computed else plain(made)


def report(
    method: str,
    before: nn.Module,
    after: nn.Module,
    example_inputs: Batch,
    data: Iterable[Any] | None = None,
    *,
    latency: bool = True,
    file_bytes: int | None = None,
    left_alone: Mapping[str, str] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> Report:
    """Measure both networks, taking turns. `data`: a loader of `(inputs, labels)` for accuracy; `file_bytes` of the
    packed file, where the method makes one."""
    first, second = measure([before, after], example_inputs, data, latency=latency)
    if file_bytes is not None:
        second = replace(second, file_bytes=file_bytes)
    return Report(method, first, second, dict(left_alone or {}), dict(facts or {}))


def measure(
    networks: Sequence[nn.Module],
    example_inputs: Batch,
    data: Iterable[Any] | None = None,
    *,
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
    times = _latencies(networks, example_inputs, engine, precision) if latency else [None] * len(networks)
    found = []
    for network, took in zip(networks, times, strict=True):
        with evaluating(network):
            macs = count_macs(network, *arguments(network, one)).total
        tensors = untied(network.state_dict())
        weights = untied(dict(network.named_parameters(remove_duplicate=False)))
        found.append(
            Measured(
                sum(p.numel() for p in weights.values()),
                sum(int(p.count_nonzero()) for p in weights.values()),
                sum(t.numel() * t.element_size() for t in tensors.values()),
                macs,
                took,
                None if data is None else accuracy(network, data),
            )
        )
    return found


def accuracy(network: nn.Module, data: Iterable[Any]) -> float:
    """Share of `data` that the network's own (last) answer has right. Raises InputError on an empty loader."""
    right = count = 0
    with evaluating(network), torch.no_grad():
        for inputs, labels in checked_batches(data, None):
            logits = last_logits(network, named_tensors(network, inputs))
            right += int((logits.argmax(1).numpy(force=True) == labels).sum())
            count += len(labels)
    if not count:
        raise InputError("the loader gave no batch; it is empty, or an iterator that was already used up")
    return right / count


def _latencies(networks: Sequence[nn.Module], example_inputs: Batch, engine: str, precision: str) -> list[float | None]:
    """Median ms of one input of each network, in turns."""
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
    return [statistics.median(times) if times else None for times in took]


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
