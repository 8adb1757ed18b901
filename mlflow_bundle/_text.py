"""Words for people: sizes, counts and times to read, and names from a bundle made harmless."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

__all__ = ["JOINERS", "age_text", "bytes_text", "clean", "count_text", "counts_text", "kind_text", "plural", "time_text"]

#: Invisible letters that are part of emoji and of some scripts: harmless.
JOINERS: Final = "\u200c\u200d"
_LATEST_YEAR_MS: Final = 253_402_300_799_999


def clean(text: object) -> str:
    """``text`` on one line without anything that a terminal acts upon.

    Control characters, escape sequences, marks that turn the direction of text, invisible and undefined characters are shown as
    ``\\n``, ``\\x1b``, ``\\u202e``; everything printable stays.
    """
    line = str(text)
    return line if line.isprintable() else "".join(map(_harmless, line))


def _harmless(letter: str) -> str:
    return letter if letter.isprintable() or letter in JOINERS else letter.encode("unicode_escape").decode("ascii")


def bytes_text(size: int) -> str:
    """``412 MiB``, ``1.4 KiB``, ``17 B``."""
    if size < 1024:
        return f"{size} B"
    number, unit = float(size), ""
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB"):  # noqa: B007 - the unit that it ends with is the result
        number /= 1024
        if number < 1023.5:
            break
    return f"{number:.1f} {unit}" if number < 9.95 else f"{number:,.0f} {unit}"


def age_text(milliseconds: int) -> str:
    """``3 days``, ``5 hours``, ``less than a minute``."""
    minutes = max(milliseconds, 0) // 60_000
    for size, noun in ((365 * 1440, "year"), (1440, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size:
            return plural(minutes // size, noun)
    return "less than a minute"


def count_text(count: int) -> str:
    """``12,040``, and ``2.1 million`` from a million on."""
    if count < 1_000_000:
        return f"{count:,}"
    return f"{count / 1e6:,.1f} million" if count < 999_950_000 else f"{count / 1e9:,.1f} billion"


def plural(count: int, noun: str) -> str:
    """``1 run``, ``1,204 runs``, ``2.1 million points``."""
    return f"{count_text(count)} {noun if count == 1 else noun + 's'}"


#: Nouns of the counts of a snapshot, in the order in which they are told; those in ALWAYS also where there are none.
_NOUNS: Final = {
    "experiment": "experiment",
    "run": "run",
    "metric_point": "point",
    "logged_model": "logged model",
    "model_metric_point": "point of models",
    "registered_model": "registered model or prompt",
    "model_version": "version",
    "trace": "trace",
    "span": "span",
    "evaluation_dataset": "evaluation dataset",
    "dataset_record": "dataset record",
    "file": "file",
}
_ALWAYS: Final = ("experiment", "run", "metric_point", "file")
_PLURALS: Final = {"point of models": "points of models", "registered model or prompt": "registered models and prompts"}


def kind_text(kind: str, count: int) -> str:
    """``12 logged models``: a number of entities of a kind."""
    noun = _NOUNS.get(kind, clean(kind.replace("_", " ")))
    if count != 1 and noun in _PLURALS:
        return f"{count:,} {_PLURALS[noun]}"
    return plural(count, noun)


def counts_text(counts: Mapping[str, int]) -> str:
    """The counts of a snapshot: ``3 experiments, 1,204 runs, 2.1 million points, 12,040 files``."""
    order = [*_NOUNS, *(kind for kind in counts if kind not in _NOUNS and kind != "file_bytes")]
    told = [kind for kind in order if counts.get(kind) or kind in _ALWAYS]
    if counts.get("workspace") == 1:  # every server of today has one
        told.remove("workspace")
    return ", ".join(kind_text(kind, counts.get(kind, 0)) for kind in told)


def time_text(milliseconds: object, *, seconds: bool = True) -> str:
    """``2026-11-21 04:08:47 UTC``; without seconds no zone either, for columns whose head names it."""
    if not isinstance(milliseconds, int):
        return "-"
    if not 0 <= milliseconds <= _LATEST_YEAR_MS:
        return f"{milliseconds:,} ms"
    moment = datetime.fromtimestamp(milliseconds // 1000, UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC" if seconds else "%Y-%m-%d %H:%M")
