"""``pack`` on a real MLflow: what a selection means, what is committed when something cannot be read, what a kill leaves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from fsspec.callbacks import Callback
from mlflow import MlflowClient

import mlflow_bundle as bundle
from mlflow_bundle._digests import hex_of
from mlflow_bundle._layout import object_hex
from mlflow_bundle.errors import IncompleteError, NotFoundError, UsageError
from mlflow_bundle.tracking.artifacts._local import LocalArtifacts

#: 2026-11-01T00:00:00Z
NOVEMBER = 1_793_491_200_000
HOUR = 3_600_000


@dataclass
class Source:
    """A SQLite MLflow: experiments by name, runs by name."""

    uri: str
    client: MlflowClient
    artifacts: Path
    experiments: dict[str, str] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)

    def experiment(self, name: str) -> str:
        self.experiments[name] = self.client.create_experiment(
            name, artifact_location=str(self.artifacts / name.replace("/", "_"))
        )
        return self.experiments[name]

    def run(self, name: str, experiment: str, start: int, *, parent: str | None = None, **params: str) -> str:
        tags = {"mlflow.parentRunId": self.runs[parent]} if parent else {}
        made = self.client.create_run(self.experiments[experiment], start_time=start, tags=tags, run_name=name)
        self.runs[name] = made.info.run_id
        for key, value in params.items():
            self.client.log_param(made.info.run_id, key, value)
        self.client.log_metric(made.info.run_id, "loss", 0.5, timestamp=start, step=1)
        place = self.folder(name) / "model.txt"
        place.parent.mkdir(parents=True)
        place.write_text(f"model of {name}")
        return self.runs[name]

    def folder(self, name: str) -> Path:
        return Path(self.client.get_run(self.runs[name]).info.artifact_uri)

    def pack(self, folder: Path, experiment: Any = None, **options: Any) -> bundle.PackReport:
        return bundle.pack(experiment, folder, tracking_uri=self.uri, **options)

    def packed(self, folder: Path, experiment: Any = None, **options: Any) -> tuple[set[str], set[str]]:
        """The names of the experiments and runs that a pack with these options has in its snapshot."""
        report = self.pack(folder, experiment, **options)
        with bundle.open(folder, snapshot=report.snapshot) as archive:
            assert report.counts["run"] == archive.runs().num_rows
            return set(archive.experiments()["name"].to_pylist()), set(archive.runs()["run_name"].to_pylist())


@pytest.fixture
def source(empty_mlflow: str, tmp_path: Path) -> Source:
    made = Source(empty_mlflow, MlflowClient(empty_mlflow), tmp_path / "artifacts")
    for name in ("churn", "churn/eu", "fraud", "empty", "gone"):
        made.experiment(name)
    made.run("old", "churn", NOVEMBER - 1, lr="1")
    made.run("first", "churn", NOVEMBER, lr="2")
    made.run("noon", "churn", NOVEMBER + 12 * HOUR, lr="3")
    made.run("last", "churn", NOVEMBER + 24 * HOUR - 1, lr="4")
    made.run("next", "churn", NOVEMBER + 24 * HOUR, lr="5")
    made.run("eu", "churn/eu", NOVEMBER)
    made.run("parent", "fraud", NOVEMBER + 1)
    made.run("child", "fraud", NOVEMBER + 2, parent="parent")
    made.run("grandchild", "churn/eu", NOVEMBER + 3, parent="child")
    made.run("sibling", "fraud", NOVEMBER + 4, parent="parent")
    made.run("deleted", "fraud", NOVEMBER + 5)
    made.client.delete_run(made.runs["deleted"])
    made.run("in gone", "gone", NOVEMBER)
    made.client.delete_experiment(made.experiments["gone"])
    return made


EVERYTHING = {"old", "first", "noon", "last", "next", "eu", "parent", "child", "grandchild", "sibling", "deleted", "in gone"}
CHURN = {"old", "first", "noon", "last", "next"}


# -- selection -------------------------------------------------------------------------------------------------------------


def test_nothing_means_everything(source: Source, tmp_path: Path) -> None:
    """Without a selection every experiment and run is packed, empty and deleted ones included, and the scope says so."""
    experiments, runs = source.packed(tmp_path / "b")
    assert experiments == {"Default", "churn", "churn/eu", "fraud", "empty", "gone"}
    assert runs == EVERYTHING
    with bundle.open(tmp_path / "b") as archive:
        assert archive.snapshot.scope == bundle.records.Scope()


@pytest.mark.parametrize(
    ("wanted", "experiments", "runs"),
    [
        ("churn", {"churn"}, CHURN),
        (["churn", "empty"], {"churn", "empty"}, CHURN),
        ("empty", {"empty"}, set()),
        ("churn*", {"churn", "churn/eu", "fraud"}, CHURN | {"eu", "grandchild", "child", "parent"}),
        ("*r*", {"churn", "churn/eu", "fraud"}, CHURN | {"eu", "grandchild", "child", "parent", "sibling", "deleted"}),
        ("gone", {"gone"}, {"in gone"}),
        (["churn", "ch*n", "churn"], {"churn"}, CHURN),
    ],
)
def test_experiments_by_name_and_glob(
    source: Source, tmp_path: Path, wanted: str | list[str], experiments: set[str], runs: set[str]
) -> None:
    """A name, several, or a glob; and with a nested run its ancestors, wherever they are."""
    assert source.packed(tmp_path / "b", wanted) == (experiments, runs)


def test_experiments_by_id(source: Source, tmp_path: Path) -> None:
    """An id works like a name, but an experiment whose name is that id comes first."""
    assert source.packed(tmp_path / "b", source.experiments["empty"]) == ({"empty"}, set())
    source.experiment(source.experiments["churn"])
    assert source.packed(tmp_path / "b", source.experiments["churn"]) == ({source.experiments["churn"]}, set())


def test_an_unknown_experiment_is_named_with_close_ones(source: Source, tmp_path: Path) -> None:
    """A name that nothing has is an error with the names that are close, and nothing is made."""
    with pytest.raises(NotFoundError, match="no experiment named 'chrun'") as raised:
        source.pack(tmp_path / "b", ["fraud", "chrun"])
    assert raised.value.code == "experiment-not-found"
    assert "churn" in raised.value.close
    assert "'churn'" in str(raised.value.hint)
    with pytest.raises(NotFoundError):
        source.pack(tmp_path / "b", "nothing*")
    assert not (tmp_path / "b").exists()


def test_runs_by_id(source: Source, tmp_path: Path) -> None:
    """Single runs with their experiments; an unknown id is an error."""
    wanted = [source.runs["first"], source.runs["eu"]]
    assert source.packed(tmp_path / "b", run=wanted) == ({"churn", "churn/eu"}, {"first", "eu"})
    assert source.packed(tmp_path / "b", run=source.runs["deleted"]) == ({"fraud"}, {"deleted"})
    with pytest.raises(NotFoundError, match="no run with the id 'x'"):
        source.pack(tmp_path / "b", run=["x", source.runs["eu"]])


def test_nested_runs_take_their_relatives(source: Source, tmp_path: Path) -> None:
    """A nested run takes its ancestors; its descendants, with theirs, come on request."""
    assert source.packed(tmp_path / "b", run=source.runs["child"])[1] == {"parent", "child"}
    assert source.packed(tmp_path / "b", run=source.runs["grandchild"])[1] == {"parent", "child", "grandchild"}
    with_all = source.packed(tmp_path / "b", run=source.runs["child"], descendants=True)
    assert with_all == ({"fraud", "churn/eu"}, {"parent", "child", "grandchild"})
    everything_below = source.packed(tmp_path / "b", run=source.runs["parent"], descendants=True)
    assert everything_below[1] == {"parent", "child", "grandchild", "sibling"}


@pytest.mark.parametrize(
    ("filter_string", "runs"),
    [
        ("params.lr = '3'", {"noon"}),
        ("metrics.loss < 1 and attributes.run_name = 'eu'", {"eu"}),
        ("attributes.start_time < 1793491200000", {"old"}),
        ("params.lr = '99'", set()),
    ],
)
def test_a_filter_is_that_of_mlflow(source: Source, tmp_path: Path, filter_string: str, runs: set[str]) -> None:
    """MLflow's own filter language chooses the runs; experiments without any are left out."""
    experiments, found = source.packed(tmp_path / "b", filter=filter_string)
    assert found == runs
    assert bool(experiments) == bool(runs)


def test_a_filter_that_mlflow_refuses_is_a_usage_error(source: Source, tmp_path: Path) -> None:
    """A filter that cannot be understood is refused before anything is written."""
    with pytest.raises(UsageError):
        source.pack(tmp_path / "b", filter="params.lr ~~ 3")
    assert not (tmp_path / "b" / "snapshots").exists()


@pytest.mark.parametrize(
    ("since", "until", "runs"),
    [
        ("2026-11-01", "2026-11-01", {"first", "noon", "last"}),
        ("2026-11-01", None, {"first", "noon", "last", "next"}),
        (None, "2026-11-01", {"old", "first", "noon", "last"}),
        (NOVEMBER, NOVEMBER, {"first"}),
        ("2026-11-01T12:00", "2026-11-01T12:00", {"noon"}),
        ("2026-11-01T13:00+01:00", "2026-11-01T13:00+01:00", {"noon"}),
        ("2026-11-01T12:00:00.001", "2026-11-01T23:59:59.999Z", {"last"}),
        (datetime(2026, 11, 1, 12, tzinfo=UTC), datetime(2026, 11, 1, 12), {"noon"}),
        ("2026-11-03", None, set()),
    ],
)
def test_times_are_inclusive_at_both_ends(source: Source, tmp_path: Path, since: Any, until: Any, runs: set[str]) -> None:
    """Runs that start at either end, to the millisecond, are in; dates are whole days in UTC; zones count."""
    assert source.packed(tmp_path / "b", "churn", since=since, until=until) == ({"churn"}, runs)


def test_lifecycle_narrows(source: Source, tmp_path: Path) -> None:
    """Active runs only, deleted ones only, or all."""
    assert source.packed(tmp_path / "b", "fraud", lifecycle="active")[1] == {"parent", "child", "sibling"}
    assert source.packed(tmp_path / "b", "fraud", lifecycle="deleted")[1] == {"deleted"}
    assert source.packed(tmp_path / "b", "fraud")[1] == {"parent", "child", "sibling", "deleted"}


def test_conditions_narrow_together(source: Source, tmp_path: Path) -> None:
    """Experiment, time, filter and lifecycle all have to be met, and the scope in the snapshot says them."""
    found = source.packed(tmp_path / "b", "churn", since="2026-11-01", filter="params.lr != '3'", lifecycle="active")
    assert found == ({"churn"}, {"first", "last", "next"})
    with bundle.open(tmp_path / "b") as archive:
        scope = archive.snapshot.scope
    assert (scope.experiments, scope.since, scope.until) == (("churn",), NOVEMBER, None)
    assert (scope.filter, scope.lifecycle) == ("params.lr != '3'", "active")


def test_the_default_place_is_named_after_the_experiment(source: Source, tmp_path: Path, monkeypatch: Any) -> None:
    """One experiment goes to ``./<experiment>.mlbundle``, with the tracking URI of the environment; more need a place."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", source.uri)
    report = bundle.pack("churn/eu")
    assert (tmp_path / "churn_eu.mlbundle" / "mlflow-bundle.json").is_file()
    assert report.counts["run"] == 4
    for wanted in (None, ["churn", "fraud"]):
        with pytest.raises(UsageError, match="where to"):
            bundle.pack(wanted)


# -- what cannot be read ---------------------------------------------------------------------------------------------------


def snapshots_of(folder: Path) -> list[Path]:
    return sorted((folder / "snapshots").glob("*.json"))


def test_an_unreadable_file_commits_nothing(source: Source, tmp_path: Path) -> None:
    """A file that is listed and cannot be read: nothing is committed, and the error names it."""
    source.pack(tmp_path / "b")
    before = snapshots_of(tmp_path / "b")
    (source.folder("noon") / "broken.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(IncompleteError, match=r"broken\.bin") as raised:
        source.pack(tmp_path / "b")
    (problem,) = raised.value.problems
    assert (problem.code, problem.kind, problem.id, problem.path) == (
        "artifact-unreadable",
        "run",
        source.runs["noon"],
        "broken.bin",
    )
    assert problem.runs == (source.runs["noon"],)
    assert "--allow-partial" in str(raised.value.hint)
    assert snapshots_of(tmp_path / "b") == before


def test_a_partial_snapshot_says_what_is_missing_and_the_next_one_is_whole(source: Source, tmp_path: Path) -> None:
    """Allowed to be partial, everything else is packed with one problem for each missing thing; mended, only that is read."""
    broken = source.folder("noon") / "broken.bin"
    broken.symlink_to(tmp_path / "nowhere")
    partial = source.pack(tmp_path / "b", allow_partial=True)
    assert partial.state == "partial"
    assert [problem.path for problem in partial.problems] == ["broken.bin"]
    with bundle.open(tmp_path / "b") as archive:
        assert archive.snapshot.state == "partial"
        assert archive.snapshot.problems == partial.problems
        states = {row["path"]: row["state"] for row in archive.files(run_id=source.runs["noon"]).to_pylist()}
        assert states == {"broken.bin": "unreadable", "model.txt": "ok"}
        with pytest.raises(NotFoundError, match="could not be read") as raised:
            archive.open_file(source.runs["noon"], "broken.bin")
        assert raised.value.code == "file-missing"
        with archive.open_file(source.runs["noon"], "model.txt") as stream:
            assert stream.read() == b"model of noon"
    (tmp_path / "nowhere").write_bytes(b"mended")
    whole = source.pack(tmp_path / "b")
    assert (whole.state, whole.problems) == ("complete", ())
    assert whole.new_objects <= 5
    assert whole.logical_root == source.pack(tmp_path / "fresh").logical_root
    with bundle.open(tmp_path / "b") as archive, archive.open_file(source.runs["noon"], "broken.bin") as stream:
        assert stream.read() == b"mended"


def test_a_file_that_vanishes_between_listing_and_reading_is_missing(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was there when the folder was listed and is gone when it is read is a problem, not a shorter list."""
    opened = LocalArtifacts.open

    @contextmanager
    def after_removal(self: LocalArtifacts, path: str) -> Iterator[BinaryIO]:
        (source.folder("noon") / "model.txt").unlink(missing_ok=True)
        with opened(self, path) as stream:
            yield stream

    monkeypatch.setattr(LocalArtifacts, "open", after_removal)
    with pytest.raises(IncompleteError) as raised:
        source.pack(tmp_path / "b")
    assert [(problem.id, problem.path) for problem in raised.value.problems] == [(source.runs["noon"], "model.txt")]


def test_every_problem_is_reported_at_once(source: Source, tmp_path: Path) -> None:
    """Several unreadable files are all named, not only the first."""
    for name in ("old", "eu", "child"):
        for number in range(3):
            (source.folder(name) / f"{number}.bin").symlink_to(tmp_path / "nowhere")
    with pytest.raises(IncompleteError, match="and 8 more") as raised:
        source.pack(tmp_path / "b")
    assert {(problem.id, problem.path) for problem in raised.value.problems} == {
        (source.runs[name], f"{number}.bin") for name in ("old", "eu", "child") for number in range(3)
    }


def test_a_name_that_is_no_text_is_a_problem(source: Source, tmp_path: Path) -> None:
    """A file whose name is not valid UTF-8 is named in a problem, and the pack does not break."""
    raw = os.fsencode(source.folder("eu")) + b"/caf\xe9.txt"
    try:
        Path(os.fsdecode(raw)).write_bytes(b"latin-1")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(IncompleteError) as raised:
        source.pack(tmp_path / "b")
    assert source.runs["eu"] in raised.value.problems[0].runs
    assert source.pack(tmp_path / "b", allow_partial=True).state == "partial"


# -- interruption ----------------------------------------------------------------------------------------------------------

PACK = """
import sys, threading, time
from mlflow_bundle import Targets, pack
from mlflow_bundle._storage._local import LocalStorage
put = LocalStorage.put
lock = threading.Lock()
count = 0

def counted(self, staged, path):
    global count
    if count >= int(sys.argv[3]):
        print("here", flush=True)
        time.sleep(600)
    is_new = put(self, staged, path)
    with lock:
        count += is_new
    return is_new

LocalStorage.put = counted
targets = Targets(records_bytes=1000, metric_rows=2, file_rows=3, pack_bytes=100)
pack(None, sys.argv[2], tracking_uri=sys.argv[1], targets=targets)
print("done", flush=True)
"""


@pytest.mark.parametrize("after", [0, 1, 3, 8, 15])
def test_a_killed_pack_is_resumed_by_the_next(source: Source, tmp_path: Path, after: int) -> None:
    """Killed after any number of objects, nothing is listed and every object is whole; the next pack takes them over."""
    process = subprocess.Popen(
        [sys.executable, "-c", PACK, source.uri, str(tmp_path / "b"), str(after)], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    folder = tmp_path / "b"
    assert snapshots_of(folder) == []
    left = [path for path in (folder / "objects").rglob("*") if path.is_file()]
    assert len(left) >= after - 2  # the first two are README and marker
    for path in left:
        assert hex_of(path.read_bytes()) == object_hex(path.relative_to(folder).as_posix())
    with pytest.raises(NotFoundError):
        bundle.open(folder)
    targets = bundle.Targets(records_bytes=1000, metric_rows=2, file_rows=3, pack_bytes=100)
    report = source.pack(folder, targets=targets)
    # All but a pack or two, whose contents may have come in another order this time.
    assert len(left) - 2 <= report.shared_objects <= len(left)
    assert report.logical_root == source.pack(tmp_path / "fresh").logical_root
    with bundle.open(folder) as archive:
        assert archive.runs().num_rows == len(EVERYTHING)
        assert archive.files().num_rows == len(EVERYTHING)


def test_an_interrupted_pack_lists_nothing(source: Source, tmp_path: Path) -> None:
    """An error or a Ctrl-C from the outside, here from the progress callback, commits nothing and leaves no temporary file."""

    class Stopping(Callback):
        def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
            if path_1 == "files":
                raise KeyboardInterrupt
            return self

    with pytest.raises(KeyboardInterrupt):
        source.pack(tmp_path / "b", callback=Stopping())
    assert snapshots_of(tmp_path / "b") == []
    assert not (tmp_path / "b" / ".staging").exists()


def test_progress_counts_what_was_done(source: Source, tmp_path: Path) -> None:
    """The phases of the callback end at the numbers of runs, points and files."""
    totals: dict[str, int] = {}

    class Counter(Callback):
        def branched(self, path_1: str, path_2: str, **kwargs: Any) -> Callback:
            phase = Counter()
            phase.name = path_1
            return phase

        def relative_update(self, inc: int = 1) -> None:
            totals[self.name] = totals.get(self.name, 0) + inc

    report = source.pack(tmp_path / "b", callback=Counter())
    assert totals == {"entities": 1, "runs": 12, "points": 12, "files": 12}
    assert report.counts == {
        "experiment": 6,
        "run": 12,
        "metric_point": 12,
        "file": 12,
        "file_bytes": report.counts["file_bytes"],
        "workspace": 1,
    }


def test_times_of_snapshots_only_grow(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes back does not make the newest snapshot an old one."""
    first = source.pack(tmp_path / "b")
    monkeypatch.setattr(time, "time_ns", lambda: 10**18)
    second = source.pack(tmp_path / "b", "churn")
    assert second.snapshot > first.snapshot
    with bundle.open(tmp_path / "b") as archive:
        assert archive.snapshot_id == second.snapshot
