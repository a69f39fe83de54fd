"""Training exit heads on a frozen backbone, whose features are computed once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.acceleration import Acceleration
from dynamic.offline.checkpoints import Checkpoint, digest, signature
from dynamic.offline.determinism import seeded
from dynamic.offline.features import FeatureCache, classified, extracted
from dynamic.offline.losses import ExitLoss
from dynamic.offline.settings import Settings
from dynamic.offline.stages import StagedNetwork
from dynamic.offline.training import History, Task, train
from dynamic.policies.errors import WrapError


@dataclass(frozen=True)
class HeadFit:
    """The trained exits, how it went, and how large the kept features were."""

    exits: tuple[str, ...]
    history: History
    features_mb: float
    features_on_disk: bool


def fit_heads(
    network: StagedNetwork,
    loader: Iterable[Any],
    settings: Settings,
    acceleration: Acceleration,
    memory_limit_mb: float,
    cache_dir: str | Path | None,
    checkpoint: str | Path | None,
    progress: bool | None,
) -> HeadFit:
    """Train every head that has parameters to train; `network` is in evaluation mode and stays as it is.

    Raises WrapError where there is none.
    """
    stages = network.exit_stages
    trained = [i for i, stage in enumerate(stages) if any(p.requires_grad for p in stage.head.parameters())]
    if not trained:
        raise WrapError(
            f"this {type(network).__name__} has no exit head with trainable parameters; add exits with "
            f"dynamic.wrap, or use mode='joint'"
        )
    heads = [stages[i].head for i in trained]
    with ExitStack() as owned:
        with seeded(settings.seed, -1, loader):
            cache = owned.enter_context(
                extracted(network, stages, trained, loader, acceleration, memory_limit_mb, cache_dir, progress)
            )
        state = {
            f"{i}.{name}": tensor
            for i, head in zip(trained, heads, strict=True)
            for name, tensor in head.state_dict().items()
        }
        kept = Checkpoint(checkpoint, _conditions(network, state, cache, settings, acceleration))
        history = _train(heads, state, cache, settings, acceleration, kept, progress)
        return HeadFit(tuple(stages[i].name for i in trained), history, cache.size_mb, cache.on_disk)


def _train(
    heads: Sequence[nn.Module],
    state: Mapping[str, Tensor],
    cache: FeatureCache,
    settings: Settings,
    acceleration: Acceleration,
    kept: Checkpoint,
    progress: bool | None,
) -> History:
    rows = len(cache.labels)
    # at least some fifty steps an epoch, or small sets never arrive
    size = settings.batch_size or min(512, max(32, rows // 50))
    starts = [s for s in range(0, rows, size) if rows - s > 1 or rows == 1]  # batch norm fails on one input
    run = [classified(head) for head in heads]

    def batches() -> Iterator[tuple[list[Tensor], Tensor]]:
        order = torch.randperm(rows).numpy()
        for start in starts:
            features, labels = cache.rows(order[start : start + size])
            yield [f.to(acceleration.device) for f in features], labels.to(acceleration.device)

    def forward(features: Sequence[Tensor]) -> list[Tensor]:
        return [head(feature) for head, feature in zip(run, features, strict=True)]

    loss = ExitLoss((1.0,) * len(heads), label_smoothing=settings.label_smoothing)
    optimizer = settings.make_optimizer(p for head in heads for p in head.parameters())
    for head in heads:
        head.train()
    try:
        task = Task(batches, forward, loss, state, len(starts))
        return train(task, optimizer, settings.epochs, settings.seed, kept, progress)
    finally:
        optimizer.zero_grad(set_to_none=True)


def _conditions(
    network: StagedNetwork,
    state: Mapping[str, Tensor],
    cache: FeatureCache,
    settings: Settings,
    acceleration: Acceleration,
) -> dict[str, Any]:
    """What has to be the same for a run to go on."""
    own = {(t.data_ptr(), t.numel()) for t in state.values()}
    weights = network.state_dict()
    return {
        **vars(settings),
        "network": signature(weights),
        "backbone weights": digest({n: t for n, t in weights.items() if (t.data_ptr(), t.numel()) not in own}),
        "order of the data": cache.order(),
        "bf16": acceleration.bf16,
        "channels_last": acceleration.channels_last,
    }
