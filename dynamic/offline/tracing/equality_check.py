"""Whether a wrapped network gives its backbone's logits, on rows that were not traced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dynamic.offline.networks.module_modes import in_mode, untouched
from dynamic.offline.staged_network import Stage
from dynamic.offline.tracing.dry_run import rows
from dynamic.offline.tracing.multiply_adds import ROUNDED_LIMIT, rounds
from dynamic.policies.errors import ExitError, WrapError

CLOSE = 1e-5  # of the largest logit: how far a network captured by torch.export may be off
_COMPACTED = 1e-3  # the same where rows left the batch: other batch sizes may take other kernels
_NOISE = 16  # roundings of the largest gradient: a bias in front of batch norm has no other gradient
_FIX = "Write it so that forward gives all it computes as values, or name other exits"

Run = Callable[[Sequence[Tensor]], Tensor]
RunAll = Callable[[Sequence[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class InPlace:
    """`stages`: by stage, the entries of its carry that it changes. `heads`: exits whose feature is changed later."""

    stages: Mapping[int, set[int]]
    heads: frozenset[int]


def changed_in_place(stages: Sequence[Stage], inputs: Mapping[str, Tensor]) -> InPlace:
    """What stages change in place, by torch's own count of changes. Raises ExitError where that cannot be undone."""
    changed_entries: dict[int, set[int]] = {}
    features: list[tuple[Tensor, int]] = []
    carry = tuple(t.clone() for t in inputs.values())
    with torch.no_grad():
        for number, stage in enumerate(stages):
            before = [t._version for t in carry]
            homes = [t.untyped_storage().data_ptr() for t in carry]
            after = stage.body(*carry)
            changed = {i for i, (t, version) in enumerate(zip(carry, before, strict=True)) if t._version != version}
            if len({homes[i] for i in changed}) < sum(homes.count(h) for h in {homes[i] for i in changed}):
                raise ExitError(
                    f"what crosses exit {stages[number - 1].name!r} shares memory and is changed in place later, as "
                    "views of one tensor are. Choose another exit, or write the change without the underscore"
                )
            if changed:
                changed_entries[number] = changed
            features.append((after[0], after[0]._version))
            carry = after
    later = frozenset(i for i, (t, version) in enumerate(features[:-1]) if t._version != version)
    return InPlace(changed_entries, later)


def check_evaluation(
    backbone: nn.Module, own: Run, whole: Run, stages: Sequence[Stage], example: Mapping[str, Tensor], exact: bool
) -> None:
    """Raises WrapError where the graph, or its stages, give other logits than the backbone in eval mode.

    Rows also leave between stages, as they do in an engine.
    """
    inputs = [_other(t) for t in rows(example, 3).values()]
    remaining = torch.tensor([2, 0])
    with torch.no_grad(), untouched(backbone), in_mode(backbone, training=False):
        expected = own([t.clone() for t in inputs])
        answers = {"as a graph": whole([t.clone() for t in inputs])}
        carry: tuple[Tensor, ...] = tuple(inputs)
        fewer: tuple[Tensor, ...] = tuple(inputs)
        for number, stage in enumerate(stages):
            carry = stage.body(*carry)
            fewer = stage.body(*fewer)
            if number == 0:
                fewer = tuple(t.index_select(0, remaining.to(t.device)) for t in fewer)
        answers["stage by stage"] = carry[0]
    largest = max(1.0, float(expected.abs().max()))
    rounded = ROUNDED_LIMIT if rounds(backbone) and not exact else 0.0
    limit = 0.0 if exact else max(CLOSE, rounded) * largest
    name = type(backbone).__name__
    for how, logits in answers.items():
        if logits.shape != expected.shape or not _same(expected, logits, limit):
            raise WrapError(
                f"{name} gives other logits {how} than by itself: it draws random numbers in eval mode, keeps state, "
                f"changes views in place, or has hooks on its outermost module. {_FIX}"
            )
    if not _same(
        expected[remaining.to(expected.device)] if len(stages) > 1 else expected,
        fewer[0],
        max(_COMPACTED, rounded) * largest,
    ):
        raise WrapError(f"{name} mixes the rows of a batch behind exit {stages[0].name!r}: rows cannot leave. {_FIX}")


def check_training(
    backbone: nn.Module, own: Run, whole: RunAll, example: Mapping[str, Tensor], *, one_seed: bool = False
) -> str | None:
    """Why the training graph cannot be used: other logits or gradients than the backbone's in train mode.

    Gradients differ where forward switches them off for a part: tracers do not write that into their graphs. `whole`
    gives the logits of all exits, whose gradients must exist too. `one_seed`: each random operation starts from one
    seed, and not the run alone. So operations that only one of both has change no other.
    """
    inputs = [_other(t) for t in rows(example, 4).values()]
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    answers: list[Tensor] = []
    gradients: list[Sequence[Tensor | None]] = []
    for run in (lambda tensors: [own(tensors)], whole):
        with untouched(backbone), in_mode(backbone, training=True), torch.random.fork_rng(), _with_gradients():
            torch.manual_seed(0)
            try:
                with _OneSeed() if one_seed else nullcontext():  # type: ignore[no-untyped-call]
                    *early, last = run([t.clone() for t in inputs])
                if last.requires_grad:
                    gradients.append(_gradients([last], parameters, retain=True))
                if parameters and (heads := [logits for logits in early if logits.requires_grad]):
                    _gradients(heads, parameters)  # raises where a head's feature was changed in place
                answers.append(last.detach())
            except (RuntimeError, ValueError) as error:
                return f"it does not run in train mode: {error}"
    limit = _COMPACTED * max(1.0, float(answers[0].abs().max()))
    if answers[0].shape != answers[1].shape or not _same(answers[0], answers[1], limit):
        return "its graph in train mode gives other logits than itself"
    if len(gradients) == 1:
        return "its graph in train mode has gradients, and itself it has none, or the other way round"
    if gradients:
        noise = _NOISE * max((_largest(g) * torch.finfo(g.dtype).eps for g in gradients[0] if g is not None), default=0)
        for name, mine, other in zip(parameters, *gradients, strict=True):
            alike = (
                mine is other
                if mine is None or other is None
                else (_same(mine, other, _COMPACTED * _largest(mine) + noise))
            )
            if not alike:
                return (
                    f"its graph in train mode gives parameter {name!r} other gradients than itself, as where forward "
                    "switches gradients off. Set requires_grad=False on what is frozen instead"
                )
    return None


def _gradients(
    answers: Sequence[Tensor], parameters: Mapping[str, Tensor], retain: bool = False
) -> Sequence[Tensor | None]:
    """Of each parameter, None where the answers do not depend on it, by cotangents drawn from one seed."""
    draw = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(a.shape, generator=draw).to(a.device, a.dtype) for a in answers]
    listed = list(parameters.values())
    return torch.autograd.grad(list(answers), listed, cotangents, allow_unused=True, retain_graph=retain)


def _largest(tensor: Tensor) -> float:
    return float(tensor.nan_to_num(0, 0, 0).abs().max()) if tensor.numel() else 0.0


class _OneSeed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every random operation draws from the same seed, whatever was drawn before."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch.Tag.nondeterministic_seeded in func.tags:
            torch.manual_seed(0)
        return func(*args, **(kwargs or {}))


@contextmanager
def _with_gradients() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _other(tensor: Tensor) -> Tensor:
    """Rows unlike those of the example, where their values may be anything."""
    if not tensor.is_floating_point():
        return tensor.clone()
    scale = torch.tensor([-1.3, 0.7, 1.9, 0.4][: len(tensor)], dtype=tensor.dtype, device=tensor.device)
    return tensor * scale.reshape(-1, *[1] * (tensor.ndim - 1))


def _same(a: Tensor, b: Tensor, limit: float) -> bool:
    if limit:
        return bool(torch.allclose(a, b, rtol=0, atol=limit, equal_nan=True))
    return bool(torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan()))
