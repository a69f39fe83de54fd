"""Whole residual branches removed, those that the network misses least.

What is added to an identity of its own shape can be left out: the identity remains. Deep residual networks lose little
by it (Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks", section 4.1), and an
engine gains all of a branch's time, which it does not from thinner layers.
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

from dynamic.models.compress.argument_checks import check_inputs, check_word
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch, named_tensors, run_on
from dynamic.offline.networks.feature_cache import checked_batches
from dynamic.offline.networks.module_modes import evaluating, shallow, untouched
from dynamic.offline.networks.used_data import RecordedLoader, remember
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.offline.tracing.trace import input_names
from dynamic.policies.errors import InputError, SettingError, TraceError, WrapError
from dynamic.progress import track

logger = logging.getLogger("dynamic")

BlockImportance = Literal["loss", "norm"]
_LONG_S = 30.0  # from which on an estimate is logged
_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_RELUS = (F.relu, torch.relu, torch.relu_, "relu", "relu_")


@dataclass(frozen=True)
class Branch:
    """A module that can be left out, and what then stands in its place: "identity", "relu" (the rectifier after the
    sum stays), or "zero" (the module is the branch alone, and the sum stays)."""

    name: str
    instead: str


class Zero(nn.Module):
    """Zeros of its input's shape: a branch that adds nothing."""

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
    """`network` without `count` of its residual branches, or without those named.

    `importance`: "loss" leaves out, one after another, the branch without which the cross entropy on `data` (training
    images: test images would be spent) rises least, those before it left out already: about `count` passes over
    `data` for each branch there is, of which an estimate is logged where it is more than half a minute. "norm" goes by
    how much a branch changes the stream, `|out - in| / |in|` on `data` or `example_inputs`. None: "loss" where there is
    data. `skip`: modules that stay. A module in the place of one left out has no weights; all other names stay.
    Fine-tune afterwards (`dynamic.fit`). `data` scores branches and does nothing else; the report's accuracy is of
    `accuracy_data`, others.

    Raises SettingError on a count, or names in it, that do not fit, TraceError where torch.fx cannot trace the network,
    WrapError where it has no such branch, InputError on bad data and names in `skip` of no module. Networks with exits:
    prune before wrapping.
    """
    if isinstance(network, StagedNetwork):
        raise WrapError(f"this {type(network).__name__} has exits on its blocks; prune its backbone, then wrap that")
    kind = ("norm" if selection_loader is None else "loss") if importance is None else importance
    check_word("importance", kind, BlockImportance)
    if kind == "loss" and selection_loader is None:
        raise SettingError("importance='loss' is measured on data: give selection_loader=, training images and labels")
    if isinstance(count, str) or not isinstance(count, (int, Iterable)) or isinstance(count, bool):
        raise SettingError(f"count={count!r}: give how many branches go, a whole number, or a list of their names")
    check_inputs(network, example_inputs)
    smaller = copied(network)
    everything = {b.name: b for b in branches(smaller, example_inputs)}
    unknown = [name for name in skip if name not in dict(network.named_modules())]
    if unknown:
        raise InputError(f"skip={unknown}: no such modules; see network.named_modules()")
    found = {name: b for name, b in everything.items() if not _inside(name, skip)}
    if not found:
        raise WrapError(
            f"{type(network).__name__} has no residual branch that can go: a module whose result is its input plus "
            "something of the same shape"
        )
    chosen: list[Branch]
    costs: dict[str, float] = {}
    if isinstance(count, int):
        if not 0 < count <= len(found):
            raise SettingError(f"count={count}: {len(found)} branches can go ({', '.join(found)}); give 1 to that many")
        score = _by_loss if kind == "loss" else _by_norm
        recorded = None if selection_loader is None else RecordedLoader(selection_loader)
        chosen = score(smaller, example_inputs, recorded, list(found.values()), count, costs, progress)
        remember(smaller, () if recorded is None else recorded.hashes)
    else:
        wrong = [name for name in count if name not in found]
        if wrong or not count:
            raise SettingError(f"count={list(count)}: {wrong or 'nothing'} cannot go; these can: {', '.join(found)}")
        chosen = [found[name] for name in count]
    for branch in chosen:
        put(smaller, branch)
    with evaluating(smaller), torch.no_grad():
        run_on(smaller, named_tensors(smaller, example_inputs))
    return Compressed(
        smaller,
        report(
            f"blocks left out: {len(chosen)} of {len(everything)}",
            network,
            smaller,
            example_inputs,
            eval_loader,
            latency=latency,
            left_alone={name: "skipped, as asked" for name in everything if name not in found},
            facts={"removed": {b.name: b.instead for b in chosen}, "importance": kind, "costs": costs},
        ),
    )


def put(network: nn.Module, branch: Branch) -> nn.Module:
    """Replace a branch, in place; gives the module that was there."""
    parent, _, leaf = branch.name.rpartition(".")
    owner = network.get_submodule(parent)
    before = owner.get_submodule(leaf)
    setattr(owner, leaf, INSTEAD[branch.instead]().train(before.training))
    return before


def branches(network: nn.Module, example_inputs: Batch) -> list[Branch]:
    """The branches that can be left out, in the order they run; the smallest module that holds one stands for it.

    Raises TraceError where torch.fx cannot trace the network, naming the module that stops it.
    """
    named = named_tensors(network, example_inputs)
    given = input_names(network, named)
    fixed = {
        name: p.default for name, p in _parameters(network).items() if name not in given and p.default is not p.empty
    }
    tracer, root = _Tracer(), shallow(network)
    try:
        with untouched(network), evaluating(network):
            tracer.trace(root, concrete_args=fixed or None)
    except Exception as error:  # user code runs here, on proxies: anything may come
        where = tracer.entered[-1] if tracer.entered else type(network).__name__
        raise TraceError(f"torch.fx cannot trace {where}: {error}; prune channels or weights instead") from error
    modules = dict(network.named_modules())
    found = [b for call in tracer.calls if (b := _branch(call, modules)) is not None]
    fitting = _same_shape(network, [b.name for b in found], named)
    found = [b for b in found if b.name in fitting]
    whole = [b for b in found if b.instead != "zero"]
    whole = [b for b in whole if not any(_inside(other.name, [b.name]) and other is not b for other in whole)]
    taken = [b.name for b in whole]
    alone = [b for b in found if b.instead == "zero" and not _inside(b.name, taken) and not _holds(b.name, taken)]
    alone = [b for b in alone if not any(_inside(b.name, [other.name]) and other is not b for other in alone)]
    return [b for b in found if b in whole or b in alone]


@dataclass(frozen=True, eq=False)
class _Call:
    """A module's only call: the nodes that went in and came out."""

    name: str
    given: fx.Node
    returned: fx.Node


class _Tracer(fx.Tracer):
    """Notes what goes into modules and what they return."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[str, list[_Call | None]] = {}
        self.entered: list[str] = []

    @property
    def calls(self) -> list[_Call]:
        """Of modules that ran once, with one tensor in and one out."""
        return [calls[0] for calls in self._seen.values() if len(calls) == 1 and calls[0] is not None]

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        path = self.path_of_module(m)
        self.entered.append(path)
        found = super().call_module(m, forward, args, kwargs)
        self.entered.pop()
        one = len(args) == 1 and not kwargs and isinstance(args[0], fx.Proxy) and isinstance(found, fx.Proxy)
        self._seen.setdefault(path, []).append(_Call(path, args[0].node, found.node) if one else None)
        return found


def _branch(call: _Call, modules: dict[str, nn.Module]) -> Branch | None:
    """What a module could be replaced by, if anything."""
    if not any(True for _ in modules[call.name].parameters()):
        return None
    node, rectified = call.returned, False
    while (kind := _kind(node, modules)) in ("relu", "same"):
        rectified = rectified or kind == "relu"
        node = node.all_input_nodes[0]
    if _kind(node, modules) == "add" and _reaches(node, call.given, modules):
        # a stream that is rectified already stays as it is
        again = rectified and _kind(call.given, modules) != "relu"
        return Branch(call.name, "relu" if again else "identity")
    users = [user for user in call.returned.users if _kind(user, modules) == "add"]
    if len(call.returned.users) == 1 and users and call.given in users[0].all_input_nodes:
        return Branch(call.name, "zero")
    return None


def _reaches(node: fx.Node, goal: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether sums alone lead from `node` back to `goal`."""
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
    """The modules that give what has the shape of what they get."""
    same: set[str] = set()

    def look(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], None]:
        def hook(module: nn.Module, given: tuple[Tensor], returned: Tensor) -> None:
            if given[0].shape == returned.shape:
                same.add(name)

        return hook

    _watched(network, {name: look(name) for name in names}, named)
    return same


def _watched(network: nn.Module, hooks: dict[str, Callable[..., None]], tensors: Mapping[str, Tensor]) -> None:
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
    found: Sequence[Branch],
    count: int,
    costs: dict[str, float],
    progress: bool | None,
) -> list[Branch]:
    sums: dict[str, list[float]] = {b.name: [] for b in found}

    def look(branch: Branch) -> Callable[..., None]:
        def hook(module: nn.Module, given: tuple[Tensor], returned: Tensor) -> None:
            change = returned if branch.instead == "zero" else returned - given[0]
            sums[branch.name].append(float(change.norm() / given[0].norm().clamp_min(1e-12)))

        return hook

    batches = [example_inputs] if loader is None else [inputs for inputs, _ in _listed(loader)]
    for inputs in track(batches, "branches", len(batches), progress):
        _watched(network, {b.name: look(b) for b in found}, named_tensors(network, inputs))
    costs.update({name: sum(values) / len(values) for name, values in sums.items()})
    return sorted(found, key=lambda b: costs[b.name])[:count]


def _by_loss(
    network: nn.Module,
    example_inputs: Batch,
    loader: Iterable[Any] | None,
    found: Sequence[Branch],
    count: int,
    costs: dict[str, float],
    progress: bool | None,
) -> list[Branch]:
    assert loader is not None
    batches, left, chosen = _listed(loader), list(found), list[Branch]()
    taken: list[tuple[Branch, nn.Module]] = []
    passes = sum(len(found) - i for i in range(count))
    bar = track(range(passes), "branches", passes, progress)
    begin = time.perf_counter()
    whole = _loss(network, batches)
    if (estimate := _estimate(passes, time.perf_counter() - begin)) is not None:
        logger.warning("prune_blocks: %s", estimate)
    try:
        for _ in range(count):
            tried = {}
            for branch in left:
                before = put(network, branch)
                tried[branch.name] = _loss(network, batches) - whole
                _restore(network, branch, before)
                next(bar, None)
            best = min(left, key=lambda b: tried[b.name])
            costs[best.name] = tried[best.name]
            taken.append((best, put(network, best)))
            left.remove(best)
            chosen.append(best)
    finally:
        for branch, before in taken:
            _restore(network, branch, before)
    return chosen


def _estimate(passes: int, pass_s: float) -> str | None:
    """How long the passes over the data take, where that is long."""
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
        raise InputError("the loader gave no batch; it is empty, or an iterator that was already used up")
    return batches


def _inside(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _holds(name: str, modules: Sequence[str]) -> bool:
    return any(module.startswith(f"{name}.") for module in modules)


def _parameters(network: nn.Module) -> dict[str, Any]:
    return dict(inspect.signature(network.forward).parameters)
