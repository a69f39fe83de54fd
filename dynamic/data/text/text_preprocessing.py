"""From texts to the token ids of a network: the tokenizer is data, and travels in the bundle."""

import hashlib
import logging
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from dynamic.data.arrays import NamedInput
from dynamic.data.text.tokenizer_library import encoded, read_tokenizer, tokenizer_of
from dynamic.policies.errors import CorruptError, InputError, SettingError
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
_MOST_LENGTH = 2**24

logger = logging.getLogger("dynamic")

Ids = NDArray[np.int64]


_KINDS: dict[str, Callable[[Any], list[int]]] = {
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

    Raises:
        InputError: The tokenizer does not read, or `pad_id` is none of its ids.
        DynamicError: The library `tokenizers` is not installed.

    Example:
        >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
        >>> texts(["lights off", "turn the lights off"])["attention_mask"].tolist()
        [[1, 1, 0, 0], [1, 1, 1, 1]]
    """

    for_images: ClassVar[bool] = False

    tokenizer: str = field(repr=False)
    truncate: bool = False
    pad_id: int = 0
    _loaded: dict[int | None, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.tokenizer, str):
            raise InputError(f"tokenizer is a {type(self.tokenizer).__name__}: use TextPreprocess.of(tokenizer)")
        if not isinstance(self.truncate, bool):
            raise SettingError(f"truncate={self.truncate!r} must be True or False")
        if isinstance(self.pad_id, bool) or not isinstance(self.pad_id, int) or not 0 <= self.pad_id <= _MOST_ID:
            raise SettingError(f"pad_id={self.pad_id!r} must be the id of a token, from 0")

    @classmethod
    def from_file(cls, path: str | Path, *, truncate: bool = False) -> Self:
        """Read a tokenizer file.

        Args:
            path: `tokenizer.json` as the libraries `tokenizers` and `transformers` write it.
            truncate: Whether a text that is longer than the network takes is cut.

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
        return cls.of(read_tokenizer(content), truncate=truncate)

    @classmethod
    def of(cls, tokenizer: Any, *, truncate: bool = False) -> Self:
        """Take a tokenizer.

        Args:
            tokenizer: A `tokenizers.Tokenizer`, or a fast tokenizer of `transformers`.
            truncate: Whether a text that is longer than the network takes is cut.

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
        own = tokenizer_of(inner.to_str())
        padding = getattr(inner, "padding", None) or {}
        numbers = (own.token_to_id(token) for token in _PADDING)
        pad_id = padding.get("pad_id", next((number for number in numbers if number is not None), 0))
        return cls(own.to_str(), truncate, pad_id)

    @property
    def vocabulary(self) -> int:
        """How many rows a table of embeddings needs for these tokens: the largest id and one."""
        ids = self._at(None).get_vocab(with_added_tokens=True).values()
        return int(max([*ids, self.pad_id])) + 1

    @property
    def files(self) -> dict[str, bytes]:
        """The files that travel in a bundle, by name."""
        return {TOKENIZER: self.tokenizer.encode()}

    def to_json(self) -> dict[str, Any]:
        """Return plain data for a manifest. The tokenizer is a file of its own, and its hash is here."""
        sha256 = hashlib.sha256(self.tokenizer.encode()).hexdigest()
        return {"steps": [{"step": TOKENS, "tokenizer": sha256, "truncate": self.truncate, "pad_id": self.pad_id}]}

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
            entry = mapping(step, TOKENS, ("step", "tokenizer", "truncate", "pad_id"))
            if hashlib.sha256(content).hexdigest() != text(entry["tokenizer"], "tokenizer", 64):
                raise ValueError(f"{TOKENIZER} is another tokenizer")
            return cls(
                content.decode(), flag(entry["truncate"], "truncate"), whole(entry["pad_id"], "pad_id", 0, _MOST_ID)
            )
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
                without tokens, or an unknown name in `inputs`.

        Example:
            >>> dynamic.TextPreprocess.from_file("tokenizer.json")("turn the lights off", length=6)["input_ids"].shape
            (1, 6)
        """
        rows, _ = _texts(texts)
        if unknown := [name for name in inputs if name not in _KINDS]:
            raise InputError(f"inputs={unknown!r:.80}: texts become {list(_KINDS)}")
        arrays = self._padded(rows, length, length)
        return {name: arrays[name] for name in inputs}

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
            InputError: There is not one label for each text, or a text does not fit.

        Example:
            >>> texts = dynamic.TextPreprocess.from_file("tokenizer.json")
            >>> [len(labels) for _, labels in texts.batches(["off", "lights off", "turn off"], [0, 1, 1], size=2)]
            [2, 1]
        """
        numbers = np.asarray(labels)
        if numbers.shape != (len(texts),):
            raise InputError(f"labels have shape {list(numbers.shape)} for {len(texts)} texts: give one for each")
        starts = range(0, len(texts), size)
        return [
            (self(list(texts[s : s + size]), length, inputs=inputs), numbers[s : s + size].astype(np.int64))
            for s in starts
        ]

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
        texts, _ = _texts(x)
        kinds = input_kinds(inputs)
        arrays = self._padded(texts, *_lengths(inputs))
        return {i.name: arrays[kinds[i.name]].astype(i.dtype, copy=False) for i in inputs}

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
        _texts(x)

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
        return _texts(x)[1]

    def check_packages(self) -> None:
        """Check that texts can be tokenized here.

        Raises:
            DynamicError: The library `tokenizers` is not installed.
        """
        self._at(None)

    def _padded(
        self, texts: Sequence[str], least: int | None, most: int | None, allowed: Container[int] | None = None
    ) -> dict[str, Ids]:
        """The rows of texts, at least and at most so many tokens long, of a length that is allowed."""
        encodings = list(self._encoded(texts, most))
        length = max(least or 1, *(len(encoding.ids) for encoding in encodings))
        while allowed is not None and length not in allowed and length < (most or _MOST_LENGTH):
            length += 1
        arrays = {name: np.zeros((len(encodings), length), np.int64) for name in _KINDS}
        arrays["input_ids"][:] = self.pad_id
        for row, encoding in enumerate(encodings):
            for name, values in _KINDS.items():
                arrays[name][row, : len(encoding.ids)] = values(encoding)
        return arrays

    def _encoded(self, texts: Sequence[str], most: int | None) -> Iterator[Any]:
        tokenizer = self._at(most if self.truncate else None)
        for one in texts:  # one by one: the library's batches start threads, which are slower below some hundred texts
            encoding = encoded(tokenizer, one)
            if most is not None and len(encoding.ids) > most:
                raise InputError(
                    f"the text {one!a:.80} has {len(encoding.ids)} tokens, and the network takes up to {most}: shorten "
                    "it, or build with TextPreprocess.from_file(path, truncate=True)"
                )
            if encoding.overflowing:
                logger.warning("a text is cut to the %d tokens that the network takes: %.80s", most, ascii(one))
            yield encoding

    def _at(self, most: int | None) -> Any:
        """The tokenizer that cuts texts at `most` tokens."""
        if most not in self._loaded:
            tokenizer = tokenizer_of(self.tokenizer)
            if most is not None:
                tokenizer.enable_truncation(most)
            self._loaded[most] = tokenizer
        return self._loaded[most]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": {}}  # copies and other processes load their own


def is_text(data: Any) -> bool:
    """Whether plain data of a manifest are those of a text's preprocessing."""
    try:
        return bool(data["steps"][0]["step"] == TOKENS)
    except (KeyError, TypeError, IndexError):
        return False


def input_kinds(inputs: Sequence[NamedInput]) -> dict[str, str]:
    """For each input of a network, which of `input_ids`, `attention_mask` and `token_type_ids` it takes.

    Names decide. A network with one input of any name takes the ids. InputError where an input is none of them.
    """
    if len(inputs) == 1 and inputs[0].name not in _KINDS:
        kinds = {inputs[0].name: "input_ids"}
    else:
        kinds = {i.name: i.name for i in inputs}
    for i in inputs:
        if kinds[i.name] not in _KINDS or len(i.shape) != 1:
            raise InputError(
                f"the network takes {i.name!r} [B, {', '.join(map(str, i.shape))}], and texts become {list(_KINDS)} "
                "[B, N]: put a module around it whose forward takes these, or build with preprocess=None"
            )
    return kinds


def _lengths(inputs: Sequence[NamedInput]) -> tuple[int, int | None, Container[int] | None]:
    """The least and the largest number of tokens of a row, and the numbers between that are allowed (None: all)."""
    side: Any = inputs[0].sides[0]
    if isinstance(side, int):
        return side, side, None
    return max(1, side.size(side.min)), None if side.max is None else side.size(side.max), side


def _texts(x: Any) -> tuple[list[str], bool]:
    """Texts, and whether they were one alone. InputError on anything else."""
    if isinstance(x, np.ndarray) and x.dtype.kind in "UO" and x.ndim <= 1:
        x = x.tolist()
    if isinstance(x, str):
        return [x], True
    if isinstance(x, (list, tuple)):
        if not x:
            raise InputError("no texts: give at least one")
        other = next((one for one in x if not isinstance(one, str)), None)
        if other is None:
            return list(x), False
        raise InputError(f"a list of texts holds a {type(other).__name__} {other!r:.60}: give strings alone")
    hint = ": decode it, content.decode()" if isinstance(x, bytes) else ""
    raise InputError(
        f"a {type(x).__name__} is no text{hint}. This bundle takes a string or a list of strings, or token ids by "
        "name, as {'input_ids': array, ...}"
    )
