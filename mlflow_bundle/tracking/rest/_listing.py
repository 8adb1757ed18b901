"""Lists of a server, page by page, and answers as records: what every reader of entities shares."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from mlflow_bundle.entities import Record
from mlflow_bundle.errors import ServerError
from mlflow_bundle.kinds import order_key
from mlflow_bundle.tracking._rest import Params, RestClient

__all__ = ["Answer", "decimal", "in_batches", "json_text", "listed", "pages", "record", "registered", "single", "steady"]

Answer = dict[str, Any]
Some = TypeVar("Some", bound=Record)
Item = TypeVar("Item")

_BATCH: Final = 1_000
#: How often at most a list of several pages is read.
_READINGS: Final = 5
#: How the registries of MCP servers and of skills call their times.
_TIMES: Final = {"created_at": "creation_timestamp", "last_updated_at": "last_updated_timestamp"}


def pages(
    client: RestClient, path: str, member: str, params: Params, *, item: Any = Answer, post: bool = False
) -> Iterator[list[Any]]:
    """The pages of a list, each decoded as a list of ``item``, until there is no token any more."""
    page_type = msgspec.defstruct(
        "Page",
        [("items", list[item] | None, None), ("token", str | None, None)],
        rename={"items": member, "token": "next_page_token"},
    )
    asked = dict(params)
    while True:
        page: Any = client.post_json(path, asked, answer=page_type) if post else client.get_json(path, asked, answer=page_type)
        yield page.items or []
        if not page.token:
            return
        asked["page_token"] = page.token


def single(client: RestClient, path: str, member: str, params: Params | None = None) -> Answer:
    """The object that is the answer's only member, and that must be there."""
    found: Answer = client.get_json(path, params, answer=_with_only(member)).item
    return found


@cache
def _with_only(member: str) -> type[msgspec.Struct]:
    return msgspec.defstruct("Single", [("item", Answer)], rename={"item": member})


def steady(
    client: RestClient, path: str, read: Callable[[], Iterable[Iterable[Item]]], key: Callable[[Item], Hashable]
) -> list[Item]:
    """Everything in a list whose pages are cut by position, each item once. ``read`` gives the pages from the first on.

    What appears meanwhile shifts items into the next page, so that they come twice. What vanishes shifts others into a page
    that was read already, so that they never come: a list of several pages is read again until nothing vanished between two
    readings. ``client.doubts`` says it where something always did.
    """
    found: dict[Hashable, Item] = {}
    before: set[Hashable] | None = None
    for _ in range(_READINGS):
        seen: set[Hashable] = set()
        count = 0
        for page in read():
            count += 1
            for item in page:
                identity = key(item)
                seen.add(identity)
                found.setdefault(identity, item)
        if count <= 1 or (before is not None and before <= seen):
            return list(found.values())
        before = seen
    client.doubts.append(
        f"{path} was read {_READINGS} times, and each time something of it was deleted meanwhile: others may be missing"
    )
    return list(found.values())


def listed(
    client: RestClient, path: str, member: str, params: Params, *, by: Sequence[str], post: bool = False
) -> list[Answer]:
    """A whole list, each item once. ``by`` are the members that tell items apart.

    Raises:
        ServerError: an item lacks one of these.
    """

    def key(item: Answer) -> Hashable:
        try:
            return tuple(item[name] for name in by)
        except KeyError as error:
            raise ServerError(f"{path} lists something among the {member} that has no {error.args[0]!r}") from error

    return steady(client, path, lambda: pages(client, path, member, params, post=post), key)


def record(kind: type[Some], answer: Mapping[str, Any], /, **more: Any) -> Some:
    """The members of an answer that are fields of the record, with ``more``; None and what is missing stay absent.

    Lists of tags and params are sorted by key, and numbers that REST gives as texts become integers.

    Raises:
        ServerError: the answer is not what MLflow's API promises.
    """
    fields = {name: answer.get(name) for name in kind.__struct_fields__} | more
    fields = {name: value for name, value in fields.items() if value is not None and value is not UNSET}
    for name in ("tags", "params"):
        if name in fields and name in kind.__struct_fields__ and not isinstance(fields[name], str):
            # Strings sort by code point, which is the order of their UTF-8 bytes.
            fields[name] = sorted(({"value": "", **pair} for pair in fields[name] or ()), key=lambda pair: str(pair["key"]))
    try:
        return msgspec.convert(fields, kind, strict=False)
    except (msgspec.ValidationError, KeyError) as error:
        raise ServerError(f"the MLflow server answered with an unknown form of {kind.__name__}: {error}") from error


def registered(answer: Answer) -> Answer:
    """What the registries of MCP servers and of skills say in another form: tags and times."""
    tags = [{"key": key, "value": value} for key, value in (answer.get("tags") or {}).items()]
    return {"tags": tags, **{name: answer.get(shown) for name, shown in _TIMES.items()}}


def json_text(value: Any) -> str | UnsetType:
    """A JSON value as the text that MLflow makes of it in its database, members in their order; absent where there is none."""
    return UNSET if value is None else json.dumps(value)


def decimal(value: float | str | None) -> str | UnsetType:
    """A number as the shortest text that reads back as the same double."""
    return UNSET if value is None else repr(float(value))


def in_batches(records: Iterable[Record], *, in_order: bool = False) -> Iterator[list[Record]]:
    """The records in archive order, at most 1,000 at a time."""
    batch: list[Record] = []
    for found in records if in_order else sorted(records, key=order_key):
        batch.append(found)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
