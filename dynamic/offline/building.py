"""From trained networks and held-out data to a bundle: Cascade, calibrate, certify, export in one call."""

import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from dynamic.bundle import Bundle, read, write
from dynamic.canaries import CANARIES, Canaries, Reservoir, noise
from dynamic.canary_check import CHECKS
from dynamic.choosing import AUTO, check_precision, chosen
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.loop import StageEngine
from dynamic.engines.opening import check_engine, check_installed, open_engine
from dynamic.engines.switching import CascadeEngine
from dynamic.fingerprint import EngineIdentity
from dynamic.offline.arguments import check_classes, check_first_batch, check_split, warn_order
from dynamic.offline.calibration import collect, peek, plain_combiner
from dynamic.offline.cascade import Cascade
from dynamic.offline.compute import rounds
from dynamic.offline.exporting import describe, export_stages
from dynamic.offline.graphs import plain_ladder, write_graphs
from dynamic.offline.inputs import Batch, named_tensors
from dynamic.offline.modes import evaluating
from dynamic.offline.transforms import from_transforms
from dynamic.policies.certification import certify, check_settings, shortage
from dynamic.policies.errors import CalibrationError, EngineError, InputError
from dynamic.policies.floor import check_floor, levels
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import SEARCH_SHARE, Records

logger = logging.getLogger("dynamic")

# of the largest logit: beyond it a graph is wrong, not merely rounded otherwise
_PARITY = {"f32": 1e-3, "bf16": 0.15}
# of networks that round activations (`rounds` on a module): a value between two codes may fall to either side
_ROUNDED_PARITY = 0.15


def build(
    networks: Cascade | nn.Module | Sequence[nn.Module],
    held_out_loader: Iterable[Any],
    engine: str = "onnxruntime",
    precision: str = "f32",
    delta: float = 0.1,
    max_drops: Sequence[float] | None = None,
    preprocess: Any = None,
    classes: Sequence[str] | None = None,
    combine: str = "backbones",
    score: str = "max_probability",
    risk: str = "drop",
    groups: NDArray[Any] | Sequence[Any] | None = None,
    search_share: float = SEARCH_SHARE,
    seed: int = 0,
    strict: bool = False,
    canaries: Literal["calibration", "noise"] | Batch = "calibration",
    progress: bool | None = None,
    floor: float | None = None,
) -> Bundle:
    """A bundle from networks for the same task, plain or wrapped, smallest first.

    `held_out_loader` yields `(inputs, labels [B])` that no network was trained on, preprocessed as in training.
    `engine`: the one that will run; "auto" takes the fastest of those installed here that have `precision` (torch,
    which a bundle holds no modules for, left out). `preprocess`: the torchvision transforms (or `dynamic.Preprocess`)
    that made those inputs from images, so that the device can do the same; None where the device's inputs arrive ready.
    `classes`: names in label order. `canaries`: inputs that travel with the bundle, by which another machine notices
    that it answers otherwise. "calibration" draws up to 64 held-out inputs. Where those must not be published, give a
    batch of other inputs, or "noise", drawn from a seed, which can miss a difference. The remaining arguments are those
    of `Cascade`, `calibrate` and `certify`.

    What can be checked of the arguments is checked before anything is exported. A network that stands before a smaller
    one, a stage that knows no more than chance and a point that the floor left out are logged as warnings.

    Raises CalibrationError, InputError, BudgetError or EngineError as those steps do; EngineError too where
    the exported graphs do not give torch's logits.
    """
    measure, _ = check_settings(max_drops, delta, risk, score)
    check_floor(floor)
    check_split(groups, search_share, seed)
    if engine == AUTO:
        check_precision(precision)
    else:
        check_engine(engine, precision)
        check_installed(engine)
    _check_canaries(canaries)
    shipped = from_transforms(preprocess)
    cascade = networks if isinstance(networks, Cascade) else Cascade(networks, combine=combine)
    batches, example = peek(held_out_loader)
    plain = describe(cascade, example)
    check_classes(classes, plain)
    check_first_batch(batches, plain, measure)
    warn_order(plain, cascade.names)
    owner = _Folder()
    folder = owner.path
    with evaluating(cascade):
        spec = export_stages(cascade, folder, example, progress=progress)
        stages = cascade.stages
        if engine == AUTO:
            write_graphs(folder, spec, plain_ladder(spec, cascade.combine))  # written again once temperatures are known
            engine = chosen(folder, spec, plain_combiner(spec), lambda _: precision, keep=True).engine
        opened = open_engine(engine, folder, spec, plain_combiner(spec), stages, precision)
        try:
            _check_parity(cascade, opened.stages, spec, example)
            sample = Reservoir(seed=seed)
            records = collect(
                cascade, opened.stages, batches, groups, shipped, search_share, seed, progress=progress, sample=sample
            )
            _canaries(canaries, cascade, opened, example, sample, records, seed).save(folder / CANARIES)
            identity = EngineIdentity.of(opened)
        finally:
            opened.close()
    ladder = certify(
        records, max_drops, delta, risk=risk, combine=cascade.combine, score=score, strict=strict, floor=floor
    )
    _warn(ladder)
    for level in levels(records):
        if level.at_chance:
            logger.warning("%s: it is at chance, train it (dynamic.fit) or leave it out", level)
    write_graphs(folder, spec, ladder, engine, precision)
    (folder / "weights").mkdir()
    for name, network in zip(cascade.names, cascade.networks, strict=True):
        _save_weights(network, folder / "weights" / f"{_file_name(name)}.safetensors")
    write(folder, spec, ladder, records, engine, precision, cascade.fingerprint(), classes, shipped, identity)
    return replace(read(folder, verify=False, modules=cascade), _owner=owner)


def _check_canaries(canaries: Any) -> None:
    """Raises InputError on a word that is not known, before anything is run."""
    if isinstance(canaries, str) and canaries not in ("calibration", "noise"):
        raise InputError(f"canaries={canaries!r} is not known. Use 'calibration', 'noise' or a batch of inputs")


def _canaries(
    canaries: str | Batch,
    cascade: Cascade,
    engine: CascadeEngine,
    example: Batch,
    sample: Reservoir,
    records: Records,
    seed: int,
) -> Canaries:
    """Of the calibration, of noise, or of the batch that was given."""
    if isinstance(canaries, str) and canaries == "calibration":
        return sample.canaries(records.logits)
    given = not isinstance(canaries, str)
    named = named_tensors(cascade.networks[0], canaries if given else example)  # type: ignore[arg-type]
    arrays = {name: tensor.detach().cpu().numpy() for name, tensor in named.items()}
    if given:
        return Canaries(arrays, engine.all_logits(arrays), "given")
    arrays = noise(arrays, seed=seed)
    return Canaries(arrays, engine.all_logits(arrays), "noise")


def recertify(
    bundle: Bundle,
    max_drops: Sequence[float] | None = None,
    delta: float | None = None,
    *,
    records: Records | None = None,
    risk: str | None = None,
    score: str | None = None,
    strict: bool = False,
    floor: float | None = None,
) -> Bundle:
    """The bundle with another ladder: other targets, delta, risk or score, or newer `records` of the same cascade.

    Delta, risk and score are those of before unless given; `records` come from `calibrate`, where the networks are.
    Nothing is exported or calibrated again; costs that were measured here stay. Looking at the same records under one
    choice of targets and then another, and keeping what looks best, spends the guarantee: decide first. Saved it
    is, like what `build` gives, with `save`. The remaining arguments are those of `certify`, whose errors it raises;
    CalibrationError too where `records` are of another cascade, preprocessing, engine or precision than the bundle's.
    """
    if not isinstance(bundle, Bundle) or not isinstance(records, (Records, NoneType)):
        raise InputError(
            f"recertify takes a bundle (dynamic.load) and records (dynamic.calibrate, or None for the bundle's own); "
            f"it was given {type(bundle).__name__} and {type(records).__name__}"
        )
    given = bundle.records if records is None else records
    if given.fingerprint != bundle.ladder.fingerprint:
        raise CalibrationError(
            f"records have the fingerprint {given.fingerprint[:12]}, the bundle {bundle.ladder.fingerprint[:12]}: "
            f"they are of another cascade, preprocessing, engine or precision; calibrate this cascade on engine "
            f"{bundle.engine!r} ({bundle.precision})"
        )
    old = bundle.ladder
    known = old.certificate
    delta = delta if delta is not None else 0.1 if known is None else known.delta
    risk = risk if risk is not None else "drop" if known is None else known.risk
    elsewhere = given.made_on is not None and given.made_on != bundle.records.made_on
    canaries, identity = _measured_here(bundle, given) if elsewhere else (None, bundle.calibrated_on)
    ladder = certify(
        given, max_drops, delta, risk=risk, combine=old.combine, score=score or old.score, strict=strict, floor=floor
    )
    _warn(ladder)
    owner = _Folder()
    folder = owner.path
    # costs of other machines go: each lies there with the frontier of the old ladder
    shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns("costs", CHECKS), dirs_exist_ok=True)
    if canaries is not None:
        canaries.save(folder / CANARIES)
    write_graphs(folder, bundle.spec, ladder, bundle.engine, bundle.precision)
    write(
        folder,
        bundle.spec,
        ladder,
        given,
        bundle.engine,
        bundle.precision,
        bundle.cascade,
        bundle.classes,
        bundle.preprocess,
        identity,
    )
    return replace(bundle, folder=folder, ladder=ladder, calibrated_on=identity, _owner=owner)


def _measured_here(bundle: Bundle, records: Records) -> tuple[Canaries | None, EngineIdentity]:
    """The canaries as this machine answers them. Raises CalibrationError where the records were not made on it."""
    old = bundle.canaries
    opened = bundle.open(bundle.engine, bundle.precision)
    try:
        identity = EngineIdentity.of(opened)
        if json.dumps(identity.to_json(), sort_keys=True) != records.made_on:
            raise CalibrationError(
                f"the records were made on {EngineIdentity.from_json(json.loads(records.made_on or '{}'))}, this is "
                f"{identity}. Call recertify where the records were made"
            )
        return (None if old is None else Canaries(old.inputs, opened.all_logits(old.inputs), old.source)), identity
    finally:
        opened.close()


def _warn(ladder: Ladder) -> None:
    if not ladder.certified and ladder.certificate is not None:
        logger.warning("nothing could be certified, the bundle runs uncertified: %s", shortage(ladder.certificate))
    for line in ladder.left_out:
        logger.warning("%s", line)


class _Folder:
    """A temporary folder that goes with the last bundle that refers to it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dynamic-bundle-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _check_parity(cascade: Cascade, engine: StageEngine, spec: CascadeSpec, example: Batch) -> None:
    """What ships must say what torch says; a stage that does not is named."""
    named = {n: t[:2] for n, t in named_tensors(cascade.networks[0], example).items()}
    shipped = engine.all_logits({n: t.detach().cpu().numpy() for n, t in named.items()})  # [B, S, C]
    with torch.no_grad():
        own = np.stack([t.float().cpu().numpy() for t in cascade(*named.values())], axis=1)
    rounded = [rounds(network) for network in cascade.networks]
    for stage, described in enumerate(spec.stages):
        share = max(_PARITY[engine.precision], _ROUNDED_PARITY if rounded[spec.backbone[stage]] else 0.0)
        limit = share * max(1.0, float(np.abs(own[:, stage]).max(initial=0.0)))
        off = float(np.abs(shipped[:, stage] - own[:, stage]).max())
        if not off <= limit and np.isfinite(own[:, stage]).all():
            raise EngineError(
                f"stage {described.name!r} on engine {engine.name!r} is off torch's logits by {off:.3g} "
                f"(limit {limit:.3g}): use engine='torch', or report the network"
            )


def _save_weights(network: nn.Module, path: Path) -> None:
    # safetensors refuses tensors that share memory: tied weights are written once under their first name
    seen: set[int] = set()
    tensors = {}
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() in seen and tensor.numel():
            continue
        seen.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    save_file(tensors, path)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
