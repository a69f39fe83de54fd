"""A tokenizer that is loaded, once for every length: texts within limits, cut where that is asked for."""

from functools import cached_property
from typing import Any

from dynamic.data.text.tokenizer_library import check_tokenizer, encoded, tokenizer_of, with_special
from dynamic.policies.errors import InputError

MOST_LETTERS = 1_000_000  # of one text: some 2 s
_LETTERS, _LETTERS_A_TOKEN = 10_000, 100  # a text of N tokens may have so many, or so many for each
_FIRST, _FIRST_A_TOKEN, _GROWTH = 1000, 16, 4  # of a text that is cut, so many are looked at first
_MARGIN = 16  # tokens at the end of a part of a text, which its rest could change


class TextEncoder:
    """A tokenizer without padding and truncation of its own.

    Args:
        tokenizer: As JSON.

    Raises:
        InputError: It does not read, or fails at any text.
        DynamicError: The library `tokenizers` is not installed.
    """

    def __init__(self, tokenizer: str) -> None:
        self.tokenizer = tokenizer_of(tokenizer)
        check_tokenizer(self.tokenizer)
        self.special_ids: list[int] = with_special(self.tokenizer).ids  # what each text gets beside its own

    @cached_property
    def vocabulary(self) -> int:
        """The largest id that a text may get, and one."""
        ids = self.tokenizer.get_vocab(with_added_tokens=True).values()
        return int(max([*ids, *self.special_ids], default=-1)) + 1

    def has(self, number: int) -> bool:
        """Whether a table of embeddings for these tokens has this row. Quick where it is a token's."""
        return self.tokenizer.id_to_token(number) is not None or number < self.vocabulary

    def encode(self, text: str, most: int | None, truncate: bool) -> tuple[Any, bool]:
        """Tokenize one text.

        Args:
            text: The text.
            most: Tokens that it may have, special tokens included. None: any number.
            truncate: Whether a longer text is cut.

        Returns:
            The library's encoding, and whether the text was cut.

        Raises:
            InputError: The text is too long, has no tokens, or there is no room beside the special tokens.
        """
        if truncate and most is not None:
            return self._cut(text, most)
        limit = MOST_LETTERS if most is None else min(MOST_LETTERS, max(_LETTERS, _LETTERS_A_TOKEN * most))
        if len(text) > limit:
            takes = "" if most is None else f" for the {most} tokens that the network takes"
            raise InputError(
                f"the text {text[:60]!a:.60} has {len(text)} characters, and the limit is {limit}{takes}: shorten it"
                f"{'' if most is None else ', or build with TextPreprocess.from_file(path, truncate=True)'}"
            )
        encoding = encoded(self.tokenizer, text)
        _check(encoding, text)
        if most is not None and len(encoding) > most:
            raise InputError(
                f"the text {text[:60]!a:.60} has {len(encoding)} tokens, and the network takes up to {most}: shorten "
                "it, or build with TextPreprocess.from_file(path, truncate=True)"
            )
        return encoding, False

    def _cut(self, text: str, most: int) -> tuple[Any, bool]:
        """The first tokens of a text as the library's truncation has them. Its end is not tokenized."""
        size = _FIRST + _FIRST_A_TOKEN * most
        while True:
            part = _part(text, min(size, MOST_LETTERS))
            encoding = encoded(self.tokenizer, part)
            if len(part) == len(text) and len(encoding) <= most:
                _check(encoding, text)
                return encoding, False
            if len(part) == len(text) or len(encoding) >= most + _MARGIN or size >= MOST_LETTERS:
                break
            size *= _GROWTH
        room = most - len(self.special_ids)
        if room < 1:
            raise InputError(
                f"the network takes {most} tokens, and the tokenizer adds {len(self.special_ids)} special tokens to "
                f"each text: give a length from {len(self.special_ids) + 1}"
            )
        first = encoded(self.tokenizer, part, special=False)
        first.truncate(room)
        encoding = with_special(self.tokenizer, first)
        _check(encoding, text)
        return encoding, True


def _part(text: str, size: int) -> str:
    """The first letters of a text, up to the last white space among them so that no word is cut."""
    if len(text) <= size:
        return text
    words = text[:size].rsplit(None, 1)
    return words[0] if len(words) == 2 else text[:size]


def _check(encoding: Any, text: str) -> None:
    """Raises InputError on a text without tokens."""
    if not encoding.ids:
        raise InputError(f"the text {text[:60]!a:.60} holds no token: leave empty texts out")
