"""Weights that share few values: every layer has a short table of numbers, and each weight is one of them."""

import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from dynamic.models.compress.compressible_weights import KINDS, Weight, WeightKind, weights_of
from dynamic.models.compress.pruning.weight_pruning import baked
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.offline.option_words import check_word
from dynamic.offline.training.configs import DistillationConfig, TrainingConfig
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import InputError, SettingError

logger = logging.getLogger("dynamic")
MOST = 1 << 16


def cluster(
    network: nn.Module,
    example_inputs: Batch,
    *,
    clusters: int | Mapping[WeightKind, int] = 16,
    skip: Collection[str] = (),
    reduce: bool = False,
    train_loader: Iterable[Any] | None = None,
    epochs: int = 0,
    lr: float = 3e-4,
    teacher: nn.Module | None = None,
    distill_share: float = 0.5,
    temperature: float = 3.0,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
) -> Compressed:
    """A copy of a network whose weights take few values a layer (Han et al. 2016, "Deep Compression", section 3).

    Weights of 0 remain 0 and are no cluster. With `train_loader` and `epochs` the shared values are trained with AdamW
    (`dynamic.fit`). The gradient of a value is the sum over its weights (section 3.3). Everything else is trained too.
    Only `save_packed` makes the file small.

    Args:
        network: The network. It does not change.
        example_inputs: A batch as the network takes it.
        clusters: Values of each layer. A dict has one number for "conv" and one for "linear". A kind that it does not
            name does not change.
        skip: Names of weights or modules to leave alone.
        reduce: Whether a layer may have fewer distinct weights than clusters. It then keeps those.
        train_loader: `(inputs, labels [B])` that train the values.
        epochs: Passes over `train_loader`.
        lr: Learning rate.
        teacher: None: the network as it was.
        distill_share: Share of the loss that comes from the teacher.
        temperature: It softens both answers.
        seed: Of training.
        checkpoint: A file from which a killed run continues, see `dynamic.fit`.
        progress: Whether a progress bar is shown. None: on a terminal.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.

    Returns:
        The network and a report. `report.facts["clusters"]`: the values of each layer.

    Raises:
        SettingError: A setting is out of range.
        InputError: A layer has fewer distinct weights than clusters, or weights are not finite.

    Example:
        >>> from dynamic.models import compress
        >>> shared = compress.cluster(large, torch.zeros(2, 12), clusters=4, latency=False)
        >>> len(shared.network[2].weight.unique())
        4
    """
    if (train_loader is None) != (epochs == 0):
        raise SettingError(f"epochs={epochs} and train_loader={train_loader!r}: give both or none")
    plain = baked(network)  # masks become zeros, which remain
    shared = copied(plain)
    left_alone = share_values(shared, clusters, skip=skip, reduce=reduce)
    if train_loader is not None:
        trained_by = copied(network) if teacher is None else teacher
        training = fit(
            shared,
            train_loader,
            mode="distill",
            epochs=epochs,
            lr=lr,
            training=TrainingConfig(optimizer="adamw", weight_decay=0.0),
            distillation=DistillationConfig(teacher=trained_by, share=distill_share, temperature=temperature),
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )
        logger.info("shared values: %s", training)
    settle(shared, plain)
    names = {w.name for w in weights_of(plain)[0]}
    tables = {_bare(path): part for path, part in shared.named_modules() if isinstance(part, SharedValues)}
    facts = {"clusters": {name: int(part.index.max()) for name, part in tables.items() if name in names}}
    before = baked(network)
    result = report(
        "cluster",
        before,
        plain,
        example_inputs,
        eval_loader,
        latency=latency,
        left_alone=left_alone,
        facts=facts,
        same_work=True,
    )
    return Compressed(plain, result)


def share_values(
    network: nn.Module,
    clusters: int | Mapping[WeightKind, int] = 16,
    *,
    skip: Collection[str] = (),
    reduce: bool = False,
) -> dict[str, str]:
    """Make the weights of `network`, in place, tables of trainable values: a parametrization as `SharedValues`.

    It returns the weights left alone and why, and raises as `cluster` does.
    """
    if isinstance(clusters, bool) or not isinstance(clusters, (int, Mapping)):
        raise SettingError(
            f"clusters={clusters!r}: give a whole number, or a dict with one for each of {', '.join(KINDS)}"
        )
    numbers = dict.fromkeys(KINDS, clusters) if isinstance(clusters, int) else dict(clusters)
    for kind in numbers:
        check_word("clusters", kind, WeightKind)
    for kind, count in numbers.items():
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count < MOST:
            raise SettingError(f"clusters={count} for {kind}: give 1 to {MOST - 1}")
    weights, left_alone = weights_of(network, skip)
    labels: list[tuple[Weight, Tensor]] = []
    for weight in weights:  # all are checked before any changes
        number = numbers.get(weight.kind)
        if number is None:
            left_alone[weight.name] = f"clusters does not name {weight.kind}"
            continue
        values = weight.value.detach().double().numpy(force=True).ravel()
        if not np.isfinite(values).all():
            raise InputError(f"{weight.name} holds NaN or infinity: train again, or skip it")
        nonzero = np.sort(values[values != 0])
        distinct = 1 + int(np.count_nonzero(np.diff(nonzero))) if len(nonzero) else 0
        if distinct < number and not reduce:
            raise InputError(
                f"{weight.name} has {distinct} distinct weights besides 0, fewer than clusters={number}: give fewer, "
                "skip it, or set reduce=True"
            )
        if not distinct:
            left_alone[weight.name] = "all its weights are 0"
            continue
        index = np.where(values != 0, 1 + nearest(values, centroids(nonzero, min(number, distinct))), 0)
        occurs = np.bincount(index, minlength=1) > 0
        occurs[0] = True
        index = (np.cumsum(occurs) - 1)[index].astype(np.int32)
        labels.append((weight, torch.from_numpy(index).to(weight.value.device)))
    for weight, label in labels:
        _parametrize(weight, label)
    return left_alone


class SharedValues(nn.Module):
    """`weight = table[index]`. The table `[K]` is trained, and index 0 is a weight that remains 0.

    `index [N]` is that of all weights in order. A fresh table holds the means of the weights of each index.
    """

    index: Tensor

    def __init__(self, index: Tensor, shape: torch.Size) -> None:
        super().__init__()
        self.register_buffer("index", index)
        self.shape = shape

    def forward(self, table: Tensor) -> Tensor:
        """The weight `[*shape]` of `table [K]`."""
        return F.pad(table, (1, 0)).index_select(0, self.index).view(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The table `[K]` nearest to `weight [*shape]`."""
        members = self.index.bincount()
        sums = torch.bincount(self.index, weights=weight.detach().flatten().double(), minlength=len(members))
        return (sums[1:] / members[1:]).to(weight.dtype)


def _parametrize(weight: Weight, index: Tensor) -> None:
    """Put `SharedValues` on a weight, with one table for all places that share it."""
    original, shape = weight.value, weight.value.shape
    first: nn.Parameter | None = None
    for module, attribute in weight.places:
        setattr(module, attribute, nn.Parameter(original.detach().clone(), original.requires_grad))
        parametrize.register_parametrization(module, attribute, SharedValues(index, shape))
        parametrization: Any = module.parametrizations[attribute]  # type: ignore[index]
        if first is None:
            first = parametrization.original
        parametrization.original = first


def _bare(path: str) -> str:
    """The name of a weight from the path of its parametrization, `<module>.parametrizations.<weight>.0`."""
    return f".{path}".replace(".parametrizations.", ".").removesuffix(".0").lstrip(".")


def settle(shared: nn.Module, plain: nn.Module) -> None:
    """Write the weights of `shared`, a copy of `plain` with `share_values`, into `plain` as plain parameters."""
    with torch.no_grad():
        for name, tensor in plain.state_dict().items():
            prefix, _, attribute = name.rpartition(".")
            tensor.copy_(getattr(shared.get_submodule(prefix), attribute))


def centroids(values: NDArray[np.float64], number: int, rounds: int = 300) -> NDArray[np.float64]:
    """Rising k-means centroids `[number]` of `values [N]` in one dimension (Lloyd 1982).

    They start as linear steps between the least and the largest value (Han et al. 2016, section 3.2). A centroid
    without values moves to the value with the largest error. `values` hold at least `number` distinct ones.
    """
    ordered = np.sort(values)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    centers = np.linspace(ordered[0], ordered[-1], number)
    for _ in range(rounds):
        edges = np.searchsorted(ordered, (centers[1:] + centers[:-1]) / 2)
        edges = np.concatenate(([0], edges, [len(ordered)]))
        members = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(members, 1)
        if (empty := np.flatnonzero(members == 0)).size:
            far = np.abs(ordered - np.repeat(means, members))
            means[empty[0]] = ordered[far.argmax()]
            means[empty[1:]] = centers[empty[1:]]
            means.sort()
        elif np.array_equal(means, centers):
            break
        centers = means
    return centers


def nearest(values: NDArray[np.float64], centers: NDArray[np.float64]) -> NDArray[np.int64]:
    """The index `[N]` of the nearest of the rising `centers [K]` for each of `values [N]`."""
    return np.searchsorted((centers[1:] + centers[:-1]) / 2, values, side="right")
