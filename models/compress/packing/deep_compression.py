"""Deep Compression: prune, share values, code. Its result is a small file."""

import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynamic.models.compress.argument_checks import check_inputs
from dynamic.models.compress.compressible_weights import WeightKind, weights_of
from dynamic.models.compress.packing.half_precision import simple_norms, to_half_precision
from dynamic.models.compress.packing.packed_file import save_packed
from dynamic.models.compress.packing.weight_clustering import cluster
from dynamic.models.compress.pruning.weight_pruning import baked, prune_weights
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.offline.networks.checkpoints import digest, read_tensors, write_tensors
from dynamic.offline.training.configs import DistillationConfig, TrainingConfig
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import BundleError, SettingError
from dynamic.storage.temporary_files import TemporaryFolder

logger = logging.getLogger("dynamic")


def deep_compress(
    network: nn.Module,
    example_inputs: Batch,
    *,
    train_loader: Iterable[Any],
    steps: Sequence[tuple[float, int]] = ((0.5, 1), (0.7, 1), (0.8, 5)),
    clusters: int | Mapping[WeightKind, int] = 16,
    cluster_epochs: int = 2,
    skip: Collection[str] = (),
    lr: float = 0.02,
    cluster_lr: float = 3e-4,
    teacher: nn.Module | None = None,
    distill_share: float = 0.5,
    temperature: float = 3.0,
    half: bool = True,
    path: str | Path | None = None,
    checkpoint: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """Prune the smallest weights, share values in each layer, and pack (Han et al. 2016, "Deep Compression").

    First the smallest weights of the whole network become 0, in steps, each followed by training with SGD. Then
    `cluster` gives each layer few values and trains them. At the end batch norms become `simple_norms`. With `half`
    all numbers are rounded to float16. The network returned holds exactly what `load_packed` reads from `path`.

    With `checkpoint` every training is stored. A killed run that starts again with the same arguments ends with the
    same bits.

    Args:
        network: The network. It does not change.
        example_inputs: A batch as the network takes it.
        train_loader: `(inputs, labels [B])` that train after each step.
        steps: Pairs of a share of the weights that is 0, rising, and epochs of training at it.
        clusters: Values of each layer, as for `cluster`.
        cluster_epochs: Epochs in which the shared values are trained.
        skip: Names of weights or modules that no step changes.
        lr: Learning rate of the steps.
        cluster_lr: Learning rate of the shared values.
        teacher: None: the network as it was.
        distill_share: Share of the loss that comes from the teacher.
        temperature: It softens both answers.
        half: Whether all numbers are rounded to float16.
        path: Where the packed file is written. None: it is only measured.
        checkpoint: A folder that stores every training.
        seed: Of training.
        progress: Whether a progress bar is shown. None: on a terminal.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.after.file_bytes` is of the packed file.

    Raises:
        SettingError: A setting is out of range.
        InputError: Inputs do not fit, or weights are not finite.
        BundleError: `checkpoint` is of another run.
        CorruptError: `checkpoint` is damaged.

    Example:
        >>> from dynamic.models import compress
        >>> packed = compress.deep_compress(
        ...     large, torch.zeros(2, 12), train_loader=train_loader, steps=((0.5, 1),), cluster_epochs=0,
        ...     path="large.packed", latency=False, progress=False,
        ... )
        >>> packed.report.after.file_bytes < packed.report.before.file_bytes
        True
    """
    shares = [share for share, _ in steps]
    if not shares or shares != sorted(shares) or not all(0 < share < 1 for share in shares):
        raise SettingError(f"steps={steps}: give shares between 0 and 1 that rise, with their epochs")
    check_inputs(network, example_inputs)
    trained_by = copied(network) if teacher is None else teacher
    folder = None if checkpoint is None else Path(checkpoint)
    if folder is not None:
        run = {
            "network": digest(network.state_dict()), "teacher": digest(trained_by.state_dict()), "steps": steps,
            "clusters": clusters if isinstance(clusters, int) else dict(clusters), "cluster_epochs": cluster_epochs,
            "skip": sorted(skip), "lr": lr, "cluster_lr": cluster_lr, "distill_share": distill_share,
            "temperature": temperature, "seed": seed,
        }  # fmt: skip
        _check_run(folder / "run.safetensors", run)
    sparse = network
    for number, (share, epochs) in enumerate(steps):
        masked = prune_weights(sparse, example_inputs, amount=share, skip=tuple(skip), latency=False).network
        if epochs:
            training = fit(
                masked,
                train_loader,
                mode="distill",
                epochs=epochs,
                lr=lr,
                training=TrainingConfig(optimizer="sgd"),
                distillation=DistillationConfig(teacher=trained_by, share=distill_share, temperature=temperature),
                seed=seed + number,
                checkpoint=None if folder is None else folder / f"prune-{number}.safetensors",
                progress=progress,
            )
            logger.info("%.3g of the weights are 0: %s", share, training)
        sparse = baked(masked)
    clustered = cluster(
        sparse,
        example_inputs,
        clusters=clusters,
        skip=skip,
        reduce=True,
        train_loader=train_loader if cluster_epochs else None,
        epochs=cluster_epochs,
        lr=cluster_lr,
        teacher=trained_by,
        distill_share=distill_share,
        temperature=temperature,
        seed=seed + len(steps),
        checkpoint=None if folder is None else folder / "cluster.safetensors",
        progress=progress,
        latency=False,
    )
    smaller = simple_norms(clustered.network)
    if half:
        smaller = to_half_precision(smaller)
    with TemporaryFolder("packed") as spare:
        size = save_packed(smaller, Path(spare) / "packed" if path is None else path)
    weights, _ = weights_of(smaller)
    facts = {
        **clustered.report.facts,
        "sparsity": {w.name: 1 - int(torch.count_nonzero(w.value)) / w.value.numel() for w in weights},
    }
    left_alone = clustered.report.left_alone
    return Compressed(
        smaller,
        report(
            "deep compression", network, smaller, example_inputs, eval_loader,
            latency=latency, file_bytes=size, left_alone=left_alone, facts=facts, same_work=True,
        ),
    )  # fmt: skip


def _check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Write the settings of a run, or raise BundleError where another run wrote its own.

    A checkpoint restores masks, so shares and `skip` must be equal. Trainings without this file count as of the same
    run.
    """
    now = json.loads(json.dumps(run))
    if not path.exists():
        write_tensors(path, {}, {"kind": "deep compression", "run": now})
        return
    _, facts = read_tensors(path)
    if facts.get("kind") != "deep compression":
        raise BundleError(f"{path} is no run of deep_compress: give another checkpoint")
    theirs = facts["run"]
    changed = [name for name in sorted({*theirs, *now}) if theirs.get(name) != now.get(name)]
    if changed:
        differences = ", ".join(f"{n}={theirs.get(n)} (now {now.get(n)})" for n in changed)
        raise BundleError(
            f"{path} is of a run with {differences}: call deep_compress as that run did, or give another checkpoint"
        )
