"""What is known of an ONNX file: its inputs, and the output that holds its answers."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

Kind = Literal["logits", "probabilities"]


@runtime_checkable
class ScikitClassifier(Protocol):
    """A classifier, or pipeline of one, with the interface of scikit-learn."""

    def fit(self, features: Any, labels: Any) -> Any:
        """Fit it."""

    def predict(self, features: Any) -> Any:
        """Labels of features."""

    def get_params(self, deep: bool = True) -> Any:
        """Its settings."""


@dataclass(frozen=True)
class FileInput:
    """An input of an ONNX file.

    Args:
        name: Its name in the file.
        dims: Its dimensions with the batch: a size, or None where the file leaves it open. None: the file has none.
        dtype: Name of its dtype in numpy.
    """

    name: str
    dims: tuple[int | None, ...] | None
    dtype: str

    def __str__(self) -> str:
        sides = "any shape" if self.dims is None else str([("?" if d is None else d) for d in self.dims])
        return f"{self.name!r} {self.dtype} {sides}".replace("'?'", "?")


@dataclass(frozen=True)
class FileAnswer:
    """Where an ONNX file has its answers `[B, C]`.

    Args:
        output: The output of the file.
        tensor: The tensor in its graph that holds the numbers: the output itself, or what a ZipMap makes it of.
        kind: Whether the numbers are logits or probabilities. None: calibration inputs decide.
        reason: Why it is that kind, in words.
        labels: Names of the classes that the file has, in the order of its columns. None: none, or the numbers from 0.
    """

    output: str
    tensor: str
    kind: Kind | None
    reason: str
    labels: tuple[str, ...] | None = None
