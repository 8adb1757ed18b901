"""What the tests of verification stand on: a bundle in memory that counts reads and refuses writes, and little bundles."""

from __future__ import annotations

import io
import threading
from collections import Counter
from pathlib import Path
from typing import BinaryIO, NoReturn

from mlflow_bundle._limits import DEFAULT_LIMITS, Limits
from mlflow_bundle._storage._backend import Staged, Storage, checked_path, missing
from mlflow_bundle._verify._levels import Report, verify_storage
from mlflow_bundle.errors import CorruptError
from mlflow_bundle.records import Problem


class MemoryStorage(Storage):
    """The files of a bundle by path. ``bytes_read`` says how much was read of each; a write ends the test."""

    url = "memory of the test"

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.bytes_read: Counter[str] = Counter()
        self._lock = threading.Lock()

    def read(self, path: str) -> bytes:
        if checked_path(path) not in self.files:
            raise missing(path, self.url)
        self._count(path, len(self.files[path]))
        return self.files[path]

    def read_range(self, path: str, start: int, length: int) -> bytes:
        data = self.files[path][start : start + length]
        self._count(path, len(data))
        if len(data) != length:
            raise CorruptError(f"{path} ends too early")
        return data

    def open(self, path: str) -> BinaryIO:
        return io.BytesIO(self.read(path))

    def size(self, path: str) -> int | None:
        return len(self.files[path]) if checked_path(path) in self.files else None

    def list(self, folder: str) -> dict[str, int]:
        prefix = f"{folder}/" if folder else ""
        return {path: len(self.files[path]) for path in sorted(self.files) if path.startswith(prefix)}

    def stage(self) -> Staged:
        return self._refuse()

    def put(self, staged: Staged, path: str) -> bool:
        return self._refuse()

    def commit(self, data: bytes, path: str) -> None:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AssertionError("a verification writes nothing")

    def _count(self, path: str, count: int) -> None:
        with self._lock:
            self.bytes_read[path] += count


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a bundle in a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def check(
    files: dict[str, bytes],
    *,
    snapshot: str | None = None,
    level: str = "full",
    subset: tuple[int, int] | None = None,
    all_snapshots: bool = False,
    limits: Limits = DEFAULT_LIMITS,
) -> Report:
    """Verify a bundle in memory."""
    storage = MemoryStorage(files)
    return verify_storage(storage, snapshot=snapshot, level=level, subset=subset, all_snapshots=all_snapshots, limits=limits)


def found(report: Report) -> list[Problem]:
    """Problems and warnings."""
    return [*report.problems, *report.warnings]


def codes(report: Report) -> set[str]:
    """The codes of problems and warnings."""
    return {problem.code for problem in found(report)}


def of_role(files: dict[str, bytes], role: str) -> list[str]:
    """The paths of the objects of a role."""
    return [path for path in files if path.startswith(f"objects/{role}/")]


def flipped(data: bytes, place: int, bit: int = 0) -> bytes:
    """The same bytes but for one bit."""
    return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
