"""From texts to the token ids of a network: the tokenizer is data, and travels in the bundle."""

import hashlib
import logging
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import NamedInput
from dynamic.data.text.text_encoder import TextEncoder
from dynamic.data.text.text_inputs import (
    MOST_LENGTH,
    check_size,
    check_values,
    input_kinds,
    kinds_of,
    labels_of,
    lengths_of,
    setting,
    texts_of,
)
from dynamic.data.text.tokenizer_library import import_tokenizers, read_tokenizer, tokenizer_of, written
from dynamic.policies.errors import CorruptError, DynamicError, InputError, SettingError
from dynamic.policies.validation.fields import flag, mapping, text, whole

TOKENIZER = "tokenizer.json"  # in a bundle
TOKENS = "tokens"  # the step in its manifest

USUAL = ("input_ids", "attention_mask")  # what every encoder takes
_PADDING = (
    "[PAD]",
    "<pad>",
    "<|padding|>",
    "<|endoftext|>",
)  # tokens that fill a row, in the order they are looked for
_MOST_ID = 2**31 - 1

logger = logging.getLogger("dynamic")

Ids = NDArray[np.int64]


_VALUES: dict[str, Callable[[Any], list[int]]] = {
    "input_ids": lambda encoding: encoding.ids,
    "attention_mask": lambda encoding: encoding.attention_mask,
    "token_type_ids": lambda encoding: encoding.type_ids,
}


@dataclass(frozen=True)
class TextPreprocess:
    """A tokenizer, from texts to token ids, on the library `tokenizers`.

    Each row is padded to the longest text of its batch where the network takes any length (`wrap` and `build` with
    `dynamic_shapes`), and else to the one length that it takes.

    Args:
        tokenizer: The tokenizer as JSON, as the library writes it. Padding and truncation in it are not used.
        truncate: Whether a text that is longer than the network takes is cut. Otherwise it is an InputError.
        pad_id: The id that fills rows. It counts for nothing where the network reads the mask.
        pad_to_multiple_of: Rows are padded to a multiple of so many tokens where the network takes any length. OpenVINO
            prepares for every length that it meets, so 8 means an eighth of these waits, for a little more padding.

    Raises:
        InputError: The tokenizer does not read, fails at every text, or has no row for `pad_id`.
        SettingError: `truncate`, `pad_id` or `pad_to_multiple_of` is of another type or out of range.

    Example:
        >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
        >>> texts(["lights off", "turn the lights off"])["attention_mask"].tolist()
        [[1, 1, 0, 0], [1, 1, 1, 1]]
    """

    for_images: ClassVar[bool] = False
    limits_values: ClassVar[bool] = True

    tokenizer: str = field(repr=False)
    truncate: bool = False
    pad_id: int = 0
    pad_to_multiple_of: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, str):
            raise InputError(f"tokenizer is a {type(self.tokenizer).__name__}: use TextPreprocess.of(tokenizer)")
        if not isinstance(self.truncate, bool):
            raise SettingError(f"truncate={self.truncate!r} must be True or False")
        object.__setattr__(self, "pad_id", setting(self.pad_id, "pad_id", 0, _MOST_ID))
        multiple = setting(self.pad_to_multiple_of, "pad_to_multiple_of", 1, MOST_LENGTH)
        object.__setattr__(self, "pad_to_multiple_of", multiple)
        try:
            import_tokenizers()
        except DynamicError:  # a bundle can be looked at without. `check_packages` says what to install
            return
        if not self._encoder.has(self.pad_id):
            raise InputError(
                f"pad_id={self.pad_id} is no id of this tokenizer, whose ids end at {self._encoder.vocabulary - 1}: "
                "give the id of its token for padding"
            )

    @classmethod
    def from_file(cls, path: str | Path, *, truncate: bool = False, pad_to_multiple_of: int = 1) -> Self:
        """Read a tokenizer file.

        Args:
            path: `tokenizer.json` as the libraries `tokenizers` and `transformers` write it.
            truncate: Whether a text that is longer than the network takes is cut.
            pad_to_multiple_of: Rows are padded to a multiple of so many tokens, as in the class.

        Returns:
            The preprocessing.

        Raises:
            InputError: The file is missing or does not read.
            DynamicError: The library `tokenizers` is not installed.

        Example:
            >>> dynamic.TextPreprocess.from_file("tokenizer.json").vocabulary
            7
        """
        try:
            content = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise InputError(f"{path} does not read ({error}): give the file tokenizer.json of the network") from error
        return cls.of(read_tokenizer(content), truncate=truncate, pad_to_multiple_of=pad_to_multiple_of)

    @classmethod
    def of(cls, tokenizer: Any, *, truncate: bool = False, pad_to_multiple_of: int = 1) -> Self:
        """Take a tokenizer.

        Args:
            tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of `transformers`.
            truncate: Whether a text that is longer than the network takes is cut.
            pad_to_multiple_of: Rows are padded to a multiple of so many tokens, as in the class.

        Returns:
            The preprocessing.

        Raises:
            InputError: It is neither.
            DynamicError: The library `tokenizers` is not installed.

        Example:
            >>> import tokenizers
            >>> own = tokenizers.Tokenizer.from_file("tokenizer.json")
            >>> dynamic.TextPreprocess.of(own).vocabulary
            7
        """
        inner = getattr(tokenizer, "backend_tokenizer", tokenizer)
        if not callable(getattr(inner, "to_str", None)):
            raise InputError(
                f"a {type(tokenizer).__name__} is no tokenizer that can travel: give a tokenizers.Tokenizer, a fast "
                "tokenizer of transformers, or TextPreprocess.from_file(path)"
            )
        own = tokenizer_of(written(inner))
        padding = getattr(inner, "padding", None) or {}
        padding_ids = (own.token_to_id(token) for token in _PADDING)
        pad_id = padding.get("pad_id", next((number for number in padding_ids if number is not None), 0))
        return cls(written(own), truncate, pad_id, pad_to_multiple_of)

    @property
    def vocabulary(self) -> int:
        """How many rows a table of embeddings needs for these tokens: the largest id and one."""
        return self._encoder.vocabulary

    @property
    def files(self) -> dict[str, bytes]:
        """The files that travel in a bundle, by name."""
        return {TOKENIZER: self.tokenizer.encode()}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest. The tokenizer is a file of its own, and its hash is here."""
        sha256 = hashlib.sha256(self.tokenizer.encode()).hexdigest()
        settings = {name: getattr(self, name) for name in ("truncate", "pad_id", "pad_to_multiple_of")}
        return {"steps": [{"step": TOKENS, "tokenizer": sha256, **settings}]}

    @classmethod
    def from_json(cls, data: Any, content: bytes) -> Self:
        """Read what `to_json` and `files` returned.

        Args:
            data: The plain data.
            content: Of the file `tokenizer.json`.

        Returns:
            The preprocessing.

        Raises:
            CorruptError: The data do not read, or belong to another tokenizer.

        Example:
            >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
            >>> dynamic.TextPreprocess.from_json(texts.to_json(), texts.files["tokenizer.json"]) == texts
            True
        """
        try:
            (step,) = data["steps"]
            entry = mapping(step, TOKENS, ("step", "tokenizer", "truncate", "pad_id", "pad_to_multiple_of"))
            if hashlib.sha256(content).hexdigest() != text(entry["tokenizer"], "tokenizer", 64):
                raise ValueError(f"{TOKENIZER} is another tokenizer")
            truncate, pad_id = flag(entry["truncate"], "truncate"), whole(entry["pad_id"], "pad_id", 0, _MOST_ID)
            multiple = whole(entry["pad_to_multiple_of"], "pad_to_multiple_of", 1, MOST_LENGTH)
            return cls(content.decode(), truncate, pad_id, multiple)
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptError(f"preprocessing of texts does not read ({error}): build the bundle again") from error

    def __call__(self, texts: Any, length: int | None = None, *, inputs: Sequence[str] = USUAL) -> dict[str, Ids]:
        """Tokenize texts.

        Args:
            texts: A string, or a list of strings.
            length: Number of tokens `N` of each row, special tokens included. None: that of the longest text.
            inputs: Which of `input_ids`, `attention_mask` (0 at padding) and `token_type_ids` to make.

        Returns:
            The inputs by name, int64 `[B, N]` each.

        Raises:
            InputError: Something else than texts, a text of more than `length` tokens without `truncate`, a text
                without tokens, or an unknown name in `inputs`. Without `truncate`, a text may have 100 characters for
                each of `length` tokens and always 10,000, and a text of any length 1,000,000.
            SettingError: `length` is out of range.

        Example:
            >>> dynamic.TextPreprocess.from_file("tokenizer.json")("turn the lights off", length=6)["input_ids"].shape
            (1, 6)
        """
        rows, _ = texts_of(texts)
        names = kinds_of(inputs)
        length = None if length is None else setting(length, "length", 1, MOST_LENGTH)
        return self._padded(rows, names, length, length)

    def batches(
        self,
        texts: Sequence[str],
        labels: Sequence[int] | NDArray[Any],
        *,
        size: int = 64,
        length: int | None = None,
        inputs: Sequence[str] = USUAL,
    ) -> list[tuple[dict[str, Ids], Ids]]:
        """Make batches for `fit` and `build`.

        Args:
            texts: All texts.
            labels: The class of each.
            size: Texts of a batch.
            length: Tokens of each row, `N`. None: the longest of each batch.
            inputs: Which inputs to make, as for a call.

        Returns:
            Pairs of inputs by name, `[B, N]`, and labels `[B]`, in the order of the texts.

        Raises:
            InputError: There is not one label, a whole number, for each text, or a text does not fit.
            SettingError: `size` or `length` is out of range.

        Example:
            >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
            >>> [len(labels) for _, labels in texts.batches(["off", "lights off", "turn off"], [0, 1, 1], size=2)]
            [2, 1]
        """
        rows, single = texts_of(texts)
        if single:
            raise InputError(f"texts={rows[0][:60]!a:.60} is one text: give a list, with a label for each")
        numbers = labels_of(labels, len(rows))
        size = setting(size, "size", 1, _MOST_ID)
        starts = range(0, len(rows), size)
        return [(self(rows[s : s + size], length, inputs=inputs), numbers[s : s + size]) for s in starts]

    def arrays(self, x: Any, inputs: Sequence[NamedInput]) -> Mapping[str, NDArray[Any]]:
        """Make the inputs of a network.

        Args:
            x: A string, or a list of strings.
            inputs: What the network takes.

        Returns:
            Arrays `[B, N]` by name.

        Raises:
            InputError: As for a call, or a text is longer than the network takes.

        Example:
            >>> from dynamic.engines.contract import InputSpec
            >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
            >>> texts.arrays("lights off", [InputSpec("input_ids", (4,), "int64")])["input_ids"].tolist()
            [[4, 5, 0, 0]]
        """
        texts, _ = texts_of(x)
        kinds = input_kinds(inputs)
        arrays = self._padded(texts, set(kinds.values()), *lengths_of(inputs))
        return {i.name: arrays[kinds[i.name]].astype(i.dtype, copy=False) for i in inputs}

    def check_arrays(self, named: Mapping[str, NDArray[Any]]) -> None:
        """Check token ids and masks that a user gives by name.

        An id beyond the table of embeddings makes an engine fail, and one below 0 counts from its end.

        Args:
            named: Arrays by name, `[B, N]`.

        Raises:
            InputError: An id is none of the tokenizer's, a mask holds another number than 0 and 1, or a row no token.

        Example:
            >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
            >>> texts.check_arrays(texts("turn the lights off"))
        """
        check_values(named, self.vocabulary)

    def check(self, x: Any, shape: Sequence[Any] = ()) -> None:
        """Check that these are texts, without tokenizing them.

        Args:
            x: What may be texts.
            shape: Of the network's input. It is not used, since the length of a text is known by its tokens alone.

        Raises:
            InputError: They are something else.

        Example:
            >>> dynamic.TextPreprocess.from_file("tokenizer.json").check(["lights on", "lights off"])
        """
        texts_of(x)

    def is_single(self, x: Any) -> bool:
        """Return whether this is one text, and not a list.

        Args:
            x: Texts as for a call.

        Returns:
            Whether it is one.

        Raises:
            InputError: It is neither.

        Example:
            >>> dynamic.TextPreprocess.from_file("tokenizer.json").is_single(["lights off"])
            False
        """
        return texts_of(x)[1]

    def check_packages(self) -> None:
        """Check that texts can be tokenized here.

        Raises:
            DynamicError: The library `tokenizers` is not installed.
        """
        import_tokenizers()

    def _padded(
        self,
        texts: Sequence[str],
        names: Collection[str],
        least: int | None,
        most: int | None,
        allowed: Container[int] | None = None,
    ) -> dict[str, Ids]:
        """The rows of texts, at least and at most so many tokens long, of a length that is allowed."""
        # one by one: the library's batches start threads, which are slower below some hundred texts
        pairs = [self._encoder.encode(one, most, self.truncate) for one in texts]
        self._note(sum(cut for _, cut in pairs), len(pairs), most)
        encodings = [encoding for encoding, _ in pairs]
        length = max(least or 1, *(len(encoding) for encoding in encodings))
        length = min(-(-length // self.pad_to_multiple_of) * self.pad_to_multiple_of, most or MOST_LENGTH)
        while allowed is not None and length not in allowed and length < (most or MOST_LENGTH):
            length += 1
        check_size(len(encodings), length)
        arrays = {name: np.zeros((len(encodings), length), np.int64) for name in names}
        if "input_ids" in arrays:
            arrays["input_ids"][:] = self.pad_id
        for row, encoding in enumerate(encodings):
            for name, array in arrays.items():
                array[row, : len(encoding)] = _VALUES[name](encoding)
        return arrays

    @cached_property
    def _encoder(self) -> TextEncoder:
        """The tokenizer, loaded."""
        return TextEncoder(self.tokenizer)

    @cached_property
    def _noted(self) -> list[int]:
        """Holds something once a cut was logged."""
        return []

    def _note(self, cut: int, count: int, most: int | None) -> None:
        """Log that texts were cut: the first time alone, and without a word of theirs, which may be private."""
        if cut and not self._noted:
            self._noted.append(cut)
            logger.warning(
                "%d of %d texts cut to the %d tokens that the network takes. Texts that are cut later are not logged",
                cut,
                count,
                most,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {one.name: getattr(self, one.name) for one in fields(self)}  # copies and other processes load their own


def is_text(data: Any) -> bool:
    """Whether plain data of a manifest are those of a text's preprocessing."""
    try:
        return bool(data["steps"][0]["step"] == TOKENS)
    except (KeyError, TypeError, IndexError):
        return False
