"""The objects of a bundle as a verification reads them: each once, its bytes against its name, then what it says."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar

import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle._codec import decode, read_lines
from mlflow_bundle._limits import MIB, Limits
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle._storage import Storage
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._verify._canonical import is_canonical
from mlflow_bundle._verify._contents import hash_object
from mlflow_bundle._verify._findings import Findings, code_of
from mlflow_bundle._verify._record_facts import RecordFacts, ViewFacts, entity_view_facts, record_facts, view_facts
from mlflow_bundle._verify._table_facts import IndexFacts, OwnerFacts, file_facts, index_facts, row_facts, series_facts
from mlflow_bundle.errors import BundleError, CorruptError, LimitError
from mlflow_bundle.records import KINDS, ObjectRef

__all__ = ["OWNERS", "Objects"]

Facts = TypeVar("Facts")

#: The kind whose entities own the rows of a table; files belong to several.
OWNERS: Final = {table: kind.name for kind in KINDS.values() for table in kind.tables if table != "files/1"}
#: Tables up to this size are read in one request; larger ones are read twice, in little memory.
_IN_MEMORY: Final = 256 * MIB
_AHEAD: Final = 2


class _Fetched(NamedTuple):
    data: bytes | None
    error: BundleError | None


class Objects:
    """Reads objects and keeps what they say for as long as other snapshots may need it (``keep``).

    ``damaged`` are the paths whose facts are not to be had; ``count`` and ``bytes`` tell how much was compared with its name.
    """

    def __init__(self, storage: Storage, listing: Mapping[str, int], limits: Limits, *, keep: bool = False) -> None:
        self.storage = storage
        self.listing = listing
        self.limits = limits
        self.damaged: set[str] = set()
        self.count = 0
        self.bytes = 0
        self._kept: dict[str, Any] | None = {} if keep else None

    def sound(self, refs: Sequence[ObjectRef]) -> list[ObjectRef]:
        """Those that no problem was found with so far."""
        return [ref for ref in refs if ref.path not in self.damaged]

    def records(self, refs: Sequence[ObjectRef], findings: Findings) -> Iterator[tuple[ObjectRef, RecordFacts | None]]:
        """What records objects say."""
        return self._each(refs, findings, self.limits.records_bytes, self._records)

    def views(self, refs: Sequence[ObjectRef], findings: Findings) -> Iterator[tuple[ObjectRef, ViewFacts | None]]:
        """What views say."""
        return self._each(refs, findings, self.limits.table_bytes, self._views)

    def series(self, refs: Sequence[ObjectRef], findings: Findings) -> Iterator[tuple[ObjectRef, OwnerFacts | None]]:
        """What metrics objects say."""
        return self._each(refs, findings, self.limits.table_bytes, self._series)

    def rows(self, refs: Sequence[ObjectRef], table: str, findings: Findings) -> Iterator[tuple[ObjectRef, OwnerFacts | None]]:
        """What objects of plain rows say."""
        return self._each(refs, findings, self.limits.table_bytes, partial(self._rows, table))

    def files(self, refs: Sequence[ObjectRef], findings: Findings) -> Iterator[tuple[ObjectRef, OwnerFacts | None]]:
        """What files objects say."""
        return self._each(refs, findings, self.limits.table_bytes, self._files)

    def index(self, refs: Sequence[ObjectRef], findings: Findings) -> Iterator[tuple[ObjectRef, IndexFacts | None]]:
        """What index objects say."""
        return self._each(refs, findings, self.limits.table_bytes, self._index)

    def lines(self, refs: Sequence[ObjectRef], findings: Findings) -> Iterator[tuple[ObjectRef, list[ObjectRef] | None]]:
        """What object lists say."""
        return self._each(refs, findings, self.limits.records_bytes, self._lines)

    def whole(self, refs: Sequence[ObjectRef], findings: Findings) -> None:
        """Compare objects of roles that are not known here with their names, and nothing else."""
        for _ in self._each(refs, findings, None, lambda *_: True):
            pass

    def _records(self, ref: ObjectRef, data: bytes | None, findings: Findings) -> RecordFacts | None:
        assert data is not None
        return record_facts(ref, data, findings, self.limits)

    def _lines(self, ref: ObjectRef, data: bytes | None, _: Findings) -> list[ObjectRef]:
        assert data is not None
        lines = list(read_lines(data, name=ref.path, limits=self.limits))
        content = hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()
        if (len(lines), f"sha256:{content}") != (ref.rows, ref.content):
            raise CorruptError(f"{ref.path} has other rows or another content than the snapshot says", code="E034")
        found = [decode(line, ObjectRef, name=ref.path, limits=self.limits) for line in lines]
        if not all(map(is_canonical, lines)):
            raise CorruptError(f"{ref.path} holds a line that is not canonical JSON", code="E030")
        return found

    def _views(self, ref: ObjectRef, data: bytes | None, _: Findings) -> ViewFacts:
        facts = view_facts if ref.kind == "run" else entity_view_facts
        with self.file(ref.path, data) as file:
            return facts(ref.path, file, self.limits)

    def _rows(self, table: str, ref: ObjectRef, data: bytes | None, findings: Findings) -> OwnerFacts:
        with self.file(ref.path, data) as file:
            return row_facts(ref.path, file, TABLES[table], kind=OWNERS[table], findings=findings, limits=self.limits)

    def _series(self, ref: ObjectRef, data: bytes | None, findings: Findings) -> OwnerFacts:
        with self.file(ref.path, data) as file:
            return series_facts(ref.path, file, findings, self.limits)

    def _files(self, ref: ObjectRef, data: bytes | None, findings: Findings) -> OwnerFacts:
        with self.file(ref.path, data) as file:
            return file_facts(ref.path, file, findings, self.limits)

    def _index(self, ref: ObjectRef, data: bytes | None, findings: Findings) -> IndexFacts:
        with self.file(ref.path, data) as file:
            return index_facts(ref.path, file, findings, self.limits)

    def file(self, path: str, data: bytes | None) -> Any:
        """A table object for Parquet: what was read of it, or a file."""
        return pa.BufferReader(data) if data is not None else self.storage.open(path)

    def _each(
        self,
        refs: Sequence[ObjectRef],
        findings: Findings,
        limit: int | None,
        make: Callable[[ObjectRef, bytes | None, Findings], Facts | None],
    ) -> Iterator[tuple[ObjectRef, Facts | None]]:
        """Facts in the order of the references, read a little ahead. None, and a finding, where they are not to be had."""
        new = [ref for ref in self.sound(refs) if self._kept is None or ref.path not in self._kept]
        waiting = {ref.path for ref in new}
        with (
            ThreadPoolExecutor(_AHEAD, "mlflow-bundle-verify") as executor,
            closing(self._fetch_all(executor, new, limit)) as fetched,
        ):
            for ref in refs:
                facts: Facts | None = None
                if ref.path in waiting:
                    waiting.discard(ref.path)
                    facts = self._make(ref, next(fetched), findings, make)
                    if self._kept is not None and facts is not None:
                        self._kept[ref.path] = facts
                elif self._kept is not None:
                    facts = self._kept.get(ref.path)
                yield ref, facts

    def _fetch_all(self, executor: Executor, refs: Sequence[ObjectRef], limit: int | None) -> Generator[_Fetched, None, None]:
        if len(refs) > 1:
            yield from bounded_map(executor, lambda ref: self._fetch(ref, limit), refs, _AHEAD)
        else:  # nothing to read ahead, and a thread is not free
            yield from (self._fetch(ref, limit) for ref in refs)

    def _make(
        self,
        ref: ObjectRef,
        fetched: _Fetched,
        findings: Findings,
        make: Callable[[ObjectRef, bytes | None, Findings], Facts | None],
    ) -> Facts | None:
        facts = None
        error = fetched.error
        if error is None:
            self.count += 1
            self.bytes += ref.size
            try:
                facts = make(ref, fetched.data, findings)
            except BundleError as raised:
                error = raised
        if error is not None:
            findings.add(code_of(error, "E022"), error.message, object=ref.path)
        if facts is None:
            self.damaged.add(ref.path)
        return facts

    def _fetch(self, ref: ObjectRef, limit: int | None) -> _Fetched:
        """The bytes of an object, or None for a large one, once they are known to be those of its name."""
        try:
            if limit is not None and ref.size > limit:
                raise LimitError(f"{ref.path} has {ref.size:,} bytes, more than {limit:,}", code="E094")
            hasher = hashlib.sha256()
            data = None
            if ref.size <= _IN_MEMORY and limit is not None:
                data = self.storage.read(ref.path)
                hasher.update(data)
            else:
                hash_object(self.storage, ref.path, hasher)
            if hasher.hexdigest() != _layout.object_hex(ref.path):
                raise CorruptError(f"{ref.path} does not have the SHA-256 of its name", code="E022")
        except BundleError as error:
            return _Fetched(None, error)
        return _Fetched(data, None)
