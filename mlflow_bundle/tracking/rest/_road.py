"""What the writers of all kinds share: one entity's failure is its own, and what a server gives anew is kept as source tags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from msgspec import UNSET

from mlflow_bundle._digests import file_hex
from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.entities import KeyValue, Record
from mlflow_bundle.errors import AuthError, BundleError, CorruptError, LimitError, NotFoundError, ServerError
from mlflow_bundle.kinds import record_id
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking._port import (
    DIFFERS,
    NOT_RESTORED,
    SOURCE_TAG_PREFIX,
    ArtifactStore,
    EntityResult,
    OpenBlob,
    PlannedEntity,
)
from mlflow_bundle.tracking._rest import API, RestClient
from mlflow_bundle.tracking.rest._once import send_file

__all__ = ["LOST", "SOURCE_BUNDLE", "Server", "files_besides", "lost_file", "not_restored", "paged", "tag_map"]

SOURCE_BUNDLE: Final = SOURCE_TAG_PREFIX + "bundle_id"
#: What reading a damaged content raises.
LOST: Final = (CorruptError, LimitError, NotFoundError)
#: Ids of logged models and evaluation datasets as MLflow makes them.
_MADE_ID: Final = re.compile(r"[md]-[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is written to: its client, threads for at most ``window`` requests at a time, the id of the bundle, and
    ``open_store``, which gives the artifact store at a location (URI, and id for messages)."""

    client: RestClient
    executor: Executor
    window: int
    bundle_id: str
    open_store: Callable[[str, str], ArtifactStore]

    def post(self, endpoint: str, body: Mapping[str, Any], *, method: str = "POST", api: str = API) -> Any:
        """Send JSON to an endpoint below ``api``."""
        return self.client.post_json(api + endpoint, body, method=method)

    def get(self, endpoint: str, params: Mapping[str, Any] | None = None, *, api: str = API) -> Any:
        """Ask an endpoint below ``api``."""
        return self.client.get_json(api + endpoint, params)

    def each(
        self, kind: str, planned: Sequence[PlannedEntity], one: Callable[[PlannedEntity, EntityResult], None]
    ) -> list[EntityResult]:
        """Do ``one`` for every entity with the threads; see ``guard`` for what it raises."""

        def guarded(plan: PlannedEntity) -> EntityResult:
            result = EntityResult(kind=kind, source_id=record_id(plan.record))
            self.guard(result, lambda: one(plan, result))
            return result

        return list(bounded_map(self.executor, guarded, planned, self.window))

    def guard(self, result: EntityResult, step: Callable[[], None]) -> None:
        """Do a step of one entity; a failure is a problem of it, unless the server refuses everything or is gone."""
        try:
            step()
        except BundleError as error:
            if isinstance(error, AuthError) or (isinstance(error, ServerError) and error.status is None):
                raise
            result.action = "failed"
            result.problems.append(not_restored(result, error.message))

    def source_tags(self, record: Record, *fields: str) -> dict[str, str]:
        """The tags that say where an entity comes from, and those ``fields`` of its record that no endpoint sets."""
        kept = {SOURCE_TAG_PREFIX + name: value for name in fields if (value := getattr(record, name)) is not UNSET}
        return {SOURCE_BUNDLE: self.bundle_id, **{key: str(value) for key, value in kept.items()}}

    def archived_id(self, tags: Mapping[str, str], key: str) -> str | None:
        """The id that the entity with these tags has in an archive, where it came from this one, or from any if MLflow made the
        id: of those no two in the world are alike."""
        found = tags.get(key)
        ours = tags.get(SOURCE_BUNDLE) == self.bundle_id or (found is not None and _MADE_ID.fullmatch(found))
        return found if ours else None

    def send_files(
        self,
        plan: PlannedEntity,
        result: EntityResult,
        store: ArtifactStore,
        open_blob: OpenBlob,
    ) -> None:
        """Write the files of an entity, read them back and compare their digests. One that the archive has lost is a problem,
        and the others go on."""
        for path, size, sha256 in plan.files:
            with lost_file(result, path):
                send_file(store, path, size, partial(open_blob, sha256))
                with store.open(path) as stream:
                    found = file_hex(stream)
                if found != sha256:
                    message = f"the file {path!r} was read back from the target with other content"
                    result.problems.append(not_restored(result, message, code=DIFFERS, path=path))
                    result.action = "failed"
                else:
                    result.files += 1
                    result.file_bytes += size


@contextmanager
def lost_file(result: EntityResult, path: str) -> Iterator[None]:
    """A file whose content is damaged is a problem of its owner, which is not complete without it."""
    try:
        yield
    except LOST as error:
        result.problems.append(not_restored(result, f"file {path!r}: {error.message}", code=error.code, path=path))
        result.action = "failed"


def not_restored(result: EntityResult, message: str, *, code: str = NOT_RESTORED, path: str = "") -> Problem:
    """A problem of one archived entity."""
    return Problem(
        code=code,
        message=f"{result.kind.replace('_', ' ')} {result.source_id}: {message}",
        kind=result.kind,
        id=result.source_id,
        path=path,
    )


def tag_map(tags: Iterable[KeyValue] | Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Tags by key, from records or from answers."""
    found = {}
    for tag in tags:
        key, value = (tag.key, tag.value) if isinstance(tag, KeyValue) else (tag["key"], tag.get("value", ""))
        found[key] = value
    return found


def paged(ask: Callable[[str], Mapping[str, Any]], member: str) -> Iterator[dict[str, Any]]:
    """All items of a list that comes in pages. ``ask`` takes the token of a page, empty for the first."""
    token = ""
    while True:
        answer = ask(token)
        yield from answer.get(member, [])
        token = answer.get("next_page_token") or ""
        if not token:
            return


def files_besides(of: str, open_store: Callable[[], ArtifactStore], files: Iterable[tuple[str, int, str]]) -> list[str]:
    """What to note of files at the target that the archive does not have: nothing is taken away. ``of`` names the owner."""
    try:
        there = {found.path for found in open_store().walk()}
    except BundleError:
        # A restore does not need the list.
        return [f"whether {of} at the target has files besides is not known: they cannot be listed from here"]
    besides = sorted(there - {path for path, *_ in files})
    if len(besides) > 1:
        return [f"{of} at the target has {len(besides):,} files besides, {besides[0]!r} for example"]
    return [f"{of} at the target has the file {path!r} besides" for path in besides]
