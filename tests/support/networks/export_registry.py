"""One table of ONNX operators for all exports of a process."""

import sys
from typing import Any


def share_registry() -> None:
    """Let torch.onnx read the sources of its 500 operators once, and copy the table for each export.

    It reads them again for every export: 0.13 s of CPU, of which the suite has some hundreds. Does nothing before
    torch.onnx was imported, and where torch has no such table.
    """
    kind = getattr(sys.modules.get("torch.onnx._internal.exporter._registration"), "ONNXRegistry", None)
    if kind is None or not hasattr(kind, "from_torchlib") or hasattr(kind, "shared_tables"):
        return
    plain = kind.from_torchlib
    kind.shared_tables = {}

    def from_torchlib(cls: Any, *args: Any, **options: Any) -> Any:
        key = (*args, *options.items())
        if key not in cls.shared_tables:
            cls.shared_tables[key] = plain(*args, **options)
        shared, own = cls.shared_tables[key], cls()
        vars(own).update(vars(shared))
        own.functions = {target: list(found) for target, found in shared.functions.items()}
        return own

    kind.from_torchlib = classmethod(from_torchlib)
