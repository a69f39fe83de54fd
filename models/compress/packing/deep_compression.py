"""Deep Compression: prune, share values, code; the file is what gets small."""

import json
import logging
import tempfile
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
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import BundleError, SettingError

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
    """Prune the weights of least magnitude over the whole network, train the rest, let the rest of each layer share
    `clusters` values, train those, and pack (Han et al. 2016, "Deep Compression").

    `steps`: (share of the weights that is 0, epochs of training at it), rising; SGD, `lr`. Then `cluster` with
    `cluster_epochs` and `cluster_lr`. `skip`: what neither step touches. `teacher` (None: `network`) gives
    `distill_share` of what is learned. At the end batch norms are made `simple_norms` and, with `half`, all numbers are
    `to_half_precision` to float16: the network given back holds exactly what `load_packed` reads from `path`.

    `folder` keeps every training: a run that was killed and is started again with the same arguments ends with the same
    bits. `report.file_bytes` is the packed file's. Raises SettingError on settings out of range, BundleError where
    `folder` holds another run, CorruptError where it is damaged.
    """
    shares = [share for share, _ in steps]
    if not shares or shares != sorted(shares) or not all(0 < share < 1 for share in shares):
        raise SettingError(f"steps={steps}: shares between 0 and 1 that rise, with their epochs")
    check_inputs(network, example_inputs)
    taught = copied(network) if teacher is None else teacher
    kept = None if checkpoint is None else Path(checkpoint)
    if kept is not None:
        run = {
            "network": digest(network.state_dict()), "teacher": digest(taught.state_dict()), "steps": steps,
            "clusters": clusters if isinstance(clusters, int) else dict(clusters), "cluster_epochs": cluster_epochs,
            "skip": sorted(skip), "lr": lr, "cluster_lr": cluster_lr, "distill_share": distill_share,
            "temperature": temperature, "seed": seed,
        }  # fmt: skip
        _check_run(kept / "run.safetensors", run)
    found = network
    for number, (share, epochs) in enumerate(steps):
        masked = prune_weights(found, example_inputs, amount=share, skip=tuple(skip), latency=False).network
        if epochs:
            done = fit(
                masked,
                train_loader,
                mode="distill",
                teacher=taught,
                epochs=epochs,
                lr=lr,
                optimizer="sgd",
                distill_share=distill_share,
                temperature=temperature,
                seed=seed + number,
                checkpoint=None if kept is None else kept / f"prune-{number}.safetensors",
                progress=progress,
            )
            logger.info("%.3g of the weights 0; %s", share, done)
        found = baked(masked)
    clustered = cluster(
        found,
        example_inputs,
        clusters=clusters,
        skip=skip,
        reduce=True,
        train_loader=train_loader if cluster_epochs else None,
        epochs=cluster_epochs,
        lr=cluster_lr,
        teacher=taught,
        distill_share=distill_share,
        temperature=temperature,
        seed=seed + len(steps),
        checkpoint=None if kept is None else kept / "cluster.safetensors",
        progress=progress,
        latency=False,
    )
    made = simple_norms(clustered.network)
    if half:
        made = to_half_precision(made)
    with tempfile.TemporaryDirectory(prefix="dynamic-packed-") as spare:
        size = save_packed(made, Path(spare) / "packed" if path is None else path)
    weights, _ = weights_of(made)
    facts = {
        **clustered.report.facts,
        "sparsity": {w.name: 1 - int(torch.count_nonzero(w.value)) / w.value.numel() for w in weights},
    }
    left = clustered.report.left_alone
    return Compressed(
        made,
        report(
            "deep compression", network, made, example_inputs, eval_loader,
            latency=latency, file_bytes=size, left_alone=left, facts=facts, same_work=True,
        ),
    )  # fmt: skip


def _check_run(path: Path, run: Mapping[str, Any]) -> None:
    """Write what a run was asked for, or raise BundleError where another was: masks, hence shares and what is skipped,
    are state that a checkpoint restores. Trainings without this file are taken for the same run's."""
    now = json.loads(json.dumps(run))
    if not path.exists():
        write_tensors(path, {}, {"kind": "deep compression", "run": now})
        return
    _, facts = read_tensors(path)
    if facts.get("kind") != "deep compression":
        raise BundleError(f"{path} is no run of deep_compress; give another checkpoint")
    theirs = facts["run"]
    changed = [name for name in sorted({*theirs, *now}) if theirs.get(name) != now.get(name)]
    if changed:
        told = ", ".join(f"{n}={theirs.get(n)} (now {now.get(n)})" for n in changed)
        raise BundleError(
            f"{path} is of a run with {told}; call deep_compress as that run did, or give another checkpoint"
        )
