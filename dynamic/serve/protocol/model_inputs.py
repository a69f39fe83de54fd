"""From the tensors of a request to what a runtime takes."""

from functools import partial
from typing import Any

from dynamic.bundle.contract import DeployedBundle
from dynamic.data.image_steps import RGB, Gray
from dynamic.data.preprocessing import Preprocess
from dynamic.data.sound.sound_preprocess import SoundPreprocess
from dynamic.data.text.text_preprocessing import TextPreprocess
from dynamic.policies.validation.fields import short
from dynamic.serve.protocol.datatypes import as_objects, datatype_of
from dynamic.serve.protocol.file_decoding import base64_of, picture_of, pixels_of, sound_of, text_of
from dynamic.serve.protocol.messages import InferRequest, Tensor, TensorInfo
from dynamic.serve.request_errors import RequestError, invalid

_CONTENT = {"image": "image/*", "text": "text/plain", "sound": "audio/*"}  # types of bodies that are one input


class ModelInputs:
    """What the model of a bundle takes.

    A bundle with preprocessing has one input, "image", "text" or "sound", of BYTES: encoded files or texts. Pixels of
    UINT8 and samples of a sound are taken under the same name. The network's own inputs are always taken too, by their
    names.

    Args:
        bundle: The bundle.
        max_batch: Rows that a request may have.
        max_megapixels: Millions of pixels that its images may have together.
    """

    def __init__(self, bundle: DeployedBundle, max_batch: int, max_megapixels: float) -> None:
        self._most_rows, self._most_pixels = max_batch, int(max_megapixels * 1e6)
        self._network = {
            i.name: TensorInfo(
                i.name, datatype_of(i.dtype), (-1, *(side if isinstance(side, int) else -1 for side in i.sides))
            )
            for i in bundle.spec.inputs
        }
        preprocess = bundle.preprocess
        self._channels: int | None = None
        self.kind: str | None = None
        if isinstance(preprocess, Preprocess):
            self.kind = "image"
            converts = any(isinstance(step, (Gray, RGB)) for step in preprocess.steps)
            self._channels = None if converts else bundle.spec.inputs[0].shape[0]
        elif isinstance(preprocess, TextPreprocess):
            self.kind = "text"
        elif isinstance(preprocess, SoundPreprocess):
            self.kind = "sound"

    @property
    def metadata(self) -> tuple[TensorInfo, ...]:
        """What metadata say of the inputs."""
        return tuple(self._network.values()) if self.kind is None else (TensorInfo(self.kind, "BYTES", (-1,)),)

    @property
    def body_type(self) -> str | None:
        """The type of a body that is one input, such as "image/*". None: there is none."""
        return None if self.kind is None else _CONTENT[self.kind]

    def one(self, content: bytes) -> Tensor:
        """A body that is one input, as a tensor."""
        assert self.kind is not None
        return Tensor(self.kind, "BYTES", as_objects([content], (1,)))

    def of(self, request: InferRequest) -> Any:
        """The input of a runtime.

        Args:
            request: The request.

        Returns:
            Arrays by name, or what the bundle's preprocessing takes.

        Raises:
            RequestError: A name, a data type or the number of rows does not fit, or a file or text does not read.
        """
        first = request.inputs[0]
        if len(request.inputs) == 1 and self.kind is not None:
            if first.datatype == "BYTES" and first.name in (self.kind, *self._network):
                return self._encoded(first)
            if first.name == self.kind and first.name not in self._network:
                return self._values(first)
        return self._arrays(request.inputs)

    def _encoded(self, tensor: Tensor) -> list[Any]:
        """Each element of BYTES, decoded."""
        what = f"input {tensor.name!r}"
        shape = tensor.array.shape
        if any(side != 1 for side in shape[1:]):
            raise invalid(f"{what} has shape {list(shape)}, expected [B]: give one element of BYTES for each row")
        self._check_rows(shape[0], what)
        elements: list[bytes] = tensor.array.ravel().tolist()
        if self.kind == "text":
            return [text_of(content, f"text {row} of {what}") for row, content in enumerate(elements)]
        if tensor.base64:
            elements = [base64_of(content, f"element {row} of {what}") for row, content in enumerate(elements)]
        if self.kind == "sound":
            return [sound_of(content, f"sound {row} of {what}") for row, content in enumerate(elements)]
        left = self._most_pixels
        for row, content in enumerate(elements):
            left -= pixels_of(content, f"image {row} of {what}")
            if left < 0:
                raise RequestError(
                    "too_large",
                    f"image {row} of {what} is more than the {self._most_pixels} pixels that the images of a request "
                    "may have together: send smaller ones, fewer at a time, or start the server with a larger "
                    "--max-megapixels",
                )
        read = partial(picture_of, channels=self._channels)
        return [read(content, f"image {row} of {what}") for row, content in enumerate(elements)]

    def _values(self, tensor: Tensor) -> Any:
        """Pixels or samples as they are. The preprocessing checks them."""
        what, array = f"input {tensor.name!r}", tensor.array
        if self.kind == "text":
            raise invalid(f"{what} has datatype {tensor.datatype}: give texts as BYTES, one element for each row")
        single = (2, 3) if self.kind == "image" else (1,)
        if self.kind == "image" and tensor.datatype != "UINT8":
            raise invalid(
                f"{what} has datatype {tensor.datatype}: give encoded images as BYTES [B], pixels as UINT8 "
                f"[B, H, W, C], or what the network takes under its own name, {self._described}"
            )
        self._check_rows(1 if array.ndim in single else array.shape[0], what)
        return array

    def _arrays(self, tensors: tuple[Tensor, ...]) -> dict[str, Any]:
        """The network's own inputs by name."""
        names = [tensor.name for tensor in tensors]
        if sorted(names) != sorted(self._network):
            other = "" if self.kind is None else f"{self.kind!r} of BYTES [B], or "
            raise invalid(f"inputs are {short(names)}: this model takes {other}{self._described}")
        for tensor in tensors:
            what, info = f"input {tensor.name!r}", self._network[tensor.name]
            if tensor.datatype != info.datatype:
                raise invalid(f"{what} has datatype {tensor.datatype}, expected {info.datatype}: convert it first")
            if tensor.array.ndim != len(info.shape):
                raise invalid(f"{what} has shape {list(tensor.array.shape)}, expected {list(info.shape)}, rows first")
            self._check_rows(tensor.array.shape[0], what)
        return {tensor.name: tensor.array for tensor in tensors}

    def _check_rows(self, rows: int, what: str) -> None:
        if not 1 <= rows <= self._most_rows:
            raise invalid(
                f"{what} has {rows} rows, and a request has 1 to {self._most_rows}: send fewer at a time, or start the "
                "server with a larger --max-batch"
            )

    @property
    def _described(self) -> str:
        return " and ".join(f"{i.name!r} of {i.datatype} {list(i.shape)}" for i in self._network.values())
