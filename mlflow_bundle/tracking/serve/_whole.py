"""Whether a SQLite file in the cache can be used."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

__all__ = ["is_whole"]


def is_whole(path: Path, *, thorough: bool = False) -> bool:
    """Whether a file is a database of MLflow, and as long as it says it is. ``thorough`` reads all of it.

    Nothing may be writing to it.
    """
    if not path.is_file():
        return False
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            (pages,), (size,) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "page_size"))
            if pages * size != path.stat().st_size or not connection.execute("SELECT 1 FROM alembic_version").fetchone():
                return False
            return not thorough or connection.execute("PRAGMA quick_check(1)").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        return False
