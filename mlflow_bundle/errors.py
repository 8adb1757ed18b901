"""Every exception of the package, grouped by what a handler would do about it.

BundleError
├── UsageError               the call itself is wrong: correct it
├── NotFoundError            name something that exists
│   └── BundleNotFoundError  there is no bundle at that URL
├── UnsupportedError         install the release that knows the layout, feature or database
├── CorruptError             the bytes are not what they should be: verify, restore a copy
├── LimitError               raise the limit, or distrust the bundle
├── StorageError             the storage of the bundle failed or refused: mend it, run again
│   └── CommitUnknownError   nobody can say whether the snapshot was committed: look, run again
├── ServerError              the MLflow side failed or refused: mend it, run again
│   └── AuthError            give other credentials
├── IncompleteError          something in scope could not be read or written; nothing was committed
└── CannotHoldError          the target cannot hold what was selected; nothing was written

Every error has a ``code`` (append-only, for machines), a message of one sentence, and often a ``hint``: the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Final

if TYPE_CHECKING:
    from mlflow_bundle.records import Problem

__all__ = [
    "AuthError",
    "BundleError",
    "BundleNotFoundError",
    "CannotHoldError",
    "CommitUnknownError",
    "CorruptError",
    "IncompleteError",
    "LimitError",
    "NotFoundError",
    "ServerError",
    "StorageError",
    "UnsupportedError",
    "UsageError",
]


#: Names of what there is that a hint shows.
_SHOWN: Final = 5


class BundleError(Exception):
    """Base of all errors that this package raises on purpose."""

    default_code: ClassVar[str] = "error"
    default_hint: ClassVar[str | None] = None

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.hint = hint or self.default_hint

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.__dict__.copy()))


def _rebuild(cls: type[BundleError], message: str, state: dict[str, Any]) -> BundleError:
    """Recreate a pickled error without calling the constructor of its class."""
    error = cls.__new__(cls)
    Exception.__init__(error, message)
    error.__dict__.update(state)
    return error


class UsageError(BundleError):
    """The arguments of a call contradict each other or cannot be understood."""

    default_code = "usage"


class NotFoundError(BundleError):
    """An experiment, run, snapshot or path that does not exist.

    ``close`` holds names that are nearly the same; where there are none and no ``hint``, ``known`` is what there is.
    """

    default_code = "not-found"

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        hint: str | None = None,
        close: Sequence[str] = (),
        known: Sequence[str] = (),
    ) -> None:
        if close and hint is None:
            hint = "did you mean " + ", ".join(repr(name) for name in close) + "?"
        elif known and hint is None:
            hint = "there are " if len(known) > 1 else "there is only "
            hint += ", ".join(repr(name) for name in known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
        super().__init__(message, code=code, hint=hint)
        self.close = tuple(close)


class BundleNotFoundError(NotFoundError):
    """There is no bundle at the URL: missing, empty, or something else."""

    default_code = "bundle-not-found"


class UnsupportedError(BundleError):
    """A layout, feature, database or server that this release does not know."""

    default_code = "unsupported"


class CorruptError(BundleError):
    """Stored bytes do not match their digest, or do not decode as the specification says."""

    default_code = "corrupt"
    default_hint = "`mlflow-bundle verify` lists what is damaged; take it from a copy"


class LimitError(BundleError):
    """A size, depth or ratio beyond the limits of the specification."""

    default_code = "limit"


class StorageError(BundleError):
    """The storage of a bundle failed or refused: no space, no permission, no answer."""

    default_code = "storage"


class CommitUnknownError(StorageError):
    """The last write got no usable answer and could not be read back. Nothing was deleted; running again is safe."""

    default_code = "commit-unknown"


class ServerError(BundleError):
    """The MLflow server or database failed, refused or vanished. ``status`` is the HTTP status, if there was one."""

    default_code = "server"

    def __init__(self, message: str, *, code: str | None = None, hint: str | None = None, status: int | None = None) -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = status


class AuthError(ServerError):
    """The MLflow server answered 401 or 403."""

    default_code = "auth"


class _ProblemsError(BundleError):
    """An error that carries a list of problems as data."""

    def __init__(
        self,
        message: str,
        problems: Sequence[Problem],
        *,
        code: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.problems = tuple(problems)


class IncompleteError(_ProblemsError):
    """Something in scope could not be read. No snapshot was committed. ``problems`` names each missing thing."""

    default_code = "incomplete"


class CannotHoldError(_ProblemsError):
    """The target cannot hold part of the selection. Nothing was written. ``problems`` names each such thing."""

    default_code = "cannot-hold"
