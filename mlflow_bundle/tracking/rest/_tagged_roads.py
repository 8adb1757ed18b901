"""The registries of MCP servers and of skills at a server: what has tags, what has versions and aliases, and versions."""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import Any, ClassVar, Final
from urllib.parse import quote

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from mlflow_bundle.entities import KeyValue
from mlflow_bundle.kinds import full_name
from mlflow_bundle.tracking._port import DIFFERS, EntityResult, IdMap
from mlflow_bundle.tracking._rest import RefusedError
from mlflow_bundle.tracking.rest._config_write import Road
from mlflow_bundle.tracking.rest._expected import COMPLETE, RESTORE_TAG, STARTED, keep_earlier
from mlflow_bundle.tracking.rest._features import API3
from mlflow_bundle.tracking.rest._registry_common import RESERVED_ALIAS
from mlflow_bundle.tracking.rest._road import Server, not_restored, tag_map

__all__ = ["LATEST", "USERS", "OwnerRoad", "TaggedRoad", "VersionRoad", "aliased", "asked", "plain", "quoted"]

USERS: Final = frozenset({"created_by", "last_updated_by"})
LATEST: Final = "latest"
_KEPT: Final = ("workspace", "created_by", "created_at", "last_updated_by", "last_updated_at")
#: What a version becomes one after the other.
_STATUSES: Final = ("draft", "active", "deprecated")


class TaggedRoad(Road):
    """What has tags: they say where it comes from, what no endpoint sets, and how far the restore has come."""

    given = Road.given | USERS
    anew = ""

    def place(self, record: Any) -> str:
        """Where the entity is, below the path of the API."""
        raise NotImplementedError

    def kept(self, record: Any) -> tuple[str, ...]:  # noqa: ARG002
        """The members that no endpoint sets, which become tags."""
        return _KEPT

    def expected(self, record: Any, ids: IdMap) -> Any:  # noqa: ARG002
        tags = tag_map(record.tags)
        ours = {RESTORE_TAG: COMPLETE, **self.server.source_tags(record, *self.kept(record))}
        keep_earlier(tags, ours)
        pairs = sorted((tags | ours).items())
        return replace(record, tags=tuple(KeyValue(key=key, value=value) for key, value in pairs))

    def tag(self, record: Any, key: str, value: str) -> None:
        """Set one tag."""
        self.server.post(f"{self.place(record)}/tags", {"key": key, "value": value}, api=API3)

    def change(self, record: Any, changes: dict[str, Any]) -> None:
        """Change members of the entity."""
        self.server.post(self.place(record), changes, method="PATCH", api=API3)

    def tag_missing(self, wanted: Any, there: dict[str, str]) -> bool:
        """Set the tags that are not there, that of the completed restore at last."""
        missing = [tag for tag in wanted.tags if tag.key not in there and tag.key != RESTORE_TAG]
        for tag in missing:
            self.tag(wanted, tag.key, tag.value)
        if there.get(RESTORE_TAG) != COMPLETE:
            self.tag(wanted, RESTORE_TAG, COMPLETE)
            return True
        return bool(missing)


class OwnerRoad(TaggedRoad):
    """What has versions. Aliases are set with the versions that they name, which come later."""

    #: The path of the registry, and what messages call its entities.
    registry: ClassVar[str]
    noun: ClassVar[str]
    #: Members that are texts.
    texts: ClassVar[tuple[str, ...]] = ("description",)

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        #: The aliases of each version of each entity.
        self.aliases: dict[tuple[str, str | int], list[str]] = {}
        #: The version that each alias of each entity names.
        self.named: dict[tuple[str, str], str | int] = {}
        #: Entities that this restore or an interrupted one has made, and whose versions are on their way.
        self.unfinished: dict[str, Any] = {}

    def place(self, record: Any) -> str:
        return f"{self.registry}/{quoted(full_name(record))}"

    def key(self, record: Any) -> Hashable:
        return full_name(record)

    def expected(self, record: Any, ids: IdMap) -> Any:
        for alias in record.aliases:
            self.named[full_name(record), alias.alias] = alias.version
            aliases = self.aliases.setdefault((full_name(record), alias.version), [])
            if alias.alias not in aliases:
                aliases.append(alias.alias)
        return super().expected(record, ids)

    def bare(self, record: Any) -> Any:
        record = super().bare(record)
        tags = tuple(tag for tag in record.tags if tag.key != RESTORE_TAG)  # it is set at last
        return replace(record, icons=_icons(record), description=record.description or UNSET, aliases=(), tags=tags)

    def request(self, wanted: Any) -> dict[str, Any]:
        """The body of the request that makes the entity."""
        body: dict[str, Any] = {"name": wanted.name}
        if isinstance(wanted.description, str):
            body["description"] = wanted.description
        if isinstance(icons := _icons(wanted), str):
            body["icons"] = json.loads(icons)
        return body

    def create(self, wanted: Any, result: EntityResult) -> None:  # noqa: ARG002
        body = self.request(wanted)
        self.make(self.registry, body, wanted, api=API3)
        self.tag(wanted, RESTORE_TAG, STARTED)
        more = {name: value for name in self.texts if name not in body and isinstance(value := getattr(wanted, name), str)}
        if more:
            self.change(wanted, more)
        self.tag_missing(wanted, {RESTORE_TAG: COMPLETE})
        self.unfinished[full_name(wanted)] = wanted

    def complete(self, wanted: Any, found: Any) -> bool:
        lacking: dict[str, Any] = {
            name: value
            for name in self.texts
            if isinstance(value := getattr(wanted, name), str) and getattr(found, name) is UNSET
        }
        if isinstance(icons := _icons(wanted), str) and found.icons is UNSET:
            lacking["icons"] = json.loads(icons)
        if lacking:
            self.change(wanted, lacking)
        tags = tag_map(found.tags)
        known = COMPLETE if RESTORE_TAG in tags else ""  # one that this tool has made is complete when ``finish`` says so
        return self.tag_missing(wanted, {**tags, RESTORE_TAG: known}) or bool(lacking)

    def settle(self, wanted: Any, result: EntityResult) -> None:  # noqa: ARG002
        """Know the entities that an interrupted restore has made."""
        found = self.server.get(self.place(wanted), api=API3)
        if found.get("tags", {}).get(RESTORE_TAG) == STARTED:
            self.unfinished[full_name(wanted)] = wanted

    def finish(self) -> list[EntityResult]:
        """Say of the entities that were made that their versions are there too, and of aliases that their versions are not."""
        results = []
        for (name, version), aliases in self.aliases.items():
            told = [f"the alias {alias!r} of {name!r} names version {version}, which was not restored" for alias in aliases]
            results.append(EntityResult(kind=self.kind, source_id=name, notes=told))
        self.aliases.clear()
        for name, wanted in self.unfinished.items():
            results.append(EntityResult(kind=self.kind, source_id=name))
            self.server.guard(results[-1], lambda wanted=wanted: self.tag(wanted, RESTORE_TAG, COMPLETE))  # type: ignore[misc]
        self.unfinished.clear()
        return results


class VersionRoad(TaggedRoad):
    """Versions. A server makes them drafts or active; what is deprecated was active before."""

    def __init__(self, server: Server, owners: OwnerRoad) -> None:
        super().__init__(server)
        self._owners = owners

    def place(self, record: Any) -> str:
        return f"{self._owners.place(record)}/versions/{quoted(str(record.version))}"

    def key(self, record: Any) -> Hashable:
        return full_name(record), record.version

    def buried(self, record: Any) -> bool:
        return bool(record.status == "deleted")

    def advance(self, wanted: Any, status: str) -> bool:
        """Bring a version that has this status to its own one."""
        steps = _STATUSES[_step(status) + 1 : _step(wanted.status) + 1]
        for step in steps:
            self.change(wanted, {"status": step})
        return bool(steps)

    def complete(self, wanted: Any, found: Any) -> bool:
        tags = tag_map(found.tags)
        # Only an interrupted restore is finished: what somebody has changed since then, or has made himself, stays.
        broken = tags.get(RESTORE_TAG, STARTED if full_name(wanted) in self._owners.unfinished else "") == STARTED
        changed = broken and self.advance(wanted, str(found.status))
        return self.tag_missing(wanted, tags) or changed

    def settle(self, wanted: Any, result: EntityResult) -> None:
        """Set the aliases of the version; one that names another version at the target stays."""
        name = full_name(wanted)
        for alias in self._owners.aliases.pop((name, wanted.version), []):
            if self.reserved(alias) or self.buried(wanted):
                result.notes.append(f"the alias {alias!r} of {name!r} cannot be set: it is reserved, or its version deleted")
                continue
            there = aliased(self.server, self._owners.place(wanted), alias)
            if there is None:
                body = {"alias": alias, "version": wanted.version}
                self.server.post(f"{self._owners.place(wanted)}/aliases", body, api=API3)
                if aliased(self.server, self._owners.place(wanted), alias) != str(wanted.version):
                    result.problems.append(not_restored(result, f"the alias {alias!r} was not read back", code=DIFFERS))
                    result.action = "failed"
            elif there != str(wanted.version):
                result.keeps(f"the {self._owners.noun} {name!r} keeps its own alias {alias!r}")

    def reserved(self, alias: str) -> bool:
        """Whether the server keeps this alias for itself."""
        return RESERVED_ALIAS.fullmatch(alias) is not None


def aliased(server: Server, place: str, alias: str) -> str | None:
    """The version that an alias names at the target."""
    found = asked(server, f"{place}/aliases/{quoted(alias)}")
    return None if found is None else str(found["version"])


def asked(server: Server, path: str) -> dict[str, Any] | None:
    """What the target has at a path, None where there is nothing."""
    try:
        found: dict[str, Any] = server.get(path, api=API3)
    except RefusedError as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return found


def _icons(record: Any) -> str | UnsetType:
    """The icons in one spelling. A database has JSON for none too, which a server does not tell from nothing."""
    icons = plain(record.icons)
    return UNSET if icons in ("null", "[]") else icons


def plain(text: str | UnsetType) -> str | UnsetType:
    """A JSON text in one spelling: a server does not keep the order of members."""
    return json.dumps(json.loads(text), sort_keys=True) if isinstance(text, str) else text


def quoted(name: str) -> str:
    """A name within a path."""
    return quote(name, safe="/@")


def _step(status: Any) -> int:
    return _STATUSES.index(status) if status in _STATUSES else 0
