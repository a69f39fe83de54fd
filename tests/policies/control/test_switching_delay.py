"""How long a better point must last, by counting."""

import math

from dynamic.policies.control.switching import Cooldown, SwitchDelay


def until_changed(delay: SwitchDelay) -> tuple[int, SwitchDelay]:
    """After how many decisions, of which all find another point better, the change is made; and what follows."""
    decisions = 1
    while (longer := delay.wait()) is not None:
        delay, decisions = longer, decisions + 1
    return decisions, delay.after_change()


def stayed(delay: SwitchDelay, times: int) -> SwitchDelay:
    for _ in range(times):
        delay = delay.confirm()
    return delay


def test_sixteen_decisions_in_a_row() -> None:
    assert until_changed(SwitchDelay())[0] == 16


def test_one_that_does_not_find_it_better_starts_anew() -> None:
    delay: SwitchDelay | None = SwitchDelay()
    for _ in range(15):
        assert delay is not None
        delay = delay.wait()
    assert delay is not None
    assert until_changed(delay.confirm())[0] == 16


def test_requests_before_a_point_was_better_do_not_count() -> None:
    # one decision stands for many requests: the first that finds a better point says nothing of those before it
    delay = SwitchDelay().wait(32)
    assert delay is not None
    assert delay.wait(14) is not None
    assert delay.wait(15) is None


def test_forced_back_at_once_it_takes_twice_as_long_up_to_4096() -> None:
    delay, took = SwitchDelay(), []
    for _ in range(10):
        decisions, delay = until_changed(delay)
        took.append(decisions)
        delay = stayed(delay, 3).after_exclusion()
    assert took == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 4096]


def test_forced_back_eight_times_as_late_is_no_matter() -> None:
    _, changed = until_changed(SwitchDelay())
    assert until_changed(stayed(changed, 127).after_exclusion())[0] == 32
    assert until_changed(stayed(changed, 128).after_exclusion())[0] == 16


def test_forced_twice_in_a_row_counts_once() -> None:
    # from the dearest to the middle, and on to the cheapest: one change was premature
    _, changed = until_changed(SwitchDelay())
    assert until_changed(changed.after_exclusion().after_exclusion())[0] == 32


def test_forced_by_what_is_no_noise_it_takes_no_longer() -> None:
    _, changed = until_changed(SwitchDelay())
    assert until_changed(stayed(changed, 3).after_exclusion(noisy=False))[0] == 16


def test_forced_when_nothing_was_changed_before_it_is_no_matter() -> None:
    assert until_changed(SwitchDelay().after_exclusion())[0] == 16


def test_calm_halves_it() -> None:
    _, changed = until_changed(SwitchDelay())
    delay = changed.after_exclusion()
    assert delay.needed == 32
    # 8 * 32 have been counted when it is forced; 32 * 32 are needed
    assert stayed(delay, 32 * 32 - 8 * 32 - 1).needed == 32
    calmed = stayed(delay, 32 * 32 - 8 * 32)
    assert calmed.needed == 16
    assert until_changed(calmed)[0] == 16
    assert stayed(calmed, 5000).needed == 16


def test_what_heat_forced_back_rests_twice_as_long_each_time() -> None:
    cooldown, time_s, lengths = Cooldown(), 0.0, []
    for _ in range(8):
        cooldown = cooldown.after_change(time_s).after_exclusion(time_s + 10, effort=5.0)
        lengths.append(cooldown.length_s)
        time_s += 10 + cooldown.length_s
    assert lengths == [600, 1200, 1200, 1200, 1200, 1200, 1200, 1200]
    assert Cooldown(1200, 0, 1000).after_exclusion(1000 + 4 * 1200, 5.0).length_s == 600  # it lasted
    assert Cooldown(300, 0, 0).after_exclusion(5000, 5.0).length_s == 300


def test_a_rest_bars_all_for_half_a_minute_and_then_what_was_too_much() -> None:
    cooldown = Cooldown().after_change(0).after_exclusion(100, effort=5.0)
    assert [cooldown.is_over(s) for s in (100, 100.2, 129, 130, 50)] == [True, False, False, True, True]
    assert [cooldown.effort_limit(s) for s in (101, 699, 700, 50)] == [5, 5, math.inf, math.inf]
