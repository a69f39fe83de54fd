"""Words of options: their types hold exactly the words that the library knows."""

from typing import Any, get_args

import pytest

from dynamic.engines.engine_factory import ENGINES, PRECISIONS
from dynamic.engines.options import EngineName, Precision
from dynamic.errors import InputError, SettingError
from dynamic.offline import option_words as words
from dynamic.policies.certification.ladders.settings import AUTO, ScoreChoice
from dynamic.policies.certification.risks import RISKS
from dynamic.policies.ladder import RiskName
from dynamic.policies.scores import COMBINE, SCORES, Combination


@pytest.mark.parametrize(
    ("literal", "known"),
    [
        (Combination, COMBINE),
        (ScoreChoice, (*SCORES, AUTO)),
        (RiskName, RISKS),
        (EngineName, ENGINES),
        (words.EngineChoice, (*ENGINES, "auto")),
        (Precision, {precision for precisions in PRECISIONS.values() for precision in precisions}),
    ],
)
def test_types_hold_the_words_that_are_known(literal: Any, known: Any) -> None:
    assert set(get_args(literal)) == set(known)


def test_another_word_is_refused() -> None:
    words.check_word("mode", "heads", words.Mode)
    with pytest.raises(SettingError, match=r"mode='head' is not known\. Use one of heads, joint, distill"):
        words.check_word("mode", "head", words.Mode)
    with pytest.raises(InputError, match=r"batch=2 is not known\. Use one of dynamic, single"):
        words.check_word("batch", 2, words.RowCount, InputError)
