"""What is read of a damaged snapshot: everything but what the damaged bytes held, and what is lost is told."""

from __future__ import annotations

import dataclasses
import errno
import io
import random
import shutil
import struct
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from mlflow_bundle._bundle import Bundle, open_bundle, salvage
from mlflow_bundle._codec import decode_frame, seek_table
from mlflow_bundle._limits import DEFAULT_LIMITS, WRITER_TARGETS, Limits, Targets
from mlflow_bundle._storage import open_storage
from mlflow_bundle.errors import NotFoundError
from mlflow_bundle.records import KINDS, ObjectRef, record_id
from mlflow_bundle.tracking._damage import salvaged
from tests.building import START, TINY, Content, content_of, everything_of, pack_content

Damage = Callable[[Path], object]


def _lose(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _flip(path: Path, at: float = 0.4) -> None:
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 0x11
    path.write_bytes(data)


def _salvaged(folder: Path) -> Bundle:
    """The bundle without what a verification finds in it."""
    with open_bundle(folder) as whole:
        problems = whole.verify(level="tables").problems
        return salvage(whole, {problem.object: problem.code for problem in problems if problem.object})


def _rows(archive: Bundle, kind: str, table: str, identity: str) -> list[str]:
    """The rows of an owner as texts, in which a NaN is the same as another."""
    parts = [archive.files_of_entities(kind, [identity])] if table == "files/1" else archive.rows(table, [identity])
    return [repr(row) for part in parts for row in part.to_pylist()]


def _assert_only_this_is_lost(whole: Bundle, rest: Bundle, damaged: ObjectRef) -> int:
    """Whatever is not told as lost is what it was, and nothing that lay elsewhere is lost. Returns how much is lost."""
    count = 0
    for kind in whole.kinds():
        records, left = list(whole.records(kind)), list(rest.records(kind))
        assert len(records) == len(left) + rest.reader.lost_records(kind)
        assert set(map(record_id, left)) <= set(map(record_id, records))
        assert all(record in records for record in left)
        assert len(records) == len(left) or (damaged.role, damaged.kind) == ("records", kind)
        count += len(records) - len(left)
        for identity in map(record_id, records) if KINDS[kind].tables else ():
            lost = {loss.table for loss in rest.reader.lost(kind, identity)}
            count += len(lost)
            for table in KINDS[kind].tables:
                if table in lost:
                    assert whole.reader._place(kind, table, identity).object == damaged.path
                    assert rest.reader.counts(kind, table, [identity]) == [0]
                    assert not _rows(rest, kind, table, identity)
                else:
                    assert _rows(rest, kind, table, identity) == _rows(whole, kind, table, identity)
    return count


@pytest.mark.slow
@pytest.mark.parametrize("damage", [_lose, _cut, _flip], ids=["lost", "cut", "flipped"])
def test_whatever_object_is_damaged(tmp_path: Path, damage: Damage) -> None:
    """Any one object of records, tables or views: the rest is read as it was, and what is lost is what lay in it."""
    with open_storage(tmp_path / "bundle", create=True) as storage:
        pack_content(storage, everything_of(6))
    shutil.copytree(tmp_path / "bundle", tmp_path / "whole")
    costly = set()
    with open_bundle(tmp_path / "whole") as whole:
        for ref in whole.objects:
            if ref.role not in ("packs", "blobs", "index"):
                damage(tmp_path / "bundle" / ref.path)
                if _assert_only_this_is_lost(whole, _salvaged(tmp_path / "bundle"), ref):
                    costly.add(ref.role)
                shutil.copy(tmp_path / "whole" / ref.path, tmp_path / "bundle" / ref.path)
    # A records object that is cut off at its end has lost its seek table, and no frame.
    assert costly >= ({"files"} if damage is _cut else {"records", "files"})
    assert "views" not in costly


def test_a_view_and_a_table(tmp_path: Path) -> None:
    """Where the view of the runs and a table are damaged, no run seems to have no rows that may have lost some."""
    content = content_of(20)
    with open_storage(tmp_path / "bundle", create=True) as storage:
        pack_content(storage, content)
    with open_bundle(tmp_path / "bundle") as whole:
        refs = whole.objects
        _lose(tmp_path / "bundle" / next(ref.path for ref in refs if ref.role == "views"))
        _cut(tmp_path / "bundle" / next(ref.path for ref in refs if ref.role == "metrics"))
    rest = _salvaged(tmp_path / "bundle")
    for run in content.runs:
        lost = [loss.table for loss in rest.reader.lost("run", run.run_id)]
        assert lost == ["metrics/1"] or rest.metric_rows([run.run_id]) == [10]


def test_a_row_group(tmp_path: Path) -> None:
    """Of a large table only the runs are lost whose points are in the damaged row group."""
    content = content_of(6, points=50_000)
    with open_storage(tmp_path / "bundle", create=True) as storage:
        pack_content(storage, content, targets=WRITER_TARGETS)
    with open_bundle(tmp_path / "bundle") as whole:
        path = tmp_path / "bundle" / next(ref.path for ref in whole.objects if ref.role == "metrics")
        order = [record_id(run) for run in whole.records("run")]
    groups = pq.read_metadata(path)
    last = groups.row_group(groups.num_row_groups - 1).column(groups.num_columns - 1)
    assert groups.num_row_groups > 1
    _flip(path, (last.data_page_offset + last.total_compressed_size // 2) / path.stat().st_size)
    rest = _salvaged(tmp_path / "bundle")
    lost = [run for run in order if rest.reader.lost("run", run)]
    assert 0 < len(lost) < 6
    assert lost == order[-len(lost) :]
    assert rest.metric_rows(order) == [50_000] * (6 - len(lost)) + [0] * len(lost)


def test_a_frame(tmp_path: Path) -> None:
    """Of a records object only the records of the damaged frame are lost."""
    content = content_of(30)
    with open_storage(tmp_path / "bundle", create=True) as storage:
        pack_content(storage, content)
    with open_bundle(tmp_path / "bundle") as whole:
        ref = max((ref for ref in whole.objects if ref.role == "records" and ref.kind == "run"), key=lambda ref: ref.rows)
    _flip(tmp_path / "bundle" / ref.path)
    assert 0 < _salvaged(tmp_path / "bundle").reader.lost_records("run") < ref.rows


@pytest.mark.parametrize("damage", [_lose, _cut, _flip], ids=["lost", "cut", "flipped"])
def test_an_index(tmp_path: Path, damage: Damage) -> None:
    """Without the index every content is found by the packs and blobs, but for one that is split."""
    content = content_of(12)
    content.files[content.runs[0].run_id] |= {"large": bytes(range(250)) * 8, "split": bytes(range(251)) * 40}
    with open_storage(tmp_path / "bundle", create=True) as storage:
        pack_content(storage, content)
    with open_bundle(tmp_path / "bundle") as whole:
        index = [ref.path for ref in whole.objects if ref.role == "index"]
    for path in index:
        damage(tmp_path / "bundle" / path)
    rest = _salvaged(tmp_path / "bundle")
    for run, files in content.files.items():
        for path, data in files.items():
            if path == "split":
                with pytest.raises(NotFoundError), rest.open_file(run, path):
                    pass
            else:
                with rest.open_file(run, path) as file:
                    assert file.read() == data


def _packed(folder: Path, content: Content, *, targets: Targets = TINY) -> list[ObjectRef]:
    """The objects of a new bundle with this content."""
    with open_storage(folder, create=True) as storage:
        pack_content(storage, content, targets=targets)
    with open_bundle(folder) as whole:
        return whole.objects


@pytest.mark.parametrize("damage", [_cut, lambda path: _flip(path, 0.999)], ids=["cut", "flipped"])
def test_a_seek_table(tmp_path: Path, damage: Damage) -> None:
    """Without its seek table a records object loses no record: every frame tells its own length."""
    content = content_of(30)
    for ref in _packed(tmp_path / "bundle", content):
        if ref.role == "records":
            damage(tmp_path / "bundle" / ref.path)
    rest = _salvaged(tmp_path / "bundle")
    assert rest.reader.lost_records("run") == 0
    assert list(map(record_id, rest.records("run"))) == [run.run_id for run in content.runs]


def test_any_byte_of_records(tmp_path: Path) -> None:
    """Wherever a byte of a records object is wrong, no other frame than the one that it lies in is lost, and no record is
    another one."""
    content = content_of(30)
    refs = _packed(tmp_path / "bundle", content, targets=dataclasses.replace(TINY, records_bytes=10**6))
    path = next(tmp_path / "bundle" / ref.path for ref in refs if ref.role == "records" and ref.kind == "run")
    sound = path.read_bytes()
    frames = seek_table(sound, len(sound), name="records")
    assert len(frames) > 1
    most = max(decode_frame(sound[f.offset : f.offset + f.length], f.raw, name="").count(b"\n") for f in frames)
    rest = _salvaged(tmp_path / "bundle")
    for at in range(0, len(sound), 7):
        path.write_bytes(sound[:at] + bytes([sound[at] ^ 0x11]) + sound[at + 1 :])
        rest = salvage(rest, {str(path.relative_to(tmp_path / "bundle").as_posix()): "E022"})
        assert rest.reader.lost_records("run") <= (most if at < frames[-1].offset + frames[-1].length else 0)
        assert all(run in content.runs for run in rest.records("run"))


def test_a_frame_in_one_file(tmp_path: Path) -> None:
    """In the one-file form no more is lost than in a folder, though the entry of the object has another CRC-32 now."""
    place = tmp_path / "bundle.mlbundle.zip"
    with open_storage(place, create=True) as storage:
        pack_content(storage, content_of(30))
        storage.flush()
    with open_bundle(place) as whole:
        ref = max((ref for ref in whole.objects if ref.role == "records" and ref.kind == "run"), key=lambda ref: ref.rows)
        stored = whole.storage.read(ref.path)
    data = place.read_bytes()
    at = data.index(stored) + len(stored) * 2 // 5
    place.write_bytes(data[:at] + bytes([data[at] ^ 0x11]) + data[at + 1 :])
    with open_bundle(place) as whole:
        assert 0 < salvage(whole, {ref.path: "E022"}).reader.lost_records("run") < ref.rows


def test_another_object_of_the_kind(tmp_path: Path) -> None:
    """Where an object has the bytes of another one of its kind, no record comes twice and the right number is lost."""
    content = content_of(30)
    runs = [ref for ref in _packed(tmp_path / "bundle", content) if ref.role == "records" and ref.kind == "run"]
    assert len(runs) > 1
    shutil.copy(tmp_path / "bundle" / runs[0].path, tmp_path / "bundle" / runs[-1].path)
    rest = _salvaged(tmp_path / "bundle")
    ids = list(map(record_id, rest.records("run")))
    assert len(ids) == len(set(ids)) == 30 - runs[-1].rows
    assert rest.reader.lost_records("run") == runs[-1].rows


def test_an_object_of_another_snapshot(tmp_path: Path) -> None:
    """What lies where an object should, and is of another snapshot, is not taken for a record of this one."""
    refs = _packed(tmp_path / "bundle", content_of(4), targets=WRITER_TARGETS)
    other = content_of(5)
    other.runs = [replace(run, status="FAILED") for run in other.runs]
    (lost,), (strange,) = (
        [ref for ref in found if ref.role == "records" and ref.kind == "run"]
        for found in (refs, _packed(tmp_path / "other", other, targets=WRITER_TARGETS))
    )
    shutil.copy(tmp_path / "other" / strange.path, tmp_path / "bundle" / lost.path)
    rest = _salvaged(tmp_path / "bundle")
    assert list(rest.records("run")) == []
    assert rest.reader.lost_records("run") == 4


def test_how_many_records_are_lost(tmp_path: Path) -> None:
    """One record is lost, several are."""
    for count, words in ((1, "1 run record is lost"), (2, "2 run records are lost")):
        for ref in _packed(tmp_path / str(count), content_of(count)):
            if ref.role == "records" and ref.kind == "run":
                _lose(tmp_path / str(count) / ref.path)
        with open_bundle(tmp_path / str(count)) as whole:
            assert any(problem.message.startswith(words) for problem in salvaged(whole)[1])


class _Dying(io.FileIO):
    """A file on a disk that cannot read some of its bytes."""

    bad = range(0)

    def _fail(self, length: int) -> None:
        if self.bad.start < self.tell() + length and self.tell() < self.bad.stop:
            raise OSError(errno.EIO, "Input/output error")

    def read(self, size: int | None = -1, /) -> bytes:
        self._fail(sys.maxsize if size is None or size < 0 else size)
        return super().read(size)

    def readinto(self, buffer: Any, /) -> int:
        self._fail(len(buffer))
        return super().readinto(buffer) or 0


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, range], None]:
    """Makes the disk fail where these bytes of a file are read."""

    def die(broken: Path, bad: range) -> None:
        opened, read_bytes = Path.open, Path.read_bytes

        def open_file(self: Path, *args: Any, **named: Any) -> Any:
            if self != broken:
                return opened(self, *args, **named)
            file = _Dying(self)
            file.bad = bad
            return file

        def read(self: Path) -> bytes:
            with self.open("rb") as file:
                return bytes(file.read()) if self == broken else read_bytes(self)

        monkeypatch.setattr(Path, "open", open_file)
        monkeypatch.setattr(Path, "read_bytes", read)

    return die


def test_a_dying_disk_and_a_table(tmp_path: Path, dying: Callable[[Path, range], None]) -> None:
    """What a disk cannot read of a table is lost as what is damaged of it, and the rest is read."""
    content, source = content_of(6), random.Random(1)
    content.points = {run.run_id: [("m", step, START, source.random()) for step in range(50_000)] for run in content.runs}
    refs = _packed(tmp_path / "bundle", content, targets=WRITER_TARGETS)
    path = next(tmp_path / "bundle" / ref.path for ref in refs if ref.role == "metrics")
    at = pq.read_metadata(path).row_group(0).column(5).data_page_offset
    dying(path, range(at + 10, at + 20))
    with open_bundle(tmp_path / "bundle") as whole:
        rest, problems = salvaged(whole)
        order = [record_id(run) for run in rest.records("run")]
        lost = [run for run in order if rest.reader.lost("run", run)]
        assert [problem.object for problem in problems] == [str(path.relative_to(tmp_path / "bundle").as_posix())]
        assert 0 < len(lost) < 6
        assert lost == order[: len(lost)]
        assert rest.metric_rows(order) == [0] * len(lost) + [50_000] * (6 - len(lost))
        assert sum(part.num_rows for part in rest.series(order)) == 50_000 * (6 - len(lost))


def test_a_dying_disk_and_records(tmp_path: Path, dying: Callable[[Path, range], None]) -> None:
    """What a disk cannot read of records are some frames of them."""
    content = content_of(3_000)
    targets = dataclasses.replace(WRITER_TARGETS, frame_bytes=2_000)
    refs = _packed(tmp_path / "bundle", content, targets=targets)
    ref = max((ref for ref in refs if ref.role == "records" and ref.kind == "run"), key=lambda ref: ref.size)
    assert ref.size > 3 * 65_536
    dying(tmp_path / "bundle" / ref.path, range(70_000, 70_001))
    with open_bundle(tmp_path / "bundle") as whole:
        rest, _ = salvaged(whole)
        assert 0 < rest.reader.lost_records("run") < ref.rows * 65_536 * 1.2 / ref.size


def _directory(entries: Iterable[tuple[bytes, int, int, int]], extra: bytes = b"") -> bytes:
    """A ZIP file of nothing but a central directory that claims entries of these names, lengths, raw lengths and offsets."""
    central = struct.Struct("<4s6H3L5H2L")
    data = b"".join(
        central.pack(b"PK\1\2", 45, 45, 0, 0, 0, 33, 0, length, raw, len(name), len(extra), 0, 0, 0, 0, offset) + name + extra
        for name, length, raw, offset in entries
    )
    return data + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(data), 0, 0)


@pytest.mark.parametrize("what", ["sizes", "places", "entries", "bytes"])
def test_a_hostile_pack(tmp_path: Path, what: str) -> None:
    """Whatever the directory of a pack claims, the index that is made of it is bounded and lies in the pack."""
    refs = _packed(tmp_path / "bundle", content_of(6))
    index, pack = ([tmp_path / "bundle" / ref.path for ref in refs if ref.role == role] for role in ("index", "packs"))
    for path in index:
        _lose(path)
    names = [f"{number:064x}".encode() for number in range(50)]
    huge = struct.pack("<2H2Q", 1, 16, 2**63, 2**63)
    hostile = {
        "sizes": _directory([(name, 2**32 - 1, 2**32 - 1, 0) for name in names], huge),
        "places": _directory([(name, 100, 100, 2**32 - 2) for name in names]),
        "entries": _directory([(name, 1, 1, 0) for name in names]),
        "bytes": _directory([(name, 1, 1, 0) for name in names]),
    }[what]
    pack[0].write_bytes(hostile)
    limits = {"entries": Limits(pack_entries=7), "bytes": Limits(pack_bytes=len(hostile) - 1)}.get(what, DEFAULT_LIMITS)
    with open_bundle(tmp_path / "bundle", limits=limits) as whole:
        name = str(pack[0].relative_to(tmp_path / "bundle").as_posix())
        rest = salvage(whole, dict.fromkeys([ref.path for ref in refs if ref.role == "index"], "E025"))
        found = [row for table in rest.reader.rebuilt_index() for row in table.to_pylist() if row["object"] == name]
    assert len(found) == {"entries": 7}.get(what, 0)
