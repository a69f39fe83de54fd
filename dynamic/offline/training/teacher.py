"""Checks of a teacher, and its logits."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from dynamic.offline.batches import run_on
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.policies.errors import InputError


def answer_of(teacher: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """The logits `[B, C]` that a teacher gives for named inputs, of one with exits the last."""
    answer = run_on(teacher, inputs)
    return primary_logits(answer[-1] if isinstance(teacher, StagedNetwork) else answer)


def check_apart(teacher: nn.Module, taught: Sequence[nn.Module]) -> None:
    """Raises InputError where a teacher would change while it teaches, since it shares what trains with `taught`."""
    trained = {id(p) for part in taught for p in part.parameters() if p.requires_grad}
    modules = {id(m) for part in taught for m in part.modules()}
    shared = [name for name, p in teacher.named_parameters() if id(p) in trained]
    shared += [name or type(m).__name__ for name, m in teacher.named_modules() if id(m) in modules]
    if shared:
        raise InputError(
            f"the teacher shares {shared[0]} with the network it teaches. Give a copy of it (copy.deepcopy), or let "
            f"the last exit teach: mode='distill' without a teacher, mode='heads' with teacher=network.backbone"
        )


def check_teacher(logits: Tensor, rows: int, classes: int) -> None:
    """Raises InputError where a teacher has other classes than the network."""
    if logits.shape != (rows, classes):
        raise InputError(
            f"the teacher gives {list(logits.shape)} for {rows} inputs, expected [{rows}, {classes}], what the network "
            f"gives"
        )
