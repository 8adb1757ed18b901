"""Where the model of a restored version lies at a server: references rewritten, files of its own in a logged model."""

from __future__ import annotations

import re
from threading import Lock
from typing import Any, Final

from mlflow_bundle.entities import ModelVersion
from mlflow_bundle.tracking._port import SOURCE_TAG_PREFIX, EntityResult, IdMap, OpenBlob, PlannedEntity
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._once import create_once
from mlflow_bundle.tracking.rest._road import SOURCE_BUNDLE, Server, paged, tag_map

__all__ = ["VersionSources"]

#: Where an id stands in the location of artifacts, and what follows the root of these.
_IN_MODEL: Final = re.compile(r"/(m-[0-9a-f]{32})/artifacts(/.*)?$")
_IN_RUN: Final = re.compile(r"/([0-9a-f]{32})/artifacts(/.*)?$")
#: Locations that a server takes only where they are inside the run or the logged model that the version names.
_INSIDE_ONLY: Final = re.compile(r"mlflow-artifacts:|file:|/|[A-Za-z]:\\|[^:]*$")
_CARRIER: Final = SOURCE_TAG_PREFIX + "carrier_of"
#: The experiment that every server has holds what belongs to none.
_CARRIERS: Final = "0"
_MISSING: Final = "RESOURCE_DOES_NOT_EXIST"
_READY: Final = 2
_PAGE: Final = 200


class VersionSources:
    """Finds out the members ``source``, ``model_id`` and ``run_id`` of the request that creates a version."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._lock = Lock()
        self._places: dict[tuple[str, str], str] = {}
        self._carriers: dict[str, str] | None = None

    def of(
        self, plan: PlannedEntity, version: ModelVersion, result: EntityResult, ids: IdMap, open_blob: OpenBlob
    ) -> dict[str, str]:
        """The members; files that are the version's own are sent on the way."""
        run: dict[str, str] = {}
        if version.run_id:
            found = ids.find("run", version.run_id)
            if found is None:
                result.notes.append("versions keep the id of a run that was not restored; it leads nowhere")
            run = {"run_id": found or version.run_id}
        if plan.files or plan.files_lost:
            carrier = self._carry(plan, version, result, open_blob)
            return {**run, "source": f"models:/{carrier}", "model_id": carrier}
        return {**run, **self._reference(str(version.source or ""), run.get("run_id", ""), result, ids)}

    def _reference(self, source: str, run_id: str, result: EntityResult, ids: IdMap) -> dict[str, str]:
        if source.startswith("models:/m-"):
            model = ids.new("logged_model", source.removeprefix("models:/"))
            return {"source": f"models:/{model}", "model_id": model}
        if source.startswith("runs:/"):
            old, _, path = source.removeprefix("runs:/").partition("/")
            run = ids.new("run", old)
            # A server takes such a source only with the run that it names.
            return {"source": f"runs:/{run}/{path}", "run_id": run}
        if (match := _IN_MODEL.search(source)) and (model := ids.find("logged_model", match[1]) or ""):
            return {"source": self._place("logged_model", model) + (match[2] or ""), "model_id": model}
        match = _IN_RUN.search(source)
        if match and (run := ids.find("run", match[1]) or ""):
            return {"source": self._place("run", run) + (match[2] or ""), "run_id": run}
        if run_id and _INSIDE_ONLY.match(source):
            result.notes.append("versions whose files were in a run that was not restored name that run, which leads nowhere")
            return {"source": self.lost(run_id, (match[2] or "") if match else "")}
        return {"source": source}

    def lost(self, run_id: str, path: str = "") -> str:
        """A source that a server takes with this run, whether the run is there or not."""
        return f"runs:/{run_id}/{path.strip('/') or 'model'}"

    def _place(self, kind: str, identity: str) -> str:
        """Where the artifacts of a run or a logged model of the target are; asked once."""
        if (kind, identity) not in self._places:
            if kind == "run":
                info = self._server.get("runs/get", {"run_id": identity})["run"]["info"]
            else:
                info = self._server.get(f"logged-models/{identity}", {"allow_deleted": "true"})["model"]["info"]
            self._places[kind, identity] = info["artifact_uri"]
        return self._places[kind, identity]

    def is_dead(self, body: dict[str, Any]) -> bool:
        """Whether a request names a logged model that is deleted or not there: a server makes no version of it."""
        model = body.get("model_id")
        if not model:
            return False
        try:
            self._server.get(f"logged-models/{model}")
        except RefusedError as error:
            if error.error_code == _MISSING:
                return True
            raise
        return False

    # -- carriers --------------------------------------------------------------------------------------------------

    def is_carried(self, source_id: str, source: str) -> bool:
        """Whether ``source``, that of a version at the target, is the logged model that holds the files of this version."""
        model = self._carrier(source_id)
        return model is not None and source == f"models:/{model}"

    def _carrier(self, source_id: str) -> str | None:
        with self._lock:
            if self._carriers is None:
                self._carriers = self._search()
            return self._carriers.get(source_id)

    def _carry(self, plan: PlannedEntity, version: ModelVersion, result: EntityResult, open_blob: OpenBlob) -> str:
        """A logged model that holds the files of a version whose source was outside of all runs and logged models. The one
        that an interrupted restore made is taken up."""
        model = self._carrier(result.source_id) or self._create_carrier(version, result)
        result.notes.append("versions with files of their own got a logged model in the experiment 0 that holds them")
        info = self._server.get(f"logged-models/{model}")["model"]["info"]
        self._server.send_files(plan, result, self._server.open_store(info["artifact_uri"], model), open_blob)
        self._server.post(f"logged-models/{model}", {"model_id": model, "status": _READY}, method="PATCH")
        return model

    def _create_carrier(self, version: ModelVersion, result: EntityResult) -> str:
        tags = self._server.source_tags(version, "source", "version")
        tags[_CARRIER] = result.source_id
        body = {
            "experiment_id": _CARRIERS,
            "name": re.sub(r"[/:.%\"']", "_", version.name),
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }

        def find() -> Any | None:
            made = self._search().get(result.source_id)
            return None if made is None else {"model": {"info": {"model_id": made}}}

        return str(create_once(self._server.client, "logged-models", body, find)["model"]["info"]["model_id"])

    def _search(self) -> dict[str, str]:
        """The carriers that were made for this archive: id of the version -> logged model."""
        body = {
            "experiment_ids": [_CARRIERS],
            "max_results": _PAGE,
            "filter": f"tags.`{SOURCE_BUNDLE}` = '{self._server.bundle_id}'",
        }
        found: dict[str, str] = {}
        for model in paged(lambda token: self._server.post("logged-models/search", {**body, "page_token": token}), "models"):
            tags = tag_map(model["info"].get("tags", []))
            if _CARRIER in tags:
                found[tags[_CARRIER]] = str(model["info"]["model_id"])
        return found
