"""`python -m dynamic build|certify|export`: bundles from networks and from other bundles.

`build` needs torch. It is imported only when a command needs it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.tables import ladder_text
from dynamic.cli.options import Shelf
from dynamic.data.answer_file import AnswerFile
from dynamic.errors import CalibrationError, SettingError
from dynamic.policies import ladder as ladders
from dynamic.policies.certification.few_labels.asking import Asking, DemandSettings
from dynamic.policies.certification.few_labels.label_plan import curve_text
from dynamic.policies.certification.ladders.settings import ScoreChoice, check_score_choice
from dynamic.policies.certification.risks import risk_named
from dynamic.policies.records import Records
from dynamic.policies.scores import check_combination

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
    print(f"\nbundle of {len(bundle.records)} inputs for engine {bundle.engine}: {bundle.folder}")


def certify(
    shelf: Shelf,
    out: Annotated[Path, typer.Argument(help="Folder for the bundle with the new ladder.", show_default=False)],
    max_drop: Targets = None,
    delta: Annotated[float | None, typer.Option(help="Another chance that a bound may be wrong.")] = None,
    floor: Floor = None,
    risk: Annotated[str | None, typer.Option(help="Another risk.")] = None,
    score: Annotated[str | None, typer.Option(help="Another score, or 'auto'.")] = None,
    ask: Annotated[
        Path | None,
        typer.Option(help="A CSV file: rows to be labelled are written there, until they suffice for a certificate."),
    ] = None,
    budget: Annotated[int | None, typer.Option(help="The most labels that --ask asks for.")] = None,
    rows: Annotated[int, typer.Option(help="Rows that --ask writes at a time.")] = 50,
) -> None:
    """Make another ladder from a bundle's records: other targets, risk or delta. A choice by the outcome voids it."""
    bundle = dynamic.load(shelf)
    measure = None if risk is None else risk_named(risk).name
    records = None
    if ask is not None:
        chosen = None if score is None else check_score_choice(score)
        records = _records_with_labels(
            bundle, ask, max_drop or None, delta=delta, risk=measure, score=chosen, budget=budget, rows=rows
        )
        if records is None:
            return
    elif budget is not None:
        raise SettingError(f"--budget {budget} has nobody to ask: give --ask labels.csv")
    bundle = dynamic.recertify(
        bundle,
        max_drop or None,
        delta=delta,
        records=records,
        risk=measure,
        score=None if score is None else check_score_choice(score),
        floor=floor,
    ).save(out)
    print(ladder_text(bundle.ladder))
    print(f"\nbundle of {len(bundle.records)} inputs for engine {bundle.engine}: {bundle.folder}")


def _records_with_labels(
    bundle: Bundle,
    path: Path,
    max_drops: Sequence[float] | None,
    *,
    delta: float | None,
    risk: ladders.RiskName | None,
    score: ScoreChoice | None,
    budget: int | None,
    rows: int,
) -> Records | None:
    """The records with the labels of a file, or None where it has questions left.

    Args:
        bundle: A bundle whose records have no labels.
        path: The CSV file of rows and labels. It is made or extended.
        max_drops: Targets of the certificate.
        delta: The probability that a bound is wrong. None: as before.
        risk: What is bounded. None: as before.
        score: Confidence that is compared with thresholds. None: as before.
        budget: The most labels. None: as many as are likely to be worth it.
        rows: Rows that are written at a time.

    Returns:
        The records, or None.

    Raises:
        CalibrationError: when the records have labels already, or nobody is needed.
        InputError: when a row or label of the file is wrong.
        SettingError: when a setting is out of range.
    """
    records, ladder = bundle.records, bundle.ladder
    if records.is_labelled:
        raise CalibrationError(f"all {len(records)} records have labels, and nothing is left to ask: leave --ask out")
    before = ladder.certificate
    measure = risk or ("drop" if before is None else before.risk)
    if measure == "disagreement":
        raise CalibrationError("risk 'disagreement' needs no labels, the last network answers: leave --ask out")
    settings = DemandSettings.of(
        max_drops,
        delta=delta if delta is not None else 0.1 if before is None else before.delta,
        risk=measure,
        combine=ladder.combine,
        score=score or ladder.score,
        budget=budget,
        batch_size=rows,
    )
    store = AnswerFile(path, len(records), records.logits.shape[2])
    asking = Asking(records, settings).resumed(store)
    if not store.labels and not store.questions:
        print(f"about {asking.plan.labels} labels are likely, for {asking.plan.draws} inputs drawn at random")
        print(curve_text(asking.curve))
    questions, reason = asking.next_rows(store.labels)
    if len(questions):
        store.ask(questions.tolist())
        print(f"{len(store.questions)} rows of {path} have no label: fill them in and call again")
        return None
    print(f"{len(store.labels)} labels: {reason}")
    return asking.answered(store.labels)


def export(
    shelf: Shelf,
    out: Annotated[Path, typer.Argument(help="The file to write, model.onnx, or Triton's folder.", show_default=False)],
    batch: Annotated[str, typer.Option(help="'single' for one input at a time, 'dynamic' for any number.")] = "dynamic",
    point: Annotated[str | None, typer.Option(help="Only what this point uses, 'drop 0.01' for instance.")] = None,
    format: Annotated[str, typer.Option(help="'onnx', or 'triton' for a model of Triton's server.")] = "onnx",
    max_batch: Annotated[int | None, typer.Option(help="Rows that Triton may put together.")] = None,
) -> None:
    """Write the whole cascade as one ONNX file that runs without this library."""
    words: Any = {"batch": batch, "format": format}
    print(dynamic.export(dynamic.load(shelf), out, point=point, max_batch=max_batch, **words))


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(build)
    app.command()(certify)
    app.command()(export)
