"""The process behind one contender of `alternating.py`: opens it, then runs blocks of inputs when told to.

It reads one line of JSON a turn and answers with one; in between it waits for the pipe and takes no CPU. torch is never
imported here. `alternating.py` starts it: python -m benchmarks.harness.alternating_worker JOB, the job as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.engines.contract import CascadeSpec, InputSpec, StageSpec
from dynamic.engines.engine_factory import open_engine
from dynamic.policies.ladder import Ladder
from dynamic.policies.scores import Combiner

NEVER = 1e-30  # drift_alpha
SMALL_BYTES = 1 << 16  # of an input
SPEC = "cascade.json"
UNSPLIT = "backbones/0_0.onnx"  # a plain network, exported: one stage, the whole of it
OWN = "own spin"  # ONNX Runtime's own waiting: spins for milliseconds after a call

Answer = tuple[NDArray[Any], int]  # logits [1, C], and the stage they come from
Run = Callable[[NDArray[np.float32], NDArray[np.float32] | None], Answer]


@dataclass(frozen=True)
class Setting:
    """How an engine runs. `idle` of ONNX Runtime's threads; `fixed`: an unsplit network compiled for one row alone."""

    threads: int
    idle: str = ""
    fixed: bool = False

    @property
    def name(self) -> str:
        """As tables print it."""
        words = [f"{self.threads} thread{'s' if self.threads > 1 else ''}", self.idle if self.threads > 1 else ""]
        return ", ".join(w for w in (*words, "fixed batch" if self.fixed else "") if w)


@dataclass(frozen=True)
class Job:
    """What a worker opens: the cascade in `folder` by a `route`, or with None the unsplit network there.

    `inputs`: an .npy file `[N, ...]`, an item is one row of it. With the route "run" the folder is a bundle, and
    `run(x)` of a runtime under `max_drop` is timed.
    """

    engine: str
    precision: str
    folder: str
    route: str | None
    setting: Setting
    inputs: str
    max_drop: float | None = None

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Job":
        """What `to_json` gave."""
        data = json.loads(line)
        return cls(**data | {"setting": Setting(**data["setting"])})


def keep_spec(folder: Path, spec: CascadeSpec, ladder: Ladder) -> None:
    """Write what `open_engine` wants to know beside the graphs."""
    (folder / SPEC).write_text(json.dumps({"spec": asdict(spec), "ladder": ladder.to_json()}), encoding="utf-8")


def read_spec(folder: Path) -> tuple[CascadeSpec, Combiner]:
    """What `keep_spec` wrote."""
    data = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    spec, ladder = data["spec"], Ladder.from_json(data["ladder"])
    inputs = tuple(InputSpec(**i | {"shape": tuple(i["shape"])}) for i in spec["inputs"])
    stages = tuple(StageSpec(**s) for s in spec["stages"])
    combiner = Combiner(ladder.temperature, ladder.score, combine=ladder.combine, backbone=ladder.backbone)
    return CascadeSpec(inputs, stages, spec["classes"]), combiner


def open_job(job: Job) -> Run:
    """The call that is timed."""
    if job.route == "run":
        return _runtime(job)
    if job.route is not None:
        return _cascade(job)
    return _bare_onnxruntime(job) if job.engine == "onnxruntime" else _bare_openvino(job)


def _runtime(job: Job) -> Run:
    """What a user calls, with the monitor and the drift test at work."""
    import dynamic

    setting = job.setting
    options = dynamic.OnnxRuntimeOptions(idle=setting.idle) if setting.idle else None  # type: ignore[arg-type]
    bundle = dynamic.load(job.folder)
    budget = dynamic.Budget(max_drop=job.max_drop)
    # images come again and again: after an alarm another point would run, and the drift test would cost nothing
    runtime = bundle.runtime(budget, engine=job.engine, threads=setting.threads, options=options, drift_alpha=NEVER)
    name = bundle.spec.inputs[0].name

    def run(row: NDArray[np.float32], _: NDArray[np.float32] | None) -> Answer:
        result = runtime({name: row})
        if not result.certified:
            raise RuntimeError(f"an answer is not certified: {result.decision.reason}")
        return result.log_probs, result.stage[0]  # type: ignore[index]

    return run


def _cascade(job: Job) -> Run:
    folder, setting = Path(job.folder), job.setting
    spec, combiner = read_spec(folder)
    options: dict[str, Any] = {"threads": setting.threads}
    if setting.idle:
        options["idle"] = setting.idle
    engine = open_engine(job.engine, folder, spec, combiner, precision=job.precision, route=job.route, **options)
    engine.prepare(frozenset(spec.backbones), 1)
    name = spec.inputs[0].name

    def run(row: NDArray[np.float32], thresholds: NDArray[np.float32] | None) -> Answer:
        assert thresholds is not None
        output = engine.run({name: row}, thresholds)
        return output.logits, output.stage[0]

    return run


def _bare_onnxruntime(job: Job) -> Run:
    import onnxruntime

    setting, graph = job.setting, str(Path(job.folder) / UNSPLIT)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = setting.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0" if setting.idle == "sleep" else "1")
    if setting.idle == "spin":  # bounded, as the engine does it
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.intra_op.spin_duration_us", "20")
    if setting.fixed:
        options.add_free_dimension_override_by_name("batch", 1)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    if setting.fixed and taken.shape[0] != 1:
        raise RuntimeError(f"{graph}: the batch is called {taken.shape[0]!r} and was not fixed")
    name = taken.name
    return lambda row, _: (session.run(None, {name: row})[0], 0)


def _bare_openvino(job: Job) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(str(Path(job.folder) / UNSPLIT))
    if job.setting.fixed:  # shapes known when it is compiled: the faster way, and what a user would do
        model.reshape([1, *model.inputs[0].partial_shape[1:]])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(job.setting.threads),
        "INFERENCE_PRECISION_HINT": job.precision,
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    bound: NDArray[np.float32] | None = None

    def run(row: NDArray[np.float32], _: NDArray[np.float32] | None) -> Answer:
        # the fastest call there is: a small input is copied into a tensor that stays, a large one is read in its place
        nonlocal bound
        if bound is not None and bound.shape == row.shape:
            bound[...] = row
        else:
            if row.nbytes <= SMALL_BYTES:
                row = bound = row.copy()
            request.set_input_tensor(0, openvino.Tensor(row, shared_memory=True))
        (logits,) = request.infer(None, share_outputs=True).values()
        return logits.copy(), 0

    return run


class Worker:
    """Runs what `open_job` opened on rows of the inputs."""

    def __init__(self, job: Job) -> None:
        # copy on write: mapped like the file, and writeable, as OpenVINO wants arrays that it does not copy
        self._inputs = np.asarray(np.load(job.inputs, mmap_mode="c"))
        self._run = open_job(job)

    def turn(
        self,
        items: Sequence[int],
        thresholds: Sequence[float] | None,
        warm: Sequence[int],
        warm_s: float,
        every_s: float | None,
    ) -> dict[str, Any]:
        """Milliseconds of each call, and of CPU, all threads, over the turn; a call every so many seconds, or at once.

        First come `warm_s` of calls that are not timed, one at least, on the items `warm`.
        With `every_s` the turn lasts until the next call would be due: what threads do while they wait is in it.
        """
        limits = None if thresholds is None else np.array(thresholds, np.float32)
        rows, before = ([self._inputs[i : i + 1] for i in some] for some in (items, warm))
        for row in (*before, *rows):
            row.sum()  # the first touch reads it from the file
        until = time.perf_counter() + warm_s
        for row in cycle(before):
            self._run(row, limits)
            if time.perf_counter() >= until:
                break
        took = []
        cpu_began, start = time.process_time(), time.perf_counter()
        for number, row in enumerate(rows):
            if every_s is not None:
                _sleep_until(start + number * every_s)
            began = time.perf_counter()
            self._run(row, limits)
            took.append((time.perf_counter() - began) * 1e3)
        if every_s is not None:
            _sleep_until(start + len(rows) * every_s)
        return {"ms": took, "cpu_ms": (time.process_time() - cpu_began) * 1e3}

    def answers(self, items: Sequence[int], thresholds: Sequence[float] | None) -> dict[str, Any]:
        """Label and stage of each of the items, one at a time, as they are timed."""
        limits = None if thresholds is None else np.array(thresholds, np.float32)
        found = [self._run(self._inputs[i : i + 1], limits) for i in items]
        return {"label": [int(logits.argmax()) for logits, _ in found], "stage": [int(stage) for _, stage in found]}


def _sleep_until(due: float) -> None:
    time.sleep(max(0.0, due - time.perf_counter()))


def main() -> None:
    """Say that it is ready, then answer line by line until the pipe is closed."""
    # libraries that print must not speak on the pipe
    pipe = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(what: dict[str, Any]) -> None:
        pipe.write(json.dumps(what) + "\n")
        pipe.flush()

    worker = Worker(Job.from_json(sys.argv[1]))
    does: dict[str, Callable[..., dict[str, Any]]] = {"turn": worker.turn, "answers": worker.answers}
    say({"ready": True})
    for line in sys.stdin:
        told = json.loads(line)
        say(does[told.pop("do")](**told))


if __name__ == "__main__":
    main()
