"""Example inputs of a cascade for measurements."""

import numpy as np

from dynamic.engines.contract import Array, CascadeSpec


def example_arrays(spec: CascadeSpec, rows: int) -> dict[str, Array]:
    """Inputs of the right shape and dtype: normal noise for floating point, zeros for everything else."""
    random = np.random.default_rng(0)
    return {
        i.name: random.standard_normal((rows, *i.shape)).astype(i.dtype)
        if np.issubdtype(np.dtype(i.dtype), np.floating)
        else np.zeros((rows, *i.shape), i.dtype)
        for i in spec.inputs
    }
