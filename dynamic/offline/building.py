"""From trained networks and held-out data to a bundle: Cascade, calibrate, certify, export in one call."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from numpy.typing import NDArray

from dynamic.bundle.bundle import Bundle
from dynamic.bundle.bundle_reader import read
from dynamic.bundle.bundle_writer import write
from dynamic.bundle.canaries.canary_set import CANARIES
from dynamic.bundle.canaries.reservoir import Reservoir
from dynamic.bundle.fingerprint import EngineIdentity
from dynamic.engines.engine_factory import check_engine, check_installed_engine, open_engine
from dynamic.engines.options import Precision
from dynamic.extras import with_remedy
from dynamic.offline.build_arguments import (
    check_classes,
    check_labels_for,
    check_preprocess,
    check_split,
    warn_order,
)
from dynamic.offline.build_steps.contract import BuildSteps
from dynamic.offline.build_steps.loaders import peek
from dynamic.offline.build_steps.onnx_steps import OnnxSteps
from dynamic.offline.build_steps.preprocessing_data import as_data
from dynamic.offline.build_steps.record_collection import collect, plain_combiner
from dynamic.offline.canary_inputs import CanaryInputs, check_canary_inputs, check_canary_word, draw_canaries
from dynamic.offline.loggers.callbacks import Callback, Callbacks
from dynamic.offline.onnx_export.whole_graph import plain_ladder, write_graphs
from dynamic.offline.onnx_files.contract import ScikitClassifier
from dynamic.offline.onnx_files.onnx_file import OnnxModel, as_onnx_model
from dynamic.offline.option_words import EngineChoice
from dynamic.offline.recertification import TemporaryBundle, warn_uncertified
from dynamic.policies.certification.certificates import certify, check_settings
from dynamic.policies.certification.floor import check_floor, levels
from dynamic.policies.certification.ladders.settings import ScoreChoice
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import SEARCH_SHARE
from dynamic.policies.scores import Combination
from dynamic.profiling.engine_choice import AUTO, check_precision, chosen

if TYPE_CHECKING:  # ONNX files are built without torch
    from dynamic.offline.cascade import Cascade, Network

logger = logging.getLogger("dynamic")


def build(
    networks: Union["Cascade", "Network", Sequence["Network"]],
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
    callbacks: Sequence[Callback] = (),
) -> Bundle:
    """Make a bundle: export the stages, calibrate on the engine that ships, certify.

    Arguments are checked before anything is exported. Stages and graphs run at 1, 2 and 5 rows on the engine and are
    compared with torch before anything is certified. Warnings are logged for a network that stands before a smaller
    one, for a stage at chance and for a point below the floor.

    Args:
        networks: For the same task, plain, wrapped, paths of ONNX files or classifiers of scikit-learn, the smallest
            first. The last is the reference. Without torch networks, torch need not be installed, and batches of numpy
            do.
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
        callbacks: What is called at the start and at the end, such as `dynamic.MLflowLogger`.

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
    listeners = Callbacks(callbacks)
    measure, _ = check_settings(max_drops, delta, risk=risk, score=score)
    check_floor(floor)
    check_split(groups, search_share, seed)
    if engine == AUTO:
        check_precision(precision)
    else:
        check_engine(engine, precision)
        check_installed_engine(engine)
    check_canary_word(canaries)
    shipped = as_data(preprocess)
    steps = _steps(networks, combine)
    steps.check_engine(engine)
    batches, example, labels = peek(calibration_loader)
    batches = steps.watch(batches, example, allow_reuse)
    plain = steps.describe(shipped, example, labels)
    classes = steps.class_names(classes)
    check_classes(classes, plain)
    check_preprocess(shipped, plain)
    check_canary_inputs(canaries, steps.arrays, plain)
    check_labels_for(measure, labels)
    warn_order(plain, steps.names)
    engine_name: str = engine
    owner = TemporaryBundle()
    folder = owner.path
    settings = {
        "networks": ", ".join(steps.names), "engine": engine, "precision": precision, "delta": delta,
        "max_drops": max_drops, "combine": steps.combine, "score": score, "risk": risk, "search_share": search_share,
        "seed": seed, "floor": floor,
    }  # fmt: skip
    with listeners.running("on_build_start", settings):
        with steps.running():
            spec, exported = steps.export(folder, example, engine, progress)
            spec = steps.with_limits(spec, shipped, example)
            stages = steps.stages(spec)
            if exported:
                graph_engine = None if engine == AUTO else engine
                # written again once temperatures are known
                write_graphs(folder, spec, plain_ladder(spec, steps.combine), graph_engine)
            if engine == AUTO:
                engine_name = chosen(
                    folder, spec, plain_combiner(spec), lambda _: precision, keep=True, cascade=steps.fingerprint()
                ).engine
            opened = open_engine(engine_name, folder, spec, plain_combiner(spec), stages, precision)
            try:
                steps.check_parity(opened, spec, example)
                sample = Reservoir(seed=seed)
                records = collect(
                    steps.arrays,
                    steps.fingerprint(),
                    opened.stages,
                    batches,
                    groups,
                    shipped,
                    search_share,
                    seed,
                    progress=progress,
                    sample=sample,
                )
                steps.check_records(records)
                drawn = draw_canaries(canaries, steps.arrays, opened, example, sample, records, seed)
                drawn.save(folder / CANARIES)
                identity = EngineIdentity.of(opened)
            finally:
                opened.close()
        ladder = certify(
            records, max_drops, delta=delta, risk=risk, combine=steps.combine, score=score, strict=strict, floor=floor
        )
        warn_uncertified(ladder)
        for level in levels(records):
            if level.at_chance:
                logger.warning("%s: it is at chance, train it (dynamic.fit) or leave it out", level)
        if exported:
            write_graphs(folder, spec, ladder, engine_name, precision)
        steps.save_weights(folder / "weights")
        write(folder, spec, ladder, records, engine_name, precision, steps.fingerprint(), classes, shipped, identity)
        built = replace(read(folder, verify=False, modules=steps.modules), _owner=owner)
    listeners.call("on_build_end", built)
    return built


def _steps(networks: Any, combine: Combination) -> BuildSteps:
    """The steps for ONNX files alone, or for torch networks, which import torch."""
    listed = [networks] if isinstance(networks, (str, Path, OnnxModel, ScikitClassifier)) else networks
    if isinstance(listed, (list, tuple)) and listed:
        models = [as_onnx_model(network) for network in listed]
        if all(model is not None for model in models):
            return OnnxSteps([model for model in models if model is not None], combine)
    try:
        from dynamic.offline.build_steps.torch_steps import TorchSteps
        from dynamic.offline.cascade import Cascade
    except ModuleNotFoundError as error:
        raise with_remedy(error, "dynamic.build of anything but ONNX files") from error
    return TorchSteps(networks if isinstance(networks, Cascade) else Cascade(networks, combine=combine))
