"""Entities of the kinds beside experiments and runs, as `ls` and `show` print them: one way for all, from their records."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from typing import Any, Final

import click
import msgspec
from click.shell_completion import CompletionItem
from msgspec import UNSET

from mlflow_bundle._bundle import Bundle
from mlflow_bundle.cli._output import clean, put, table, time_text
from mlflow_bundle.errors import NotFoundError
from mlflow_bundle.kinds import KINDS, Kind
from mlflow_bundle.records import Record

__all__ = ["KIND_NAMES", "KindName", "entity_document", "entity_entries", "print_entities", "print_entity"]

_FIRST: Final = ("experiment", "run")
KIND_NAMES: Final = tuple(name for name in KINDS if name not in _FIRST)
#: Members that name an entity for people, the first that it has.
_NAMES: Final = ("name", "scorer_name", "secret_name", "server_name", "client_request_id")
_STATES: Final = ("state", "status", "current_stage", "lifecycle_stage")


class KindName(click.types.StringParamType):
    """The name of a kind; a wrong one is answered with those that are nearly the same, else with all."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The name as it is."""
        if value not in KIND_NAMES:
            self.fail(_no_kind(value), param, ctx)
        return value

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The kinds that begin so."""
        del ctx, param
        return [CompletionItem(name) for name in KIND_NAMES if name.startswith(incomplete)]


def _no_kind(name: str) -> str:
    close = difflib.get_close_matches(name, list(KINDS), n=3)
    if close and close[0] in _FIRST:
        return f"every {close[0]} is listed without --kind: `ls BUNDLE` and `ls BUNDLE EXPERIMENT`"
    known = f"did you mean {' or '.join(map(repr, close))}?" if close else f"the kinds are {', '.join(KIND_NAMES)}"
    return f"there is no kind {name!r}; {known}"


def entity_entries(archive: Bundle, name: str) -> list[dict[str, Any]]:
    """One entry for each record of a kind."""
    return [_entry(KINDS[name], record) for record in archive.records(name)]


def _entry(kind: Kind, record: Record) -> dict[str, Any]:
    created = kind.created(record)
    return {
        "kind": kind.name,
        "id": kind.identify(record),
        "name": _first_of(record, _NAMES),
        "experiments": list(kind.experiments(record)),
        "state": _first_of(record, _STATES),
        "created": None if created is UNSET else created,
    }


def _first_of(record: Record, names: tuple[str, ...]) -> str | None:
    found = (getattr(record, name, UNSET) for name in names)
    return next((value for value in found if isinstance(value, str) and value), None)


def print_entities(entries: list[dict[str, Any]], long: bool) -> None:
    """A line an entity: its id and its name, or a table."""
    if not long:
        for entry in entries:
            name = "" if entry["name"] in (None, entry["id"]) else f"  {clean(entry['name'])}"
            put(f"{clean(entry['id'])}{name}")
        return
    rows = [
        (
            clean(entry["id"]),
            clean(entry["name"] or "-"),
            clean(", ".join(entry["experiments"]) or "-"),
            clean(entry["state"] or "-"),
            time_text(entry["created"], seconds=False),
        )
        for entry in entries
    ]
    table(("ID", "NAME", "EXPERIMENT", "STATE", "CREATED (UTC)"), rows, flexible=1)


def entity_document(archive: Bundle, identity: str, where: NotFoundError) -> dict[str, Any]:
    """The entity of any kind with this id, with its files and the numbers of its rows.

    Raises:
        NotFoundError: ``where``, when there is none.
    """
    for name in archive.kinds():
        if name not in KIND_NAMES:
            continue
        try:
            record = archive.record(name, identity)
        except NotFoundError:
            continue
        document = {"bundle": archive.url, "snapshot": archive.snapshot_id, **msgspec.to_builtins(record)}
        return {**document, **_owned(archive, KINDS[name], identity)}
    raise where


def _owned(archive: Bundle, kind: Kind, identity: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in kind.tables:
        if name == "files/1":
            files = archive.files(kind=kind.name, id=identity)
            found["files"] = files.select(["path", "size", "sha256", "state"]).to_pylist()
        else:
            found[name.partition("/")[0]] = sum(rows.num_rows for rows in archive.rows(name, [identity]))
    return found


def print_entity(document: dict[str, Any]) -> None:
    """A line a member; what has parts is JSON."""
    width = max(map(len, document))
    for name, text in _lines(document):
        put(f"{name:<{width}}  {text}")


def _lines(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        if isinstance(value, list | tuple):
            yield name, f"{len(value):,}"
            for item in value:
                yield "", clean(item if isinstance(item, str) else json.dumps(item, ensure_ascii=False))
        else:
            timed = isinstance(value, int) and not isinstance(value, bool) and ("time" in name or name.endswith("_at"))
            yield name, time_text(value) if timed and "duration" not in name else clean(str(value))
