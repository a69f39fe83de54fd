"""Whole residual branches removed, those that the network needs least.

What is added to an identity of its own shape can be left out: the identity remains. Deep residual networks lose little
by that (Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1). An
engine saves the whole time of a branch.
"""

import inspect
import logging
import operator
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from dynamic.models.compress.argument_checks import check_inputs
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, named_tensors, run_on
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating, shallow, untouched
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.option_words import check_word
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.offline.tracing.trace import input_names
from dynamic.policies.errors import InputError, SettingError, TraceError, WrapError
from dynamic.progress import track

logger = logging.getLogger("dynamic")

BlockImportance = Literal["loss", "norm"]
_LONG_S = 30.0  # an estimate above this is logged
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


@dataclass(frozen=True)
class Branch:
    """A module that can be left out, and what replaces it.

    Args:
        name: Of the module.
        instead: "identity", "relu" (the rectifier after the sum remains), or "zero" (the module is the branch alone,
            and the sum remains).
    """

    name: str
    instead: str


class Zero(nn.Module):
    """Zeros of the shape of its input: a branch that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Zeros like `x`."""
        return torch.zeros_like(x)


INSTEAD: dict[str, Callable[[], nn.Module]] = {"identity": nn.Identity, "relu": nn.ReLU, "zero": Zero}


def prune_blocks(
    network: nn.Module,
    example_inputs: Batch,
    *,
    count: int | Sequence[str],
    selection_loader: Iterable[Any] | None = None,
    importance: BlockImportance | None = None,
    skip: Sequence[str] = (),
    eval_loader: Iterable[Any] | None = None,
    latency: bool = True,
    progress: bool | None = None,
) -> Compressed:
    """A copy of a network without some of its residual branches.

    **Chooses by data**: batches of `selection_loader` decide which branches go. They must not certify, and the network
    carries their hashes. A removed module is replaced by one without weights, and all other names remain. Fine-tune
    afterwards (`dynamic.fit`).

    "loss" removes one branch after another: each time the one without which the cross entropy rises least. That takes
    about `count` passes over the data for each branch. An estimate of more than half a minute is logged. "norm"
    removes the branches that change their input least, by `|out - in| / |in|`, in one pass.

    Args:
        network: The network. It does not change. Prune a network with exits before wrapping it.
        example_inputs: A batch as the network takes it.
        count: How many branches go, or the names of those that go.
        selection_loader: `(inputs, labels [B])` that choose branches. Training data are right for this. None: "norm" is
            measured on `example_inputs`.
        importance: "loss" or "norm". None: "loss" with data, else "norm".
        skip: Names of modules that remain, with all that they hold.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        latency: Whether the report measures latency.
        progress: Whether a progress bar is shown. None: on a terminal.

    Returns:
        The network and a report. `report.facts["removed"]`: the branches that went.

    Raises:
        SettingError: `count` or its names do not fit, or "loss" has no data.
        TraceError: torch.fx cannot trace the network.
        WrapError: The network has no such branch, or has exits.
        InputError: The data or names in `skip` are wrong.

    Example:
        >>> from dynamic.models import CifarResNet, compress
        >>> shorter = compress.prune_blocks(CifarResNet(14), torch.zeros(2, 3, 8, 8), count=1, latency=False)
        >>> len(shorter.report.facts["removed"])
        1
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(f"this {type(network).__name__} has exits on its blocks: prune its backbone, then wrap that")
    kind = ("norm" if selection_loader is None else "loss") if importance is None else importance
    check_word("importance", kind, BlockImportance)
    if kind == "loss" and selection_loader is None:
        raise SettingError("importance='loss' is measured on data: give selection_loader=, training images and labels")
    if isinstance(count, str) or not isinstance(count, (int, Iterable)) or isinstance(count, bool):
        raise SettingError(f"count={count!r}: give a whole number of branches, or a list of their names")
    check_inputs(network, example_inputs)
    smaller = copied(network)
    all_branches = {b.name: b for b in branches(smaller, example_inputs)}
    unknown = [name for name in skip if name not in dict(network.named_modules())]
    if unknown:
        raise InputError(f"skip={unknown}: no such modules, see network.named_modules()")
    candidates = {name: b for name, b in all_branches.items() if not _inside(name, skip)}
    if not candidates:
        raise WrapError(
            f"{type(network).__name__} has no residual branch that can go, that is, a module whose result is its input "
            "plus something of the same shape: prune channels or weights instead"
        )
    removed: list[Branch]
    costs: dict[str, float] = {}
    if isinstance(count, int):
        if not 0 < count <= len(candidates):
            raise SettingError(
                f"count={count}: {len(candidates)} branches can go ({', '.join(candidates)}), give 1 to that many"
            )
        score = _by_loss if kind == "loss" else _by_norm
        recorded = None if selection_loader is None else RecordedLoader(selection_loader)
        removed = score(smaller, example_inputs, recorded, list(candidates.values()), count, costs, progress)
        remember(smaller, () if recorded is None else recorded.hashes)
    else:
        wrong = [name for name in count if name not in candidates]
        if wrong or not count:
            raise SettingError(f"count={list(count)}: {wrong or 'nothing'} cannot go, give some of {[*candidates]}")
        removed = [candidates[name] for name in count]
    for branch in removed:
        put(smaller, branch)
    with evaluating(smaller), torch.no_grad():
        run_on(smaller, named_tensors(smaller, example_inputs))
    return Compressed(
        smaller,
        report(
            f"blocks left out: {len(removed)} of {len(all_branches)}",
            network,
            smaller,
            example_inputs,
            eval_loader,
            latency=latency,
            left_alone={name: "in skip" for name in all_branches if name not in candidates},
            facts={"removed": {b.name: b.instead for b in removed}, "importance": kind, "costs": costs},
        ),
    )


def put(network: nn.Module, branch: Branch) -> nn.Module:
    """Replace a branch, in place. Returns the module that was there."""
    parent, _, leaf = branch.name.rpartition(".")
    owner = network.get_submodule(parent)
    before = owner.get_submodule(leaf)
    setattr(owner, leaf, INSTEAD[branch.instead]().train(before.training))
    return before


def branches(network: nn.Module, example_inputs: Batch) -> list[Branch]:
    """The branches that can be left out, in the order they run. The smallest module that holds a branch stands for it.

    TraceError where torch.fx cannot trace the network. It names the module that is the reason.
    """
    named = named_tensors(network, example_inputs)
    names_given = input_names(network, named)
    fixed = {
        name: p.default
        for name, p in _parameters(network).items()
        if name not in names_given and p.default is not p.empty
    }
    tracer, root = _Tracer(), shallow(network)
    try:
        with untouched(network), evaluating(network):
            tracer.trace(root, concrete_args=fixed or None)
    except Exception as error:  # user code runs here, on proxies, and may raise anything
        where = tracer.open_calls[-1] if tracer.open_calls else type(network).__name__
        raise TraceError(f"torch.fx cannot trace {where}: {error}. Prune channels or weights instead") from error
    modules = dict(network.named_modules())
    candidates = [b for call in tracer.calls if (b := _branch(call, modules)) is not None]
    fitting = _same_shape(network, [b.name for b in candidates], named)
    candidates = [b for b in candidates if b.name in fitting]
    whole = [b for b in candidates if b.instead != "zero"]
    whole = [b for b in whole if not any(_inside(other.name, [b.name]) and other is not b for other in whole)]
    names = [b.name for b in whole]
    alone = [b for b in candidates if b.instead == "zero" and not _inside(b.name, names) and not _holds(b.name, names)]
    alone = [b for b in alone if not any(_inside(b.name, [other.name]) and other is not b for other in alone)]
    return [b for b in candidates if b in whole or b in alone]


@dataclass(frozen=True, eq=False)
class _Call:
    """The only call of a module: its input and output nodes."""

    name: str
    input: fx.Node
    output: fx.Node


class _Tracer(fx.Tracer):
    """A tracer that notes the inputs and results of modules."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[str, list[_Call | None]] = {}
        self.open_calls: list[str] = []

    @property
    def calls(self) -> list[_Call]:
        """Of modules that ran once, with one tensor in and one out."""
        return [calls[0] for calls in self._calls.values() if len(calls) == 1 and calls[0] is not None]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.open_calls.append(path)
        result = super().call_module(m, forward, args, kwargs)
        self.open_calls.pop()
        one = len(args) == 1 and not kwargs and isinstance(args[0], fx.Proxy) and isinstance(result, fx.Proxy)
        self._calls.setdefault(path, []).append(_Call(path, args[0].node, result.node) if one else None)
        return result


def _branch(call: _Call, modules: dict[str, nn.Module]) -> Branch | None:
    """What a module can be replaced by. None: nothing."""
    if not any(True for _ in modules[call.name].parameters()):
        return None
    node, rectified = call.output, False
    while (kind := _kind(node, modules)) in ("relu", "same"):
        rectified = rectified or kind == "relu"
        node = node.all_input_nodes[0]
    if _kind(node, modules) == "add" and _reaches(node, call.input, modules):
        # a stream that is rectified already does not change
        rectify = rectified and _kind(call.input, modules) != "relu"
        return Branch(call.name, "relu" if rectify else "identity")
    users = [user for user in call.output.users if _kind(user, modules) == "add"]
    if len(call.output.users) == 1 and users and call.input in users[0].all_input_nodes:
        return Branch(call.name, "zero")
    return None


def _reaches(node: fx.Node, goal: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether only sums lead from `node` back to `goal`."""
    if node is goal:
        return True
    if _kind(node, modules) not in ("add", "same"):
        return False
    return any(_reaches(before, goal, modules) for before in node.all_input_nodes)


def _kind(node: fx.Node, modules: dict[str, nn.Module]) -> str:
    if node.op == "call_module":
        module = modules[str(node.target)]
        return (
            "relu" if isinstance(module, nn.ReLU) else "same" if isinstance(module, (nn.Identity, nn.Dropout)) else ""
        )
    if node.target in _ADDS and len(node.all_input_nodes) == 2:
        return "add"
    return "relu" if node.target in _RELUS else ""


def _same_shape(network: nn.Module, names: Sequence[str], named: dict[str, Tensor]) -> set[str]:
    """The modules whose output has the shape of their input."""
    same: set[str] = set()

    def compare(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            if inputs[0].shape == output.shape:
                same.add(name)

        return hook

    _run_with_hooks(network, {name: compare(name) for name in names}, named)
    return same


def _run_with_hooks(network: nn.Module, hooks: dict[str, Callable[..., None]], tensors: Mapping[str, Tensor]) -> None:
    handles = [network.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        with evaluating(network), torch.no_grad():
            run_on(network, tensors)
    finally:
        for handle in handles:
            handle.remove()


def _by_norm(
    network: nn.Module,
    example_inputs: Batch,
    loader: Iterable[Any] | None,
    candidates: Sequence[Branch],
    count: int,
    costs: dict[str, float],
    progress: bool | None,
) -> list[Branch]:
    ratios: dict[str, list[float]] = {b.name: [] for b in candidates}

    def measure(branch: Branch) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            change = output if branch.instead == "zero" else output - inputs[0]
            ratios[branch.name].append(float(change.norm() / inputs[0].norm().clamp_min(1e-12)))

        return hook

    batches = [example_inputs] if loader is None else [inputs for inputs, _ in _listed(loader)]
    for inputs in track(batches, "branches", len(batches), progress):
        _run_with_hooks(network, {b.name: measure(b) for b in candidates}, named_tensors(network, inputs))
    costs.update({name: sum(values) / len(values) for name, values in ratios.items()})
    return sorted(candidates, key=lambda b: costs[b.name])[:count]


def _by_loss(
    network: nn.Module,
    example_inputs: Batch,
    loader: Iterable[Any] | None,
    candidates: Sequence[Branch],
    count: int,
    costs: dict[str, float],
    progress: bool | None,
) -> list[Branch]:
    assert loader is not None
    batches, remaining, result = _listed(loader), list(candidates), list[Branch]()
    removed: list[tuple[Branch, nn.Module]] = []
    passes = sum(len(candidates) - i for i in range(count))
    bar = track(range(passes), "branches", passes, progress)
    begin = time.perf_counter()
    whole = _loss(network, batches)
    if (estimate := time_estimate(passes, time.perf_counter() - begin)) is not None:
        logger.warning("prune_blocks: %s", estimate)
    try:
        for _ in range(count):
            losses = {}
            for branch in remaining:
                before = put(network, branch)
                losses[branch.name] = _loss(network, batches) - whole
                _restore(network, branch, before)
                next(bar, None)
            best = min(remaining, key=lambda b: losses[b.name])
            costs[best.name] = losses[best.name]
            removed.append((best, put(network, best)))
            remaining.remove(best)
            result.append(best)
    finally:
        for branch, before in removed:
            _restore(network, branch, before)
    return result


def time_estimate(passes: int, pass_s: float) -> str | None:
    """How long the passes over the data take. None where that is short."""
    if passes * pass_s < _LONG_S:
        return None
    return (
        f"{passes} passes over the data of {pass_s:.2g} s each take about {passes * pass_s:.0f} s: give fewer images, "
        "or importance='norm'"
    )


def _restore(network: nn.Module, branch: Branch, module: nn.Module) -> None:
    parent, _, leaf = branch.name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, module)


def _loss(network: nn.Module, batches: Sequence[tuple[Batch, Tensor]]) -> float:
    """Mean cross entropy."""
    total = count = 0.0
    with evaluating(network), torch.no_grad():
        for inputs, labels in batches:
            logits = primary_logits(run_on(network, named_tensors(network, inputs)))
            total += float(F.cross_entropy(logits.float(), labels.to(logits.device), reduction="sum"))
            count += len(labels)
    return total / count


def _listed(loader: Iterable[Any]) -> list[tuple[Batch, Tensor]]:
    batches = [(inputs, torch.from_numpy(labels)) for inputs, labels in checked_batches(loader, None)]
    if not batches:
        raise InputError("selection_loader gave no batch: it is empty, or an iterator that was read before")
    return batches


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _holds(name: str, modules: Sequence[str]) -> bool:
    return any(module.startswith(f"{name}.") for module in modules)


def _parameters(network: nn.Module) -> dict[str, Any]:
    return dict(inspect.signature(network.forward).parameters)
