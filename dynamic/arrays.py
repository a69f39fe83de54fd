"""Arrays of what a user hands in, with words where there is none."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.policies.errors import InputError


def as_array(value: Any, what: str) -> NDArray[Any]:
    """What was handed in as an array of numpy.

    Args:
        value: An array, a tensor on the CPU, or lists of numbers.
        what: What messages call it.

    Returns:
        The array; a view where that is possible.

    Raises:
        InputError: It is no array, for instance lists of different lengths or a tensor that needs gradients.
    """
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # of numpy, and of torch for tensors
        raise InputError(
            f"{what} is a {type(value).__name__} that is no array ({error}); give a numpy array, "
            "of a tensor tensor.detach().cpu().numpy()"
        ) from error
