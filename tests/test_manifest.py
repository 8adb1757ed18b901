"""What is a bundle, which snapshots it has, and that nothing else is ever taken for one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlflow_bundle import _layout
from mlflow_bundle._codec import encode
from mlflow_bundle._limits import Limits, Targets
from mlflow_bundle._manifest import (
    commit_snapshot,
    ensure_marker,
    find_snapshot,
    load_snapshot,
    objects_of,
    parents,
    read_marker,
    read_verified,
    snapshot_name,
    snapshot_stems,
    snapshots,
)
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle.errors import (
    BundleError,
    BundleNotFoundError,
    CorruptError,
    LimitError,
    NotFoundError,
    StorageError,
    UnsupportedError,
)
from mlflow_bundle.records import FORMAT, LAYOUT, Logical, ObjectRef, Scope, Snapshot, Source, Writer

CREATED = 1_790_000_000_123


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "bundle"


@pytest.fixture
def storage(folder: Path) -> Storage:
    return open_storage(folder, create=True)


def snapshot_of(*objects: ObjectRef, created_at: int = CREATED, bundle_id: str = "b") -> Snapshot:
    return Snapshot(
        format=FORMAT,
        layout=LAYOUT,
        bundle_id=bundle_id,
        created_at=created_at,
        state="complete",
        scope=Scope(),
        source=Source(kind="test", uri="test:"),
        writer=Writer(name="test", version="1"),
        counts={},
        logical=Logical(root="sha256:" + "0" * 64, kinds={}),
        objects=objects,
    )


def refs(count: int) -> list[ObjectRef]:
    digests = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(count)]
    return [
        ObjectRef(role="blobs", path=_layout.object_path("blobs", sha256), size=i, rows=1) for i, sha256 in enumerate(digests)
    ]


# -- the marker ------------------------------------------------------------------------------------------------------------


def test_a_new_bundle_says_what_it_is(storage: Storage, folder: Path) -> None:
    """An empty place becomes a bundle with a marker, a README and an id of its own; doing it again changes nothing."""
    marker = ensure_marker(storage)
    assert (marker.format, marker.layout, marker.hash) == ("mlflow-bundle", 1, "sha256")
    assert sorted(storage.list("")) == ["README.md", "mlflow-bundle.json"]
    written = (folder / "mlflow-bundle.json").read_bytes()
    assert json.loads(written)["bundle_id"] == marker.bundle_id
    assert ensure_marker(storage) == marker == read_marker(storage)
    assert (folder / "mlflow-bundle.json").read_bytes() == written
    with open_storage(folder.parent / "other", create=True) as other:
        assert ensure_marker(other).bundle_id != marker.bundle_id


def test_nothing_is_no_bundle(storage: Storage) -> None:
    """A place without a marker raises ``BundleNotFoundError`` with a next step."""
    with pytest.raises(BundleNotFoundError, match="there is no bundle at") as raised:
        read_marker(storage)
    assert raised.value.hint


@pytest.mark.parametrize("name", ["notes.txt", "snapshots/x.json", "data/objects/x", ".hidden"])
def test_a_folder_with_other_files_is_not_taken(storage: Storage, folder: Path, name: str) -> None:
    """Files of somebody else are named, and nothing is added to them."""
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(StorageError, match="other files") as raised:
        ensure_marker(storage)
    assert raised.value.code == "foreign-files"
    assert name in raised.value.message
    assert list(storage.list("")) == [name]


def test_what_an_interrupted_pack_left_is_taken_over(storage: Storage) -> None:
    """A README or objects without a marker are the rest of a first pack that died: the next one goes on."""
    data = b"blob"
    storage.put_bytes(b"readme", _layout.README)
    storage.put_bytes(data, _layout.object_path("blobs", hashlib.sha256(data).hexdigest()))
    ensure_marker(storage)
    assert storage.read(_layout.README) == b"readme"


MARKER = {"format": "mlflow-bundle", "layout": 1, "bundle_id": "b", "hash": "sha256", "requires": {"read": [], "write": []}}


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"format": "tar"}, BundleNotFoundError, "'tar'"),
        ({"layout": 2}, UnsupportedError, "layout 2; this release reads layout 1"),
        ({"layout": 0}, UnsupportedError, "layout 0"),
        ({"requires": {"read": ["chunks/1", "x"]}}, UnsupportedError, "chunks/1, x"),
        ({"hash": "blake3"}, UnsupportedError, "'blake3'"),
        ({"layout": "1"}, BundleNotFoundError, "mlflow-bundle.json"),
        ({"bundle_id": None}, BundleNotFoundError, "mlflow-bundle.json"),
    ],
)
def test_other_markers_are_refused(
    storage: Storage, folder: Path, change: dict[str, Any], error: type[BundleError], says: str
) -> None:
    """Another format, a newer layout, an unknown feature or hash: one sentence that says which, for readers and writers."""
    (folder / "mlflow-bundle.json").write_text(json.dumps(MARKER | change))
    for use in (read_marker, ensure_marker):
        with pytest.raises(error, match=says):
            use(storage)


@pytest.mark.parametrize("text", ["", "{", '{"format": "mlflow-bundle"', "\0" * 100])
def test_a_torn_marker_makes_no_bundle(storage: Storage, folder: Path, text: str) -> None:
    """Where the marker is no JSON document there is no bundle (3.1 of the specification); it is not replaced."""
    (folder / "mlflow-bundle.json").write_text(text)
    for use in (read_marker, ensure_marker):
        with pytest.raises(BundleNotFoundError) as caught:
            use(storage)
        assert caught.value.code == "E010"
    assert (folder / "mlflow-bundle.json").read_text() == text


def test_a_feature_for_writers_stops_writers_only(storage: Storage, folder: Path) -> None:
    """A bundle that needs an unknown feature to be written can still be read."""
    (folder / "mlflow-bundle.json").write_text(json.dumps(MARKER | {"requires": {"write": ["chunks/1"]}, "later": 1}))
    assert read_marker(storage).requires.write == ("chunks/1",)
    with pytest.raises(UnsupportedError, match="chunks/1"):
        ensure_marker(storage)


# -- snapshots -------------------------------------------------------------------------------------------------------------


def test_a_snapshot_is_named_by_time_and_digest(storage: Storage, folder: Path) -> None:
    """The name has the UTC time with milliseconds and the first 16 digits of the root digest, which is that of the bytes."""
    committed = commit_snapshot(storage, snapshot_of(), targets=Targets())
    data = (folder / "snapshots" / f"{committed.stem}.json").read_bytes()
    assert data == encode(committed.snapshot)
    assert committed.digest == "sha256:" + hashlib.sha256(data).hexdigest()
    when = datetime.fromtimestamp(CREATED // 1000, UTC).strftime("%Y%m%dT%H%M%S")
    assert committed.stem == f"{when}.123Z-{hashlib.sha256(data).hexdigest()[:16]}"
    assert load_snapshot(storage, committed.stem) == committed


def test_names_sort_by_time(storage: Storage) -> None:
    """The order of the names is that of the times, to the millisecond, and the newest comes first."""
    times = [0, 1, 999, 1000, CREATED, CREATED + 1, 4_102_444_800_000]
    names = [snapshot_name(time, b"") for time in times]
    assert names == sorted(names)
    for time in times:
        commit_snapshot(storage, snapshot_of(created_at=time), targets=Targets())
    assert snapshot_stems(storage) == sorted(snapshot_stems(storage), reverse=True)
    assert [committed.snapshot.created_at for committed in snapshots(storage)] == times[::-1]


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:50] + bytes([data[50] ^ 1]) + data[51:]


@pytest.mark.parametrize("damage", [torn, flipped, lambda _: b"", lambda data: data + b"\n"])
def test_a_torn_snapshot_was_never_committed(storage: Storage, folder: Path, damage: Callable[[bytes], bytes]) -> None:
    """A document that does not match its name is passed over: the snapshot before it is the newest. By name it is an error."""
    good = commit_snapshot(storage, snapshot_of(), targets=Targets())
    bad = commit_snapshot(storage, snapshot_of(created_at=CREATED + 1), targets=Targets())
    file = folder / "snapshots" / f"{bad.stem}.json"
    file.write_bytes(damage(file.read_bytes()))
    assert list(snapshots(storage)) == [good]
    assert find_snapshot(storage, None) == good
    with pytest.raises(CorruptError, match="torn or damaged"):
        find_snapshot(storage, bad.stem)


def test_other_files_are_no_snapshots(storage: Storage, folder: Path) -> None:
    """Leftovers and files of other names among the snapshots are passed over."""
    committed = commit_snapshot(storage, snapshot_of(), targets=Targets())
    for name in ("x.json", f"{committed.stem}.json.part", f"{committed.stem}.tmp", f"deeper/{committed.stem}.json"):
        (folder / "snapshots" / name).parent.mkdir(exist_ok=True)
        (folder / "snapshots" / name).write_bytes(b"{}")
    assert snapshot_stems(storage) == [committed.stem]


@pytest.mark.parametrize("change", [{"layout": 2}, {"requires": {"read": ["chunks/1"], "write": []}}])
def test_a_snapshot_of_a_newer_release_is_not_passed_over(storage: Storage, change: dict[str, Any]) -> None:
    """A newer snapshot that cannot be understood is an error: silently reading an older one would lose data."""
    commit_snapshot(storage, snapshot_of(), targets=Targets())
    document = json.loads(encode(snapshot_of(created_at=CREATED + 1))) | change | {"objects": [{"new": "shape"}]}
    data = encode(document)
    storage.commit(data, _layout.snapshot_path(snapshot_name(CREATED + 1, data)))
    with pytest.raises(UnsupportedError):
        find_snapshot(storage, None)


def test_a_snapshot_with_a_feature_for_writers_is_no_parent(storage: Storage) -> None:
    """Such a snapshot is read like any other, but a new one is built on the newest that this release may write on."""
    older = commit_snapshot(storage, snapshot_of(), targets=Targets())
    data = encode(json.loads(encode(snapshot_of(created_at=CREATED + 1))) | {"requires": {"read": [], "write": ["chunks/1"]}})
    stem = snapshot_name(CREATED + 1, data)
    storage.commit(data, _layout.snapshot_path(stem))
    assert [committed.stem for committed in snapshots(storage)] == [stem, older.stem]
    assert [committed.stem for committed in parents(storage)] == [older.stem]


@pytest.mark.parametrize(
    ("role", "path"),
    [("blobs", refs(1)[0].path.replace("blobs", "packs")), ("blobs", "objects/../etc"), ("views", refs(1)[0].path)],
)
@pytest.mark.parametrize("inline_bytes", [0, 1 << 20])
def test_a_reference_outside_its_role_is_refused(storage: Storage, role: str, path: str, inline_bytes: int) -> None:
    """Nothing is opened where a reference leads elsewhere than to an object of its role, in the document or in a list."""
    strange = ObjectRef(role=role, path=path, size=1, rows=1)
    committed = commit_snapshot(storage, snapshot_of(strange), targets=Targets(inline_bytes=inline_bytes))
    with pytest.raises(CorruptError) as raised:
        objects_of(storage, committed.snapshot)
    assert raised.value.code == "E021"


def test_a_snapshot_is_chosen_by_any_part_of_its_name(storage: Storage) -> None:
    """The beginning of the name, of the id or of the root digest chooses; an ambiguous one does not."""
    first = commit_snapshot(storage, snapshot_of(), targets=Targets())
    second = commit_snapshot(storage, snapshot_of(created_at=CREATED + 1), targets=Targets())
    hexes = first.digest.removeprefix("sha256:")
    for wanted in (first.stem, first.stem[:-5], hexes[:16], hexes[:8], hexes[:40], hexes, first.digest, first.digest[:40]):
        assert find_snapshot(storage, wanted) == first
    assert find_snapshot(storage, None) == second
    year = first.stem[:4]
    with pytest.raises(NotFoundError, match="has 2 snapshots named") as raised:
        find_snapshot(storage, year)
    assert raised.value.hint


def test_a_wrong_root_digest_chooses_nothing(storage: Storage) -> None:
    """Who gives a whole root digest gets that snapshot or none: every digit counts, not only those in the name."""
    committed = commit_snapshot(storage, snapshot_of(), targets=Targets())
    last = committed.digest[-1]
    for wanted in (committed.digest[:-1] + ("0" if last != "0" else "1"), committed.digest + "0", "0" * 64, "x"):
        with pytest.raises(NotFoundError, match="no snapshot named"):
            find_snapshot(storage, wanted)


def test_a_bundle_without_snapshots_says_so(storage: Storage) -> None:
    """An interrupted first pack leaves a bundle without a snapshot, and the error says how to go on."""
    ensure_marker(storage)
    with pytest.raises(NotFoundError, match="no snapshot yet") as raised:
        find_snapshot(storage, None)
    assert "again" in str(raised.value.hint)


def test_a_snapshot_beyond_the_limit_is_not_read(storage: Storage) -> None:
    """A document that is too large raises ``LimitError`` before it is read."""
    committed = commit_snapshot(storage, snapshot_of(*refs(100)), targets=Targets())
    with pytest.raises(LimitError) as raised:
        load_snapshot(storage, committed.stem, limits=Limits(snapshot_bytes=1000))
    assert raised.value.code == "E093"


@pytest.mark.parametrize("count", [0, 1, 3000])
def test_long_lists_of_objects_leave_the_document(storage: Storage, count: int) -> None:
    """Above the limit the list is an object of its own, and reading gives the same objects and that one."""
    wanted = refs(count)
    inline = commit_snapshot(storage, snapshot_of(*wanted), targets=Targets())
    assert objects_of(storage, inline.snapshot) == wanted
    committed = commit_snapshot(
        storage, snapshot_of(*wanted, created_at=CREATED + 1), targets=Targets(inline_bytes=100, frame_bytes=500)
    )
    assert committed.snapshot.objects == ()
    (listing,) = committed.snapshot.object_lists
    assert listing.rows == count
    found = objects_of(storage, load_snapshot(storage, committed.stem).snapshot)
    assert found == [listing, *wanted]
    assert 0 < (storage.size(f"snapshots/{committed.stem}.json") or 0) < 2000


def test_a_damaged_list_of_objects_is_noticed(storage: Storage, folder: Path) -> None:
    """The list has a digest like every object."""
    committed = commit_snapshot(storage, snapshot_of(*refs(50)), targets=Targets(inline_bytes=100))
    file = folder / committed.snapshot.object_lists[0].path
    file.write_bytes(flipped(file.read_bytes()))
    with pytest.raises(CorruptError) as raised:
        objects_of(storage, committed.snapshot)
    assert raised.value.code == "E022"


def test_objects_are_checked_against_their_names(storage: Storage, folder: Path) -> None:
    """A whole object is read only when its bytes have the SHA-256 of its name, and its size is within the limit."""
    data = b"content of a blob"
    path = _layout.object_path("blobs", hashlib.sha256(data).hexdigest())
    storage.put_bytes(data, path)
    assert read_verified(storage, path, limit=100) == data
    with pytest.raises(LimitError):
        read_verified(storage, path, limit=3)
    with pytest.raises(CorruptError):
        read_verified(storage, "mlflow-bundle.json", limit=100)
    (folder / path).write_bytes(b"content of a blub")
    with pytest.raises(CorruptError):
        read_verified(storage, path, limit=100)
    (folder / path).unlink()
    with pytest.raises(NotFoundError):
        read_verified(storage, path, limit=100)
