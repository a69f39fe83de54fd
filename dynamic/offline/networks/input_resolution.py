"""A network at another resolution than its cascade's input: the resize is inside the network."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dynamic.offline.option_words import check_word
from dynamic.policies.errors import InputError

ResizeFilter = Literal["bilinear", "bicubic"]
_MOST_SIDE = 2**13


def at_resolution(
    network: nn.Module,
    size: int | tuple[int, int],
    *,
    source: int | tuple[int, int],
    interpolation: ResizeFilter = "bilinear",
) -> "AtResolution":
    """Make a sub-model that resizes its input and runs a network on the result.

    Networks of a cascade take the same input. With this, one of them sees it smaller: half the side is a quarter of the
    compute. The resize is antialiased. It is two products with fixed matrices, which every engine runs fast. Results
    are those of `torch.nn.functional.interpolate(antialias=True)`, within 2e-5 for values of -1 to 1. Pillow's resize
    rounds to bytes twice, so it differs by at most 1.5 of 255. Pillow also cuts bicubic values off at 0 and 255.
    That is not done here.

    The network's weights are not copied. Several resolutions of one network share them, in a bundle too.

    Args:
        network: The network. It takes one tensor `[B, C, h, w]`.
        size: Height and width that the network gets, or the side of a square.
        source: Height and width of the input, or the side of a square.
        interpolation: Pillow's filter.

    Returns:
        The module. It takes `[B, C, H, W]` and returns what the network returns.

    Raises:
        InputError: A size is no whole number in range, or `network` is no module.
        SettingError: The filter is unknown.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> half = dynamic.at_resolution(network, 16, source=32)
        >>> half(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """
    return AtResolution(network, size, source=source, interpolation=interpolation)


class AtResolution(nn.Module):
    """A network behind an antialiased resize, as `at_resolution` returns it. See there."""

    rows: Tensor  # [h, H]
    columns: Tensor  # [W, w]

    def __init__(
        self,
        network: nn.Module,
        size: int | tuple[int, int],
        *,
        source: int | tuple[int, int],
        interpolation: ResizeFilter = "bilinear",
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise InputError(f"at_resolution takes a torch.nn.Module. This is a {type(network).__name__}")
        check_word("interpolation", interpolation, ResizeFilter)
        self.network = network
        self.size, self.source = _sides("size", size), _sides("source", source)
        self.interpolation = interpolation
        rows, columns = (resize_matrix(s, t, interpolation) for s, t in zip(self.source, self.size, strict=True))
        self.register_buffer("rows", torch.from_numpy(rows))
        self.register_buffer("columns", torch.from_numpy(columns.T.copy()))
        reference = next((p for p in network.parameters() if p.is_floating_point()), None)
        if reference is not None:
            self.to(reference.device)

    def forward(self, x: Tensor) -> Tensor:
        """What the network returns for the resized input.

        Args:
            x: Images `[B, C, H, W]`.

        Returns:
            Logits `[B, classes]`.

        Raises:
            RuntimeError: `x` has another size than `source`.

        Example:
            >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
            >>> dynamic.at_resolution(network, 4, source=8).forward(torch.ones(1, 3, 8, 8)).shape
            torch.Size([1, 3])
        """
        narrow = torch.matmul(x, self.columns)  # [B, C, H, w]
        logits: Tensor = self.network(torch.matmul(self.rows, narrow))  # of [B, C, h, w]
        return logits

    def extra_repr(self) -> str:
        """Sizes and filter, for the printed module."""
        return f"size={self.size}, source={self.source}, interpolation={self.interpolation!r}"


def resize_matrix(source: int, target: int, interpolation: ResizeFilter) -> NDArray[np.float32]:
    """The weights of an antialiased resize along one side, as Pillow's `precompute_coeffs` has them.

    Args:
        source: Length before.
        target: Length after.
        interpolation: The filter. Where the side shrinks, it is stretched by the ratio.

    Returns:
        Weights `[target, source]`. Each row adds up to 1.
    """
    kernel, support = _KERNELS[interpolation]
    ratio = source / target
    stretch = max(ratio, 1.0)
    matrix = np.zeros((target, source))
    for row in range(target):
        center = (row + 0.5) * ratio
        first = max(0, int(center - support * stretch + 0.5))
        last = min(source, int(center + support * stretch + 0.5))
        weights = kernel((np.arange(first, last, dtype=np.float64) - center + 0.5) / stretch)
        matrix[row, first:last] = weights / weights.sum()
    return matrix.astype(np.float32)


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(0.0, 1.0 - np.abs(x))


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys 1981, "Cubic Convolution Interpolation for Digital Image Processing", eq. 15, a = -1/2."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


_Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]
_KERNELS: dict[str, tuple[_Kernel, float]] = {"bilinear": (_triangle, 1.0), "bicubic": (_cubic, 2.0)}  # and support


def _sides(name: str, size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, (tuple, list)) else ()
    whole = all(isinstance(side, int) and not isinstance(side, bool) and 1 <= side <= _MOST_SIDE for side in sides)
    if len(sides) != 2 or not whole:
        raise InputError(f"{name}={size!r:.80} must be a side, or (height, width), of 1 to {_MOST_SIDE} pixels")
    return sides[0], sides[1]
