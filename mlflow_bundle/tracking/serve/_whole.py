"""Whether a SQLite file in the cache is still the one that was made: its SHA-256 is kept beside it."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["is_whole", "keep"]


def keep(made: Path, path: Path) -> None:
    """Let a whole file, to which nothing is written any more, take the place ``path`` of the same file system."""
    note = made.with_suffix(".sha256")
    note.write_text(_sha256(made))
    # Whoever dies between the two leaves a file that does not count.
    note.replace(path.with_suffix(note.suffix))
    made.replace(path)


def is_whole(path: Path) -> bool:
    """Whether a file has all the bytes that it had when it was kept. All of it is read: 0.07 s for 100 MB."""
    try:
        return path.with_suffix(".sha256").read_bytes() == _sha256(path).encode()
    except OSError:  # a file that cannot be read is as good as none, and made again
        return False


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
