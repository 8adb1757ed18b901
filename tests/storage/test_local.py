"""The storage suite on a folder of this machine, and what only such a one can show."""

from __future__ import annotations

import os
import stat
import time
from functools import partial
from pathlib import Path

import pytest

from mlflow_bundle import _layout
from mlflow_bundle._storage import open_storage
from tests.storage.suite import SNAPSHOT, Opener, StorageTests, put


class TestLocal(StorageTests):
    """A bundle in a folder that does not exist yet."""

    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        return partial(open_storage, tmp_path / "above" / "a bundle")


def test_opening_creates_nothing(tmp_path: Path) -> None:
    """Looking at a place leaves it as it is; only ``create`` or a write makes the folder."""
    with open_storage(tmp_path / "a" / "b") as storage:
        assert storage.list("") == {}
    assert list(tmp_path.iterdir()) == []
    open_storage(tmp_path / "a" / "b", create=True)
    assert (tmp_path / "a" / "b").is_dir()


def test_nothing_but_the_bundle_is_left(tmp_path: Path) -> None:
    """After ``close`` the folder holds the files of the bundle and no temporary one, readable as the umask says."""
    with open_storage(tmp_path / "bundle") as storage:
        path = put(storage, b"object")
        storage.commit(b"snapshot", SNAPSHOT)
    files = {file.relative_to(tmp_path / "bundle").as_posix() for file in (tmp_path / "bundle").rglob("*") if file.is_file()}
    assert files == {path, SNAPSHOT}
    assert not (tmp_path / "bundle" / _layout.STAGING).exists()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "bundle" / path).stat().st_mode) == 0o666 & ~mask


def test_leftovers_of_dead_writers(tmp_path: Path) -> None:
    """Staged files that nobody touched for a day are removed; younger ones may belong to somebody and stay; none is listed."""
    staging = tmp_path / "bundle" / _layout.STAGING
    staging.mkdir(parents=True)
    for name, hours in (("old", 25), ("young", 23)):
        (staging / name).write_bytes(b"unfinished")
        then = time.time() - hours * 3600
        os.utime(staging / name, (then, then))
    with open_storage(tmp_path / "bundle") as storage:
        path = put(storage, b"object")
        assert storage.list("") == {path: 6}
    assert [file.name for file in staging.iterdir()] == ["young"]


def test_a_writer_that_closes_does_not_disturb_another(tmp_path: Path) -> None:
    """The folder of temporary files may vanish between two writes of another writer."""
    one, two = open_storage(tmp_path / "bundle"), open_storage(tmp_path / "bundle")
    put(one, b"first")
    two.close()
    assert put(one, b"second") in two.list("")
