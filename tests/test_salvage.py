"""What is read of a damaged snapshot: everything but what the damaged bytes held, and what is lost is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mlflow_bundle._bundle import Bundle, open_bundle, salvage
from mlflow_bundle._limits import WRITER_TARGETS
from mlflow_bundle._storage import open_storage
from mlflow_bundle.errors import NotFoundError
from mlflow_bundle.records import KINDS, ObjectRef, record_id
from tests.building import content_of, everything_of, pack_content

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
    assert costly >= {"records", "files"}
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
