"""Entities without a folder for files are told apart by one listing of the place where the folders are."""

from __future__ import annotations

from pathlib import Path

import fsspec

from mlflow_bundle.tracking._port import ArtifactStore
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.artifacts._folders import Folders
from mlflow_bundle.tracking.artifacts._own import NoArtifacts


class Opened:
    """Opens stores and notes where."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def __call__(self, place: str) -> ArtifactStore:
        self.places.append(place)
        return artifact_store(place, client=None, run_id="x")


def test_one_listing_tells_of_all(tmp_path: Path) -> None:
    """Of the entities of a place only those without a folder lack one, and the place is opened once."""
    (tmp_path / "traces" / "tr-1" / "artifacts").mkdir(parents=True)
    (tmp_path / "traces" / "tr-3").write_bytes(b"a file where a folder should be")
    folders, opened = Folders(), Opened()
    place = f"{tmp_path}/traces"
    lacking = [name for name in ("tr-1", "tr-2", "tr-3", "TR-1") if folders.lack(f"{place}/{name}/artifacts", name, opened)]
    assert lacking == ["tr-2"]
    assert folders.lack(f"{place}/tr-4", "tr-4", opened)
    assert opened.places == [place]


def test_a_place_that_is_not_there_has_no_folders(tmp_path: Path) -> None:
    """Where the place itself is missing, nothing is in it: in a folder as in an object store."""
    for place in (f"{tmp_path}/none", "memory://none/traces"):
        assert Folders().lack(f"{place}/tr-1/artifacts", "tr-1", Opened())


def test_prefixes_of_a_store_count_as_folders() -> None:
    """What lies below a prefix of an fsspec file system gives the entity a folder."""
    fsspec.filesystem("memory").pipe_file("/folders/traces/tr-1/artifacts/a.txt", b"a")
    folders, opened = Folders(), Opened()
    place = "memory://folders/traces"
    lacking = [name for name in ("tr-1", "tr-2") if folders.lack(f"{place}/{name}/artifacts", name, opened)]
    assert (lacking, opened.places) == (["tr-2"], [place])


def test_what_cannot_be_known_is_not_claimed(tmp_path: Path) -> None:
    """A location that does not name the entity, a place that is no folder, and a store that cannot list: look there."""
    (tmp_path / "file").write_bytes(b"")
    folders = Folders()
    assert not folders.lack(f"{tmp_path}/elsewhere", "tr-1", Opened())
    assert not folders.lack(f"{tmp_path}/tr-10/artifacts", "tr-1", Opened())
    assert not folders.lack(f"{tmp_path}/file/tr-1", "tr-1", Opened())
    assert not folders.lack(f"{tmp_path}/none/tr-1", "tr-1", lambda _: NoArtifacts())
