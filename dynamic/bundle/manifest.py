"""What a manifest says, checked before anything of it is used: types, ranges, lengths, and where its files lie.

Its hash proves that it is as it was written. It does not prove who wrote it, so every value is checked.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dynamic.bundle.canaries.canary_set import CANARIES
from dynamic.bundle.contract import Preprocessing
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.bundle.sharing.slim_facts import SlimFacts
from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.sound_preprocess import SoundPreprocess, is_sound
from dynamic.data.text.text_preprocessing import TOKENIZER, TextPreprocess, is_text
from dynamic.engines.contract import GRAPH, SINGLE_GRAPH, CascadeSpec, InputSpec, StageSpec
from dynamic.engines.engine_factory import ENGINES, PRECISIONS
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.policies.errors import (
    BundleError,
    CorruptError,
    SchemaError,
)
from dynamic.policies.ladder import Ladder
from dynamic.policies.validation.fields import items, mapping, maybe, number, text, whole, word
from dynamic.storage.inner_paths import file_name
from dynamic.storage.json_files import read_json
from dynamic.storage.open_files import folder_state
from dynamic.storage.regular_files import check_hash
from dynamic.storage.versioned_folder import standing

MANIFEST = "bundle.json"
SCHEMA = 3  # with limits of token ids
_RANGES_SCHEMA = 2  # with dynamic dimensions
_FIRST_SCHEMA = 1  # with neither. A bundle has the least that it needs, which earlier versions read too
LADDER, RECORDS = "ladder.json", "records.npz"
_ALWAYS = (LADDER, RECORDS)
_WHERE_PRESENT = (CANARIES, GRAPH, SINGLE_GRAPH)  # used where they lie in the folder, so they must be listed
_DTYPES = (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
_MOST_SIDE, _MOST_VALUES = 2**24, 2**30  # of an input: one side, and all of it
_MOST_CLASSES, _MOST_STAGES = 10_000_000, 1000
_HEX = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class Facts:
    """What a manifest says. `files`: (bytes, SHA-256) of each file by name."""

    spec: CascadeSpec
    engine: str
    precision: str
    cascade: str
    fingerprint: str
    classes: tuple[str, ...] | None
    preprocess: Preprocessing | None
    calibrated_on: EngineIdentity | None
    files: Mapping[str, tuple[int, str]]
    slim: SlimFacts | None = None


def read_facts(manifest: Mapping[str, Any], folder: Path) -> Facts:
    """Check a manifest whose hash is right.

    Args:
        manifest: As it was read.
        folder: Of the bundle.

    Returns:
        What it says.

    Raises:
        CorruptError: A value of the wrong type or range, or a file that is used and not listed.
        SchemaError: Preprocessing of a newer version.
    """
    try:
        engine = word(manifest["engine"], "engine", ENGINES)
        spec = _spec(manifest["spec"])
        names = maybe(manifest["classes"], "classes", lambda v, name: items(v, name, text, spec.classes))
        preprocess = manifest["preprocess"]
        identity = manifest.get("calibrated_on")  # bundles of the first version have none
        facts = Facts(
            spec=spec,
            engine=engine,
            precision=word(manifest["precision"], "precision", PRECISIONS[engine]),
            cascade=text(manifest["cascade"], "cascade"),
            fingerprint=text(manifest["fingerprint"], "fingerprint"),
            classes=names,
            preprocess=None if preprocess is None else _preprocessing(preprocess, manifest, folder),
            calibrated_on=None if identity is None else EngineIdentity.from_json(identity),
            files={file_name(name): _file(entry, name) for name, entry in mapping(manifest["files"], "files").items()},
            slim=maybe(manifest.get("slim"), "slim", SlimFacts.from_json),  # of whole bundles there is none
        )
        _check_listed(facts, folder)
        return facts
    except KeyError as error:
        raise CorruptError(f"{folder}: the manifest lacks {error}. Build or copy the bundle again") from error
    except (TypeError, ValueError, OverflowError, RecursionError, AttributeError) as error:
        raise CorruptError(f"{folder}: the manifest does not read ({error}). Build or copy the bundle again") from error


def _preprocessing(data: Any, manifest: Mapping[str, Any], folder: Path) -> Preprocessing:
    """The preprocessing. A tokenizer is read right away, from a file whose hash the manifest lists."""
    if is_text(data):
        _, sha256 = _file(mapping(manifest["files"], "files")[TOKENIZER], TOKENIZER)
        check_hash(folder, TOKENIZER, sha256)
        return TextPreprocess.from_json(data, (folder / TOKENIZER).read_bytes())
    return SoundPreprocess.from_json(data) if is_sound(data) else Preprocess.from_json(data)


def check_ladder(facts: Facts, ladder: Ladder, folder: Path) -> None:
    """Raises CorruptError where a ladder is not of the cascade that the manifest describes."""
    names = tuple(stage.name for stage in facts.spec.stages)
    for what, own, wanted in (
        ("backbones", ladder.backbone, facts.spec.backbone),
        ("stages", ladder.stage_names, names),
        ("fingerprint", ladder.fingerprint, facts.fingerprint),
    ):
        if own != wanted:
            raise CorruptError(
                f"{folder}: the ladder has the {what} {own!s:.200}, the manifest {wanted!s:.200}. Build or copy the "
                "bundle again"
            )


def _check_listed(facts: Facts, folder: Path) -> None:
    """Raises ValueError where a file that would be used is not in the list."""
    needed: list[str] = list(_ALWAYS)
    needed += [name for name in _WHERE_PRESENT if (folder / name).exists()]
    graphs = [name for stage in facts.spec.stages for name in (stage.graph, stage.body_graph) if name is not None]
    if any(name in facts.files or (folder / name).exists() for name in graphs):  # else it is for torch alone
        needed += graphs
        backbones = facts.spec.backbone
        for stage, after, spec in zip(backbones, backbones[1:], facts.spec.stages, strict=False):
            if stage == after and spec.body_graph is None:
                raise ValueError(f"stage {spec.name!r:.80} has no body_graph, and another stage follows it")
    if missing := [name for name in needed if name not in facts.files]:
        raise ValueError(f"{missing[0]} is used and not among the files that it lists")


def _file(value: Any, name: str) -> tuple[int, str]:
    entry = mapping(value, f"{name:.80}", ("bytes", "sha256"))
    digest = text(entry["sha256"], f"{name:.80}.sha256", 64)
    if len(digest) != 64 or not _HEX.issuperset(digest):
        raise ValueError(f"{name:.80}.sha256={digest!r} must be 64 hexadecimal digits")
    return whole(entry["bytes"], f"{name:.80}.bytes"), digest


def _spec(value: Any) -> CascadeSpec:
    data = mapping(value, "spec", ("inputs", "stages", "classes"))
    spec = CascadeSpec(
        inputs=items(data["inputs"], "inputs", _input, most=_MOST_STAGES),
        stages=items(data["stages"], "stages", _stage, most=_MOST_STAGES),
        classes=whole(data["classes"], "classes", 1, _MOST_CLASSES),
    )
    if not spec.inputs or not spec.stages:
        raise ValueError("there is no input, or no stage")
    _check_different("inputs", [i.name for i in spec.inputs])
    before = -1
    for stage in spec.stages:
        if stage.backbone not in (before, before + 1) or stage.backbone < 0:
            raise ValueError(f"backbone={spec.backbone} must count up from 0")
        before = stage.backbone
    return spec


def _check_different(what: str, names: Iterable[str]) -> None:
    listed = list(names)
    if len(set(listed)) != len(listed):
        raise ValueError(f"{what} has a name twice: {listed!s:.200}")


def _input(value: Any, name: str) -> InputSpec:
    data = mapping(value, name, ("name", "shape", "dtype"), ("ids",))
    sides = items(data["shape"], f"{name}.shape", _side, most=16)
    shape = tuple(size for size, _ in sides)
    ranges = tuple(span for _, span in sides)
    count = 1
    for side in shape:
        count *= side
    if count > _MOST_VALUES:
        raise ValueError(f"{name}.shape={shape} has {count} values, the limit is {_MOST_VALUES}")
    kind = word(data["dtype"], f"{name}.dtype", _DTYPES)
    ids = maybe(data.get("ids"), f"{name}.ids", lambda v, what: whole(v, what, 1, _MOST_SIDE))
    return InputSpec(text(data["name"], f"{name}.name", 1000), shape, kind, ranges if any(ranges) else (), ids)


def _side(value: Any, name: str) -> tuple[int, DimRange | None]:
    """The size of a dimension, of a dynamic one that of the example, and its range."""
    if not isinstance(value, Mapping):
        return whole(value, name, 1, _MOST_SIDE), None
    data = mapping(value, name, ("name", "min", "max", "factor", "offset", "example"))
    least = whole(data["min"], f"{name}.min", 0, _MOST_SIDE)
    span = DimRange(
        name=text(data["name"], f"{name}.name", 1000),
        min=least,
        max=maybe(data["max"], f"{name}.max", lambda v, what: whole(v, what, least, _MOST_SIDE)),
        factor=whole(data["factor"], f"{name}.factor", 1, _MOST_SIDE),
        offset=whole(data["offset"], f"{name}.offset", -_MOST_SIDE, _MOST_SIDE),
    )
    size = whole(data["example"], f"{name}.example", 1, _MOST_SIDE)
    if span.number(size) is None or span.size(least) < 1:
        raise ValueError(f"{name}.example={size} must be from {span.words}")
    return size, span


def spec_json(spec: CascadeSpec) -> dict[str, Any]:
    """A cascade as the manifest has it: a dimension is a number, or a range with its name."""
    data = asdict(spec)
    for entry, own in zip(data["inputs"], spec.inputs, strict=True):
        del entry["ranges"]
        if own.ids is None:
            del entry["ids"]
        entry["shape"] = [
            side if isinstance(side, int) else {**asdict(side), "example": size}
            for size, side in zip(own.shape, own.sides, strict=True)
        ]
    return data


def schema_of(spec: CascadeSpec) -> int:
    """The schema that a manifest of a cascade has."""
    if any(i.ids is not None for i in spec.inputs):
        return SCHEMA
    return _RANGES_SCHEMA if any(i.ranges for i in spec.inputs) else _FIRST_SCHEMA


def _stage(value: Any, name: str) -> StageSpec:
    data = mapping(value, name, StageSpec.__dataclass_fields__)
    return StageSpec(
        name=text(data["name"], f"{name}.name"),
        backbone=whole(data["backbone"], f"{name}.backbone", 0, _MOST_STAGES),
        carry=whole(data["carry"], f"{name}.carry", 0, 10_000),
        graph=_graph(data["graph"], f"{name}.graph"),
        body_graph=maybe(data["body_graph"], f"{name}.body_graph", _graph),
        macs=number(data["macs"], f"{name}.macs", 0.0, 1e30),
        head_macs=number(data["head_macs"], f"{name}.head_macs", 0.0, 1e30),
    )


def _graph(value: Any, name: str) -> str:
    """A graph of a stage. Engines read other endings as other formats, with files of their own beside them."""
    graph = file_name(value)
    if not graph.endswith(".onnx"):
        raise ValueError(f"{name}={graph!r:.80} must end in .onnx")
    return graph


def read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise BundleError(f"{folder} is no bundle: it holds no {MANIFEST}")
    try:
        manifest = read_json(path, folder)
        schema = whole(mapping(manifest, "the manifest")["schema"], "schema", 1)
    except (ValueError, KeyError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise CorruptError(
            f"{path} does not read ({reason}). Build the bundle again, or copy it with its links followed, cp -rL"
        ) from error
    if schema > SCHEMA:
        raise SchemaError(f"{path} has schema {schema}, this version reads up to {SCHEMA}: update dynamic-inference")
    claimed = manifest.pop("sha256", None)
    if claimed != manifest_hash(manifest):
        raise CorruptError(f"{path} was altered after it was written. Build or copy the bundle again")
    return dict(manifest)


def manifest_hash(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def version_of(base: Path) -> tuple[int, ...] | None:
    """What distinguishes a folder and its manifest from those that replace them. None where there is none."""
    return folder_state(base, MANIFEST)


def holds_bundle(folder: Path) -> bool:
    """Whether a bundle lies in a folder, also one that a writer has not finished to put there."""
    return (standing(folder, MANIFEST) / MANIFEST).is_file()


def preprocess_json(preprocess: Preprocessing | None) -> Any:
    return None if preprocess is None else preprocess.to_json()
