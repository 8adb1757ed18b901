"""Which runs and experiments a damaged object touches: by the runs views, and by the files that name a content in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlflow_bundle import _layout
from mlflow_bundle._row_groups import row_groups
from mlflow_bundle._table_specs import TABLES
from mlflow_bundle._verify._findings import Findings
from mlflow_bundle._verify._objects import Objects
from mlflow_bundle._verify._rows import raw_digests
from mlflow_bundle.errors import BundleError
from mlflow_bundle.records import ObjectRef

__all__ = ["touch"]

_RUN: Final = "run"
_CONTENTS: Final = (_layout.PACKS, _layout.BLOBS)
_PLACES: Final = ("record_object", "metric_object", "file_object")

Key = tuple[str, str]


def touch(
    objects: Objects, refs: Sequence[ObjectRef], lost: Mapping[Key, Collection[str]], whole: Collection[str], findings: Findings
) -> None:
    """Tell the findings which runs they touch.

    ``lost`` are the contents (hex) behind the problems of a code ("" for all) and object, ``whole`` the objects of which
    nothing can be used. What says so may be damaged itself: then nobody knows.
    """
    if not lost and not whole:
        return
    experiments = _experiments(objects, refs)
    contents: dict[str, set[Key]] = defaultdict(set)
    for key, digests in lost.items():
        for digest in digests:
            contents[digest].add(key)
    gone = {ref.path for ref in refs if ref.path in whole and ref.role in _CONTENTS}
    for path, digests in _contents_of(objects, refs, gone):
        for digest in digests:
            contents[digest].add(("", path))
    runs: dict[Key, dict[str, None]] = defaultdict(dict)
    for digest, run in _owners_of(objects, refs, contents):
        for key in contents[digest]:
            runs[key][run] = None
    for path, run in _runs_of(objects, refs, set(whole)):
        runs["", path][run] = None
    for (code, path), names in runs.items():
        found = dict.fromkeys(experiments[run] for run in names if run in experiments)
        findings.touch(path, names, found, code=code)
    for ref in refs:
        if ref.path in whole and ref.role == _layout.RECORDS and isinstance(ref.first, tuple) and isinstance(ref.last, tuple):
            findings.append(ref.path, f"; its {ref.kind} records are those from {ref.first[1]} to {ref.last[1]}")
    findings.complete(experiments)


def _groups(objects: Objects, refs: Sequence[ObjectRef], role: str, schema: str) -> Iterator[tuple[ObjectRef, pa.Table]]:
    """The rows of all objects of a role that can be read."""
    for ref in refs:
        if ref.role != role or ref.path in objects.damaged or (role == _layout.VIEWS and ref.kind != _RUN):
            continue
        try:
            with objects.storage.open(ref.path) as file:
                for group in row_groups(file, TABLES[schema], name=ref.path, limits=objects.limits):
                    yield ref, group
        except BundleError:
            continue  # the check of that object says so


def _experiments(objects: Objects, refs: Sequence[ObjectRef]) -> dict[str, str]:
    found: dict[str, str] = {}
    for _, group in _groups(objects, refs, _layout.VIEWS, "runs_view/1"):
        found.update(zip(group.column("run_id").to_pylist(), group.column("experiment_id").to_pylist(), strict=True))
    return found


def _contents_of(objects: Objects, refs: Sequence[ObjectRef], gone: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    """The contents (hex) that the index places in some packs and blobs."""
    for _, group in _groups(objects, refs, _layout.INDEX, "index/1") if gone else ():
        rows = _chosen(group, "object", gone)
        for path in pc.unique(rows.column("object").cast(pa.string())).to_pylist():
            yield path, rows.filter(pc.equal(rows.column("object").cast(pa.string()), path)).column("sha256").to_pylist()


def _owners_of(objects: Objects, refs: Sequence[ObjectRef], contents: Collection[str]) -> Iterator[tuple[str, str]]:
    """(content, run) of the files with these contents."""
    wanted = np.sort(np.array([bytes.fromhex(digest) for digest in contents], "S32"))
    for _, group in _groups(objects, refs, _layout.FILES, "files/1") if contents else ():
        digests, good = raw_digests(group.column("sha256"))
        rows = group.filter(pa.array(good & np.isin(digests, wanted)))
        yield from zip(rows.column("sha256").to_pylist(), rows.column("owner_id").to_pylist(), strict=True)


def _runs_of(objects: Objects, refs: Sequence[ObjectRef], whole: Collection[str]) -> Iterator[tuple[str, str]]:
    """(object, run) of the runs that the views place in some objects."""
    for _, group in _groups(objects, refs, _layout.VIEWS, "runs_view/1") if whole else ():
        for name in _PLACES:
            rows = _chosen(group, name, whole)
            yield from zip(rows.column(name).to_pylist(), rows.column("run_id").to_pylist(), strict=True)


def _chosen(group: pa.Table, column: str, values: Collection[str]) -> Any:
    return group.filter(pc.is_in(group.column(column).cast(pa.string()), value_set=pa.array(values, pa.string())))
