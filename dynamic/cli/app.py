"""The shell commands `build`, `certify`, `profile`, `export` and `run`, and those of the files beside this one.

Only `build`, `certify` and `export` import torch, and only when they are called: the others run where there is none.
"""

import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import typer

import dynamic
from dynamic.bundle.tables import certificate_text, costs_text, ladder_text
from dynamic.cli import device_commands, simulate_commands
from dynamic.cli.options import (
    BatteryFloor,
    CpuMs,
    DeadlineMs,
    Json,
    LatencyMs,
    MaxDrop,
    MemoryMb,
    Percentile,
    fraction,
)
from dynamic.data.picture_decoding import PictureError
from dynamic.data.picture_files import find_pictures
from dynamic.data.preprocessing import RGB, Gray
from dynamic.errors import DynamicError, InputError, SettingError
from dynamic.extras import with_remedy
from dynamic.policies.budget import check_on_drift
from dynamic.policies.certification.ladders.settings import check_score_choice
from dynamic.policies.certification.risks import risk_named
from dynamic.policies.scores import check_combination
from dynamic.progress import track
from dynamic.report.run_tables import left_out_text, run_text
from dynamic.runtime.result import Prediction

app = typer.Typer(
    help="Adaptive inference: spend on each input what it needs and no more than the device can spare.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Shelf = Annotated[Path, typer.Argument(help="The bundle's folder.", show_default=False)]
Engine = Annotated[
    str | None,
    typer.Option(help="Engine, or 'auto' for the fastest here. [the engine of the calibration]"),
]
Threads = Annotated[int | None, typer.Option(help="Threads of the engine. [all usable cores]")]
Idle = Annotated[str | None, typer.Option(help="What its threads do while they wait: sleep or spin.")]
OnDrift = Annotated[
    str,
    typer.Option(
        help="Once inputs no longer look like the calibration's (as they do not where they are sorted by class): "
        "'safest' ends all savings, 'report' only reports."
    ),
]
Targets = Annotated[
    list[float] | None, typer.Option("--max-drop", help="Certify a point for this much of the risk, once for each.")
]
Floor = Annotated[
    float | None,
    typer.Option(help="Accuracy that every point must keep. [halfway between chance and the reference]"),
]
Delta = Annotated[float, typer.Option(help="Chance, over the draw of the held-out images, that a bound may be wrong.")]
RiskName = Annotated[
    str, typer.Option("--risk", help="What is bounded: drop, harm, disagreement (needs no labels) or error.")
]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command and exit.

    A user's mistake prints one line. The exit code is 2 for a setting out of range, and 1 for everything else. A full
    or read-only disk is no bug and prints a line too.

    Args:
        arguments: The arguments. None: those of the process.
    """
    profiling = logging.getLogger("dynamic.profiling.stage_profile")
    level = profiling.level
    profiling.setLevel(logging.ERROR)  # a command prints the doubts of a profile with its figures
    try:
        app(arguments)
    except (DynamicError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, SettingError) else 1)
    except ModuleNotFoundError as error:
        line = str(with_remedy(error, "this command"))
        if "pip install" not in line:  # of another package
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(1)
    finally:
        profiling.setLevel(level)


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder for the bundle. An existing one is replaced.")],
    networks: Annotated[
        list[str],
        typer.Option("--network", "--networks", help="module:factory of a network, once for each, smallest first."),
    ],
    data: Annotated[Path, typer.Option(help="Held-out images: a folder or zip of class folders.")],
    split: Annotated[str | None, typer.Option(help="The folder above the class folders, if there are several.")] = None,
    weights: Annotated[
        list[Path] | None, typer.Option(help="A network's weights, .safetensors or .pt, once for each, in order.")
    ] = None,
    mean: Annotated[str | None, typer.Option(help="To normalize by, such as 0.485,0.456,0.406.")] = None,
    std: Annotated[str | None, typer.Option(help="To normalize by, such as 0.229,0.224,0.225.")] = None,
    resize: Annotated[str | None, typer.Option(help="Resize to a shorter side, or HEIGHTxWIDTH.")] = None,
    crop: Annotated[str | None, typer.Option(help="Cut a square, or HEIGHTxWIDTH, out of the middle.")] = None,
    exits: Annotated[int | None, typer.Option(help="Add so many exits to the last network, and train them.")] = None,
    train_data: Annotated[Path | None, typer.Option(help="Images that exits train on. [--data]")] = None,
    train_split: Annotated[str | None, typer.Option(help="Its split.")] = None,
    engine: Annotated[
        str, typer.Option(help="The engine that will run, or 'auto' for the fastest here.")
    ] = "onnxruntime",
    combine: Annotated[
        str, typer.Option(help="Answer by the 'mean' of the stages so far, the 'last', or the mean of 'backbones'.")
    ] = "backbones",
    score: Annotated[
        str,
        typer.Option(help="The confidence of a stage: max_probability, margin, negative_entropy, patience or auto."),
    ] = "max_probability",
    max_drop: Targets = None,
    delta: Delta = 0.1,
    floor: Floor = None,
    risk: RiskName = "drop",
    seed: Annotated[int, typer.Option(help="Of every random choice.")] = 0,
    limit: Annotated[int | None, typer.Option(help="Use so many of the images, drawn at random.")] = None,
) -> None:
    """Build a bundle from trained networks and held-out images: export, calibrate, choose thresholds."""
    from dynamic.cli.named_sources import ImageBatches, network_at, numbers, size
    from dynamic.data.labelled_images import load_images
    from dynamic.offline.networks.checkpoints import load_weights

    if weights and len(weights) != len(networks):
        raise SettingError(f"{len(weights)} --weights for {len(networks)} networks: give one for each, in order")
    if exits is not None and train_data is None and train_split is None:
        raise SettingError("--exits needs --train-data or --train-split: exits must not train on the held-out images")
    preprocess = dynamic.Preprocess.of(
        numbers("--mean", mean), numbers("--std", std), resize=size("--resize", resize), crop=size("--crop", crop)
    )
    modules = [network_at(path) for path in networks]
    for network, file in zip(modules, weights or (), strict=False):
        load_weights(network, file)
    images = load_images(data, split)
    held_out = ImageBatches(images, preprocess, seed, limit)
    if exits is not None:
        train = ImageBatches(load_images(train_data or data, train_split), preprocess, seed)
        modules[-1] = wrapped = dynamic.wrap(modules[-1], next(iter(train))[0], exits=exits)
        print(dynamic.fit(wrapped, train, mode="heads", seed=seed))
    names = [path.rpartition(":")[2] for path in networks]
    cascade = dynamic.Cascade(
        modules, combine=check_combination(combine), names=names if len(set(names)) == len(names) else None
    )
    bundle = dynamic.build(
        cascade,
        held_out,
        engine=cast(Any, engine),
        preprocess=preprocess,
        classes=images.classes,
        score=check_score_choice(score),
        risk=risk_named(risk).name,
        delta=delta,
        seed=seed,
        max_drops=max_drop or None,
        floor=floor,
    ).save(out)
    print(ladder_text(bundle.ladder))
    print(f"\nbundle of {len(bundle.records)} images for engine {bundle.engine}: {bundle.folder}")


@app.command()
def certify(
    shelf: Shelf,
    out: Annotated[Path, typer.Argument(help="Folder for the bundle with the new ladder.", show_default=False)],
    max_drop: Targets = None,
    delta: Annotated[float | None, typer.Option(help="Another chance that a bound may be wrong.")] = None,
    floor: Floor = None,
    risk: Annotated[str | None, typer.Option(help="Another risk.")] = None,
    score: Annotated[str | None, typer.Option(help="Another score, or 'auto'.")] = None,
) -> None:
    """Make another ladder from a bundle's records: other targets, risk or delta. A choice by the outcome voids it."""
    bundle = dynamic.recertify(
        dynamic.load(shelf),
        max_drop or None,
        delta=delta,
        risk=None if risk is None else risk_named(risk).name,
        score=None if score is None else check_score_choice(score),
        floor=floor,
    ).save(out)
    print(ladder_text(bundle.ladder))
    print(f"\nbundle of {len(bundle.records)} images for engine {bundle.engine}: {bundle.folder}")


@app.command()
def profile(
    shelf: Shelf,
    batch: Annotated[list[int] | None, typer.Option(help="Batch size, once for each, rising. [1, 8, 64]")] = None,
    seconds: Annotated[float, typer.Option(help="Time for each batch size and way to run it.")] = 1.0,
    engine: Engine = None,
    threads: Threads = None,
    idle: Idle = None,
    active_mw: Annotated[
        float | None, typer.Option(help="Milliwatts drawn while inference works, on top of idling: gives energies.")
    ] = None,
    idle_mw: Annotated[float | None, typer.Option(help="Milliwatts drawn all the time.")] = None,
) -> None:
    """Measure the costs of every stage on this machine, and store them in the bundle."""
    given = _given(threads=threads, options=_idle_options(idle), active_mw=active_mw, idle_mw=idle_mw)
    bundle = dynamic.load(shelf).profile(batch or (1, 8, 64), seconds, engine, **given)
    assert bundle.costs is not None
    print(costs_text(bundle, bundle.costs))


@app.command()
def export(
    shelf: Shelf,
    out: Annotated[Path, typer.Argument(help="The file to write, model.onnx.", show_default=False)],
    batch: Annotated[str, typer.Option(help="'single' for one input at a time, 'dynamic' for any number.")] = "dynamic",
    point: Annotated[str | None, typer.Option(help="Only what this point uses, 'drop 0.01' for instance.")] = None,
) -> None:
    """Write the whole cascade as one ONNX file that runs without this library."""
    print(dynamic.export(dynamic.load(shelf), out, batch=cast(Any, batch), point=point))


@app.command()
def run(
    shelf: Shelf,
    images: Annotated[list[Path], typer.Argument(help="Image files, folders and zips.", show_default=False)],
    split: Annotated[str | None, typer.Option(help="Of folders and zips, only <split>/<class>/<image>.")] = None,
    latency_ms: LatencyMs = None,
    percentile: Percentile = "0.95",
    deadline_ms: DeadlineMs = None,
    cpu_ms: CpuMs = None,
    memory_mb: MemoryMb = None,
    battery_floor: BatteryFloor = None,
    max_drop: MaxDrop = None,
    on_drift: OnDrift = "report",
    engine: Engine = None,
    threads: Threads = None,
    idle: Idle = None,
    as_json: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print the summary alone.")] = False,
) -> None:
    """Run images under a budget, one at a time. Folders that are named like classes give the right answers.

    Files that do not read, or do not fit, are skipped and listed with the reason.
    """
    budget = dynamic.Budget(
        latency_ms=latency_ms,
        percentile=fraction(percentile),
        deadline_ms=deadline_ms,
        memory_mb=memory_mb,
        battery_floor=battery_floor,
        max_drop=max_drop,
        on_drift=check_on_drift(on_drift),
        cpu_ms=cpu_ms,
    )
    bundle = dynamic.load(shelf)
    if bundle.preprocess is None:
        raise InputError(f"{shelf} was built with preprocess=None: images cannot become its inputs. Build it again")
    pictures, stages = find_pictures(images, split), [stage.name for stage in bundle.spec.stages]
    converts = any(isinstance(step, (Gray, RGB)) for step in bundle.preprocess.steps)
    channels = None if converts else bundle.spec.inputs[0].shape[0]
    latencies: list[float] = []
    right: list[bool] = []
    left_out: list[tuple[str, str]] = []  # file, why
    point = ""
    shown = None if quiet or not sys.stdout.isatty() else False  # a bar would break the lines
    with bundle.runtime(budget, engine=engine, **_given(threads=threads, options=_idle_options(idle))) as runtime:
        for picture in track(pictures, "inference", len(pictures), shown):
            try:
                result = cast(Prediction, runtime(picture.pixels(channels)))  # one picture gives one
            except InputError as error:
                left_out.append((picture.name, error.reason if isinstance(error, PictureError) else str(error)))
                if len(left_out) == len(pictures):  # nothing was answered
                    if isinstance(error, PictureError):
                        raise
                    raise InputError(f"{picture.name}: {error}") from error
                continue
            true_class = picture.folder if picture.folder in (bundle.classes or ()) else None
            latencies.append(result.latency_ms)
            if true_class is not None:
                right.append(result.name == true_class)
                runtime.feedback(result.id, true_class)
            row = {
                "file": picture.name,
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
            elif not quiet:
                if row["point"] != point:
                    point = result.decision.point.name
                    print(f"# {row['reason']}")
                answer = row["label"] if row["name"] is None else row["name"]
                print(f"{row['file']}  {answer}  {result.probability:.3f}  {row['stage']}  {result.latency_ms:.2f} ms")
        stats = runtime.stats()
    if as_json:
        accuracy = float(np.mean(right)) if right else None
        certificate = None if bundle.ladder.certificate is None else asdict(bundle.ladder.certificate)
        beside: dict[str, Any] = {"accuracy": accuracy, "known": len(right), "certificate": certificate}
        beside["left_out"] = [{"file": name, "reason": reason} for name, reason in left_out]
        print(json.dumps({"summary": asdict(stats) | beside}))
    else:
        print(run_text(stats, latencies, right, stages))
        if left_out:
            print(left_out_text(left_out, len(pictures)))
        print(certificate_text(bundle.ladder))


simulate_commands.register(app)
device_commands.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"dynamic-inference {dynamic.__version__}")
        raise typer.Exit


@app.callback()
def _before(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that stand before the command."""


def _idle_options(idle: str | None) -> "dynamic.OnnxRuntimeOptions | None":
    """Only ONNX Runtime has a choice of what its threads do while they wait."""
    return None if idle is None else dynamic.OnnxRuntimeOptions(idle=cast(Any, idle))


def _given(**options: Any) -> dict[str, Any]:
    """The engine's options that were given: engines reject those that they do not have."""
    return {name: value for name, value in options.items() if value is not None}
