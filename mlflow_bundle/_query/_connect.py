"""A DuckDB connection that has the views of a bundle, and what it says of wrong SQL as one sentence with a place."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, Final, NamedTuple

import pyarrow as pa

from mlflow_bundle import _layout
from mlflow_bundle._query._columns import identifier, literal
from mlflow_bundle._query._objects import ObjectFileSystem
from mlflow_bundle._query._views import VIEWS, view_query
from mlflow_bundle._storage import Storage
from mlflow_bundle.errors import StorageError, UnsupportedError, UsageError
from mlflow_bundle.records import ObjectRef

__all__ = ["Session", "Source", "add_views", "connect", "place_of", "sql_errors", "view_sql", "views_script"]

#: Characters by which DuckDB would take a path for a pattern.
_PATTERN: Final = frozenset("*?[")
#: What may be the name of a view: one that ``[`` follows is a column.
_WORD: Final = re.compile(r"\w+\b(?!\s*\[)")
#: The path of an object in what DuckDB says.
_OBJECT: Final = re.compile(r"objects/[a-z]+/(?:[0-9a-f]{2}/)?[0-9a-f]{64}")


class Source(NamedTuple):
    """A snapshot by its name, and its objects."""

    snapshot: str
    refs: Sequence[ObjectRef]


def _duckdb() -> ModuleType:
    try:
        import duckdb  # noqa: PLC0415 - optional, and reading without SQL must not pay for it
    except ImportError as error:
        raise UnsupportedError(
            "SQL needs DuckDB, which is not installed",
            code="missing-package",
            hint='pip install duckdb, which the extra "query" of mlflow-bundle brings too',
        ) from error
    module: ModuleType = duckdb
    return module


def connect() -> Any:
    """A new DuckDB connection in memory that keeps the footers of Parquet files.

    Raises:
        UnsupportedError: DuckDB is not installed.
    """
    connection = _duckdb().connect()
    connection.execute("SET parquet_metadata_cache = true")
    return connection


def view_sql(name: str, sources: Sequence[Source], prefix: str, *, labelled: bool) -> str:
    """The SQL of a view over some snapshots; ``labelled`` has the name of the snapshot as first column."""
    each = [(source.snapshot, view_query(name, source.refs, prefix)) for source in sources]
    if not labelled:
        ((_, found),) = each
        return found
    return " UNION ALL ".join(f"SELECT {literal(stem)} AS snapshot, * FROM ({found})" for stem, found in each)


def views_script(sources: Sequence[Source], root: str, *, labelled: bool, title: str) -> str:
    """The views as SQL text for DuckDB alone. ``root`` is where the folder of the bundle is, without a last slash.

    Raises:
        UsageError: DuckDB would take the root for a pattern.
    """
    if _PATTERN & set(root):
        raise UsageError(
            f"DuckDB takes {root!r} for a pattern", hint="give a root without * ? [ , such as a symbolic link to it"
        )
    lines = [f"-- {line}" for line in title.splitlines()]
    prefix = f"{root.rstrip('/')}/" if root else ""
    views = ((identifier(name), view_sql(name, sources, prefix, labelled=labelled)) for name in VIEWS)
    return "\n".join([*lines, *(f"CREATE OR REPLACE VIEW {name} AS {sql};" for name, sql in views)]) + "\n"


def place_of(storage: Storage) -> str:
    """Where DuckDB alone finds the folder of a bundle.

    Raises:
        UsageError: it is one file.
    """
    if storage.folder is not None:
        return storage.folder.as_posix()
    if storage.is_one_file:
        raise UsageError(
            f"{storage.url} is one file, and DuckDB alone cannot look into it",
            hint="unzip it, and name the folder as root; or let `mlflow-bundle query` ask it as it is",
        )
    return storage.url


def add_views(
    connection: Any, storage: Storage, sources: Sequence[Source], *, labelled: bool, schema: str | None, temporary: bool
) -> None:
    """Make the views on a connection: temporary ones, or in a database in memory that is attached under a name."""
    into = ""
    if schema is not None:
        connection.execute(f"ATTACH OR REPLACE ':memory:' AS {identifier(schema)}")
        into = f"{identifier(schema)}."
    kind = "TEMP VIEW" if temporary and schema is None else "VIEW"
    prefix = _prefix(connection, storage, sources)
    with sql_errors():
        for name in VIEWS:
            sql = view_sql(name, sources, prefix, labelled=labelled)
            connection.execute(f"CREATE OR REPLACE {kind} {into}{identifier(name)} AS {sql}")


def _prefix(connection: Any, storage: Storage, sources: Sequence[Source]) -> str:
    """What comes before the paths of objects, for a connection that reaches them then."""
    if (prefix := _local_prefix(storage, sources)) is not None:
        return prefix
    files = ObjectFileSystem(storage, (ref for source in sources for ref in source.refs))
    connection.register_filesystem(files)
    return files.prefix


class Session:
    """A connection that answers queries. A view is made when a query names it for the first time: that opens an object."""

    def __init__(self, storage: Storage, sources: Sequence[Source], *, labelled: bool) -> None:
        self._connection = connect()
        self._sources, self._labelled = sources, labelled
        self._prefix = _prefix(self._connection, storage, sources)
        self._missing = list(VIEWS)

    def ask(self, query: str, params: Sequence[Any] | Mapping[str, Any] | None) -> pa.Table:
        """The result of a query.

        Raises:
            UsageError: the SQL is wrong.
            StorageError: an object cannot be read.
        """
        words = set(_WORD.findall(query.lower()))
        # A query that names no view lists them, or names one that there is not.
        for name in [name for name in self._missing if name in words] or ([] if words & VIEWS.keys() else list(self._missing)):
            sql = view_sql(name, self._sources, self._prefix, labelled=self._labelled)
            with sql_errors():
                self._connection.execute(f"CREATE VIEW {identifier(name)} AS {sql}")
            self._missing.remove(name)
        with sql_errors():
            return arrow_table(self._connection, query, params)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def arrow_table(connection: Any, query: str, params: Sequence[Any] | Mapping[str, Any] | None) -> pa.Table:
    """The result of a query, without rows and columns for a statement that has none."""
    duckdb = _duckdb()
    try:
        found = connection.sql(query, params=params)
    except (duckdb.BinderException, duckdb.CatalogException):
        # Only so does DuckDB say where; nothing of a single statement was executed.
        if len(connection.extract_statements(query)) == 1:
            connection.execute(query, params)
        raise
    return pa.table({}) if found is None else found.to_arrow_table()


def _local_prefix(storage: Storage, sources: Sequence[Source]) -> str | None:
    """Where DuckDB itself can read the objects, by its own threads; None where it needs a file system of ours."""
    folder = storage.folder
    if folder is None or _PATTERN & set(str(folder)) or "://" in str(folder):
        return None
    # The end of a cut zstd file is that of the records for DuckDB; ours raises.
    records = (ref for source in sources for ref in source.refs if ref.role == _layout.RECORDS)
    if any(storage.size(ref.path) != ref.size for ref in records):
        return None
    return f"{folder.as_posix().rstrip('/')}/"


@contextlib.contextmanager
def sql_errors() -> Iterator[None]:
    """What DuckDB says as errors of this package: one sentence, and the line with its place as a note.

    Raises:
        UsageError: the SQL is wrong (code ``sql``).
        StorageError: an object cannot be read.
    """
    duckdb = _duckdb()
    try:
        yield
    except duckdb.Error as error:
        raise _explained(duckdb, error) from error


def _explained(duckdb: ModuleType, error: Exception) -> Exception:
    said, _, place = str(error).partition("\n\nLINE ")
    lines = [line.strip() for line in said.split("\n") if line.strip()]
    if lines and lines[0].startswith("Traceback"):  # of our file system: its last line is ``CorruptError: sentence``
        lines = [lines[-1].partition(": ")[2]]
    sentence = _sentence(lines[0] if lines else type(error).__name__)
    hint = " ".join(lines[1:]) or None
    # Parquet that cannot be decoded is a wrong input for DuckDB, or an error without a class of its own.
    damaged = type(error) is duckdb.Error or _OBJECT.search(said) is not None
    if damaged or isinstance(error, duckdb.IOException | duckdb.HTTPException):
        return StorageError(
            f"an object cannot be read: {sentence.removeprefix('SQL: ')}",
            hint=hint or "`mlflow-bundle verify` shows what is damaged",
        )
    if isinstance(error, duckdb.OutOfMemoryException):
        return UsageError(sentence, code="sql", hint="ask for less, or raise DuckDB's memory_limit")
    found = UsageError(sentence, code="sql", hint=hint or "`show tables` lists the views, `describe VIEW` the columns of one")
    if place:
        found.add_note(f"LINE {place}")
    return found


def _sentence(line: str) -> str:
    """``Binder Error: Column x not found!`` as ``SQL: column x not found``."""
    kind, colon, rest = line.partition(": ")
    text = rest if colon and kind.endswith("Error") else line
    return f"SQL: {text.rstrip('!.')}"
