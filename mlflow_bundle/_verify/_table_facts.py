"""What metrics, files and index objects say of each owner and content, once their bytes are known to be those of their names
(spec/v1.md, 5.2, 5.3). What is wrong in an object by itself is noted here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle._digests import is_hex
from mlflow_bundle._limits import Limits
from mlflow_bundle._owners import RowDigester, files_digest, numbered_rows
from mlflow_bundle._row_groups import row_groups
from mlflow_bundle._series import SERIES_COLUMNS, SeriesDigester, in_order, key_ranks, sort_series
from mlflow_bundle._spool import latest_points
from mlflow_bundle._table_specs import TABLES, TableSpec
from mlflow_bundle._unsafe import collisions, why_unsafe
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle._verify._record_facts import latest_digests
from mlflow_bundle._verify._rows import raw_digests
from mlflow_bundle.errors import CorruptError
from mlflow_bundle.kinds import KINDS

__all__ = [
    "CODECS",
    "CONTENTS",
    "EXTENTS",
    "Extents",
    "IndexFacts",
    "OwnerFacts",
    "file_facts",
    "index_facts",
    "row_facts",
    "series_facts",
]

#: A content that a file names: SHA-256 and bytes.
CONTENTS: Final = np.dtype([("sha256", "S32"), ("size", "i8")])
#: A row of the index. ``object`` is a number in a list of paths, ``codec`` one in ``CODECS``, -1 an unknown one.
EXTENTS: Final = np.dtype(
    [("sha256", "S32"), ("part", "i4"), ("object", "i4"), ("offset", "i8"), ("length", "i8"), ("codec", "i1"), ("raw", "i8")]
)
CODECS: Final = ("raw", "deflate")
_RUN: Final = "run"
_SLICE: Final = 20_000

Extents = npt.NDArray[Any]
_SERIES: Final = TABLES["metrics/1"]
_FILES: Final = TABLES["files/1"]
_INDEX: Final = TABLES["index/1"]


@dataclass
class OwnerFacts:
    """An object of an owned table: of each owner its kind, its rows, their digest, the first of them, its experiment (where the
    table has it) and a digest of its latest points (metrics). ``contents``: what the files name. Owners of kinds that are not
    known are counted only."""

    rows: int = 0
    kinds: list[str] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    experiments: list[str] = field(default_factory=list)
    latest: list[bytes] = field(default_factory=list)
    contents: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, CONTENTS))
    file_bytes: int = 0
    strangers: int = 0
    _all: Any = field(default_factory=hashlib.sha256)

    @property
    def content(self) -> str:
        """The content digest of the object."""
        return f"sha256:{self._all.hexdigest()}"

    def add(self, kind: str, owner: str, rows: int, digest: str) -> None:
        """The next owner, complete."""
        self._all.update(digest.encode())
        if kind in KINDS:
            self.kinds.append(kind)
            self.owners.append(owner)
            self.counts.append(rows)
            self.starts.append(self.rows)
            self.digests.append(digest)
        else:
            self.strangers += 1
        self.rows += rows


@dataclass(frozen=True)
class IndexFacts:
    """An index object: its rows, and the paths that they name."""

    rows: int
    extents: Extents
    paths: list[str]


# -- metrics -------------------------------------------------------------------------------------------------------------


def series_facts(path: str, file: Any, findings: Findings, limits: Limits) -> OwnerFacts:
    """The facts of a metrics object.

    Raises:
        CorruptError, LimitError: it cannot be decoded, or the rows of a run are not together.
    """
    series = _Series(path, findings)
    for group in row_groups(file, _SERIES, name=path, limits=limits):
        if group.num_rows:
            series.take(group)
    return series.finish()


class _Series:
    """Follows the rows of one metrics object, a row group at a time."""

    def __init__(self, path: str, findings: Findings) -> None:
        self._path, self._findings = path, findings
        self._facts = OwnerFacts()
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._experiments: dict[int, str] = {}
        self._digester = SeriesDigester()
        self._last: pa.Table | None = None
        self._latest: list[pa.Table] = []

    def take(self, group: pa.Table) -> None:
        owner = self._owners(group.column("run_id"))
        self._check_experiments(owner, group.column("experiment_id"))
        series = pa.table([pa.array(owner), *(group.column(name) for name in SERIES_COLUMNS)], names=["owner", *SERIES_COLUMNS])
        self._check_order(series)
        self._digester.add(series)
        self._latest.append(latest_points(series))
        if self._digester.finished:
            self._move(int(owner[-1]))

    def finish(self) -> OwnerFacts:
        self._digester.finish()
        self._move(len(self._names))
        return self._facts

    def _owners(self, runs: pa.ChunkedArray) -> npt.NDArray[np.int32]:
        """The run of each row as a number in the order of their appearance."""
        encoded = runs.combine_chunks()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        names = encoded.dictionary
        starts = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1))
        found = []
        for code in codes[starts].tolist():
            name = names[code].as_py()
            number = self._numbers.setdefault(name, len(self._names))
            if number == len(self._names):
                self._names.append(name)
            elif number + 1 < len(self._names):
                raise CorruptError(f"{self._path} holds metric points of run {name} in two places", code="E042")
            found.append(number)
        return np.repeat(np.array(found, np.int32), np.diff(np.append(starts, len(codes))))

    def _check_experiments(self, owner: npt.NDArray[np.int32], experiments: pa.ChunkedArray) -> None:
        encoded = experiments.combine_chunks()
        codes = encoded.indices.to_numpy(zero_copy_only=False)
        changes = np.flatnonzero((np.diff(owner) != 0) | (np.diff(codes) != 0)) + 1
        for row in (0, *changes.tolist()):
            number, name = int(owner[row]), encoded.dictionary[int(codes[row])].as_py()
            if self._experiments.setdefault(number, name) != name:
                run = self._names[number]
                text = f"{self._path} holds metric points of run {run} in several experiments"
                self._findings.add("E046", text, object=self._path, kind=_RUN, id=run, runs=[run])

    def _check_order(self, series: pa.Table) -> None:
        whole = series if self._last is None else pa.concat_tables([self._last, series]).unify_dictionaries().combine_chunks()
        self._last = series.slice(series.num_rows - 1)
        if sort_series(whole) is whole:
            return
        owner = whole.column("owner").to_numpy()
        bounds = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), len(owner)]
        for start, end in pairwise(bounds):
            points = whole.slice(start, end - start)
            if sort_series(points) is not points:
                run = self._names[int(owner[start])]
                text = f"{self._path} holds metric points of run {run} out of order"
                self._findings.add("E045", text, object=self._path, kind=_RUN, id=run, runs=[run])

    def _move(self, until: int) -> None:
        """Take over the owners below ``until``, which are complete."""
        latest = latest_points(pa.concat_tables(self._latest).combine_chunks()) if self._latest else None
        first = len(self._facts.owners)
        for number, (rows, digest) in self._digester.finished.items():
            self._facts.add(_RUN, self._names[number], rows, digest)
            self._facts.experiments.append(self._experiments.pop(number))
        self._digester.finished.clear()
        if latest is None or first == until:
            return
        owner = latest.column("owner").to_numpy()
        bounds = np.searchsorted(owner, np.arange(first, until + 1)).tolist()
        keys = latest.column("key").slice(0, bounds[-1]).to_pylist()
        columns = [latest.column(name).to_numpy() for name in ("value", "timestamp", "step")]
        self._facts.latest += latest_digests(keys, columns, bounds)
        self._latest = [latest.slice(bounds[-1])]


# -- plain rows ----------------------------------------------------------------------------------------------------------


def row_facts(path: str, file: Any, spec: TableSpec, *, kind: str, findings: Findings, limits: Limits) -> OwnerFacts:
    """The facts of an object of plain rows, such as spans, which belong to entities of ``kind``.

    Raises:
        CorruptError, LimitError: it cannot be decoded, or the rows of an owner are not together.
    """
    facts, digester = OwnerFacts(), RowDigester(spec)
    names: list[str] = []
    numbers: dict[str, int] = {}
    experiments: dict[int, str] = {}

    def number_of(owner: str) -> int:
        if owner not in numbers:
            numbers[owner] = len(names)
            names.append(owner)
        elif numbers[owner] + 1 < len(names):
            raise CorruptError(f"{path} holds rows of {kind} {owner} in two places", code="E042")
        return numbers[owner]

    def complete() -> None:
        for number, (rows, digest) in digester.finished.items():
            facts.add(kind, names[number], rows, digest)
            facts.experiments.append(experiments.pop(number))
        digester.finished.clear()

    last: pa.Table | None = None
    for group in row_groups(file, spec, name=path, limits=limits):
        if not group.num_rows:
            continue
        rows = next(numbered_rows([group], spec, number_of))
        owner = rows.column("owner").to_numpy()
        for number, name in _pairs_of(owner, group.column("experiment_id")):
            if experiments.setdefault(number, name) != name:
                text = f"{path} holds rows of {kind} {names[number]} in several experiments"
                findings.add("E046", text, object=path, kind=kind, id=names[number])
        _check_row_order(path, spec, rows, last, findings)
        last = rows.slice(rows.num_rows - 1)
        digester.add(rows)
        complete()
    digester.finish()
    complete()
    return facts


def _pairs_of(owner: npt.NDArray[np.int32], names: pa.ChunkedArray) -> Iterator[tuple[int, str]]:
    """(owner, text) at each change of either."""
    encoded = names.unify_dictionaries().combine_chunks()
    codes = encoded.indices.to_numpy(zero_copy_only=False)
    changes = np.flatnonzero((np.diff(owner) != 0) | (np.diff(codes) != 0)) + 1
    for row in (0, *changes.tolist()):
        yield int(owner[row]), encoded.dictionary[int(codes[row])].as_py()


def _check_row_order(path: str, spec: TableSpec, rows: pa.Table, last: pa.Table | None, findings: Findings) -> None:
    """The rows of an owner are in the order of ``spec.order``."""
    whole = rows if last is None else pa.concat_tables([last, rows]).unify_dictionaries()
    columns = [whole.column("owner").to_numpy().astype(np.int64)]
    for name in spec.order:
        column = whole.column(name)
        integers = pa.types.is_integer(column.type)
        columns.append(column.to_numpy() if integers else key_ranks(column)[0])
    if not in_order(columns):
        findings.add("E045", f"{path} holds rows of one {spec.owner} out of order", object=path)


# -- files ---------------------------------------------------------------------------------------------------------------


def file_facts(path: str, file: Any, findings: Findings, limits: Limits) -> OwnerFacts:
    """The facts of a files object.

    Raises:
        CorruptError, LimitError: it cannot be decoded, or the rows of an owner are not together.
    """
    facts = OwnerFacts()
    seen: set[tuple[str, str]] = set()
    named = [np.empty(0, CONTENTS)]
    for (kind, owner), rows in _listings(file, path, limits, named):
        if (kind, owner) in seen:
            raise CorruptError(f"{path} holds files of {kind} {owner} in two places", code="E042")
        seen.add((kind, owner))
        _check_listing(path, kind, owner, rows, findings)
        facts.add(kind, owner, len(rows), files_digest(rows))
        facts.file_bytes += sum(size for _, size, _, state in rows if state == "ok")
    facts.contents = np.unique(np.concatenate(named))
    return facts


_Row = tuple[str, int, str | None, str]


def _listings(
    file: Any, path: str, limits: Limits, named: list[npt.NDArray[Any]]
) -> Iterator[tuple[tuple[str, str], list[_Row]]]:
    """The files of each owner; the contents that are well named go to ``named``."""
    open_owner: tuple[str, str] | None = None
    rows: list[_Row] = []
    for group in row_groups(file, _FILES, name=path, limits=limits):
        named[:] = [np.unique(np.concatenate([*named, _contents(group)]))]
        for start in range(0, group.num_rows, _SLICE):
            part = group.slice(start, _SLICE).select(["owner_kind", "owner_id", "path", "size", "sha256", "state"])
            for kind, owner, *row in zip(*(column.to_pylist() for column in part.columns), strict=True):
                if (kind, owner) != open_owner:
                    if open_owner is not None:
                        yield open_owner, rows
                    open_owner, rows = (kind, owner), []
                rows.append((row[0], row[1], row[2], row[3]))
    if open_owner is not None:
        yield open_owner, rows


def _contents(group: pa.Table) -> npt.NDArray[Any]:
    digests, good = raw_digests(group.column("sha256"))
    found = np.empty(int(good.sum()), CONTENTS)
    found["sha256"] = digests[good]
    found["size"] = group.column("size").to_numpy()[good]
    return found


def _check_listing(path: str, kind: str, owner: str, rows: list[_Row], findings: Findings) -> None:
    def found(code: str, what: str, name: str) -> None:
        text = f"{path} holds the file {name!r} of {kind} {owner} {what}"
        findings.add(code, text, object=path, kind=kind, id=owner, path=name, runs=[owner] if kind == _RUN else ())

    before: bytes | None = None
    for name, size, sha256, state in rows:
        place = name.encode()
        if before is not None and place <= before:
            found("E047", "twice" if place == before else "out of order", name)
        before = place
        if state not in ("ok", "unreadable"):
            found("E048", f"in the unknown state {state!r}", name)
        elif (sha256 is None) != (state == "unreadable") or (sha256 is not None and not is_hex(sha256)):
            found("E048", f"in the state {state!r} with the content {sha256!r}", name)
        elif size < 0:
            found("E048", f"with a size of {size:,} bytes", name)
        if why := why_unsafe(name):
            found("W091", f"whose path {why}", name)
    for name in collisions({name: None for name, *_ in rows}):
        found("W091", "that collides with another on disks that fold case or Unicode", name)


# -- the index -----------------------------------------------------------------------------------------------------------


def index_facts(path: str, file: Any, findings: Findings, limits: Limits) -> IndexFacts:
    """The facts of an index object.

    Raises:
        CorruptError, LimitError: it cannot be decoded.
    """
    numbers: dict[str, int] = {}
    parts = [np.empty(0, EXTENTS)]
    for group in row_groups(file, _INDEX, name=path, limits=limits):
        digests, good = raw_digests(group.column("sha256"))
        if not good.all():
            findings.add("E051", f"{path} has a row whose content is no SHA-256 in hex", object=path)
        part = np.empty(group.num_rows, EXTENTS)
        part["sha256"] = digests
        for name, column in (("part", "part"), ("offset", "offset"), ("length", "length"), ("raw", "raw_length")):
            part[name] = group.column(column).to_numpy()
        part["object"] = _numbered(group.column("object"), numbers)
        part["codec"] = _numbered(group.column("codec"), {name: number for number, name in enumerate(CODECS)}, grow=False)
        parts.append(part[good])
    for named in numbers:
        if _layout.object_hex(named) is None or _layout.object_role(named) not in (_layout.PACKS, _layout.BLOBS):
            findings.add("E021", f"{path} names {named!r}, which is no pack or blob", object=path)
    extents = np.concatenate(parts)
    return IndexFacts(len(extents), extents, list(numbers))


def _numbered(column: pa.ChunkedArray, numbers: dict[str, int], *, grow: bool = True) -> npt.NDArray[np.int32]:
    """A column of repeated strings as numbers; one without a number gets the next, or -1."""
    encoded = column.combine_chunks()
    names = encoded.dictionary.to_pylist()
    known: Mapping[str, int] = numbers
    codes = [numbers.setdefault(name, len(numbers)) if grow else known.get(name, -1) for name in names]
    numbered: npt.NDArray[np.int32] = np.array([*codes, -1], np.int32)[encoded.indices.to_numpy(zero_copy_only=False)]
    return numbered
