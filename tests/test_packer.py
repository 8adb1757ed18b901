"""One snapshot in the making: what it holds, what it refuses, and that a broken writer commits nothing."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import msgspec
import pyarrow as pa
import pytest

import mlflow_bundle as bundle
from mlflow_bundle import _layout
from mlflow_bundle._codec import encode, logical_digest
from mlflow_bundle._digests import hex_of
from mlflow_bundle._manifest import ensure_marker, objects_of, snapshots
from mlflow_bundle._merkle import MerkleTree, leaf, logical
from mlflow_bundle._owners import files_digest
from mlflow_bundle._packer import FileRow, Packer
from mlflow_bundle._series import series_digests
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._storage._backend import Staged
from mlflow_bundle._storage._local import LocalStorage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle.entities import LoggedModel, ModelVersion, Trace
from mlflow_bundle.errors import BundleError, LimitError, StorageError
from mlflow_bundle.records import KINDS, Experiment, KeyValue, Problem, Run, record_id
from tests.building import (
    PLAIN,
    TINY,
    Content,
    content_of,
    everything_of,
    pack_content,
    plain_rows,
    plain_schema,
    rows_digest,
    run_of,
    series,
    span_of,
    trace_of,
)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(tmp_path / "bundle", create=True)


def files_of(content: Content, run: Run) -> list[tuple[str, int, str | None, str]]:
    rows = content.files.get(run.run_id, {}).items()
    return sorted((path, len(data), hashlib.sha256(data).hexdigest(), "ok") for path, data in rows)


def test_a_snapshot_counts_what_it_holds(storage: Storage) -> None:
    """The counts are those of the content, and the list has every object with its size and rows, and no other."""
    content = content_of(60)
    committed, packer = pack_content(storage, content)
    assert committed.snapshot.counts == {
        "experiment": 1,
        "run": 60,
        "metric_point": 600,
        "file": 120,
        "file_bytes": sum(len(data) for files in content.files.values() for data in files.values()),
    }
    refs = objects_of(storage, committed.snapshot)
    assert {ref.path: ref.size for ref in refs} == storage.list("objects")
    assert packer.new_objects == len(refs)
    assert packer.new_bytes == sum(ref.size for ref in refs)
    assert packer.shared_objects == 0
    rows = {
        role: sum(ref.rows for ref in refs if ref.role == role) for role in ("records", "metrics", "files", "views", "packs")
    }
    assert rows == {"records": 61, "metrics": 600, "files": 120, "views": 60, "packs": 120}
    assert len([ref for ref in refs if ref.role == "metrics"]) > 3


def test_the_logical_root_is_over_records_series_and_files(storage: Storage) -> None:
    """The root is the Merkle tree of the specification, computed here from the content alone."""
    content = content_of(25)
    committed, _ = pack_content(storage, content)
    trees = {"experiment": MerkleTree(), "run": MerkleTree()}
    for experiment in content.experiments:
        trees["experiment"].add(leaf("experiment", logical_digest(encode(experiment), "experiment")))
    for run in content.runs:
        ((_, points),) = series_digests([series([(0, *point) for point in content.points[run.run_id]])], 1)
        files = files_digest(files_of(content, run))
        trees["run"].add(leaf("run", logical_digest(encode(run), "run"), bytes.fromhex(points), bytes.fromhex(files)))
    assert committed.snapshot.logical == logical(trees)


def test_the_logical_root_is_over_all_that_an_entity_owns(storage: Storage) -> None:
    """A leaf of any kind is over its record and the digests of its tables, in their order; nothing is the digest of nothing."""
    content = everything_of(12)
    committed, _ = pack_content(storage, content)
    trees = {kind: MerkleTree() for kind in KINDS}
    nothing = {"files/1": files_digest(()), **{table: hashlib.sha256().hexdigest() for table in PLAIN}}
    for record in content.entities:
        kind, identity = str(record.__struct_config__.tag), record_id(record)
        parts = [logical_digest(encode(record), kind)]
        for table in KINDS[kind].tables:
            rows, files = content.rows.get((table, identity), []), content.entity_files.get((kind, identity), {})
            digest = nothing[table]
            if table == "files/1" and files:
                listed = sorted((path, len(data), hashlib.sha256(data).hexdigest(), "ok") for path, data in files.items())
                digest = files_digest(listed)
            elif rows:
                digest = rows_digest(table, rows)
            parts.append(bytes.fromhex(digest))
        trees[kind].add(leaf(kind, *parts))
    expected = logical({kind: tree for kind, tree in trees.items() if tree.rows}).kinds
    found = committed.snapshot.logical.kinds
    assert {kind: found[kind] for kind in expected} == expected
    assert set(found) - set(expected) == {"experiment", "run"}


def test_everything_is_counted(storage: Storage) -> None:
    """Kinds and rows have counts; what there is none of has none, but for what every archive tells."""
    content = everything_of(8)
    committed, _ = pack_content(storage, content)
    files = [*content.files.values(), *content.entity_files.values()]
    assert committed.snapshot.counts == {
        "experiment": 1,
        "run": 8,
        "logged_model": 8,
        "registered_model": 1,
        "model_version": 8,
        "trace": 8,
        "evaluation_dataset": 1,
        "dataset_record": 3,
        "scorer": 1,
        "metric_point": 80,
        "model_metric_point": sum(len(rows) for (table, _), rows in content.rows.items() if table == "model_metrics/1"),
        "span": sum(len(rows) for (table, _), rows in content.rows.items() if table == "spans/1"),
        "file": sum(len(one) for one in files),
        "file_bytes": sum(len(data) for one in files for data in one.values()),
    }
    refs = objects_of(storage, committed.snapshot)
    assert {ref.path: ref.size for ref in refs} == storage.list("objects")
    views = {kind: sum(r.rows for r in refs if (r.role, r.kind) == ("views", kind)) for kind in KINDS}
    assert views == {name: committed.snapshot.counts.get(name, 0) if kind.tables else 0 for name, kind in KINDS.items()}


def test_one_id_of_several_kinds(storage: Storage) -> None:
    """A run, a logged model, a model version and a trace of the same id have their own files."""
    content = Content()
    content.runs.append(Run(run_id="x/1", experiment_id="1"))
    content.files["x/1"] = {"f": b"run"}
    content.entities = [
        LoggedModel(model_id="x/1", experiment_id="1", name="m"),
        ModelVersion(name="x", version=1),
        Trace(trace_id="x/1", experiment_id="1"),
    ]
    content.entity_files = {(kind, "x/1"): {"f": kind.encode()} for kind in ("logged_model", "model_version", "trace")}
    pack_content(storage, content, targets=bundle.Targets())
    with bundle.open(storage.url) as archive:
        for kind in ("run", "logged_model", "model_version", "trace"):
            with archive.open_file("x/1", "f", kind=kind) as stream:
                assert stream.read() == kind.encode()
            assert archive.files(kind=kind).num_rows == 1


@pytest.mark.parametrize("table", PLAIN)
def test_every_digested_column_changes_the_logical_root(storage: Storage, tmp_path: Path, table: str) -> None:
    """A change of any digested column of a row changes the root; one of a derived column does not."""
    content = everything_of(4)
    before, _ = pack_content(storage, content)
    owner = next(owner for name, owner in content.rows if name == table and content.rows[name, owner])
    row = content.rows[table, owner][1]
    for column in plain_schema(table).names[1:]:
        old = row.get(column)
        row[column] = {str: "changed", int: 77, float: 0.5}[type(old)] if old is not None else _some(table, column)
        with open_storage(tmp_path / column, create=True) as other:
            after, _ = pack_content(other, content)
        changed = after.snapshot.logical.root != before.snapshot.logical.root
        assert changed == (column in TABLES[table].digested), column
        row[column] = old


def _some(table: str, column: str) -> object:
    """A value that a column may have."""
    return {pa.string(): "changed", pa.int64(): 77, pa.float64(): 0.5}[plain_schema(table).field(column).type]


def change_tag(content: Content) -> None:
    content.runs[7] = msgspec.structs.replace(content.runs[7], tags=(KeyValue(key="team", value="other"),))


def change_point(content: Content) -> None:
    key, step, stamp, value = content.points[content.runs[7].run_id][3]
    content.points[content.runs[7].run_id][3] = (key, step, stamp, value + 1e-12)


def change_file(content: Content) -> None:
    content.files[content.runs[7].run_id]["f0.txt"] += b"x"


def rename_file(content: Content) -> None:
    files = content.files[content.runs[7].run_id]
    files["g0.txt"] = files.pop("f0.txt")


def drop_run(content: Content) -> None:
    content.runs.pop(7)


def change_experiment(content: Content) -> None:
    content.experiments[0] = msgspec.structs.replace(content.experiments[0], name="renamed")


def move_point(content: Content) -> None:
    content.points[content.runs[8].run_id].insert(0, content.points[content.runs[7].run_id].pop(0))


@pytest.mark.parametrize(
    "change", [change_tag, change_point, change_file, rename_file, drop_run, change_experiment, move_point]
)
def test_every_change_changes_the_logical_root(storage: Storage, tmp_path: Path, change: Callable[[Content], None]) -> None:
    """No change of a record, a point or a file leaves the logical root as it was."""
    content = content_of(12)
    before, _ = pack_content(storage, content)
    change(content)
    with open_storage(tmp_path / "other", create=True) as other:
        after, _ = pack_content(other, content)
    assert after.snapshot.logical.root != before.snapshot.logical.root


def test_where_files_lie_is_no_part_of_the_logical_root(storage: Storage, tmp_path: Path) -> None:
    """A run whose artifacts lie elsewhere is the same run; its record is kept as it is all the same."""
    content = content_of(3)
    before, _ = pack_content(storage, content)
    content.runs[1] = msgspec.structs.replace(content.runs[1], artifact_uri="s3://elsewhere/x")
    content.experiments[0] = msgspec.structs.replace(content.experiments[0], artifact_location="s3://elsewhere")
    with open_storage(tmp_path / "other", create=True) as other:
        after, _ = pack_content(other, content)
    assert after.snapshot.logical == before.snapshot.logical
    with bundle.open(tmp_path / "other") as archive:
        assert archive.run(content.runs[1].run_id).artifact_uri == "s3://elsewhere/x"


def test_targets_change_objects_and_not_what_they_say(storage: Storage, tmp_path: Path) -> None:
    """Other shard, frame and pack sizes give other objects and the same logical section."""
    content = content_of(40)
    small, _ = pack_content(storage, content)
    with open_storage(tmp_path / "other", create=True) as other:
        large, _ = pack_content(other, content, targets=bundle.Targets())
    assert len(small.snapshot.objects) > 2 * len(large.snapshot.objects)
    assert small.snapshot.logical == large.snapshot.logical
    assert small.snapshot.counts == large.snapshot.counts


def test_packing_is_deterministic(storage: Storage, tmp_path: Path) -> None:
    """The same content gives the same objects, byte for byte."""
    pack_content(storage, content_of(40))
    with open_storage(tmp_path / "other", create=True) as other:
        pack_content(other, content_of(40))
        assert other.list("objects") == storage.list("objects")


def test_an_empty_archive_is_one(storage: Storage) -> None:
    """No experiments and no runs make a snapshot that can be opened."""
    committed, _ = pack_content(storage, Content(experiments=[]))
    assert committed.snapshot.objects == ()
    with bundle.open(storage.url) as archive:
        assert archive.runs().num_rows == archive.experiments().num_rows == archive.metrics().num_rows == 0
        assert archive.runs(wide=True).num_rows == archive.files().num_rows == archive.params().num_rows == 0


def test_problems_make_a_snapshot_partial(storage: Storage) -> None:
    """A snapshot with problems says so, and carries them."""
    problem = Problem(code="artifact-unreadable", message="m", kind="run", id="r", path="p")
    committed, _ = pack_content(storage, content_of(1), problems=[problem])
    assert committed.snapshot.state == "partial"
    assert committed.snapshot.problems == (problem,)


def test_secrets_in_records_are_taken_out(storage: Storage, tmp_path: Path) -> None:
    """No byte of a bundle holds the password of a URI in a tag, and the number of redactions is known."""
    content = content_of(0)
    content.runs = [run_of(0, tags={"db": "postgresql://me:hunter22@db/x", "url": "https://h/?token=hunter22&a=1"})]
    _, packer = pack_content(storage, content)
    assert packer.redacted == 2
    with bundle.open(storage.url) as archive:
        assert {t["key"]: t["value"] for t in archive.tags().to_pylist()} == {
            "db": "postgresql://me:REDACTED@db/x",
            "url": "https://h/?token=REDACTED&a=1",
        }
    assert not [file for file in (tmp_path / "bundle").rglob("*") if file.is_file() and b"hunter22" in file.read_bytes()]


def test_secrets_in_spans_are_taken_out(storage: Storage, tmp_path: Path) -> None:
    """No byte of a bundle holds the password of a URI in a span, its neighbours are as they were, and it is counted."""
    content = everything_of(4)
    trace = next(owner for table, owner in content.rows if table == "spans/1" and content.rows[table, owner])
    texts = ['{"a":"postgresql://me:hunter22@db/x"}', '{"a":"https://example.com/"}', '{"b":"https://h/?token=hunter22&a=1"}']
    for row, text in zip(content.rows["spans/1", trace], texts, strict=False):
        row["content"] = text
    _, packer = pack_content(storage, content)
    assert packer.redacted == 2
    with bundle.open(storage.url) as archive:
        found = archive.spans(trace_id=trace).column("content").to_pylist()
    assert found[:3] == ['{"a":"postgresql://me:REDACTED@db/x"}', texts[1], '{"b":"https://h/?token=REDACTED&a=1"}']
    assert found[3:] == [row["content"] for row in content.rows["spans/1", trace][3:]]
    data = b"".join(file.read_bytes() for file in (tmp_path / "bundle" / "objects" / "spans").iterdir())
    assert b"hunter22" not in data


# -- order -----------------------------------------------------------------------------------------------------------------


def test_records_out_of_order_are_refused(storage: Storage) -> None:
    """A record that comes too late, or twice, is a mistake of the caller; kinds are ordered each for itself."""
    packer = Packer(storage, ensure_marker(storage), targets=TINY)
    packer.add(run_of(2))
    packer.add(Experiment(experiment_id="1", name="x"))
    for late in (run_of(1), run_of(2)):
        with pytest.raises(ValueError, match="does not come after"):
            packer.add(late)
    packer.add(run_of(3))
    packer.close()


def test_rows_and_files_out_of_order_are_refused(storage: Storage) -> None:
    """Rows of an owner that was passed already or is not known, and files of an owner that was passed, are mistakes."""
    packer = Packer(storage, ensure_marker(storage), targets=TINY)
    for number in range(3):
        packer.add(trace_of(number))
    rows = plain_rows("spans/1", packer.ids, {("spans/1", packer.ids["trace"][1]): [span_of(1, 0)]})
    packer.add_rows("spans/1", rows)
    packer.add_rows("spans/1", rows, first=1)
    for first in (-1, 0, 2):
        with pytest.raises(ValueError, match="out of order"):
            packer.add_rows("spans/1", rows, first=first)
    packer.add_files([], kind="trace", owner=packer.ids["trace"][1])
    for late in (packer.ids["trace"][0], packer.ids["trace"][1], "unknown"):
        with pytest.raises(ValueError, match="do not come in the order"):
            packer.add_files([], kind="trace", owner=late)
    packer.close()


# -- the self-check --------------------------------------------------------------------------------------------------------


class Forgetful(LocalStorage):
    """A folder whose disk flips a bit in the n-th file that is read back before it is put."""

    broken = -1
    read_back = 0

    def stage(self) -> Staged:
        storage = self

        class Broken(Staged):
            def reopen(self) -> BinaryIO:
                self.finish()
                if storage.read_back == storage.broken:
                    data = bytearray(self.path.read_bytes())
                    data[min(150, len(data) // 3)] ^= 4
                    self.path.write_bytes(data)
                storage.read_back += 1
                return super().reopen()

        staged = super().stage()
        staged.__class__ = Broken
        return staged


def test_a_broken_disk_commits_nothing(tmp_path: Path) -> None:
    """Whichever object reads back with a flipped bit: it is not put, nothing is committed."""
    content = everything_of(5)
    content.files[content.runs[0].run_id]["large"] = bytes(TINY.blob_bytes)
    sound = Forgetful("sound", tmp_path / "sound", create=True)
    committed, _ = pack_content(sound, content)
    assert {ref.role for ref in committed.snapshot.objects} >= {"blobs", "packs", "records", "spans", "views"}
    assert sound.read_back >= len(committed.snapshot.objects)
    for number in range(sound.read_back):
        storage = Forgetful("broken", tmp_path / str(number), create=True)
        storage.broken = number
        with pytest.raises(BundleError):
            pack_content(storage, content)
        assert list(snapshots(storage)) == []
        for path in storage.list("objects"):
            assert hex_of(storage.read(path)) == _layout.object_hex(path)


@pytest.mark.parametrize("form", ["bundle", "bundle.mlbundle.zip"])
@pytest.mark.parametrize("role", ["blobs", "files", "index", "metrics", "packs", "records", "spans", "views"])
def test_a_damaged_object_is_not_taken_for_the_one_that_was_made(tmp_path: Path, role: str, form: str) -> None:
    """A full pack that finds an object of the right name and size with other bytes says so; without it, it writes it anew."""
    content = everything_of(5)
    content.files[content.runs[0].run_id]["large"] = bytes(TINY.blob_bytes)
    with closing(open_storage(tmp_path / form)) as storage:
        committed, _ = pack_content(storage, content)
        files = {path: storage.read(path) for path in storage.list("")}
    path = next(ref.path for ref in committed.snapshot.objects if ref.role == role)
    damage = bytearray(files[path])
    damage[len(damage) // 3] ^= 0x40
    write_files(tmp_path / form, files | {path: bytes(damage)})
    with closing(open_storage(tmp_path / form)) as storage:
        with pytest.raises(StorageError, match=path) as caught:
            pack_content(storage, content, full=True)
        assert caught.value.code == "object-damaged"
    del files[path]
    write_files(tmp_path / form, files)
    with closing(open_storage(tmp_path / form)) as storage:
        pack_content(storage, content, full=True)
    assert bundle.verify(tmp_path / form).ok
    with bundle.open(tmp_path / form) as archive:
        assert len(archive.snapshots()) == 2


def write_files(place: Path, files: dict[str, bytes]) -> None:
    """Make a bundle of these files, in either form, in place of the one that is there."""
    if place.suffix == ".zip":
        place.unlink()
        with zipfile.ZipFile(place, "w") as archive:
            for path, data in files.items():
                archive.writestr(path, data)
    else:
        shutil.rmtree(place)
        for path, data in files.items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(data)


def test_a_pack_that_gives_up_leaves_no_temporary_files(storage: Storage, tmp_path: Path) -> None:
    """A packer that is closed before the commit leaves its whole objects, and nothing unfinished."""
    content = content_of(30)
    packer = Packer(storage, ensure_marker(storage), targets=TINY)
    for record in [*content.experiments, *content.runs]:
        packer.add(record)
    points = [(number, *point) for number, run in enumerate(content.runs) for point in content.points[run.run_id]]
    packer.add_series(series(points))
    packer.add_files([FileRow(path="x", size=1, sha256=packer.blobs.add_bytes(b"x"))])
    packer.close()
    storage.close()
    assert list(snapshots(storage)) == []
    assert not (tmp_path / "bundle" / ".staging").exists()
    for path in storage.list("objects"):
        assert hex_of(storage.read(path)) == _layout.object_hex(path)


def test_a_number_beyond_what_json_can_hold_is_refused(tmp_path: Path) -> None:
    """A run with a start in nanoseconds is named and nothing of it is kept; the greatest integer is fine, as is any text."""
    storage = open_storage(tmp_path / "b", create=True)
    with closing(storage), closing(Packer(storage, ensure_marker(storage))) as packer:
        packer.add(Run(run_id="a", experiment_id="1", start_time=2**53 - 2, run_name="12345678901234567890"))
        with pytest.raises(LimitError, match=rf"run b has the number {2**53}") as caught:
            packer.add(Run(run_id="b", experiment_id="1", start_time=2**53))
        assert caught.value.code == "number-too-large"
