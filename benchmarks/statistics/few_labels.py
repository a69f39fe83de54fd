"""Certificates from few labels: what a cheap model answers alone, beside BARGAIN, and whether both keep their promise.

    python -m benchmarks.statistics.few_labels [--draws 300] [--bargain FOLDER]

A proxy answers where it is confident, and an oracle answers the rest. The promise is that at most 10, 5 or 2% of the
answers differ from the oracle's, with probability 0.9. Each label is a call of the oracle. `label_tasks.py` has the
tasks. A task has fewer labels than inputs.

The promise for one batch counts every input of the task. Answers of the oracle that were asked for are right. `net` is
the share of the batch that the proxy answers alone, without the inputs that were asked about. The promise for future
inputs draws unlabelled inputs from the task, with replacement, and its risk is that of the whole task.

BARGAIN (arXiv 2509.02896) chooses its own number of calls. It gives up where a step looks hopeless. Without that rule
it asks until n labels are spent. Its wheel is no dependency. Install it beside the library, and give its folder:

    pip install --no-deps --target out/bargain bargain==0.1.3

Draws are kept in out/ and an interrupted run continues.
"""

import argparse
import importlib
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import dynamic
from benchmarks.harness.common import ROOT, add_data_option, data_folder, progress, save
from benchmarks.statistics.kept_draws import DELTA, Draw, MemoryStore, check_draws, code, draws_of, within_chance
from benchmarks.statistics.label_tasks import TASKS, Task, task_named
from dynamic.policies.certification.few_labels.asking import Asking, DemandSettings, ask

TARGETS = (0.1, 0.05, 0.02)
COUNTS = (60, 120, 200, 500, 1000, 2000)
WITHOUT_GIVING_UP = (200, 500)
FOLDER = ROOT / "out" / "few_labels"


def in_batch(task: Task, target: float, count: int) -> Draw:
    """Seed -> net share, calls and whether the promise for the batch is broken."""
    settings = DemandSettings.of((target,), risk="disagreement", budget=count, batch_size=max(10, count // 40))
    asking = Asking(task.records(), settings, finite=True)

    def draw(seed: int) -> list[float]:
        one, answers = asking.other_draw(seed), MemoryStore()
        ask(one, lambda rows: task.wrong[rows].astype(np.int64), answers)
        alone = exits(task, one.thresholds(answers.labels)[target])
        alone[list(answers.labels)] = False
        return [alone.mean(), len(answers.labels), float((alone & task.wrong).mean() > target + 1e-12)]

    return draw


def in_future(task: Task, target: float, count: int) -> Draw:
    """Seed -> share of future inputs, calls and whether the promise for them is broken."""
    settings = DemandSettings.of((target,), risk="disagreement", budget=count, batch_size=max(10, count // 40))

    def draw(seed: int) -> list[float]:
        random = np.random.default_rng([count, seed])
        pool = task.taken(random.integers(len(task.score), size=max(2 * count, 800)))
        one, answers = Asking(pool.records(), settings), MemoryStore()
        ask(one, lambda rows: pool.wrong[rows].astype(np.int64), answers)
        alone = exits(task, one.thresholds(answers.labels)[target])
        return [alone.mean(), len(answers.labels), float((alone & task.wrong).mean() > target + 1e-12)]

    return draw


def exits(task: Task, thresholds: tuple[float, ...] | None) -> NDArray[np.bool_]:
    """The inputs that exit `[N]`."""
    if thresholds is None:
        return np.zeros(len(task.score), np.bool_)
    combiner = dynamic.policies.Combiner((1.0, 1.0), "max_probability", combine="last")
    score = combiner.add(combiner.start(), 0, task.records().logits[:, 0])[1]
    return np.asarray(np.float32(thresholds[0]) < score)


def bargain(package: Any, task: Task, target: float, count: int | None) -> Draw:
    """Seed -> net share, calls and whether the promise is broken. `count`: without its rule to give up."""
    size, truth = len(task.score), task.wrong.astype(np.int64)

    class Proxy(package.Proxy):  # type: ignore[misc]
        """All answers at once. The package would start a thread for each."""

        def get_preds_and_scores(self, indxs: Any, data_records: Any) -> Any:
            return np.zeros(len(indxs), np.int64), task.score[indxs]

    class Oracle(package.Oracle):  # type: ignore[misc]
        """Counts the inputs that it is asked about."""

        def is_answer_correct(self, data_indxs: Any, data_records: Any, proxy_output_at_indxs: Any) -> Any:
            self.asked |= set(data_indxs.tolist())
            return truth[data_indxs] == proxy_output_at_indxs

        def get_pred(self, data_records: Any, indxs: Any = None) -> Any:
            return truth[indxs]

    def draw(seed: int) -> list[float]:
        oracle = Oracle(verbose=False)
        oracle.asked = set()
        process = package.BARGAIN_A(
            Proxy(verbose=False), oracle, target=1 - target, delta=DELTA, verbose=False, seed=seed
        )
        if count is not None:
            process._BARGAIN_A__check_worth_trying = lambda *_: len(oracle.asked) < count
        answers, by_oracle = process.process(np.arange(size).astype(str), return_oracle_usage=True)
        wrong = float((np.array(answers) != truth).mean() > target + 1e-12)
        return [1 - float(np.mean(by_oracle)), len(oracle.asked), wrong]

    return draw


def bargain_package(folder: Path) -> Any:
    """The package. It imports clients of a service that are not used here."""
    sys.path.insert(0, str(folder))
    for name, missing in (("openai", "OpenAI"), ("pydantic", "BaseModel")):
        if importlib.util.find_spec(name) is None:
            module = types.ModuleType(name)
            setattr(module, missing, object)
            sys.modules[name] = module
    return importlib.import_module("BARGAIN")


def cells(tasks: dict[str, Task], counts: tuple[int, ...], package: Any) -> Iterator[tuple[str, str, Any]]:
    """(cell, name of its files, what makes its draws)."""
    for name, task in tasks.items():
        version = code(Path(__file__).name, [replace(task.records(), label=task.wrong.astype(np.int64))])
        for target in TARGETS:
            cell = f"{name} {1 - target:g}"
            if package is not None:
                yield (
                    f"{cell} bargain",
                    f"bargain-{name}-{target}",
                    lambda t=task, x=target: bargain(package, t, x, None),
                )
            for count in (n for n in counts if n < len(task.score)):
                own = f"{name}-{target}-{count}-{version}"
                yield f"{cell} {count} batch", f"batch-{own}", lambda t=task, x=target, n=count: in_batch(t, x, n)
                yield f"{cell} {count} future", f"future-{own}", lambda t=task, x=target, n=count: in_future(t, x, n)
                if package is not None and count in WITHOUT_GIVING_UP:
                    file = f"bargain-{name}-{target}-{count}"
                    make = lambda t=task, x=target, n=count: bargain(package, t, x, n)  # noqa: E731
                    yield f"{cell} {count} bargain without giving up", file, make


def main() -> None:
    """Run every cell and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_data_option(parser)
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS)
    parser.add_argument("--bargain", type=Path, help="folder with the package of BARGAIN. Without it, it is left out")
    options = parser.parse_args()
    check_draws(options.draws)
    data = data_folder(options.data)
    tasks = {name: task_named(name, data, FOLDER) for name in options.tasks}
    package = None if options.bargain is None else bargain_package(options.bargain)
    within = within_chance(options.draws)
    table: dict[str, dict[str, float]] = {}
    print(f"{options.draws} draws: violations up to {within:.3f} are within chance")
    for cell, file, make in cells(tasks, tuple(options.counts), package):
        began = time.perf_counter()
        share, calls, wrong = draws_of(FOLDER, file, options.draws, make).mean(axis=0)
        table[cell] = {"share": round(share, 4), "calls": round(calls, 1), "violations": round(wrong, 4)}
        print(f"{cell:48} {share:7.3f} {calls:8.1f} {wrong:7.3f}", flush=True)
        progress(f"{cell}: {time.perf_counter() - began:.0f} s")
    best = {f"{name} {1 - x:g}": best_share(task, x) for name, task in tasks.items() for x in TARGETS}
    print(
        save("statistics/few_labels", {"draws": options.draws, "within_chance": within, "best": best, "table": table})
    )


def best_share(task: Task, target: float) -> float:
    """The share that the proxy could answer if every answer were known."""
    lost = np.cumsum(task.wrong[np.argsort(-task.score, kind="stable")]) / len(task.wrong)
    return round(float((lost <= target).mean()), 4)


if __name__ == "__main__":
    main()
