"""The guard of conftest notices what it is there for."""

from pathlib import Path

import pytest
import torch
from support.process_state import process_state


@pytest.mark.parametrize("what", ["variables", "working folder", "torch"])
def test_a_change_is_seen(what: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    threads, before = torch.get_num_threads(), process_state()
    if what == "variables":
        monkeypatch.setenv("DYNAMIC_LEFT_BEHIND", "1")
    elif what == "working folder":
        monkeypatch.chdir(tmp_path)
    else:
        torch.set_num_threads(threads + 1)
    try:
        after = process_state()
    finally:
        torch.set_num_threads(threads)
    assert [name for name in before if before[name] != after[name]] == [what]
