"""Networks beside each other on one engine: accuracy, latency and memory."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dynamic.bundle.bundle_writer import write
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import open_engine
from dynamic.engines.options import EngineName, Precision
from dynamic.engines.route_choice import CascadeEngine
from dynamic.models.compress.report import turns_ms, whole_pass
from dynamic.offline.batches import Batch, named_tensors
from dynamic.offline.build_steps.loaders import check_labels
from dynamic.offline.build_steps.record_collection import plain_combiner
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder
from dynamic.policies.certification.bounds import binomial_p
from dynamic.policies.errors import InputError
from dynamic.policies.ladder import Interval, OperatingPoint
from dynamic.policies.records import Records
from dynamic.profiling.stage_profile import profile
from dynamic.progress import size_of, track
from dynamic.storage.temporary_files import TemporaryFolder

Rights = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Entrant:
    """A network that is open on an engine. `once()` runs one input through it, with all exits on."""

    network: nn.Module
    folder: Path
    spec: CascadeSpec
    engine: CascadeEngine
    once: Callable[[], object]

    def answers(self, inputs: Batch) -> NDArray[np.float32]:
        """The last logits of the network `[B, C]`."""
        named = named_tensors(self.network, inputs)
        return self.engine.stages.all_logits({n: t.numpy(force=True) for n, t in named.items()})[:, -1]

    def memory_mb(self) -> float:
        """Memory that a process of its own needs to load and run this network.

        On engine "torch" it is the size of its tensors, each counted once.
        """
        if self.engine.name == "torch":
            return tensors_mb([self.network])
        self._write_bundle()
        return profile(self.engine, self.folder, batch=(1,), seconds=0.0, progress=False).memory_mb[0]

    def _write_bundle(self) -> None:
        """Write a bundle of the network alone around its graphs, for that process."""
        stages = len(self.spec.stages)
        alone = OperatingPoint(
            "reference",
            thresholds=(np.inf,) * (stages - 1),
            backbones=(0,),
            target=0.0,
            risk=0.0,
            bound=None,
            delta=None,
            n=0,
            accuracy=Interval(0.0, 0.0, 1.0),
            shares=(0.0,) * (stages - 1) + (1.0,),
            drop=0.0,
        )
        names = tuple(s.name for s in self.spec.stages)
        macs, heads = tuple(s.macs for s in self.spec.stages), tuple(s.head_macs for s in self.spec.stages)
        nothing = np.zeros((1, stages, self.spec.classes), np.float32)
        records = Records(nothing, None, None, np.zeros(1, np.int8), self.spec.backbone, macs, heads, names, "")
        ladder = replace(plain_ladder(self.spec, "last"), points=(alone,))
        write(self.folder, self.spec, ladder, records, self.engine.name, self.engine.precision, "", None, None, None)


@contextmanager
def open_on_engine(
    network: nn.Module, example_inputs: Batch, engine: EngineName, precision: Precision
) -> Iterator[Entrant]:
    """Open a network on an engine, in evaluation mode. EngineError where the engine cannot run it."""
    cascade = Cascade(network)
    with TemporaryFolder("family") as name, evaluating(cascade):
        folder = Path(name)
        if engine == "torch":
            spec = describe(cascade, example_inputs)
            stages = cascade.stages_for([i.name for i in spec.inputs])
        else:
            spec, stages = export_stages(cascade, folder, example_inputs, progress=False), None
        opened = open_engine(engine, folder, spec, plain_combiner(spec), stages, precision)
        try:
            named = named_tensors(network, example_inputs)
            once = whole_pass(opened.stages, {n: t[:1].numpy(force=True) for n, t in named.items()})
            yield Entrant(network, folder, spec, opened, once)
        finally:
            opened.close()


def right_answers(entrants: Sequence[Entrant], selection_loader: Iterable[Any], progress: bool | None = None) -> Rights:
    """Whether each network is right on each input `[K, N]`, all on one reading of the data. NaN is wrong.

    InputError on data without labels, without batches, or with labels that the networks have no class for.
    """
    parts: list[Rights] = []
    for inputs, labels in track(
        checked_batches(selection_loader, None), "selecting", size_of(selection_loader), progress
    ):
        check_labels(labels, entrants[0].spec.classes)
        logits = [entrant.answers(inputs) for entrant in entrants]
        parts.append(np.stack([(x.argmax(1) == labels) & np.isfinite(x).all(1) for x in logits]))
    if not parts:
        raise InputError("selection_loader gave no batch: it is empty, or an iterator that was read before")
    return np.concatenate(parts, axis=1)


def in_turns_ms(entrants: Sequence[Entrant]) -> NDArray[np.float64]:
    """Milliseconds of one input in each of T turns `[K, T]`."""
    return np.array(turns_ms([entrant.once for entrant in entrants]))


def no_less_accurate(first: Rights, second: Rights) -> float:
    """The chance that the network of `first [N]` is at least as accurate as that of `second [N]`, on the same inputs.

    Only inputs that one of the two alone has right count. The share of the first has a uniform prior, so its posterior
    is Beta(a + 1, b + 1). The upper half of that is a binomial tail.
    """
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    return binomial_p(only_first, only_first + only_second + 1, 0.5)


def tensors_mb(networks: Iterable[nn.Module]) -> float:
    """10^6 bytes of parameters and buffers. Shared memory counts once."""
    tensors = (t for network in networks for t in network.state_dict().values())
    pieces = {storage.data_ptr(): storage.nbytes() for storage in (t.untyped_storage() for t in tensors)}
    return float(sum(pieces.values())) / 1e6
