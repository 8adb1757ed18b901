"""Objects are cut by content: the same owners give the same cuts, and a change moves only those next to it."""

from __future__ import annotations

import hashlib
import io
import random
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlflow_bundle._layout import object_hex
from mlflow_bundle._owners import NO_FILES, files_digest
from mlflow_bundle._series import segments
from mlflow_bundle._shards import Cutter, OwnerTable
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import open_table
from mlflow_bundle.errors import LimitError, StorageError

FILES = TABLES["files/1"]
Owner = tuple[str, int]
OWNERS = st.lists(st.tuples(st.text(max_size=8), st.integers(0, 400)), max_size=60)


def cut(owners: list[Owner], target: int) -> list[list[Owner]]:
    """The owners as objects."""
    cutter, objects, current = Cutter(target), list[list[Owner]](), list[Owner]()
    for owner in owners:
        current.append(owner)
        if cutter.after(*owner):
            objects.append(current)
            current = []
    return [*objects, current] if current else objects


def total(owners: list[Owner]) -> int:
    return sum(size for _, size in owners)


@given(OWNERS, st.integers(1, 500))
def test_sizes_stay_within_bounds(owners: list[Owner], target: int) -> None:
    """All objects but the last have a quarter of the target at least, and none grows by an owner once it has four times it."""
    objects = cut(owners, target)
    assert [owner for one in objects for owner in one] == owners
    for one in objects[:-1]:
        assert 4 * total(one) >= target
        assert one[-1][1] > 0
    for one in objects:
        assert total(one[:-1]) < 4 * target or one[-1][1] == 0 or not one[:-1]


@given(OWNERS, st.integers(1, 500), st.integers(0, 59))
def test_cuts_depend_on_nothing_before_the_object(owners: list[Owner], target: int, drop: int) -> None:
    """Without its first objects, a list is cut just as before."""
    objects = cut(owners, target)
    rest = objects[min(drop, len(objects)) :]
    assert cut([owner for one in rest for owner in one], target) == rest


def test_cuts_are_those_of_the_specification() -> None:
    """A cut depends on the first 64 bits of SHA-256 of the id, the owner's share of the target, and nothing else."""
    source = random.Random(1)
    owners = [(f"owner {i}", source.randint(0, 30)) for i in range(3000)]
    expected, size = [], 0
    for name, own in owners:
        size += own
        draw = int(hashlib.sha256(name.encode()).hexdigest()[:16], 16)
        expected.append(own > 0 and (size >= 400 or (size >= 25 and draw / 2**64 < own / 100)))
        size = 0 if expected[-1] else size
    cutter = Cutter(100)
    assert [cutter.after(*owner) for owner in owners] == expected
    assert 80 < total(owners) / sum(expected) < 170


def test_owners_of_size_zero_end_nothing() -> None:
    """Runs without points never decide about metrics objects."""
    cutter = Cutter(1)
    assert not any(cutter.after(str(i), 0) for i in range(1000))


def changed(before: list[list[Owner]], after: list[list[Owner]]) -> int:
    """How many of the objects after a change were not there before."""
    known = {tuple(one) for one in before}
    return sum(tuple(one) not in known for one in after)


@pytest.mark.parametrize("change", ["insert", "remove", "grow"])
def test_a_change_moves_only_the_borders_next_to_it(change: str) -> None:
    """Inserting, removing or growing one of 1,500 owners rewrites about one or two of fifty objects, and never many."""
    source = random.Random(7)
    owners = [(source.randbytes(16).hex(), source.randint(1, 40)) for _ in range(1500)]
    before = cut(owners, 400)
    assert len(before) > 30
    rewritten = []
    for _ in range(80):
        at = source.randrange(len(owners))
        new = (source.randbytes(16).hex(), 20)
        if change == "insert":
            after = [*owners[:at], new, *owners[at:]]
        elif change == "remove":
            after = owners[:at] + owners[at + 1 :]
        else:
            after = [*owners[:at], (owners[at][0], owners[at][1] + 15), *owners[at + 1 :]]
        rewritten.append(changed(before, cut(after, 400)))
    assert min(rewritten) >= 1
    assert sum(rewritten) / len(rewritten) < 2
    assert max(rewritten) <= 12


def test_appending_rewrites_only_the_end() -> None:
    """What a night adds at the end leaves every finished object as it is."""
    owners = [(str(i), 10) for i in range(2000)]
    before = cut(owners, 300)
    after = cut([*owners, *((f"new {i}", 10) for i in range(50))], 300)
    assert after[: len(before) - 1] == before[:-1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_segments_are_the_runs_of_equal_values(values: list[int]) -> None:
    """Segments cover the column without a gap, each with one value and another one next to it."""
    values.sort()
    found = segments(np.array(values, dtype=np.int32))
    assert [v for value, a, b in found for v in [value] * (b - a)] == values
    assert all(one[2] == other[1] and one[0] != other[0] for one, other in pairwise(found))


# -- OwnerTable ------------------------------------------------------------------------------------------------------------


def file_rows(owner: str, count: int) -> list[tuple[str, int, str | None, str]]:
    return [(f"{owner}/{i}", i, "0" * 64, "ok") for i in range(count)]


def file_table(owner: str, count: int) -> pa.Table:
    rows = [
        {"owner_kind": "run", "owner_id": owner, "path": p, "size": s, "sha256": h, "state": t}
        for p, s, h, t in file_rows(owner, count)
    ]
    return pa.Table.from_pylist(rows, schema=FILES.schema)


def fill(table: OwnerTable, owners: list[Owner]) -> None:
    for owner, count in owners:
        table.append(file_table(owner, count))
        table.end_owner(count, files_digest(file_rows(owner, count)), cut=table.will_cut(owner, count))
    table.close()


@contextmanager
def local(folder: Path) -> Iterator[Storage]:
    with open_storage(folder, create=True) as storage:
        yield storage


def test_owners_know_where_their_rows_lie(tmp_path: Path) -> None:
    """Every owner's rows are found at its object, start and count; owners without rows have neither."""
    source = random.Random(3)
    owners = [(f"r{i:03}", source.choice([0, 0, 1, 3, 9])) for i in range(120)]
    with local(tmp_path) as storage:
        table = OwnerTable(storage, FILES, Cutter(20))
        fill(table, owners)
        assert len(table.refs) > 5
        assert table.new_objects == len(table.refs)
        assert table.new_bytes == sum(ref.size for ref in table.refs)
        assert [ref.rows for ref in table.refs] == [total(one) for one in cut(owners, 20) if total(one)]
        read = {}
        for ref in table.refs:
            data = storage.read(ref.path)
            assert hashlib.sha256(data).hexdigest() == object_hex(ref.path)
            assert len(data) == ref.size
            read[ref.path] = open_table(io.BytesIO(data), FILES, name="x").read()
        for i, (owner, count) in enumerate(owners):
            path, start = table.owners.objects[i], table.owners.starts[i]
            assert table.owners.rows[i] == count
            assert (path is None) == (count == 0)
            if path is not None:
                rows = read[path].slice(start, count)
                assert rows.equals(file_table(owner, count).combine_chunks())
            else:
                assert start == 0
                assert table.owners.digests[i] == NO_FILES


def test_the_content_digest_is_over_the_owners(tmp_path: Path) -> None:
    """The content digest of an object is SHA-256 over the digests of its owners that have rows."""
    with local(tmp_path) as storage:
        table = OwnerTable(storage, FILES, Cutter(10**6))
        fill(table, [("a", 1), ("b", 0), ("c", 2)])
    text = files_digest(file_rows("a", 1)) + files_digest(file_rows("c", 2))
    assert [ref.content for ref in table.refs] == ["sha256:" + hashlib.sha256(text.encode()).hexdigest()]


def test_writing_the_same_twice_adds_nothing(tmp_path: Path) -> None:
    """The second time every object is there already."""
    owners = [(f"r{i}", 5) for i in range(50)]
    with local(tmp_path) as storage:
        first, second = OwnerTable(storage, FILES, Cutter(20)), OwnerTable(storage, FILES, Cutter(20))
        fill(first, owners)
        fill(second, owners)
    assert second.refs == first.refs
    assert (second.new_objects, second.new_bytes) == (0, 0)


def test_rows_that_are_not_what_was_said_are_refused(tmp_path: Path) -> None:
    """When there are not as many rows as the owner was said to have, the self-check fails and nothing is put."""
    with local(tmp_path) as storage:
        table = OwnerTable(storage, FILES, Cutter(10**6))
        table.append(file_table("a", 2))
        table.end_owner(3, files_digest(file_rows("a", 3)), cut=False)
        with pytest.raises(StorageError) as raised:
            table.close()
        assert raised.value.code == "self-check"
        assert storage.list("") == {}


def test_an_object_beyond_the_limit_of_readers_is_refused(tmp_path: Path) -> None:
    """What no reader would open is not written: the error comes before the object."""
    with local(tmp_path) as storage:
        table = OwnerTable(storage, FILES, Cutter(10**6), largest=500)
        with pytest.raises(LimitError) as raised:
            fill(table, [("a", 50)])
        assert raised.value.code == "E094"
        assert list(storage.list("objects")) == []


def test_reused_objects_keep_the_numbers_right(tmp_path: Path) -> None:
    """Owners of an object that is taken over are placed in it, and those after it in the next one."""
    owners = [("a", 3), ("b", 0), ("c", 2)]
    with local(tmp_path) as storage:
        first = OwnerTable(storage, FILES, Cutter(10**6))
        fill(first, owners)
        table = OwnerTable(storage, FILES, Cutter(10**6))
        table.reuse(first.refs[0], first.owners.rows, first.owners.digests)
        fill(table, [("d", 1)])
        assert table.refs[0] == first.refs[0]
        assert table.owners.objects[:3] == first.owners.objects
        assert list(table.owners.starts) == [0, 0, 3, 0]
        assert table.owners.objects[3] == table.refs[1].path
        assert table.refs[1].rows == 1


def test_an_aborted_table_leaves_nothing(tmp_path: Path) -> None:
    """A table that is not finished leaves no file."""
    with local(tmp_path) as storage:
        table = OwnerTable(storage, FILES, Cutter(10**6))
        table.append(file_table("a", 2))
        table.abort()
    assert list(tmp_path.rglob("*")) == []
