"""OpenVINO on the CPU, one compiled model a stage; bf16 where the processor computes in it."""

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec
from dynamic.engines.memory import available_cores, trim_memory
from dynamic.policies.errors import BudgetError, EngineError


class OpenVinoExecutor:
    """Stages as OpenVINO models, compiled when first wanted; each thread has its own inference requests.

    `threads` of each inference (None: the cores this process may use). `precision` "f32", or "bf16" where the
    processor has it: scores and labels then differ from f32, so a bundle is calibrated on the precision that ships.

    Raises EngineError on bf16 where the processor has none.
    """

    name = "openvino"

    def __init__(self, folder: Path, spec: CascadeSpec, threads: int | None = None, precision: str = "f32") -> None:
        import openvino

        if threads is not None and threads < 1:
            raise BudgetError(f"threads={threads} must be at least 1")
        self.precision = precision
        self.threads = threads or available_cores()
        self._core = openvino.Core()
        if precision == "bf16" and "BF16" not in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise EngineError("this processor does not compute in bf16; use precision='f32'")
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "INFERENCE_PRECISION_HINT": precision,
        }
        self._folder, self._spec = folder, spec
        self._compiled: dict[tuple[int, bool], Any] = {}  # (stage, with its head) -> compiled model
        self._lock = threading.Lock()
        self._requests = threading.local()
        self._unloads = 0  # how often models were dropped: tells each thread when to look through its requests

    def load(self, backbones: Sequence[int]) -> None:
        """Compile the models of these backbones, heads included."""
        for stage, spec in enumerate(self._spec.stages):
            if spec.backbone in backbones:
                self._model(stage, True)

    def unload(self, backbones: Sequence[int]) -> None:
        """Drop the models of these backbones and return the freed memory to the system.

        A thread that used them gives its requests back with its next call.
        """
        with self._lock:
            kept = {k: m for k, m in self._compiled.items() if self._spec.stages[k[0]].backbone not in backbones}
            dropped, self._compiled = len(self._compiled) > len(kept), kept
            self._unloads += dropped
        if dropped:
            self._own_requests()
            trim_memory()

    def loaded(self) -> frozenset[int]:
        """The backbones whose stages all have a model."""
        ready = {stage for stage, _ in tuple(self._compiled)}
        missing = {s.backbone for stage, s in enumerate(self._spec.stages) if stage not in ready}
        return frozenset(self._spec.backbones) - missing

    def start(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The inputs in the cascade's order, each in one piece of memory."""
        return [np.ascontiguousarray(inputs[spec.name]) for spec in self._spec.inputs]

    def step(self, stage: int, carry: list[Array], head: bool) -> tuple[NDArray[np.float32] | None, list[Array]]:
        """Run one stage; raises EngineError naming the stage when OpenVINO fails."""
        request = self._request(stage, head)
        try:
            # inputs are read where they lie; outputs belong to the request, so they are copied
            found = request.infer(dict(enumerate(carry)), share_inputs=True, share_outputs=True)
            arrays = [np.array(found[i]) for i in range(len(found))]
        except Exception as error:  # OpenVINO raises plain RuntimeErrors and classes of its own
            raise EngineError(f"OpenVINO failed in stage {self._spec.stages[stage].name!r}: {error}") from error
        return (arrays[0], arrays[1:]) if head else (None, arrays)

    def keep(self, carry: list[Array], rows: NDArray[np.intp]) -> list[Array]:
        """The carry of these rows alone."""
        return [array[rows] for array in carry]

    def close(self) -> None:
        """Drop every model."""
        self.unload(self._spec.backbones)

    def _own_requests(self) -> dict[tuple[int, bool], tuple[Any, Any]]:
        """This thread's requests by stage, with the model each is of; those of dropped models go."""
        found: dict[tuple[int, bool], tuple[Any, Any]] = getattr(self._requests, "found", {})
        found = {k: entry for k, entry in found.items() if self._compiled.get(k) is entry[0]}
        self._requests.found, self._requests.unloads = found, self._unloads
        return found

    def _request(self, stage: int, head: bool) -> Any:
        local = self._requests
        own = local.found if getattr(local, "unloads", -1) == self._unloads else self._own_requests()
        if (stage, head) not in own:
            model = self._model(stage, head)
            own[stage, head] = (model, model.create_infer_request())
        return own[stage, head][1]

    def _model(self, stage: int, head: bool) -> Any:
        with self._lock:
            if (stage, head) not in self._compiled:
                spec = self._spec.stages[stage]
                file = spec.graph if head else spec.body_graph
                assert file is not None, "the last stage of a backbone always runs its head"
                try:
                    self._compiled[stage, head] = self._core.compile_model(
                        str(self._folder / file), "CPU", self._options
                    )
                except Exception as error:
                    raise EngineError(f"OpenVINO cannot load stage {spec.name!r} from {file}: {error}") from error
            return self._compiled[stage, head]
