"""Feature hints: a student's layers drawn towards a teacher's while it trains."""

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
    """A penalty for `dynamic.fit`: called after both networks ran, it gives the weighted distance of their features.

    `layers`: student's module -> teacher's module, each with one tensor as result: `[B, D]`, `[B, N, D]` of tokens, or
    `[B, C, H, W]` (`[B, H, W, C]` where the first two are equal and the third is not). A linear map of the student's
    channels, a 1x1 convolution, meets the teacher's (Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", eq. 3);
    where sizes differ, the larger image is averaged down to the smaller.

    As a context, it puts those maps into the student, so that they are trained, kept in checkpoints and moved with it,
    and takes them out at the end. Their name tells layers and weight: a checkpoint of other hints is refused. They
    start at random, from `seed`; the global generators stay as they were.

    Raises InputError on layers that do not exist, did not run or do not fit, SettingError on a weight out of range.
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
            raise SettingError(f"hint_weight={weight} has to be positive and finite; without hints, leave them out")
        self.student, self.layers, self.weight = student, dict(layers), weight
        self._mine: dict[str, Tensor] = {}
        self._theirs: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        self._maps: dict[str, nn.Linear] = {}
        if not layers:
            return
        try:
            for own, other in self.layers.items():
                self._listen(student, "student", own, self._mine)
                self._listen(teacher, "teacher", other, self._theirs)
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
        # as parameters, not as a module: a Sequential would run it
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
        """The weighted sum, over the hints, of mean squared differences; a scalar."""
        found = []
        for own, other in self.layers.items():
            mine, theirs = self._pair(own, other)
            found.append(F.mse_loss(self._maps[own](mine), theirs))
        self._mine.clear()
        return self.weight * torch.stack(found).sum()

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        for own, mapped in self._maps.items():
            for name, value in mapped.named_parameters():
                yield f"hint|{own}|{self.layers[own]}|{self.weight}|{name}".replace(".", "_"), value

    def _pair(self, own: str, other: str) -> tuple[Tensor, Tensor]:
        """Both features, channels last, of one size."""
        for who, name, seen in (("student", own, self._mine), ("teacher", other, self._theirs)):
            if name not in seen:
                raise InputError(
                    f"layer {name!r} of the {who} did not run by itself: hint at one that does (in a network with "
                    f"exits, a layer inside it)"
                )
        mine, theirs = _channels_last(own, self._mine[own]), _channels_last(other, self._theirs[other])
        if mine.ndim != theirs.ndim or (mine.ndim == 3 and mine.shape[1] != theirs.shape[1]):
            raise InputError(
                f"hint {own!r} -> {other!r}: features {list(self._mine[own].shape)} and "
                f"{list(self._theirs[other].shape)} do not fit; choose layers with the same number of positions"
            )
        if mine.ndim == 4 and mine.shape[1:3] != theirs.shape[1:3]:
            size = (min(mine.shape[1], theirs.shape[1]), min(mine.shape[2], theirs.shape[2]))
            mine, theirs = _averaged(mine, size), _averaged(theirs, size)
        return mine, theirs

    def _listen(self, network: nn.Module, who: str, name: str, seen: dict[str, Tensor]) -> None:
        try:
            module = network.get_submodule(name)
        except AttributeError as error:
            near = [n for n, _ in network.named_modules() if n and n.rpartition(".")[2] == name.rpartition(".")[2]]
            known = near[:5] or [n for n, _ in network.named_children()]
            raise InputError(f"the {who} has no layer {name!r}; it has {', '.join(known)}") from error

        def keep(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                raise InputError(f"layer {name!r} of the {who} gives no tensor of floats; hint at another")
            seen[name] = output.clone()  # what comes next may change it in place

        self._handles.append(module.register_forward_hook(keep))

    def _stop(self) -> None:
        for handle in self._handles:
            handle.remove()


def _placed(network: nn.Module, example_inputs: Batch) -> dict[str, Tensor]:
    first = next(network.parameters(), None)
    move: Callable[[Tensor], Tensor] = (lambda t: t) if first is None else (lambda t: t.to(first.device))
    return {name: move(t) for name, t in named_tensors(network, example_inputs).items()}


def _channels_last(name: str, feature: Tensor) -> Tensor:
    if feature.ndim not in (2, 3, 4):
        raise InputError(f"layer {name!r} gives {list(feature.shape)}; a hint needs [B, D], [B, N, D] or [B, C, H, W]")
    if feature.ndim == 4 and not feature.shape[1] == feature.shape[2] != feature.shape[3]:
        feature = feature.permute(0, 2, 3, 1)
    return feature.float()


def _averaged(feature: Tensor, size: tuple[int, int]) -> Tensor:
    """`[B, H, W, C]` averaged to `[B, *size, C]`."""
    return F.adaptive_avg_pool2d(feature.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
