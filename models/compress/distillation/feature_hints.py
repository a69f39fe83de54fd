"""Feature hints: layers of a student that learn from layers of a teacher."""

from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from dynamic.offline.batches import Batch, named_tensors, run_on
from dynamic.offline.networks.module_modes import evaluating
from dynamic.offline.training.epoch_seeds import seeded
from dynamic.policies.errors import InputError, SettingError


class Hints:
    """A penalty for `dynamic.fit`: called after both networks ran, it returns the weighted distance of their features.

    Features are `[B, D]`, tokens `[B, N, D]`, or `[B, C, H, W]`. They are `[B, H, W, C]` where the first two sizes are
    equal and the third is not. A linear map of the student's channels, a 1x1 convolution, leads to the teacher's
    (Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", eq. 3). Where sizes differ, the larger image is averaged
    down.

    As a context, it puts these maps into the student, so that they are trained, are in checkpoints and move with it. It
    removes them at the end. Their names contain layers and weight: a checkpoint of other hints is refused.

    Args:
        student: The network that is trained.
        teacher: The network that it learns from.
        layers: Module of the student -> module of the teacher, each with one tensor as result.
        weight: Of the penalty.
        example_inputs: A batch as both networks take it.
        seed: Of the maps, which are random at first. The global generators do not change.

    Raises:
        InputError: A layer does not exist, did not run or does not fit.
        SettingError: `weight` is out of range.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layers: Mapping[str, str],
        weight: float,
        example_inputs: Batch,
        seed: int = 0,
    ) -> None:
        if not 0 < weight < float("inf"):
            raise SettingError(
                f"hint_weight={weight} is not positive and finite: give a weight such as 1.0, or no hints"
            )
        self.student, self.layers, self.weight = student, dict(layers), weight
        self._student_features: dict[str, Tensor] = {}
        self._teacher_features: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._maps: dict[str, nn.Linear] = {}
        if not layers:
            return
        try:
            for own, other in self.layers.items():
                self._listen(student, "student", own, self._student_features)
                self._listen(teacher, "teacher", other, self._teacher_features)
            for network in (student, teacher):
                with evaluating(network), torch.no_grad():
                    run_on(network, {name: t[:2] for name, t in _placed(network, example_inputs).items()})
            with seeded(seed, -2):  # `fit` has -1 and what follows
                for own, other in self.layers.items():
                    mine, theirs = self._pair(own, other)
                    self._maps[own] = nn.Linear(mine.shape[-1], theirs.shape[-1], device=mine.device)
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> "Hints":
        # as parameters, not as a module: a Sequential would run a module
        for name, value in self._named():
            self.student.register_parameter(name, value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        for name, _ in self._named():
            delattr(self.student, name)

    def __call__(self) -> Tensor:
        """The weighted sum, over the hints, of mean squared differences: a scalar."""
        distances = []
        for own, other in self.layers.items():
            mine, theirs = self._pair(own, other)
            distances.append(F.mse_loss(self._maps[own](mine), theirs))
        self._student_features.clear()
        return self.weight * torch.stack(distances).sum()

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for own, mapped in self._maps.items():
            for name, value in mapped.named_parameters():
                yield f"hint|{own}|{self.layers[own]}|{self.weight}|{name}".replace(".", "_"), value

    def _pair(self, own: str, other: str) -> tuple[Tensor, Tensor]:
        """Both features, channels last, of one size."""
        for who, name, features in (
            ("student", own, self._student_features),
            ("teacher", other, self._teacher_features),
        ):
            if name not in features:
                raise InputError(
                    f"layer {name!r} of the {who} did not run as a module: name one that does. In a network with exits "
                    f"name a layer inside it"
                )
        mine, theirs = (
            _channels_last(own, self._student_features[own]),
            _channels_last(other, self._teacher_features[other]),
        )
        if mine.ndim != theirs.ndim or (mine.ndim == 3 and mine.shape[1] != theirs.shape[1]):
            raise InputError(
                f"hint {own!r} -> {other!r}: features {list(self._student_features[own].shape)} and "
                f"{list(self._teacher_features[other].shape)} do not fit: choose layers of as many positions"
            )
        if mine.ndim == 4 and mine.shape[1:3] != theirs.shape[1:3]:
            size = (min(mine.shape[1], theirs.shape[1]), min(mine.shape[2], theirs.shape[2]))
            mine, theirs = _averaged(mine, size), _averaged(theirs, size)
        return mine, theirs

    def _listen(self, network: nn.Module, who: str, name: str, features: dict[str, Tensor]) -> None:
        try:
            module = network.get_submodule(name)
        except AttributeError as error:
            near = [n for n, _ in network.named_modules() if n and n.rpartition(".")[2] == name.rpartition(".")[2]]
            names = near[:5] or [n for n, _ in network.named_children()]
            raise InputError(f"the {who} has no layer {name!r}: name one, such as {', '.join(names)}") from error

        def store(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise InputError(f"layer {name!r} of the {who} gives no tensor of floats: name another")
            features[name] = output.clone()  # the next layer may change it in place

        self._handles.append(module.register_forward_hook(store))

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()


def _placed(network: nn.Module, example_inputs: Batch) -> dict[str, Tensor]:
    first = next(network.parameters(), None)
    move: Callable[[Tensor], Tensor] = (lambda t: t) if first is None else (lambda t: t.to(first.device))
    return {name: move(t) for name, t in named_tensors(network, example_inputs).items()}


def _channels_last(name: str, feature: Tensor) -> Tensor:
    if feature.ndim not in (2, 3, 4):
        raise InputError(f"layer {name!r} gives {list(feature.shape)}: a hint needs [B, D], [B, N, D] or [B, C, H, W]")
    if feature.ndim == 4 and not feature.shape[1] == feature.shape[2] != feature.shape[3]:
        feature = feature.permute(0, 2, 3, 1)
    return feature.float()


def _averaged(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """`[B, H, W, C]` averaged to `[B, *size, C]`."""
    return F.adaptive_avg_pool2d(feature.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
