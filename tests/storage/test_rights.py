"""Who may read and write a shelf: the umask, other users, read-only folders."""

import os
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.child_process import in_child
from support.storage_cases import forked, linux, logits, mounted, names, root
from torch import nn

import dynamic
from dynamic.bundle.bundle import Bundle
from dynamic.bundle.manifest import MANIFEST
from dynamic.errors import BundleError, DiskError
from dynamic.models import save_weights


@linux
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_umask_decides_who_may_read(one: Bundle, tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        one.save(tmp_path / "shelf")  # from a temporary folder, which is for one user alone
        dynamic.load(tmp_path / "shelf").profile(batch=(1,), seconds=0.01).open("auto").close()
        save_weights(nn.Linear(2, 2), tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    for path in [tmp_path / "shelf", tmp_path / "w.safetensors", *(tmp_path / "shelf").rglob("*")]:
        wanted = (0o777 if path.is_dir() else 0o666) & ~mask
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(wanted), path


def as_nobody(work: Any) -> int:
    def child() -> None:
        os.setgid(65534)
        os.setuid(65534)
        work()

    return forked(child)


@pytest.fixture
def open_path() -> Iterator[Path]:
    """A folder that every user may reach. pytest takes the rights from its own whenever another run starts."""
    with tempfile.TemporaryDirectory(prefix="open-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


@root
def test_a_shelf_of_another_user_is_read_and_not_written(one: Bundle, other: Bundle, open_path: Path) -> None:
    shelf = one.save(open_path / "shelf").folder
    expected, before = logits(one), sorted(shelf.rglob("*"))

    def service() -> None:
        try:
            bundle = dynamic.load(shelf).profile(batch=(1,), seconds=0.01, progress=False)
            np.testing.assert_array_equal(logits(bundle, route="stages"), expected)
            assert bundle.costs is not None
            with pytest.raises(
                DiskError, match=r"the bundle could not be written to .*shelf: Permission denied\. Choose"
            ):
                bundle.save(shelf)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    assert as_nobody(service) == 0
    assert sorted(shelf.rglob("*")) == before
    assert names(open_path) == ["shelf"]
    (shelf / MANIFEST).chmod(0o600)

    def refused() -> None:
        try:
            dynamic.load(shelf)
        except BundleError as error:
            os._exit(0 if "Permission denied" in str(error) else 1)
        os._exit(2)

    assert as_nobody(refused) == 0


@root
def test_the_lock_of_another_user_who_was_killed_is_taken_over(one: Bundle, open_path: Path) -> None:
    (open_path / "models").mkdir()
    (open_path / "models").chmod(0o777)
    (open_path / "models" / ".shelf.lock").touch(0o644)

    def save() -> None:
        dynamic.load(open_path / "first").save(open_path / "models" / "shelf")
        os._exit(0)

    one.save(open_path / "first")
    assert as_nobody(save) == 0
    assert names(open_path / "models") == ["shelf"]


@root
def test_a_read_only_shelf_runs_and_is_not_written(
    one: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    one.save(tmp_path / "shelf")
    with mounted(tmp_path / "image", "--bind", str(tmp_path / "shelf")) as image:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(image)], check=True)
        bundle = dynamic.load(image).profile(batch=(1,), seconds=0.01)
        assert bundle.costs is not None
        assert "costs could not be kept in" in caplog.text
        assert logits(bundle).shape == (5, 4)
        with pytest.raises(DiskError, match=r"image: Read-only file system\. Choose another folder"):
            bundle.save(image)
        assert dynamic.load(image).hashes == one.hashes
    with mounted(tmp_path / "away", "--bind", str(tmp_path / "shelf")) as away:  # unmounted while it is loaded
        loaded = dynamic.load(away)
    assert loaded.place is None
    assert logits(loaded).shape == (5, 4)


@linux
def test_a_read_only_shelf_is_replaced_and_leaves_nothing(one: Bundle, open_path: Path) -> None:
    """Its parent may be written. The old one cannot be emptied before it is made writable."""
    source = one.save(open_path / "source").folder
    (open_path / "own").mkdir()
    (open_path / "own").chmod(0o777)

    def work() -> list[str]:
        if os.geteuid() == 0:  # root may empty any folder
            os.setgid(65534)
            os.setuid(65534)
        for _ in range(3):
            shelf = dynamic.load(source).save(open_path / "own" / "shelf").folder
            for path in (*shelf.rglob("*"), shelf):
                path.chmod(0o555)
        return names(open_path / "own")

    assert in_child(work) == ["shelf"]
