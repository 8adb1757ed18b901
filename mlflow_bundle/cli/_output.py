"""What reaches the terminal: data on stdout, talk on stderr, names from a bundle made harmless, sizes and times readable."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import UNSET
from rich.cells import cell_len, chop_cells

from mlflow_bundle._text import JOINERS, bytes_text, clean, count_text, counts_text, kind_text, plural, time_text
from mlflow_bundle.records import Problem

__all__ = [
    "State",
    "StdoutError",
    "bytes_text",
    "clean",
    "count_text",
    "counts_text",
    "fitted",
    "flush",
    "json_text",
    "kind_text",
    "plain",
    "plural",
    "problem_lines",
    "put",
    "put_bytes",
    "say",
    "table",
    "time_text",
]

#: As many problems are shown to people; ``--json`` lists all.
SHOWN_PROBLEMS: Final = 20
_ELLIPSIS: Final = "…"


@dataclass
class State:
    """The options that every command has."""

    json: bool = False
    debug: bool = False
    progress: bool = True

    def put(self, document: dict[str, Any]) -> None:
        """One JSON document on stdout."""
        put(json_text(document))


class StdoutError(Exception):
    """Stdout cannot be written; ``error`` says why. Not an ``OSError``, to tell it from one of anything else."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def put(line: str) -> None:
    """A line of data on stdout. The caller has cleaned it."""
    put_bytes((line + "\n").encode(sys.stdout.encoding or "utf-8", "backslashreplace"))


def put_bytes(data: bytes) -> None:
    """Data on stdout as it is."""
    rest = memoryview(data)
    try:
        while rest:  # an unbuffered stream (PYTHONUNBUFFERED) may take less than all
            rest = rest[sys.stdout.buffer.write(rest) :]
    except OSError as error:
        raise StdoutError(error) from error


def flush() -> None:
    """Hand over what was put."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise StdoutError(error) from error


def say(line: str = "") -> None:
    """A line of talk on stderr. The caller has cleaned what came from elsewhere."""
    flush()
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


# -- JSON -------------------------------------------------------------------------------------------------------------


def json_text(document: object) -> str:
    """A JSON document, indented; characters that ``clean`` would change are escaped, so that it is exact and harmless."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return "\n".join(line if line.isprintable() else "".join(map(_json_harmless, line)) for line in text.split("\n"))


def _json_harmless(letter: str) -> str:
    return letter if letter.isprintable() or letter in JOINERS else json.dumps(letter)[1:-1]


def plain(value: object) -> Any:
    """A report or record as JSON values. Absent fields are left out; NaN and infinities become the texts that MLflow uses."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__ if getattr(value, name) is not UNSET}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


# -- tables -----------------------------------------------------------------------------------------------------------


def fitted(text: str, width: int) -> str:
    """``text`` cut to ``width`` columns of a terminal."""
    return text if cell_len(text) <= width else chop_cells(text, width - 1)[0] + _ELLIPSIS if width > 1 else _ELLIPSIS


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, flexible: int | None = None, right: Sequence[int] = ()
) -> None:
    """A table on stdout. On a terminal the ``flexible`` column is cut so that lines fit; elsewhere nothing is cut.

    ``right`` are the columns aligned to the right. The cells are clean already.
    """
    lines = [list(head), *map(list, rows)] if head else list(map(list, rows))
    if not lines:
        return
    widths = [max(cell_len(line[column]) for line in lines) for column in range(len(lines[0]))]
    if flexible is not None and sys.stdout.isatty():
        spare = shutil.get_terminal_size().columns - 2 * (len(widths) - 1) - sum(widths)
        widths[flexible] = max(widths[flexible] + min(spare, 0), 8)
    for line in lines:
        cells = [fitted(cell, width) for cell, width in zip(line, widths, strict=True)]
        pads = [" " * (width - cell_len(cell)) for cell, width in zip(cells, widths, strict=True)]
        shown = (pad + cell if n in right else cell + pad for n, (cell, pad) in enumerate(zip(cells, pads, strict=True)))
        put("  ".join(shown).rstrip())


def problem_lines(problems: Sequence[Problem], *, limit: int | None = SHOWN_PROBLEMS) -> list[str]:
    """A line for each problem: its code, what it is about and its sentence; then how many more there are."""
    shown = problems if limit is None else problems[:limit]
    lines = [f"{clean(problem.code)}: {_whose(problem)}{clean(problem.message)}" for problem in shown]
    rest = len(problems) - len(shown)
    return [*lines, f"and {count_text(rest)} more; --json lists all"] if rest else lines


def _whose(problem: Problem) -> str:
    """The entity of a problem, where its sentence does not name it."""
    named = not problem.id or problem.id in problem.message
    return "" if named else f"{clean(problem.kind.replace('_', ' '))} {clean(problem.id)}: "
