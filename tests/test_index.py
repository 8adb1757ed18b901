"""A long history keeps packs and index parts few, loses no content, and lists nothing that it does not need."""

from __future__ import annotations

import hashlib
import io
import random
import uuid
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mlflow_bundle import _layout
from mlflow_bundle._blobs import BlobReader, BlobWriter
from mlflow_bundle._index import Digests, PackBuilder, Settled, read_index, settle
from mlflow_bundle._limits import DEFAULT_LIMITS, Targets
from mlflow_bundle._storage import Storage, open_storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._tables import open_table
from mlflow_bundle.records import ObjectRef
from tests.building import TINY

CONTENT_ROLES = (_layout.PACKS, _layout.BLOBS, _layout.INDEX)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digests(contents: Iterable[bytes]) -> Digests:
    return np.unique(np.array([digest(data) for data in contents], dtype="S64"))


def night(storage: Storage, base: Sequence[ObjectRef], contents: Sequence[bytes], targets: Targets) -> Settled:
    """One snapshot that needs just these contents."""
    writer = BlobWriter(storage, targets, base, DEFAULT_LIMITS)
    for data in contents:
        writer.add_bytes(data)
    extents = writer.close()
    return settle(
        storage,
        old=base,
        new=writer.objects,
        extents=extents,
        used=digests(contents),
        targets=targets,
        limits=DEFAULT_LIMITS,
    )


def check(storage: Storage, refs: Sequence[ObjectRef], contents: Iterable[bytes]) -> None:
    """The listed objects are there, give every content, and the index names no other object."""
    assert len({ref.path for ref in refs}) == len(refs)
    parts = [ref for ref in refs if ref.role == _layout.INDEX]
    places = {ref.path for ref in refs} - {ref.path for ref in parts}
    named = set()
    for ref in parts:
        table = read_index(storage, ref, DEFAULT_LIMITS)
        assert table.num_rows == ref.rows
        named |= set(table.column("object").to_pylist())
    assert named == places
    for ref in refs:
        assert storage.size(ref.path) == ref.size
    blobs = BlobReader(storage, parts, DEFAULT_LIMITS)
    for data in contents:
        with blobs.open(digest(data)) as stream:
            assert stream.read() == data


def of_role(refs: Sequence[ObjectRef], role: str) -> list[ObjectRef]:
    return [ref for ref in refs if ref.role == role]


def test_a_year_of_nights_keeps_objects_few() -> None:
    """365 nightly snapshots with three new files each: a snapshot lists few packs and index parts, not hundreds, every content
    can be read, and what all merges wrote together is a small multiple of the content."""
    targets = Targets(pack_bytes=100_000, index_rows=4_000)
    source = random.Random(4)
    contents: list[bytes] = []
    refs: list[ObjectRef] = []
    most = written = 0
    with open_storage(f"memory://year-{uuid.uuid4().hex}", create=True) as storage:
        for _ in range(365):
            contents += [source.randbytes(300) for _ in range(3)]
            settled = night(storage, refs, contents, targets)
            refs = settled.refs
            most = max(most, len(refs))
            written += sum(ref.size for ref, _ in settled.written if ref.role == _layout.PACKS)
        check(storage, refs, contents)
    assert most <= 45
    assert len(of_role(refs, _layout.PACKS)) <= 22
    assert len(of_role(refs, _layout.INDEX)) <= 22
    assert written <= 4 * sum(map(len, contents))


def test_a_night_without_news_writes_nothing(tmp_path: Path) -> None:
    """The same contents again give the same list of objects, and nothing is written."""
    contents = [b"%d" % i * 50 for i in range(100)]
    with open_storage(tmp_path / "b", create=True) as storage:
        refs = night(storage, [], contents, TINY).refs
        settled = night(storage, refs, contents, TINY)
    assert settled.written == []
    assert sorted(settled.refs, key=str) == sorted(refs, key=str)


def test_packs_that_are_full_of_tiny_files_stay(tmp_path: Path) -> None:
    """Packs that ended at their number of entries, far below their size, are not merged night after night."""
    targets = Targets(pack_entries=10, merge_width=2)
    contents = [b"%d" % i for i in range(100)]
    with open_storage(tmp_path / "b", create=True) as storage:
        refs = night(storage, [], contents, targets).refs
        assert [ref.rows for ref in of_role(refs, _layout.PACKS)] == [10] * 10
        settled = night(storage, refs, [*contents, b"new"], targets)
        assert {ref.path for ref in of_role(refs, _layout.PACKS)} <= {ref.path for ref in settled.refs}
        assert [ref.rows for ref, _ in settled.written if ref.role == _layout.PACKS] == []


def test_merged_packs_hold_what_is_used_and_nothing_else(tmp_path: Path) -> None:
    """Small packs that have piled up become one; contents that no run needs any more are left behind."""
    targets = Targets(merge_width=5)
    kept, gone = [b"kept %d" % i * 20 for i in range(5)], [b"gone %d" % i * 20 for i in range(4)]
    with open_storage(tmp_path / "b", create=True) as storage:
        refs: list[ObjectRef] = []
        for number in range(1, 5):
            refs = night(storage, refs, kept[:number] + gone[:number], targets).refs
        assert [ref.rows for ref in of_role(refs, _layout.PACKS)] == [2, 2, 2, 2]
        refs = night(storage, refs, kept, targets).refs
        check(storage, refs, kept)
        (merged,) = of_role(refs, _layout.PACKS)
        with zipfile.ZipFile(io.BytesIO(storage.read(merged.path))) as pack:
            assert sorted(pack.namelist()) == sorted(map(digest, kept))
            assert pack.testzip() is None


def test_what_is_not_used_is_not_listed(tmp_path: Path) -> None:
    """A pack, a blob or an index part that no file needs leaves the list, and the last one leaves it empty."""
    small, large = [b"small" * 20], [bytes(5000)]
    with open_storage(tmp_path / "b", create=True) as storage:
        refs = night(storage, [], small + large, TINY).refs
        assert {ref.role for ref in refs} == set(CONTENT_ROLES)
        assert {ref.role for ref in night(storage, refs, small, TINY).refs} == {_layout.PACKS, _layout.INDEX}
        assert {ref.role for ref in night(storage, refs, large, TINY).refs} == {_layout.BLOBS, _layout.INDEX}
        assert night(storage, refs, [], TINY).refs == []


def test_a_content_that_comes_back_is_listed_again(tmp_path: Path) -> None:
    """A file that was deleted and made again, while its index part lived on, is in the snapshot with its object."""
    targets = Targets(pack_entries=1, blob_bytes=1000)
    lost, stays = b"lost", b"stays"
    with open_storage(tmp_path / "b", create=True) as storage:
        refs = night(storage, [], [lost, stays], targets).refs
        refs = night(storage, refs, [stays], targets).refs
        check(storage, refs, [stays])
        refs = night(storage, refs, [lost, stays], targets).refs
        check(storage, refs, [lost, stays])


def test_large_index_tables_are_cut(tmp_path: Path) -> None:
    """No index part has more rows than the target; each is sorted by digest."""
    with open_storage(tmp_path / "b", create=True) as storage:
        refs = night(storage, [], [b"%d" % i for i in range(230)], Targets(index_rows=100)).refs
        parts = of_role(refs, _layout.INDEX)
        assert sorted(ref.rows for ref in parts) == [30, 100, 100]
        for ref in parts:
            rows = open_table(io.BytesIO(storage.read(ref.path)), TABLES["index/1"], name="x").read().to_pylist()
            assert rows == sorted(rows, key=lambda row: (row["sha256"], row["part"]))


@pytest.mark.parametrize("deflate", [False, True])
def test_packs_are_deterministic(tmp_path: Path, deflate: bool) -> None:
    """The same entries in the same order give the same pack."""
    paths = []
    with open_storage(tmp_path / "b", create=True) as storage:
        for _ in range(2):
            builder = PackBuilder()
            for number in range(5):
                data = b"%d" % number * 100
                builder.add(digest(data), data, deflate=deflate)
            ref, extents, new = builder.put(storage)
            paths.append((ref, extents))
            assert new == (len(paths) == 1)
    assert paths[0] == paths[1]


#: A pack for every few contents, and merges all the time.
SMALL = Targets(pack_entries=3, pack_bytes=20_000, blob_bytes=1_000, index_rows=200, merge_width=2)


class Nights(RuleBasedStateMachine):
    """Nights in which files come, go, come back and get lost, in any order."""

    @initialize()
    def start(self) -> None:
        self._storage = open_storage(f"memory://nights-{id(self)}-{random.random()}", create=True)
        self._refs: list[ObjectRef] = []
        self._contents: list[bytes] = []

    @rule(numbers=st.lists(st.integers(0, 30), max_size=12, unique=True))
    def pack(self, numbers: list[int]) -> None:
        """A snapshot of some files."""
        self._contents = [random.Random(number).randbytes(40 * number) for number in numbers]
        self._refs = night(self._storage, self._refs, self._contents, SMALL).refs

    @rule(at=st.integers(0, 100))
    def lose(self, at: int) -> None:
        """An object of the base is not there any more: what it held is packed again."""
        if self._refs:
            self._refs.pop(at % len(self._refs))
            self._refs = night(self._storage, self._refs, self._contents, SMALL).refs

    @invariant()
    def everything_is_there(self) -> None:
        """Every content of the last snapshot can be read from what it lists."""
        if hasattr(self, "_storage"):
            check(self._storage, self._refs, self._contents)


TestNights = Nights.TestCase
TestNights.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
