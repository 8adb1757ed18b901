"""Traces of a real server: read with all that belongs to them, and restored to another one under the same ids."""

from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from io import BytesIO
from typing import Any, BinaryIO

import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.entities.span import Span
from mlflow.tracing.otel import translation
from mlflow.tracing.utils import TraceJSONEncoder, dump_span_attribute_value
from msgspec import UNSET

from mlflow_bundle.entities import Assessment, KeyValue, Trace
from mlflow_bundle.errors import StorageError
from mlflow_bundle.kinds import order_key
from mlflow_bundle.tracking._port import ArtifactStore, EntityQuery, EntityResult, IdMap, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking._rest import RestClient
from mlflow_bundle.tracking._spans import span_texts, span_values
from mlflow_bundle.tracking.artifacts import artifact_store
from mlflow_bundle.tracking.rest import _trace_payload, _traces_read
from mlflow_bundle.tracking.rest._answers import experiments
from mlflow_bundle.tracking.rest._features import TRACES_3, SourceServer
from mlflow_bundle.tracking.rest._otlp import UnspeakableError, otlp_span
from mlflow_bundle.tracking.rest._road import Server
from mlflow_bundle.tracking.rest._trace_expected import same_span
from mlflow_bundle.tracking.rest._trace_files import TraceFiles
from mlflow_bundle.tracking.rest._traces_read import TraceReader
from mlflow_bundle.tracking.rest._traces_write import TraceWriter
from tests.fixtures.server import MlflowServer, ServerFactory
from tests.tracking.http_peer import forward, serve
from tests.tracking.trace_content import ATTACHMENT, TraceContent, make_traces, post, start

FINALIZED = "mlflow.trace.infoFinalized"
LOCATIONS = {"artifact_uri": UNSET, "spans_location": UNSET, "archive_location": UNSET}


@pytest.fixture(scope="module")
def content(mlflow_server: MlflowServer) -> TraceContent:
    return make_traces(mlflow_server.url, prefix="rest ")


@pytest.fixture(scope="module")
def target(start_server: ServerFactory) -> MlflowServer:
    return start_server()


def reader_of(url: str) -> TraceReader:
    client = RestClient(url)
    server = SourceServer(client, threads=4)

    def all_experiments(_: str | None) -> list[str]:
        return [experiment.experiment_id for experiment in experiments(client)]

    return TraceReader(server, all_experiments, lambda uri, name, own: artifact_store(uri, client=own, run_id=name))


@pytest.fixture(scope="module")
def reader(mlflow_server: MlflowServer) -> TraceReader:
    return reader_of(mlflow_server.url)


def query(content: TraceContent) -> EntityQuery:
    return EntityQuery(experiment_ids=(content.experiment, content.deleted))


def all_of(reader: TraceReader, asked: EntityQuery) -> dict[str, Trace]:
    return {trace.trace_id: trace for batch in reader.entities(asked) for trace in batch}


def rows_of(reader: TraceReader, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {one: [] for one in ids}
    for table in reader.rows(ids):
        for row in table.to_pylist():
            found[ids[row.pop("owner")]].append(row)
    return found


@pytest.fixture(scope="module")
def traces(reader: TraceReader, content: TraceContent) -> dict[str, Trace]:
    """The traces that were made, by what they are there for."""
    found = all_of(reader, query(content))
    return {name: found[identity] for name, identity in content.traces.items()}


def in_database(server: MlflowServer, ids: Sequence[str]) -> dict[tuple[str, str], str]:
    """The content of the spans in a server's database, by trace and span."""
    path = server.backend_store_uri.removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        found = database.execute("SELECT trace_id, span_id, content FROM spans").fetchall()
    return {(trace, span): text for trace, span, text in found if trace in ids}


# -- reading -----------------------------------------------------------------------------------------------------------


def test_all_traces_are_read_in_archive_order(reader: TraceReader, content: TraceContent, traces: dict[str, Trace]) -> None:
    """Every trace is given out once, those of a deleted experiment too, by time and id."""
    found = [trace for batch in reader.entities(query(content)) for trace in batch]
    assert [order_key(trace) for trace in found] == sorted({order_key(trace) for trace in found})
    assert {trace.trace_id for trace in found} == set(content.traces.values())
    assert traces["deleted"].experiment_id == content.deleted


def test_pages_are_put_together(
    mlflow_server: MlflowServer, content: TraceContent, traces: dict[str, Trace], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small pages, with several traces of one time across their ends, give the same traces in the same order."""
    for number in range(5):
        start(mlflow_server.url, content.experiment, f"tr-same-time-{number}")
    whole = list(all_of(reader_of(mlflow_server.url), query(content)))
    monkeypatch.setattr(_traces_read, "_TRACES_PER_PAGE", 2)
    paged = list(all_of(reader_of(mlflow_server.url), query(content)))
    assert len(whole) == len(traces) + 5
    assert paged == whole
    body = {"experiment_id": content.experiment, "request_ids": [f"tr-same-time-{number}" for number in range(5)]}
    post(mlflow_server.url, "/api/2.0/mlflow/traces/delete-traces", body)


def test_info_is_complete(traces: dict[str, Trace]) -> None:
    """Times, state, previews, names, session and user of a trace are what the program set."""
    trace = traces["api"]
    metadata = {pair.key: pair.value for pair in trace.trace_metadata}
    assert trace.state == "OK"
    assert trace.client_request_id == "request-1"
    assert isinstance(trace.request_time, int)
    assert isinstance(trace.execution_duration, int)
    assert json.loads(trace.request_preview or "")["q"] == "héllo 😀"
    assert trace.response_preview == '"bye"'
    assert trace.tags == (KeyValue(key="line", value="v\nw"), KeyValue(key="mlflow.traceName", value="root ü"))
    assert (metadata["mlflow.trace.session"], metadata["mlflow.trace.user"]) == ("session-1", "me")
    assert json.loads(metadata["mlflow.trace.tokenUsage"]) == {"input_tokens": 3, "output_tokens": 4, "total_tokens": 7}
    assert trace.spans_location == "TRACKING_STORE"
    assert trace.artifact_uri == f"mlflow-artifacts:/{trace.experiment_id}/traces/{trace.trace_id}/artifacts"
    assert traces["old"].request_time == 1_772_359_200_123
    assert traces["old"].execution_duration == 1_500
    assert traces["bare"].execution_duration is UNSET
    assert traces["bare"].state == "IN_PROGRESS"


def test_assessments_are_complete(traces: dict[str, Trace], content: TraceContent) -> None:
    """All types of assessments come with values, errors, sources, overrides and validity."""
    found: dict[str, list[Assessment]] = {}
    for one in traces["api"].assessments:
        found.setdefault(one.assessment_name, []).append(one)
    first, second, third = found["quality"]
    assert (first.value, second.value, third.value) == ("0.5", "0.75", '{"a": "b"}')
    assert (first.valid, second.valid, third.valid) == (False, False, True)
    assert (first.overrides, second.overrides, third.overrides) == (UNSET, first.assessment_id, second.assessment_id)
    assert first.metadata == (KeyValue(key="mlflow.assessment.sourceRunId", value=content.run),)
    assert (first.rationale, first.source_type, first.source_id) == ("so so", "HUMAN", "me@example.org")
    assert third.span_id == "0102030405060708"
    (broken,) = found["broken"]
    assert broken.value == "null"
    assert json.loads(broken.error or "") == {"error_code": "E", "error_message": "m", "stack_trace": None}
    assert found["expected"][0].value == '{"b": [1, 2.5], "a": null}'
    assert found["expected text"][0].value == '"text"'
    assert (found[content.issue][0].assessment_type, found[content.issue][0].value) == ("issue", '{"issue_name": "slow"}')
    assert all(isinstance(one.create_time, int) for one in traces["api"].assessments)


def test_links_are_found(traces: dict[str, Trace], content: TraceContent) -> None:
    """Links to runs, deleted ones too, and to versions of prompts are told; a run that a trace was made in is no link."""
    assert traces["api"].run_ids == tuple(sorted((content.run, content.other_run)))
    assert traces["partial"].run_ids == tuple(sorted((content.run, content.deleted_run)))
    assert traces["made in a run"].run_ids == ()
    assert [(link.name, link.version) for link in traces["api"].prompts] == [(content.prompt, "1"), (content.prompt, "2")]
    assert traces["partial"].prompts == ()


def test_traces_are_found_by_run_and_by_id(reader: TraceReader, content: TraceContent) -> None:
    """A query by runs finds the linked traces and those that were made in them; one by id finds what exists."""
    by_run = all_of(reader, EntityQuery(run_ids=(content.other_run,)))
    assert set(by_run) == {content.traces["api"], content.traces["made in a run"]}
    by_id = all_of(reader, EntityQuery(ids=(content.traces["old"], content.traces["api"], "tr-none")))
    assert set(by_id) == {content.traces["old"], content.traces["api"]}
    assert by_id[content.traces["api"]].run_ids == tuple(sorted((content.run, content.other_run)))
    with_place = EntityQuery(ids=(content.traces["old"],), experiment_ids=(content.deleted,))
    assert all_of(reader, with_place) == {}


def test_spans_have_their_exact_text(
    mlflow_server: MlflowServer, reader: TraceReader, content: TraceContent, traces: dict[str, Trace]
) -> None:
    """The text of a span is that of the database byte for byte, with and without a root span; columns derive from it."""
    ids = [trace.trace_id for trace in traces.values()]
    stored = in_database(mlflow_server, ids)
    rows = rows_of(reader, ids)
    read = {(trace, row["span_id"]): row["content"] for trace, found in rows.items() for row in found}
    assert {key: text for key, text in read.items() if key in stored} == stored
    assert len(stored) == 3 + 4
    api = rows[content.traces["api"]]
    assert [(row["name"], row["type"], row["status"], row["model_name"]) for row in api] == [
        ("root ü", "AGENT", "OK", None),
        ("child", "LLM", "OK", "a-model"),
        ("bad", "UNKNOWN", "ERROR", None),
    ]
    assert [row["parent_span_id"] for row in api] == [None, api[0]["span_id"], api[0]["span_id"]]
    assert all(row["start_time_unix_nano"] < row["end_time_unix_nano"] for row in api)


def test_spans_of_files_are_read(reader: TraceReader, content: TraceContent) -> None:
    """Spans that lie in a file, of this release or of MLflow 2, become rows with the text of the file."""
    rows = rows_of(reader, [content.traces["beyond int64"], content.traces["old"], content.traces["bare"]])
    assert str(2**70) in rows[content.traces["beyond int64"]][0]["content"]
    (old,) = rows[content.traces["old"]]
    assert (old["span_id"], old["name"], old["type"], old["status"]) == ("1122334455667788", "predict", "LLM", "OK")
    assert old["start_time_unix_nano"] == 1_700_000_000_000_000_000
    assert json.loads(old["content"])["context"]["trace_id"] == "0x" + "ab" * 16
    assert rows[content.traces["bare"]] == []
    assert reader.problems == []


def test_unreadable_spans_are_a_problem(mlflow_server: MlflowServer, content: TraceContent) -> None:
    """Spans that are lost, or no JSON, are problems of their traces; the others are read."""
    client = RestClient(mlflow_server.url)
    lost, broken = "tr-lost", "tr-broken"
    for identity in (lost, broken):
        start(mlflow_server.url, content.experiment, identity, trace_metadata={"mlflow.trace.sizeBytes": "5"})
    place = f"/api/2.0/mlflow-artifacts/artifacts/{content.experiment}/traces/{broken}/artifacts/traces.json"
    client.put(place, BytesIO(b'{"spans": 7}'), 12)
    reader = reader_of(mlflow_server.url)
    rows = rows_of(reader, [lost, content.traces["old"], broken])
    body = {"experiment_id": content.experiment, "request_ids": [lost, broken]}
    post(mlflow_server.url, "/api/2.0/mlflow/traces/delete-traces", body)
    assert sorted(problem.id for problem in reader.problems) == [broken, lost]
    assert {problem.code for problem in reader.problems} == {"spans-unreadable"}
    assert len(rows[content.traces["old"]]) == 1


def test_spans_that_a_trace_announced_and_lacks_are_told(mlflow_server: MlflowServer, content: TraceContent) -> None:
    """What arrives with fewer spans than the trace says of itself is kept and noted; whole traces are not."""
    short: list[str] = []

    def answer(method: str, asked: str, body: bytes) -> tuple[int, bytes, int | None]:
        status, said, length = forward(mlflow_server.url, method, asked, body)
        if any(f"get-trace-artifact?request_id={trace}" in asked for trace in short):
            said = json.dumps({"spans": json.loads(said)["spans"][:-1]}).encode()
        return status, said, length

    with serve(answer) as peer:
        for wanted in ([], [content.traces["api"]]):
            short[:] = wanted
            reader = reader_of(peer.url)
            rows = rows_of(reader, list(all_of(reader, query(content))))
            assert len(rows[content.traces["api"]]) == 3 - len(wanted)
            assert [content.traces["api"] in note for note in reader.notes()] == [True] * len(wanted)


def test_values_that_a_server_may_have_cut_are_told(mlflow_server: MlflowServer, content: TraceContent) -> None:
    """A value of just the length that a server hands out at most is a problem, as it may be the start of a longer one."""
    start(mlflow_server.url, content.experiment, "tr-long", trace_metadata={"long": "x" * 300, "short": "x" * 249})
    reader = reader_of(mlflow_server.url)
    all_of(reader, EntityQuery(ids=("tr-long",)))
    body = {"experiment_id": content.experiment, "request_ids": ["tr-long"]}
    post(mlflow_server.url, "/api/2.0/mlflow/traces/delete-traces", body)
    (problem,) = reader.problems
    assert (problem.code, problem.id) == ("value-maybe-cut", "tr-long")
    assert "'long'" in problem.message


def test_version_two_of_the_api(mlflow_server: MlflowServer, content: TraceContent, traces: dict[str, Trace]) -> None:
    """Over the endpoint of MLflow 2 the same traces come, without what that release does not know."""
    reader = reader_of(mlflow_server.url)
    reader._server.features.offered = reader._server.features.offered - {TRACES_3}
    found = all_of(reader, query(content))
    assert list(found) == [trace.trace_id for trace in sorted(traces.values(), key=order_key)]
    old, new = found[content.traces["old"]], traces["old"]
    assert (old.request_time, old.execution_duration, old.state) == (new.request_time, new.execution_duration, new.state)
    assert old.trace_metadata == new.trace_metadata
    assert found[content.traces["api"]].assessments == ()
    assert set(all_of(reader, EntityQuery(ids=(content.traces["old"], "tr-none")))) == {content.traces["old"]}


def test_files_of_a_trace(reader: TraceReader, traces: dict[str, Trace]) -> None:
    """Attachments and the file of spans are in the artifact store of the trace."""
    store = reader.artifacts(traces["partial"])
    (attachment,) = store.walk()
    assert attachment.path.startswith("attachments/")
    with store.open(attachment.path) as stream:
        assert stream.read() == b"\x89PNG\x00"
    assert [info.path for info in reader.artifacts(traces["old"]).walk()] == ["traces.json"]
    assert list(reader.artifacts(traces["bare"]).walk()) == []


def test_files_that_only_the_server_reaches(mlflow_server: MlflowServer, traces: dict[str, Trace]) -> None:
    """Where the folder of a trace is on the server's machine only, the server hands out its files: those that spans name."""
    client = RestClient(mlflow_server.url)

    def refuse(uri: str, name: str, own: RestClient) -> ArtifactStore:
        raise AssertionError(f"{uri} was opened")

    found = {}
    for name in ("partial", "old", "bare"):
        away = msgspec.structs.replace(traces[name], artifact_uri="/no/such/folder/of/this/machine")
        store = TraceFiles(refuse).of(away, client)
        for info in store.walk():
            with store.open(info.path) as stream:
                found[name, info.path] = stream.read()
        with pytest.raises(StorageError, match="not on this machine"):
            store.write("x", BytesIO(b""), 0)
    assert found.pop(("partial", f"attachments/{ATTACHMENT}")) == b"\x89PNG\x00"
    assert json.loads(found.pop(("old", "traces.json")))["request"] == '{"x": 1}'
    assert found == {}


# -- writing -----------------------------------------------------------------------------------------------------------


class Archive:
    """Traces with their rows and files, as an archive hands them out."""

    def __init__(self, reader: TraceReader, asked: EntityQuery) -> None:
        self._blobs: dict[str, bytes] = {}
        found = all_of(reader, asked)
        ids = list(found)
        tables = list(reader.rows(ids))
        self.planned = []
        for owner, trace in enumerate(found.values()):
            parts = [table.filter(pa.compute.equal(table["owner"], owner)).drop_columns(["owner"]) for table in tables]
            rows = pa.concat_tables(parts) if parts else None
            self.planned.append(
                PlannedEntity(
                    record=trace, rows=rows if rows is not None and rows.num_rows else None, files=self._files(reader, trace)
                )
            )

    def _files(self, reader: TraceReader, trace: Trace) -> tuple[tuple[str, int, str], ...]:
        found = []
        store = reader.artifacts(trace)
        for info in store.walk():
            with store.open(info.path) as stream:
                found.append(self.add(info.path, stream.read()))
        return tuple(found)

    def add(self, path: str, data: bytes) -> tuple[str, int, str]:
        sha256 = hashlib.sha256(data).hexdigest()
        self._blobs[sha256] = data
        return path, len(data), sha256

    @contextmanager
    def open(self, sha256: str) -> Iterator[BinaryIO]:
        yield BytesIO(self._blobs[sha256])


@contextmanager
def writer_to(server: MlflowServer, doomed: Sequence[str] = ()) -> Iterator[TraceWriter]:
    client = RestClient(server.url)
    with ThreadPoolExecutor(6) as executor:

        def open_store(uri: str, name: str) -> Any:
            return artifact_store(uri, client=client, run_id=name)

        yield TraceWriter(Server(client, executor, 12, "bundle", open_store), doomed_experiments=lambda: doomed)


@pytest.fixture(scope="module")
def archive(reader: TraceReader, content: TraceContent, traces: dict[str, Trace]) -> Archive:
    return Archive(reader, query(content))


@pytest.fixture(scope="module")
def ids(target: MlflowServer, content: TraceContent) -> IdMap:
    """What experiments, runs and the issue became at the target."""
    client, ids = MlflowClient(target.url), IdMap()
    for old in (content.experiment, content.deleted):
        ids.add("experiment", old, client.create_experiment(f"restored {old}"))
    for old in (content.run, content.other_run, content.deleted_run):
        ids.add("run", old, client.create_run(ids.new("experiment", content.experiment)).info.run_id)
    ids.add("issue", content.issue, "iss-" + "9" * 32)
    ids.add("logged_model", "m-" + "0" * 32, "m-" + "1" * 32)
    for text in ("one {{x}}", "two {{x}}"):
        client.register_prompt(name=content.prompt, template=text)
    return ids


def restore(target: MlflowServer, archive: Archive, ids: IdMap) -> dict[str, EntityResult]:
    with writer_to(target) as writer:
        results = writer.restore(archive.planned, ids, archive.open, RestoreOptions())
    return {result.source_id: result for result in results}


@pytest.fixture(scope="module")
def restored(target: MlflowServer, archive: Archive, ids: IdMap) -> dict[str, EntityResult]:
    return restore(target, archive, ids)


def expected_at_target(trace: Trace, ids: IdMap) -> Trace:
    """The record that must be read back, by rules written down here once more."""
    text = msgspec.json.encode(trace).decode()
    for kind in ("run", "issue", "logged_model"):
        for old, new in ids.by_kind()[kind].items():
            text = text.replace(old, new)
    moved = msgspec.json.decode(text, type=Trace)
    metadata = {pair.key: pair.value for pair in moved.trace_metadata} | {FINALIZED: "true"}
    return msgspec.structs.replace(
        moved,
        **LOCATIONS,
        experiment_id=ids.new("experiment", trace.experiment_id),
        trace_metadata=tuple(KeyValue(key=key, value=value) for key, value in sorted(metadata.items())),
        run_ids=tuple(sorted(moved.run_ids)),
    )


def test_traces_survive(
    target: MlflowServer,
    restored: dict[str, EntityResult],
    traces: dict[str, Trace],
    ids: IdMap,
) -> None:
    """Every trace is at the target under its id with all its fields, assessments and links; references have new ids."""
    assert [result.problems for result in restored.values() if result.problems] == []
    assert {result.action for result in restored.values()} == {"restored"}
    found = all_of(reader_of(target.url), EntityQuery(ids=tuple(trace.trace_id for trace in traces.values())))
    for name, trace in traces.items():
        there = found[trace.trace_id]
        assert msgspec.structs.replace(there, **LOCATIONS) == expected_at_target(trace, ids), name
        assert there.spans_location == trace.spans_location, name


def test_spans_are_the_same_bytes(
    mlflow_server: MlflowServer, target: MlflowServer, restored: dict[str, EntityResult], traces: dict[str, Trace]
) -> None:
    """The databases of both servers hold the same text for every span, and results count what was read back."""
    wanted = [trace.trace_id for trace in traces.values()]
    assert in_database(target, wanted) == in_database(mlflow_server, wanted)
    rows = rows_of(reader_of(mlflow_server.url), wanted)
    there = rows_of(reader_of(target.url), wanted)
    assert there == rows
    assert {name: result.rows for name, result in restored.items()} == {name: len(found) for name, found in rows.items()}


def test_files_are_the_same(target: MlflowServer, restored: dict[str, EntityResult], archive: Archive) -> None:
    """Attachments and files of spans are at the target with the same content."""
    again = Archive(reader_of(target.url), EntityQuery(ids=tuple(restored)))
    assert {plan.record.trace_id: plan.files for plan in again.planned} == {  # type: ignore[attr-defined]
        plan.record.trace_id: plan.files  # type: ignore[attr-defined]
        for plan in archive.planned
    }
    assert sum(result.files for result in restored.values()) == sum(len(plan.files) for plan in archive.planned)


def test_running_again_changes_nothing(
    target: MlflowServer, restored: dict[str, EntityResult], archive: Archive, ids: IdMap
) -> None:
    """A second restore finds every trace there and leaves it as it is."""
    wanted = EntityQuery(ids=tuple(restored))
    before = Archive(reader_of(target.url), wanted)
    again = restore(target, archive, ids)
    assert {result.action for result in again.values()} == {"there"}
    assert [result.problems for result in again.values() if result.problems] == []
    assert [plan.record for plan in Archive(reader_of(target.url), wanted).planned] == [plan.record for plan in before.planned]
    assert {name: result.rows for name, result in again.items()} == {name: result.rows for name, result in restored.items()}


# -- what is there already, what comes last ----------------------------------------------------------------------------


def one_trace(experiment: str, name: str, *contents: str, **fields: Any) -> PlannedEntity:
    """An archived trace with spans of these texts, which were in a database."""
    identity = hashlib.sha256(name.encode()).hexdigest()[:32]
    fields = {"request_time": 1_772_359_200_123, "execution_duration": 7, "state": "OK", **fields}
    record = Trace(trace_id=f"tr-{identity}", experiment_id=experiment, spans_location="TRACKING_STORE", **fields)
    coded = base64.b64encode(bytes.fromhex(identity)).decode()
    own = [text.replace('"TRACE"', f'"{coded}"').replace("TRACE", identity) for text in contents]
    rows = pa.Table.from_pylist([span_values(text) for text in own]) if own else None
    return PlannedEntity(record=record, rows=rows)


def span_text(**fields: Any) -> str:
    """A span as a database keeps it. TRACE stands for the id of its trace."""
    span = {
        "trace_id": "TRACE",
        "span_id": "AwMDAwMDAwM=",
        "parent_span_id": None,
        "name": "span",
        "start_time_unix_nano": 1_772_359_200_123_000_000,
        "end_time_unix_nano": 1_772_359_200_130_000_000,
        "events": [],
        "status": {"code": "STATUS_CODE_OK", "message": ""},
        "attributes": {"mlflow.traceRequestId": '"tr-TRACE"'},
        "links": [],
    }
    return json.dumps(span | fields, ensure_ascii=False)


def restore_one(server: MlflowServer, plan: PlannedEntity, ids: IdMap) -> EntityResult:
    with writer_to(server) as writer:
        (result,) = writer.restore([plan], ids, Archive.open, RestoreOptions())  # type: ignore[arg-type]  # it has no files
    return result


@pytest.fixture
def place(target: MlflowServer, request: pytest.FixtureRequest) -> tuple[str, IdMap]:
    """A new experiment at the target, and the ids that lead from the archived experiment ``7`` to it."""
    ids = IdMap()
    name = f"{request.node.name} {id(ids)}"
    ids.add("experiment", "7", MlflowClient(target.url).create_experiment(name))
    return "7", ids


def test_an_interrupted_restore_is_completed(target: MlflowServer, place: tuple[str, IdMap]) -> None:
    """A trace that was started and got nothing else gets its spans, tags and assessments, and its state is right."""
    experiment, ids = place
    judged = Assessment(
        assessment_id="a-interrupted",
        assessment_name="x",
        assessment_type="feedback",
        value="1.0",
        source_type="CODE",
        source_id="default",
        create_time=5_000,
        last_update_time=6_000,
    )
    plan = one_trace(
        experiment,
        "interrupted",
        span_text(),
        state="IN_PROGRESS",
        tags=(KeyValue(key="t", value="v"),),
        assessments=(judged,),
    )
    record = plan.record
    assert isinstance(record, Trace)
    start(target.url, ids.new("experiment", experiment), record.trace_id, state="IN_PROGRESS", execution_duration="0.007s")
    result = restore_one(target, plan, ids)
    assert (result.action, result.problems, result.rows) == ("merged", [], 1)
    found = all_of(reader_of(target.url), EntityQuery(ids=(record.trace_id,)))[record.trace_id]
    assert (found.state, found.tags, found.assessments) == ("IN_PROGRESS", record.tags, (judged,))


def test_a_trace_of_another_experiment_is_not_touched(target: MlflowServer, place: tuple[str, IdMap]) -> None:
    """Where the server has the trace in another experiment it is left out and stays where it is."""
    experiment, ids = place
    plan = one_trace(experiment, "elsewhere", span_text())
    assert isinstance(plan.record, Trace)
    start(target.url, "0", plan.record.trace_id)
    result = restore_one(target, plan, ids)
    assert (result.action, [problem.code for problem in result.problems]) == ("left out", ["cannot-hold"])
    assert "experiment 0" in result.problems[0].message
    found = all_of(reader_of(target.url), EntityQuery(ids=(plan.record.trace_id,)))
    assert found[plan.record.trace_id].experiment_id == "0"


def test_changes_made_at_the_target_stay(target: MlflowServer, place: tuple[str, IdMap]) -> None:
    """What a user changed in a restored trace is kept by the next restore, and noted."""
    experiment, ids = place
    plan = one_trace(experiment, "changed", span_text(), tags=(KeyValue(key="t", value="v"), KeyValue(key="u", value="w")))
    assert isinstance(plan.record, Trace)
    assert restore_one(target, plan, ids).action == "restored"
    path = f"/api/3.0/mlflow/traces/{plan.record.trace_id}/tags"
    post(target.url, path, {"key": "t", "value": "mine"}, method="PATCH")
    post(target.url, path, {"key": "own", "value": "1"}, method="PATCH")
    result = restore_one(target, plan, ids)
    assert (result.action, result.problems) == ("merged", [])
    assert any("'mine'" in note for note in result.notes)
    found = all_of(reader_of(target.url), EntityQuery(ids=(plan.record.trace_id,)))[plan.record.trace_id]
    assert {tag.key: tag.value for tag in found.tags} == {"t": "mine", "u": "w", "own": "1"}


def test_absent_previews_are_not_made_up(target: MlflowServer, place: tuple[str, IdMap]) -> None:
    """A trace without previews gets none from its root span."""
    experiment, ids = place
    attributes = {"mlflow.traceRequestId": '"tr-TRACE"', "mlflow.spanInputs": '{"a": 1}', "mlflow.spanOutputs": '"b"'}
    plan = one_trace(experiment, "no previews", span_text(attributes=attributes))
    assert isinstance(plan.record, Trace)
    result = restore_one(target, plan, ids)
    assert (result.action, result.problems) == ("restored", [])
    found = all_of(reader_of(target.url), EntityQuery(ids=(plan.record.trace_id,)))[plan.record.trace_id]
    assert (found.request_preview, found.response_preview) == ("", "")


@pytest.mark.parametrize(
    "change",
    [
        {"attributes": {"mlflow.traceRequestId": '"tr-TRACE"', "huge": str(2**63)}},
        {"events": [{"name": "e", "time_unix_nano": 1, "attributes": {"huge": 2**64}}]},
        {"attributes": {"mlflow.traceRequestId": '"tr-other"'}},
        {"links": [{"trace_id": "other", "span_id": "34" * 8, "attributes": None}]},
        {"end_time_unix_nano": None},
        {"later": 1},
    ],
    ids=["integer", "event", "trace id", "link", "no end", "member"],
)
def test_spans_that_otlp_cannot_carry_become_a_file(
    target: MlflowServer, place: tuple[str, IdMap], change: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Such spans are kept byte for byte in the trace's file, under the same id, and the result says so."""
    experiment, ids = place
    plan = one_trace(experiment, request.node.name, span_text(), span_text(span_id="BQMDAwMDAwM=", **change))
    assert isinstance(plan.record, Trace)
    assert plan.rows is not None
    result = restore_one(target, plan, ids)
    assert (result.action, result.problems, result.rows) == ("restored", [], 2)
    assert any("traces.json" in note for note in result.notes)
    reader = reader_of(target.url)
    rows = rows_of(reader, [plan.record.trace_id])[plan.record.trace_id]
    assert [row["content"] for row in rows] == plan.rows.column("content").to_pylist()
    (found,) = all_of(reader, EntityQuery(ids=(plan.record.trace_id,))).values()
    assert found.tags == (KeyValue(key="mlflow_bundle.source.spans_location", value="TRACKING_STORE"),)
    again = restore_one(target, plan, ids)
    assert (again.action, again.problems) == ("there", [])


def test_a_refused_batch_loses_no_other_trace(
    target: MlflowServer, place: tuple[str, IdMap], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace whose spans the server refuses becomes a file; those of the same request arrive by OTLP."""
    experiment, ids = place
    plans = [one_trace(experiment, f"batch {number}", span_text()) for number in range(5)]
    real = _trace_payload.otlp_request

    def spoil(spans: Sequence[Any]) -> bytes:
        # The server refuses a span without an id, as it would one that it cannot convert.
        for span in spans:
            if span.trace_id.hex() in plans[2].record.trace_id:  # type: ignore[attr-defined]
                span.span_id = b""
        return real(spans)

    monkeypatch.setattr(_trace_payload, "otlp_request", spoil)
    with writer_to(target) as writer:
        results = writer.restore(plans, ids, Archive.open, RestoreOptions())  # type: ignore[arg-type]  # there are no files
    assert [(result.action, result.rows, result.problems) for result in results] == [("restored", 1, [])] * 5
    assert [any("refused them by OTLP" in note for note in result.notes) for result in results] == [
        number == 2 for number in range(5)
    ]


def test_assessments_survive_the_deletion_of_their_runs(target: MlflowServer, place: tuple[str, IdMap]) -> None:
    """Assessments made in runs of an experiment that is deleted in the end are posted after that."""
    experiment, ids = place
    client, there = MlflowClient(target.url), ids.new("experiment", experiment)
    ids.add("run", "r" * 32, client.create_run(there).info.run_id)
    common: dict[str, Any] = {
        "assessment_type": "feedback",
        "source_type": "CODE",
        "source_id": "default",
        "create_time": 5_000,
        "last_update_time": 6_000,
    }
    in_run = (KeyValue(key="mlflow.assessment.sourceRunId", value="r" * 32),)
    judged = (
        Assessment(assessment_id="a-last-1", assessment_name="x", value="1.0", valid=False, metadata=in_run, **common),
        Assessment(assessment_id="a-last-2", assessment_name="x", value="2.0", overrides="a-last-1", metadata=in_run, **common),
        Assessment(assessment_id="a-last-3", assessment_name="y", value="3.0", **common),
    )
    plan = one_trace(experiment, "judged in a doomed run", span_text(), assessments=judged)
    assert isinstance(plan.record, Trace)
    with writer_to(target, doomed=[there]) as writer:
        (result,) = writer.restore([plan], ids, Archive.open, RestoreOptions())  # type: ignore[arg-type]
        assert (result.action, result.problems) == ("restored", [])
        client.delete_experiment(there)
        (last,) = writer.after_deletions()
        assert (last.source_id, last.problems) == (plan.record.trace_id, [])
        assert writer.after_deletions() == []
    found = all_of(reader_of(target.url), EntityQuery(ids=(plan.record.trace_id,)))[plan.record.trace_id]
    assert [(one.assessment_id, one.valid, one.value) for one in found.assessments] == [
        ("a-last-1", False, "1.0"),
        ("a-last-2", True, "2.0"),
        ("a-last-3", True, "3.0"),
    ]


def test_a_trace_without_its_experiment_fails(target: MlflowServer) -> None:
    """A trace whose experiment was not restored fails alone and is not written anywhere."""
    result = restore_one(target, one_trace("none", "homeless"), IdMap())
    assert (result.action, [problem.code for problem in result.problems]) == ("failed", ["not-restored"])


# -- limits ------------------------------------------------------------------------------------------------------------


def test_limits_are_told_before(target: MlflowServer) -> None:
    """What a server cuts, alters or refuses is told without sending anything; an ordinary trace has no such problem."""
    common: dict[str, Any] = {"assessment_name": "x", "assessment_type": "feedback"}
    awkward = one_trace(
        "1",
        "awkward",
        request_preview="x" * 1_001,
        client_request_id="c" * 51,
        tags=(KeyValue(key="long", value="v" * 8_001),),
        assessments=(
            Assessment(assessment_id="a-invalid", valid=False, value="1", **common),
            Assessment(assessment_id="a-infinite", value="Infinity", **common),
            Assessment(assessment_id="a-huge", value=f'{{"a": {2**53 + 1}}}', **common),
            Assessment(assessment_id="a-run", value="1", run_id="r" * 32, **common),
        ),
    )
    assert isinstance(awkward.record, Trace)
    with writer_to(target) as writer:
        found = [problem.message for problem in writer.cannot_hold(awkward.record)]
        plain = one_trace("1", "plain", span_text()).record
        assert isinstance(plain, Trace)
        assert writer.cannot_hold(plain) == []
    for part in ("request preview", "client request id", "'long'", "a-invalid", "a-infinite", "a-huge", "a-run"):
        assert sum(part in message for message in found) == 1, part


def test_what_cannot_be_held_is_handled(target: MlflowServer, place: tuple[str, IdMap]) -> None:
    """The rest of such a trace is restored: texts are cut, impossible assessments are left out, nothing else is touched."""
    experiment, ids = place
    common: dict[str, Any] = {"assessment_name": "x", "assessment_type": "feedback", "source_type": "CODE", "source_id": "s"}
    times: dict[str, Any] = {"create_time": 1_000, "last_update_time": 2_000}
    plan = one_trace(
        experiment,
        "cut",
        span_text(),
        request_preview="x" * 1_001,
        trace_metadata=(KeyValue(key="long", value="v" * 300),),
        assessments=(
            Assessment(assessment_id="a-cut-infinite", value="Infinity", **common, **times),
            Assessment(assessment_id="a-cut-invalid", value="1", valid=False, **common, **times),
        ),
    )
    assert isinstance(plan.record, Trace)
    result = restore_one(target, plan, ids)
    assert (result.action, {problem.code for problem in result.problems}) == ("restored", {"cannot-hold"})
    (found,) = all_of(reader_of(target.url), EntityQuery(ids=(plan.record.trace_id,))).values()
    assert found.request_preview == "x" * 1_000
    assert [(one.assessment_id, one.valid) for one in found.assessments] == [("a-cut-invalid", True)]
    assert any("first 250 characters" in note or "the first" in note for note in result.notes)


# -- the form of spans -------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)
# Texts that look like JSON themselves, and JSON in unusual spelling.
texts = st.one_of(
    values.map(dump_span_attribute_value),
    values.map(dump_span_attribute_value).map(dump_span_attribute_value),
    st.lists(st.integers()).map(lambda value: json.dumps(value, separators=(",", ":"))),
    st.dictionaries(st.text(), st.text(), max_size=2).map(json.dumps),
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1).map("k".__add__), texts, max_size=4))
def test_attributes_travel_unchanged(attributes: dict[str, str]) -> None:
    """What MLflow makes of a span that travels is the same text, whatever its attributes are."""
    identity = "0123456789abcdef" * 2
    attributes = {"mlflow.traceRequestId": json.dumps(f"tr-{identity}"), "mlflow.spanType": '"LLM"', **attributes}
    content = span_text(trace_id="ASNFZ4mrze8BI0VniavN7w==", attributes=attributes)
    received = Span.from_otel_proto(otlp_span(f"tr-{identity}", content, keeps_kind=True))
    if hasattr(translation, "strip_otlp_double_encoding"):  # its server calls it, since 3.18
        received._span._attributes = translation.strip_otlp_double_encoding(received._span._attributes)
    stored = json.dumps(translation.translate_span_when_storing(received), cls=TraceJSONEncoder, ensure_ascii=False)
    assert stored.replace(', "kind": "SPAN_KIND_INTERNAL"', "") == content
    assert received.span_type == "LLM"


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"spans": [{"a": 1}, {"b":2}]}', ['{"a": 1}', '{"b":2}']),
        (b'{"spans":[{"a":NaN},  {"b": [1, -Infinity]}], "request": null}', ['{"a":NaN}', '{"b": [1, -Infinity]}']),
        (b'{"request": NaN, "spans": [{"a": 1}]}', ['{"a":1}']),
        (b'{"spans": []}', []),
        (b"{}", []),
    ],
)
def test_texts_of_spans(payload: bytes, expected: list[str]) -> None:
    """Spans are taken out of a payload as they stand, with the bare NaN that Python writes too."""
    assert span_texts(payload) == expected


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b'{"spans": 1}', b'{"spans": NaN}', b'{"status": "busy"}', b'{"x": NaN}', b"\xff"]
)
def test_what_is_no_payload(payload: bytes) -> None:
    """Anything else raises ValueError, which becomes a problem."""
    with pytest.raises(ValueError):
        span_texts(payload)


def test_a_foreign_trace_id_does_not_travel() -> None:
    """A span of another OpenTelemetry trace than its trace's id says cannot take OTLP."""
    with pytest.raises(UnspeakableError, match="id of a trace"):
        otlp_span("tr-" + "0" * 32, span_text(trace_id="ASNFZ4mrze8BI0VniavN7w=="), keeps_kind=True)


def test_the_kind_of_a_span_travels_where_it_is_kept() -> None:
    """Servers keep it since 3.18; that of most spans is what all spans of earlier releases are."""
    identity = "0123456789abcdef" * 2
    plain = span_text(trace_id="ASNFZ4mrze8BI0VniavN7w==", attributes={"mlflow.traceRequestId": json.dumps(f"tr-{identity}")})
    usual, client = (json.dumps({**json.loads(plain), "kind": f"SPAN_KIND_{kind}"}) for kind in ("INTERNAL", "CLIENT"))
    assert [otlp_span(f"tr-{identity}", text, keeps_kind=False).kind for text in (plain, usual)] == [1, 1]
    assert otlp_span(f"tr-{identity}", client, keeps_kind=True).kind == 3
    with pytest.raises(UnspeakableError, match=r"before 3\.18"):
        otlp_span(f"tr-{identity}", client, keeps_kind=False)
    with pytest.raises(UnspeakableError, match="not in the form"):
        otlp_span(f"tr-{identity}", plain.replace('"name"', '"kind": "OTHER", "name"', 1), keeps_kind=True)
    assert same_span(plain, usual)
    assert not same_span(plain, client)
