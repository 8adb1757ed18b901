"""Connections to MLflow's databases through ADBC: URIs, dialects, reflection, checked columns.

Nothing here imports MLflow. Every answer of a database comes as an Arrow table whose types are checked against a schema,
because SQLite lets any column hold any type and its driver guesses types from the first rows.
"""

from __future__ import annotations

import re
import threading
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import adbc_driver_manager
import adbc_driver_postgresql
import adbc_driver_sqlite
import pyarrow as pa

from mlflow_bundle._redact import redact_uri
from mlflow_bundle.errors import AuthError, BundleError, CorruptError, NotFoundError, ServerError, UnsupportedError, UsageError
from mlflow_bundle.tracking.database._adbc import Answer, Session

__all__ = [
    "MEND",
    "Column",
    "Connection",
    "DatabaseUri",
    "columns_of",
    "experiment_numbers",
    "literal",
    "literals",
    "not_found",
    "parse_uri",
    "revision_of",
    "slices",
]

T = TypeVar("T")

#: How long a locked SQLite database is waited for, in milliseconds.
BUSY_MILLISECONDS: Final = 10_000
#: Rows of one batch of the SQLite driver. It guesses types from the first batch, so bounded answers should fit into one.
_BATCH_ROWS: Final = 1 << 20

_WITHOUT_COPY: Final = {"adbc.postgresql.use_copy": "false"}
_SUPPORTED: Final = "sqlite:///<file> and postgresql://<user>:<password>@<host>/<database>"
_SCHEME: Final = re.compile(r"(?P<dialect>[A-Za-z0-9]+)(?:\+(?P<driver>[A-Za-z0-9_]+))?://")
#: The first table of a statement.
_FROM: Final = re.compile(r"\bFROM (?:wanted CROSS JOIN )?(\w+)")
#: What to do about a column that holds what it must not.
MEND: Final = "mend that row in the database: in SQLite, typeof() of the column tells it from the others"
#: What the drivers raise: the last one comes from a reader of batches.
_DRIVER_ERRORS: Final = (adbc_driver_manager.Error, OSError, pa.ArrowException)
_REFUSED: Final = re.compile(r"constraint failed|datatype mismatch|SQLSTATE: 2[23]")
_DENIED: Final = re.compile(r"authentication failed|no password supplied|role \".*\" does not exist|permission denied")
_UNREACHED: Final = re.compile(
    r"Connection refused|could not translate host name|timeout expired|No route to host|No such file or directory"
)


@dataclass(frozen=True, slots=True)
class DatabaseUri:
    """A database as MLflow names it. ``path`` is the file of SQLite, ``libpq`` the URI for PostgreSQL's own library."""

    text: str = field(repr=False)
    dialect: Literal["sqlite", "postgresql"]
    path: Path | None = None
    libpq: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """The URI without credentials."""
        return redact_uri(self.text)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file of SQLite, else a database of PostgreSQL."""
        return self.dialect == "sqlite"


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. ``length`` is the limit in characters, ``bits`` that of an integer, where the database has one."""

    name: str
    nullable: bool
    length: int | None = None
    bits: int | None = None


def parse_uri(uri: str) -> DatabaseUri:
    """Understand a database URI as MLflow takes it.

    Raises:
        UnsupportedError: another database, or a database in memory.
        UsageError: not a database URI.
    """
    match = _SCHEME.match(uri)
    if match is None:
        raise UsageError(f"{redact_uri(uri)!r} is not a database URI", hint=f"write {_SUPPORTED}")
    rest = uri[match.end() :]
    if match["dialect"] == "sqlite":
        return DatabaseUri(uri, "sqlite", path=_sqlite_path(uri, rest))
    if match["dialect"] in {"postgresql", "postgres"}:
        return DatabaseUri(uri, "postgresql", libpq="postgresql://" + rest)
    raise UnsupportedError(f"databases of the kind {match['dialect']!r} are not supported", hint=f"supported are {_SUPPORTED}")


def _sqlite_path(uri: str, rest: str) -> Path:
    name, _, query = rest.removeprefix("/").partition("?")
    if name.startswith("file:") and "uri=true" in query.lower():
        name = urllib.parse.unquote(name.removeprefix("file:"))
    if not rest.startswith("/") or not name or name.startswith(":memory:"):
        raise UnsupportedError(f"{uri!r} names no file: a database in memory belongs to one process", hint="use a file")
    return Path(name)


def literal(text: str) -> str:
    """``text`` as a string literal of SQL. Backslashes mean nothing in it (``standard_conforming_strings``)."""
    if "\0" in text:
        raise UsageError(f"{text!r} holds a NUL character, which no id or name in a database can")
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """``('a', 'b')`` for an SQL ``IN``."""
    return "(" + ", ".join(map(literal, texts)) + ")"


def experiment_numbers(ids: Iterable[str]) -> list[str]:
    """The ids of experiments as SQL has them: text that is no integer names no experiment of a database."""
    return [str(int(text)) for text in ids if text.isascii() and text.removeprefix("-").isdigit()]


def slices(items: Sequence[T], size: int) -> Iterator[list[T]]:
    """The items in parts of at most ``size``, one for each statement with an ``IN``."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])


class Connection:
    """One connection that many threads may use: a lock lets them in one at a time.

    A read-only connection reads one snapshot of the database, from its opening to its end. A writing one starts a transaction
    at the first statement after opening, ``commit`` or ``rollback``.

    Raises (opening and every method):
        NotFoundError: there is no such database.
        AuthError: the database refuses these credentials.
        ServerError: it cannot be reached, is locked, or failed.
        CorruptError: a column holds what it must not.
    """

    def __init__(self, uri: DatabaseUri, *, read_only: bool) -> None:
        self.uri = uri
        self._lock = threading.RLock()
        self._cursors = 0
        self._streams: list[Answer] = []
        self._frozen: tuple[int, int] | None = None
        self._read_only = read_only
        with self._errors():
            self._session = self._open_sqlite() if uri.is_sqlite else self._open_postgresql()

    def _open_postgresql(self) -> Session:
        session = Session(adbc_driver_postgresql.connect(self.uri.libpq))
        if self._read_only:
            session.table("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        session.table("SET standard_conforming_strings = on")
        if not self._read_only:
            session.commit()
        return session

    def _open_sqlite(self) -> Session:
        path = self.uri.path
        assert path is not None
        if not path.is_file():
            raise NotFoundError(
                f"there is no database file {str(path)!r}", hint="check the path; a relative one starts at the working folder"
            )
        name = urllib.parse.quote(str(path.absolute()))
        if not self._read_only:
            return _connect_sqlite(f"file:{name}?mode=rw")
        try:
            session = _connect_sqlite(f"file:{name}?mode=ro")
        except adbc_driver_manager.Error:
            # A database in WAL mode needs helper files beside it. Where they cannot be made and nobody has it open, it is read
            # as it lies, and a change while reading is an error.
            if not (_in_wal_mode(path) and _at_rest(path)):
                raise
            self._frozen = _stamp(path)
            return _connect_sqlite(f"file:{name}?mode=ro&immutable=1")
        if session.table("PRAGMA journal_mode").column(0).to_pylist() != ["wal"]:
            # The lock of a reader keeps every writer from changing the file, unless locks do not work: on some network file
            # systems, and against another copy of the SQLite library in this very process.
            self._frozen = _stamp(path)
        return session

    def bytewise(self, text: str) -> str:
        """A text in SQL, compared by its UTF-8 bytes."""
        return text if self.uri.is_sqlite else f'{text} COLLATE "C"'

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Let one thread in and turn what the driver raises into errors of this package."""
        with self._lock:
            try:
                yield
            except _DRIVER_ERRORS as error:
                raise self._explained(error) from error

    def _explained(self, error: Exception) -> BundleError:
        text = redact_uri(" ".join(str(error).split()))[:500]
        name = self.uri.shown
        if "database is locked" in text or "database table is locked" in text:
            hint = "let the MLflow server finish or stop it, then run again"
            return ServerError(f"the database {name} is locked by another program ({text})", code="locked", hint=hint)
        if "file is not a database" in text:
            return ServerError(f"{name} is not a SQLite database", hint="name the file that MLflow writes, often mlflow.db")
        if "malformed" in text:
            return CorruptError(f"the database {name} is damaged: {text}", hint="run sqlite3 <file> 'PRAGMA integrity_check'")
        if "disk is full" in text or "No space left" in text:
            return ServerError(f"no space is left for the database {name} ({text})", code="full", hint="free some, run again")
        if "readonly database" in text:
            hint = "let this user write the file and its folder"
            return ServerError(f"the database {name} cannot be written ({text})", code="read-only", hint=hint)
        if _REFUSED.search(text):
            return ServerError(f"the database {name} refused a value: {text}", code="refused")
        if _DENIED.search(text):
            return AuthError(f"the database {name} refused: {text}", hint="give the credentials of a role that may do this")
        if "FATAL: database" in text and "does not exist" in text:
            return NotFoundError(f"there is no database at {name}: {text}")
        if "Failed to connect" in text:
            why = _UNREACHED.search(text)
            hint = "start the database server, or correct the tracking URI (MLFLOW_TRACKING_URI)"
            return ServerError(f"the database {name} does not answer: {why[0].lower() if why else text}", hint=hint)
        return ServerError(f"the database {name} failed: {text}")

    def fetch(self, sql: str, schema: pa.Schema) -> pa.Table:
        """The whole answer of a query whose size is bounded, with exactly this schema."""
        with self._errors():
            table = self._session.table(sql, **self._batches_of(_BATCH_ROWS))
            self._check_frozen()
        return self._conform(table, schema, sql)

    def stream(self, sql: str, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
        """The answer of a query in tables of at most ``rows`` rows. Other queries may run between them."""
        if self.uri.is_sqlite:
            yield from self._stream_sqlite(sql, schema, rows)
            return
        self._cursors += 1
        name = f"mlflow_bundle_{self._cursors}"
        self.run(f"DECLARE {name} NO SCROLL CURSOR FOR {sql}")
        while True:
            with self._errors():
                table = self._session.table(f"FETCH FORWARD {rows} FROM {name}", **_WITHOUT_COPY)
            if table.num_rows == 0:
                break
            yield self._conform(table, schema, sql)
        # One that is left early ends with the transaction.
        self.run(f"CLOSE {name}")

    def _stream_sqlite(self, sql: str, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
        with self._errors():
            answer = self._session.query(sql, **self._batches_of(rows))
            self._streams.append(answer)
        try:
            while True:
                with self._errors():
                    batch = next(answer.reader, None)
                    self._check_frozen()
                if batch is None:
                    break
                if batch.num_rows:
                    yield self._conform(pa.Table.from_batches([batch]), schema, sql)
        finally:
            with self._lock:
                answer.close()
                self._streams.remove(answer)

    def _batches_of(self, rows: int) -> dict[str, Any]:
        return {adbc_driver_sqlite.StatementOptions.BATCH_ROWS.value: rows} if self.uri.is_sqlite else {}

    def _check_frozen(self) -> None:
        path = self.uri.path
        if self._frozen is not None and path is not None and not (_at_rest(path) and _stamp(path) == self._frozen):
            raise ServerError(
                f"the database {self.uri.shown} was changed while it was read",
                code="changed",
                hint="run again when nothing writes to it, or read through its server",
            )

    def _conform(self, table: pa.Table, schema: pa.Schema, sql: str) -> pa.Table:
        columns = []
        for wanted, column in zip(schema, table.columns, strict=True):
            try:
                columns.append(_conform(column, wanted))
            except (pa.ArrowException, ValueError) as error:
                of = "".join(f" of {name[1]}" for name in islice(_FROM.finditer(sql), 1))
                message = f"the column {wanted.name!r}{of} in the database {self.uri.shown} does not hold what it must: {error}"
                raise CorruptError(message, code="column", hint=MEND) from error
        return pa.table(columns, schema=schema)

    def set_pragmas(self, *pragmas: str) -> None:
        """Set pragmas of SQLite that cannot be set inside a transaction; the open one is committed."""
        with self._errors(), self._session.outside():
            for pragma in pragmas:
                self._session.table(f"PRAGMA {pragma}")

    def run(self, sql: str) -> None:
        """Execute a statement that has no answer."""
        with self._errors():
            self._session.table(sql)

    def append(self, name: str, table: pa.Table) -> None:
        """Add rows to a table of the database, column by name."""
        with self._errors():
            self._session.append(name, table)

    def stage(self, name: str, table: pa.Table) -> None:
        """Add rows to a temporary table of this connection, made where it does not exist yet."""
        with self._errors():
            self._session.stage(name, table)

    def commit(self) -> None:
        """End the transaction and keep what it did."""
        with self._errors():
            self._session.commit()

    def rollback(self) -> None:
        """End the transaction and undo what it did."""
        with self._errors():
            try:
                self._session.rollback()
            except adbc_driver_manager.Error as error:
                # SQLite undoes it by itself where the disk is full: then the next one is still to be started.
                if "no transaction is active" not in str(error):
                    raise
                self._session.table("BEGIN")

    def close(self) -> None:
        """End the transaction and the connection. Closing twice is harmless."""
        with self._errors():
            for answer in self._streams:
                answer.close()
            self._session.close()


def _connect_sqlite(name: str) -> Session:
    session = Session(adbc_driver_sqlite.connect(name))
    try:
        session.table(f"PRAGMA busy_timeout = {BUSY_MILLISECONDS}")
        # The first look into the database is what fixes the snapshot of a transaction.
        session.table("SELECT count(*) FROM sqlite_master")
    except adbc_driver_manager.Error:
        session.close()
        raise
    return session


def _at_rest(path: Path) -> bool:
    """Whether no program has the database in WAL mode open: the last one to close it removes the log."""
    wal = path.with_name(path.name + "-wal")
    return not wal.exists() or wal.stat().st_size == 0


def _in_wal_mode(path: Path) -> bool:
    """Whether the header says so. Closing the file ends every lock that this process has on it: not for one that is open."""
    with path.open("rb") as file:
        return file.read(20)[18:] == b"\x02\x02"


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _conform(column: pa.ChunkedArray, wanted: pa.Field) -> pa.ChunkedArray:
    """The column as the type that it must have. A loss or a surprise raises."""
    if column.null_count == len(column):
        column = pa.chunked_array([pa.nulls(len(column), wanted.type)])
    if column.null_count and not wanted.nullable:
        raise ValueError("NULL where a value is needed")
    if column.type != wanted.type:
        integers = pa.types.is_integer(column.type) and pa.types.is_integer(wanted.type)
        if not integers and not (pa.types.is_boolean(column.type) and pa.types.is_integer(wanted.type)):
            raise ValueError(f"{column.type} where {wanted.type} is needed{_example(column)}")
        column = column.cast(wanted.type)
    if pa.types.is_string(wanted.type):
        column.validate(full=True)
    return column


def not_found(connection: Connection, table: str) -> CorruptError:
    """The error that a key which a table lists finds no row in it."""
    return CorruptError(
        f"in the database {connection.uri.shown}, rows of the table {table} are not found by their own keys",
        code="damaged",
        hint="SQLite: PRAGMA integrity_check, REINDEX, and keys that are BLOB where they must be TEXT",
    )


def _example(column: pa.ChunkedArray) -> str:
    """The first value of a column of texts that is no integer."""
    odd = (text for text in column.to_pylist() if isinstance(text, str) and not text.lstrip("-").isdigit())
    return "".join(f" (for example {text[:60]!r})" for text in islice(odd, 1))


_COLUMNS: Final = pa.schema(
    [
        pa.field("table", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("not_null", pa.int64(), nullable=False),
        pa.field("length", pa.int64()),
        pa.field("bits", pa.int64()),
    ]
)
_REFLECT_SQLITE: Final = (
    'SELECT m.name, c.name, c."notnull", NULL, NULL FROM sqlite_master m JOIN pragma_table_info(m.name) c '
    "WHERE m.type = 'table' ORDER BY m.name, c.cid"
)
_REFLECT_POSTGRESQL: Final = (
    "SELECT table_name::text, column_name::text, (is_nullable = 'NO')::int, character_maximum_length::int, "
    "CASE WHEN data_type IN ('smallint', 'integer', 'bigint') THEN numeric_precision::int END "
    "FROM information_schema.columns WHERE table_schema = current_schema() ORDER BY 1, ordinal_position"
)


def columns_of(connection: Connection) -> Mapping[str, Mapping[str, Column]]:
    """Every table of the database and its columns."""
    rows = connection.fetch(_REFLECT_SQLITE if connection.uri.is_sqlite else _REFLECT_POSTGRESQL, _COLUMNS)
    tables: dict[str, dict[str, Column]] = {}
    for table, name, not_null, length, bits in zip(*(column.to_pylist() for column in rows.columns), strict=True):
        tables.setdefault(table, {})[name] = Column(name, not not_null, length, bits)
    return tables


def revision_of(connection: Connection, tables: Mapping[str, object]) -> str | None:
    """The schema revision that MLflow noted, or None."""
    if "alembic_version" not in tables:
        return None
    schema = pa.schema([pa.field("version_num", pa.string(), nullable=False)])
    found = connection.fetch("SELECT version_num FROM alembic_version", schema).column(0).to_pylist()
    return found[0] if found else None
