"""Batches of texts of several lengths: what is left once the longest text has gone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.engine_cases import WAYS, Case, check
from support.networks.dynamic_sizes import LIMIT, WORDS, bert, text_shapes, texts
from torch import Tensor, nn

from dynamic.engines.inputs.dimensions import DimRange
from dynamic.engines.inputs.padding import Padding
from dynamic.offline.cascade import Cascade

SPAN = DimRange("n", 1, 16)
MASK = {"attention_mask": (SPAN,)}


@pytest.mark.parametrize(
    ("ranges", "inputs"),
    [
        ({"input_ids": (SPAN,), **MASK}, ("input_ids", "attention_mask")),
        ({"features": (SPAN, None), **MASK}, ("features", "attention_mask")),
        ({"picture": (None, None), **MASK}, ("attention_mask",)),
        ({"input_ids": (SPAN,)}, None),
        ({"input_ids": (SPAN,), "attention_mask": ()}, None),  # a fixed length
        ({"pairs": (SPAN, SPAN), **MASK}, None),  # nothing says which of both is padded where
        ({"input_ids": (DimRange("n", 1, 4, 8),), "attention_mask": (DimRange("n", 1, 4, 8),)}, None),
    ],
)
def test_inputs_of_the_length_of_the_mask_are_padded(ranges: Any, inputs: tuple[str, ...] | None) -> None:
    found = Padding.of(ranges, dict.fromkeys(ranges, "int64"))
    assert (found.inputs if found else None) == inputs


@pytest.mark.parametrize(("dtype", "is_mask"), [("int64", True), ("int32", True), ("bool", True), ("float32", False)])
def test_a_mask_of_floats_may_be_added_to_scores(dtype: str, is_mask: bool) -> None:
    """It is 0 at tokens then, and everything would be cut."""
    assert (Padding.of(MASK, {"attention_mask": dtype}) is not None) == is_mask


@pytest.mark.parametrize(
    ("mask", "least", "length"),
    [
        ([[1, 1, 0, 0], [1, 0, 0, 0]], 1, 2),
        ([[1, 1, 0, 0], [1, 0, 0, 0]], 3, 3),
        ([[0, 0, 1, 0]], 1, 3),  # what is padded at the start is not cut
        ([[1, 0, 0, 1]], 1, 4),
        ([[0, 0, 0, 0]], 1, 4),  # not a token: nothing is known
    ],
)
def test_only_padding_at_the_end_of_all_rows_goes(mask: list[list[int]], least: int, length: int) -> None:
    given = {"x": np.arange(4 * len(mask)).reshape(len(mask), 4), "attention_mask": np.array(mask), "other": np.ones(1)}
    found = Padding("attention_mask", ("x", "attention_mask"), least).cut(given)
    for name in ("x", "attention_mask"):
        np.testing.assert_array_equal(found[name], given[name][:, :length])
        assert found[name].flags.c_contiguous
    assert found["other"] is given["other"]


class Bag(nn.Module):
    """A mean of embeddings, surest of long texts."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.table, self.classes = nn.Embedding(WORDS, 8), nn.Linear(8, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        weights = attention_mask[..., None].float()
        sharp = attention_mask.sum(1, keepdim=True) / 4.0
        return self.classes((self.table(input_ids) * weights).sum(1) / weights.sum(1)) * sharp  # type: ignore[no-any-return]


class Widths(nn.Module):
    """Its logits say how many positions it was given."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        positions = torch.ones_like(input_ids).sum(1, keepdim=True).float()  # [B, 1], the length
        return (
            torch.cat([positions, positions * 0, positions * 0, positions * 0], 1) / LIMIT + attention_mask[:, :1] * 0
        )


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    cascade = Cascade([Bag(), bert()], dynamic_shapes=text_shapes()).eval()
    return Case.of(cascade, tmp_path_factory.mktemp("padded") / "graphs", texts(24, LIMIT, seed=5))


@pytest.mark.parametrize("way", WAYS)
def test_the_rest_of_a_padded_batch_has_the_answers_of_torch(case: Case, way: str) -> None:
    scores = np.sort(case.scores()[:, 0])
    for threshold in (scores[4], scores[12], scores[-1]):
        limits = np.array([threshold], np.float32)
        truth = case.truth(limits.tolist())
        assert (truth.stage == 1).any()
        check(case.shared(way).run(case.inputs, limits), truth)


@pytest.mark.parametrize("is_bool", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_the_rest_is_as_long_as_its_longest_text(tmp_path: Path, way: str, is_bool: bool) -> None:
    inputs = texts(12, LIMIT, seed=5)
    if is_bool:
        inputs["attention_mask"] = inputs["attention_mask"].bool()
    lengths = inputs["attention_mask"].sum(1).numpy()
    cascade = Cascade([Bag(), Widths()], dynamic_shapes=text_shapes()).eval()
    case = Case.of(cascade, tmp_path / "graphs", inputs)
    with torch.no_grad():
        early = cascade.networks[0](**inputs).softmax(1).numpy()
    scores = early.max(1)
    limit = float(np.sort(scores)[6:8].mean())
    goes_on = scores <= limit
    assert lengths[goes_on].max() < lengths.max(), "the longest text leaves"
    output = case.shared(way).run(case.inputs, np.array([limit], np.float32))
    assert (output.stage == 1).tolist() == goes_on.tolist()
    late = 2 * np.exp(output.logits[goes_on, 0].astype(float)) - early[goes_on, 0]  # answers are averaged
    np.testing.assert_allclose(LIMIT * np.log(3 * late / (1 - late)), lengths[goes_on].max(), atol=0.01)
