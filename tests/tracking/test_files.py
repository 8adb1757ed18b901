"""Where the files of entities lie is kept as far as it is needed."""

from __future__ import annotations

import msgspec

from mlflow_bundle.records import KINDS, record_id
from mlflow_bundle.tracking._files import Located
from tests.building import everything_of


def test_entities_keep_what_says_where_their_files_lie() -> None:
    """Owners come in the order in which they were noted, with their kind, id and all but their lists."""
    content = everything_of(4)
    records = [record for record in [*content.runs, *content.entities] if KINDS[str(record.__struct_config__.tag)].tables]
    located = Located()
    for record in records:
        located.add(record)
    owners = list(located.owners())
    located.close()
    assert [(owner.kind, owner.id) for owner in owners] == [(str(r.__struct_config__.tag), record_id(r)) for r in records]
    assert [owner.text for owner in owners][4] == "logged model m-0000"
    for owner, record in zip(owners, records, strict=True):
        kept = {name: () for name in record.__struct_fields__ if isinstance(getattr(record, name), tuple)}
        assert owner.record == msgspec.structs.replace(record, **kept)
