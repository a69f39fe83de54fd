"""What a command that builds works on: networks, batches that train, batches that are held out, preprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamic.cli.sources.data_sets.batches import batches_of
from dynamic.cli.sources.data_sets.examples import Examples
from dynamic.cli.sources.data_sets.named_data import data_named
from dynamic.cli.sources.factories import object_at
from dynamic.cli.sources.networks.named_networks import NamedNetwork
from dynamic.cli.sources.networks.network_files import TrainedOn
from dynamic.cli.sources.networks.text_networks import tokenizer_at
from dynamic.cli.sources.spelled_numbers import numbers, positive, size
from dynamic.data.image_steps import CenterCrop
from dynamic.data.number_steps import Normalize, Scale
from dynamic.data.preprocessing import Preprocess, Step
from dynamic.data.resize_step import Resize
from dynamic.offline.build_steps.preprocessing_data import as_data
from dynamic.policies.errors import CalibrationError, InputError, SettingError

_SHOWN = 3  # classes in a message


@dataclass(frozen=True)
class DataOptions:
    """Options of commands that read data.

    Args:
        data: The data set.
        split: Its split that is held out.
        train_data: Another data set that trains.
        train_split: The split that trains.
        root: Folder of a data set of torchvision.
        mean: To normalize by.
        std: To normalize by.
        resize: Shorter side, or height and width.
        crop: Square in the middle, or height and width.
        preprocess: `file.py:name` of a preprocessing.
        tokenizer: A tokenizer file.
        limit: Number of held-out examples.
        seed: Of every lot.

    Raises:
        SettingError: A number or size is none, or out of range.
    """

    data: str
    split: str | None = None
    train_data: str | None = None
    train_split: str | None = None
    root: str | None = None
    mean: str | None = None
    std: str | None = None
    resize: str | None = None
    crop: str | None = None
    preprocess: str | None = None
    tokenizer: str | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        numbers("--mean", self.mean)
        numbers("--std", self.std)
        size("--resize", self.resize)
        size("--crop", self.crop)
        positive("--limit", self.limit)


@dataclass(frozen=True)
class Task:
    """Networks with their data.

    Args:
        preprocess: What makes the inputs of all networks, as data.
        classes: Names of the classes. None: nobody names them.
        held_out: Batches that trained nothing.
        train: Batches that train. None: nothing is trained.
        trained_on: What `train` is, for the recipe of a network that learns from it.
        notes: Choices that were made for the user, a sentence each.
    """

    preprocess: Any
    classes: tuple[str, ...] | None
    held_out: Any
    train: Any = None
    trained_on: tuple[TrainedOn, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Shape of one input. None: it is no single array."""
        inputs = next(iter(self.held_out))[0]
        return tuple(inputs.shape[1:]) if hasattr(inputs, "shape") else None


def prepared(networks: Sequence[NamedNetwork], options: DataOptions, *, trains: bool, whole: bool = False) -> Task:
    """Read the data of a command.

    Where something trains, it is what `train_data` or `train_split` names, or a split called train. Where there is
    none, a lot divides the data into a half that trains and a half that is held out.

    Args:
        networks: The networks, the smallest first.
        options: The options.
        trains: Whether something is trained.
        whole: Whether all data train and nothing is held out.

    Returns:
        The task.

    Raises:
        SettingError: An option is out of range.
        InputError: Data or preprocessing do not fit.
        CalibrationError: The data that would be held out have trained one of the networks.
    """
    preprocess, notes = _preprocess(networks, options)
    train, held_out, more = _divided(networks, options, trains, whole)
    classes, held_out, train = _classes(networks, held_out, train)
    channels = next((one.channels for one in reversed(networks) if one.channels is not None), None)
    inputs = next((tuple(one.example) for one in networks if one.example is not None), None)
    if preprocess is None and held_out.kind == "images":
        preprocess = Preprocess.of()
    if held_out.kind == "batches":
        preprocess = as_data(held_out.preprocess) if preprocess is None else preprocess
    else:
        held_out = held_out.drawn(options.limit, options.seed)
    held_batches = batches_of(held_out, preprocess, channels, inputs)
    train_batches = None
    if train is not None:
        drawn = train if train.kind == "batches" else train.drawn(None, options.seed)
        train_batches = batches_of(drawn, preprocess, channels, inputs)
    trained_on = () if train is None else (_trained_on(train),)
    return Task(preprocess, classes, held_batches, train_batches, trained_on, (*notes, *more))


def classes_in(options: DataOptions) -> tuple[str, ...]:
    """Names of the classes of the data that train, before anything is decoded."""
    name = options.train_data or options.data
    split = options.train_split or (options.split if options.train_data is None else None)
    return data_named(name, split, role="train", root=options.root).classes


def _divided(
    networks: Sequence[NamedNetwork], options: DataOptions, trains: bool, whole: bool
) -> tuple[Examples | None, Examples, list[str]]:
    """(examples that train, examples that are held out, notes)."""
    if whole:
        data = data_named(options.data, options.train_split or options.split, role="train", root=options.root)
        return data, data, []
    data = data_named(options.data, options.split, root=options.root)
    notes = [] if options.split or not data.split else [f"{len(data)} examples of split {data.split!r} are held out"]
    place = _place(data)
    halves = _halves_since(data, networks)
    held_out = data if halves is None else halves[1]
    if not trains:
        if halves is not None:
            notes.append(f"{len(held_out)} of {len(data)} examples are held out, the others trained a network")
        return None, held_out, notes
    named = options.train_data or options.train_split
    train = data_named(options.train_data or options.data, options.train_split, role="train", root=options.root)
    if _place(train) != place:
        return train, held_out, [*notes, f"{_number(train)} of {train.name}{_of_split(train)} train"]
    if named and train.kind != "batches":
        raise SettingError(
            f"--train-data {train.name}{_of_split(train)} is what is held out too: name other data or another split, "
            "or leave it out, and half of the data train"
        )
    first, second = halves or data.halves(options.seed)
    return first, second, [*notes, f"{len(first)} of {len(data)} examples train, the other {len(second)} are held out"]


def _halves_since(data: Examples, networks: Sequence[NamedNetwork]) -> tuple[Examples, Examples] | None:
    """The halves of data of which one half trained a network before. None: they trained none.

    Raises CalibrationError where all of them did.
    """
    same = {one for network in networks for one in network.recipe.trained_on if (one.data, one.split) == _place(data)}
    if not same:
        return None
    seeds = {one.seed for one in same}
    if data.kind == "batches" or not all(one.half for one in same) or len(seeds) > 1:
        raise CalibrationError(
            f"{data.name}{_of_split(data)} trained network {networks[-1].name}, and what trained may not certify: "
            "give other data, or another --split"
        )
    return data.halves(seeds.pop())


def _number(examples: Examples) -> str:
    return "batches" if examples.kind == "batches" else f"{len(examples)} examples"


def _of_split(examples: Examples) -> str:
    return "" if examples.split is None else f", split {examples.split!r},"


def _place(examples: Examples) -> tuple[str, str | None]:
    path = Path(examples.name)
    return (str(path.resolve()) if path.exists() else examples.name), examples.split


def _trained_on(train: Examples) -> TrainedOn:
    data, split = _place(train)
    return TrainedOn(data, split, train.half == "train", train.lot)


def _classes(
    networks: Sequence[NamedNetwork], held_out: Examples, train: Examples | None
) -> tuple[tuple[str, ...] | None, Examples, Examples | None]:
    """(names of the classes, the examples with labels in their order)."""
    if train is not None and held_out.classes and set(train.classes) - set(held_out.classes):
        extra = sorted(set(train.classes) - set(held_out.classes))
        if train.kind != "batches":
            raise InputError(
                f"{train.name} has classes that {held_out.name} lacks: {', '.join(extra[:_SHOWN])}. Give both the same "
                "classes"
            )
    own = next((one.classes for one in reversed(networks) if one.classes is not None), None)
    if held_out.kind == "batches":
        return held_out.classes or own, held_out, train
    names = own if own is not None else held_out.classes
    if own is not None and set(held_out.classes) - set(own):
        if len(own) == len(held_out.classes):
            names = held_out.classes
        else:
            raise InputError(
                f"network {networks[-1].name} answers {len(own)} classes ({_few(own)}), and {held_out.name} has "
                f"{len(held_out.classes)} ({_few(held_out.classes)}): name the folders or labels like its classes, or "
                f"train it on them first, fit {networks[-1].recipe.source} {held_out.name} --mode joint"
            )
    return names, held_out.labelled_as(names), None if train is None else train.labelled_as(names)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _preprocess(networks: Sequence[NamedNetwork], options: DataOptions) -> tuple[Any, list[str]]:
    """(what makes the inputs, notes)."""
    own = [(one.name, one.preprocess) for one in networks if one.preprocess is not None]
    changed = {"--mean": options.mean, "--std": options.std, "--resize": options.resize, "--crop": options.crop}
    words = [name for name, value in changed.items() if value is not None]
    if options.tokenizer is not None:
        return tokenizer_at(options.tokenizer), []
    if options.preprocess is not None:
        if words:
            raise SettingError(f"--preprocess {options.preprocess} has its own steps: leave out {', '.join(words)}")
        return as_data(object_at(options.preprocess, "preprocessing")), []
    base = own[-1][1] if own else None
    if words and base is not None and not isinstance(base, Preprocess):
        raise SettingError(f"{', '.join(words)} are for images, and network {own[-1][0]} takes none: leave them out")
    if words:
        mean, std = numbers("--mean", options.mean), numbers("--std", options.std)
        resize, crop = size("--resize", options.resize), size("--crop", options.crop)
        return _changed(base or Preprocess.of(), Preprocess.of(mean, std, resize=resize, crop=crop), words), []
    others = [name for name, one in own if one != base]
    note = f"all networks get the inputs of {own[-1][0]}, and {', '.join(others)} had others" if others else ""
    return base, [note] if note else []


def _changed(base: Preprocess, given_steps: Preprocess, words: Sequence[str]) -> Preprocess:
    """The steps of a network with those that options replace."""
    kinds: tuple[tuple[type[Step], bool], ...] = (
        (Resize, "--resize" in words),
        (CenterCrop, "--crop" in words or "--resize" in words),
        (Scale, False),
        (Normalize, "--mean" in words or "--std" in words),
    )
    steps: list[Step] = []
    for kind, replaced in kinds:
        steps += [step for step in (given_steps if replaced else base).steps if isinstance(step, kind)]
        if kind is CenterCrop:
            others = tuple(kind for kind, _ in kinds)
            steps += [step for step in base.steps if not isinstance(step, others)]
    return Preprocess(tuple(steps))
