"""An archive format for MLflow: ``import mlflow_bundle as bundle``.

``pack`` archives what a tracking server or database holds, ``open`` looks inside, ``verify`` proves that an archive is whole,
``diff`` compares, ``report_html`` makes a page of it, ``unpack`` restores it. MLflow is imported when it is needed: by
``pack`` and ``unpack``, and by ``diff`` with a live server.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mlflow_bundle.__about__ import __version__
from mlflow_bundle.errors import (
    AuthError,
    BundleError,
    BundleNotFoundError,
    CannotHoldError,
    CommitUnknownError,
    CorruptError,
    IncompleteError,
    LimitError,
    NotFoundError,
    ServerError,
    StorageError,
    UnsupportedError,
    UsageError,
)

if TYPE_CHECKING:
    from mlflow_bundle._bundle import Bundle, verify
    from mlflow_bundle._bundle import open_bundle as open  # noqa: A004 - read as bundle.open
    from mlflow_bundle._diff import Diff
    from mlflow_bundle._limits import Limits, Targets
    from mlflow_bundle._report import report_html
    from mlflow_bundle._verify._levels import Report as VerifyReport
    from mlflow_bundle.records import Experiment, Problem, Run, Snapshot
    from mlflow_bundle.tracking import PackReport, UnpackReport, diff, pack, unpack

__all__ = [
    "AuthError",
    "Bundle",
    "BundleError",
    "BundleNotFoundError",
    "CannotHoldError",
    "CommitUnknownError",
    "CorruptError",
    "Diff",
    "Experiment",
    "IncompleteError",
    "LimitError",
    "Limits",
    "NotFoundError",
    "PackReport",
    "Problem",
    "Run",
    "ServerError",
    "Snapshot",
    "StorageError",
    "Targets",
    "UnpackReport",
    "UnsupportedError",
    "UsageError",
    "VerifyReport",
    "__version__",
    "diff",
    "open",
    "pack",
    "report_html",
    "unpack",
    "verify",
]

#: Names that are loaded on first use, and where they live: reading an archive must not pay for the MLflow side, and the command
#: can be interrupted while the rest is loaded.
_LATER = {
    "Bundle": "_bundle",
    "Diff": "_diff",
    "Experiment": "records",
    "Limits": "_limits",
    "PackReport": "tracking",
    "Problem": "records",
    "Run": "records",
    "Snapshot": "records",
    "Targets": "_limits",
    "UnpackReport": "tracking",
    "VerifyReport": "_verify._levels:Report",
    "diff": "tracking",
    "open": "_bundle:open_bundle",
    "pack": "tracking",
    "report_html": "_report",
    "unpack": "tracking",
    "verify": "_bundle",
}


def __getattr__(name: str) -> Any:
    """Load a name on its first use."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, other = _LATER[name].partition(":")
    found = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), other or name)
    return found


def __dir__() -> list[str]:
    return __all__
