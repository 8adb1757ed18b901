"""The registry of skills read over REST. Versions that are deleted are shown to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mlflow_bundle.entities import Skill, SkillVersion
from mlflow_bundle.tracking.rest._features import API3, SourceServer, Workspaced
from mlflow_bundle.tracking.rest._listing import Answer, json_text, listed, record, registered

__all__ = ["SKILLS", "SkillReader", "skill_versions"]

SKILLS: Final = f"{API3}skills"
_PAGE: Final = 1_000


class SkillReader:
    """The skills of all workspaces of a server, and their versions."""

    def __init__(self, server: SourceServer) -> None:
        self._server = server

    def skills(self) -> Iterator[Skill]:
        """The skills. Status, type and latest version are those of a version, and not archived with the skill."""
        for _, answer in self._skills():
            aliases = sorted(answer.get("aliases") or [], key=lambda alias: str(alias["alias"]))
            yield record(Skill, answer, icons=json_text(answer.get("icons") or None), aliases=aliases, **registered(answer))

    def versions(self) -> Iterator[SkillVersion]:
        """The versions of all skills that are not deleted."""
        for some in self._server.map(lambda skill: skill_versions(*skill), list(self._skills())):
            for answer in some:
                yield record(SkillVersion, answer, **registered(answer))

    def _skills(self) -> Iterator[tuple[Workspaced, Answer]]:
        params, by = {"max_results": _PAGE}, ("organization", "name")
        for workspace in self._server.workspaces:
            yield from ((workspace, answer) for answer in listed(workspace.client, SKILLS, "skills", params, by=by))


def skill_versions(workspace: Workspaced, skill: Answer) -> list[Answer]:
    """The versions of a skill that are not deleted, by number."""
    owner = f"@{skill['organization']}/" if skill["organization"] else ""
    path = f"{SKILLS}/{owner}{skill['name']}/versions"
    return listed(workspace.client, path, "skill_versions", {"max_results": _PAGE}, by=("version",))
