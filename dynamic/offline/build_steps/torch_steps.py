"""The steps of `build` for torch networks, with ONNX files among them or not."""

import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.offline.batches import Batch
from dynamic.offline.build_steps.network_names import check_not_torch
from dynamic.offline.build_steps.token_check import check_tokens, with_ids
from dynamic.offline.calibration import arrays_of, check_first, check_probabilities_of
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.checkpoints import write_whole
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_batches import ObservedLoader
from dynamic.offline.networks.used_data import batch_hash, check_fresh
from dynamic.offline.onnx_export.parity import check_parity
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.onnx_files.class_names import class_names
from dynamic.offline.onnx_files.stages.onnx_network import (
    OnnxNetwork,
    names_of_files,
    sessions_freed,
)
from dynamic.policies.errors import EngineError, InputError
from dynamic.policies.records import Records

logger = logging.getLogger("dynamic")


class TorchSteps:
    """See `BuildSteps`."""

    def __init__(self, cascade: Cascade) -> None:
        self.cascade = cascade
        self.names, self.combine = cascade.names, cascade.combine
        self._files = [n.model if isinstance(n, OnnxNetwork) else None for n in cascade.networks]
        # engine "torch" runs no files, so a bundle that has some need not hold their graphs
        self.modules = None if any(self._files) else cascade

    def fingerprint(self) -> str:
        """See `BuildSteps`."""
        return self.cascade.fingerprint()

    def check_engine(self, engine: str) -> None:
        """See `BuildSteps`."""
        check_not_torch(names_of_files(list(self.cascade.networks), self.names), engine)

    def watch(self, batches: Iterable[Any], example: Batch, allow_reuse: bool) -> Iterable[Any]:
        """See `BuildSteps`."""
        if allow_reuse:
            return batches
        networks = self.cascade.networks
        watched = ObservedLoader(batches, lambda inputs: check_fresh(networks, [batch_hash(inputs)], False))
        check_fresh(networks, [batch_hash(example)], False)
        return watched

    def arrays(self, batch: Batch) -> dict[str, Array]:
        """See `BuildSteps`."""
        return arrays_of(self.cascade, batch)

    def describe(self, preprocess: Any, example: Batch, labels: NDArray[np.int64] | None) -> CascadeSpec:
        """See `BuildSteps`."""
        check_tokens(preprocess, self.cascade, example)
        check_first(self.cascade, example, labels)
        return describe(self.cascade, example)

    def class_names(self, classes: Sequence[str] | None) -> Sequence[str] | None:
        """See `BuildSteps`."""
        return class_names([file for file in self._files if file is not None], classes)

    @contextmanager
    def running(self) -> Iterator[None]:
        """See `BuildSteps`. The files' own sessions are freed at the end."""
        with sessions_freed(self.cascade.networks), evaluating(self.cascade):
            yield

    def export(self, folder: Path, example: Batch, engine: str, progress: bool | None) -> tuple[CascadeSpec, bool]:
        """See `BuildSteps`. Engine "torch" does without graphs."""
        return _exported(self.cascade, folder, example, engine, progress)

    def with_limits(self, spec: CascadeSpec, preprocess: Any, example: Batch) -> CascadeSpec:
        """See `BuildSteps`. A tokenizer has limits of its own."""
        return spec if isinstance(preprocess, TextPreprocess) else with_ids(spec, self.cascade, example)

    def stages(self, spec: CascadeSpec) -> Sequence[Any]:
        """See `BuildSteps`."""
        return self.cascade.stages_for([i.name for i in spec.inputs])

    def check_parity(self, engine: CascadeEngine, spec: CascadeSpec, example: Batch) -> None:
        """See `BuildSteps`."""
        check_parity(self.cascade, engine, spec, example)

    def check_records(self, records: Records) -> None:
        """See `BuildSteps`."""
        check_probabilities_of(self.cascade, records)

    def save_weights(self, folder: Path) -> None:
        """See `BuildSteps`."""
        folder.mkdir()
        written: set[int] = set()
        for name, network in zip(self.names, self.cascade.networks, strict=True):
            if not isinstance(network, OnnxNetwork):  # whose weights are in its graph
                _save_weights(network, folder / f"{_file_name(name)}.safetensors", written)


def _exported(
    cascade: Cascade, folder: Path, example: Batch, engine: str, progress: bool | None
) -> tuple[CascadeSpec, bool]:
    """The cascade's description, and whether its graphs lie in `folder`: engine "torch" does without."""
    try:
        return export_stages(cascade, folder, example, progress=progress), True
    except (EngineError, InputError) as error:
        if engine != "torch":
            raise
        spec = describe(cascade, example)  # where the networks are at fault, their own error comes
        shutil.rmtree(folder / "backbones", ignore_errors=True)
        logger.warning("the bundle is for engine 'torch' alone and is loaded with modules=...: %s", error)
        return spec, False


def _save_weights(network: nn.Module, path: Path, addresses: set[int]) -> None:
    """Write the tensors of a network whose memory is not at the `addresses` of those before, and add theirs."""
    # safetensors refuses tensors that share memory: tied weights are written once under their first name, and those
    # of several networks with the first
    tensors = {}
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() in addresses and tensor.numel():
            continue
        addresses.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    write_whole(tensors, path)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
