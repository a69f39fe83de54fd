"""Whether a wrapped network gives its backbone's logits, on rows that were not traced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dynamic.offline.networks.module_modes import in_mode, untouched
from dynamic.offline.staged_network import Stage
from dynamic.offline.tracing.dry_run import rows
from dynamic.offline.tracing.multiply_adds import ROUNDED_LIMIT, rounds
from dynamic.policies.errors import ExitError, WrapError

CLOSE = 1e-5  # of the largest logit: how far a network captured by torch.export may be off
_COMPACTED = 1e-3  # the same where rows left the batch: other batch sizes may take other kernels
_FIX = "Write it so that forward gives all it computes as values, or name other exits"

Run = Callable[[Sequence[Tensor]], Tensor]


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


def check_training(backbone: nn.Module, own: Run, whole: Run, example: Mapping[str, Tensor]) -> str | None:
    """Why the training graph cannot be used: other logits or gradients than the backbone's in train mode, one seed.

    Gradients differ where forward switches them off for a part: tracers do not write that into their graphs.
    """
    inputs = [_other(t) for t in rows(example, 4).values()]
    parameters = {name: p for name, p in backbone.named_parameters() if p.requires_grad}
    logits: list[Tensor] = []
    gradients: list[Sequence[Tensor | None]] = []
    for run in (own, whole):
        with untouched(backbone), in_mode(backbone, training=True), torch.random.fork_rng(), _with_gradients():
            torch.manual_seed(0)
            try:
                answer = run([t.clone() for t in inputs])
                if answer.requires_grad:
                    listed = list(parameters.values())
                    gradients.append(torch.autograd.grad(answer.square().sum(), listed, allow_unused=True))
                logits.append(answer.detach())
            except (RuntimeError, ValueError) as error:
                return f"it does not run in train mode: {error}"
    limit = _COMPACTED * max(1.0, float(logits[0].abs().max()))
    if logits[0].shape != logits[1].shape or not _same(logits[0], logits[1], limit):
        return "its graph in train mode gives other logits than itself"
    if len(gradients) == 1:
        return "its graph in train mode has gradients, and itself it has none, or the other way round"
    if gradients:
        pairs = zip(parameters, *gradients, strict=True)
        largest = max(float(g.nan_to_num(0, 0, 0).abs().max()) for g in gradients[0] if g is not None and g.numel())
        for name, mine, other in pairs:
            filled = [torch.zeros_like(parameters[name]) if g is None else g for g in (mine, other)]
            if not _same(filled[0], filled[1], _COMPACTED * largest):
                return (
                    f"its graph in train mode gives parameter {name!r} other gradients than itself, as where forward "
                    "switches gradients off. Set requires_grad=False on what is frozen instead"
                )
    return None


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
