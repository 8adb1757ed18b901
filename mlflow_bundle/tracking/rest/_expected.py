"""What an archived run becomes at a server that gives new ids: the requests that make it, and what must be read back."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
from msgspec import UNSET

from mlflow_bundle.kinds import PARENT_TAG
from mlflow_bundle.records import DatasetInput, KeyValue, Run
from mlflow_bundle.tracking._compare import record_differences
from mlflow_bundle.tracking._port import SOURCE_TAG_PREFIX, PlannedRun
from mlflow_bundle.tracking.rest._limits import RUN_NAME_CHARS, Limits

__all__ = ["COMPLETE", "DIGEST_TAG", "RESTORE_TAG", "STARTED", "Expected", "completion", "expect", "keep_earlier", "packed"]

#: The journal of a restore: started, then complete when everything was read back and compared.
RESTORE_TAG: Final = "mlflow_bundle.restore"
STARTED: Final = "started"
COMPLETE: Final = "complete"
#: What a complete restore noted of the content that it had: the digest of a ``PlannedRun`` or ``PlannedEntity``. What this
#: tool has made and completed has it; what was at the target before has not, and so keeps what it has.
DIGEST_TAG: Final = SOURCE_TAG_PREFIX + "digest"

_RUN_NAME: Final = "mlflow.runName"
#: What a server writes itself into the columns that no endpoint sets.
_COLUMNS: Final = {
    "deleted_time": UNSET,
    "source_type": "UNKNOWN",
    "source_name": "",
    "entry_point_name": "",
    "source_version": "",
}
_BATCH_ITEMS: Final = 100
#: MLflow documents 1 MB a request; some servers enforce it.
BATCH_BYTES: Final = 900_000


@dataclass(slots=True)
class Expected:
    """A run as it has to be at the server. ``notes`` say what differs from the archive on purpose."""

    record: Run
    name_tag: bool
    """Whether the run keeps the tag ``mlflow.runName``, which a server adds on its own."""
    notes: list[str] = field(default_factory=list)
    known_params: frozenset[str] = frozenset()
    """Keys of the params that the run has at the server already."""

    def first_tags(self) -> list[KeyValue]:
        """The tags that the run is created with, the journal first."""
        return next(packed(self.record.tags))

    def create(self) -> dict[str, Any]:
        """The body of ``runs/create``."""
        run = self.record
        return {
            "experiment_id": run.experiment_id,
            "run_name": run.run_name,
            "user_id": run.user_id,
            "start_time": run.start_time,
            "tags": self.first_tags(),
        }

    def log_batches(self, *, all_tags: bool) -> Iterator[dict[str, list[KeyValue]]]:
        """The params and tags of ``runs/log-batch`` requests; without ``all_tags`` those that the run was not created with.
        Params that it has are left out: no request changes one, and reading back finds those that differ."""
        for batch in packed([param for param in self.record.params if param.key not in self.known_params]):
            yield {"params": batch}
        sent = set() if all_tags else {tag.key for tag in self.first_tags()}
        for batch in packed([tag for tag in self.record.tags if tag.key not in sent and tag.key != _RUN_NAME]):
            yield {"tags": batch}

    def update(self) -> dict[str, Any]:
        """The fields of ``runs/update``, empty where a new run is like that already."""
        run = self.record
        fields: dict[str, Any] = {} if run.status == "RUNNING" else {"status": run.status}
        if run.end_time is not UNSET:
            fields["end_time"] = run.end_time
        return fields

    def compare(self, found: Run) -> tuple[list[str], list[str]]:
        """What the server's run lacks or has differently, and what it has besides, one sentence each."""
        tags = {tag.key for tag in self.record.tags} | {DIGEST_TAG}
        params = {param.key for param in self.record.params}
        datasets = {_identity(entry) for entry in self.record.inputs}
        besides = [f"the tag {tag.key!r}" for tag in found.tags if tag.key not in tags]
        besides += [f"the param {param.key!r}" for param in found.params if param.key not in params]
        besides += [f"the dataset {entry.dataset.name!r}" for entry in found.inputs if _identity(entry) not in datasets]
        ours = msgspec.structs.replace(
            found,
            tags=tuple(tag for tag in found.tags if tag.key in tags and tag.key != DIGEST_TAG),
            params=tuple(param for param in found.params if param.key in params),
            inputs=tuple(entry for entry in found.inputs if _identity(entry) in datasets),
        )
        wanted = msgspec.structs.replace(self.record, run_id=found.run_id, artifact_uri=found.artifact_uri)
        return record_differences(wanted, ours), [f"the run at the target has {what} besides" for what in besides]


def _identity(entry: DatasetInput) -> tuple[str, str]:
    return entry.dataset.name, entry.dataset.digest


def expect(planned: PlannedRun, limits: Limits, bundle_id: str) -> Expected:
    """What ``planned`` becomes at a server with these limits; what it cannot hold is left out."""
    run = planned.source
    tags = {tag.key: tag.value for tag in run.tags if limits.tag(tag) is None}
    notes: list[str] = []
    absent = [name for name in ("run_name", "user_id", "status", "start_time") if getattr(run, name) is UNSET]
    name = (run.run_name or tags.get(_RUN_NAME) or run.run_id)[:RUN_NAME_CHARS]
    name_tag = _RUN_NAME in tags
    if not run.run_name:
        notes.append(f"a server gives every run a name: this one had none and is {name!r}")
    if name_tag:
        tags[_RUN_NAME] = name
    if absent:
        notes.append("a server cannot leave out " + ", ".join(absent))
    if run.end_time == 0:
        notes.append("a server shows the end time 0 as none")
    ours = _source_tags(run, bundle_id, absent)
    if planned.parent_id is not None and PARENT_TAG in tags:
        ours[SOURCE_TAG_PREFIX + "parent_run_id"] = tags[PARENT_TAG]
        tags[PARENT_TAG] = planned.parent_id
    keep_earlier(tags, ours)
    user = run.user_id or ""
    record = Run(
        run_id="",
        experiment_id=planned.experiment_id,
        run_name=name,
        user_id=user if limits.user(user) is None else "",
        status=run.status or "RUNNING",
        start_time=run.start_time or 0,
        end_time=run.end_time or UNSET,
        params=tuple(param for param in run.params if limits.param(param) is None),
        tags=tuple(KeyValue(key=key, value=value) for key, value in (ours | tags).items()),
        inputs=tuple(_as_kept(entry) for entry in run.inputs if limits.dataset_input(entry) is None),
    )
    return Expected(record, name_tag, notes)


def _source_tags(run: Run, bundle_id: str, absent: Sequence[str]) -> dict[str, str]:
    """The journal tags, and those that carry what no endpoint sets."""
    kept = {
        "run_id": run.run_id,
        "bundle_id": bundle_id,
        "experiment_id": run.experiment_id,
        "lifecycle_stage": run.lifecycle_stage,
    }
    if run.artifact_uri is not UNSET:
        kept["artifact_uri"] = run.artifact_uri
    for column, usual in _COLUMNS.items():
        value = getattr(run, column)
        if value is not UNSET and value != usual:
            kept[column] = str(value)
    if len(run.run_name or "") > RUN_NAME_CHARS:
        kept["run_name"] = str(run.run_name)
    name_tag = next((tag.value for tag in run.tags if tag.key == _RUN_NAME), None)
    if name_tag is not None and run.run_name and name_tag != run.run_name:
        kept["tags." + _RUN_NAME] = name_tag
    if absent:
        kept["absent"] = ",".join(absent)
    return {RESTORE_TAG: STARTED, **{SOURCE_TAG_PREFIX + key: value for key, value in kept.items()}}


def completion(digest: str) -> list[KeyValue]:
    """The tags that say that everything was read back and compared, to be set together and last."""
    return [*([KeyValue(key=DIGEST_TAG, value=digest)] if digest else []), KeyValue(key=RESTORE_TAG, value=COMPLETE)]


def keep_earlier(tags: dict[str, str], ours: dict[str, str]) -> None:
    """What was restored once before has tags of that restore: they move into one tag, as JSON."""
    earlier = {key: tags.pop(key) for key in [*ours, RESTORE_TAG, DIGEST_TAG] if key in tags}
    if earlier:
        ours[SOURCE_TAG_PREFIX + "earlier"] = json.dumps(earlier, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _as_kept(entry: DatasetInput) -> DatasetInput:
    """The input as a server answers it: tags by key, an empty schema or profile absent, absent sources empty."""
    dataset = entry.dataset
    kept = msgspec.structs.replace(
        dataset,
        source_type=dataset.source_type or "",
        source=dataset.source or "",
        schema=dataset.schema or UNSET,
        profile=dataset.profile or UNSET,
    )
    return DatasetInput(dataset=kept, tags=tuple(sorted(entry.tags, key=lambda tag: tag.key)))


def packed(pairs: Sequence[KeyValue]) -> Iterator[list[KeyValue]]:
    """The pairs in batches of at most 100 and 900 kB."""
    batch: list[KeyValue] = []
    size = 0
    for pair in pairs:
        # Every byte may become two when it is escaped.
        length = 2 * len((pair.key + pair.value).encode()) + 32
        if batch and (len(batch) == _BATCH_ITEMS or size + length > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(pair)
        size += length
    if batch:
        yield batch
