"""Gets a database ready for writing: MLflow itself creates the tables of an empty one, and says which schema is its own."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from mlflow_bundle._storage._local import link_new
from mlflow_bundle.errors import ServerError, UnsupportedError, UsageError
from mlflow_bundle.tracking.database._connection import Connection, DatabaseUri, columns_of, parse_uri, revision_of
from mlflow_bundle.tracking.database._revision import head_revision

__all__ = ["place_database", "prepare_database"]

#: SQLAlchemy's drivers for PostgreSQL, by which one is tried first.
_DRIVERS: Final = ("psycopg2", "psycopg", "pg8000")
_ELSEWHERE: Final = "name a place that can be written"


def prepare_database(uri: DatabaseUri) -> str:
    """Create MLflow's tables where the database is empty or a SQLite file is missing; returns the revision of the schema.

    Raises:
        UnsupportedError: its schema is not that of the installed MLflow. It is never upgraded here.
        UsageError: no driver to create the tables of a PostgreSQL database is installed.
        ServerError: the database cannot be reached or written.
    """
    tables, found = _look(uri)
    if not tables:
        _create(uri)
        tables, found = _look(uri)
    head = head_revision()
    if "experiments" not in tables:
        raise UnsupportedError(
            f"the database {uri.shown} holds tables, but not MLflow's",
            hint="name an empty one, or the one that MLflow uses",
        )
    if found != head:
        raise UnsupportedError(
            f"the database {uri.shown} has the schema {found}, and the installed MLflow writes {head}",
            code="schema",
            hint=f"back it up, then run `mlflow db upgrade {uri.shown}`, or install the MLflow that it belongs to",
        )
    return head


def _look(uri: DatabaseUri) -> tuple[set[str], str | None]:
    if uri.path is not None and not uri.path.exists():
        return set(), None
    connection = Connection(uri, read_only=True)
    try:
        tables = columns_of(connection)
        return set(tables), revision_of(connection, tables)
    finally:
        connection.close()


def _create(uri: DatabaseUri) -> None:
    if uri.path is None:
        _create_tables(_postgresql_engine(uri))
        return
    try:
        uri.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the folder {str(uri.path.parent)!r} of the database cannot be made: {error.strerror}"
        raise ServerError(what, hint=_ELSEWHERE) from error
    if uri.path.exists():
        _create_tables(_engine(f"sqlite:///{uri.path}"))
        return
    # Made beside its place and renamed, so that a kill leaves no half-made database behind.
    unfinished = uri.path.with_name(f".{uri.path.name}.{os.getpid()}.creating")
    try:
        _create_tables(_engine(f"sqlite:///{unfinished}"))
        unfinished.rename(uri.path)
    finally:
        unfinished.unlink(missing_ok=True)


def place_database(draft: DatabaseUri, uri: DatabaseUri) -> None:
    """Move a SQLite database that nobody has open to the place of another URI, where there is none yet.

    Raises:
        ServerError: it cannot be written there, or somebody made one meanwhile.
    """
    assert draft.path is not None
    assert uri.path is not None
    try:
        uri.path.parent.mkdir(parents=True, exist_ok=True)
        # Copied beside its place and linked, so that a kill leaves no half-made database behind and nobody's is replaced.
        unfinished = uri.path.with_name(f".{uri.path.name}.{os.getpid()}.creating")
        try:
            shutil.copyfile(draft.path, unfinished)
            if not link_new(unfinished, uri.path):
                raise ServerError(f"the database {uri.shown} cannot be made: somebody made one meanwhile", hint=_ELSEWHERE)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise ServerError(f"the database {uri.shown} cannot be made: {error.strerror}", hint=_ELSEWHERE) from error


def _engine(url: str) -> Any:
    import sqlalchemy  # noqa: PLC0415 - comes with MLflow, and is only needed here

    return sqlalchemy.create_engine(url)


def _postgresql_engine(uri: DatabaseUri) -> Any:
    """An engine with the driver that the URI names, or the first one that is installed."""
    drivers = (None,) if uri.text.partition("://")[0].count("+") else _DRIVERS
    for driver in drivers:
        try:
            return _engine(uri.text if driver is None else f"postgresql+{driver}://{uri.libpq.partition('://')[2]}")
        except ModuleNotFoundError:
            continue
    raise UsageError(
        f"creating MLflow's tables in {uri.shown} needs a driver that is not installed",
        hint='pip install psycopg2-binary, which the extra "postgresql" of mlflow-bundle brings too',
    )


def _create_tables(engine: Any) -> None:
    import sqlalchemy.exc  # noqa: PLC0415
    from mlflow.store.db.utils import _initialize_tables  # noqa: PLC0415

    try:
        with _quiet("mlflow.store.db.utils"):
            _initialize_tables(engine)
    except sqlalchemy.exc.SQLAlchemyError as error:
        shown = parse_uri(str(engine.url)).shown
        raise ServerError(f"the tables of {shown} could not be created: {' '.join(str(error).split())[:300]}") from error
    finally:
        engine.dispose()


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep what a logger says as information from the terminal of a command that has its own progress."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
