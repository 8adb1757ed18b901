"""What a page knows of an archive, as plain values for JSON; every name made harmless."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec import UNSET

from mlflow_bundle._bundle import Bundle
from mlflow_bundle._report._curves import sampled_curves
from mlflow_bundle._text import bytes_text, clean, counts_text, plural, time_text
from mlflow_bundle.entities import ModelVersion, RegisteredModel

__all__ = ["page_data"]

#: The newest runs that a page lists, and the columns of params and of metrics that it has.
_RUNS: Final = 5_000
_COLUMNS: Final = 60
#: Series that a page draws, and files that it lists.
_SERIES: Final = 20_000
_FILES: Final = 20_000
#: Bytes of one image, and of all.
_IMAGE: Final = 512 * 1024
_IMAGES: Final = 16 * 1024 * 1024
_TYPES: Final = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "jpeg": "image/jpeg",
    "gif": "image/gif",
    "webp": "image/webp",
    "svg": "image/svg+xml",
}
_PROMPT: Final = "mlflow.prompt.is_prompt"


def page_data(archive: Bundle) -> dict[str, Any]:
    """Everything that the page shows. ``limits`` says in sentences what it leaves out."""
    runs = archive.runs().to_pylist()
    limits: list[str] = []
    if len(runs) > _RUNS:
        limits.append(f"The page has the newest {_RUNS:,} of {len(runs):,} runs.")
        runs = runs[-_RUNS:]
    runs.reverse()
    params = _columns(((key for key, _ in run["params"] or ()) for run in runs), "params", limits)
    metrics = _columns(((key for key, _ in run["latest_metrics"] or ()) for run in runs), "metrics", limits)
    return {
        "title": clean(archive.url),
        "about": _about(archive),
        "experiments": _experiments(archive),
        "params": [clean(name) for name in params],
        "metrics": [clean(name) for name in metrics],
        "runs": [_run(run, params, metrics) for run in runs],
        "curves": _curves(archive, runs, limits),
        "files": _files(archive, runs, limits),
        "models": list(_models(archive)),
        "versions": list(_versions(archive)),
        "limits": limits,
    }


def _columns(names: Iterable[Iterable[str]], what: str, limits: list[str]) -> list[str]:
    """The names that most runs have."""
    counted = Counter(name for some in names for name in some)
    if len(counted) > _COLUMNS:
        limits.append(f"The table has the {_COLUMNS} {what} that most runs have, of {len(counted):,}.")
    return sorted(name for name, _ in counted.most_common(_COLUMNS))


def _about(archive: Bundle) -> list[list[str]]:
    document = archive.snapshot
    source = document.source
    scope = dict(_set(document.scope))
    pairs = [
        ("bundle", archive.url),
        ("snapshot", archive.snapshot_id),
        ("root digest", archive.root_digest),
        ("logical root", document.logical.root),
        ("made", f"{time_text(document.created_at)} by {document.writer.name} {document.writer.version}"),
        ("source", f"{source.uri} ({source.kind} {source.version})".replace(" )", ")")),
        ("scope", ", ".join(f"{name} {value}" for name, value in scope.items()) or "everything"),
        ("state", document.state),
        ("holds", counts_text(document.counts)),
        ("files", bytes_text(document.counts.get("file_bytes", 0))),
        *(("could not be read", problem.message) for problem in document.problems[:20]),
        *([("could not be read", f"and {len(document.problems) - 20:,} more")] if len(document.problems) > 20 else []),
        *(("note", note) for note in document.notes[:20]),
    ]
    return [[name, clean(value)] for name, value in pairs]


def _set(scope: Any) -> Iterator[tuple[str, Any]]:
    """What a scope restricts."""
    for name in scope.__struct_fields__:
        value = getattr(scope, name)
        if value and (name, value) != ("lifecycle", "all"):
            yield name, ", ".join(map(str, value)) if isinstance(value, tuple) else value


def _experiments(archive: Bundle) -> list[dict[str, Any]]:
    runs = Counter(archive.runs().column("experiment_id").to_pylist())
    return [
        {
            "id": clean(row["experiment_id"]),
            "name": clean(row["name"]),
            "state": row["lifecycle_stage"],
            "runs": runs[row["experiment_id"]],
            "created": time_text(row["creation_time"]),
        }
        for row in archive.experiments().to_pylist()
    ]


def _run(run: Mapping[str, Any], params: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    given, latest = dict(run["params"] or ()), dict(run["latest_metrics"] or ())
    start, end = run["start_time"], run["end_time"]
    values = (latest[name]["value"] if name in latest else None for name in metrics)
    return {
        "id": clean(run["run_id"]),
        "name": clean(run["run_name"] or ""),
        "experiment": clean(run["experiment_name"] or run["experiment_id"]),
        "status": clean(run["status"] or "") if run["lifecycle_stage"] == "active" else "deleted",
        "start": time_text(start),
        "seconds": None if start is None or end is None else (end - start) / 1000,
        "params": [clean(given[name]) if name in given else None for name in params],
        "metrics": [value if value is None or math.isfinite(value) else str(value) for value in values],
    }


def _curves(archive: Bundle, runs: Sequence[Mapping[str, Any]], limits: list[str]) -> list[list[Any]]:
    chosen: list[str] = []
    series = 0
    for run in runs:
        series += len(run["latest_metrics"] or ())
        if series > _SERIES:
            limits.append(f"Curves are drawn for the newest {len(chosen):,} runs.")
            break
        chosen.append(run["run_id"])
    curves = list(sampled_curves(archive, chosen, series))
    if thinned := sum(curve.rows > len(curve.steps) for curve in curves):
        limits.append(f"{plural(thinned, 'curve')} of {len(curves):,} are sampled: evenly chosen points, six digits.")
    return [[curve.run, clean(curve.key), curve.rows, curve.steps, curve.values] for curve in curves]


def _files(archive: Bundle, runs: Sequence[Mapping[str, Any]], limits: list[str]) -> dict[str, Any]:
    """The files of the runs, by their place, and the images among them by digest."""
    listed: dict[int, list[list[Any]]] = {}
    images: dict[str, str] = {}
    size = left = 0
    numbers = _within(runs, limits)
    for row in archive.files_of(list(numbers)).to_pylist():
        kind = _TYPES.get(row["path"].rpartition(".")[2].lower()) if row["state"] == "ok" else None
        if kind is not None and row["sha256"] not in images:
            if row["size"] > _IMAGE or size + row["size"] > _IMAGES:
                left += 1
            else:
                size += row["size"]
                with archive.open_file(row["run_id"], row["path"]) as file:
                    images[row["sha256"]] = f"data:{kind};base64,{base64.b64encode(file.read()).decode('ascii')}"
        listed.setdefault(numbers[row["run_id"]], []).append([clean(row["path"]), row["size"], row["sha256"], row["state"]])
    if left:
        limits.append(f"{plural(left, 'image')} are listed and not shown: they are large, or too many.")
    return {"of": listed, "images": images}


def _within(runs: Sequence[Mapping[str, Any]], limits: list[str]) -> dict[str, int]:
    """The runs with files, by id, that a page lists the files of: their places."""
    found: dict[str, int] = {}
    count = 0
    for number, run in enumerate(runs):
        count += run["file_rows"]
        if count > _FILES:
            limits.append(f"Files are listed for the newest {number:,} runs.")
            break
        if run["file_rows"]:
            found[run["run_id"]] = number
    return found


def _models(archive: Bundle) -> Iterator[dict[str, Any]]:
    for record in archive.records("registered_model"):
        assert isinstance(record, RegisteredModel)
        yield {
            "name": clean(record.name),
            "kind": "prompt" if any(tag.key == _PROMPT and tag.value == "true" for tag in record.tags) else "model",
            "description": clean(_given(record.description)),
            "aliases": ", ".join(f"{clean(alias.alias)} = {alias.version}" for alias in record.aliases),
            "created": time_text(_given(record.creation_timestamp)),
        }


def _versions(archive: Bundle) -> Iterator[dict[str, Any]]:
    for record in archive.records("model_version"):
        assert isinstance(record, ModelVersion)
        yield {
            "name": clean(record.name),
            "version": record.version,
            "stage": clean(_given(record.current_stage)),
            "status": clean(_given(record.status)),
            "run": clean(_given(record.run_id)),
            "source": clean(_given(record.source)),
            "created": time_text(_given(record.creation_timestamp)),
        }


def _given(value: Any) -> Any:
    return "" if value is UNSET else value
