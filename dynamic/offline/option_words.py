"""Options that are words: their types, and the check that reads its words from them."""

from typing import Any, Literal, get_args

from dynamic.engines.options import EngineName
from dynamic.policies.errors import DynamicError, SettingError

Mode = Literal["heads", "joint", "distill"]
Optimizer = Literal["adamw", "sgd"]
EngineChoice = Literal[EngineName, "auto"]
RowCount = Literal["dynamic", "single"]
ExportFormat = Literal["onnx", "triton"]


def check_word(name: str, value: object, words: Any, error: type[DynamicError] = SettingError) -> None:
    """Check an option that is a word.

    Args:
        name: The option.
        value: What the user gave.
        words: The `Literal` type of the option.
        error: What is raised.

    Raises:
        DynamicError: The value is none of the words. Its class is `error`.
    """
    options = get_args(words)
    if not isinstance(value, str) or value not in options:
        raise error(f"{name}={value!r} is not known. Use one of {', '.join(options)}")
