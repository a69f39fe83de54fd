"""`dynamic compress`: a smaller network from a trained one, as an ONNX file that `build` takes as a network."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, cast

import typer

import dynamic
from dynamic.cli.options import Json
from dynamic.cli.project.commands import add, note
from dynamic.cli.sources.data_arguments import (
    Crop,
    Limit,
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
from dynamic.cli.training.training_commands import Data, Network, Seed, Weights
from dynamic.errors import InputError, SettingError

# method -> (what --amount means for it, its default). None: it has no amount
METHODS: Mapping[str, tuple[str, float] | None] = {
    "quantize": None,
    "prune_channels": ("share of the channels that go", 0.5),
    "prune_blocks": ("number of residual branches that go", 1),
    "prune_encoder": ("share of attention heads and hidden neurons that go", 0.25),
    "low_rank": ("share of the energy that remains", 0.9),
}


def compress(
    network: Network,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="The ONNX file to write.")] = Path("small.onnx"),
    method: Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")] = "quantize",
    amount: Annotated[
        float | None,
        typer.Option(help="How much: 0.5 of the channels, 1 block, 0.25 of heads and neurons, 0.9 of the energy."),
    ] = None,
    epochs: Annotated[
        int, typer.Option(help="Epochs of training with the whole network as teacher. 0: none. Not for quantize.")
    ] = 0,
    lr: Annotated[float | None, typer.Option(help="Its learning rate.")] = None,
    split: Split = None,
    train_data: TrainData = None,
    train_split: TrainSplit = None,
    weights: Weights = None,
    root: Root = None,
    mean: Mean = None,
    std: Std = None,
    resize: Resize = None,
    crop: Crop = None,
    preprocess: PreprocessName = None,
    tokenizer: TokenizerFile = None,
    limit: Limit = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Make a smaller network: int8, pruned or low-rank. It is the first network of a cascade with the whole one.

    Where the data have no split called train, half of them choose and train. `build` uses the other half.
    """
    from dynamic.cli.sources.networks.named_networks import network_named
    from dynamic.cli.sources.networks.network_files import check_ending
    from dynamic.cli.sources.task import DataOptions, prepared

    if method not in METHODS:
        raise SettingError(f"--method {method!r} is not known: use one of {', '.join(METHODS)}")
    entry = METHODS[method]
    if entry is None and amount is not None:
        raise SettingError(f"--amount {amount:g}: {method} has no amount. Leave it out")
    if epochs < 0 or (epochs and method == "quantize"):
        raise SettingError(f"--epochs {epochs}: {'int8 is not trained' if epochs > 0 else 'it is below 0'}. Give 0")
    check_ending(out, ".onnx")
    options = DataOptions(
        data, split, train_data, train_split, root, mean, std, resize, crop, preprocess, tokenizer, limit, seed
    )
    named = network_named(network, weights)
    if named.has_exits:
        raise InputError(f"network {network} has exits: compress the plain network first, and give exits with fit")
    module = named.module("is compressed already, or cannot be")
    task = prepared([named], options, trains=True)
    named = named.for_texts(task.preprocess)
    for line in task.notes:
        note(line)
    example = _example(named, task)
    smaller = _method(method, entry[1] if entry and amount is None else amount)(module, example, task)
    report = smaller.report
    if epochs:
        dynamic.fit(
            smaller.network,
            task.train,
            mode="distill",
            epochs=epochs,
            lr=lr,
            seed=seed,
            distillation=dynamic.DistillationConfig(teacher=module),
        )
        from dynamic.models.compress import measure

        before, after = measure([module, smaller.network], example, eval_loader=task.held_out)
        report = replace(report, before=before, after=after)
    trained_on = tuple(dict.fromkeys((*named.recipe.trained_on, *task.trained_on)))
    recipe = replace(named.recipe, classes=task.classes, trained_on=trained_on).with_preprocess(task.preprocess)
    _write(smaller.network, example, named.dynamic_shapes, out, recipe)
    if as_json:
        print(json.dumps({"file": str(out), "report": asdict(report)}, default=str))
        return
    print(report)
    print(f"\n{out}\nnext: dynamic build {out} {network} {data}")


def _method(method: str, amount: float | None) -> Callable[[Any, Any, Any], Any]:
    from dynamic.models import compress as methods

    def run(network: Any, example: Any, task: Any) -> Any:
        common = {"eval_loader": task.held_out}
        if method == "quantize":
            return methods.quantize(network, example, calibration_loader=task.train, **common)
        if method == "prune_channels":
            return methods.prune_channels(network, example, amount=cast(float, amount), **common)
        if method == "prune_blocks":
            count = int(cast(float, amount))
            return methods.prune_blocks(network, example, count=count, selection_loader=task.train, **common)
        if method == "prune_encoder":
            share = cast(float, amount)
            return methods.prune_encoder(network, example, heads=share, neurons=share, **common)
        return methods.low_rank(network, example, energy=cast(float, amount), **common)

    return run


def _example(named: Any, task: Any) -> Any:
    """A batch of two inputs."""
    import torch

    if named.example is not None:
        return named.example
    inputs = next(iter(task.train))[0]
    if hasattr(inputs, "shape"):
        return torch.as_tensor(inputs[:2])
    return {name: torch.as_tensor(array[:2]) for name, array in inputs.items()}


def _write(network: Any, example: Any, dynamic_shapes: Any, out: Path, recipe: Any) -> None:
    """The network as one ONNX file with its weights in it."""
    import onnx

    from dynamic.cli.sources.networks.network_files import note_recipe
    from dynamic.offline.onnx_export.stage_graphs import export_stages
    from dynamic.storage.atomic_write import disk_errors

    with TemporaryDirectory() as folder:
        cascade = dynamic.Cascade([network], dynamic_shapes=dynamic_shapes)
        spec = export_stages(cascade, Path(folder), example)
        model = onnx.load(Path(folder) / spec.stages[0].graph)
    note_recipe(model, recipe)
    with disk_errors("the network", out):
        out.parent.mkdir(parents=True, exist_ok=True)
        onnx.save(model, out)


def register(app: typer.Typer) -> None:
    """Add the command."""
    add(app, compress, example="dynamic compress torchvision:resnet18 photos/ -o small.onnx")
