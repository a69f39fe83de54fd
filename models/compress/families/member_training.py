"""Makes the sub-models of a family: how far each method goes, fine-tuning, and what is kept of a run that is killed."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynamic.models.compress.families.comparison import entered, in_turns_ms
from dynamic.models.compress.families.recipes import Amount, Cost, Made, Recipe, class_name, numbered, search
from dynamic.models.compress.report import Compressed
from dynamic.offline.batches import Batch, arguments, named_tensors
from dynamic.offline.networks.checkpoints import digest
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.tracing.multiply_adds import count_macs
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import BundleError, CorruptError, DynamicError, InputError
from dynamic.storage.atomic_write import replace_text

logger = logging.getLogger("dynamic")

_FEW = 512  # inputs that methods look at: ranges and norms settle on less
_SLACK = 0.05  # of a target in latency: about what its measurement is off by


class Maker:
    """Makes sub-models; `made`, what `failed`, and `notes`."""

    def __init__(
        self,
        network: nn.Module,
        example: Batch,
        targets: tuple[float, ...],
        train_loader: Iterable[Any] | None,
        settings: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        """`settings` of `dynamic.fit`, where there is a `train_loader`; `folder` for what a killed run goes on from."""
        self._run: dict[str, Any] = {}
        self.made: list[tuple[str, Compressed]] = []
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []
        self._network, self._example, self._targets = network, example, targets
        self._loader, self._settings, self._folder = train_loader, settings, folder
        self._share: Callable[[nn.Module], float] | None = None
        self._slack = 0.0

    @contextmanager
    def costing(self, cost: Cost, engine: str, precision: str) -> Iterator[None]:
        """Within it there is a measure of the share of the cost that a network takes."""
        if self._folder is not None:
            tensors = {n: t for n, t in self._network.state_dict().items() if isinstance(t, torch.Tensor)}
            shapes = {n: list(t.shape[1:]) for n, t in named_tensors(self._network, self._example).items()}
            self._run = {"network": f"{class_name(self._network)} {digest(tensors)}", "inputs": shapes, "cost": cost,
                         "engine": engine, "precision": precision}  # fmt: skip
        if cost == "macs":
            whole = _macs(self._network, self._example)
            self._share = lambda candidate: _macs(candidate, self._example) / whole
            yield
            return
        with entered(self._network, self._example, engine, precision) as ours:

            def share(candidate: nn.Module) -> float:
                with entered(candidate, self._example, engine, precision) as other:
                    own, its = in_turns_ms([ours, other])
                return float(np.median(its / own))

            self._share, self._slack = share, _SLACK
            yield

    def make(self, recipe: Recipe) -> None:
        """Make what a recipe gives: one sub-model, or one for each target."""
        known: dict[Amount, float] = {}
        taken: set[Amount] = set()
        for target in self._targets if recipe.amounts else (None,):
            plain = recipe.name if target is None else f"{recipe.name}-{100 * target:.0f}"
            name = numbered([*(n for n, _ in self.made), plain])[-1]
            try:
                chosen = self._choose(recipe, name, target, known)
                if chosen is None:
                    least = f", {min(known.values()):.2f} of the cost is the least" if known else ""
                    self.notes.append(f"{name}: {recipe.name} does not get there{least}; not made")
                elif chosen.amount in taken:
                    self.notes.append(f"{name}: what was made for a larger target gets there too")
                else:
                    taken |= {chosen.amount} if chosen.amount is not None else set()
                    self.made.append((name, self._finish(recipe, name, chosen.compressed)))
            except BundleError:
                raise  # what was kept of an earlier run is of another network, or damaged
            except (DynamicError, ImportError) as error:
                logger.warning("%s could not be made: %s", name, error)
                self.failed[name] = str(error)

    def _choose(self, recipe: Recipe, name: str, target: float | None, known: dict[Amount, float]) -> Made | None:
        if target is None:
            return Made(recipe.make(self._network, self._example, None), None)
        share, then = self._share, recipe.then
        assert share is not None

        def cost(candidate: nn.Module) -> float:
            return share(candidate if then is None else then.make(candidate, self._example, None).network)

        run = self._run | {"target": target, "amounts": list(recipe.amounts), "then": then.name if then else None}
        kept = None if self._folder is None else self._folder / f"{name}.json"
        if kept is not None and kept.is_file():  # latency is noise: the same choice again, or training cannot go on
            amount = _read(kept, run)
            return None if amount is None else Made(recipe.make(self._network, self._example, amount), amount)
        found = search(recipe, self._network, self._example, target * (1 + self._slack), cost, known)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            amount = None if found is None else found.amount
            replace_text(kept, json.dumps({"amount": amount, "run": run}))
        return found

    def _finish(self, recipe: Recipe, name: str, made: Compressed) -> Compressed:
        if self._loader is not None and recipe.tune:
            checkpoint = None if self._folder is None else self._folder / f"{name}.checkpoint"
            fit(
                made.network,
                self._loader,
                mode="distill",
                teacher=self._network,
                checkpoint=checkpoint,
                **self._settings,
            )
        return made if recipe.then is None else recipe.then.make(made.network, self._example, None)


def _read(path: Path, run: Mapping[str, Any]) -> Amount | None:
    """The amount that an earlier run chose. Raises CorruptError where the file does not say, BundleError where that
    run was of another network or other settings."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        amount: Amount | None = found["amount"]
        before = dict(found.get("run", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path} does not read ({error!r}); remove it, and the choice is made again") from error
    changed = [name for name in run if before.get(name) != run[name]]
    if changed:
        told = ", ".join(f"{n}={str(before.get(n))[:40]} (now {str(run[n])[:40]})" for n in changed)
        raise BundleError(f"{path} was chosen with {told}; call family as that run did, or give another checkpoint")
    return amount


def few(loader: Iterable[Any]) -> list[Any]:
    """The first batches, some hundred inputs. Raises InputError on a training iterator, which would be used up."""
    if iter(loader) is loader:
        raise InputError("train_loader is an iterator that can be read once; give a DataLoader or a list of batches")
    found, count = [], 0
    with seeded(0, -1, loader):  # the same in a run that goes on, or other blocks are chosen
        for inputs, labels in checked_batches(loader, None):
            found.append((inputs, torch.from_numpy(labels)))
            count += len(labels)
            if count >= _FEW:
                break
    return found


def _macs(network: nn.Module, example: Batch) -> float:
    with evaluating(network):
        one = {name: t[:1] for name, t in named_tensors(network, example).items()}
        return count_macs(network, *arguments(network, one)).total
