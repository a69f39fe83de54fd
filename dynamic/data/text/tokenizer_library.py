"""The library `tokenizers`: loaded where a text comes, and with its failures in words.

It is written in Rust. A panic there is a `PanicException`, which derives from BaseException alone and ends a worker.
"""

from typing import Any

from dynamic.policies.errors import DynamicError, InputError

_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit)  # no failures of the library
_REMEDY = (
    "give the tokenizer.json that tokenizer.save(path) of the library tokenizers, or save_pretrained(folder) of "
    "transformers wrote"
)


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
    except _ENDS:
        raise
    except BaseException as error:  # the library raises plain exceptions, and panics
        raise InputError(f"the tokenizer does not read ({error!s:.200}): {_REMEDY}") from error


def written(tokenizer: Any) -> str:
    """The JSON text of a tokenizer. InputError where it has none: a part of it may be written in Python."""
    try:
        return str(tokenizer.to_str())
    except _ENDS:
        raise
    except BaseException as error:
        raise InputError(f"the tokenizer cannot be written ({error!s:.200}): {_REMEDY}") from error


def tokenizer_of(text: str) -> Any:
    """The same as `read_tokenizer`, without padding or truncation."""
    tokenizer = read_tokenizer(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encoded(tokenizer: Any, text: str, *, special: bool = True) -> Any:
    """One text in tokens, with the special ones or without. InputError where the tokenizer has none for it."""
    try:
        return tokenizer.encode(text, add_special_tokens=special)
    except _ENDS:
        raise
    except Exception as error:  # a word that is not in a vocabulary without a token for unknown words, half a character
        raise InputError(
            f"the tokenizer has no tokens for {text[:80]!a:.80} ({error!s:.200}): give text in characters of Unicode, "
            "and a tokenizer with a token for unknown words"
        ) from error
    except BaseException as error:
        raise InputError(f"the tokenizer failed at {text[:80]!a:.80} ({error!s:.200}): {_REMEDY}") from error


def with_special(tokenizer: Any, encoding: Any = None) -> Any:
    """An encoding without special tokens, with them. None: the special tokens alone. InputError on a failure."""
    try:
        empty = import_tokenizers().Encoding.merge([])
        return tokenizer.post_process(empty if encoding is None else encoding)
    except _ENDS:
        raise
    except BaseException as error:
        raise InputError(f"the tokenizer cannot add its special tokens ({error!s:.200}): {_REMEDY}") from error


def check_tokenizer(tokenizer: Any) -> None:
    """Raises InputError on a tokenizer that fails at any text. It may have no token for the word that is tried."""
    try:
        tokenizer.encode("on")
    except _ENDS:
        raise
    except Exception:  # no token for this word: another text may have some
        return
    except BaseException as error:
        raise InputError(f"the tokenizer fails at every text ({error!s:.200}): {_REMEDY}") from error
