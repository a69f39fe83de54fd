"""Long texts: refused within a limit of characters, or cut as the library's own truncation cuts them."""

from typing import Any

import numpy as np
import pytest
from support.networks.texts import WORDS, tokenizer
from tokenizers import Tokenizer
from tokenizers.models import BPE, WordPiece
from tokenizers.pre_tokenizers import BertPreTokenizer, ByteLevel
from tokenizers.processors import BertProcessing, RobertaProcessing, TemplateProcessing
from tokenizers.trainers import BpeTrainer

import dynamic
from dynamic.data.text import tokenizer_library
from dynamic.policies.errors import InputError

EVERY = ("input_ids", "attention_mask", "token_type_ids")


def both_ends() -> Any:
    """[CLS] [CLS] ... [SEP], of another type of token."""
    own = tokenizer()
    own.post_processor = TemplateProcessing(
        single="[CLS]:1 [CLS]:1 $A:0 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return own


def word_pieces() -> Tokenizer:
    """As BERT's: a word of more than 100 letters is unknown, and characters of Chinese are words."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "turn", "on", "##on", "the", "##s", "\u4e00"]
    own = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    own.pre_tokenizer, own.post_processor = BertPreTokenizer(), BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return own


def bytes_of_roberta() -> Tokenizer:
    own = Tokenizer(BPE())
    own.pre_tokenizer = ByteLevel(add_prefix_space=True)
    trainer = BpeTrainer(vocab_size=300, special_tokens=["<s>", "<pad>", "</s>"], show_progress=False)
    own.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    own.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return own


KINDS = [tokenizer, lambda: tokenizer(special=False), both_ends, word_pieces, bytes_of_roberta]
TEXTS = [
    "on",
    "turn the lights off please",
    "turn the lights off please " * 40,
    "turn the  lights\toff\n" * 3000,
    " " * 30_000 + "turn the lights off please " * 40,
    "lights" * 5000 + " on the music" * 5000,
    "on " + "\u4e00" * 20_000,
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [4, 6, 17, 300])
def test_cut_as_the_library_truncates(kind: Any, length: int) -> None:
    made = dynamic.TextPreprocess.of(kind(), truncate=True)
    own = kind()
    own.enable_truncation(length)
    for text in TEXTS:
        expected = own.encode(text)
        found = made(text, inputs=EVERY, length=length)
        count = len(expected.ids)
        assert found["input_ids"][0].tolist() == expected.ids + [made.pad_id] * (length - count)
        assert found["attention_mask"][0].tolist() == expected.attention_mask + [0] * (length - count)
        assert found["token_type_ids"][0].tolist() == expected.type_ids + [0] * (length - count)


def test_the_end_of_a_text_that_is_cut_is_not_tokenized() -> None:
    long = "turn the lights off please " * 200_000 + "half \ud800 a character"
    cut = dynamic.TextPreprocess.of(tokenizer(), truncate=True)
    assert cut(long, 6)["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3]]
    with pytest.raises(InputError, match="has no tokens for"):
        cut(long[-23:], 6)
    blank = dynamic.TextPreprocess.of(tokenizer(special=False), truncate=True)
    with pytest.raises(InputError, match="holds no token"):
        blank(" " * 3_000_000 + "on", 6)


def test_a_limit_in_characters() -> None:
    made = dynamic.TextPreprocess.of(tokenizer())
    assert made(" " * 9_998 + "on", 6)["input_ids"].tolist() == [[2, 8, 3, 0, 0, 0]]
    with pytest.raises(InputError, match=r"has 10001 characters, and the limit is 10000 for the 6 tokens.*truncate=Tr"):
        made(" " * 9_999 + "on", 6)
    assert made(" " * 49_998 + "on", 500)["input_ids"].shape == (1, 500)
    with pytest.raises(InputError, match="has 50001 characters, and the limit is 50000 for the 500 tokens") as raised:
        made("turn" * 12_500 + "s", 500)
    assert len(str(raised.value)) < 300
    assert made("on " * 100_000)["input_ids"].shape == (1, 100_002)
    for truncate in (False, True):
        with pytest.raises(InputError, match=r"has 1000001 characters, and the limit is 1000000: shorten it$"):
            dynamic.TextPreprocess.of(tokenizer(), truncate=truncate)("on " * 333_333 + "on")


def test_no_room_beside_the_special_tokens() -> None:
    cut = dynamic.TextPreprocess.of(tokenizer(), truncate=True)
    for length in (1, 2):
        with pytest.raises(InputError, match=f"takes {length} tokens, and the tokenizer adds 2 special.*length from 3"):
            cut("on", length)
    assert cut("turn on", 3)["input_ids"].tolist() == [[2, 4, 3]]
    assert cut("", 2)["input_ids"].tolist() == [[2, 3]]


def test_one_tokenizer_is_loaded_for_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = dynamic.TextPreprocess.of(tokenizer(), truncate=True)
    made = dynamic.TextPreprocess.from_json(stored.to_json(), stored.files["tokenizer.json"])
    monkeypatch.setattr(tokenizer_library, "read_tokenizer", None)  # whoever loads another fails
    for length in range(3, 23):
        assert np.count_nonzero(made("on " * 30, length)["attention_mask"]) == length
    assert made.vocabulary == 14
