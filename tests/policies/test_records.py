"""Records: what they refuse, how they are divided, and through a file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.policy_cases import learned, make_records, repeatable

from dynamic.policies.errors import CalibrationError, CorruptError, InputError, SettingError
from dynamic.policies.records import Records, check_usable, split

LOGITS, LABEL = learned(20, 3)
RECORDS = make_records(LOGITS, LABEL, (0, 0, 1), np.arange(20) % 2, (1.0, 2.0, 3.0), (0.1, 0.2, 0.3))


def check_same(a: Records, b: Records) -> None:
    for name in Records.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), strict=True, err_msg=name)


def test_select_takes_the_same_rows_of_everything() -> None:
    grouped = replace(RECORDS, group=np.arange(20) * 10)
    chosen = grouped.select(grouped.part == 1)
    assert len(chosen) == 10
    assert chosen.stages == 3
    np.testing.assert_array_equal(chosen.logits, LOGITS[1::2])
    assert chosen.label is not None
    assert chosen.group is not None
    assert chosen.label.tolist() == LABEL[1::2].tolist()
    assert chosen.group.tolist() == list(range(10, 200, 20))
    assert (chosen.backbone, chosen.macs, chosen.head_macs) == ((0, 0, 1), (1.0, 2.0, 3.0), (0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"logits": LOGITS.astype(float)}, "float64"),
        ({"logits": LOGITS[:, 0]}, r"must be float32 \[N, S, C\]"),
        ({"label": LABEL[:5]}, "label has shape"),
        ({"group": np.zeros((20, 2))}, "group has shape"),
        ({"part": np.zeros(21, np.int8)}, r"part has shape \[21\]"),
        ({"backbone": (0, 1)}, "backbone has 2 entries for 3 stages"),
        ({"stage_names": ("a",)}, "stage_names"),
        ({"macs": (1.0,) * 4}, "macs"),
        ({"label": LABEL + 1}, "labels run from 1 to 4: 4 classes have labels from 0 to 3"),
        ({"label": LABEL - 2}, "labels run from -2"),  # -1 is an input that nobody was asked about
    ],
)
def test_what_does_not_fit_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(RECORDS, **fields)


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("group", [np.arange(20), np.array(["a", "b"] * 10), None])
def test_through_a_file(tmp_path: Path, label: bool, group: Any) -> None:
    logits = LOGITS.copy()
    logits[0, 1, 2] = np.nan
    before = replace(RECORDS, logits=logits, group=group, label=LABEL if label else None)
    before.save(tmp_path / "records.npz")
    check_same(Records.load(tmp_path / "records.npz"), before)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    RECORDS.save(path)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 7):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        try:
            found = Records.load(path)
        except CorruptError:
            refused += 1
        else:  # a date, an attribute: nothing that is read
            check_same(found, RECORDS)
    assert refused > len(whole) / 7 / 2
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(CorruptError):
            Records.load(path)
    with pytest.raises(CorruptError, match=r"missing.*calibrate again"):
        Records.load(tmp_path / "missing.npz")


def test_pickles_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "records.npz"
    with path.open("wb") as file:
        np.savez(file, logits=np.array([{}], object), part=np.zeros(1))
    with pytest.raises(CorruptError, match="allow_pickle"):
        Records.load(path)


def test_split_by_hand() -> None:
    part = split(None, 111, search_share=0.3)
    assert int((part == 0).sum()) == 33
    assert set(part.tolist()) == {0, 1}
    assert split(None, 111, search_share=1.0).tolist() == [0] * 111
    assert int((split(None, 40) == 0).sum()) == 10, "a quarter chooses"
    assert len(split(None, 0)) == 0


def test_parts_do_not_share_their_luck() -> None:
    # of 20 inputs of a class among 100, the search part gets as many as chance gives it, not always 5
    of_the_class = [int((split(None, 100, search_share=0.25, seed=seed)[:20] == 0).sum()) for seed in range(400)]
    variance = 25 * 0.2 * 0.8 * (100 - 25) / (100 - 1)  # hypergeometric
    assert np.var(of_the_class) == pytest.approx(variance, rel=0.25)


def test_split_is_by_seed_and_mixes() -> None:
    assert split(None, 200, seed=3).tolist() == split(None, 200, seed=3).tolist()
    assert split(None, 200, seed=3).tolist() != split(None, 200, seed=4).tolist()
    assert 15 < int((split(None, 200)[:100] == 0).sum()) < 35


@repeatable
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60), st.floats(0.05, 1), st.integers(0, 99))
def test_groups_stay_together(groups: list[int], share: float, seed: int) -> None:
    group = np.array(groups)
    part = split(group, len(group), search_share=share, seed=seed)
    sides = {g: set(part[group == g].tolist()) for g in groups}
    assert all(len(side) == 1 for side in sides.values())
    searching = sum(side == {0} for side in sides.values())
    assert searching == max(1, round(len(sides) * share))


def test_a_group_in_both_parts_is_refused() -> None:
    group = np.arange(len(RECORDS)) // 2
    part = np.zeros(len(RECORDS), np.int8)
    part[1::2] = 1
    with pytest.raises(CalibrationError, match="group 0 lies in both parts"):
        check_usable(replace(RECORDS, group=group, part=part))


@pytest.mark.parametrize("share", [0, -0.1, 1.1, float("nan")])
def test_shares_out_of_range(share: float) -> None:
    with pytest.raises(SettingError, match="search_share"):
        split(None, 10, search_share=share)


def test_what_teaches_nothing() -> None:
    check_usable(RECORDS)
    check_usable(replace(RECORDS, label=None))
    with pytest.raises(CalibrationError, match="empty"):
        check_usable(RECORDS.select(np.zeros(20, bool)))
    with pytest.raises(CalibrationError, match="all 20 calibration labels are class 1"):
        check_usable(replace(RECORDS, label=np.ones(20, np.int64)))
