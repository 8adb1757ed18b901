"""Where the files of runs lie is kept as far as it is needed."""

from __future__ import annotations

import msgspec

from mlflow_bundle.tracking._files import Located, owner_of
from tests.building import everything_of


def test_runs_keep_what_says_where_their_files_lie() -> None:
    """Owners come in the order in which they were noted, with their id and all but their lists."""
    runs = everything_of(4).runs
    located = Located()
    for run in runs:
        located.add(run)
    owners = list(located.owners())
    located.close()
    assert [(owner.kind, owner.id) for owner in owners] == [("run", run.run_id) for run in runs]
    for owner, run in zip(owners, runs, strict=True):
        kept = {name: () for name in run.__struct_fields__ if isinstance(getattr(run, name), tuple)}
        assert len(kept) > 1
        assert owner.record == msgspec.structs.replace(run, **kept)


def test_messages_name_an_owner_by_its_kind() -> None:
    """In the words of MLflow."""
    models = [record for record in everything_of(4).entities if record.__struct_config__.tag == "logged_model"]
    assert owner_of(models[0]).text == "logged model m-0000"
