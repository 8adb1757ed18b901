"""What the writers of evaluation and review share: JSON texts, comparing, the experiment of an entity."""

from __future__ import annotations

import json
from typing import Any, Final

from mlflow_bundle.tracking._port import DIFFERS, EntityResult, IdMap
from mlflow_bundle.tracking.rest._road import not_restored

__all__ = ["API3", "NO_IDS", "NO_TIMES", "NO_USERS", "canonical", "expect", "loaded", "restored_experiment"]

API3: Final = "/api/3.0/mlflow/"
NO_IDS: Final = "a server gives new ids and times to {}; the archive keeps the old ones"
NO_TIMES: Final = "a server gives new times to {}; the archive keeps the old ones"
NO_USERS: Final = "a server is not told who made {}; the archive knows"


def expect(result: EntityResult, what: str, expected: Any, actual: Any) -> None:
    """What was read back has to be what is in the archive: ``true`` is not 1."""
    if canonical(expected) != canonical(actual):
        message = f"read back from the target: {what} is {actual!r:.60} instead of {expected!r:.60}"
        result.problems.append(not_restored(result, message, code=DIFFERS))
        result.action = "failed"


def loaded(text: Any) -> Any:
    """The value of a JSON text, None where there is none."""
    return json.loads(text) if isinstance(text, str) else None


def canonical(value: Any) -> str:
    """A JSON value as one text, whatever the order of its members."""
    return json.dumps(value, sort_keys=True, default=repr)


def restored_experiment(archived: str, result: EntityResult, ids: IdMap) -> str | None:
    """The experiment at the target; without it the entity fails."""
    found = ids.find("experiment", archived)
    if found is None:
        result.action = "failed"
        result.problems.append(not_restored(result, f"its experiment {archived} was not restored"))
    return found
