"""From trained networks and held-out data to a bundle: Cascade, calibrate, certify, export in one call."""

import logging
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import read
from dynamic.bundle.bundle_writer import write
from dynamic.bundle.canaries.canary_set import CANARIES
from dynamic.bundle.canaries.reservoir import Reservoir
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.engines.contract import CascadeSpec
from dynamic.engines.engine_factory import check_engine, check_installed_engine, open_engine
from dynamic.engines.options import Precision
from dynamic.offline.batches import Batch
from dynamic.offline.build_arguments import (
    check_classes,
    check_labels_for,
    check_preprocess,
    check_split,
    check_tokens,
    warn_order,
    with_ids,
)
from dynamic.offline.calibration import check_first, collect, peek, plain_combiner
from dynamic.offline.canary_inputs import CanaryInputs, check_canary_inputs, check_canary_word, draw_canaries
from dynamic.offline.cascade import Cascade
from dynamic.offline.networks.checkpoints import write_whole
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.used_batches import ObservedLoader
from dynamic.offline.networks.used_data import batch_hash, check_fresh
from dynamic.offline.onnx_export.parity import check_parity
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs
from dynamic.offline.option_words import EngineChoice
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
    calibration_loader: Iterable[Any],
    *,
    engine: EngineChoice = "onnxruntime",
    precision: Precision = "f32",
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
    allow_reuse: bool = False,
) -> Bundle:
    """Make a bundle: export the stages, calibrate on the engine that ships, certify.

    Arguments are checked before anything is exported. Stages and graphs run at 1, 2 and 5 rows on the engine and are
    compared with torch before anything is certified. Warnings are logged for a network that stands before a smaller
    one, for a stage at chance and for a point below the floor.

    Args:
        networks: For the same task, plain or wrapped, the smallest first. The last is the reference.
        calibration_loader: Batches of `(inputs, labels [B])`, preprocessed as in training. They must be held out: no
            network was trained on them and nothing was chosen with them.
        engine: What will run the bundle. "auto" takes the fastest engine installed here that has the precision, torch
            aside. "torch" needs no export, and `load` then takes the modules.
        precision: Arithmetic of the engine. "bf16" needs OpenVINO.
        delta: Chance, over the draw of the data, that a bound is wrong.
        max_drops: Targets, for each of which a point is certified. None: 0, 0.005, 0.01, 0.02 and 0.05, without 0
            unless the risk is "drop".
        preprocess: What made the inputs: the torchvision transforms or a `dynamic.Preprocess` for images, a
            `dynamic.data.SoundPreprocess` for sounds, the tokenizer or a `dynamic.TextPreprocess` for texts. The device
            then does the same. None: its inputs are ready.
        classes: Names of the classes in label order.
        combine: How answers become one. "backbones" averages the latest answer of each network, "mean" those of all
            stages, "last" takes the latest. A `Cascade` has its own, and this is not used.
        score: Confidence that is compared with thresholds. "auto" takes the one with the least cost.
        risk: What is bounded: "drop" of accuracy below the reference, "harm", "disagreement" or "error". See `certify`.
        groups: A number or string for each input `[N]`, equal for inputs that belong together, such as those of one
            patient. A group is never split between search and certification.
        search_share: Share of the data that chooses thresholds. The rest certifies.
        seed: Of the division of the data, the canaries and noise.
        strict: Whether an error is raised where nothing can be certified. Otherwise the bundle is uncertified.
        canaries: Inputs that travel with the bundle, with which another machine detects that its answers differ.
            "calibration" draws up to 64 held-out inputs. For data that must not be published, give a batch of other
            inputs, or "noise", which can miss a difference.
        progress: Whether a progress bar is shown. None: in a terminal.
        floor: Least accuracy of a point. None: halfway between chance and the reference. 0: no floor.
        allow_reuse: Whether batches may calibrate that `fit` trained with or that chose exits or sub-models. Then a
            certificate says nothing about new data.

    Returns:
        The bundle, in a temporary folder until `save` is called.

    Raises:
        CalibrationError: There are no data, a batch was used before, labels are missing, or nothing can be certified
            and `strict` is set.
        InputError: Networks, data, groups, classes, canaries or preprocessing do not fit.
        SettingError: A number is out of range, or a word is unknown.
        EngineError: The engine or precision is not available, a stage cannot be exported, or the exported graphs do
            not give torch's logits.

    Example:
        >>> bundle = dynamic.build([small, large], calibration_loader, max_drops=(0.05,), progress=False)
        >>> [stage.name for stage in bundle.spec.stages]
        ['Sequential-0', 'Sequential-1']
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
    batches, example, labels = peek(calibration_loader)
    if not allow_reuse:
        batches = ObservedLoader(batches, lambda inputs: check_fresh(cascade.networks, [batch_hash(inputs)], False))
        check_fresh(cascade.networks, [batch_hash(example)], False)
    check_tokens(shipped, cascade, example)
    check_first(cascade, example, labels)
    plain = describe(cascade, example)
    check_classes(classes, plain)
    check_preprocess(shipped, plain)
    check_canary_inputs(canaries, cascade, plain)
    check_labels_for(measure, labels)
    warn_order(plain, cascade.names)
    engine_name: str = engine
    owner = TemporaryBundle()
    folder = owner.path
    with evaluating(cascade):
        spec, exported = _exported(cascade, folder, example, engine, progress)
        if not isinstance(shipped, TextPreprocess):  # a tokenizer has limits of its own
            spec = with_ids(spec, cascade, example)
        stages = cascade.stages_for([i.name for i in spec.inputs])
        if exported:
            graph_engine = None if engine == AUTO else engine
            # written again once temperatures are known
            write_graphs(folder, spec, plain_ladder(spec, cascade.combine), graph_engine)
        if engine == AUTO:
            engine_name = chosen(
                folder, spec, plain_combiner(spec), lambda _: precision, keep=True, cascade=cascade.fingerprint()
            ).engine
        opened = open_engine(engine_name, folder, spec, plain_combiner(spec), stages, precision)
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
        write_graphs(folder, spec, ladder, engine_name, precision)
    (folder / "weights").mkdir()
    written: set[int] = set()
    for name, network in zip(cascade.names, cascade.networks, strict=True):
        _save_weights(network, folder / "weights" / f"{_file_name(name)}.safetensors", written)
    write(folder, spec, ladder, records, engine_name, precision, cascade.fingerprint(), classes, shipped, identity)
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


def _save_weights(network: nn.Module, path: Path, addresses: set[int]) -> None:
    """Write the tensors of a network whose memory is not at the `addresses` of those before, and add theirs."""
    # safetensors refuses tensors that share memory: tied weights are written once under their first name, and those
    # of several networks with the first
    tensors = {}
    for name, tensor in network.state_dict().items():
        if tensor.data_ptr() in addresses and tensor.numel():
            continue
        addresses.add(tensor.data_ptr())
        tensors[name] = tensor.detach().cpu().contiguous()
    write_whole(tensors, path)


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)
