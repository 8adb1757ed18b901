"""Scorers at a server, with the numbers that their versions had.

A server counts on from the highest version that it has. Gaps are filled with placeholders, which are deleted when a version
above them is there: they say whose they are, so that those of an interrupted restore are known.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from msgspec import UNSET

from mlflow_bundle.entities import Scorer
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import CANNOT_HOLD, DIFFERS, EntityResult, IdMap, OpenBlob, PlannedEntity, RestoreOptions
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._evaluation_common import API3, NO_IDS, expect, loaded, restored_experiment
from mlflow_bundle.tracking.rest._expected import RESTORE_TAG
from mlflow_bundle.tracking.rest._once import create_once, delete_once
from mlflow_bundle.tracking.rest._road import Server, not_restored

__all__ = ["ScorerWriter", "code_problems"]

Versions = dict[int, dict[str, Any]]


class ScorerWriter:
    """Restores scorers."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def restore(self, planned: Sequence[PlannedEntity], ids: IdMap, _: OpenBlob, options: RestoreOptions) -> list[EntityResult]:
        """Register the versions of each scorer in order."""

        def one(plan: PlannedEntity, result: EntityResult) -> None:
            scorer = cast("Scorer", plan.record)
            experiment = restored_experiment(scorer.experiment_id, result, ids)
            if experiment is None:
                return
            result.target_id = f"{experiment}/{scorer.scorer_name}"
            there = self._restore(scorer, experiment, result)
            scorer_id = next((str(version["scorer_id"]) for version in there.values() if version.get("scorer_id")), None)
            if scorer_id and isinstance(scorer.scorer_id, str):
                ids.add("scorer_id", scorer.scorer_id, scorer_id)
            if result.action != "failed":
                self._online(scorer, experiment, scorer_id, result, options)

        return self._server.each("scorer", planned, one)

    def _versions(self, experiment: str, name: str) -> Versions:
        try:
            found = self._server.get("scorers/versions", {"experiment_id": experiment, "name": name}, api=API3)
        except RefusedError as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return {}
            raise
        return {int(version["scorer_version"]): version for version in found.get("scorers", [])}

    def _restore(self, scorer: Scorer, experiment: str, result: EntityResult) -> Versions:
        """Register the versions that are not there. Returns all versions at the target as they were read last."""
        there = self._versions(experiment, scorer.scorer_name)
        placeholders = {number for number, version in there.items() if self._is_placeholder(version)}
        missing = [version for version in scorer.versions if version.scorer_version not in there]
        highest = max(there, default=0)
        if not missing and not placeholders:
            result.action = "there"
        try:
            for version in missing:
                if version.scorer_version <= highest:
                    message = f"version {version.scorer_version} cannot be registered after version {highest}"
                    result.problems.append(not_restored(result, message, code="version-taken"))
                    result.action = "left out"
                    continue
                while highest + 1 < version.scorer_version:
                    highest = self._register(experiment, scorer.scorer_name, self._placeholder(scorer), highest)
                    placeholders.add(highest)
                highest = self._register(experiment, scorer.scorer_name, version.serialized_scorer, highest)
        finally:
            for number in sorted(placeholders):
                self._delete(experiment, scorer.scorer_name, number)
        found = self._versions(experiment, scorer.scorer_name) if missing or placeholders else there
        for number in sorted(placeholders & found.keys()):
            message = f"version {number}, which held a number free, is not deleted at the target"
            result.problems.append(not_restored(result, message, code=DIFFERS))
            result.action = "failed"
        for version in scorer.versions:
            text = found.get(version.scorer_version, {}).get("serialized_scorer")
            if version in missing or text is None:
                expect(result, f"version {version.scorer_version}", loaded(version.serialized_scorer), loaded(text or UNSET))
            elif loaded(text) != loaded(version.serialized_scorer):
                message = f"the target has another version {version.scorer_version}; numbers are kept exactly"
                result.problems.append(not_restored(result, message, code="version-taken"))
                result.action = "left out"
        result.notes.append(NO_IDS.format("scorers"))
        return found

    def _register(self, experiment: str, name: str, serialized: str, highest: int) -> int:
        """Register the next version after ``highest``; its number."""
        body = {"experiment_id": experiment, "name": name, "serialized_scorer": serialized}

        def find() -> dict[str, Any] | None:
            for number, version in self._versions(experiment, name).items():
                if number > highest and loaded(version.get("serialized_scorer")) == loaded(serialized):
                    return {"version": number}
            return None

        return int(create_once(self._server.client, "scorers/register", body, find, api=API3)["version"])

    def _delete(self, experiment: str, name: str, number: int) -> None:
        body = {"experiment_id": experiment, "name": name, "version": number}
        delete_once(lambda: self._server.post("scorers/delete", body, method="DELETE", api=API3))

    def _placeholder(self, scorer: Scorer) -> str:
        return json.dumps({"name": scorer.scorer_name, RESTORE_TAG: self._server.bundle_id})

    def _is_placeholder(self, version: Mapping[str, Any]) -> bool:
        members = loaded(version.get("serialized_scorer"))
        return isinstance(members, dict) and members.get(RESTORE_TAG) == self._server.bundle_id

    def _online(
        self, scorer: Scorer, experiment: str, scorer_id: str | None, result: EntityResult, options: RestoreOptions
    ) -> None:
        """How the scorer judges new traces. What is set at the target already stays: somebody may have switched it on."""
        if not scorer.online:
            return
        *_, config = scorer.online
        rate = float(config.sample_rate or 0) if options.online_scoring else 0.0
        wanted = rate, config.filter_string or ""
        if result.action == "there" and (there := self._has_online(scorer_id)) is not None:
            if there != wanted:
                result.keeps(f"the scorer {scorer.scorer_name!r} keeps its own online scoring")
            return
        body = {"experiment_id": experiment, "name": scorer.scorer_name, "sample_rate": rate}
        if isinstance(config.filter_string, str):
            body["filter_string"] = config.filter_string
        self._server.post("scorers/online-config", body, method="PUT", api=API3)
        expect(result, "online scoring", wanted, self._has_online(scorer_id))
        if rate != float(config.sample_rate or 0):
            result.notes.append("online scoring is restored with sample rate 0 (--online-scoring restores the rates)")
        if len(scorer.online) > 1:
            result.notes.append("a server takes one way of online scoring for each scorer: of several the last is restored")

    def _has_online(self, scorer_id: str | None) -> tuple[float, str] | None:
        """Sample rate and filter that the scorer has at the target, None where it has none."""
        if scorer_id is None:
            return None
        found = self._server.get("scorers/online-configs", {"scorer_ids": [scorer_id]}, api=API3)
        configs = found.get("configs") or ()
        return next(((float(one.get("sample_rate") or 0), str(one.get("filter_string") or "")) for one in configs), None)


def code_problems(scorer: Scorer) -> list[Problem]:
    """Versions that are program code."""
    code = [version.scorer_version for version in scorer.versions if _is_code(version.serialized_scorer)]
    if not code:
        return []
    message = (
        f"scorer {scorer.scorer_name!r}: its versions {', '.join(map(str, code))} are program code, which a server refuses "
        "unless MLFLOW_SERVER_ENABLE_CUSTOM_SCORERS is set there"
    )
    return [Problem(code=CANNOT_HOLD, kind="scorer", id=record_id(scorer), message=message)]


def _is_code(serialized: str) -> bool:
    members = loaded(serialized)
    return isinstance(members, dict) and members.get("call_source") is not None
