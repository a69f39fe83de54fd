"""A replica without a cluster: what is shed, what it ends with, and what it is given."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.serving.ray_cases import LIMIT_S, ROWS, small_bundle

import dynamic
from dynamic.serve import ServeOptions
from dynamic.serve.ray.replica import Replica
from dynamic.serve.ray.settings import ReplicaSettings, UserConfig

GAP = np.full(12, np.nan, np.float32)  # shares a batch with nobody, so that it waits alone


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return small_bundle(tmp_path_factory.mktemp("replica") / "shelf")


def settings(**changes: Any) -> ReplicaSettings:
    options = ServeOptions(name="shelf", max_batch=1, queue=1)
    return replace(ReplicaSettings(options=options, batch_wait_ms=1e6, engine=None, threads=1), **changes)


def config(folder: Path, **limits: Any) -> dict[str, Any]:
    return UserConfig.of(folder, dynamic.Budget(**limits)).to_json()


async def waits(replica: Replica, busy: int, queued: int) -> None:
    """Until so many requests have a thread, and so many wait for one."""
    waiting = replica._service.waiting
    async with asyncio.timeout(LIMIT_S):
        while (waiting.busy, len(waiting)) != (busy, queued):
            await asyncio.sleep(0.005)


def test_more_requests_than_may_wait_are_shed_and_the_others_answered(bundle: dynamic.Bundle) -> None:
    async def overloaded() -> list[Any]:
        replica = Replica(settings(options=ServeOptions(name="shelf", max_batch=2, queue=1)))
        await replica.reconfigure(config(bundle.folder))
        tasks = []
        for number in range(5):
            tasks.append(asyncio.ensure_future(replica.run(GAP)))
            await waits(replica, min(number + 1, 4), number // 4)
        tasks.append(asyncio.ensure_future(replica.run(GAP)))
        done, _ = await asyncio.wait(tasks, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert done, "one is shed"
        assert (await replica.state())["shed"] == 1
        await asyncio.to_thread(replica.close)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        with pytest.raises(dynamic.errors.ClosedError, match="ending"):
            await replica.run(ROWS[0])
        return outcomes

    outcomes = asyncio.run(overloaded())
    (shed,) = (number for number, outcome in enumerate(outcomes) if isinstance(outcome, dynamic.errors.ShedError))
    assert shed == 4, "the one that had waited longest for a thread"
    assert "1 requests waited already, the limit. Send again after 1 s" in str(outcomes[4])
    assert [type(outcome) for number, outcome in enumerate(outcomes) if number != 4] == [dynamic.Prediction] * 5


def test_a_configuration_that_cannot_be_taken_is_logged(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    async def changed() -> dict[str, Any]:
        replica = Replica(settings())
        await replica.reconfigure(config(bundle.folder, max_drop=0.25))
        await replica.reconfigure({"bundle": str(tmp_path / "nothing"), "budget": {}})
        await replica.reconfigure(config(bundle.folder) | {"budget": {"energy_mj": 5.0}})
        state = await replica.state()
        replica.close()
        return state

    state = asyncio.run(changed())
    assert (state["bundle"], state["budget"]["max_drop"]) == (str(bundle.folder), 0.25)
    messages = [record.getMessage() for record in caplog.records if "is not taken" in record.getMessage()]
    assert len(messages) == 2
    assert "nothing" in messages[0]
    assert "energy" in messages[1]


UNTAKEN: dict[str, dict[str, Any]] = {
    "no field 'latency'": {"budget": {"latency": 5}},
    "latency_ms=-1": {"budget": {"latency_ms": -1}},
    "give 'bundle'": {"limits": {}},
    "Its budget is 5": {"budget": 5},
    "priority": {"budget": {"priority": 5}},
}


@pytest.mark.parametrize("reason", UNTAKEN)
def test_a_configuration_that_does_not_read_ends_no_replica_that_runs(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    async def changed() -> dict[str, Any]:
        replica = Replica(settings())
        await replica.reconfigure(config(bundle.folder, max_drop=0.25))
        await replica.reconfigure(config(bundle.folder) | UNTAKEN[reason])
        state = await replica.state()
        replica.close()
        return state

    state = asyncio.run(changed())
    assert (state["bundle"], state["budget"]["max_drop"]) == (str(bundle.folder), 0.25)
    (message,) = [record.getMessage() for record in caplog.records if "is not taken" in record.getMessage()]
    assert reason in message


def test_bundle_and_budget_are_taken_together_or_not_at_all(
    bundle: dynamic.Bundle, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The second bundle has costs of energy, and the third, as the first, has none."""
    metered = bundle.save(tmp_path / "metered").profile(batch=(1, 8), seconds=0.02, threads=1, active_mw=1000.0)
    other = bundle.save(tmp_path / "other").profile(batch=(1, 8), seconds=0.02, threads=1)

    async def changed() -> list[tuple[str, float | None, float | None]]:
        replica, states = Replica(settings()), []
        for folder, limits in (
            (bundle.folder, {"max_drop": 0.25}),
            (other.folder, {"energy_mj": 5e3}),  # there are no such costs
            (metered.folder, {"energy_mj": 5e3}),
            (other.folder, {"energy_mj": 5e3}),
            (other.folder, {"max_drop": 0.5}),
        ):
            await replica.reconfigure(config(folder, **limits))
            state = await replica.state()
            states.append((Path(state["bundle"]).name, state["budget"]["max_drop"], state["budget"]["energy_mj"]))
        replica.close()
        return states

    first, second, third = ("shelf", 0.25, None), ("metered", None, 5e3), ("other", 0.5, None)
    assert asyncio.run(changed()) == [first, first, second, second, third]
    assert sum("is not taken" in record.getMessage() for record in caplog.records) == 2


def test_a_configuration_as_json(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    budget = dynamic.Budget(latency_ms=20.0, max_drop=0.01, priority=("drop", "latency"))
    first = UserConfig.of(bundle.folder, budget)
    assert first.to_json()["budget"]["latency_ms"] == 20.0
    assert UserConfig.from_json(first.to_json()) == first
    plain = UserConfig.of(bundle.folder, dynamic.Budget()).to_json()
    assert plain["budget"] == {}
    copy = bundle.save(tmp_path / "copy").folder
    manifest = copy / "bundle.json"
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert UserConfig.of(copy, budget).digest != first.digest, "another bundle in a folder is noticed"
    with pytest.raises(dynamic.errors.SettingError, match=r"fields \['budget'\]: give 'bundle'"):
        UserConfig.from_json({"budget": {}})
    with pytest.raises(dynamic.errors.BudgetError, match="no field 'latency'"):
        UserConfig.from_json({"bundle": "shelf", "budget": {"latency": 5}})


def test_what_starts_a_replica_again() -> None:
    version = settings().version
    assert settings().version == version
    others = [settings(threads=2), settings(batch_wait_ms=2.0), settings(engine="onnxruntime")]
    others += [settings(options=ServeOptions(name="shelf", token=token)) for token in ("abc", "abd")]
    assert len({version, *(other.version for other in others)}) == 6


def test_ray_hands_over_enough_requests_to_fill_batches() -> None:
    one = settings(options=ServeOptions(max_batch=32, queue=64))
    assert one.workers == 64, "one batch runs, one fills"
    assert one.most_ongoing > one.workers + 64, "and those that are shed come in too"
