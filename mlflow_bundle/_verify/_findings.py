"""What a verification finds, as data: equal findings in one object are one problem that says how many there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mlflow_bundle._verify._codes import CODES
from mlflow_bundle.errors import BundleError, LimitError, NotFoundError, StorageError
from mlflow_bundle.records import Problem

__all__ = ["Findings", "code_of", "listed"]

_EXAMPLES: Final = 3


def listed(names: Sequence[Any]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - _EXAMPLES
    return ", ".join(map(str, names[:_EXAMPLES])) + (f" and {more:,} more" if more > 0 else "")


def code_of(error: BundleError, default: str) -> str:
    """The code under which an error is reported; ``default`` for damage that has none of its own."""
    if error.code in CODES:
        return error.code
    if isinstance(error, LimitError):
        return "E094"
    if isinstance(error, NotFoundError):
        return "E025"
    return "E029" if isinstance(error, StorageError) else default


@dataclass(slots=True)
class _Group:
    message: str
    id: str
    path: str
    count: int = 0
    runs: dict[str, None] = field(default_factory=dict)
    experiments: dict[str, None] = field(default_factory=dict)


class Findings:
    """Collects problems and warnings. Memory grows with the number of objects, not with what is wrong in them."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, str, str], _Group] = {}
        self.statements: dict[str, None] = {}

    def add(
        self,
        code: str,
        message: str,
        *,
        object: str = "",  # noqa: A002 - the name of the member
        kind: str = "",
        id: str = "",  # noqa: A002
        path: str = "",
        runs: Iterable[str] = (),
    ) -> None:
        """Note one finding. Of several with one code in one object, the first speaks and all are counted."""
        assert code in CODES, code
        group = self._groups.setdefault((code, object, kind), _Group(message, id, path))
        group.count += 1
        group.runs.update(dict.fromkeys(runs))

    def fail(self, error: BundleError, *, object: str, default: str = "E022") -> None:  # noqa: A002
        """Note an error that kept an object from being read."""
        self.add(code_of(error, default), error.message, object=object)

    def has(self, code: str) -> bool:
        """Whether something was found under this code."""
        return any(found == code for found, _, _ in self._groups)

    def state(self, sentence: str) -> None:
        """Note something that could not be checked."""
        self.statements[sentence] = None

    def touch(self, path: str, runs: Iterable[str], experiments: Iterable[str], *, code: str = "") -> None:
        """Say which runs and experiments the problems of an object touch, or those of one code in it."""
        touched, around = dict.fromkeys(runs), dict.fromkeys(experiments)
        for (kind, found, _), group in self._groups.items():
            if found == path and code in ("", kind):
                group.runs.update(touched)
                group.experiments.update(around)

    def append(self, path: str, more: str) -> None:
        """Add to the messages of an object whose runs nobody knows."""
        for (_, found, _), group in self._groups.items():
            if found == path and not group.runs:
                group.message += more

    def complete(self, experiments: Mapping[str, str]) -> None:
        """Add the experiments of the runs that are named."""
        for group in self._groups.values():
            group.experiments.update(dict.fromkeys(experiments[run] for run in group.runs if run in experiments))

    def problems(self) -> list[Problem]:
        """All of them, warnings too, by code and object."""
        return [self._problem(*key, group) for key, group in sorted(self._groups.items(), key=lambda item: item[0])]

    @staticmethod
    def _problem(code: str, path: str, kind: str, group: _Group) -> Problem:
        more = group.count - 1
        return Problem(
            code=code,
            message=group.message + (f"; and {more:,} more like it" if more else ""),
            kind=kind,
            id=group.id,
            path=group.path,
            object=path,
            experiments=tuple(group.experiments),
            runs=tuple(group.runs),
        )
