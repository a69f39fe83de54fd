"""ONNX Runtime on the CPU: one session a stage, or one for the whole cascade."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import OUTPUTS, THRESHOLDS, Array, CascadeSpec, Output, graph_file
from dynamic.engines.forking import forget_after_fork
from dynamic.engines.memory import available_cores, gives_back, trim_memory
from dynamic.engines.model_files.graph_files import BundleFiles, Held
from dynamic.engines.options import Idle
from dynamic.policies.errors import EngineError

_LOOK_S = 1.0  # between checks: each takes 3 us a file, and 100 where the caches are cold


class Sessions:
    """Inference sessions by file, created on demand in the process that needs them.

    ONNX Runtime's own spinning continues for milliseconds, then against the threads of the next stage. Where several
    sessions serve one request, threads therefore spin for microseconds and never longer than their session runs.
    ResNet-20, 32 and 56 stage by stage on two cores took 1.74 ms a request with its own spinning, 1.06 sleeping, 0.73
    like that.

    Args:
        folder: The folder of the files.
        threads: Threads of each operator. None: the cores that this process may use.
        idle: See `OnnxRuntimeOptions`.
        rivals: Whether several sessions, each with its own threads, serve one request.
        hashes: SHA-256 of the files, checked whenever one is loaded. None: not checked.
        held: The same files, open.
    """

    def __init__(
        self,
        folder: Path,
        threads: int | None,
        idle: Idle,
        rivals: bool,
        hashes: Mapping[str, str] | None = None,
        held: Held | None = None,
    ) -> None:
        self.threads = threads or available_cores()
        self._files, self._idle, self._rivals = BundleFiles(folder, hashes, held), idle, rivals
        self._open: dict[str, Any] = {}  # file -> session
        self._look_s: dict[str, float] = {}  # file -> when to look whether files of its session were overwritten
        self._lock = threading.RLock()
        forget_after_fork(self)

    def __contains__(self, file: str) -> bool:
        return file in self._open

    def __call__(self, file: str, what: str) -> Any:
        """The session of a file. Raises EngineError with `what` it is where it does not load."""
        session = self._open.get(file)
        if session is not None:
            now_s = time.monotonic()
            # ONNX Runtime maps weights: overwriting them changes this session
            if now_s >= self._look_s.get(file, 0.0):
                self._look_s[file] = now_s + _LOOK_S
                self._look(file)
        else:
            with self._lock:
                session = self._open.get(file)
                if session is None:
                    session = self._open[file] = self._load(file, what)
        return session

    def _look(self, file: str) -> None:
        """Drop a session whose files were overwritten in place, and raise EngineError."""
        try:
            self._files.check_loaded(file)
        except EngineError:
            self.drop(file.__eq__)
            raise

    def drop(self, unwanted: Callable[[str], bool]) -> bool:
        """Drop sessions by file and return the freed memory to the system. Returns whether there were any."""
        with self._lock:
            before = len(self._open)
            self._open = {file: session for file, session in list(self._open.items()) if not unwanted(file)}
            dropped = before > len(self._open)
        if dropped:
            trim_memory(collect=False)
        return dropped

    def forget(self) -> Any:
        """All sessions, to be kept unused."""
        lost, self._open, self._lock = self._open, {}, threading.RLock()
        return lost

    def _load(self, file: str, what: str) -> Any:
        # not before: where a parent has imported it, a forked child that ends by sys.exit hangs
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(f"ONNX Runtime does not import ({error}): pip install dynamic-inference again") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # its default on x86. On ARM it is 1, and convolutions before a sum then run in float32: other answers, slower
        options.add_session_config_entry("session.qdqisint8allowed", "0")
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._idle == "spin" else "0")
        if self._idle == "spin" and self._rivals:
            options.add_session_config_entry("session.force_spinning_stop", "1")  # once the session is done
            options.add_session_config_entry("session.intra_op.spin_duration_us", "20")  # ignored by older versions
        try:
            return self._files.load(
                file,
                lambda path: onnxruntime.InferenceSession(
                    str(path),
                    options,
                    providers=["CPUExecutionProvider"],
                    enable_fallback=0,  # it prints what failed, and tries the same provider again
                ),
            )
        except EngineError:
            raise
        except Exception as error:  # ONNX Runtime raises classes of its own that share no root
            raise EngineError(f"ONNX Runtime cannot load {what} from {file}: {error}") from error


def _run_options() -> Any:
    """Options by which a run ends without the memory that it took, or None."""
    if not gives_back():
        return None
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


class OnnxRuntimeExecutor:
    """Stages as ONNX Runtime sessions. See `Sessions` for the options."""

    name = "onnxruntime"
    precision = "f32"

    def __init__(
        self,
        folder: Path,
        spec: CascadeSpec,
        threads: int | None = None,
        idle: Idle = "sleep",
        hashes: Mapping[str, str] | None = None,
        held: Held | None = None,
    ) -> None:
        self._sessions = Sessions(folder, threads, idle, rivals=True, hashes=hashes, held=held)
        self.threads = self._sessions.threads
        self._spec = spec
        names = ([i.name for i in spec.inputs], [f"carry_{i}" for i in range(max(s.carry for s in spec.stages))])
        of = spec.backbone
        self._files, self._takes, self._gives = [], [], []
        for s, stage in enumerate(spec.stages):
            first = s == 0 or of[s - 1] != of[s]
            self._takes.append(names[0] if first else names[1][: spec.stages[s - 1].carry])
            self._gives.append(["logits", *(f"next_{i}" for i in range(stage.carry))])
            self._files.append((stage.body_graph, stage.graph))

    def load(self, backbones: Sequence[int]) -> None:
        """Create the sessions of these backbones, heads included."""
        for stage in self._spec.stages:
            if stage.backbone in backbones:
                self._sessions(stage.graph, f"stage {stage.name!r}")

    def unload(self, backbones: Sequence[int]) -> bool:
        """Drop the sessions of these backbones and free their memory. Returns whether there were any."""
        files = {
            f for stage in self._spec.stages if stage.backbone in backbones for f in (stage.graph, stage.body_graph)
        }
        return self._sessions.drop(files.__contains__)

    def loaded(self) -> frozenset[int]:
        """The backbones whose stages all have a session."""
        missing = {s.backbone for s in self._spec.stages if s.graph not in self._sessions}
        return frozenset(self._spec.backbones) - missing

    def start(self, inputs: Mapping[str, Array]) -> list[Array]:
        """The inputs in the cascade's order."""
        return [inputs[spec.name] for spec in self._spec.inputs]

    def step(self, stage: int, carry: list[Array], head: bool) -> tuple[NDArray[np.float32] | None, list[Array]]:
        """Run one stage. Raises EngineError with the stage's name where ONNX Runtime fails."""
        file = self._files[stage][head]
        assert file is not None, "the last stage of a backbone always runs its head"
        session = self._sessions(file, f"stage {self._spec.stages[stage].name!r}")
        gives = self._gives[stage]
        try:
            feed = dict(zip(self._takes[stage], carry, strict=True))
            outputs = session.run(gives if head else gives[1:], feed, _run_options())
        except Exception as error:  # see Sessions
            raise EngineError(f"ONNX Runtime failed in stage {self._spec.stages[stage].name!r}: {error}") from error
        return (outputs[0], outputs[1:]) if head else (None, outputs)

    def keep(self, carry: list[Array], rows: NDArray[np.intp]) -> list[Array]:
        """The carry of these rows alone."""
        return [array[rows] for array in carry]

    def to_arrays(self, carry: list[Array]) -> list[Array]:
        """The same arrays: each run returns others."""
        return list(carry)

    def from_arrays(self, arrays: Sequence[Array]) -> list[Array]:
        """The arrays, each in one piece of memory."""
        return [np.ascontiguousarray(array) for array in arrays]

    def close(self) -> None:
        """Drop every session."""
        self.unload(self._spec.backbones)


class OnnxRuntimeGraph:
    """The whole cascade as one session for single inputs and one for batches. See `Sessions` for the options."""

    def __init__(
        self,
        folder: Path,
        spec: CascadeSpec,
        threads: int | None = None,
        idle: Idle = "sleep",
        hashes: Mapping[str, str] | None = None,
        held: Held | None = None,
    ) -> None:
        self._sessions = Sessions(folder, threads, idle, rivals=False, hashes=hashes, held=held)

    def ready(self, rows: int) -> bool:
        """Whether the session for this number of rows is loaded."""
        return graph_file(rows) in self._sessions

    def load(self, rows: int) -> None:
        """Create the session for this number of rows."""
        self._sessions(graph_file(rows), "the cascade")

    def run(self, inputs: Mapping[str, Array], thresholds: NDArray[np.float32], rows: int) -> Output:
        """Run the cascade. Raises EngineError where ONNX Runtime fails."""
        session = self._sessions(graph_file(rows), "the cascade")
        feed = dict(inputs)
        if len(thresholds):
            feed[THRESHOLDS] = thresholds
        try:
            # outputs bound to buffers that stay save 2 us, and nothing where caches are cold
            return Output(*session.run(OUTPUTS, feed, _run_options()))
        except Exception as error:  # see Sessions
            raise EngineError(f"ONNX Runtime failed in the cascade's graph: {error}") from error

    def close(self) -> bool:
        """Drop the sessions. Returns whether there were any."""
        return self._sessions.drop(lambda _: True)
