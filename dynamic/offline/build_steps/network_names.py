"""Names of the networks of a cascade, where the user gives none, and of those that are files."""

from collections.abc import Sequence

from dynamic.policies.errors import EngineError, InputError


def numbered(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with their place where several are the same.

    Raises InputError where that is the name of another one.
    """
    unique = tuple(f"{name}-{place}" if names.count(name) > 1 else name for place, name in enumerate(names))
    twice = next((name for name in unique if unique.count(name) > 1), None)
    if twice is not None:
        raise InputError(
            f"networks {list(names)} are called {list(unique)}, and {twice!r} is there twice: give each a name of its "
            "own, dynamic.onnx_model(path, name='NAME') or dynamic.Cascade(networks, names=(...))"
        )
    return unique


def check_not_torch(files: Sequence[str], engine: str) -> None:
    """Raises EngineError where engine "torch" should run ONNX files, of these names."""
    if engine == "torch" and files:
        raise EngineError(
            f"engine='torch' runs modules, and {files[0]!r} is an ONNX file: use engine='onnxruntime' or 'openvino'"
        )
