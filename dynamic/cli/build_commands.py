"""`dynamic build|certify|export`: bundles from networks and from other bundles.

`build` needs torch. It is imported only when a command needs it.
"""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_writer import check_target
from dynamic.cli.options import Json, Shelf
from dynamic.cli.project.commands import add, is_of_file, note
from dynamic.cli.results import bundle_json, bundle_lines
from dynamic.cli.sources.data_arguments import (
    Crop,
    Limit,
    MaxTokens,
    Mean,
    PreprocessName,
    Resize,
    Root,
    Split,
    Std,
    TokenizerFile,
    TrainData,
    TrainSplit,
    named_sources,
)
from dynamic.cli.sources.spelled_numbers import not_negative
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
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Networks, the smallest first, then the data.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the bundle. An old bundle is replaced.")] = Path(
        "shelf"
    ),
    network: Annotated[
        list[str] | None,
        typer.Option("--network", "--networks", help="A network by its name, once for each, the smallest first."),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Held-out data by their name.")] = None,
    split: Split = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Weights of each network, in order: .safetensors, .pt, or 'random'. [its own]"),
    ] = None,
    root: Root = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    preprocess: PreprocessName = None,
    tokenizer: TokenizerFile = None,
    max_tokens: MaxTokens = None,
    exits: Annotated[
        int | None, typer.Option(help="Add so many exits to the last network, and train them. 0: none.")
    ] = None,
    train_data: TrainData = None,
    train_split: TrainSplit = None,
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
    limit: Limit = None,
    as_json: Json = False,
) -> None:
    """Build a bundle from trained networks and held-out data: export, calibrate, choose thresholds.

    Networks: torchvision:resnet18, timm:NAME, hf:FOLDER, file.onnx, file.safetensors of `fit`, file.py:function or
    module:factory. Data: a folder or zip of class folders with images or wav files, a table of texts (.csv, .tsv,
    .jsonl), torchvision:CIFAR10, or file.py:function. What trained a network must not be among them.
    """
    from dynamic.cli.sources.added_exits import wanted_exits, with_exits
    from dynamic.cli.sources.networks.named_networks import network_named
    from dynamic.cli.sources.task import DataOptions, prepared

    networks, data = named_sources(sources, network, data)
    if weights and len(weights) != len(networks):
        raise SettingError(f"{len(weights)} --weights for {len(networks)} networks: give one for each, in order")
    not_negative("--exits", exits)
    check_target(out)  # now, and not after the training
    at_most = is_of_file(context, "exits")
    check_combination(combine)
    chosen_score, chosen_risk = check_score_choice(score), risk_named(risk).name
    options = DataOptions(
        data, split, train_data, train_split, root, mean, std, resize, crop, preprocess, tokenizer, limit, seed
    )
    named = [network_named(name, file, max_tokens=max_tokens) for name, file in zip_longest(networks, weights or ())]
    count, fewer = wanted_exits(named[-1], exits, at_most=at_most)
    task = prepared(named, options, trains=count > 0)
    named = [one.for_texts(task.preprocess) for one in named]
    if count:
        named[-1], fewer = with_exits(named[-1], count, task.shape, at_most=at_most)
    for line in (*task.notes, *([fewer] if fewer else [])):
        note(line)
    if count and named[-1].has_exits:
        report = dynamic.fit(named[-1].module("has no exits"), task.train, mode="heads", seed=seed)
        if not as_json:
            print(report)
    names = [one.name for one in named]
    plain_shapes = next((o.dynamic_shapes for o in named if o.dynamic_shapes is not None and not o.has_exits), None)
    cascade: Any = [one.network for one in named]
    if not all(isinstance(one, str) for one in cascade):
        cascade = dynamic.Cascade(
            cascade,
            combine=check_combination(combine),
            names=names if len(set(names)) == len(names) else None,
            dynamic_shapes=plain_shapes,
        )
    bundle = dynamic.build(
        cascade,
        task.held_out,
        engine=cast(Any, engine),
        preprocess=task.preprocess,
        classes=task.classes,
        combine=check_combination(combine),
        score=chosen_score,
        risk=chosen_risk,
        delta=delta,
        seed=seed,
        max_drops=max_drop or None,
        floor=floor,
    ).save(out)
    print(bundle_json(bundle) if as_json else bundle_lines(bundle))


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
    as_json: Json = False,
) -> None:
    """Make another ladder from a bundle's records: other targets, risk or delta. A choice by the outcome voids it."""
    check_target(out)
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
    print(bundle_json(bundle) if as_json else bundle_lines(bundle))


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
    add(app, build, example="dynamic build torchvision:resnet18 photos/ --exits 3 -o shelf")
    add(app, certify, example="dynamic certify shelf another --max-drop 0.005")
    add(app, export, example="dynamic export shelf model.onnx --batch single")
