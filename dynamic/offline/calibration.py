"""Records: the logits of every stage for held-out data, from the engine that ships."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynamic.bundle.measurements.stage_answers import RemoteBatches
from dynamic.data.answer_file import AnswerFile
from dynamic.engines.engine_factory import check_engine, open_engine
from dynamic.engines.options import EngineName, Precision
from dynamic.offline.batches import Batch, named_tensors, taken_by
from dynamic.offline.build_steps.loaders import check_labels, peek
from dynamic.offline.build_steps.network_names import check_not_torch
from dynamic.offline.build_steps.record_collection import collect, collect_answers, plain_combiner
from dynamic.offline.cascade import Cascade, Network
from dynamic.offline.networks.float_types import check_float32
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.networks.row_independence import last_logits
from dynamic.offline.onnx_export.stage_graphs import describe, export_stages
from dynamic.offline.onnx_files.class_names import check_sums
from dynamic.offline.onnx_files.stages.onnx_network import names_of_files, sessions_freed
from dynamic.policies.certification.few_labels.asking import Asking, DemandSettings, Oracle, ask, with_oracle_stage
from dynamic.policies.errors import InputError, SettingError
from dynamic.policies.ladder import RiskName
from dynamic.policies.records import SEARCH_SHARE, Records
from dynamic.policies.scores import Combination, Score
from dynamic.progress import track
from dynamic.storage.temporary_files import TemporaryFolder


def calibrate(
    networks: Cascade | Network | Sequence[Network],
    calibration_loader: Iterable[Any] | None = None,
    *,
    engine: EngineName = "onnxruntime",
    precision: Precision = "f32",
    groups: NDArray[Any] | Sequence[Any] | None = None,
    preprocess: Any = None,
    search_share: float = SEARCH_SHARE,
    seed: int = 0,
    progress: bool | None = None,
    batch: Iterable[Any] | None = None,
    labels: Oracle | None = None,
    budget: int | None = None,
    max_drops: Sequence[float] | None = None,
    delta: float = 0.1,
    risk: RiskName = "drop",
    score: Score = "max_probability",
    checkpoint: Path | str | None = None,
) -> Records:
    """Run held-out data through every stage, on the engine and precision that will ship.

    With `labels=` it asks for labels on demand, of those inputs alone that decide on a certificate for `max_drops`,
    `delta` and `risk`. `certify` then takes the records with the same settings and `combine`. Each answer is on disk
    before the next question, if there is a `checkpoint`. Answers that differ from those of a network are all that
    "drop" and "harm" need labels for. For "disagreement" the oracle is the reference, and `networks` come before it.

    Args:
        networks: For the same task, plain, wrapped, paths of ONNX files or classifiers of scikit-learn. The smallest is
            the first.
        calibration_loader: Batches of `(inputs, labels [B])`, or of inputs alone, preprocessed as in training. No
            network was trained on them and nothing was chosen with them. None: `batch` has them.
        engine: What will run the stages.
        precision: Its arithmetic. "bf16" needs OpenVINO.
        groups: A number or string for each input `[N]`, equal for inputs that belong together, such as those of one
            patient. A group is never split between search and certification.
        preprocess: What made the inputs from images. It enters the fingerprint and is not applied.
        search_share: Share of the records that chooses thresholds. The rest certifies. Of the shares tried with 1,000
            to 5,000 images, a quarter gave certified points of about the least cost.
        seed: Of the division into search and certification.
        progress: Whether a progress bar is shown. None: in a terminal.
        batch: Batches of one finite set, in place of the loader. Certificates are then for this set alone, in which
            inputs that were asked about have right answers. They need fewer labels.
        labels: An oracle: rows `[K]` of the inputs, in the order of the loader -> their labels `[K]`. It is a person, a
            large network or a service. None: the loader has the labels.
        budget: The most labels that are asked for. None: as many as are likely to be worth it. A larger one later asks
            more about the same draw of inputs.
        max_drops: Targets of the certificate that labels are asked for, as in `certify`, each above 0.
        delta: The probability that a bound of it is wrong.
        risk: What it bounds.
        score: Confidence that is compared with thresholds.
        checkpoint: A CSV file of rows and labels. Answers that it has are not asked for again. A file beside it keeps
            the draw of inputs. None: each call draws anew, and is a look of its own at the whole of delta.

    Returns:
        The logits of every stage for every input, with labels and fingerprint.

    Raises:
        CalibrationError: There are no data, or no second class, or fewer inputs than any certificate needs. The oracle
            raised, or has no answer yet. Stages ran on several machines or engines that differ.
        InputError: Shapes, labels or classes do not fit, or the oracle contradicts itself, or the checkpoint is about
            other inputs.
        SettingError: A setting of the certificate is out of range, or another one than the checkpoint was begun with.
        EngineError: The engine cannot run the cascade.

    Example:
        >>> records = dynamic.calibrate([small, large], calibration_loader, engine="torch", progress=False)
        >>> records.logits.shape
        (600, 2, 4)
    """
    check_engine(engine, precision)
    loader = calibration_loader if batch is None else batch
    if loader is None:
        raise InputError("None is no loader. Give batches as calibration_loader=, or as batch= for one finite set")
    if calibration_loader is not None and batch is not None:
        raise InputError("calibrate takes a calibration_loader, or batch= for one finite set: give one of both")
    if batch is not None and labels is None:
        raise SettingError("batch= has no oracle: a certificate for one finite set asks for labels. Give labels=")
    if budget is not None and labels is None:
        raise SettingError(f"budget={budget!r} has no oracle to ask: give labels=")
    demand = None
    if labels is not None and not callable(labels):
        raise SettingError(
            f"labels= is a {type(labels).__name__}, and it takes a function of rows, lambda rows: answers[rows]. "
            "Where every input has a label, give batches of (inputs, labels) instead"
        )
    if labels is not None:
        combine: Combination = networks.combine if isinstance(networks, Cascade) else "last"
        demand = DemandSettings.of(
            max_drops, delta=delta, risk=risk, combine=combine, score=score, budget=budget, seed=seed
        )
        if groups is not None:
            raise SettingError("groups= and labels= exclude each other: labels on demand need independent inputs")
        networks = networks if isinstance(networks, Cascade) else Cascade(networks, combine=combine)
    cascade = networks if isinstance(networks, Cascade) else Cascade(networks)
    check_not_torch(names_of_files(list(cascade.networks), cascade.names), engine)
    batches, example, given_labels = peek(loader)
    check_first(cascade, example, given_labels)
    with TemporaryFolder("calibration") as folder, sessions_freed(cascade.networks), evaluating(cascade):
        spec = describe(cascade, example) if engine == "torch" else export_stages(cascade, folder, example)
        if isinstance(loader, RemoteBatches):
            answers = track(loader.stage_answers(folder, spec, engine, precision), "calibrating", None, progress)
            records = collect_answers(answers, cascade.fingerprint(), spec, groups, preprocess, search_share, seed)
        else:
            stages = cascade.stages_for([i.name for i in spec.inputs]) if engine == "torch" else None
            opened = open_engine(engine, folder, spec, plain_combiner(spec), stages, precision)
            try:
                records = collect(
                    lambda inputs: arrays_of(cascade, inputs),
                    cascade.fingerprint(),
                    opened.stages,
                    batches,
                    groups,
                    preprocess,
                    search_share,
                    seed,
                    progress=progress,
                )
            finally:
                opened.close()
        check_probabilities_of(cascade, records)
    if labels is None or demand is None:
        return records
    if not demand.risk.needs_labels:
        records = with_oracle_stage(records)
    path = None if checkpoint is None else Path(checkpoint)
    store = AnswerFile(path, len(records), records.logits.shape[2])
    return ask(Asking(records, demand, finite=batch is not None), labels, store).records


def arrays_of(cascade: Cascade, inputs: Batch) -> dict[str, NDArray[Any]]:
    """The arrays of a batch by the names of the cascade's inputs."""
    return {name: t.detach().cpu().numpy() for name, t in named_tensors(cascade.networks[0], inputs).items()}


def check_probabilities_of(cascade: Cascade, records: Records) -> None:
    """Raises InputError where what a file has as probabilities does not sum to 1 for an input of the records."""
    for stage in cascade.stages:
        if stage.file is not None and stage.file.gives_probabilities:
            check_sums(records, records.stage_names.index(stage.name), stage.file.model)


def check_first(cascade: Cascade, inputs: Batch, labels: NDArray[np.int64] | None) -> None:
    """Raises InputError where the first batch does not fit the first network, before anything takes long.

    So it does where a network is in another type than float32.
    """
    for network in cascade.networks:
        check_float32(network)
    first = cascade.networks[0]
    named = named_tensors(first, inputs)
    few = {name: tensor[:2] for name, tensor in named.items()}
    with torch.no_grad(), evaluating(first), taken_by(first, few):
        classes = last_logits(first, few).shape[1]
    if labels is None:
        return
    rows = {len(tensor) for tensor in named.values()} - {len(labels)}
    if rows:
        raise InputError(f"a batch has {rows.pop()} inputs and {len(labels)} labels")
    if len(labels):
        check_labels(labels, classes)
