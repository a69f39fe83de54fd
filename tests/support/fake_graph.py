"""An engine whose every part takes a known time, and its profile."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from dynamic.engines.contract import CascadeSpec, InputSpec, Output, StageSpec
from dynamic.engines.route_choice import CascadeEngine
from dynamic.policies.costs import Costs
from dynamic.policies.stage_plan import plan
from dynamic.profiling.stage_profile import profile


class Fake:
    """Takes `call` ms, and of every stage that runs its body and, with its exit on, its head, on a clock of its own.

    A request under other thresholds than the one before takes `change` ms more, as with caches that it finds cold.
    """

    def __init__(
        self, spec: CascadeSpec, call: float, body: list[float], head: list[float], change: float = 0.0
    ) -> None:
        self.spec, self.call, self.body, self.head, self.change = spec, call, body, head, change
        self.ms = 0.0
        self._last: bytes | None = None

    def clock(self) -> float:
        return self.ms / 1e3

    def takes(self, thresholds: Any) -> float:
        todo = plan(np.array(thresholds, np.float32), self.spec.backbone)
        took = self.call
        for stage in range(todo.deepest + 1):
            took += todo.run[stage] * self.body[stage] + todo.on[stage] * self.head[stage]
        return took

    def run(self, inputs: Any, thresholds: Any, rows: int) -> Output:
        kind = np.asarray(thresholds, np.float32).tobytes()
        self.ms += self.takes(thresholds) + self.change * (kind != self._last)
        self._last = kind
        return Output(np.zeros((rows, 2), np.float32), np.zeros(rows, np.int64), np.zeros(rows, np.float32))


def measured(
    backbone: tuple[int, ...], call: float, body: list[float], head: list[float], change: float = 0.0
) -> tuple[Fake, Costs]:
    last = [s + 1 == len(backbone) or backbone[s + 1] != b for s, b in enumerate(backbone)]
    stages = tuple(
        StageSpec(f"s{s}", b, 0, f"{s}.onnx", None if last[s] else f"{s}_body.onnx", 1.0, 0.1)
        for s, b in enumerate(backbone)
    )
    spec = CascadeSpec((InputSpec("input", (3,), "float32"),), stages, 2)
    fake = Fake(spec, call, body, head, change)
    stagewise: Any = SimpleNamespace(name="fake", precision="f32", threads=1, options={}, spec=spec)
    engine = CascadeEngine(stagewise, fake, route="graph")  # type: ignore[arg-type]
    return fake, profile(engine, None, (1,), 0.0, fake.clock, progress=False)
