"""`python -m dynamic profile|run`: a bundle on this machine. Neither imports torch."""

import json
import random
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

import dynamic
from dynamic.bundle.tables import certificate_text, costs_text
from dynamic.cli.options import (
    BatteryFloor,
    CpuMs,
    DeadlineMs,
    EnergyMj,
    Engine,
    Idle,
    Json,
    LastS,
    LatencyMs,
    MaxDrop,
    MemoryMb,
    OnDrift,
    Percentile,
    Shelf,
    TemperatureC,
    Threads,
    fraction,
    idle_options,
    without_none,
)
from dynamic.cli.project.commands import add
from dynamic.cli.results import point_json
from dynamic.cli.sources.data_sets.texts_to_answer import texts_to_answer
from dynamic.data.image_steps import RGB, Gray
from dynamic.data.picture_decoding import PictureError
from dynamic.data.picture_files import find_pictures
from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.recordings import find_recordings
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.errors import InputError, SettingError
from dynamic.policies.budget import check_on_drift
from dynamic.profiling.stage_profile import USUAL_BATCH
from dynamic.progress import track
from dynamic.report.run_tables import left_out_text, run_text
from dynamic.runtime.result import Prediction


def profile(
    shelf: Shelf,
    batch: Annotated[
        list[int] | None, typer.Option(help="Batch size, once for each, rising. [1, 8 and 64, at most a minute]")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Time for each batch size and way to run it. [1, with --thorough 5]")
    ] = None,
    thorough: Annotated[bool, typer.Option("--thorough", help="All of 1, 8 and 64, however long it takes.")] = False,
    engine: Engine = None,
    threads: Threads = None,
    idle: Idle = None,
    active_mw: Annotated[
        float | None, typer.Option(help="Milliwatts drawn while inference works, on top of idling: gives energies.")
    ] = None,
    idle_mw: Annotated[float | None, typer.Option(help="Milliwatts drawn all the time.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the costs of every stage on this machine, and store them in the bundle.

    It takes a minute at most, and leaves out batch sizes that would take longer. With --batch or --thorough it
    measures all of them.
    """
    if thorough and batch:
        raise SettingError(f"--thorough has its own batch sizes: leave out --batch {batch[0]}, or --thorough")
    sizes = USUAL_BATCH if thorough else tuple(batch or ()) or None
    each_s = (5.0 if thorough else 1.0) if seconds is None else seconds
    arguments = without_none(threads=threads, options=idle_options(idle), active_mw=active_mw, idle_mw=idle_mw)
    bundle = dynamic.load(shelf).profile(sizes, each_s, engine, **arguments)
    assert bundle.costs is not None
    if as_json:
        print(json.dumps(asdict(bundle.costs) | {"points": [point_json(point) for point in bundle.frontier.points]}))
    else:
        print(costs_text(bundle, bundle.costs))


def run(
    shelf: Shelf,
    inputs: Annotated[
        list[Path],
        typer.Argument(
            help="Image files, folders and zips. Of a bundle for texts, tables (.csv, .tsv, .jsonl) and files "
            "with one text a line, - for the standard input. Of one for sounds, wav files and folders.",
            show_default=False,
        ),
    ],
    split: Annotated[str | None, typer.Option(help="Of folders and zips, only <split>/<class>/<image>.")] = None,
    latency_ms: LatencyMs = None,
    percentile: Percentile = "0.95",
    deadline_ms: DeadlineMs = None,
    cpu_ms: CpuMs = None,
    energy_mj: EnergyMj = None,
    memory_mb: MemoryMb = None,
    battery_floor: BatteryFloor = None,
    last_s: LastS = None,
    temperature_c: TemperatureC = None,
    max_drop: MaxDrop = None,
    on_drift: OnDrift = "report",
    engine: Engine = None,
    threads: Threads = None,
    idle: Idle = None,
    as_json: Json = False,
    in_order: Annotated[
        bool, typer.Option("--in-order", help="Keep the order of files in class folders, which is otherwise by lot.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the summary alone.")] = False,
    live: Annotated[
        bool, typer.Option("--watch", help="Show a live view in place of the answers. Ctrl-C ends it with the summary.")
    ] = False,
) -> None:
    """Run images, texts or sounds under a budget, one at a time.

    Folders that are named like classes give the right answers, as do tables with a column of classes, and lines that
    begin with a class and a tab. What does not read, or does not fit, is skipped and listed with the reason.
    """
    budget = dynamic.Budget(
        latency_ms=latency_ms,
        percentile=fraction(percentile),
        deadline_ms=deadline_ms,
        energy_mj=energy_mj,
        memory_mb=memory_mb,
        battery_floor=battery_floor,
        battery_duration_s=last_s,
        temperature_c=temperature_c,
        max_drop=max_drop,
        on_drift=check_on_drift(on_drift),
        cpu_ms=cpu_ms,
    )
    if live and as_json:
        raise SettingError("--watch shows a view for people: leave out --json, or --watch")
    bundle = dynamic.load(shelf)
    items, stages = input_items(bundle, shelf, inputs, split), [stage.name for stage in bundle.spec.stages]
    if not in_order and len({item.true_class for item in items}) > 1:
        # one class after the other is no stream of independent inputs, and would be reported as drift
        random.Random(0).shuffle(items)
    latencies: list[float] = []
    right: list[bool] = []
    left_out: list[tuple[str, str]] = []  # file, why
    point = ""
    shown = False if live else None if quiet or not sys.stdout.isatty() else False  # a bar would break the lines
    with bundle.runtime(budget, engine=engine, **without_none(threads=threads, options=idle_options(idle))) as runtime:
        # the view ends before the summary, also after Ctrl-C
        watching: AbstractContextManager[Any] = dynamic.watch(runtime) if live else nullcontext()
        ending: AbstractContextManager[Any] = suppress(KeyboardInterrupt) if live else nullcontext()
        with watching as view, ending:
            for item in track(items, "inference", len(items), shown):
                try:
                    result = cast(Prediction, runtime(item.read()))  # one input gives one
                except InputError as error:
                    left_out.append((item.name, error.reason if isinstance(error, PictureError) else str(error)))
                    if len(left_out) == len(items):  # nothing was answered
                        if isinstance(error, PictureError):
                            raise
                        raise InputError(f"{item.name}: {error}") from error
                    continue
                if view is not None:
                    view.add(result)
                true_class = item.true_class
                latencies.append(result.latency_ms)
                if true_class is not None:
                    right.append(result.name == true_class)
                    runtime.feedback(result.id, true_class)
                row = {
                    "file": item.name,
                    "class": true_class,
                    "label": result.label,
                    "name": result.name,
                    "probability": result.probability if result.label >= 0 else None,
                    "stage": stages[result.stage],
                    "latency_ms": result.latency_ms,
                    "point": result.decision.point.name,
                    "reason": result.decision.reason,
                    "certified": result.certified,
                }
                if as_json and not quiet:
                    print(json.dumps(row))
                elif not quiet and not live:
                    if row["point"] != point:
                        point = result.decision.point.name
                        print(f"# {row['reason']}")
                    answer = row["label"] if row["name"] is None else row["name"]
                    print(
                        f"{row['file']}  {answer}  {result.probability:.3f}  {row['stage']}  {result.latency_ms:.2f} ms"
                    )
        stats = runtime.stats()
    if as_json:
        accuracy = float(np.mean(right)) if right else None
        certificate = None if bundle.ladder.certificate is None else asdict(bundle.ladder.certificate)
        beside: dict[str, Any] = {"accuracy": accuracy, "known": len(right), "certificate": certificate}
        beside["left_out"] = [{"file": name, "reason": reason} for name, reason in left_out]
        print(json.dumps({"summary": asdict(stats) | beside}))
    else:
        print(run_text(stats, latencies, right, stages) if latencies else "no input was answered")
        if left_out:
            print(left_out_text(left_out, len(items)))
        print(certificate_text(bundle.ladder))


@dataclass(frozen=True)
class InputItem:
    """An input from a file.

    Args:
        name: Of the file, and of the line in it.
        true_class: Its class, where the folder or the line gives it.
        read: Gives what the runtime takes.
    """

    name: str
    true_class: str | None
    read: Callable[[], Any]


def input_items(bundle: dynamic.Bundle, shelf: Path, paths: list[Path], split: str | None) -> list[InputItem]:
    """The inputs in files.

    Args:
        bundle: The bundle that will answer them.
        shelf: Its folder, for messages.
        paths: Files, folders and zips.
        split: Of folders and zips, only what lies below a folder of this name. None: everything.

    Returns:
        The inputs, none of which is read yet.

    Raises:
        InputError: There are none, or this bundle takes no files.
    """
    classes = bundle.classes or ()
    if bundle.preprocess is None:
        raise InputError(f"{shelf} was built with preprocess=None: files cannot become its inputs. Build it again")
    if isinstance(bundle.preprocess, TextPreprocess):
        texts = texts_to_answer(paths, classes)
        return [InputItem(line.name, line.true_class, partial(str, line.text)) for line in texts]
    if isinstance(bundle.preprocess, SoundPreprocess):
        return [
            InputItem(recording.name, recording.folder if recording.folder in classes else None, recording.sound)
            for recording in find_recordings(paths, split)
        ]
    if not isinstance(bundle.preprocess, Preprocess):
        raise InputError(
            f"{shelf} takes neither images, nor texts, nor sounds, which this command reads: answer from Python, "
            "runtime(inputs)"
        )
    converts = any(isinstance(step, (Gray, RGB)) for step in bundle.preprocess.steps)
    channels = None if converts else bundle.spec.inputs[0].shape[0]
    return [
        InputItem(
            picture.name, picture.folder if picture.folder in classes else None, partial(picture.pixels, channels)
        )
        for picture in find_pictures(paths, split)
    ]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, profile, example="dynamic profile shelf")
    add(app, run, example="dynamic run shelf photos/ --latency-ms 20 --max-drop 0.01")
