"""The weights of a backbone in one file, to which its graphs refer."""

import hashlib
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

EMBEDDED_BYTES = 256  # smaller constants are in the graph itself: engines read shapes and axes from them
_ALIGNMENT = 4096  # of each weight in its file, so that engines can map it
# types whose bytes are those of numpy's. Texts and numbers of 4 bits remain in the graph
_RAW = {
    TensorProto.DataType.Value(kind)
    for kind in (
        "FLOAT",
        "FLOAT16",
        "DOUBLE",
        "BOOL",
        "INT8",
        "INT16",
        "INT32",
        "INT64",
        "UINT8",
        "UINT16",
        "UINT32",
        "UINT64",
    )
}


class WeightFile:
    """The weights of one backbone, appended to one file. A graph's large initializers are moved into it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(b"")
        self._at: dict[bytes, tuple[int, int]] = {}

    def move(self, model: onnx.ModelProto) -> None:
        """Replace the large initializers of a model by references into the file. Steps of int8 are not moved."""
        steps = {node.input[1] for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
        with self._path.open("ab") as file:
            for tensor in model.graph.initializer:
                if tensor.data_type not in _RAW:
                    continue
                raw = numpy_helper.to_array(tensor).tobytes()
                if len(raw) < EMBEDDED_BYTES or tensor.name in steps:
                    continue
                key = hashlib.sha256(raw).digest()
                if key not in self._at:
                    file.write(b"\0" * (-file.tell() % _ALIGNMENT))
                    self._at[key] = (file.tell(), len(raw))
                    file.write(raw)
                offset, length = self._at[key]
                tensor.raw_data = raw  # what set_external_data expects to replace
                external_data_helper.set_external_data(tensor, self._path.name, offset=offset, length=length)
                tensor.ClearField("raw_data")
                for field in ("float_data", "int32_data", "int64_data", "double_data"):
                    tensor.ClearField(field)
