"""Classes of the messages, made from `inference.binpb` when this is imported.

That file is `inference.proto`, compiled. Generated Python code would need the version of protobuf that wrote it, and
would collide with clients such as `tritonclient`, which register messages of the same names in the same process.
`python -m dynamic.serve.grpc_v2.messages` compiles again and needs grpcio-tools.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor_pool import DescriptorPool

SERVICE = "inference.GRPCInferenceService"
SOURCE, COMPILED = (Path(__file__).with_name(f"inference.{end}") for end in ("proto", "binpb"))


def compiled() -> bytes:
    """The content of `inference.binpb` for the source as it is. Raises CalledProcessError where it does not compile."""
    out = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE.parent}", "-o/dev/stdout", SOURCE.name],
        check=True,
        capture_output=True,
    )
    return out.stdout


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    files = descriptor_pb2.FileDescriptorSet.FromString(COMPILED.read_bytes())
    for file in files.file:
        pool.Add(file)
    return pool


if __name__ == "__main__":
    COMPILED.write_bytes(compiled())
    sys.exit()

_SERVICE = _pool().FindServiceByName(SERVICE)


def message_classes(method: str) -> tuple[type[Any], type[Any]]:
    """The classes of a method's request and response.

    Args:
        method: Its name, such as "ModelInfer".

    Returns:
        Both classes.

    Raises:
        KeyError: There is no such method.
    """
    described = _SERVICE.methods_by_name[method]
    return (
        message_factory.GetMessageClass(described.input_type),
        message_factory.GetMessageClass(described.output_type),
    )


METHODS: tuple[str, ...] = tuple(_SERVICE.methods_by_name)
