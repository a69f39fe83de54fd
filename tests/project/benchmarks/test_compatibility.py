"""The benchmark of networks of timm and transformers: processes with limits, and a page that explains every failure."""

import json
import os
import signal
import time
from multiprocessing.connection import Connection

import pytest

from benchmarks.wrapping import compatibility, compatibility_page
from benchmarks.wrapping.compatibility_networks import by_turns, family
from benchmarks.wrapping.compatibility_processes import checked


def work(name: str, sender: Connection) -> None:
    """Children that answer, fail, use too much CPU time, stop for a while or are killed."""
    sender.send({"number": True})
    if name == "busy":
        while True:
            pass
    if name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "stopped":  # as a machine does to processes while something is timed
        parent, child = os.getpid(), os.fork()
        if not child:
            time.sleep(2.5)
            while os.getppid() == parent:  # once may be before it stops
                os.kill(parent, signal.SIGCONT)
                time.sleep(0.2)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGSTOP)
    sender.send({"reason": "", "name": name})


def test_children_have_limits_in_cpu_time_alone() -> None:
    names = ["good", "busy", "killed", "stopped"]
    found = dict(checked(names, work, processes=2, limit_s=1.0))
    assert set(found) == set(names)
    assert all(facts["number"] is True for facts in found.values()), "what was found before is kept"
    assert {name: facts["reason"] for name, facts in found.items()} == {
        "good": "",
        "busy": "took more than 1 s of CPU time",
        "killed": "the process ended with SIGKILL",
        "stopped": "",
    }


def test_one_of_each_module_comes_first() -> None:
    pytest.importorskip("timm")
    sizes = {"timm:resnet50": 25, "timm:resnet18": 12, "timm:vgg11": 133, "timm:resnet34": 22}
    assert by_turns(sizes) == ["timm:resnet18", "timm:vgg11", "timm:resnet34", "timm:resnet50"]
    assert [family(name) for name in ("timm:vgg11", "transformers:bert")] == ["vgg", "text"]


def test_a_row_says_what_was_not_reached() -> None:
    row = compatibility.row_of(
        "transformers:bert", {"number": True, "exact": True, "heads": "why", "reason": "the process ended with SIGKILL"}
    )
    assert [row[check] for check in compatibility.CHECKS] == [True, True, False, *[None] * 5]
    assert row["reasons"] == {"heads": "why", "name": "the process ended with SIGKILL"}
    assert not compatibility.works(row)


def test_the_page_is_that_of_the_result_and_explains_every_failure() -> None:
    result = json.loads(compatibility.RESULT.read_text(encoding="utf-8"))
    assert compatibility_page.PAGE.read_text(encoding="utf-8") == compatibility_page.page(result), (
        "run python -m benchmarks.wrapping.compatibility_page"
    )
    tried = [row["network"] for row in result["rows"]]
    assert len(set(tried)) == len(tried)
    assert set(tried) <= set(result["networks"])


def test_a_failure_that_nobody_has_looked_at_has_no_page() -> None:
    with pytest.raises(LookupError, match="add one to KINDS, with its remedy"):
        compatibility_page.kind_of("export", "something new")
