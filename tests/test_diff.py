"""Two snapshots are compared: everything that differs is told, once, and nothing else."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

import mlflow_bundle as bundle
from mlflow_bundle._diff import Diff, diff
from mlflow_bundle._manifest import Committed
from mlflow_bundle._storage import open_storage
from mlflow_bundle.errors import CorruptError
from mlflow_bundle.records import KeyValue, Record, record_id
from tests.building import START, Content, everything_of, pack_content, span_of
from tests.fixtures.s3 import Bucket


def packed(folder: Path, content: Content) -> Committed:
    """One more snapshot of a bundle in a folder."""
    with open_storage(folder, create=True) as storage:
        return pack_content(storage, content)[0]


def compared(tmp_path: Path, before: Content, after: Content) -> Diff:
    """The difference of two bundles that share nothing."""
    packed(tmp_path / "a", before)
    packed(tmp_path / "b", after)
    with bundle.open(tmp_path / "a") as first, bundle.open(tmp_path / "b") as second:
        return diff(first, second)


def told(found: Diff) -> dict[tuple[str, str, str], dict[str, tuple[str | None, str | None]]]:
    """The changes by kind, id and what happened; details by what they are about."""
    return {
        (change.kind, change.id, change.what): {detail.what: (detail.before, detail.after) for detail in change.details}
        for change in found.changes
    }


def of_kind(content: Content, kind: str, place: int = 0) -> Record:
    """An entity of a kind."""
    return [record for record in content.entities if record.__struct_config__.tag == kind][place]


def put(content: Content, old: Record, new: Record) -> None:
    """Another record in the place of one."""
    content.entities[content.entities.index(old)] = new


def test_equal_content_is_equal(tmp_path: Path) -> None:
    """Two bundles of one content have no difference, whatever their snapshots are called."""
    found = compared(tmp_path, everything_of(5), everything_of(5))
    assert found.equal
    assert found.changes == ()
    assert found.before.root_digest != found.after.root_digest
    assert found.before.url != found.after.url


def test_every_sort_of_change_is_told(tmp_path: Path) -> None:
    """Members, params, tags, series, files, spans, links, and whole entities: before and after are told for each."""
    before = everything_of(6)
    after = copy.deepcopy(before)
    one, two, three, gone, *_ = after.runs
    after.runs[0] = replace(one, status="FAILED", params=(), tags=(*one.tags, KeyValue(key="new\n", value="x")))
    after.points[one.run_id] = [*before.points[one.run_id], ("loss", 99, START, math.nan), ("other", 0, START, 1.5)]
    after.points[two.run_id] = [
        (key, step, at, -0.0 if step == 0 else value) for key, step, at, value in after.points[two.run_id]
    ]
    after.files[three.run_id] = {"f1.txt": b"changed", "f2.txt": b"new"}
    after.runs.remove(gone)
    trace = of_kind(after, "trace", 1)
    trace_id = record_id(trace)
    rows = after.rows["spans/1", trace_id]
    after.rows["spans/1", trace_id] = [*rows[:-1], span_of(77, 7)]
    put(after, dataset := of_kind(after, "evaluation_dataset"), replace(dataset, digest="d"))  # type: ignore[call-arg]
    scorer = of_kind(after, "scorer")
    after.entities.remove(scorer)
    found = compared(tmp_path, before, after)
    assert not found.equal
    changes = told(found)
    assert set(changes) == {
        ("run", one.run_id, "changed"),
        ("run", two.run_id, "changed"),
        ("run", three.run_id, "changed"),
        ("run", gone.run_id, "removed"),
        ("trace", trace_id, "changed"),
        ("evaluation_dataset", "d-1", "changed"),
        ("scorer", "1/s", "removed"),
    }
    assert changes["run", one.run_id, "changed"] == {
        "status": ("FINISHED", "FAILED"),
        "param 'lr'": ("0e-3", None),
        "tag 'new\\n'": (None, "x"),
        "metric 'loss'": ("10 points, last 9.0 at step 9", "11 points, last nan at step 99"),
        "metric 'other'": (None, "1 point, last 1.5 at step 0"),
    }
    assert set(changes["run", two.run_id, "changed"]) == {"metric 'loss'"}
    files = changes["run", three.run_id, "changed"]
    assert {name: (one is None, other is None) for name, (one, other) in files.items()} == {
        "file 'f0.txt'": (False, True),
        "file 'f1.txt'": (False, False),
        "file 'f2.txt'": (True, False),
    }
    spans = changes["trace", trace_id, "changed"]
    assert sorted((one is None, other is None) for one, other in spans.values()) == [(False, True), (True, False)]
    assert found.counts == {
        "run": {"changed": 3, "removed": 1},
        "trace": {"changed": 1},
        "evaluation_dataset": {"changed": 1},
        "scorer": {"removed": 1},
    }


def test_the_other_way_round(tmp_path: Path) -> None:
    """What one direction calls added, the other calls removed, and before and after change places."""
    before, after = everything_of(3), everything_of(5)
    found = compared(tmp_path / "1", before, after)
    back = compared(tmp_path / "2", after, before)
    swapped = {"added": "removed", "removed": "added", "changed": "changed"}
    mirrored = {
        (kind, identity, swapped[what]): {name: (after, before) for name, (before, after) in details.items()}
        for (kind, identity, what), details in told(found).items()
    }
    assert mirrored == told(back)
    assert {what for _, _, what in told(found)} == {"added"}


def test_where_files_lie_is_no_difference(tmp_path: Path) -> None:
    """A restore puts files elsewhere; with another change beside it, only that is told."""
    before = everything_of(3)
    after = copy.deepcopy(before)
    after.runs = [replace(run, artifact_uri=f"s3://elsewhere/{run.run_id}") for run in after.runs]
    trace = of_kind(after, "trace")
    put(after, trace, replace(trace, artifact_uri="s3://elsewhere/t"))  # type: ignore[call-arg]
    found = compared(tmp_path / "1", before, after)
    assert found.equal
    after.runs[1] = replace(after.runs[1], run_name="other")
    found = compared(tmp_path / "2", before, after)
    assert told(found) == {("run", after.runs[1].run_id, "changed"): {"run_name": ("run 1", "other")}}


def test_two_snapshots_of_one_bundle(tmp_path: Path) -> None:
    """An older snapshot against the newest of the same bundle."""
    content = everything_of(4)
    first = packed(tmp_path, content)
    content.points[content.runs[0].run_id].append(("loss", 10, START + 10, 0.5))
    packed(tmp_path, content)
    with bundle.open(tmp_path) as newest:
        found = diff(newest.at(first.stem), newest)
    assert told(found) == {
        ("run", content.runs[0].run_id, "changed"): {
            "metric 'loss'": ("10 points, last 9.0 at step 9", "11 points, last 0.5 at step 10")
        }
    }


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_changes_are_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whichever runs are dropped, renamed, given points or files: those are told, and no others."""
    before = everything_of(8)
    after = copy.deepcopy(before)
    drawn = data.draw(st.lists(st.sampled_from(["same", "drop", "rename", "point", "file", "all"]), min_size=8, max_size=8))
    expected = set()
    for run, what in zip(list(before.runs), drawn, strict=True):
        place = next(number for number, one in enumerate(after.runs) if one.run_id == run.run_id)
        if what == "drop":
            after.runs.pop(place)
            expected.add((run.run_id, "removed", frozenset[str]()))
            continue
        details = set()
        if what in ("rename", "all"):
            after.runs[place] = replace(run, run_name="new")
            details.add("run_name")
        if what in ("point", "all"):
            after.points[run.run_id] = [*after.points[run.run_id], ("z", 0, 0, 0.0)]
            details.add("metric 'z'")
        if what in ("file", "all"):
            after.files[run.run_id] = {**after.files[run.run_id], "z": b"z"}
            details.add("file 'z'")
        if details:
            expected.add((run.run_id, "changed", frozenset(details)))
    found = compared(tmp_path_factory.mktemp("diff"), before, after)
    assert {(c.id, c.what, frozenset(d.what for d in c.details)) for c in found.changes} == expected
    assert found.equal == (not expected)


@pytest.mark.parametrize("form", ["zip", "s3"])
def test_sides_in_one_file_or_in_a_bucket(tmp_path: Path, s3_bucket: Bucket, form: str) -> None:
    """A side may lie in a ZIP file or in a bucket, and its page says the same as that of a folder."""
    before = everything_of(3)
    after = copy.deepcopy(before)
    after.runs[0] = replace(after.runs[0], status="FAILED")
    packed(tmp_path / "a", before)
    place = str(tmp_path / "b.mlbundle.zip") if form == "zip" else f"s3://{s3_bucket.name}/b"
    options = None if form == "zip" else s3_bucket.storage_options
    with open_storage(place, storage_options=options, create=True) as storage:
        pack_content(storage, after)
    with bundle.open(tmp_path / "a") as first, bundle.open(place, storage_options=options) as second:
        assert told(diff(first, second)) == {("run", after.runs[0].run_id, "changed"): {"status": ("FINISHED", "FAILED")}}
        assert "3 runs" in second._repr_html_()
        assert '"status":"FAILED"' in bundle.report_html(second)


def test_equal_snapshots_with_a_missing_object_are_not_called_equal(tmp_path: Path) -> None:
    """What one of them has lost is an error, though nothing of it has to be read."""
    packed(tmp_path / "a", everything_of(5))
    packed(tmp_path / "b", everything_of(5))
    next((tmp_path / "b" / "objects" / "metrics").iterdir()).unlink()
    with bundle.open(tmp_path / "a") as first, bundle.open(tmp_path / "b") as second:
        with pytest.raises(CorruptError, match="missing"):
            diff(first, second)
        with pytest.raises(CorruptError, match="missing"):
            diff(second, first)
