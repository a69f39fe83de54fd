"""Training exit heads on a frozen backbone, whose features are computed once."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dynamic.offline.acceleration import Acceleration
from dynamic.offline.checkpoints import Checkpoint, digest, signature
from dynamic.offline.determinism import seeded
from dynamic.offline.features import FeatureCache, classified, extract
from dynamic.offline.losses import ExitLoss
from dynamic.offline.settings import Settings
from dynamic.offline.stages import StagedNetwork
from dynamic.offline.training import History, Task, train
from dynamic.policies.errors import WrapError


def fit_heads(
    network: StagedNetwork,
    loader: Iterable[Any],
    settings: Settings,
    acceleration: Acceleration,
    memory_limit_mb: float,
    cache_dir: str | Path | None,
    checkpoint: str | Path | None,
    progress: bool | None,
) -> tuple[tuple[str, ...], History, FeatureCache]:
    stages = network.exit_stages
    trained = [i for i, stage in enumerate(stages) if any(p.requires_grad for p in stage.head.parameters())]
    if not trained:
        raise WrapError(
            f"this {type(network).__name__} has no exit head with trainable parameters; add exits with dynamic.wrap, "
            f"or use mode='joint'"
        )
    heads = [stages[i].head for i in trained]
    with seeded(settings.seed, -1, loader):
        cache = extract(network, stages, trained, loader, acceleration, memory_limit_mb, cache_dir, progress)
    rows = len(cache.labels)
    # at least some fifty steps an epoch, or small sets never arrive
    size = settings.batch_size or min(512, max(32, rows // 50))
    starts = [s for s in range(0, rows, size) if rows - s > 1 or rows == 1]  # batch norm fails on one input

    def batches() -> Iterator[tuple[list[Tensor], Tensor]]:
        order = torch.randperm(rows).numpy()
        for start in starts:
            features, labels = cache.rows(order[start : start + size])
            yield [f.to(acceleration.device) for f in features], labels.to(acceleration.device)

    state = {f"{i}.{name}": t for i, head in zip(trained, heads, strict=True) for name, t in head.state_dict().items()}
    own = {(t.data_ptr(), t.numel()) for t in state.values()}
    frozen = {n: t for n, t in network.state_dict().items() if (t.data_ptr(), t.numel()) not in own}
    kept = Checkpoint(
        checkpoint,
        {
            **vars(settings),
            "network": signature(network.state_dict()),
            "backbone weights": digest(frozen),
            "order of the data": cache.order(),
            "bf16": acceleration.bf16,
            "channels_last": acceleration.channels_last,
        },
    )
    for head in heads:
        head.train()
    run = [classified(head) for head in heads]
    task = Task(
        batches,
        lambda features: [head(feature) for head, feature in zip(run, features, strict=True)],
        ExitLoss((1.0,) * len(heads), label_smoothing=settings.label_smoothing),
        state,
        len(starts),
    )
    optimizer = settings.make_optimizer(p for head in heads for p in head.parameters())
    try:
        history = train(task, optimizer, settings.epochs, settings.seed, kept, progress)
    finally:
        optimizer.zero_grad(set_to_none=True)
    return tuple(stages[i].name for i in trained), history, cache
