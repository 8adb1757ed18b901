"""Files that commands write: there, whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import BinaryIO

from mlflow_bundle.errors import BundleError

__all__ = ["appearing"]


@contextmanager
def appearing(target: Path) -> Iterator[BinaryIO]:
    """A file that is there, whole, only when the block ends without an error.

    Raises:
        BundleError: it cannot be written.
    """
    name = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=target.parent, prefix=".mlflow-bundle-", delete=False) as file:
            name = Path(file.name)
            yield file  # type: ignore[misc]
        name.chmod(0o666 & ~_umask())
        name.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "name a place that can be written and has room, then run again"
        raise BundleError(f"{target} cannot be written: {reason}", code="destination", hint=hint) from error
    finally:
        if name is not None:
            name.unlink(missing_ok=True)


def _umask() -> int:
    """The mask of this process; it can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
