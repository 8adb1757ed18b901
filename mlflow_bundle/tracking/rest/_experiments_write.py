"""Experiments at a server: made, or given the tags that they lack, deleted, and read back at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec import UNSET

from mlflow_bundle._codec import encode
from mlflow_bundle._digests import hex_of
from mlflow_bundle.errors import ServerError
from mlflow_bundle.records import Experiment, KeyValue, Problem
from mlflow_bundle.tracking._port import DIFFERS, SOURCE_TAG_PREFIX, EntityResult, TargetExperiment
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.rest._answers import experiments
from mlflow_bundle.tracking.rest._expected import DIGEST_TAG, keep_earlier
from mlflow_bundle.tracking.rest._limits import Limits
from mlflow_bundle.tracking.rest._road import tag_map

__all__ = ["ExperimentWriter"]

_KIND: Final = "experiment"
#: Of the source tags those that say which archived experiment it is.
_IDENTITY: Final = ("bundle_id", "experiment_id")
_STAGES: Final = {"active": "experiments/restore", "deleted": "experiments/delete"}


@dataclass(slots=True)
class _Placed:
    """An experiment as it has to be at the target in the end. ``stage`` is empty where that is the target's business."""

    source_id: str
    name: str
    tags: dict[str, str]
    stage: str = ""


class ExperimentWriter:
    """Writes experiments to a server. ``tell`` takes notes of what existing ones keep."""

    def __init__(self, client: RestClient, *, limits: Limits, bundle_id: str, tell: Callable[[str], None]) -> None:
        self._client, self._limits, self._bundle_id, self._tell = client, limits, bundle_id, tell
        self._placed: dict[str, _Placed] = {}

    def place(self, experiment: Experiment, *, name: str, existing: TargetExperiment | None) -> str:
        """Create the experiment, or add the tags that an existing one lacks. Returns its id at the target.

        One that this tool made of another snapshot gets the values of this one. Apart from that, tags of an existing
        experiment are never changed: a difference becomes a note.
        """
        digest = hex_of(encode(experiment))
        tags = {tag.key: tag.value for tag in experiment.tags if self._limits.experiment_tag(tag) is None}
        ours = self._source_tags(experiment)
        keep_earlier(tags, ours)
        tags |= ours
        made = {**tags, DIGEST_TAG: digest}
        there = self._create(name, made) if existing is None else existing.experiment_id
        placed = self._placed[there] = _Placed(experiment.experiment_id, name, made)
        if existing is None:
            return there
        if existing.lifecycle_stage == "deleted":
            self.set_stage(there, "active")
        present = tag_map(self._get(there).get("tags", []))
        # What another archive restored is somebody else's, whatever its name is.
        is_ours = all(present.get(SOURCE_TAG_PREFIX + key) == ours[SOURCE_TAG_PREFIX + key] for key in _IDENTITY)
        is_old = is_ours and present.get(DIGEST_TAG, digest) != digest
        placed.tags = made if is_old else dict(tags)
        # The digest comes last: where this is interrupted, the next restore does it again.
        for key, value in (made if is_old else tags).items():
            if key not in present or (is_old and present[key] != value):
                self._post("experiments/set-experiment-tag", {"experiment_id": there, "key": key, "value": value})
            elif present[key] != value:
                self._tell(f"the experiment {existing.name!r} keeps its own value of the tag {key!r}")
                del placed.tags[key]
        return there

    def set_stage(self, experiment_id: str, stage: str) -> None:
        """Delete or restore an experiment."""
        try:
            self._post(_STAGES[stage], {"experiment_id": experiment_id})
        except RefusedError:
            # A request that was repeated finds that its first try has done it.
            if self._get(experiment_id).get("lifecycle_stage") != stage:
                raise

    def finished(self, experiment: Experiment, experiment_id: str) -> None:
        """Say that the experiment has its archived state from now on."""
        if experiment_id in self._placed:
            self._placed[experiment_id].stage = experiment.lifecycle_stage

    def check(self) -> list[EntityResult]:
        """Read all experiments that were placed back; what differs is a problem."""
        placed, self._placed = self._placed, {}
        found = {experiment.experiment_id: experiment for experiment in experiments(self._client)} if placed else {}
        results = []
        for there, wanted in placed.items():
            result = EntityResult(kind=_KIND, source_id=wanted.source_id, target_id=there)
            for difference in _differences(wanted, found.get(there)):
                message = f"experiment {wanted.name!r}: {difference}"
                of = (wanted.source_id,)
                result.problems.append(Problem(code=DIFFERS, message=message, kind=_KIND, id=wanted.source_id, experiments=of))
                result.action = "failed"
            results.append(result)
        return results

    def _source_tags(self, experiment: Experiment) -> dict[str, str]:
        kept: dict[str, object] = {
            "experiment_id": experiment.experiment_id,
            "bundle_id": self._bundle_id,
            "creation_time": experiment.creation_time,
            "last_update_time": experiment.last_update_time,
            "lifecycle_stage": experiment.lifecycle_stage,
            "artifact_location": experiment.artifact_location,
            "workspace": experiment.workspace if experiment.workspace != "default" else UNSET,
        }
        for tag in experiment.tags:
            if tag.key == "mlflow.trace.archiveNow":
                kept["tags." + tag.key] = tag.value
        return {SOURCE_TAG_PREFIX + key: str(value) for key, value in kept.items() if value is not UNSET}

    def _create(self, name: str, tags: Mapping[str, str]) -> str:
        """Create an experiment; when the answer is lost, see whether it is there before asking again."""
        body = {"name": name, "tags": [KeyValue(key=key, value=value) for key, value in tags.items()]}
        try:
            answer = self._client.post_json(f"{API}experiments/create", body)
        except RefusedError as error:
            if error.error_code == "RESOURCE_ALREADY_EXISTS":
                # The first try of a repeated request may have made it, under the tags that it sent.
                return self._made_by_us(name, tags, error)
            raise
        return str(answer["experiment_id"])

    def _made_by_us(self, name: str, tags: Mapping[str, str], error: ServerError) -> str:
        answer = self._client.get_json(f"{API}experiments/get-by-name", {"experiment_name": name})["experiment"]
        if tag_map(answer.get("tags", [])) != tags:
            raise error
        return str(answer["experiment_id"])

    def _get(self, experiment_id: str) -> dict[str, Any]:
        answer: dict[str, Any] = self._client.get_json(f"{API}experiments/get", {"experiment_id": experiment_id})
        found: dict[str, Any] = answer["experiment"]
        return found

    def _post(self, endpoint: str, body: Mapping[str, Any]) -> None:
        self._client.post_json(API + endpoint, body)


def _differences(wanted: _Placed, found: Experiment | None) -> list[str]:
    """What of an experiment is not at the target as it should be."""
    if found is None:
        return ["it was not read back from the target"]
    tags = tag_map(found.tags)
    # Where a tag holds an id, the archived one is kept beside that of the target.
    there = {key: tags.get(SOURCE_TAG_PREFIX + "tags." + key, tags.get(key)) for key in wanted.tags}
    pairs: dict[str, tuple[str, str | None]] = {
        "name": (wanted.name, found.name),
        "lifecycle_stage": (wanted.stage or found.lifecycle_stage, found.lifecycle_stage),
        **{f"the tag {key!r}": (value, there[key]) for key, value in wanted.tags.items()},
    }
    return [
        f"read back from the target: {what} is {actual!r:.60} instead of {expected!r:.60}"
        for what, (expected, actual) in pairs.items()
        if expected != actual
    ]
