"""Deep Compression: prune, share values, code; the file is what gets small."""

import logging
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dynamic.models.compress.clustering import cluster
from dynamic.models.compress.packing import save_packed
from dynamic.models.compress.pruning import baked, prune_weights
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.models.compress.rounding import rounded, simple_norms
from dynamic.models.compress.weights import weights_of
from dynamic.offline.fitting import fit
from dynamic.offline.inputs import Batch
from dynamic.policies.errors import BudgetError

logger = logging.getLogger("dynamic")


def deep_compress(
    network: nn.Module,
    example_inputs: Batch,
    train_loader: Iterable[Any],
    *,
    steps: Sequence[tuple[float, int]] = ((0.5, 1), (0.7, 1), (0.8, 5)),
    clusters: int | Mapping[str, int] = 16,
    cluster_epochs: int = 2,
    skip: Collection[str] = (),
    lr: float = 0.02,
    cluster_lr: float = 3e-4,
    teacher: nn.Module | None = None,
    distill_share: float = 0.5,
    temperature: float = 3.0,
    half: bool = True,
    path: str | Path | None = None,
    checkpoints: str | Path | None = None,
    seed: int = 0,
    progress: bool | None = None,
    data: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """Prune the weights of least magnitude over the whole network, train the rest, let the rest of each layer share
    `clusters` values, train those, and pack (Han et al. 2016, "Deep Compression").

    `steps`: (share of the weights that is 0, epochs of training at it), rising; SGD, `lr`. Then `cluster` with
    `cluster_epochs` and `cluster_lr`. `skip`: what neither step touches. `teacher` (None: `network`) gives
    `distill_share` of what is learned. At the end batch norms are made `simple_norms` and, with `half`, all numbers are
    `rounded` to float16: the network given back holds exactly what `load_packed` reads from `path`.

    `checkpoints`, a folder: a run that was killed and is started again ends with the same bits. `report.file_bytes` is
    the packed file's. Raises BudgetError on settings out of range.
    """
    shares = [share for share, _ in steps]
    if not shares or shares != sorted(shares) or not all(0 < share < 1 for share in shares):
        raise BudgetError(f"steps={steps}: shares between 0 and 1 that rise, with their epochs")
    folder = None if checkpoints is None else Path(checkpoints)
    taught = copied(network) if teacher is None else teacher
    found = network
    for number, (share, epochs) in enumerate(steps):
        masked = prune_weights(found, example_inputs, share, skip=tuple(skip), latency=False).network
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
                checkpoint=None if folder is None else folder / f"prune-{number}.safetensors",
                progress=progress,
            )
            logger.info("%.3g of the weights 0; %s", share, done)
        found = baked(masked)
    clustered = cluster(
        found,
        example_inputs,
        clusters,
        skip=skip,
        reduce=True,
        train_loader=train_loader if cluster_epochs else None,
        epochs=cluster_epochs,
        lr=cluster_lr,
        teacher=taught,
        distill_share=distill_share,
        temperature=temperature,
        seed=seed + len(steps),
        checkpoint=None if folder is None else folder / "cluster.safetensors",
        progress=progress,
        latency=False,
    )
    made = simple_norms(clustered.network)
    if half:
        made = rounded(made)
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
            "deep compression", network, made, example_inputs, data,
            latency=latency, file_bytes=size, left_alone=left, facts=facts,
        ),
    )  # fmt: skip
