"""OpenVINO on the CPU: one compiled model a stage, or one for the whole cascade, in bf16 where the processor has it."""

import contextlib
import functools
import gc
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import Array, CascadeSpec, Output, graph_file
from dynamic.engines.forking import forget_after_fork
from dynamic.engines.memory import available_cores, buffer_depth, trim_memory
from dynamic.engines.model_files.graph_files import BundleFiles, Held
from dynamic.policies.errors import EngineError

_COPIED_BYTES = 1 << 16  # of an input: more is read where it lies


def new_core() -> Any:
    """An `openvino.Core` whose CPU plugin is loaded. It may be destroyed on any thread, in any order.

    The plugin gives the thread that loads it an alternate signal stack. The thread that destroys the core gets the
    stack that was there before, which may be freed memory by then. The next signal, Ctrl-C for one, then ends the
    process (OpenVINO 2026.4). So the plugin is loaded on a thread that ends right away.

    Raises EngineError where OpenVINO does not load, or no thread can be started.
    """
    import openvino

    core: Any = None
    failure: Exception | str = "without a reason"

    def load() -> None:
        nonlocal core, failure
        try:
            new = openvino.Core()
            # a file that is mapped and overwritten in place would change the answers of a loaded model
            new.set_property({"ENABLE_MMAP": "NO"})
            new.get_property("CPU", "FULL_DEVICE_NAME")  # loads the plugin
            core = new
        except Exception as error:
            failure = error

    try:
        thread = threading.Thread(target=load, name="dynamic-openvino-core")
        thread.start()
        thread.join()
    except RuntimeError as error:  # no thread can be started
        failure = error
    if core is None:
        raise EngineError(f"OpenVINO does not start: {failure}")
    _clear_before_forks()
    return core


def computes_bf16(core: Any = None) -> bool:
    """Whether OpenVINO computes in bf16 on this processor."""
    return "BF16" in (core or new_core()).get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@functools.cache
def _clear_before_forks() -> None:
    """From now on, no child inherits the idle threads of OpenVINO.

    OpenVINO keeps the threads of a dropped model for the next one. In a child they do not exist, and the next model
    would wait for them for ever. A core that is destroyed clears the list. Until the fork is done, no model may be
    dropped by the collection of garbage: its threads would come to the list again.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_clear, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


_forks = 0  # that threads are about to make
_collects_garbage = True  # before the first of them


def _clear() -> None:
    global _forks, _collects_garbage
    if not _forks:
        _collects_garbage = gc.isenabled()
    _forks += 1
    gc.disable()
    with contextlib.suppress(Exception):  # the fork happens anyway
        new_core()


def _after_fork() -> None:
    global _forks
    if not _forks:  # another thread was in a fork when this was registered
        return
    _forks -= 1
    if not _forks and _collects_garbage:
        gc.enable()


def _after_fork_in_child() -> None:
    global _forks
    _forks = min(_forks, 1)  # a child has one thread
    _after_fork()


class Models:
    """Compiled models by file, made on demand. Each thread has its own inference requests.

    In bf16 scores and labels differ from f32, so a bundle is calibrated on the precision that ships.

    Args:
        folder: The folder of the files.
        threads: Threads of each inference. None: the cores that this process may use.
        precision: "f32", or "bf16" where the processor has it.
        hashes: SHA-256 of the files, checked whenever one is loaded. None: not checked.
        held: The same files, open.

    Raises:
        EngineError: The processor does not compute in bf16.
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None,
        precision: str,
        hashes: Mapping[str, str] | None = None,
        held: Held | None = None,
    ) -> None:
        self.threads = threads or available_cores()
        self._core: Any = None  # until it is needed, in the process that needs it
        if precision == "bf16":
            self._core = new_core()
            if not computes_bf16(self._core):
                raise EngineError("this processor does not compute in bf16: use precision='f32'")
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(self.threads),
            "INFERENCE_PRECISION_HINT": precision,
        }
        self._files = BundleFiles(folder, hashes, held)
        self._compiled: dict[str, Any] = {}  # file -> compiled model
        self._lock = threading.RLock()
        self._local = threading.local()
        self._drops = 0  # how often models were dropped: then each thread checks its requests
        forget_after_fork(self)

    def __contains__(self, file: str) -> bool:
        return file in self._compiled

    def run(self, file: str, what: str, arrays: Sequence[Array]) -> list[Array]:
        """Outputs of one inference. They belong to this thread's request, whose next inference overwrites them.

        Raises EngineError with `what` the file is where OpenVINO fails.
        """
        own = self._request(file, what)
        try:
            for i, array in enumerate(arrays):
                own.set_input(i, array)
            # 41 us less than `output_tensors`. Without arguments: its own way to hand arrays over takes twice as long
            return list(own.request.infer(None, share_outputs=True).values())
        except Exception as error:  # OpenVINO raises plain RuntimeErrors and classes of its own
            raise EngineError(f"OpenVINO failed in {what}: {error}") from error

    def load(self, file: str, what: str) -> Any:
        """The compiled model of a file. Raises EngineError with `what` it is where it does not load."""
        with self._lock:
            if file not in self._compiled:
                try:
                    self._core = self._core or new_core()
                    import openvino

                    self._tensor = openvino.Tensor
                    self._compiled[file] = self._files.load(
                        file, lambda path: self._core.compile_model(str(path), "CPU", self._options)
                    )
                except EngineError:
                    self._compiled.pop(file, None)
                    raise
                except Exception as error:
                    raise EngineError(f"OpenVINO cannot load {what} from {file}: {error}") from error
            return self._compiled[file]

    def drop(self, unwanted: Callable[[str], bool]) -> bool:
        """Drop models by file and return the freed memory. Returns whether there were any.

        A thread that used them drops its requests later.
        """
        with self._lock:
            remaining = {file: model for file, model in self._compiled.items() if not unwanted(file)}
            dropped, self._compiled = len(self._compiled) > len(remaining), remaining
            self._drops += dropped
        if dropped:
            self._own_requests()
            trim_memory(collect=False)
        return dropped

    def forget(self) -> Any:
        """All models, to be kept unused."""
        lost = (self._core, self._compiled, self._local)
        self._core, self._compiled = None, {}  # a core starts threads: not while the process still forks
        self._lock, self._local = threading.RLock(), threading.local()
        return lost

    def _own_requests(self) -> dict[tuple[str, int], "InferenceRequest"]:
        """This thread's requests by file and depth. Those of dropped models are removed."""
        drops = self._drops  # before the check: a drop during it counts next time
        requests: dict[tuple[str, int], InferenceRequest] = getattr(self._local, "requests", {})
        requests = {key: own for key, own in requests.items() if self._compiled.get(key[0]) is own.model}
        self._local.requests, self._local.drops = requests, drops
        return requests

    def _request(self, file: str, what: str) -> "InferenceRequest":
        local = self._local
        requests = local.requests if getattr(local, "drops", -1) == self._drops else self._own_requests()
        key = file, buffer_depth()
        own: InferenceRequest | None = requests.get(key)
        if own is None:
            model = self.load(file, what)
            own = requests[key] = InferenceRequest(model, self._tensor)
        return own


class InferenceRequest:
    """An inference request of one thread, with its model.

    Args:
        model: The compiled model.
        tensor: `openvino.Tensor`.
    """

    __slots__ = ("_buffers", "_tensor", "model", "request")

    def __init__(self, model: Any, tensor: Any) -> None:
        self.model, self.request = model, model.create_infer_request()
        self._tensor = tensor
        self._buffers: dict[int, Array] = {}  # that the request reads, by input

    def set_input(self, i: int, array: Array) -> None:
        """Let input `i` be an array. A small one is copied: another tensor takes 40 us where caches are cold."""
        buffer = self._buffers.get(i)
        if buffer is not None and buffer.shape == array.shape and buffer.dtype == array.dtype:
            buffer[...] = array
            return
        self._buffers.pop(i, None)  # first: an interrupt must not leave one that the request does not read
        is_small = array.nbytes <= _COPIED_BYTES
        if is_small or not array.flags.writeable:  # OpenVINO shares no other memory
            array = array.copy()
        self.request.set_input_tensor(i, self._tensor(array, shared_memory=True))
        if is_small:
            self._buffers[i] = array


class OpenVinoExecutor:
    """Stages as OpenVINO models. See `Models` for the options."""

    name = "openvino"

    def __init__(
        self,
        folder: Path,
        spec: CascadeSpec,
        threads: int | None = None,
        precision: str = "f32",
        hashes: Mapping[str, str] | None = None,
        held: Held | None = None,
    ) -> None:
        self._models = Models(folder, threads, precision, hashes, held)
        self.precision, self.threads = precision, self._models.threads
        self._spec = spec

    def load(self, backbones: Sequence[int]) -> None:
        """Compile the models of these backbones, heads included."""
        for stage in self._spec.stages:
            if stage.backbone in backbones:
                self._models.load(stage.graph, f"stage {stage.name!r}")

    def unload(self, backbones: Sequence[int]) -> bool:
        """Drop the models of these backbones and free their memory. Returns whether there were any."""
        files = {
            f for stage in self._spec.stages if stage.backbone in backbones for f in (stage.graph, stage.body_graph)
        }
        return self._models.drop(files.__contains__)

    def loaded(self) -> frozenset[int]:
        """The backbones whose stages all have a model."""
        missing = {s.backbone for s in self._spec.stages if s.graph not in self._models}
        return frozenset(self._spec.backbones) - missing

    def start(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The inputs in the cascade's order, each in one piece of memory."""
        return [np.ascontiguousarray(inputs[spec.name]) for spec in self._spec.inputs]

    def step(self, stage: int, carry: list[Array], head: bool) -> tuple[NDArray[np.float32] | None, list[Array]]:
        """Run one stage. Raises EngineError with the stage's name where OpenVINO fails."""
        spec = self._spec.stages[stage]
        file = spec.graph if head else spec.body_graph
        assert file is not None, "the last stage of a backbone always runs its head"
        outputs = self._models.run(file, f"stage {spec.name!r}", carry)
        return (outputs[0].copy(), outputs[1:]) if head else (None, outputs)

    def keep(self, carry: list[Array], rows: NDArray[np.intp]) -> list[Array]:
        """The carry of these rows alone."""
        return [array[rows] for array in carry]

    def to_arrays(self, carry: list[Array]) -> list[Array]:
        """Copies: its own buffers are overwritten."""
        return [array.copy() for array in carry]

    def from_arrays(self, arrays: Sequence[Array]) -> list[Array]:
        """The arrays, each in one piece of memory."""
        return [np.ascontiguousarray(array) for array in arrays]

    def close(self) -> None:
        """Drop every model."""
        self.unload(self._spec.backbones)


class OpenVinoGraph:
    """The whole cascade as one model for single inputs and one for batches. See `Models` for the options."""

    def __init__(
        self,
        folder: Path,
        spec: CascadeSpec,
        threads: int | None = None,
        precision: str = "f32",
        hashes: Mapping[str, str] | None = None,
        held: Held | None = None,
    ) -> None:
        self._models = Models(folder, threads, precision, hashes, held)
        self._spec, self._names = spec, [i.name for i in spec.inputs]

    def ready(self, rows: int) -> bool:
        """Whether the model for this number of rows is loaded."""
        return graph_file(rows) in self._models

    def load(self, rows: int) -> None:
        """Compile the model for this number of rows, with the branches that hold its stages.

        OpenVINO compiles a branch of an `If` when an inference first enters it: 180 ms in the middle of a request for
        MiniLM-L6. So one inference runs here that no exit ends.
        """
        if self.ready(rows):
            return
        self._models.load(graph_file(rows), "the cascade")
        batch = min(rows, 2)
        inputs = {i.name: np.ones((batch, *i.shape), i.dtype) for i in self._spec.inputs}
        nobody_exits = np.full(len(self._spec.stages) - 1, np.finfo(np.float32).max, np.float32)
        with contextlib.suppress(EngineError):  # what these inputs do not stand, a request may
            self.run(inputs, nobody_exits, rows)

    def run(self, inputs: Mapping[str, Array], thresholds: NDArray[np.float32], rows: int) -> Output:
        """Run the cascade. Raises EngineError where OpenVINO fails."""
        arrays = [np.ascontiguousarray(inputs[name]) for name in self._names]
        if len(thresholds):
            arrays.append(thresholds)
        logits, stage, score = self._models.run(graph_file(rows), "the cascade's graph", arrays)
        return Output(logits.copy(), stage.copy(), score.copy())

    def close(self) -> bool:
        """Drop the models. Returns whether there were any."""
        return self._models.drop(lambda _: True)
