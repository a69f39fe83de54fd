"""What a network of several exits is trained on, and how its gradients are balanced."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamic.offline.staged_network import Stage
from dynamic.policies.errors import SettingError

RAMP_START = 0.01  # Kaya et al. 2019, section 4
RAMP_END = 0.5  # of the run: there the end, but our learning rate falls to 0, and full weight then comes too late


@dataclass(frozen=True)
class ExitLoss:
    """The weighted sum of the exits' losses.

    `weights [S]` of the exits. With `ramp` they are reached linearly from 0.01 in the first half of the run, except the
    last one (Kaya et al. 2019, "Shallow-Deep Networks", section 4). `distill` is the share of the earlier exits' losses
    that comes from the last exit's answer, softened by `temperature`. The rest comes from the labels (Hinton et al.
    2015, "Distilling the Knowledge in a Neural Network", section 2). With the answer of a teacher, all exits learn from
    that one, the last too.
    Raises SettingError on a value out of range.
    """

    weights: tuple[float, ...]
    ramp: bool = False
    distill: float = 0.0
    temperature: float = 3.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not self.weights or not all(0 <= w < float("inf") for w in self.weights) or not any(self.weights):
            raise SettingError(f"exit_weights={self.weights}: they have to be finite, not negative, not all 0")
        if not 0 <= self.distill <= 1:
            raise SettingError(f"share={self.distill} is not in [0, 1]")
        if not 0 < self.temperature < float("inf"):
            raise SettingError(f"temperature={self.temperature} has to be positive")
        if not 0 <= self.label_smoothing < 1:
            raise SettingError(f"label_smoothing={self.label_smoothing} is not in [0, 1)")

    def weights_at(self, fraction: float) -> tuple[float, ...]:
        """The weights `[S]` when `fraction` (0 to 1) of the run is done."""
        if not self.ramp:
            return self.weights
        ramped = (min(w, RAMP_START + fraction / RAMP_END * w) for w in self.weights[:-1])
        return (*ramped, self.weights[-1])

    def __call__(self, logits: Sequence[Tensor], labels: Tensor, taught: Tensor | None = None) -> Tensor:
        """Each exit's own loss, unweighted `[S]`, of `logits` `S x [B, C]`, `labels [B]` and the teacher's logits."""
        losses = [F.cross_entropy(x.float(), labels, label_smoothing=self.label_smoothing) for x in logits]
        if self.distill:
            teacher = logits[-1].detach() if taught is None else taught
            target = F.log_softmax(teacher.float() / self.temperature, dim=1)
            for i, own in enumerate(logits[:-1] if taught is None else logits):
                softened = F.log_softmax(own.float() / self.temperature, dim=1)
                # times T^2, or the gradients shrink with T (Hinton et al. 2015, section 2.1)
                learned = self.temperature**2 * F.kl_div(softened, target, reduction="batchmean", log_target=True)
                losses[i] = (1 - self.distill) * losses[i] + self.distill * learned
        return torch.stack(losses)


class GradientBalance:
    """Gradient equilibrium: Li et al. 2019, "Improved Techniques for Training Adaptive Deep Networks", section 3.

    There, features are rescaled on the way back. A block receives the mean of the gradients of all exits behind it. The
    variance of their sum would grow with the number of exits. The factors telescope:
    the same is reached, for any network, by dividing the gradients of a stage's own parameters by the sum of
    the weights of the exits behind it. Heads keep their gradients. A parameter of several stages counts
    with its first.
    """

    def __init__(self, stages: Sequence[Stage]) -> None:
        counted: set[int] = {id(p) for stage in stages for p in stage.head.parameters()}
        self.groups: list[list[nn.Parameter]] = []
        for stage in stages:
            own = [p for p in stage.body.parameters() if id(p) not in counted]
            counted.update(id(p) for p in own)
            self.groups.append(own)

    def __call__(self, weights: Sequence[float]) -> None:
        """Rescale the gradients that lie in the parameters. `weights [S]` are those of this step's loss."""
        for i, group in enumerate(self.groups):
            behind = sum(weights[i:])
            grads = [p.grad for p in group if p.grad is not None]
            if grads and behind > 0:
                torch._foreach_mul_(grads, 1 / behind)
