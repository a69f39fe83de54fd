"""The extra that brings a package, so that the message for a missing one names it."""

from collections.abc import Mapping
from types import MappingProxyType

# the name that is imported: (the name that is installed, the extra of dynamic-inference that brings it)
EXTRAS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "PIL": ("Pillow", "images"),
        "bitarray": ("bitarray", "build"),
        "jinja2": ("Jinja2", "plot"),
        "matplotlib": ("matplotlib", "plot"),
        "mlflow": ("mlflow-skinny", "mlflow"),
        "grpc": ("grpcio", "serve"),
        "huggingface_hub": ("huggingface_hub", "hub"),
        "onnx": ("onnx", "onnx"),
        "onnxscript": ("onnxscript", "build"),
        "openvino": ("openvino", "openvino"),
        "prometheus_client": ("prometheus_client", "serve"),
        "ray": ("ray", "ray"),
        "rich": ("rich", "cli"),
        "safetensors": ("safetensors", "build"),
        "skl2onnx": ("skl2onnx", "sklearn"),
        "sklearn": ("scikit-learn", "examples"),
        "starlette": ("starlette", "serve"),
        "tokenizers": ("tokenizers", "text"),
        "torch": ("torch", "build"),
        "torch_pruning": ("torch-pruning", "build"),
        "torchvision": ("torchvision", "build"),
        "tqdm": ("tqdm", "cli"),
        "typer": ("typer", "cli"),
        "uvicorn": ("uvicorn", "serve"),
        "wandb": ("wandb", "wandb"),
        "vl_convert": ("vl-convert-python", "plot"),
    }
)


def remedy(module: str, what: str) -> str | None:
    """One line that names a missing package and how to install it.

    Args:
        module: Name of a module that could not be imported.
        what: The feature that needs it.

    Returns:
        The line. None where no extra brings the module.
    """
    entry = EXTRAS.get(module.partition(".")[0])
    if entry is None:
        return None
    package, extra = entry
    return f'{what} needs {package}, which is not installed: pip install "dynamic-inference[{extra}]"'


def with_remedy(error: ModuleNotFoundError, what: str) -> ModuleNotFoundError:
    """The error of an import, with a remedy where there is one.

    Args:
        error: The error of the import.
        what: The feature that needs the module.

    Returns:
        An error with one line of words, or the same error.
    """
    line = remedy(error.name or "", what)
    return error if line is None or "pip install" in str(error) else ModuleNotFoundError(line, name=error.name)
