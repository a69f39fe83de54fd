"""Makes the sub-models of a family: how far each method goes, fine-tuning, and the checkpoint of a killed run."""

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dynamic.engines.options import EngineName, Precision
from dynamic.models.compress.families.engine_comparison import in_turns_ms, open_on_engine
from dynamic.models.compress.families.recipes import Amount, Cost, Recipe, SubModel, class_name, numbered, search
from dynamic.models.compress.report import Compressed
from dynamic.offline.batches import Batch, arguments, named_tensors
from dynamic.offline.networks.checkpoints import digest
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.tracing.multiply_adds import count_macs
from dynamic.offline.training.configs import fit_arguments
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import BundleError, CorruptError, DynamicError, InputError
from dynamic.storage.atomic_write import replace_text

logger = logging.getLogger("dynamic")

_FEW = 512  # inputs for ranges and norms, which need fewer
_SLACK = 0.05  # of a target in latency: about the error of its measurement


class Maker:
    """Makes sub-models: those that were made are `compressed`, the others `failed`, with `notes` on targets."""

    def __init__(
        self,
        network: nn.Module,
        example: Batch,
        targets: tuple[float, ...],
        train_loader: Iterable[Any] | None,
        settings: Mapping[str, Any],
        folder: Path | None,
    ) -> None:
        """`settings` are those of `dynamic.fit`. A killed run continues from `folder`."""
        self._run: dict[str, Any] = {}
        self.compressed: list[tuple[str, Compressed]] = []
        self.failed: dict[str, str] = {}
        self.notes: list[str] = []
        self._network, self._example, self._targets = network, example, targets
        self._loader, self._settings, self._folder = train_loader, settings, folder
        self._share: Callable[[nn.Module], float] | None = None
        self._slack = 0.0

    @contextmanager
    def costing(self, cost: Cost, engine: EngineName, precision: Precision) -> Iterator[None]:
        """A context in which the share of the cost of a network can be measured."""
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
        with open_on_engine(self._network, self._example, engine, precision) as ours:

            def share(candidate: nn.Module) -> float:
                with open_on_engine(candidate, self._example, engine, precision) as other:
                    own, its = in_turns_ms([ours, other])
                return float(np.median(its / own))

            self._share, self._slack = share, _SLACK
            yield

    def make(self, recipe: Recipe) -> None:
        """Make the sub-models of a recipe: one, or one for each target."""
        costs: dict[Amount, float] = {}
        amounts: set[Amount] = set()
        for target in self._targets if recipe.amounts else (None,):
            plain = recipe.name if target is None else f"{recipe.name}-{100 * target:.0f}"
            name = numbered([*(n for n, _ in self.compressed), plain])[-1]
            try:
                sub_model = self._choose(recipe, name, target, costs)
                if sub_model is None:
                    least = f", {min(costs.values()):.2f} of the cost is the least" if costs else ""
                    self.notes.append(f"{name} was not made: {recipe.name} does not reach the target{least}")
                elif sub_model.amount in amounts:
                    self.notes.append(f"{name} was not made: the sub-model for a larger target reaches this one too")
                else:
                    amounts |= {sub_model.amount} if sub_model.amount is not None else set()
                    self.compressed.append((name, self._finish(recipe, name, sub_model.compressed)))
            except BundleError:
                raise  # the checkpoint is damaged, or of another run
            except (DynamicError, ImportError) as error:
                logger.warning("%s could not be made: %s", name, error)
                self.failed[name] = str(error)

    def _choose(self, recipe: Recipe, name: str, target: float | None, costs: dict[Amount, float]) -> SubModel | None:
        if target is None:
            return SubModel(recipe.make(self._network, self._example, None), None)
        share, then = self._share, recipe.then
        assert share is not None

        def cost(candidate: nn.Module) -> float:
            return share(candidate if then is None else then.make(candidate, self._example, None).network)

        run = self._run | {"target": target, "amounts": list(recipe.amounts), "then": then.name if then else None}
        store = None if self._folder is None else self._folder / f"{name}.json"
        if store is not None and store.is_file():  # latency is noisy, and training continues only from the same choice
            amount = _read(store, run)
            return None if amount is None else SubModel(recipe.make(self._network, self._example, amount), amount)
        sub_model = search(recipe, self._network, self._example, target * (1 + self._slack), cost, costs)
        if store is not None:
            store.parent.mkdir(parents=True, exist_ok=True)
            amount = None if sub_model is None else sub_model.amount
            replace_text(store, json.dumps({"amount": amount, "run": run}))
        return sub_model

    def _finish(self, recipe: Recipe, name: str, compressed: Compressed) -> Compressed:
        if self._loader is not None and recipe.tune:
            checkpoint = None if self._folder is None else self._folder / f"{name}.checkpoint"
            options = {"teacher": self._network, "checkpoint": checkpoint, **self._settings}
            fit(compressed.network, self._loader, mode="distill", **fit_arguments(options))
        return compressed if recipe.then is None else recipe.then.make(compressed.network, self._example, None)


def _read(path: Path, run: Mapping[str, Any]) -> Amount | None:
    """The stored amount. CorruptError where the file does not read, BundleError where it is of another run."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        amount: Amount | None = stored["amount"]
        before = dict(stored.get("run", {}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptError(f"{path} does not read ({error!r}): remove it, and the choice is made again") from error
    changed = [name for name in run if before.get(name) != run[name]]
    if changed:
        differences = ", ".join(f"{n}={str(before.get(n))[:40]} (now {str(run[n])[:40]})" for n in changed)
        raise BundleError(
            f"{path} was chosen with {differences}: call family as that run did, or give another checkpoint"
        )
    return amount


def first_batches(loader: Iterable[Any]) -> list[Any]:
    """The first batches, some hundred inputs. InputError on an iterator, which could be read only once."""
    if iter(loader) is loader:
        raise InputError("train_loader is an iterator that can be read once: give a DataLoader or a list of batches")
    batches, count = [], 0
    with seeded(0, -1, loader):  # a continued run must read the same batches, or it chooses others
        for inputs, labels in checked_batches(loader, None):
            batches.append((inputs, torch.from_numpy(labels)))
            count += len(labels)
            if count >= _FEW:
                break
    return batches


def _macs(network: nn.Module, example: Batch) -> float:
    with evaluating(network):
        one = {name: t[:1] for name, t in named_tensors(network, example).items()}
        return count_macs(network, *arguments(network, one)).total
