"""Files of the user that are written: there, whole, or as they were before."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["whole_file"]


@contextmanager
def whole_file(target: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of ``target`` when the block ends without an error. Until then, and where it does not, what
    is there stays as it is. Folders above it are made.

    Raises:
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, opened as every file is: the mask of a process cannot be asked for where it has several threads.
    unfinished = target.with_name(f".mlflow-bundle-{secrets.token_hex(8)}")
    try:
        with unfinished.open("xb") as file:
            yield file
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
