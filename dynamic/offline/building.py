"""From trained networks and held-out data to a bundle: Cascade, calibrate, certify, export in one call."""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import NoneType
from typing import Any

from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import nn

from dynamic.bundle import Bundle, has_graphs, read, write
from dynamic.choosing import AUTO, check_precision, chosen
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.opening import check_engine, open_engine
from dynamic.offline.calibration import check_first, collect, peek, plain_combiner
from dynamic.offline.cascade import Cascade
from dynamic.offline.exporting import describe, export_stages
from dynamic.offline.graphs import plain_ladder, write_graphs
from dynamic.offline.inputs import Batch
from dynamic.offline.modes import evaluating
from dynamic.offline.parity import check_parity
from dynamic.offline.transforms import from_transforms
from dynamic.policies.certification import certify, check_settings, shortage
from dynamic.policies.errors import CalibrationError, EngineError, InputError
from dynamic.policies.ladder import Ladder
from dynamic.policies.records import SEARCH_SHARE, Records

logger = logging.getLogger("dynamic")


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
    progress: bool | None = None,
) -> Bundle:
    """A bundle from networks for the same task, plain or wrapped, smallest first.

    `held_out_loader` yields `(inputs, labels [B])` that no network was trained on, preprocessed as in training.
    `engine`: the one that will run; "auto" takes the fastest of those installed here that have `precision` (torch,
    which a bundle holds no modules for, left out). "torch" needs no export; `load` is then given the modules.
    `preprocess`: the torchvision transforms (or `dynamic.Preprocess`) that made those inputs from images, so that the
    device can do the same; None where the device's inputs arrive ready. `classes`: names in label order. The remaining
    arguments are those of `Cascade`, `calibrate` and `certify`.

    Stages and graphs are run at 1, 2 and 5 rows on the engine and compared with torch before anything is certified.

    Raises CalibrationError, InputError, BudgetError or EngineError as those steps do; EngineError too where
    the exported graphs do not give torch's logits.
    """
    check_settings(max_drops, delta, risk, score)
    if engine == AUTO:
        check_precision(precision)
    else:
        check_engine(engine, precision)
    shipped = from_transforms(preprocess)
    cascade = networks if isinstance(networks, Cascade) else Cascade(networks, combine=combine)
    batches, example, labels = peek(held_out_loader)
    check_first(cascade, example, labels)
    owner = _Folder()
    folder = owner.path
    with evaluating(cascade):
        spec, exported = _exported(cascade, folder, example, engine, progress)
        stages = cascade.stages_for([i.name for i in spec.inputs])
        if exported:
            write_graphs(folder, spec, plain_ladder(spec, cascade.combine))  # written again once temperatures are known
        if engine == AUTO:
            engine = chosen(folder, spec, plain_combiner(spec), lambda _: precision, keep=True).engine
        opened = open_engine(engine, folder, spec, plain_combiner(spec), stages, precision)
        try:
            check_parity(cascade, opened, spec, example)
            records = collect(cascade, opened.stages, batches, groups, shipped, search_share, seed, progress=progress)
        finally:
            opened.close()
    ladder = certify(records, max_drops, delta, risk=risk, combine=cascade.combine, score=score, strict=strict)
    _warn(ladder)
    if exported:
        write_graphs(folder, spec, ladder, engine, precision)
    (folder / "weights").mkdir()
    for name, network in zip(cascade.names, cascade.networks, strict=True):
        _save_weights(network, folder / "weights" / f"{_file_name(name)}.safetensors")
    write(folder, spec, ladder, records, engine, precision, cascade.fingerprint(), classes, shipped)
    return replace(read(folder, verify=False, modules=cascade), _owner=owner)


def recertify(
    bundle: Bundle,
    max_drops: Sequence[float] | None = None,
    delta: float | None = None,
    *,
    records: Records | None = None,
    risk: str | None = None,
    score: str | None = None,
    strict: bool = False,
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
    ladder = certify(given, max_drops, delta, risk=risk, combine=old.combine, score=score or old.score, strict=strict)
    _warn(ladder)
    owner = _Folder()
    folder = owner.path
    # costs of other machines go: each lies there with the frontier of the old ladder
    shutil.copytree(bundle.folder, folder, ignore=shutil.ignore_patterns("costs"), dirs_exist_ok=True)
    if has_graphs(folder, bundle.spec):
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
    )
    return replace(bundle, folder=folder, ladder=ladder, _owner=owner)


def _warn(ladder: Ladder) -> None:
    if not ladder.certified and ladder.certificate is not None:
        logger.warning("nothing could be certified, the bundle runs uncertified: %s", shortage(ladder.certificate))


class _Folder:
    """A temporary folder that goes with the last bundle that refers to it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="dynamic-bundle-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _exported(
    cascade: Cascade, folder: Path, example: Batch, engine: str, progress: bool | None
) -> tuple[CascadeSpec, bool]:
    """The cascade's description, and whether its graphs lie in `folder`: engine "torch" does without."""
    try:
        return export_stages(cascade, folder, example, progress=progress), True
    except (EngineError, InputError) as error:
        if engine != "torch":
            raise
        spec = describe(cascade, example)  # where the networks are at fault, their own error comes
        shutil.rmtree(folder / "backbones", ignore_errors=True)
        logger.warning("the bundle is for engine 'torch' alone and is loaded with modules=...: %s", error)
        return spec, False


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
