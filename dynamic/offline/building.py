"""From trained networks and held-out data to a bundle: Cascade, calibrate, certify, export in one call."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from dynamic.bundle.bundle import Bundle, read, write
from dynamic.bundle.canaries.canary_set import CANARIES, Reservoir
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import check_engine, check_installed_engine, open_engine
from dynamic.offline.batches import Batch
from dynamic.offline.build_arguments import check_classes, check_labels_for, check_split, warn_order
from dynamic.offline.calibration import check_first, collect, peek, plain_combiner
from dynamic.offline.canary_inputs import CanaryInputs, check_canary_inputs, check_canary_word, draw_canaries
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.checkpoints import write_whole
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.onnx_export.parity import check_parity
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs
from dynamic.offline.recertification import TemporaryBundle, warn_uncertified
from dynamic.offline.torchvision_transforms import from_transforms
from dynamic.policies.certification.certificates import certify, check_settings
from dynamic.policies.certification.floor import check_floor, levels
from dynamic.policies.certification.ladders.settings import ScoreChoice
from dynamic.policies.errors import EngineError, InputError
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import SEARCH_SHARE
from dynamic.policies.scores import Combination
from dynamic.profiling.engine_choice import AUTO, check_precision, chosen

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
    combine: Combination = "backbones",
    score: ScoreChoice = "max_probability",
    risk: RiskName = "drop",
    groups: NDArray[Any] | Sequence[Any] | None = None,
    search_share: float = SEARCH_SHARE,
    seed: int = 0,
    strict: bool = False,
    canaries: CanaryInputs = "calibration",
    progress: bool | None = None,
    floor: float | None = None,
) -> Bundle:
    """A bundle from networks for the same task, plain or wrapped, smallest first.

    `held_out_loader` yields `(inputs, labels [B])` that no network was trained on, preprocessed as in training.
    `engine`: the one that will run; "auto" takes the fastest of those installed here that have `precision` (torch,
    which a bundle holds no modules for, left out). "torch" needs no export; `load` is then given the modules.
    `preprocess`: the torchvision transforms (or `dynamic.Preprocess`) that made those inputs from images, so that the
    device can do the same; None where the device's inputs arrive ready.
    `classes`: names in label order. `canaries`: inputs that travel with the bundle, by which another machine notices
    that it answers otherwise. "calibration" draws up to 64 held-out inputs. Where those must not be published, give a
    batch of other inputs, or "noise", drawn from a seed, which can miss a difference. The remaining arguments are those
    of `Cascade`, `calibrate` and `certify`.

    What can be checked of the arguments is checked before anything is exported. A network that stands before a smaller
    one, a stage that knows no more than chance and a point that the floor left out are logged as warnings.

    Stages and graphs are run at 1, 2 and 5 rows on the engine and compared with torch before anything is certified.

    Raises CalibrationError, InputError, SettingError or EngineError as those steps do; EngineError too where
    the exported graphs do not give torch's logits.
    """
    measure, _ = check_settings(max_drops, delta, risk=risk, score=score)
    check_floor(floor)
    check_split(groups, search_share, seed)
    if engine == AUTO:
        check_precision(precision)
    else:
        check_engine(engine, precision)
        check_installed_engine(engine)
    check_canary_word(canaries)
    shipped = from_transforms(preprocess)
    cascade = networks if isinstance(networks, Cascade) else Cascade(networks, combine=combine)
    batches, example, labels = peek(held_out_loader)
    check_first(cascade, example, labels)
    plain = describe(cascade, example)
    check_classes(classes, plain)
    check_canary_inputs(canaries, cascade, plain)
    check_labels_for(measure, labels)
    warn_order(plain, cascade.names)
    owner = TemporaryBundle()
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
            sample = Reservoir(seed=seed)
            records = collect(
                cascade, opened.stages, batches, groups, shipped, search_share, seed, progress=progress, sample=sample
            )
            draw_canaries(canaries, cascade, opened, example, sample, records, seed).save(folder / CANARIES)
            identity = EngineIdentity.of(opened)
        finally:
            opened.close()
    ladder = certify(
        records, max_drops, delta=delta, risk=risk, combine=cascade.combine, score=score, strict=strict, floor=floor
    )
    warn_uncertified(ladder)
    for level in levels(records):
        if level.at_chance:
            logger.warning("%s: it is at chance, train it (dynamic.fit) or leave it out", level)
    if exported:
        write_graphs(folder, spec, ladder, engine, precision)
    (folder / "weights").mkdir()
    for name, network in zip(cascade.names, cascade.networks, strict=True):
        _save_weights(network, folder / "weights" / f"{_file_name(name)}.safetensors")
    write(folder, spec, ladder, records, engine, precision, cascade.fingerprint(), classes, shipped, identity)
    return replace(read(folder, verify=False, modules=cascade), _owner=owner)


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
    write_whole(tensors, path)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
