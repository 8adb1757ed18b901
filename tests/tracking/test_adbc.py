"""Sessions with databases over ADBC."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import adbc_driver_manager
import adbc_driver_sqlite
import pytest

from mlflow_bundle.tracking.database._adbc import Session
from mlflow_bundle.tracking.database._connection import parse_uri


@pytest.fixture
def session(tmp_path: Path) -> Session:
    """A session with a database of one row."""
    with closing(sqlite3.connect(tmp_path / "some.db")) as connection:
        connection.execute("CREATE TABLE some (number INTEGER)")
        connection.execute("INSERT INTO some VALUES (7)")
        connection.commit()
    return Session(adbc_driver_sqlite.connect(f"file:{tmp_path / 'some.db'}"))


def test_closing_twice_is_harmless_and_final(session: Session) -> None:
    """Answers and sessions may be closed again; nothing can be asked afterwards."""
    answer = session.query("SELECT number FROM some")
    for _ in range(2):
        answer.close()
    for _ in range(2):
        session.close()
    with pytest.raises((adbc_driver_manager.Error, RuntimeError)):
        session.table("SELECT number FROM some")


def test_a_failed_statement_leaves_the_session_usable(session: Session) -> None:
    """Wrong SQL raises; the next statement works, and the session closes."""
    with pytest.raises(adbc_driver_manager.Error):
        session.query("SELECT nothing FROM nowhere")
    assert session.table("SELECT number FROM some").column(0).to_pylist() == [7]
    session.close()


def test_what_fails_outside_of_transactions_leaves_them(session: Session) -> None:
    """After a statement outside of a transaction failed, what follows is one again: it can be undone."""
    with pytest.raises(adbc_driver_manager.Error), session.outside():
        session.table("PRAGMA nothing = (")
    session.table("INSERT INTO some VALUES (8)")
    session.rollback()
    assert session.table("SELECT number FROM some").column(0).to_pylist() == [7]
    with session.outside():
        session.table("PRAGMA user_version = 3")
    session.table("INSERT INTO some VALUES (9)")
    session.commit()
    assert session.table("SELECT number FROM some").column(0).to_pylist() == [7, 9]
    session.close()


_INTERRUPTED = """
import os, signal, sys, threading
import adbc_driver_postgresql
from mlflow_bundle.tracking.database._adbc import Session

session = Session(adbc_driver_postgresql.connect(sys.argv[1]))
threading.Timer(1, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    session.table("SELECT pg_sleep(3000)")
except KeyboardInterrupt:
    session.rollback()
    print(session.table("SELECT 7").column(0).to_pylist())
    session.close()
"""


def test_ctrl_c_cancels_a_statement(postgres_database: Callable[[], str]) -> None:
    """An interrupt does not wait for PostgreSQL; the session goes on in a new transaction.

    In a process of its own: what else uses ADBC here may have replaced the handler of Python.
    """
    uri = parse_uri(postgres_database()).libpq
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, uri], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("[7]\n", "")


def test_databases_are_read_without_slow_imports() -> None:
    """The DB-API layer of ADBC would import data frame libraries at every start of the command."""
    code = "import sys, mlflow_bundle.tracking.database._read; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"polars", "pandas", "pyarrow.dataset", "mlflow", "sqlalchemy"} & set(done.stdout.split())
