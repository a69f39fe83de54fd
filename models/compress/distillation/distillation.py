"""A student network that learns from the answers of one or several teachers, and from their features where asked."""

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
from dynamic.offline.training.configs import fit_arguments
from dynamic.offline.training.fitting import fit
from dynamic.policies.errors import InputError, SettingError

_OWN = (
    "mode", "teacher", "penalty", "epochs", "training", "distillation", "temperature", "distill_share", "seed",
    "checkpoint", "progress",
)  # fmt: skip


class Ensemble(nn.Module):
    """Several networks for the same task as one: the mean of their softened distributions.

    `softmax(logits / temperature)` is the arithmetic mean of that of the members (Hinton et al. 2015, "Distilling the
    Knowledge in a Neural Network", section 1). Members take the same inputs, in the same order. A network with exits
    counts with its last exit.

    Args:
        members: The networks.
        temperature: The one that the student is trained with.

    Raises:
        InputError: There is no member, or members have other classes.
        SettingError: `temperature` is out of range.

    Example:
        >>> from dynamic.models.compress import Ensemble
        >>> Ensemble([small, large])(torch.zeros(2, 12)).shape
        torch.Size([2, 4])
    """

    def __init__(self, members: Sequence[nn.Module], temperature: float = 1.0) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble has no networks: give at least one")
        if not 0 < temperature < float("inf"):
            raise SettingError(f"temperature={temperature} is not positive: give 1.0, for example")
        self.members = nn.ModuleList(members)
        # a buffer: ensembles of other temperatures have another state
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    @property
    def backbone(self) -> nn.Module:
        """The member whose arguments all take."""
        first = self.members[0]
        inner = getattr(first, "backbone", None)
        return inner if isinstance(inner, nn.Module) else first

    def forward(self, *inputs: Tensor) -> Tensor:
        """The logits of the ensemble.

        Args:
            inputs: The inputs of every member.

        Returns:
            Logits `[B, C]`.

        Raises:
            InputError: The members have other classes.

        Example:
            >>> from dynamic.models.compress import Ensemble
            >>> Ensemble([small, small]).forward(torch.zeros(3, 12)).shape
            torch.Size([3, 4])
        """
        answers = []
        for member in self.members:
            answer = member(*inputs)
            answers.append(primary_logits(answer[-1] if isinstance(member, StagedNetwork) else answer).float())
        if len({answer.shape[1:] for answer in answers}) > 1:  # rows would be fixed where this is exported
            raise InputError(f"the members give {[list(a.shape) for a in answers]}: give networks of the same classes")
        return mean_logits(torch.stack(answers), self.get_buffer("temperature"))


def mean_logits(logits: Tensor, temperature: Tensor | float) -> Tensor:
    """Logits `[B, C]` whose softened distribution is the mean of those of `logits [M, B, C]`."""
    # T log(mean softmax(z / T)), in logarithms: classes that no member considers stay finite
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
    """A copy of a network, trained by `dynamic.fit(mode="distill")` on the answers of one or several teachers.

    The loss from the teacher is the distance of both answers, softened by `temperature` (Hinton et al. 2015, section
    2). The defaults, 0.9 and 4, differ from those of `dynamic.fit`, 0.5 and 3, for a reason. A trained teacher earns "a
    considerably lower weight" for the labels (there). In `fit(mode="distill")` exits learn from a last exit that still
    learns.

    Hints add to the loss the mean squared difference of each pair of features. A linear map of channels leads from the
    student's to the teacher's. It is dropped afterwards (Romero et al. 2015, "FitNets", eq. 3). There the
    hints come first, here they come together with the answers.

    A student with exits (`dynamic.wrap`) learns at all of them. To let exits learn from its own last exit no teacher is
    needed: `dynamic.fit(net, loader, mode="distill")`.

    Args:
        network: The student. It does not change.
        example_inputs: A batch as all networks take it.
        teacher: One network, or several, which teach as an `Ensemble`. They do not change.
        train_loader: `(inputs, labels [B])` that train the student.
        epochs: Passes over `train_loader`.
        temperature: It softens both answers.
        distill_share: Share of the loss that comes from the teacher. The rest comes from the labels.
        hints: Layer of the student -> layer of the teacher, by module name. With several teachers a name is such as
            `members.0.layer2`.
        hint_weight: Factor of the loss of the hints.
        eval_loader: `(inputs, labels [B])` for the accuracy in the report. It chooses nothing.
        seed: Of training, and of the linear maps of hints.
        fit_options: Other arguments of `dynamic.fit` and fields of `TrainingConfig`, such as `lr` and `device`.
        checkpoint: A file from which a killed run continues, see `dynamic.fit`.
        progress: Whether a progress bar is shown. None: on a terminal.
        latency: Whether the report measures latency.

    Returns:
        The student and a report. Its `before` is the teacher, the whole ensemble where there are several.

    Raises:
        InputError: Teachers or hints do not fit.
        SettingError: A setting is out of range.
        WrapError: Every parameter of the student is frozen.

    Example:
        >>> from dynamic.models import compress
        >>> student = compress.distill(
        ...     small, torch.zeros(2, 12), teacher=large, train_loader=train_loader, epochs=1, latency=False
        ... )
        >>> student.report.facts["teachers"]
        1
    """
    if not 0 <= distill_share <= 1:
        raise SettingError(f"distill_share={distill_share} is not in [0, 1]: the share of the loss from the teacher")
    check_fit_options(fit_options, _OWN)
    check_inputs(network, example_inputs)
    teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
    whole = teachers[0] if len(teachers) == 1 else Ensemble(teachers, temperature)
    student = copied(network)
    with Hints(student, whole, hints or {}, hint_weight, example_inputs, seed) as hinted:
        options = {
            "epochs": epochs,
            "teacher": whole,
            "distill_share": distill_share,
            "temperature": temperature,
            "penalty": hinted if hints else None,
            "seed": seed,
            "checkpoint": checkpoint,
            "progress": progress,
        }
        training = fit(student, train_loader, mode="distill", **fit_arguments({**options, **(fit_options or {})}))
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
