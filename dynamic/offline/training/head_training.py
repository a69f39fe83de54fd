"""Training exit heads on a frozen backbone, whose features are computed once, or in every epoch."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.offline.batches import Batch, named_tensors, run_on, taken_by
from dynamic.offline.build_steps.loaders import check_labels
from dynamic.offline.networks.acceleration import Acceleration
from dynamic.offline.networks.checkpoints import Checkpoint, digest, signature
from dynamic.offline.networks.feature_cache import (
    FeatureCache,
    check_logits,
    checked_batches,
    classified,
    extracted,
)
from dynamic.offline.networks.row_independence import Singles, check_rows
from dynamic.offline.staged_network import Stage, StagedNetwork
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.offline.training.losses import ExitLoss
from dynamic.offline.training.settings import Settings, TrainingRun
from dynamic.offline.training.teacher import answer_of, check_apart, check_teacher
from dynamic.offline.training.training_loop import History, Task, train
from dynamic.policies.errors import InputError, SettingError, WrapError
from dynamic.progress import size_of, track


@dataclass(frozen=True)
class HeadFit:
    """The trained exits, their history, and the size of the cached features."""

    exits: tuple[str, ...]
    history: History
    features_mb: float
    features_on_disk: bool


def fit_heads(run: TrainingRun, loss: ExitLoss | None, teacher: nn.Module | None) -> HeadFit:
    """Train every head that has parameters to train.

    Without `cache` the features are computed again for every batch of every epoch. Then heads can learn from a teacher
    too.

    Args:
        run: The network, which is in evaluation mode and is not changed otherwise, data and settings.
        loss: The share of the teacher's answers. Its weights are not used.
        teacher: Another network, on the device already.

    Returns:
        The trained exits, and how their training went.

    Raises:
        WrapError: No head has parameters to train.
        SettingError: A teacher or a batch size was given that `cache` excludes.
        InputError: Data or teacher do not fit.
    """
    network, settings, acceleration = run.network, run.settings, run.acceleration
    stages = network.exit_stages
    trained = [i for i, stage in enumerate(stages) if any(p.requires_grad for p in stage.head.parameters())]
    if not trained:
        raise WrapError(
            f"this {type(network).__name__} has no exit head with trainable parameters. Add exits with "
            f"dynamic.wrap, or use mode='joint'"
        )
    heads = [stages[i].head for i in trained]
    names = tuple(stages[i].name for i in trained)
    report = run.callbacks.epochs(names)
    if teacher is not None and run.training.cache:
        raise SettingError(
            "heads learn from a teacher with cache=False only: its answers are not kept. Give "
            "training=TrainingConfig(cache=False)"
        )
    if not run.training.cache:
        computed = _ComputedFeatures(run, stages, trained, teacher)
        state = _state(heads, trained)
        conditions = _conditions(network, state, "not cached", settings, acceleration)
        if teacher is not None and loss is not None:
            conditions |= {"teacher": digest(teacher.state_dict()), "distill": loss.distill}
            conditions |= {"temperature": loss.temperature}
        checkpoint = Checkpoint(run.checkpoint, conditions)
        run.used_batches.is_training = True
        return HeadFit(names, _train(heads, state, computed, run, checkpoint, report, loss), 0.0, False)
    with ExitStack() as owned:
        with seeded(settings.seed, -1, run.loader):
            batches = run.used_batches.watch(checked_batches(run.loader, None))
            features = owned.enter_context(
                extracted(
                    network,
                    stages,
                    trained,
                    track(batches, "features", size_of(run.loader), run.progress),
                    acceleration,
                    memory_limit_mb=run.training.memory_limit_mb,
                    cache_dir=run.training.cache_dir,
                )
            )
        state = _state(heads, trained)
        checkpoint = Checkpoint(run.checkpoint, _conditions(network, state, features.order(), settings, acceleration))
        run.used_batches.is_training = True
        cached = _CachedFeatures(features, heads, settings, acceleration)
        history = _train(heads, state, cached, run, checkpoint, report)
        return HeadFit(names, history, features.size_mb, features.on_disk)


class _CachedFeatures:
    """Batches of features that were computed once, shuffled, and the parts of the heads that are run on them."""

    def __init__(
        self, cache: FeatureCache, heads: Sequence[nn.Module], settings: Settings, acceleration: Acceleration
    ) -> None:
        self._cache, self._device = cache, acceleration.device
        rows = len(cache.labels)
        # at least some fifty steps an epoch, or small sets never arrive
        self._size = settings.batch_size or min(512, max(32, rows // 50))
        # batch norm fails on one input
        self._starts = [s for s in range(0, rows, self._size) if rows - s > 1 or rows == 1]
        self._run = [classified(head) for head in heads]
        self._singles = Singles(heads)
        # features are kept in float32, whatever the network computes in
        self._kinds = [next((p.dtype for p in h.parameters() if p.is_floating_point()), torch.float32) for h in heads]
        self.loader, self.steps = None, len(self._starts)

    def batches(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        order = torch.randperm(len(self._cache.labels)).numpy()
        for start in self._starts:
            rows, labels = self._cache.rows(order[start : start + self._size])
            features = [f.to(self._device) for f in rows]
            if self._singles.trains(len(labels), partial(self.forward, features)):
                yield features, labels.to(self._device)
        self._singles.close_epoch()

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        parts = zip(self._run, self._kinds, features, strict=True)
        return [head(feature.to(kind)) for head, kind, feature in parts]


class _ComputedFeatures:
    """Batches of features that the frozen backbone computes as they are needed. The loader sets their size."""

    def __init__(
        self, run: TrainingRun, stages: Sequence[Stage], trained: Sequence[int], teacher: nn.Module | None
    ) -> None:
        network, loader = run.network, run.loader
        if run.settings.batch_size is not None:
            raise SettingError(f"batch_size={run.settings.batch_size} is for cached features. The loader sets it here")
        if isinstance(loader, Iterator):
            raise InputError("the loader is an iterator, used up once read. Give a DataLoader or a list of batches")
        self._network, self._stages, self._trained = network, stages, trained
        self.loader, self._acceleration, self._used_batches = loader, run.acceleration, run.used_batches
        self.steps = size_of(loader) or None
        self._classes: int | None = None
        self._singles = Singles([stages[i].head for i in trained])
        self._teacher = teacher
        self._own = teacher is not None and teacher is getattr(network, "backbone", None)
        if teacher is not None:
            check_apart(teacher, [stage.head for stage in stages])

    def batches(self) -> Iterator[tuple[list[Tensor], Tensor]]:
        for inputs, labels in self._used_batches.watch(checked_batches(self.loader, self._classes)):
            features = []
            with torch.no_grad(), self._acceleration.autocast():
                named = self._placed(self._network, inputs)
                carry = tuple(named.values())
                answer = None if self._own or self._teacher is None else self._taught(self._teacher, inputs)
                if self._classes is None:
                    with taken_by(self._network, named):
                        few = run_on(self._network, {name: t[:2] for name, t in named.items()})
                        self._classes = check_logits(few, len(self._stages), labels)
                        check_rows(self._network, named, values=False)
                    if answer is not None:
                        check_teacher(answer[:2], len(labels[:2]), self._classes)
                check_labels(labels, self._classes)
                # the backbone's own answer comes at the end of the same run
                for number, stage in enumerate(self._stages if self._own else self._stages[: self._trained[-1] + 1]):
                    carry = stage.body(*carry)
                    if number in self._trained:
                        features.append(carry[0].clone())  # the next stage may change its carry in place
            if self._own:
                answer = carry[0]
            if answer is not None:
                features.append(answer)  # what `_last` gives
            if not self._singles.trains(len(labels), partial(self.forward, features)):
                continue
            yield features, torch.from_numpy(labels).to(self._acceleration.device)
        self._singles.close_epoch()

    def _placed(self, network: nn.Module, inputs: Batch) -> dict[str, Tensor]:
        return {name: self._acceleration.place(t) for name, t in named_tensors(network, inputs).items()}

    def _taught(self, teacher: nn.Module, inputs: Batch) -> Tensor:
        return answer_of(teacher, self._placed(teacher, inputs))

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        own_features = features[: len(self._trained)]
        with self._acceleration.autocast():
            return [self._stages[i].head(feature) for i, feature in zip(self._trained, own_features, strict=True)]


def _last(features: Sequence[Tensor]) -> Tensor:
    """The teacher's answer, which comes behind what the heads see."""
    return features[-1]


def _train(
    heads: Sequence[nn.Module],
    state: Mapping[str, Tensor],
    data: _CachedFeatures | _ComputedFeatures,
    run: TrainingRun,
    checkpoint: Checkpoint,
    report: Callable[[int, Sequence[float], Sequence[float]], None],
    loss: ExitLoss | None = None,
) -> History:
    settings = run.settings
    equal = (1.0,) * len(heads)
    taught = None if loss is None else replace(loss, weights=equal)
    loss = taught or ExitLoss(equal, label_smoothing=settings.label_smoothing)
    optimizer = settings.make_optimizer(p for head in heads for p in head.parameters())
    for head in heads:
        head.train()
    try:
        teacher = None if taught is None else _last
        task = Task(data.batches, data.forward, loss, state, data.steps, loader=data.loader, teacher=teacher)
        return train(task, optimizer, settings.epochs, settings.seed, checkpoint, run.progress, report)
    finally:
        optimizer.zero_grad(set_to_none=True)


def _state(heads: Sequence[nn.Module], trained: Sequence[int]) -> dict[str, Tensor]:
    """All that training changes, by name."""
    return {
        f"{i}.{name}": tensor
        for i, head in zip(trained, heads, strict=True)
        for name, tensor in head.state_dict().items()
    }


def _conditions(
    network: StagedNetwork,
    state: Mapping[str, Tensor],
    order: str,
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
        "order of the data": order,
        "bf16": acceleration.bf16,
        "channels_last": acceleration.channels_last,
    }
