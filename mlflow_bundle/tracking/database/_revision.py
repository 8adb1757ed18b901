"""Which schema the installed MLflow writes, found out without importing it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Final

from mlflow_bundle.errors import UnsupportedError, UsageError

__all__ = ["head_revision", "mlflow_folder"]

_REVISION: Final = re.compile(r"^(revision|down_revision)\s*(?::[^=]*)?=\s*(.+)$", re.MULTILINE)
_QUOTED: Final = re.compile(r"[\"'](\w+)[\"']")


def mlflow_folder() -> Path:
    """Where the installed MLflow lies, without importing it, which costs seconds and 200 MB.

    Raises:
        UsageError: it is not installed.
    """
    spec = importlib.util.find_spec("mlflow")
    folders = spec.submodule_search_locations if spec is not None else None
    if not folders:
        raise UsageError("writing into a database needs MLflow, which is not installed", hint="pip install mlflow")
    return Path(folders[0])


def head_revision() -> str:
    """The revision of the installed MLflow: of its migrations the one that no other builds upon, read from their sources."""
    folder = mlflow_folder()
    revisions: set[str] = set()
    followed: set[str] = set()
    for path in (folder / "store/db_migrations/versions").glob("*.py"):
        for name, value in _REVISION.findall(path.read_text(encoding="utf-8")):
            (revisions if name == "revision" else followed).update(_QUOTED.findall(value))
    heads = revisions - followed
    if len(heads) != 1:
        raise UnsupportedError(f"the migrations of the installed MLflow end in {len(heads)} revisions where one was expected")
    return heads.pop()
