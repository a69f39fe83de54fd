"""A student network that learns from the answers, and on request the features, of one or several teachers."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dynamic.models.compress.argument_checks import check_fit_options, check_inputs
from dynamic.models.compress.distillation.feature_hints import Hints
from dynamic.models.compress.report import Compressed, copied, report
from dynamic.offline.batches import Batch
from dynamic.offline.staged_network import StagedNetwork, primary_logits
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import InputError, SettingError

_OWN = (
    "mode", "teacher", "penalty", "epochs", "temperature", "distill_share", "seed", "checkpoint", "progress",
)  # fmt: skip


class Ensemble(nn.Module):
    """Several networks for the same task as one: `softmax(logits / temperature)` is the mean of theirs.

    The arithmetic mean of the members' softened distributions (Hinton et al. 2015, "Distilling the Knowledge in a
    Neural Network", section 1: what a student of an ensemble is given); `temperature` has to be the one that the
    student is taught with. Members take the same inputs, in the same order; of one with exits, the last answers.
    Raises InputError where there is no member, or one has other classes, SettingError on a temperature out of range.
    """

    def __init__(self, members: Sequence[nn.Module], temperature: float = 1.0) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble of no networks; give at least one")
        if not 0 < temperature < float("inf"):
            raise SettingError(f"temperature={temperature} has to be positive")
        self.members = nn.ModuleList(members)
        # a buffer: the state tells ensembles of other temperatures apart
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    @property
    def backbone(self) -> nn.Module:
        """The member whose arguments all take."""
        first = self.members[0]
        inner = getattr(first, "backbone", None)
        return inner if isinstance(inner, nn.Module) else first

    def forward(self, *inputs: Tensor) -> Tensor:
        """Logits `[B, C]`."""
        answers = []
        for member in self.members:
            answer = member(*inputs)
            answers.append(primary_logits(answer[-1] if isinstance(member, StagedNetwork) else answer).float())
        if len({answer.shape[1:] for answer in answers}) > 1:  # rows would be fixed where this is exported
            raise InputError(
                f"the members of the ensemble give {[list(a.shape) for a in answers]}; expected the same [B, C]"
            )
        return mean_logits(torch.stack(answers), self.get_buffer("temperature"))


def mean_logits(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits `[B, C]` whose softened distribution is the mean of those of `logits [M, B, C]`."""
    # T log(mean softmax(z / T)), in logarithms: what no member believes in stays finite
    softened = (logits / temperature).log_softmax(-1)
    return temperature * softened.logsumexp(0)  # a constant, log M, changes no distribution


def distill(
    network: nn.Module,
    example_inputs: Batch,
    *,
    teacher: nn.Module | Sequence[nn.Module],
    train_loader: Iterable[Any],
    epochs: int = 20,
    temperature: float = 4.0,
    distill_share: float = 0.9,
    hints: Mapping[str, str] | None = None,
    hint_weight: float = 1.0,
    eval_loader: Iterable[Any] | None = None,
    seed: int = 0,
    fit_options: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    progress: bool | None = None,
    latency: bool = True,
) -> Compressed:
    """A copy of `student`, trained by `dynamic.fit(mode="distill")` on a loader of `(inputs, labels [B])`.

    A share `share` of the loss is what sets the student's answer apart from the teacher's, both softened by
    `temperature`; the rest comes from the labels (Hinton et al. 2015, section 2). The
    defaults, 0.9 and 4, differ from those of `dynamic.fit`, 0.5 and 3, for a reason: a teacher that is trained already
    earns "a considerably lower weight" for the labels (there), while exits of `fit(mode="distill")` learn from a last
    exit that is itself still learning. Several teachers teach as an
    `Ensemble`. `settings` go to `dynamic.fit`: `lr`, `optimizer`, `seed`, `device`, ... `checkpoint`: see there.

    `hints`: student's layer -> teacher's layer, by module name (`members.0.layer2` where there are several teachers).
    `hint_weight` times the mean squared difference of each pair is added to the loss, the student's feature passed
    through a linear map of its channels, which is thrown away afterwards (Romero et al. 2015, "FitNets", eq. 3; there
    first, here together with the answers). See `Hints`.

    A student with exits (`dynamic.wrap`) learns at all of them. One that teaches its early exits from its own last one
    needs no teacher: `dynamic.fit(net, loader, mode="distill")`.

    The report's `before` is the teacher, all of an ensemble, since the student takes its place. Teachers come back as
    they were. Raises what `fit` raises, InputError where teachers or hints do not fit, SettingError on a setting out of
    range.
    """
    if not 0 <= distill_share <= 1:
        raise SettingError(f"distill_share={distill_share} is not in [0, 1]: the share of the loss from the teacher")
    check_fit_options(fit_options, _OWN)
    check_inputs(network, example_inputs)
    teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    whole = teachers[0] if len(teachers) == 1 else Ensemble(teachers, temperature)
    student = copied(network)
    with Hints(student, whole, hints or {}, hint_weight, example_inputs, seed) as hinted:
        training = fit(
            student,
            train_loader,
            mode="distill",
            teacher=whole,
            penalty=hinted if hints else None,
            epochs=epochs,
            temperature=temperature,
            distill_share=distill_share,
            seed=seed,
            checkpoint=checkpoint,
            progress=progress,
            **(fit_options or {}),
        )
    facts = {
        "teachers": len(teachers),
        "temperature": temperature,
        "distill_share": distill_share,
        "hints": dict(hints or {}),
        "epochs": training.epochs,
        "resumed": training.resumed,
        "training_loss": list(training.loss),
        "training_accuracy": list(training.accuracy),
    }
    return Compressed(
        student,
        report("distillation", whole, student, example_inputs, eval_loader, latency=latency, facts=facts),
    )
