"""Whether the index places every content that files name inside objects of the snapshot (spec/v1.md, 5.3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mlflow_bundle import _layout
from mlflow_bundle._verify._findings import Findings, listed
from mlflow_bundle._verify._objects import Objects
from mlflow_bundle._verify._table_facts import EXTENTS, Extents, IndexFacts
from mlflow_bundle.records import ObjectRef

__all__ = ["IndexCheck"]


class IndexCheck:
    """The check of the index of one snapshot, whose document is at ``path``. ``run`` it once.

    Afterwards: ``extents`` and ``paths`` are the index as far as it is sound; ``lost`` are, for a code and an object, the
    contents (hex) that a problem touches.
    """

    def __init__(self, objects: Objects, path: str, refs: Sequence[ObjectRef], findings: Findings) -> None:
        self._objects, self._path, self._findings = objects, path, findings
        self._index = [ref for ref in refs if ref.role == _layout.INDEX]
        self._sizes = {ref.path: ref.size for ref in refs if ref.role in (_layout.PACKS, _layout.BLOBS)}
        self.extents: Extents = np.empty(0, EXTENTS)
        self.paths: list[str] = []
        self.lost: dict[tuple[str, str], set[str]] = defaultdict(set)

    def _add(self, code: str, message: str, path: str | None = None) -> None:
        self._findings.add(code, message, object=self._path if path is None else path)

    def run(self, contents: npt.NDArray[Any]) -> None:
        """Check everything: rows, bounds, and the ``CONTENTS`` that files name."""
        sizes = self._sizes
        numbers: dict[str, int] = {}
        parts = [self.extents]
        for ref, facts in self._objects.index(self._index, self._findings):
            if facts is not None:
                if ref.rows != facts.rows:
                    self._add("E044", f"{ref.path} has other rows than the snapshot says", ref.path)
                part = facts.extents.copy()
                local = [numbers.setdefault(path, len(numbers)) for path in facts.paths]
                part["object"] = np.array([*local, 0], np.int32)[part["object"]]
                parts.append(part[self._inside(ref, facts, sizes)])
        extents = np.concatenate(parts)
        self.paths = list(numbers)
        self.extents = extents[np.lexsort((extents["object"], extents["part"], extents["sha256"]))]
        self._check_contents(contents)

    def _inside(self, ref: ObjectRef, facts: IndexFacts, sizes: dict[str, int]) -> npt.NDArray[np.bool_]:
        """Which extents lie inside objects that the snapshot lists, and can be decoded."""
        rows = facts.extents
        size = np.array([*(sizes.get(path, -1) for path in facts.paths), -1], np.int64)[rows["object"]]
        negative = (rows["offset"] < 0) | (rows["length"] < 0) | (rows["raw"] < 0) | (rows["part"] < 0)
        outside = negative | (rows["offset"] > size) | (rows["length"] > size - np.minimum(rows["offset"], size))
        checks = (
            ("E051", "in an object that the snapshot does not list", size < 0),
            ("E051", "beyond the bounds of an object", (size >= 0) & outside),
            ("E051", "with an unknown codec", rows["codec"] < 0),
            ("E052", "of two lengths", (rows["codec"] == 0) & (rows["raw"] != rows["length"])),
        )
        bad = np.zeros(len(rows), bool)
        for code, what, wrong in checks:
            if wrong.any():
                digests = _hex(rows["sha256"][wrong])
                self._add(code, f"{ref.path} places content {listed(digests)} {what}", ref.path)
                self.lost[code, ref.path].update(digests)
            bad |= wrong
        return ~bad

    def _check_contents(self, used: npt.NDArray[Any]) -> None:
        """Every content that a file names has all its parts, of the right lengths."""
        rows = self.extents
        again = (rows["sha256"][1:] == rows["sha256"][:-1]) & (rows["part"][1:] == rows["part"][:-1])
        other = again & (rows["raw"][1:] != rows["raw"][:-1])
        self._lose("E051", "is divided into parts in several ways", rows["sha256"][1:][other])
        rows = rows[np.concatenate(([True], ~again))] if len(rows) else rows
        digests, starts, counts = np.unique(rows["sha256"], return_index=True, return_counts=True)
        place = np.searchsorted(digests, used["sha256"])
        found = np.zeros(len(used), bool)
        if len(digests):
            place = np.minimum(place, len(digests) - 1)
            found = digests[place] == used["sha256"]
            ends = starts + counts - 1
            whole = (rows["part"][starts] == 0) & (rows["part"][ends] == counts - 1)
            raw = np.add.reduceat(rows["raw"], starts)
            self._lose("E051", "lacks parts in the index", used["sha256"][found & ~whole[place]])
            wrong = found & whole[place] & (raw[place] != used["size"])
            self._lose("E050", "has another size than a file that names it", used["sha256"][wrong])
        unplaced = used["sha256"][~found]
        if unread := [ref.path for ref in self._index if ref.path in self._objects.damaged]:
            if len(unplaced):
                self._findings.state(f"{len(unplaced):,} contents: {listed(unread)} could not be used")
                for path in unread:
                    self.lost["", path].update(_hex(unplaced))
            return
        bad = {digest for (code, _), lost in self.lost.items() if code.startswith("E05") for digest in lost}
        self._lose("E051", "is not in the index", np.array([d for d in unplaced if _hex([d])[0] not in bad], "S32"))

    def _lose(self, code: str, what: str, digests: npt.NDArray[np.bytes_]) -> None:
        if len(digests):
            lost = _hex(np.unique(digests))
            self._add(code, f"content {listed(lost)} {what}")
            self.lost[code, self._path].update(lost)


def _hex(digests: Iterable[bytes]) -> list[str]:
    """Digests in hex; numpy strips zeros at the end of its byte strings."""
    return [bytes(digest).ljust(32, b"\0").hex() for digest in digests]
