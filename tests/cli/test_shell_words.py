"""Messages of the library in the words of a command: its options, and no arguments of Python."""

import pytest
from typer.main import get_command

from dynamic.cli.app import app
from dynamic.cli.project.shell_words import in_shell_words, option_names

BUILD, FIT, RUN = (get_command(app).commands[name].params for name in ("build", "fit", "run"))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("max_drops holds 2.0: a drop", "--max-drop holds 2.0: a drop"),
        ("max_drops=(0.01,) must be", "--max-drop (0.01,) must be"),
        ("larger max_drops= or delta=", "larger --max-drop or --delta"),
        ("delta='a' must lie", "--delta 'a' must lie"),
        ("seed=-1.5: give", "--seed -1.5: give"),
        ("calibration_loader gave no batch", "--data gave no batch"),
        ("a 'delta=0.1' of another max_drop=3", "a 'delta=0.1' of another --max-drop 3"),
        ("the delta of data, and the exits", "the delta of data, and the exits"),  # words that are no arguments
        ("load it: dynamic.load(path, seed=3), or seed=4", "load it: dynamic.load(path, seed=3), or --seed 4"),
        ("latency_ms=3 and own.seed=3", "latency_ms=3 and own.seed=3"),  # no option of `build`
        ("", ""),
    ],
)
def test_arguments_are_options_of_the_command(message: str, expected: str) -> None:
    assert in_shell_words(message, option_names(BUILD)) == expected


def test_each_command_has_its_own_words() -> None:
    assert in_shell_words("use mode='joint'", option_names(FIT)) == "use --mode 'joint'"
    assert in_shell_words("use mode='joint'", option_names(RUN)) == "use mode='joint'"
    assert in_shell_words("battery_duration_s=0.0 must", option_names(RUN)) == "--last-s 0.0 must"
    assert in_shell_words("train_loader is empty", option_names(FIT)) == "--train-data is empty"
