"""Files that commands write: there, whole, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mlflow_bundle._whole_file import whole_file
from mlflow_bundle.errors import BundleError

__all__ = ["appearing"]


@contextmanager
def appearing(target: Path) -> Iterator[BinaryIO]:
    """A file that is there, whole, only when the block ends without an error.

    Raises:
        BundleError: it cannot be written.
    """
    try:
        with whole_file(target) as file:
            yield file
    except OSError as error:
        reason = error.strerror or str(error)
        hint = "name a place that can be written and has room, then run again"
        raise BundleError(f"{target} cannot be written: {reason}", code="destination", hint=hint) from error
