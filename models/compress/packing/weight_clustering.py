"""Weights that share few values: every layer keeps a short table of numbers, and each weight is one of them."""

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

from dynamic.models.compress.argument_checks import check_word
from dynamic.models.compress.compressible_weights import KINDS, Weight, WeightKind, weights_of
from dynamic.models.compress.pruning.weight_pruning import baked
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
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
    """A copy of `network` whose weights take `clusters` values a layer (Han et al. 2016, "Deep Compression", sec. 3).

    `clusters`: one number, or one for each of "conv" and "linear"; a kind that is not named is left alone. Weights
    that are 0 stay 0 and are no cluster. With `train_loader` and `epochs` the shared values are trained with
    `dynamic.fit` (AdamW, `lr`): a value's gradient is the sum over its weights (section 3.3). Everything else is
    trained along. `teacher` (None: `network`) gives `distill_share` of what is learned. The file gets small only by
    `save_packed`.

    A layer with fewer distinct weights than clusters raises InputError; with `reduce` it keeps those it has. Raises
    SettingError on a setting out of range.
    """
    if (train_loader is None) != (epochs == 0):
        raise SettingError(f"epochs={epochs} and train_loader={train_loader!r}: give both, or neither")
    plain = baked(network)  # masks that are on become zeros, which stay
    shared = copied(plain)
    left = share_values(shared, clusters, skip=skip, reduce=reduce)
    if train_loader is not None:
        taught = copied(network) if teacher is None else teacher
        done = fit(
            shared,
            train_loader,
            mode="distill",
            teacher=taught,
            distill_share=distill_share,
            temperature=temperature,
            epochs=epochs,
            lr=lr,
            optimizer="adamw",
            weight_decay=0.0,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
        )
        logger.info("shared values; %s", done)
    settle(shared, plain)
    names = {w.name for w in weights_of(plain)[0]}
    tables = {_bare(path): part for path, part in shared.named_modules() if isinstance(part, SharedValues)}
    facts = {"clusters": {name: int(part.index.max()) for name, part in tables.items() if name in names}}
    before = baked(network)
    told = report(
        "cluster",
        before,
        plain,
        example_inputs,
        eval_loader,
        latency=latency,
        left_alone=left,
        facts=facts,
        same_work=True,
    )
    return Compressed(plain, told)


def share_values(
    network: nn.Module,
    clusters: int | Mapping[WeightKind, int] = 16,
    *,
    skip: Collection[str] = (),
    reduce: bool = False,
) -> dict[str, str]:
    """Make the weights of `network`, in place, tables of trainable values: a parametrization of each weight as
    `SharedValues`. Gives the weights left alone and why; raises as `cluster` does."""
    if isinstance(clusters, bool) or not isinstance(clusters, (int, Mapping)):
        raise SettingError(f"clusters={clusters!r}: give a whole number, or one for each of {', '.join(KINDS)}")
    numbers = dict.fromkeys(KINDS, clusters) if isinstance(clusters, int) else dict(clusters)
    for kind in numbers:
        check_word("clusters", kind, WeightKind)
    for kind, asked in numbers.items():
        if isinstance(asked, bool) or not isinstance(asked, int) or not 1 <= asked < MOST:
            raise SettingError(f"clusters={asked} for {kind}: from 1 to {MOST - 1}")
    found, left = weights_of(network, skip)
    labels: list[tuple[Weight, Tensor]] = []
    for weight in found:  # all are checked before any is changed
        number = numbers.get(weight.kind)
        if number is None:
            left[weight.name] = f"no number of clusters was given for {weight.kind}"
            continue
        values = weight.value.detach().double().numpy(force=True).ravel()
        if not np.isfinite(values).all():
            raise InputError(f"{weight.name} holds NaN or infinity; train again, or skip it")
        kept = np.sort(values[values != 0])
        distinct = 1 + int(np.count_nonzero(np.diff(kept))) if len(kept) else 0
        if distinct < number and not reduce:
            raise InputError(
                f"{weight.name} has {distinct} distinct weights besides 0, fewer than clusters={number}; give less, "
                f"skip it, or reduce=True"
            )
        if not distinct:
            left[weight.name] = "all its weights are 0"
            continue
        index = np.where(values != 0, 1 + nearest(values, centroids(kept, min(number, distinct))), 0)
        used = np.bincount(index, minlength=1) > 0
        used[0] = True
        index = (np.cumsum(used) - 1)[index].astype(np.int32)
        labels.append((weight, torch.from_numpy(index).to(weight.value.device)))
    for weight, label in labels:
        _parametrize(weight, label)
    return left


class SharedValues(nn.Module):
    """`weight = table[index]`, the table `[K]` being what is trained; index 0 is a weight that stays 0.

    `index [N]` of all weights in order. A fresh table holds the means of the weights of each index.
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
        """The table `[K]` that is nearest to `weight [*shape]`."""
        members = self.index.bincount()
        sums = torch.bincount(self.index, weights=weight.detach().flatten().double(), minlength=len(members))
        return (sums[1:] / members[1:]).to(weight.dtype)


def _parametrize(weight: Weight, index: Tensor) -> None:
    """Put `SharedValues` on a weight, one table for all places it is shared by."""
    original, shape = weight.value, weight.value.shape
    first: nn.Parameter | None = None
    for module, attribute in weight.places:
        setattr(module, attribute, nn.Parameter(original.detach().clone(), original.requires_grad))
        parametrize.register_parametrization(module, attribute, SharedValues(index, shape))
        made: Any = module.parametrizations[attribute]  # type: ignore[index]
        if first is None:
            first = made.original
        made.original = first


def _bare(path: str) -> str:
    """The name of a weight from the path of its parametrization, `<module>.parametrizations.<weight>.0`."""
    return f".{path}".replace(".parametrizations.", ".").removesuffix(".0").lstrip(".")


def settle(shared: nn.Module, plain: nn.Module) -> None:
    """Write what `shared`, a copy of `plain` with `share_values`, computes with into `plain`: plain parameters, shared
    ones still shared."""
    with torch.no_grad():
        for name, tensor in plain.state_dict().items():
            prefix, _, attribute = name.rpartition(".")
            tensor.copy_(getattr(shared.get_submodule(prefix), attribute))


def centroids(values: NDArray[np.float64], number: int, rounds: int = 300) -> NDArray[np.float64]:
    """K-means of `values [N]` in one dimension, `[number]`, rising (Lloyd 1982, from linear steps between the least and
    the largest value: Han et al. 2016, section 3.2). A centroid without values moves to the value that is served
    worst. `values` hold at least `number` distinct ones.
    """
    ordered = np.sort(values)
    sums = np.concatenate(([0.0], np.cumsum(ordered)))
    found = np.linspace(ordered[0], ordered[-1], number)
    for _ in range(rounds):
        edges = np.searchsorted(ordered, (found[1:] + found[:-1]) / 2)
        edges = np.concatenate(([0], edges, [len(ordered)]))
        members = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(members, 1)
        if (empty := np.flatnonzero(members == 0)).size:
            far = np.abs(ordered - np.repeat(means, members))
            means[empty[0]] = ordered[far.argmax()]
            means[empty[1:]] = found[empty[1:]]
            means.sort()
        elif np.array_equal(means, found):
            break
        found = means
    return found


def nearest(values: NDArray[np.float64], found: NDArray[np.float64]) -> NDArray[np.int64]:
    """The index `[N]` of the nearest of the rising centroids `[K]` for each of `values [N]`."""
    return np.searchsorted((found[1:] + found[:-1]) / 2, values, side="right")
