"""Numbers of numpy as Python's own, because settings are compared, hashed and written as JSON."""

from typing import Any

import numpy as np


def plain(value: Any) -> Any:
    """A setting without numpy's types.

    Args:
        value: A number of numpy, an array without dimensions, or anything else.

    Returns:
        Python's own number. Anything else is returned unchanged.
    """
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        return value.item()
    return value


def plain_items(values: Any) -> Any:
    """The items of a tuple, list or array without numpy's types, as a tuple. Anything else as in `plain`.

    Args:
        values: A setting that may hold several.

    Returns:
        A tuple, or what `plain` gives.
    """
    if isinstance(values, (tuple, list)) or (isinstance(values, np.ndarray) and values.ndim == 1):
        return tuple(plain(value) for value in values)
    return plain(values)
