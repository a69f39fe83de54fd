"""From the result of a runtime to the tensors of an answer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamic.bundle.contract import DeployedBundle
from dynamic.policies.validation.fields import short
from dynamic.runtime.result import Result
from dynamic.serve.protocol.datatypes import as_objects
from dynamic.serve.protocol.messages import Tensor, TensorInfo
from dynamic.serve.protocol.parameters import MOST_TENSORS
from dynamic.serve.request_errors import invalid


class ModelOutputs:
    """What the model of a bundle gives, a row for each input.

    Args:
        bundle: The bundle.
    """

    def __init__(self, bundle: DeployedBundle) -> None:
        self._classes = bundle.classes
        named = () if self._classes is None else (TensorInfo("name", "BYTES", (-1,)),)
        self.metadata = (
            TensorInfo("label", "INT64", (-1,)),
            *named,
            TensorInfo("probabilities", "FP32", (-1, bundle.spec.classes)),
            TensorInfo("stage", "INT64", (-1,)),
            TensorInfo("score", "FP32", (-1,)),
            TensorInfo("certified", "BOOL", (-1,)),
            TensorInfo("point", "BYTES", (-1,)),
        )
        self._infos = {info.name: info for info in self.metadata}

    def check(self, names: Sequence[str]) -> None:
        """Raises RequestError where an output does not exist, or is asked for twice."""
        if len(names) > MOST_TENSORS:
            raise invalid(f"there are {len(names)} outputs: ask for at most {MOST_TENSORS}")
        for name in names:
            if name not in self._infos:
                raise invalid(f"there is no output {short(name)}: this model has {', '.join(self._infos)}")
        if len(set(names)) < len(names):
            raise invalid(f"outputs {short(list(names))} name one twice: give each once")

    def of(self, result: Result, names: Sequence[str]) -> tuple[Tensor, ...]:
        """The tensors of a result.

        Args:
            result: The result.
            names: Outputs, in the order that they are returned in. Empty: all.

        Returns:
            A tensor for each, `[B, ...]`.
        """
        tensors = []
        for name in names or self._infos:
            info = self._infos[name]
            tensors.append(Tensor(name, info.datatype, _VALUES[name](result, self._classes)))
        return tuple(tensors)


def _rows(values: Any) -> NDArray[Any]:
    return np.atleast_1d(np.asarray(values))


def _names(result: Result, classes: Sequence[str] | None) -> NDArray[Any]:
    """Names of the classes. Empty for a row without a finite answer."""
    names = result.name if isinstance(result.name, tuple) else (result.name,)
    return as_objects([(name or "").encode() for name in names], (len(names),))


def _point(result: Result, classes: Sequence[str] | None) -> NDArray[Any]:
    rows = _rows(result.label).size
    return as_objects([result.decision.point.name.encode()] * rows, (rows,))


_VALUES: dict[str, Callable[[Result, Sequence[str] | None], NDArray[Any]]] = {
    "label": lambda result, _: _rows(result.label).astype(np.int64, copy=False),
    "name": _names,
    "probabilities": lambda result, _: np.atleast_2d(result.probabilities).astype(np.float32, copy=False),
    "stage": lambda result, _: _rows(result.stage).astype(np.int64, copy=False),
    "score": lambda result, _: _rows(result.score).astype(np.float32, copy=False),
    "certified": lambda result, _: np.full(_rows(result.label).size, result.certified),
    "point": _point,
}
