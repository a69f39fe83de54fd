"""A request as every protocol gives it: what it holds, and how its answer is written."""

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from numpy.typing import NDArray

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor of a request or an answer.

    Args:
        name: Its name.
        datatype: Its data type, in the words of the protocol.
        array: Its values. Those of BYTES are objects of type bytes.
        base64: Whether BYTES are texts that encode bytes, as JSON needs it.
    """

    name: str
    datatype: str
    array: NDArray[Any]
    base64: bool = False


@dataclass(frozen=True)
class TensorInfo:
    """What metadata say of a tensor.

    Args:
        name: Its name.
        datatype: Its data type.
        shape: Its sizes, rows first. -1: any.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """As metadata have it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


@dataclass(frozen=True)
class InferRequest:
    """The content of a request.

    Args:
        inputs: The tensors, at least one.
        outputs: Names of the outputs that are returned. Empty: all.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()


class Incoming(Protocol[T_co]):
    """A request that has come in. `content` and `response` run on a worker, since they may take long."""

    @property
    def is_large(self) -> bool:
        """Whether `id` and `timeout_ms` may take long too, so that a worker reads them."""
        ...

    @property
    def outer_timeout_ms(self) -> float | None:
        """The part of `timeout_ms` that is known before it is parsed: that of a header, or of gRPC."""
        ...

    @property
    def id(self) -> str:
        """The sender's own identifier. Empty: none."""
        ...

    @property
    def timeout_ms(self) -> float | None:
        """Milliseconds from its arrival after which it needs no answer."""
        ...

    @property
    def deadline_s(self) -> float | None:
        """When its answer is late, in seconds since 1970: then it gets the answer of the last exit in time."""
        ...

    def content(self) -> InferRequest:
        """What it holds. Raises RequestError where it does not read."""
        ...

    def response(self, tensors: tuple[Tensor, ...]) -> T_co:
        """The answer as it is sent."""
        ...
