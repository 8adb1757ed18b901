"""What this package needs of ADBC, on its low-level API. Its DB-API layer imports pandas, half a second of every start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any, Final, TypeVar

import pyarrow as pa
from adbc_driver_manager import (
    AdbcConnection,
    AdbcDatabase,
    AdbcStatement,
    NotSupportedError,
    StatementOptions,
)

__all__ = ["Answer", "Session"]

_APPEND: Final = {StatementOptions.INGEST_MODE.value: "adbc.ingest.mode.append"}
_STAGE: Final = {
    StatementOptions.INGEST_MODE.value: "adbc.ingest.mode.create_append",
    StatementOptions.INGEST_TEMPORARY.value: "true",
}

Result = TypeVar("Result")


class Answer:
    """The answer of a statement: batches from ``reader``. Close it before its session."""

    def __init__(self, statement: AdbcStatement, reader: pa.RecordBatchReader) -> None:
        self.reader = reader
        self._open = ExitStack()
        self._open.callback(statement.close)
        self._open.callback(reader.close)

    def close(self) -> None:
        """Stop the statement. Closing twice is harmless."""
        self._open.close()


class Session:
    """A connection for one thread at a time. What follows its opening, ``commit`` or ``rollback`` is one transaction.

    Raises (opening and every method): ``adbc_driver_manager.Error``; readers ``OSError`` and ``pyarrow.ArrowException``.
    """

    def __init__(self, database: AdbcDatabase) -> None:
        with ExitStack() as opening:
            opening.callback(database.close)
            self._connection = AdbcConnection(database)
            opening.callback(self._connection.close)
            self._connection.set_autocommit(False)
            self._worker = opening.enter_context(ThreadPoolExecutor(1, thread_name_prefix="adbc"))
            self._open = opening.pop_all()

    def query(self, sql: str, **options: Any) -> Answer:
        """Execute a statement that gives rows. ``options`` are those of ADBC statements."""
        statement = AdbcStatement(self._connection)
        try:
            statement.set_options(**options)
            statement.set_sql_query(sql)
            self._interruptible(statement, statement.prepare)
            stream, _ = self._interruptible(statement, statement.execute_query)
            return Answer(statement, pa.RecordBatchReader.from_stream(stream))
        except BaseException:
            statement.close()
            raise

    def table(self, sql: str, **options: Any) -> pa.Table:
        """Execute a statement; its whole answer, empty where it gives none."""
        with closing(self.query(sql, **options)) as answer:
            return answer.reader.read_all()

    def append(self, name: str, rows: pa.Table) -> None:
        """Add rows to a table."""
        self._ingest(name, rows, _APPEND)

    def stage(self, name: str, rows: pa.Table) -> None:
        """Add rows to a temporary table, made where it does not exist yet."""
        self._ingest(name, rows, _STAGE)

    def _ingest(self, name: str, rows: pa.Table, options: dict[str, str]) -> None:
        with closing(AdbcStatement(self._connection)) as statement:
            statement.set_options(**{StatementOptions.INGEST_TARGET_TABLE.value: name}, **options)
            statement.bind_stream(rows)
            self._interruptible(statement, statement.execute_update)

    def commit(self) -> None:
        """Keep what was done since the last one."""
        self._connection.commit()

    def rollback(self) -> None:
        """Undo it."""
        self._connection.rollback()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """No transaction inside; the open one is committed."""
        self.commit()
        self._connection.set_autocommit(True)
        try:
            yield
        finally:
            self._connection.set_autocommit(False)

    def close(self) -> None:
        """Undo what was not committed, and disconnect. Readers must be closed before. Closing twice is harmless."""
        self._open.close()

    def _interruptible(self, statement: AdbcStatement, work: Callable[[], Result]) -> Result:
        """Wait for a database in such a way that Ctrl-C cancels the statement, where its driver can."""
        future = self._worker.submit(work)
        try:
            return future.result()
        except KeyboardInterrupt:
            with suppress(NotSupportedError):
                statement.cancel()
            future.exception()
            raise
