"""Contenders in worker processes: they take turns, give a figure for every item, and are reported when they die."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.harness import alternating_worker
from benchmarks.harness.alternating import Contender, Process, WorkerDiedError, alternate, row_of, winners, workers
from benchmarks.harness.alternating_worker import UNSPLIT, Job, Setting, Worker


def doubles(folder: Path, setting: Setting, name: str = "network") -> Contender:
    """A network that doubles its input, in a folder as the exporter leaves it."""
    node = helper.make_node("Add", ["input", "input"], ["logits"])
    kind = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 3]) for n in ("input", "logits")]
    graph = helper.make_graph([node], "main", kind[:1], kind[1:])
    (folder / "backbones").mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / UNSPLIT)
    np.save(folder / "inputs.npy", np.eye(3, dtype=np.float32))
    return Contender(name, Job("onnxruntime", "f32", str(folder), None, setting, str(folder / "inputs.npy")))


def test_contenders_take_turns_and_the_order_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five items in blocks of two: every contender sees each block, and the first of one block is last in the next."""
    a, b = doubles(tmp_path, Setting(1), "a"), doubles(tmp_path, Setting(1, fixed=True), "b")
    turns: list[tuple[bool, list[int], list[int]]] = []
    ask = Process.ask

    def listening(self: Process, do: str, **told: Any) -> dict[str, Any]:
        turns.append((self.job.setting.fixed, told["items"], told["warm"]))
        return ask(self, do, **told)

    with workers([a, b, a]) as running:
        assert len({p.pid for p in running.values()} | {os.getpid()}) == 3
        monkeypatch.setattr(Process, "ask", listening)
        took = alternate(running, [a, b], [2, 1, 0, 1, 0], block=2, pause_s=0.0)
    blocks = [([2, 1], [1, 0], (0, 1)), ([0, 1], [2, 1], (1, 0)), ([0], [0, 1], (0, 1))]
    assert turns == [(fixed, items, warm) for items, warm, order in blocks for fixed in order]
    for contender in (a, b):
        found = took[contender.key]
        assert len(found.ms) == 5
        assert min(found.ms) > 0
        assert len(found.cpu_ms) == 3
    table = row_of(took[a.key], took[b.key], a)
    assert means_of_each_setting(tmp_path) == {"a": ["1 thread", "1 thread, fixed batch"]}
    assert table["settings"] == "1 thread"
    assert table["ratio"]["ratio"] == pytest.approx(np.mean(took[a.key].ms) / np.mean(took[b.key].ms), abs=6e-4)


def means_of_each_setting(tmp_path: Path) -> dict[str, list[str]]:
    """The settings that `winners` compares, by name; one of them wins."""
    both = [doubles(tmp_path, setting, "a") for setting in (Setting(1), Setting(1, fixed=True))]
    with workers(both) as running:
        (best,), means = winners(running, both, [0, 1], block=2)
    assert best in both
    return {name: sorted(by_setting) for name, by_setting in means.items()}


def test_a_turn_is_warmed_up_for_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One untimed call at least, and calls for as long as was asked, on the inputs for that; then the timed ones."""
    worker, ran, now_s = Worker(doubles(tmp_path, Setting(1)).job), [], [0.0]

    def recording(row: np.ndarray, _: object) -> tuple[np.ndarray, int]:
        ran.append(int(row.argmax()))
        now_s[0] += 0.01
        return row, 0

    monkeypatch.setattr(worker, "_run", recording)
    monkeypatch.setattr(alternating_worker.time, "perf_counter", lambda: now_s[0])
    assert len(worker.turn([0], None, warm=[1, 2], warm_s=0, every_s=None)["ms"]) == 1
    assert ran == [1, 0]
    ran.clear()
    found = worker.turn([0, 0], None, warm=[1, 2], warm_s=0.095, every_s=None)
    assert ran == [1, 2] * 5 + [0, 0]
    assert found["ms"] == pytest.approx([10.0, 10.0])


def test_a_rate_waits_between_requests_and_answers_are_the_networks(tmp_path: Path) -> None:
    """Three requests 30 ms apart last 90 ms at least; the label is the hot input."""
    only = doubles(tmp_path, Setting(1))
    with workers([only]) as running:
        (process,) = running.values()
        began = time.perf_counter()
        found = process.ask("turn", items=[0, 1, 2], thresholds=None, warm=[0], warm_s=0, every_s=0.03)
        assert time.perf_counter() - began >= 0.09
        assert len(found["ms"]) == 3
        assert process.ask("answers", items=[0, 1, 2], thresholds=None) == {"label": [0, 1, 2], "stage": [0, 0, 0]}


def test_a_worker_that_cannot_open_its_job_is_reported(tmp_path: Path) -> None:
    contender = doubles(tmp_path, Setting(1))
    (tmp_path / UNSPLIT).unlink()
    with pytest.raises(WorkerDiedError, match=r"(?s)ended with code 1.*0_0\.onnx"), workers([contender]):
        pass


def test_a_worker_that_dies_at_work_is_reported_and_the_others_are_closed(tmp_path: Path) -> None:
    contenders = [doubles(tmp_path, Setting(1)), doubles(tmp_path, Setting(1, fixed=True))]
    with workers(contenders) as running:
        first, second = running.values()
        os.kill(first.pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match=f"ended with code {-signal.SIGKILL}"):
            alternate(running, contenders, [0, 1], block=1, pause_s=0.0)
        assert not second.ended
    assert second.ended
