"""Texts to token ids: by hand, against the library's own padding, and what is refused."""

import copy
import hashlib
import json
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from support.networks.texts import tokenizer
from tokenizers.processors import TemplateProcessing

import dynamic
from dynamic.data.text.tokenizer_library import encoded
from dynamic.engines.contract import InputSpec
from dynamic.engines.inputs.dimensions import DimRange
from dynamic.policies.errors import CorruptError, InputError, SettingError

INPUTS = (InputSpec("input_ids", (6,), "int64"), InputSpec("attention_mask", (6,), "float32"))


def texts(truncate: bool = False, **options: bool) -> dynamic.TextPreprocess:
    return dynamic.TextPreprocess.of(tokenizer(**options), truncate=truncate)


def test_tokens_by_hand() -> None:
    every = ("input_ids", "attention_mask", "token_type_ids")
    found = texts()(["Turn the lights off", "music"], inputs=every)
    assert list(texts()("on")) == ["input_ids", "attention_mask"]
    with pytest.raises(InputError, match="inputs=\\['pixels'\\]: texts become"):
        texts()("on", inputs=["pixels"])
    assert found["input_ids"].tolist() == [[2, 4, 5, 6, 7, 3], [2, 11, 3, 0, 0, 0]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]]
    assert found["token_type_ids"].tolist() == [[0] * 6] * 2
    assert all(array.dtype == np.int64 for array in found.values())


def test_as_the_library_pads_and_truncates() -> None:
    own = tokenizer()
    batch = ["turn the lights off please", "on", "play some loud unheard music"]
    own.enable_padding(length=8)
    padded = texts()(batch, length=8)
    encodings = own.encode_batch(batch)
    assert padded["input_ids"].tolist() == [encoding.ids for encoding in encodings]
    assert padded["attention_mask"].tolist() == [encoding.attention_mask for encoding in encodings]
    own.enable_truncation(5)
    own.enable_padding(length=5)
    cut = texts(truncate=True)(batch, length=5)
    assert cut["input_ids"].tolist() == [encoding.ids for encoding in own.encode_batch(batch)]


def test_padding_and_truncation_of_the_file_are_not_used(tmp_path: Path) -> None:
    own = tokenizer()
    own.enable_padding(length=20, pad_id=1)
    own.enable_truncation(3)
    own.save(str(tmp_path / "tokenizer.json"))
    made = dynamic.TextPreprocess.from_file(tmp_path / "tokenizer.json")
    assert made(["turn the lights", "on"])["input_ids"].tolist() == [[2, 4, 5, 6, 3], [2, 8, 3, 1, 1]]
    assert made.pad_id == 1


def test_the_inputs_of_a_network() -> None:
    arrays = texts().arrays("turn the lights", INPUTS)
    assert texts().is_single("turn the lights")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": [[2, 4, 5, 6, 3, 0]],
        "attention_mask": [[1, 1, 1, 1, 1, 0]],
    }
    assert arrays["attention_mask"].dtype == np.float32
    arrays = texts().arrays(["on"], (InputSpec("tokens", (4,), "int32"),))
    assert not texts().is_single(["on"])
    assert arrays["tokens"].tolist() == [[2, 8, 3, 0]]
    assert arrays["tokens"].dtype == np.int32
    for array in (np.array("on"), np.array(["on", "off"]), ("on", "off")):
        assert texts().is_single(array) == (np.ndim(array) == 0)
        assert texts().arrays(array, INPUTS)["input_ids"][0].tolist() == [2, 8, 3, 0, 0, 0]


def test_padded_to_the_longest_of_the_batch_where_any_length_is_taken() -> None:
    def inputs(**span: int) -> tuple[InputSpec, ...]:
        return (InputSpec("input_ids", (6,), "int64", (DimRange("length", **span),)),)

    def length(x: object, own: tuple[InputSpec, ...]) -> int:
        return texts().arrays(x, own)["input_ids"].shape[1]

    free = inputs(min=1, max=None)
    assert [length(x, free) for x in ("on", ["on", "turn the lights"], "on " * 50)] == [3, 5, 52]
    assert [length(x, inputs(min=4, max=8)) for x in ("on", "turn on the lights off")] == [4, 7]
    assert [length(x, inputs(min=1, max=4, factor=4)) for x in ("on", "turn on the")] == [4, 8]
    with pytest.raises(InputError, match="has 9 tokens, and the network takes up to 8"):
        length("on " * 7, inputs(min=4, max=8))


def test_padded_to_a_multiple_where_any_length_is_taken() -> None:
    by_four = dynamic.TextPreprocess.of(tokenizer(), pad_to_multiple_of=4)

    def inputs(least: int, most: int | None) -> tuple[InputSpec, ...]:
        return (InputSpec("input_ids", (6,), "int64", (DimRange("length", min=least, max=most),)),)

    def length(x: object, own: tuple[InputSpec, ...]) -> int:
        return by_four.arrays(x, own)["input_ids"].shape[1]

    some = ("on", "turn on", ["on", "turn the lights"])  # 3, 4 and 5 tokens
    assert [length(x, inputs(1, None)) for x in some] == [4, 4, 8]
    assert [length(x, inputs(1, 6)) for x in some] == [4, 4, 6]  # the network's limit
    assert [length(x, inputs(5, 10)) for x in some] == [8, 8, 8]
    assert length("turn the lights", INPUTS) == 6  # a fixed length remains
    assert by_four(["on", "turn the lights"])["attention_mask"].tolist() == [[1] * 3 + [0] * 5, [1] * 5 + [0] * 3]
    assert by_four.batches(["on"], [0])[0][0]["input_ids"].tolist() == [[2, 8, 3, 0]]
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(SettingError, match=r"pad_to_multiple_of=.* must be a whole number from 1"):
            dynamic.TextPreprocess.of(tokenizer(), pad_to_multiple_of=wrong)  # type: ignore[arg-type]


def test_what_a_network_takes_that_no_text_becomes() -> None:
    for inputs in ((*INPUTS, InputSpec("pixels", (3, 8, 8), "float32")), (InputSpec("input", (1, 8, 8), "float32"),)):
        with pytest.raises(InputError, match=r"texts become \['input_ids', 'attention_mask', 'token_type_ids'\]"):
            texts().arrays("on", inputs)


def test_a_long_text_is_refused_or_cut_and_said(caplog: pytest.LogCaptureFixture) -> None:
    long = "turn the lights off please"
    with pytest.raises(InputError, match=r"has 7 tokens, and the network takes up to 6.*truncate=True"):
        texts().arrays(long, INPUTS)
    with caplog.at_level(logging.WARNING, "dynamic"):
        made = texts(truncate=True)
        arrays = made.arrays(["on", long], INPUTS)
        made.arrays([long, long], INPUTS)
    assert arrays["input_ids"].tolist() == [[2, 8, 3, 0, 0, 0], [2, 4, 5, 6, 7, 3]]
    (record,) = caplog.records  # one for all requests, and no word of a user's
    assert record.message.startswith("1 of 2 texts cut to the 6 tokens that the network takes")
    assert "turn" not in record.message


def test_an_empty_text_has_the_special_tokens_alone() -> None:
    for empty in ("", "  \n"):
        assert texts()(empty)["input_ids"].tolist() == [[2, 3]]
        with pytest.raises(InputError, match="holds no token: leave empty texts out"):
            texts(special=False)(empty)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (3, "a int is no text"),
        (None, "a NoneType is no text"),
        (b"on", "a bytes is no text: decode it"),
        (np.zeros((2, 6)), "a ndarray is no text"),
        (["on", 3], "a list of texts holds a int 3"),
        (["on", ["off"]], "a list of texts holds a list"),
        ([None], "a list of texts holds a NoneType None"),
        (["on", None], "a list of texts holds a NoneType None"),
        (np.array(["on", None], object), "a list of texts holds a NoneType None"),
        (np.array(None, object), "a NoneType is no text"),
        ([], "no texts"),
        ("half \ud800 a character", "has no tokens for"),
    ],
)
def test_what_is_no_text(x: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        texts().arrays(x, INPUTS)
    with pytest.raises(InputError):
        texts()(x)
    if "half" not in str(x):
        with pytest.raises(InputError, match=message):
            texts().check(x)


def test_a_word_without_a_token() -> None:
    assert texts()("unheard")["input_ids"].tolist() == [[2, 1, 3]]
    with pytest.raises(InputError, match="token for unknown words"):
        texts(unknown=False)("unheard")


def test_vocabulary() -> None:
    assert texts().vocabulary == 14
    own = tokenizer()
    own.add_tokens(["kitchen"])
    assert dynamic.TextPreprocess.of(own).vocabulary == 15
    own.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 20), ("[SEP]", 3)])
    assert dynamic.TextPreprocess.of(own).vocabulary == 21
    assert dynamic.TextPreprocess.of(own)("on")["input_ids"].tolist() == [[20, 8, 3]]


def test_json_and_file() -> None:
    made = dynamic.TextPreprocess.of(tokenizer(), truncate=True, pad_to_multiple_of=8)
    again = dynamic.TextPreprocess.from_json(made.to_json(), made.files["tokenizer.json"])
    assert again == made
    assert again != texts()
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    assert len(repr(made)) < 200
    with pytest.raises(CorruptError, match="another tokenizer"):
        dynamic.TextPreprocess.from_json(made.to_json(), b"{}")
    (entry,) = made.to_json()["steps"]
    wrong: list[dict[str, Any]] = [{"truncate": 1}, {"pad_id": -1}, {"pad_to_multiple_of": 0}]
    for damaged in ({}, {"steps": [3]}, *({"steps": [{**entry, **one}]} for one in wrong)):
        with pytest.raises(CorruptError, match="does not read"):
            dynamic.TextPreprocess.from_json(damaged, made.files["tokenizer.json"])


def test_what_is_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a dict is no tokenizer that can travel"):
        dynamic.TextPreprocess.of({})
    with pytest.raises(InputError, match="does not read"):
        dynamic.TextPreprocess.from_file(tmp_path / "missing.json")
    (tmp_path / "other.json").write_text('{"a": 1}')
    with pytest.raises(InputError, match="the tokenizer does not read"):
        dynamic.TextPreprocess.from_file(tmp_path / "other.json")
    with pytest.raises(SettingError, match="truncate='yes'"):
        dynamic.TextPreprocess(tokenizer().to_str(), truncate="yes")  # type: ignore[arg-type]
    for wrong in (-1, 2**40, 1.5, True):
        with pytest.raises(SettingError, match=r"pad_id=.* must be a whole number from 0"):
            dynamic.TextPreprocess(tokenizer().to_str(), pad_id=wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pad_id=999999 is no id of this tokenizer, whose ids end at 13"):
        dynamic.TextPreprocess(tokenizer().to_str(), pad_id=999999)
    number: Any = np.int64(13)
    assert dynamic.TextPreprocess(tokenizer().to_str(), pad_id=number).to_json()["steps"][0]["pad_id"] == 13
    with pytest.raises(InputError, match="the tokenizer does not read"):
        dynamic.TextPreprocess("garbage")


def _no_special_tokens(data: dict[str, Any]) -> None:
    data["post_processor"]["special_tokens"] = {}


def _no_steps(data: dict[str, Any]) -> None:
    data["pre_tokenizer"] = {"type": "FixedLength", "length": 0}


def _damaged_map(data: dict[str, Any]) -> None:
    data["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


@pytest.mark.parametrize("change", [_no_special_tokens, _no_steps, _damaged_map])
def test_a_tokenizer_at_which_the_library_panics(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    """Rust's PanicException derives from BaseException alone, so that no worker's guard catches it."""
    data = json.loads(tokenizer().to_str())
    change(data)
    damaged = json.dumps(data)
    (tmp_path / "tokenizer.json").write_text(damaged)
    with pytest.raises(InputError, match="the tokenizer "):
        dynamic.TextPreprocess(damaged)
    with pytest.raises(InputError, match="the tokenizer "):
        dynamic.TextPreprocess.from_file(tmp_path / "tokenizer.json")
    entry = {**texts().to_json()["steps"][0], "tokenizer": hashlib.sha256(damaged.encode()).hexdigest()}
    with pytest.raises(CorruptError, match="preprocessing of texts does not read"):
        dynamic.TextPreprocess.from_json({"steps": [entry]}, damaged.encode())


def test_a_tokenizer_that_panics_at_some_texts_alone() -> None:
    class Fails:
        def __init__(self, kind: type[BaseException]) -> None:
            self.kind = kind

        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise self.kind

    for kind in (KeyboardInterrupt, SystemExit, GeneratorExit):
        with pytest.raises(kind):
            encoded(Fails(kind), "on")
    with pytest.raises(InputError, match="the tokenizer failed at 'on'"):
        encoded(Fails(BaseException), "on")


def test_a_tokenizer_that_is_written_in_python() -> None:
    from tokenizers import NormalizedString
    from tokenizers.normalizers import Normalizer

    class Own:
        def normalize(self, text: NormalizedString) -> None:
            text.lowercase()

    own = tokenizer()
    own.normalizer = Normalizer.custom(Own())
    with pytest.raises(InputError, match=r"the tokenizer cannot be written"):
        dynamic.TextPreprocess.of(own)


def test_a_fast_tokenizer_of_transformers() -> None:
    from transformers import PreTrainedTokenizerFast

    made = dynamic.TextPreprocess.of(PreTrainedTokenizerFast(tokenizer_object=tokenizer(), pad_token="[PAD]"))
    assert made("turn on")["input_ids"].tolist() == [[2, 4, 8, 3]]


def test_batches() -> None:
    found = texts().batches(["on", "turn off", "off"], [0, 1, 1], size=2)
    assert [(x["input_ids"].shape, y.tolist()) for x, y in found] == [((2, 4), [0, 1]), ((1, 3), [1])]
    assert texts().batches(["on"], [0], length=7)[0][0]["input_ids"].shape == (1, 7)
    words, size = cast(Any, (np.array(["on", "off"]), np.int64(8)))
    (batch,) = texts().batches(words, np.array([3, 0], np.uint8), size=size)
    assert batch[1].tolist() == [3, 0]
    assert batch[1].dtype == np.int64


@pytest.mark.parametrize(
    ("words", "labels", "options", "error", "message"),
    [
        (["on"], [0, 1], {}, InputError, r"labels have shape \[2\] for 1 texts: give one for each"),
        (["on", "off"], [0.7, 1.9], {}, InputError, "labels are float64, such as 0.7: number the classes"),
        (["on"], ["lights"], {}, InputError, "labels are <U6, such as 'lights'"),
        (["on"], [True], {}, InputError, "labels are bool"),
        (["on", "off"], [0, -1], {}, InputError, "labels are from -1 to 0: number the classes from 0"),
        (["on"], [2**40], {}, InputError, "labels are from"),
        (["on", "off"], [[0], [0, 1]], {}, InputError, "do not read"),
        ("on", [0, 1], {}, InputError, "texts='on' is one text: give a list"),
        ([None], [0], {}, InputError, "holds a NoneType"),
        (["on"], [0], {"size": -1}, SettingError, "size=-1 must be a whole number from 1"),
        (["on"], [0], {"size": 0}, SettingError, "size=0 must be a whole number from 1"),
        (["on"], [0], {"size": 2.0}, SettingError, "size=2.0 must be a whole number"),
        (["on"], [0], {"length": -1}, SettingError, "length=-1 must be a whole number from 1 to 1048576"),
        (["on"], [0], {"inputs": "input_ids"}, InputError, "give a list of these"),
    ],
)
def test_batches_of_something_else(
    words: Any, labels: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        texts().batches(words, labels, **options)


@pytest.mark.parametrize("length", [-1, 0, "6", 2.5, True, 2**20 + 1, 2**40])
def test_lengths_that_are_none(length: Any) -> None:
    for truncate in (False, True):
        with pytest.raises(SettingError, match=r"length=.* must be a whole number from 1 to 1048576"):
            texts(truncate)("on", length)
    with pytest.raises(InputError, match="200 rows of 1048576 tokens are 209715200 numbers, and the limit is"):
        texts()(["on"] * 200, 2**20)


@pytest.mark.parametrize("inputs", [[], 3, "input_ids", [["input_ids"]]])
def test_inputs_that_no_text_becomes(inputs: Any) -> None:
    with pytest.raises(InputError, match="texts become"):
        texts()("on", inputs=inputs)
