"""A small run of `benchmarks/memory/real_memory.py`: small networks, a limit that moves, and a real control group."""

import pytest

import dynamic
from benchmarks.memory import real_memory


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    made: dynamic.Bundle = real_memory.make(tmp_path_factory.mktemp("memory") / "shelf", (8.0, 12.0), profile_s=0.1)
    return made


def test_resident_memory_follows_a_limit_that_moves(bundle: dynamic.Bundle) -> None:
    memory = real_memory.moving(bundle, holds=((1,), (0,)), each=70, rate_hz=50.0, slack_mb=40.0)
    assert memory["requests"] == 140
    assert memory["failed"] == {}
    assert memory["engine_failures"] == memory["policy_failures"] == 0
    assert memory["moves_judged"] == 2
    assert memory["moves_over"] == 0, memory["moves"]


def test_networks_are_given_back_in_a_group_that_fills(bundle: dynamic.Bundle) -> None:
    found = real_memory.in_a_group(bundle, step_mb=15, step_s=0.25)
    if not found["measured"]:
        pytest.skip(found["why_not"])
    assert found["killed"] == 0
    assert found["crashed"] is None
    assert found["failed"] == {}
    assert found["given_back_mb"] > 8
