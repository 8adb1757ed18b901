"""An archive format for MLflow: ``import mlflow_bundle as bundle``.

``pack`` archives experiments and runs of a tracking server or database, ``open`` looks inside, ``verify`` proves that an
archive is whole, ``unpack`` restores it. Only ``pack`` and ``unpack`` ever import MLflow, and only when they are called.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlflow_bundle.__about__ import __version__
from mlflow_bundle._bundle import Bundle, verify
from mlflow_bundle._bundle import open_bundle as open  # noqa: A004 - read as bundle.open
from mlflow_bundle._diff import Diff
from mlflow_bundle._limits import Limits, Targets
from mlflow_bundle._verify._levels import Report as VerifyReport
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
from mlflow_bundle.records import Experiment, Problem, Run, Snapshot

if TYPE_CHECKING:
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
    "unpack",
    "verify",
]

_TRACKING = frozenset({"PackReport", "UnpackReport", "diff", "pack", "unpack"})


def __getattr__(name: str) -> Any:
    """Load the MLflow side on first use."""
    if name in _TRACKING:
        from mlflow_bundle import tracking  # noqa: PLC0415 - reading an archive must not pay for it

        return getattr(tracking, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
