"""`dynamic wrap|fit`: exits on a network, and their training. Both import torch."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

import dynamic
from dynamic.cli.options import Json
from dynamic.cli.project.commands import add, note
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
)
from dynamic.cli.sources.spelled_numbers import not_negative, positive, shape
from dynamic.errors import InputError, SettingError
from dynamic.policies.words.tables import table

Network = Annotated[str, typer.Argument(help="The network by its name.", show_default=False)]
Data = Annotated[str, typer.Argument(help="Data that trained no network, by their name.", show_default=False)]
Weights = Annotated[str | None, typer.Option(help="Weights of the network: .safetensors, .pt, or 'random'. [its own]")]
Seed = Annotated[int, typer.Option(help="Of every random choice.")]


def wrap(
    network: Network,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the network with exits.")] = Path(
        "wrapped.safetensors"
    ),
    exits: Annotated[int, typer.Option(help="How many exits, at about equal shares of compute.")] = 3,
    at: Annotated[
        list[str] | None, typer.Option(help="Name of a module whose result an exit reads, once for each.")
    ] = None,
    input_shape: Annotated[
        str | None, typer.Option("--shape", help="Of one input, such as 3x224x224. [what the network says]")
    ] = None,
    weights: Weights = None,
    tokenizer: TokenizerFile = None,
    max_tokens: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Put exits on a network, show where they are, and write it as a file that `fit` takes as a network.

    Exits start untrained. `build --exits` and `fit --exits` wrap by themselves: this command is for looking at the
    places, and for choosing them.
    """
    from dynamic.cli.sources.networks.named_networks import network_named
    from dynamic.cli.sources.networks.network_files import check_ending, save_network

    positive("--exits", exits)
    check_ending(out, ".safetensors")
    sides = shape("--shape", input_shape)
    plain = network_named(network, weights, max_tokens=max_tokens)
    if tokenizer is not None:
        plain = plain.with_tokenizer(tokenizer)
    if sides is None:
        sides = _own_shape(plain)
    if sides is None and plain.example is None and not plain.has_exits:
        raise InputError(
            f"network {network} does not say what it takes: give --shape 3x224x224, or --tokenizer tokenizer.json "
            "where it takes texts"
        )
    wrapped = plain.wrapped(tuple(at) if at else exits, sides)
    net = cast(Any, wrapped.module("has no exits"))
    save_network(net, out, wrapped.recipe)
    rows = [{"exit": e.name, "share": e.share, "shape": list(e.shape)} for e in net.exits]
    if as_json:
        print(json.dumps({"file": str(out), "exits": rows, "why_not_trainable": net.why_not_trainable}))
        return
    cells = [(e.name, f"{e.share:.0%}", "x".join(map(str, e.shape))) for e in net.exits]
    print(table(("exit behind", "of compute", "reads"), cells))
    print(f"\n{out}: the exits are untrained\nnext: dynamic fit {out} DATA")


def fit(
    network: Network,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the trained network.")] = Path(
        "fitted.safetensors"
    ),
    exits: Annotated[
        int | None, typer.Option(help="Exits to add. 0: none. [3 in mode heads, where the network has none]")
    ] = None,
    mode: Annotated[
        str, typer.Option(help="'heads' trains exits alone, 'joint' everything, 'distill' everything by a teacher.")
    ] = "heads",
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. [20]")] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [0.003 for heads and AdamW, 0.05 for SGD]")] = None,
    optimizer: Annotated[str | None, typer.Option(help="'adamw' or 'sgd'. [adamw for heads and texts]")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="A network by its name, for mode distill. [the last exit]")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A file that is replaced after each epoch, and continued from.")
    ] = None,
    split: Split = None,
    train_data: TrainData = None,
    train_split: TrainSplit = None,
    whole: Annotated[bool, typer.Option("--whole", help="Train on all data. `build` then needs others.")] = False,
    weights: Weights = None,
    root: Root = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    preprocess: PreprocessName = None,
    tokenizer: TokenizerFile = None,
    max_tokens: MaxTokens = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Train the exits of a network, or all of it, and write it as a file that `build` takes as a network.

    Where the data have no split called train, half of them train. `build` with the same data uses the other half.
    """
    from dynamic.cli.sources.networks.named_networks import network_named
    from dynamic.cli.sources.networks.network_files import check_ending, save_network
    from dynamic.cli.sources.task import DataOptions, classes_in, prepared
    from dynamic.offline.option_words import Mode, check_word

    check_word("mode", mode, Mode)
    check_ending(out, ".safetensors")
    not_negative("--exits", exits)
    positive("--epochs", epochs)
    if teacher is not None and mode == "heads":
        raise SettingError(f"--teacher {teacher} is for --mode joint and distill: leave it out, or change --mode")
    options = DataOptions(
        data, split, train_data, train_split, root, mean, std, resize, crop, preprocess, tokenizer, limit, seed
    )
    named = network_named(network, weights, max_tokens=max_tokens)
    classes = classes_in(options)
    if mode != "heads" and not named.has_exits and named.can_change_classes(classes):
        note(f"the last layer of {network} is new, for {len(classes)} classes: {', '.join(classes[:3])}, ...")
        named = network_named(network, weights, outputs=len(classes), max_tokens=max_tokens)
        named = replace(named, recipe=replace(named.recipe, classes=None))
    task = prepared([named], options, trains=True, whole=whole)
    named = named.for_texts(task.preprocess)
    for line in task.notes:
        note(line)
    if exits == 0 and mode == "heads" and not named.has_exits:
        raise SettingError(
            f"--exits 0: mode heads trains exits, and {network} has none. Give 1 or more, or --mode joint"
        )
    if exits or (exits is None and mode == "heads" and not named.has_exits):
        named = named.wrapped(3 if exits is None else exits, task.shape)
    module = named.module("cannot be trained")
    training: dict[str, Any] = {}
    if optimizer is not None or (mode != "heads" and named.example is not None):
        training["training"] = dynamic.TrainingConfig(optimizer=cast(Any, optimizer or "adamw"))
    if teacher is not None:
        other = network_named(teacher).module("is no teacher here")
        training["distillation"] = dynamic.DistillationConfig(teacher=other)
    report = dynamic.fit(
        module,
        task.train,
        mode=cast(Any, mode),
        epochs=epochs,
        lr=lr,
        eval_loader=None if whole else task.held_out,
        checkpoint=checkpoint,
        seed=seed,
        **training,
    )
    trained_on = tuple(dict.fromkeys((*named.recipe.trained_on, *task.trained_on)))
    recipe = replace(named.recipe, classes=task.classes, shape=task.shape, trained_on=trained_on)
    save_network(module.eval(), out, recipe.with_preprocess(task.preprocess))
    if as_json:
        print(json.dumps({"file": str(out), "report": asdict(report)}))
        return
    print(report)
    print(f"\n{out}\nnext: dynamic build {out} {'OTHER_DATA' if whole else data}")


def _own_shape(named: Any) -> tuple[int, ...] | None:
    """The shape of one input by the network's own preprocessing, where that crops or resizes to one size."""
    from dynamic.data.image_steps import CenterCrop
    from dynamic.data.resize_step import Resize

    sides: Any = None
    for step in getattr(named.preprocess, "steps", ()):
        if isinstance(step, (CenterCrop, Resize)) and isinstance(step.size, tuple):
            sides = step.size
    return None if sides is None or named.channels is None else (named.channels, *sides)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    add(app, wrap, example="dynamic wrap torchvision:resnet18 --exits 3 --shape 3x224x224")
    add(app, fit, example="dynamic fit torchvision:resnet18 photos/ --exits 3 -o fitted.safetensors")
