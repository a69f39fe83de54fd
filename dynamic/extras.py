"""Which extra brings a package, so that a missing one is named in one line."""

from collections.abc import Mapping
from types import MappingProxyType

# the name that is imported: (the name that is installed, the extra of dynamic-inference that brings it)
EXTRAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "PIL": ("Pillow", "images"),
        "bitarray": ("bitarray", "build"),
        "matplotlib": ("matplotlib", "plot"),
        "onnx": ("onnx", "onnx"),
        "onnxscript": ("onnxscript", "build"),
        "openvino": ("openvino", "openvino"),
        "safetensors": ("safetensors", "build"),
        "sklearn": ("scikit-learn", "examples"),
        "torch": ("torch", "build"),
        "torch_pruning": ("torch-pruning", "build"),
        "torchvision": ("torchvision", "build"),
        "tqdm": ("tqdm", "cli"),
        "typer": ("typer", "cli"),
    }
)


def remedy(module: str, what: str) -> str | None:
    """One line that says what is missing and how it is installed.

    Args:
        module: The name of a module that could not be imported.
        what: What needs it.

    Returns:
        The line, or None where no extra brings the module.
    """
    known = EXTRAS.get(module.partition(".")[0])
    if known is None:
        return None
    package, extra = known
    return f'{what} needs {package}, which is not installed: pip install "dynamic-inference[{extra}]"'


def with_remedy(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """The error of an import, with the remedy where one is known.

    Args:
        error: What the import raised.
        what: What needs the module.

    Returns:
        An error with one line of words, or the same error.
    """
    line = remedy(error.name or "", what)
    return error if line is None or "pip install" in str(error) else ModuleNotFoundError(line, name=error.name)
