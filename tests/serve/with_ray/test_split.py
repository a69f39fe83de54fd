"""A cascade over two deployments: the answers of one, and no error where the tail fails."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.serving.ray_cases import LIMIT_S, QUIET, ROWS, local_ray, small_bundle, until_is

import dynamic
from dynamic.engines.parts.rest import Rest
from dynamic.runtime.parts import Part
from dynamic.serve import ServeOptions
from dynamic.serve.ray.replica import Replica
from dynamic.serve.ray.settings import ReplicaSettings, UserConfig
from dynamic.serve.ray.split.choice import Split
from dynamic.serve.ray.split.hops import HopReply, HopRequest

serve = pytest.importorskip("ray.serve", reason='needs Ray Serve: pip install "dynamic-inference[ray]"')
pytestmark = QUIET

SPLIT = Split(1, "asked for", hop_ms=0.0)


def mixed_point(bundle: dynamic.Bundle) -> dynamic.Budget:
    """A budget under which some rows exit at stage 0 and others continue."""
    for point in bundle.frontier.points:
        if 0.2 < point.shares[0] < 0.9:
            return dynamic.Budget(max_drop=point.promised_drop, latency_ms=1e6, on_drift="report")
    pytest.fail(f"no point of {bundle.frontier} has inputs at both stages")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> dynamic.Bundle:
    return small_bundle(tmp_path_factory.mktemp("split") / "shelf")


@pytest.fixture(scope="module")
def budget(bundle: dynamic.Bundle) -> dynamic.Budget:
    return mixed_point(bundle)


@pytest.fixture(scope="module")
def expected(bundle: dynamic.Bundle, budget: dynamic.Budget) -> list[Any]:
    """Each row alone, stage by stage in one process."""
    with bundle.runtime(budget, threads=1, route="stages", monitor=dynamic.FixedMonitor(), drift_alpha=None) as run:
        return [run(row) for row in ROWS]


class Tail:
    """A handle of a tail in this process, or of one that fails. `asked`: rows of each call."""

    def __init__(self, replica: Replica | None, error: BaseException | None = None) -> None:
        self.replica, self.error, self.asked = replica, error, list[int]()
        self.resume = self

    async def remote(self, passed: Any, **limits: Any) -> HopReply:
        self.asked.append(len(passed.rest.rows))
        if self.error is not None:
            raise self.error
        assert self.replica is not None
        return await self.replica.resume(passed, **limits)


def settings(is_head: bool, **options: Any) -> ReplicaSettings:
    serving = ServeOptions(name="shelf", **{"max_batch": 16} | options)
    return ReplicaSettings(options=serving, batch_wait_ms=0.0, engine=None, threads=1, split=SPLIT, is_head=is_head)


async def opened(bundle: dynamic.Bundle, budget: dynamic.Budget, tail: Any = None, is_head: bool = True) -> Replica:
    replica = Replica(settings(is_head), tail)
    await replica.reconfigure(UserConfig.of(bundle.folder, budget).to_json())
    return replica


def test_the_answers_are_those_of_one_deployment(
    bundle: dynamic.Bundle, budget: dynamic.Budget, expected: list[Any]
) -> None:
    async def answers() -> tuple[list[Any], Any, Tail, list[Any]]:
        tail = Tail(await opened(bundle, budget, is_head=False))
        head = await opened(bundle, budget, tail)
        singles = [await head.run(row) for row in ROWS]
        calls = len(tail.asked)
        batch = await head.run(ROWS)
        states = [await head.state(), await tail.replica.state()]  # type: ignore[union-attr]
        for replica in (head, tail.replica):
            await asyncio.to_thread(replica.close)  # type: ignore[union-attr]
        assert calls == sum(one.stage == 1 for one in expected), "rows that exit at the head cause no call"
        return singles, batch, tail, states

    singles, batch, tail, (head, tail_state) = asyncio.run(answers())
    for one, whole in zip(singles, expected, strict=True):
        np.testing.assert_array_equal(one.log_probs, whole.log_probs)
        assert (one.label, one.stage, one.score) == (whole.label, whole.stage, whole.score)
        assert (one.name, one.certified, one.decision.point.name) == (
            whole.name,
            whole.certified,
            whole.decision.point.name,
        )
    assert {one.stage for one in singles} == {0, 1}
    assert batch.stage.tolist() == [one.stage for one in expected]
    np.testing.assert_allclose(batch.log_probs, [one.log_probs for one in expected], rtol=1e-4, atol=1e-5)
    assert tail.asked[-1] == sum(one.stage == 1 for one in expected), "rows of one request travel together"
    assert head["kept_exits"] == 0
    assert tail_state["inputs"] == 2 * tail.asked[-1]


def test_a_tail_that_fails_leaves_the_answer_of_the_exit(
    bundle: dynamic.Bundle, budget: dynamic.Budget, expected: list[Any]
) -> None:
    async def answers() -> tuple[list[Any], dict[str, Any]]:
        head = await opened(bundle, budget, Tail(None, RuntimeError("no tail")))
        singles = [await head.run(row) for row in ROWS]
        state = await head.state()
        await asyncio.to_thread(head.close)
        return singles, state

    singles, state = asyncio.run(answers())
    continued = [number for number, one in enumerate(expected) if one.stage == 1]
    for number, one in enumerate(singles):
        assert one.stage == 0
        assert one.certified == (number not in continued and expected[number].certified)
        assert one.label >= 0
    assert state["kept_exits"] == len(continued)


def test_without_an_exit_before_the_cut_a_tail_that_fails_is_an_error(bundle: dynamic.Bundle) -> None:
    async def answered() -> None:
        exact = dynamic.Budget(max_drop=0.0)
        head = await opened(bundle, exact, Tail(None, dynamic.errors.ShedError("it is full")))
        try:
            await head.run(ROWS[0])
        finally:
            await asyncio.to_thread(head.close)

    with pytest.raises(dynamic.errors.ShedError, match="deploy with more tail_replicas"):
        asyncio.run(answered())


def test_late_rows_ask_no_tail_or_keep_their_exit(bundle: dynamic.Bundle, budget: dynamic.Budget) -> None:
    async def answers() -> tuple[list[Any], list[int]]:
        never = Tail(None)

        async def remote(passed: Any, **limits: Any) -> HopReply:
            never.asked.append(1)
            await asyncio.sleep(LIMIT_S)
            raise AssertionError("it was waited for")

        never.remote = remote  # type: ignore[method-assign]
        head = await opened(bundle, budget, never)
        over = [await head.run(row, deadline_s=time.time() - 1.0) for row in ROWS]
        before = len(never.asked)
        assert head._hops is not None
        head._hops.clock = lambda: time.time() + 2e4  # the deadline passes while the tail is at work
        soon = [await head.run(row, deadline_s=time.time() + 1e4) for row in ROWS[:16]]
        await asyncio.to_thread(head.close)
        assert before == 0
        return [*over, *soon], never.asked

    answers_, asked = asyncio.run(answers())
    assert asked, "with time left, the tail was asked"
    assert {one.stage for one in answers_} == {0}
    assert any(not one.certified for one in answers_)


def test_a_timeout_that_ends_while_the_tail_is_at_work_leaves_the_answer_of_the_exit(
    bundle: dynamic.Bundle, budget: dynamic.Budget, expected: list[Any]
) -> None:
    continued = next(number for number, one in enumerate(expected) if one.stage == 1)

    async def answered() -> tuple[Any, list[float]]:
        ends = list[float]()

        async def remote(passed: Any, deadline_s: float | None = None, **limits: Any) -> HopReply:
            assert deadline_s is not None
            ends.append(deadline_s - time.time())
            await asyncio.sleep(LIMIT_S)
            raise AssertionError("it was waited for")

        tail = Tail(None)
        tail.remote = remote  # type: ignore[method-assign]
        head = Replica(replace(settings(True, timeout_ms=6e4), split=replace(SPLIT, hop_ms=2e4)), tail)
        await head.reconfigure(UserConfig.of(bundle.folder, budget).to_json())
        assert head._hops is not None
        head._hops.clock = lambda: time.time() + 1e3
        answer = await head.run(ROWS[continued])
        await asyncio.to_thread(head.close)
        return answer, ends

    answer, (tail_s,) = asyncio.run(answered())
    assert (answer.stage, answer.certified) == (0, False)
    assert tail_s < 50.0, "60 s, less 10 s for the way back"


def test_one_row_of_another_bundle_fails_alone_in_the_tail(bundle: dynamic.Bundle, tmp_path: Path) -> None:
    """It has a deadline, so its time is looked up while others wait in the same queue."""
    exact = dynamic.Budget(max_drop=0.0)
    with dynamic.Runtime(bundle, exact, part=Part(1, is_head=True), threads=1) as begins:
        (rest,) = begins(ROWS[:1]).rests
    others = [HopRequest(replace(rest, version="another"), "reference"), HopRequest(rest, "nothing")]

    async def answers() -> list[Any]:
        tail = Replica(replace(settings(False), batch_wait_ms=1e6))
        await tail.reconfigure(UserConfig.of(bundle.folder, exact).to_json())
        waits = asyncio.ensure_future(tail.resume(HopRequest(rest, "reference")))
        await asyncio.to_thread(until_is, lambda: len(tail._batches._waiting), 1, "the row that waits")
        late = [tail.resume(other, deadline_s=time.time() + 1e4) for other in others]
        failures = await asyncio.gather(*late, return_exceptions=True)
        assert not waits.done()
        await asyncio.to_thread(tail.close)
        return [*failures, await waits]

    of_version, of_point, answer = asyncio.run(answers())
    assert isinstance(of_version, dynamic.errors.BundleError)
    assert "the same bundle to both parts" in str(of_version)
    assert isinstance(of_point, dynamic.errors.InputError)
    assert answer.output.stage.tolist() == [1]


@pytest.mark.parametrize("first", ["head", "tail"])
def test_while_one_part_has_another_bundle_rows_without_an_answer_are_asked_again(
    bundle: dynamic.Bundle, tmp_path: Path, first: str
) -> None:
    other, exact = small_bundle(tmp_path / "other", seed=1), dynamic.Budget(max_drop=0.0)
    with other.runtime(exact, threads=1, route="stages", monitor=dynamic.FixedMonitor()) as run:
        expected = run(ROWS[0])

    async def answered() -> Any:
        tail = Tail(await opened(bundle, exact, is_head=False))
        head = await opened(bundle, exact, tail)
        assert tail.replica is not None
        parts = {"head": head, "tail": tail.replica}
        config = UserConfig.of(other.folder, exact).to_json()
        await parts.pop(first).reconfigure(config)
        asked = asyncio.ensure_future(head.run(ROWS[0]))
        async with asyncio.timeout(LIMIT_S):
            while not tail.asked:
                await asyncio.sleep(0.005)
        (last,) = parts.values()
        await last.reconfigure(config)
        answer = await asked
        for replica in (head, tail.replica):
            await asyncio.to_thread(replica.close)
        return answer

    answer = asyncio.run(answered())
    assert (answer.label, answer.stage, answer.certified) == (expected.label, 1, expected.certified)
    np.testing.assert_array_equal(answer.log_probs, expected.log_probs)


def test_rows_of_another_bundle_do_not_continue(bundle: dynamic.Bundle, budget: dynamic.Budget, tmp_path: Path) -> None:
    other = small_bundle(tmp_path / "other", seed=1)
    head, tail = Part(1, is_head=True), Part(1, is_head=False)
    fixed = {"threads": 1, "monitor": dynamic.FixedMonitor()}
    exact = dynamic.Budget(max_drop=0.0)
    with (
        dynamic.Runtime(bundle, exact, part=head, **fixed) as begins,  # type: ignore[arg-type]
        dynamic.Runtime(other, exact, part=tail, **fixed) as ends,  # type: ignore[arg-type]
    ):
        (rest,) = begins(ROWS[:3]).rests
        with pytest.raises(dynamic.errors.BundleError, match="the same bundle to both parts"):
            ends.resume(rest, "reference")
        ends.swap(bundle)
        assert ends.resume(rest, "reference").stage.tolist() == [1, 1, 1]
        with pytest.raises(dynamic.errors.InputError, match="no operating point 'nothing'"):
            ends.resume(rest, "nothing")
        assert isinstance(rest, Rest)


def test_the_metadata_say_where_and_why(bundle: dynamic.Bundle, budget: dynamic.Budget) -> None:
    async def described() -> dict[str, Any]:
        head, sent = await opened(bundle, budget, Tail(None)), []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "path": "/v2/models/shelf", "headers": [], "query_string": b""}
        await head.__serve_build_asgi_app__()(scope, receive, send)
        assert await head.explain() == "asked for"
        await asyncio.to_thread(head.close)
        content: dict[str, Any] = json.loads(b"".join(message.get("body", b"") for message in sent))
        return content

    expected = {"cut": 1, "reason": "asked for", "hop_ms": 0.0, "share": 0.0}
    assert asyncio.run(described())["parameters"] == {"split": expected}


@pytest.mark.parametrize("fails", [False, True])
def test_metrics_of_the_head_count_rows_where_they_ended(
    bundle: dynamic.Bundle, budget: dynamic.Budget, expected: list[Any], fails: bool
) -> None:
    async def text() -> str:
        tail = Tail(await opened(bundle, budget, is_head=False), RuntimeError("no tail") if fails else None)
        head = await opened(bundle, budget, tail)
        for row in ROWS:
            await head.run(row)
        content = head._service.metrics.text().decode()
        for replica in (head, tail.replica):
            await asyncio.to_thread(replica.close)  # type: ignore[union-attr]
        return content

    lines = asyncio.run(text()).splitlines()
    values = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}
    continued = sum(one.stage == 1 for one in expected)
    late, certified = 0 if fails else continued, [one.certified for one in expected if not fails or one.stage == 0]
    assert values['dynamic_stage_share{stage="0"}'] == 1 - late / len(ROWS)
    assert values['dynamic_stage_share{stage="1"}'] == late / len(ROWS)
    assert values["dynamic_certified_share"] == sum(certified) / len(ROWS)
    assert values["dynamic_deadline_cuts_total"] == (continued if fails else 0)


@pytest.fixture(scope="module")
def handle(bundle: dynamic.Bundle, budget: dynamic.Budget) -> Iterator[Any]:
    """An application of two deployments on Ray Serve, without HTTP. Each test deploys its own budget."""
    with local_ray():
        serve.start(proxy_location="Disabled")
        try:
            yield serve.run(dynamic.serve.application(bundle, budget, cut=1), name="cascade")
        finally:
            serve.shutdown()


def inputs_of_tail() -> int:
    state = serve.get_deployment_handle("tail", "cascade").state.remote().result(timeout_s=LIMIT_S)
    return int(state["inputs"])


def deploy(bundle: dynamic.Bundle, budget: dynamic.Budget) -> None:
    """Another budget, until both parts have it."""
    serve.run(dynamic.serve.application(bundle, budget, cut=1), name="cascade")
    for name in ("cascade", "tail"):
        part = serve.get_deployment_handle(name, "cascade")
        until_is(lambda p=part: p.state.remote().result(timeout_s=LIMIT_S)["budget"], budget.to_json(), "the budget")


def test_on_ray_serve_rows_continue_in_the_tail(
    handle: Any, bundle: dynamic.Bundle, budget: dynamic.Budget, expected: list[Any]
) -> None:
    deploy(bundle, budget)
    before = inputs_of_tail()
    replies = [handle.run.remote(row) for row in ROWS]
    answers = [reply.result(timeout_s=LIMIT_S) for reply in replies]
    for what in ("label", "stage"):  # other tests repeat these rows, which is drift, so that none may be certified
        assert [getattr(one, what) for one in answers] == [getattr(one, what) for one in expected]
    assert handle.explain.remote().result(timeout_s=LIMIT_S) == "split before stage 1, as asked for"
    assert handle.state.remote().result(timeout_s=LIMIT_S)["kept_exits"] == 0
    assert inputs_of_tail() - before == sum(one.stage == 1 for one in expected)


def test_another_budget_reaches_both_parts_and_no_request_fails(
    handle: Any, bundle: dynamic.Bundle, budget: dynamic.Budget
) -> None:
    deploy(bundle, budget)
    failures, ended = list[BaseException](), threading.Event()

    def keep_asking() -> None:
        while not ended.is_set():
            try:
                handle.run.remote(ROWS[0]).result(timeout_s=LIMIT_S)
            except BaseException as error:
                failures.append(error)

    asking = threading.Thread(target=keep_asking)
    asking.start()
    try:
        deploy(bundle, dynamic.Budget(max_drop=0.0))
        until_is(lambda: set(handle.run.remote(ROWS).result(timeout_s=LIMIT_S).stage), {1}, "the budget")
    finally:
        ended.set()
        asking.join()
    assert failures == []
