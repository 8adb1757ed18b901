"""Logged models at a server: new ids, ``MLmodel`` rewritten on the way, metrics linked to model and dataset."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import pyarrow as pa
from msgspec import UNSET

from mlflow_bundle._digests import file_hex, hex_of
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import KeyValue, LoggedModel, Run
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import (
    CANNOT_HOLD,
    DIFFERS,
    SOURCE_TAG_PREFIX,
    EntityResult,
    IdMap,
    OpenBlob,
    PlannedEntity,
    RestoreOptions,
)
from mlflow_bundle.tracking.rest._answers import chunks
from mlflow_bundle.tracking.rest._expected import COMPLETE, DIGEST_TAG, RESTORE_TAG, STARTED, completion, keep_earlier
from mlflow_bundle.tracking.rest._model_links import ModelLinks, WritableRuns
from mlflow_bundle.tracking.rest._once import create_once, delete_once
from mlflow_bundle.tracking.rest._road import Server, files_besides, lost_file, not_restored, paged, tag_map

__all__ = ["LoggedModelWriter"]

_SOURCE_ID: Final = SOURCE_TAG_PREFIX + "model_id"
#: A deleted model is not found by a search: the experiment remembers what it became, under this and the archived id.
_DELETED: Final = SOURCE_TAG_PREFIX + "deleted_logged_model."
#: A server writes it when versions are made of the model.
_VERSIONS: Final = "mlflow.modelVersions"
_KEPT: Final = (
    "model_id",
    "creation_timestamp_ms",
    "last_updated_timestamp_ms",
    "status_message",
    "artifact_uri",
    "source_run_id",
)
_STATUS: Final = {"PENDING": 1, "READY": 2, "FAILED": 3}
_MLMODEL: Final = "MLmodel"
_MLMODEL_LINE: Final = re.compile(r"^(run_id|model_id|artifact_path):[ \t]*(\S.*)$", re.MULTILINE)
_PARAMS: Final = 100
_METRICS: Final = 1_000
_PAGE: Final = 200
_ADDED: Final = "metrics of logged models that their runs lack in the archive are added to these runs: a server has no others"
#: Models that are read back with one request: they bring all their metrics.
_COMPARED: Final = 50


@dataclass(frozen=True, slots=True)
class _There:
    """A model of this archive at the target. ``complete``: an earlier restore finished it, but perhaps for its deletion, with
    the content that ``digest`` stands for."""

    model_id: str
    complete: bool
    deleted: bool = False
    digest: str = ""


@dataclass(slots=True)
class _Job:
    """A model on its way."""

    plan: PlannedEntity
    result: EntityResult
    experiment: str = ""
    done: bool = False

    @property
    def model(self) -> LoggedModel:
        """The archived record."""
        return cast("LoggedModel", self.plan.record)

    @property
    def there(self) -> str:
        """The id at the target."""
        assert self.result.target_id is not None
        return self.result.target_id

    def is_done(self, known: _There | None) -> bool:
        """Whether an earlier restore has finished this model, with the content that it has now."""
        return known is not None and known.complete and known.digest == self.plan.digest


class LoggedModelWriter:
    """Restores logged models, and the inputs and outputs of runs that name them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._runs = WritableRuns(server)
        self._links = ModelLinks(server, self._runs)
        self._known: dict[str, dict[str, _There]] = {}

    def cannot_hold(self, model: LoggedModel) -> list[Problem]:
        """Names that a server refuses; a database may have them."""
        if model.name and any(character in model.name for character in "/:.%\"'"):
            message = f"logged model {model.model_id}: the server takes no name like {model.name!r}"
            return [Problem(code=CANNOT_HOLD, kind="logged_model", id=model.model_id, message=message)]
        return []

    def restore(
        self, planned: Sequence[PlannedEntity], ids: IdMap, open_blob: OpenBlob, _: RestoreOptions
    ) -> list[EntityResult]:
        """Create, fill and finalize each model, read all of them back, and mark them complete. Those that an earlier restore
        completed with the same content are left alone; with other content, they get what they lack."""
        placed = {ids.find("experiment", _model(plan).experiment_id) for plan in planned} - {None}
        for experiment in sorted(cast("set[str]", placed) - self._known.keys()):
            self._known[experiment] = self._restored_in(experiment)
        jobs: dict[str, _Job] = {}

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            job = jobs[result.source_id] = _Job(plan, result)
            self._restore(job, ids, open_blob)

        results = self._server.each("logged_model", planned, one)
        made = [job for job in jobs.values() if not job.done and job.result.action != "failed"]
        self._compare_all(made, ids)
        self._guarded(self._complete, [job for job in made if job.result.action != "failed"])
        gone = [job for job in jobs.values() if job.model.lifecycle_stage == "deleted" and job.result.action == "restored"]
        for model_id in self._shown(gone):
            job = next(job for job in gone if job.there == model_id)
            message = f"the model {model_id} is not deleted at the target"
            job.result.problems.append(not_restored(job.result, message, code=DIFFERS))
            job.result.action = "failed"
        for result in results:
            if result.target_id is not None:
                ids.add("logged_model", result.source_id, result.target_id)
        return results

    def _guarded(self, step: Callable[[_Job], None], jobs: Sequence[_Job]) -> None:
        """Do a step of every job with the threads."""

        def guarded(job: _Job) -> None:
            self._server.guard(job.result, lambda: step(job))

        for _ in bounded_map(self._server.executor, guarded, jobs, self._server.window):
            pass

    def _restored_in(self, experiment_id: str) -> dict[str, _There]:
        """Archived models that the experiment has already, by archived id."""
        found: dict[str, _There] = {}
        experiment = self._server.get("experiments/get", {"experiment_id": experiment_id})["experiment"]
        for key, value in tag_map(experiment.get("tags", [])).items():
            if key.startswith(_DELETED):
                model_id, _, digest = value.partition(" ")
                found[key.removeprefix(_DELETED)] = _There(model_id, complete=True, deleted=True, digest=digest)
        # What a search shows is not deleted, whatever the experiment says.
        for model in self._search([experiment_id], f"tags.`{_SOURCE_ID}` LIKE '%'"):
            tags = tag_map(model["info"].get("tags", []))
            if (archived := self._server.archived_id(tags, _SOURCE_ID)) is not None:
                complete, digest = tags.get(RESTORE_TAG) == COMPLETE, tags.get(DIGEST_TAG, "")
                found[archived] = _There(model["info"]["model_id"], complete, digest=digest)
        return found

    def _search(self, experiment_ids: Sequence[str], text: str) -> Iterator[dict[str, Any]]:
        body = {"experiment_ids": experiment_ids, "max_results": _PAGE, "filter": text}
        return paged(lambda token: self._server.post("logged-models/search", {**body, "page_token": token}), "models")

    def _restore(self, job: _Job, ids: IdMap, open_blob: OpenBlob) -> None:
        model, result = job.model, job.result
        experiment = ids.find("experiment", model.experiment_id)
        if experiment is None:
            result.action = "failed"
            result.problems.append(not_restored(result, f"its experiment {model.experiment_id} was not restored"))
            return
        job.experiment = experiment
        known = self._known[experiment].get(model.model_id)
        if known is not None and known.deleted and not job.is_done(known):
            result.target_id, job.done = known.model_id, True
            self._compare_deleted(job, ids)
            return
        if known is not None and job.is_done(known):
            result.target_id, job.done = known.model_id, True
            if model.lifecycle_stage == "deleted" and not known.deleted:
                self._delete(job)
            else:
                result.action = "there"
            return
        made = self._create(job, ids) if known is None else self._get(known.model_id)
        result.target_id = made["info"]["model_id"]
        self._known[experiment][model.model_id] = _There(job.there, complete=False)
        if known is not None:
            self._take_up(job)
            if known.complete:
                result.notes.append("a logged model of an earlier restore was brought up to date")
                store = partial(self._server.open_store, str(made["info"].get("artifact_uri", "")), known.model_id)
                result.notes += files_besides("the logged model", store, job.plan.files)
        self._send_params(model, made)
        self._send_files(job.plan, result, made, ids, open_blob)
        self._send_metrics(job.plan, result, made, ids)
        if status := _STATUS.get(model.status or ""):
            self._server.post(f"logged-models/{job.there}", {"model_id": job.there, "status": status}, method="PATCH")

    def _compare_deleted(self, job: _Job, ids: IdMap) -> None:
        """Of a model that is deleted at the target nothing can be changed: what differs from this snapshot is a problem."""
        messages = [] if job.model.lifecycle_stage == "deleted" else ["the archive has it active"]
        messages += _differences(job, self._get(job.there), ids)
        for message in messages:
            text = f"it is deleted at the target, where it cannot be changed: {message}"
            job.result.problems.append(not_restored(job.result, text, code=DIFFERS))
        job.result.action = "failed" if messages else "there"
        if not messages:
            self._note_deleted(job)

    def _tags(self, model: LoggedModel) -> list[dict[str, str]]:
        """The tags of a model that is on its way."""
        tags = {tag.key: tag.value for tag in model.tags if tag.key != _VERSIONS}
        ours = {RESTORE_TAG: STARTED, **self._server.source_tags(model, *_KEPT)}
        keep_earlier(tags, ours)
        return [{"key": key, "value": value} for key, value in {**ours, **tags}.items()]

    def _take_up(self, job: _Job) -> None:
        """Give a model that is there its tags, that of an unfinished restore among them."""
        body = {"model_id": job.there, "tags": self._tags(job.model)}
        self._server.post(f"logged-models/{job.there}/tags", body, method="PATCH")

    def _create(self, job: _Job, ids: IdMap) -> dict[str, Any]:
        model = job.model
        body: dict[str, Any] = {
            "experiment_id": job.experiment,
            "name": model.name,
            "model_type": model.model_type,
            "params": model.params[:_PARAMS],
            "tags": self._tags(model),
        }
        if model.source_run_id:
            body["source_run_id"] = ids.new("run", model.source_run_id)
        body = {key: value for key, value in body.items() if value is not UNSET}

        def find() -> dict[str, Any] | None:
            ours = f"tags.`{_SOURCE_ID}` = '{model.model_id}'"
            return next(({"model": found} for found in self._search([job.experiment], ours)), None)

        return cast("dict[str, Any]", create_once(self._server.client, "logged-models", body, find)["model"])

    def _get(self, model_id: str) -> dict[str, Any]:
        answer = self._server.get(f"logged-models/{model_id}", {"allow_deleted": "true"})
        return cast("dict[str, Any]", answer["model"])

    def _send_params(self, model: LoggedModel, made: Mapping[str, Any]) -> None:
        """Those that the model was not created with; a param that is there cannot be sent again."""
        there = {param["key"] for param in made.get("data", {}).get("params", [])}
        missing = [param for param in model.params if param.key not in there]
        for some in chunks(missing, _PARAMS):
            model_id = made["info"]["model_id"]
            self._server.post(f"logged-models/{model_id}/params", {"model_id": model_id, "params": some})

    def _send_files(
        self, plan: PlannedEntity, result: EntityResult, made: Mapping[str, Any], ids: IdMap, open_blob: OpenBlob
    ) -> None:
        if not plan.files:
            return
        location = str(made["info"].get("artifact_uri", ""))
        store = self._server.open_store(location, made["info"]["model_id"])
        rewritten = [file for file in plan.files if file[0] == _MLMODEL]
        others = PlannedEntity(record=plan.record, files=tuple(file for file in plan.files if file[0] != _MLMODEL))
        self._server.send_files(others, result, store, open_blob)
        for path, _, sha256 in rewritten:
            with lost_file(result, path):
                with open_blob(sha256) as stream:
                    content = rewrite_mlmodel(stream.read(), _model(plan), made["info"]["model_id"], location, ids)
                store.write(path, io.BytesIO(content), len(content))
                with store.open(path) as back:
                    if file_hex(back) != hex_of(content):
                        message = f"the file {path!r} was read back from the target with other content"
                        result.problems.append(not_restored(result, message, code=DIFFERS, path=path))
                        result.action = "failed"
                        continue
                result.files += 1
                result.file_bytes += len(content)

    def _send_metrics(self, plan: PlannedEntity, result: EntityResult, made: Mapping[str, Any], ids: IdMap) -> None:
        """Points that the model does not have yet: a point that is there makes a server refuse the request halfway."""
        if plan.rows is None or not plan.rows.num_rows:
            return
        there = {_identity(metric) for metric in made.get("data", {}).get("metrics", [])}
        for run, points in _points_by_run(plan.rows, made["info"]["model_id"]).items():
            target = ids.find("run", run)
            if target is None:
                message = f"{len(points)} metric points are left out: their run {run} was not restored"
                result.problems.append(not_restored(result, message, code=CANNOT_HOLD))
                continue
            missing = [point for point in points if _identity({**point, "run_id": target}) not in there]
            if missing:
                with self._runs.writable(target) as had:
                    if not had.issuperset(point["key"] for point in missing):
                        result.notes.append(_ADDED)
                    for some in chunks(missing, _METRICS):
                        self._server.post("runs/log-batch", {"run_id": target, "metrics": some})

    def _compare_all(self, jobs: Sequence[_Job], ids: IdMap) -> None:
        """Read the models back; what differs is a problem."""
        found = self._shown(jobs)
        for job in jobs:
            for message in _differences(job, found.get(job.there), ids):
                job.result.problems.append(not_restored(job.result, message, code=DIFFERS))
                job.result.action = "failed"

    def _shown(self, jobs: Sequence[_Job]) -> dict[str, dict[str, Any]]:
        """The models as the target has them, by id there, many asked for at once; it shows no deleted ones."""
        found: dict[str, dict[str, Any]] = {}

        def ask(some: Sequence[_Job]) -> list[dict[str, Any]]:
            wanted = ", ".join(f"'{job.there}'" for job in some)
            return list(self._search(sorted({job.experiment for job in some}), f"model_id IN ({wanted})"))

        for models in bounded_map(self._server.executor, ask, chunks(jobs, _COMPARED), self._server.window):
            found |= {model["info"]["model_id"]: model for model in models}
        return found

    def _complete(self, job: _Job) -> None:
        body = {"model_id": job.there, "tags": completion(job.plan.digest)}
        self._server.post(f"logged-models/{job.there}/tags", body, method="PATCH")
        if job.model.lifecycle_stage == "deleted":
            self._delete(job)

    def _delete(self, job: _Job) -> None:
        self._note_deleted(job)
        body = {"model_id": job.there}
        delete_once(lambda: self._server.post(f"logged-models/{job.there}", body, method="DELETE"))

    def _note_deleted(self, job: _Job) -> None:
        """Note down what the model became, because nobody is shown a deleted one."""
        value = f"{job.there} {job.plan.digest}".rstrip()
        body = {"experiment_id": job.experiment, "key": _DELETED + job.model.model_id, "value": value}
        self._server.post("experiments/set-experiment-tag", body)

    def link_runs(self, runs: Sequence[tuple[Run, str]], ids: IdMap) -> list[EntityResult]:
        """Give runs the model inputs and outputs of their records, as far as they do not have them."""
        return self._links.link_runs(runs, ids)


def _differences(job: _Job, found: Mapping[str, Any] | None, ids: IdMap) -> list[str]:
    """What of the model is not at the target as it should be. The metric points that are there are counted."""
    if found is None:
        return ["it was not read back from the target"]
    model, info, data = job.model, found["info"], found.get("data", {})
    tags, own = tag_map(info.get("tags", [])), tag_map(_own_tags(model))
    wanted: dict[str, tuple[Any, Any]] = {
        "name": (model.name, info.get("name", "")),
        "model_type": (model.model_type or "", info.get("model_type", "")),
        "status": (model.status, str(info.get("status", "")).removeprefix("LOGGED_MODEL_").removeprefix("UPLOAD_")),
        "params": (tag_map(model.params), tag_map(data.get("params", []))),
        "tags": (own, {key: tags.get(key) for key in own}),
    }
    if model.source_run_id:
        wanted["source_run_id"] = (ids.new("run", model.source_run_id), info.get("source_run_id", ""))
    messages = [
        f"read back from the target: {name} is {actual!r:.60} instead of {expected!r:.60}"
        for name, (expected, actual) in wanted.items()
        if expected is not UNSET and expected != actual
    ]
    there = {_identity(metric): _value(metric) for metric in data.get("metrics", [])}
    points = {} if job.plan.rows is None else _points_by_run(job.plan.rows, job.there)
    expected = {
        _identity({**point, "run_id": target}): _value(point)
        for run, some in points.items()
        if (target := ids.find("run", run)) is not None
        for point in some
    }
    job.result.rows = sum(1 for identity, value in expected.items() if there.get(identity) == value)
    if there.keys() - expected.keys():
        job.result.notes.append("a logged model at the target has metric points besides")
    if job.result.rows < len(expected):
        messages.append(f"{job.result.rows} metric points were read back from the target instead of {len(expected)}")
    return messages


def _own_tags(model: LoggedModel) -> list[KeyValue]:
    """The tags that are the model's: not those of a restore, nor the one that a server keeps."""
    ours = (SOURCE_TAG_PREFIX, RESTORE_TAG)
    return [tag for tag in model.tags if tag.key != _VERSIONS and not tag.key.startswith(ours)]


def rewrite_mlmodel(content: bytes, model: LoggedModel, model_id: str, location: str, ids: IdMap) -> bytes:
    """The ``MLmodel`` of a restored model: its ids and place at the target, everything else as it was."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return content

    def line(match: re.Match[str]) -> str:
        name, value = match[1], match[2].strip()
        if name == "model_id" and value == model.model_id:
            return f"model_id: {model_id}"
        if name == "run_id":
            return f"run_id: {ids.new('run', value)}"
        if name == "artifact_path" and isinstance(model.artifact_uri, str) and value == model.artifact_uri:
            return f"artifact_path: {location}"
        return match[0]

    return _MLMODEL_LINE.sub(line, text).encode()


def _model(plan: PlannedEntity) -> LoggedModel:
    return cast("LoggedModel", plan.record)


def _identity(metric: Mapping[str, Any]) -> tuple[str, int, int, str]:
    return metric["key"], int(metric["timestamp"]), int(metric.get("step", 0)), str(metric.get("run_id", ""))


def _value(metric: Mapping[str, Any]) -> tuple[str, str, str]:
    """The value of a point, as text because NaN equals nothing, and its dataset."""
    return repr(float(metric["value"])), metric.get("dataset_name") or "", metric.get("dataset_digest") or ""


def _points_by_run(rows: pa.Table, model_id: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of ``model_metrics/1`` as points of ``runs/log-batch``, by archived run."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in cast("Iterator[dict[str, Any]]", rows.to_pylist()):
        value = row["value"]
        point: dict[str, Any] = {
            "key": row["key"],
            "value": 0.0 if value is None else _json_number(value),
            "timestamp": row["timestamp"],
            "step": row["step"],
            "model_id": model_id,
        }
        if row["dataset_name"] is not None:
            point |= {"dataset_name": row["dataset_name"], "dataset_digest": row["dataset_digest"]}
        found.setdefault(row["run_id"], []).append(point)
    return found


def _json_number(value: float) -> float | str:
    """JSON has no infinities: a server takes their names."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
