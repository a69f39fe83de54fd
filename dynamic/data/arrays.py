"""Arrays of a user's inputs, with an error in words where there is none."""

from collections.abc import Container, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError

Side = int | Container[int]  # of a dimension: its size, or the sizes that it may have


def fits(shape: Sequence[int], sides: Sequence[Side]) -> bool:
    """Return whether each size of a shape is allowed.

    Args:
        shape: The sizes.
        sides: For each dimension its size, or the sizes that it may have.

    Returns:
        Whether they are.

    Example:
        >>> from dynamic.data.arrays import fits
        >>> fits((3, 64), (3, range(32, 65, 32))), fits((3, 65), (3, range(32, 65, 32)))
        (True, False)
    """
    if len(shape) != len(sides):
        return False
    return all(size == side if isinstance(side, int) else size in side for size, side in zip(shape, sides, strict=True))


class NamedInput(Protocol):
    """An input of a network, as a bundle describes it."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def sides(self) -> tuple[Side, ...]: ...
    @property
    def dtype(self) -> str: ...


class OneInput:
    """Preprocessing, a function of `(x, shape)`, that makes one array and is plain data alone."""

    limits_values: ClassVar[bool] = False

    @property
    def files(self) -> Mapping[str, bytes]:
        """The files that travel in a bundle: none."""
        return {}

    def check_arrays(self, named: Mapping[str, NDArray[Any]]) -> None:
        """Check inputs that a user gives by name. Any number is one that this may make.

        Args:
            named: Arrays by name, `[B, ...]`.
        """

    def arrays(self, x: Any, inputs: Sequence[NamedInput]) -> Mapping[str, NDArray[Any]]:
        """Make the input of a network.

        Args:
            x: What a call takes.
            inputs: What the network takes. The first is made.

        Returns:
            The array `[B, ...]` by its name.

        Raises:
            InputError: As for a call.
        """
        make: Any = self
        return {inputs[0].name: make(x, inputs[0].sides)}


def as_array(value: Any, what: str) -> NDArray[Any]:
    """Convert an input to a numpy array.

    Args:
        value: An array, a tensor on the CPU, an object with DLPack there, or lists of numbers.
        what: Name of the input for messages.

    Returns:
        The array, as a view where that is possible.

    Raises:
        InputError: It is no array, for instance lists of different lengths, or a tensor that needs gradients. Or some
            of its values are masked.
    """
    if type(value) is np.ndarray:  # first: nearly every request has one
        array = value
    elif _is_masked(value):
        raise InputError(
            f"{what} is a {type(value).__name__} with masked values, which a network cannot skip: fill them "
            "first, array.filled(value)"
        )
    else:
        try:
            array = np.asarray(_exported(value))
        except MemoryError as error:
            raise InputError(
                f"{what} is a {type(value).__name__} that does not fit in memory ({error}): give fewer rows at a time"
            ) from error
        except Exception as error:  # of numpy, of torch, and of whatever else offers its values
            raise InputError(
                f"{what} is a {type(value).__name__} that is no array ({error}): give a numpy array, "
                "of a tensor tensor.detach().cpu().numpy(), of a bfloat16 one tensor.float() first"
            ) from error
    return array


def as_numbers(value: Any, what: str) -> NDArray[Any]:
    """Convert an input to a numpy array of numbers. See `as_array`.

    Args:
        value: As for `as_array`.
        what: Name of the input for messages.

    Returns:
        The array, as a view where that is possible.

    Raises:
        InputError: It is no array, or one of something else.
    """
    array = as_array(value, what)
    if array.dtype.kind in "OSU":
        kind = "an array" if isinstance(value, np.ndarray) else f"a {type(value).__name__} that makes an array"
        holds = "Python objects" if array.dtype.kind == "O" else "text"
        raise InputError(
            f"{what} is {kind} {list(array.shape)} of {holds}, not of numbers: give a numpy array of numbers, in which "
            "all rows are equally long and nothing is None"
        )
    return array


def _exported(value: Any) -> Any:
    """The value, or its array by DLPack where it offers nothing else."""
    if hasattr(value, "__dlpack__") and not hasattr(value, "__array__"):
        return np.from_dlpack(value)
    return value


def _is_masked(value: Any) -> bool:
    """Whether some values are masked, also in lists of arrays. Numpy would use the values beneath the mask."""
    if isinstance(value, np.ma.MaskedArray):
        return bool(np.ma.is_masked(value))
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], (list, tuple, np.ndarray)):
        try:
            return any(map(_is_masked, value))
        except RecursionError:  # numpy refuses it
            return False
    return False
