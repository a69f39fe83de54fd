"""The library `tokenizers`: loaded where a text comes, and with its failures in words."""

from typing import Any

from dynamic.policies.errors import DynamicError, InputError


def import_tokenizers() -> Any:
    """The library. DynamicError, with the command that installs it, where it is missing."""
    try:
        import tokenizers
    except ImportError as error:  # also a wheel of another system
        why = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise DynamicError(
            f'this bundle takes texts, and the library tokenizers {why}: pip install "dynamic-inference[text]"'
        ) from error
    return tokenizers


def read_tokenizer(text: str) -> Any:
    """The tokenizer that a JSON text describes. InputError where it does not read."""
    library = import_tokenizers()
    try:
        return library.Tokenizer.from_str(text)
    except Exception as error:  # the library raises plain exceptions
        raise InputError(
            f"the tokenizer does not read ({error!s:.200}): give the tokenizer.json that tokenizer.save(path) of "
            "the library tokenizers, or save_pretrained(folder) of transformers wrote"
        ) from error


def tokenizer_of(text: str) -> Any:
    """The same, without padding or truncation."""
    tokenizer = read_tokenizer(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encoded(tokenizer: Any, text: str) -> Any:
    """One text in tokens. InputError where the tokenizer has none for it."""
    try:
        encoding = tokenizer.encode(text)
    except Exception as error:  # a word that is not in a vocabulary without a token for unknown words, half a character
        raise InputError(
            f"the tokenizer has no tokens for {text!a:.80} ({error!s:.200}): give text in characters of Unicode, "
            "and a tokenizer with a token for unknown words"
        ) from error
    if not encoding.ids:
        raise InputError(f"the text {text!a:.80} holds no token: leave empty texts out")
    return encoding
