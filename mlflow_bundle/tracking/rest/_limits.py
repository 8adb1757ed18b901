"""What an MLflow server of a given release refuses or cuts: names, lengths, points. Pure checks, nothing is sent."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mlflow_bundle.records import DatasetInput, Experiment, KeyValue, Problem, Run
from mlflow_bundle.tracking._port import CANNOT_HOLD, run_problem

__all__ = ["RUN_NAME_CHARS", "Limits"]

#: (first release, longest param, run tag and experiment tag in characters)
_LENGTHS: Final = (
    ((1, 0), 250, 5_000, 5_000),
    ((1, 30), 500, 5_000, 5_000),
    ((2, 8), 6_000, 5_000, 5_000),
    ((2, 18), 6_000, 8_000, 5_000),
    ((3, 16), 6_000, 8_000, 20_000),
)
_COLON_SINCE: Final = (2, 16)
#: From here on no key ends with a line feed, and no experiment has a blank name.
_STRICT_SINCE: Final = (3, 18)
#: Where a server does not tell its release it is an old one.
_OLDEST: Final = (1, 30)
_NAME: Final = re.compile(r"[/\w.\- ]*")
_NAME_WITH_COLON: Final = re.compile(r"[/\w.\- :]*")
_KEY_CHARS: Final = 250
_EXPERIMENT_NAME_CHARS: Final = 500
RUN_NAME_CHARS: Final = 250
_USER_CHARS: Final = 256
_DATASET_CHARS: Final = {
    "name": 500,
    "digest": 36,
    "source_type": 36,
    "source": 65_535,
    "schema": 1_048_575,
    "profile": 16_777_215,
}
_INPUT_TAG_KEY_CHARS: Final = 255
_INPUT_TAG_VALUE_CHARS: Final = 500
_RUN_NAME_TAG: Final = "mlflow.runName"
#: Setting it would make the target move its traces away.
_ARCHIVE_NOW: Final = "mlflow.trace.archiveNow"


@dataclass(frozen=True)
class Limits:
    """The limits of one release. Every check returns why something cannot be held, or None."""

    colon: bool
    strict: bool
    param_chars: int
    tag_chars: int
    experiment_tag_chars: int

    @classmethod
    def of(cls, version: str) -> Limits:
        """The limits of the release that a server names itself; the tightest for one that names none."""
        match = re.match(r"(\d+)\.(\d+)", version)
        release = (int(match[1]), int(match[2])) if match else _OLDEST
        _, param, tag, experiment_tag = max(row for row in _LENGTHS if row[0] <= max(release, _LENGTHS[0][0]))
        return cls(release >= _COLON_SINCE, release >= _STRICT_SINCE, param, tag, experiment_tag)

    def key(self, key: str) -> str | None:
        """Why the server would refuse the key of a metric, param or tag, or None."""
        if len(key) > _KEY_CHARS:
            return f"the key has {len(key)} characters, the server takes {_KEY_CHARS}"
        if not (_NAME_WITH_COLON if self.colon else _NAME).fullmatch(key if self.strict else key.removesuffix("\n")):
            colon = ", colons" if self.colon else ""
            return f"the server takes letters, digits, spaces, underscores, dashes, periods{colon} and slashes in a key only"
        normal = posixpath.normpath(key)
        if normal != key or normal == "." or normal.startswith(("..", "/")):
            return "the server takes no key that is not a plain relative path (no '..', '//' or leading '/')"
        return None

    def param(self, param: KeyValue) -> str | None:
        """Why the server would refuse a param of a run, or None."""
        return self.key(param.key) or _too_long("value", param.value, self.param_chars)

    def tag(self, tag: KeyValue) -> str | None:
        """Why the server would refuse a tag of a run, or None."""
        if tag.key == _RUN_NAME_TAG and not tag.value:
            return "the server takes no empty run name"
        return self.key(tag.key) or _too_long("value", tag.value, self.tag_chars)

    def user(self, user: str) -> str | None:
        """Why the server would refuse the name of a user, or None."""
        return _too_long("name", user, _USER_CHARS)

    def experiment_tag(self, tag: KeyValue) -> str | None:
        """Why an experiment must not get this tag, or None."""
        if tag.key == _ARCHIVE_NOW:
            return "it would make the server archive its traces"
        return self.key(tag.key) or _too_long("value", tag.value, self.experiment_tag_chars)

    def dataset_input(self, entry: DatasetInput) -> str | None:
        """Why the server would refuse a dataset input of a run, or None."""
        for field, chars in _DATASET_CHARS.items():
            reason = _too_long(field, getattr(entry.dataset, field) or "", chars)
            if reason:
                return reason
        for tag in entry.tags:
            reason = _too_long("tag key", tag.key, _INPUT_TAG_KEY_CHARS) or _too_long("tag", tag.value, _INPUT_TAG_VALUE_CHARS)
            if reason:
                return reason
        return None

    def experiment_problems(self, experiment: Experiment) -> list[Problem]:
        """What of this experiment the server would refuse."""
        reasons = [_reason("the name", _too_long("name", experiment.name, _EXPERIMENT_NAME_CHARS))]
        if self.strict and not experiment.name.strip():
            reasons.append("the name is blank, which the server refuses")
        reasons += [_reason(f"the tag {tag.key!r}", self.experiment_tag(tag)) for tag in experiment.tags]
        there = experiment.experiment_id
        return [
            Problem(code=CANNOT_HOLD, message=reason, kind="experiment", id=there, experiments=(there,))
            for reason in reasons
            if reason
        ]

    def run_problems(self, run: Run) -> list[Problem]:
        """What of this run the server would refuse, cut or alter."""
        return [run_problem(run.run_id, reason) for reason in self._run_reasons(run)]

    def _run_reasons(self, run: Run) -> Iterator[str]:
        reasons = [
            _reason("the user", self.user(run.user_id or "")),
            *(_reason(f"the param {param.key!r}", self.param(param)) for param in run.params),
            *(_reason(f"the tag {tag.key!r}", self.tag(tag)) for tag in run.tags),
            *(_reason(f"the dataset {entry.dataset.name!r}", self.dataset_input(entry)) for entry in run.inputs),
        ]
        if len(run.run_name or "") > RUN_NAME_CHARS:
            yield f"the run name is cut: it has {len(run.run_name or '')} characters, the server takes {RUN_NAME_CHARS}"
        name_tag = next((tag.value for tag in run.tags if tag.key == _RUN_NAME_TAG), "")
        if name_tag and run.run_name and name_tag != run.run_name:
            yield f"the tag {_RUN_NAME_TAG!r} is left out: a server keeps it equal to the run name {run.run_name!r}"
        yield from (reason for reason in reasons if reason)


def _reason(what: str, why: str | None) -> str | None:
    return f"{what} is left out: {why}" if why else None


def _too_long(what: str, text: str, chars: int) -> str | None:
    return f"the {what} has {len(text)} characters, the server takes {chars}" if len(text) > chars else None
