"""``mlflow-bundle show``: a snapshot, an experiment, or a run with everything but its metric histories."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from textwrap import wrap
from typing import Any, Final

import click

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle.cli._curves import curves
from mlflow_bundle.cli._kinds import entity_document, print_entity
from mlflow_bundle.cli._options import bundle_argument, common, options_of, pass_state, snapshot_option, storage_option
from mlflow_bundle.cli._output import State, bytes_text, clean, counts_text, plain, plural, put, table, time_text
from mlflow_bundle.cli._paths import Catalog, Place, Row
from mlflow_bundle.cli.log import scope_text
from mlflow_bundle.errors import NotFoundError, UsageError
from mlflow_bundle.records import Experiment, KeyValue

__all__ = ["show"]

_TIMES: Final = frozenset({"start_time", "end_time", "deleted_time", "creation_time", "last_update_time"})
#: As wide are lists in the overview: with its labels, a terminal of 80 columns holds them.
_WIDTH: Final = 68
#: What people look for first; the other fields follow.
_RUN_FIELDS: Final = (
    "run_id",
    "run_name",
    "experiment_id",
    "experiment_name",
    "status",
    "lifecycle_stage",
    "user_id",
    "start_time",
    "end_time",
)
_LISTS: Final = frozenset({"params", "tags", "inputs", "model_inputs", "model_outputs"})


@click.command()
@bundle_argument
@click.argument("id", metavar="[ID]", default="")
@snapshot_option
@storage_option
@common
@pass_state
def show(state: State, bundle: str, id: str, *, snapshot: str | None, storage_option: Sequence[str]) -> None:  # noqa: A002
    """Show a snapshot, or one experiment, run or other entity of it.

    Without ID: what the snapshot holds, where it comes from, its digests, problems and notes. ID is the name or id of an
    experiment, the id of a run or its first characters (4 at least), EXPERIMENT/RUN as in `ls`, or the id of any other entity
    as `ls --kind` lists it: a trace, a logged model, MODEL, MODEL/VERSION, ...
    """
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        document, lines = _found(archive, id) if id else (_snapshot(archive), _print_snapshot)
    if state.json:
        state.put(document)
    else:
        lines(document)


def _found(archive: Bundle, identity: str) -> tuple[dict[str, Any], Callable[[dict[str, Any]], None]]:
    """An experiment, a run, or else an entity of any other kind, and what prints it."""
    catalog = Catalog(archive)
    try:
        place = catalog.find(identity)
    except NotFoundError as error:
        return entity_document(archive, identity, error), print_entity
    if place.kind not in ("experiment", "run"):
        raise UsageError(f"{identity!r} is a {place.kind}, not an experiment or run", hint="`mlflow-bundle cat` prints a file")
    if place.run:
        drawn = curves(archive.metrics(run_id=place.run["run_id"])) if sys.stdout.isatty() else {}
        return _run(archive, place), partial(_print_run, drawn=drawn)
    return _experiment(archive, catalog, place), _print_experiment


# -- documents --------------------------------------------------------------------------------------------------------


def _snapshot(archive: Bundle) -> dict[str, Any]:
    fields = plain(archive.snapshot)
    left_out = ("objects", "object_lists", "logical", "format", "requires")
    return {
        "bundle": archive.url,
        "snapshot": archive.snapshot_id,
        "root_digest": archive.root_digest,
        "logical_root": archive.snapshot.logical.root,
        **{name: value for name, value in fields.items() if name not in left_out},
        "objects": len(archive.objects),
        "object_bytes": sum(ref.size for ref in archive.objects),
        "snapshots": len(archive.snapshots()),
    }


def _experiment(archive: Bundle, catalog: Catalog, place: Place) -> dict[str, Any]:
    assert place.experiment is not None
    wanted = place.experiment["experiment_id"]
    record = next(e for e in archive.records("experiment") if isinstance(e, Experiment) and e.experiment_id == wanted)
    runs = catalog.runs_of(place.experiment)
    states = Counter(run["status"] or "-" if run["lifecycle_stage"] == "active" else "deleted" for run in runs)
    return {
        "bundle": archive.url,
        "snapshot": archive.snapshot_id,
        "kind": "experiment",
        **plain(record),
        "runs": len(runs),
        "run_states": dict(sorted(states.items())),
        "metric_points": sum(run["metric_rows"] for run in runs),
        "files": sum(run["file_rows"] for run in runs),
    }


def _run(archive: Bundle, place: Place) -> dict[str, Any]:
    assert place.run is not None
    record = archive.run(place.run["run_id"])
    return {
        "bundle": archive.url,
        "snapshot": archive.snapshot_id,
        "kind": "run",
        "experiment_name": place.experiment["name"] if place.experiment else None,
        **plain(record),
        "metric_points": place.run["metric_rows"],
        "latest_metrics": _latest(archive, place.run),
        "files": [plain(file) for file in place.files],
    }


def _latest(archive: Bundle, run: Row) -> list[dict[str, Any]]:
    """The latest point of each metric key."""
    runs = archive.runs()
    row = runs.column("run_id").to_pylist().index(run["run_id"])
    return [{"key": key, **plain(point)} for key, point in runs.column("latest_metrics")[row].as_py()]


# -- for people -------------------------------------------------------------------------------------------------------


def _print_snapshot(document: dict[str, Any]) -> None:
    source, writer = document["source"], document["writer"]
    lines = [
        ("bundle", document["bundle"]),
        ("id", document["bundle_id"]),
        ("root", document["root_digest"]),
        ("logical", document["logical_root"]),
        ("made", f"{time_text(document['created_at'])} by {writer['name']} {writer['version']}"),
        ("source", f"{source['uri']} ({' '.join(filter(None, (source['kind'], source['version'])))})"),
        *(("" if number else "absent", line) for number, line in enumerate(wrap(", ".join(source["absent"]), _WIDTH))),
        ("scope", scope_text(document["scope"])),
        ("holds", f"{counts_text(document['counts'])} ({bytes_text(document['counts'].get('file_bytes', 0))})"),
        ("stored", f"{plural(document['objects'], 'object')}, {bytes_text(document['object_bytes'])}"),
        ("history", f"{plural(document['snapshots'], 'snapshot')} in this bundle"),
        *(("note", note) for note in document["notes"]),
    ]
    put(f"snapshot {document['snapshot']}  {document['state']}")
    _print_pairs((name, value) for name, value in lines if value)
    _print_problems(document["problems"])


def _print_problems(problems: Sequence[dict[str, Any]]) -> None:
    if problems:
        put("")
        put(f"could not be read ({len(problems):,}):")
        table((), (("", clean(problem["code"]), clean(problem["message"])) for problem in problems))


def _print_experiment(document: dict[str, Any]) -> None:
    states = ", ".join(f"{count:,} {clean(name)}" for name, count in document["run_states"].items())
    names = ("name", "experiment_id", "lifecycle_stage", "artifact_location", "creation_time", "last_update_time", "workspace")
    _print_pairs(
        (
            *_fields(document, names),
            ("runs", f"{document['runs']:,}" + (f" ({states})" if states else "")),
            ("points", f"{document['metric_points']:,}"),
            ("files", f"{document['files']:,}"),
        )
    )
    _print_key_values("tags", document["tags"])


def _print_run(document: dict[str, Any], *, drawn: Mapping[str, str]) -> None:
    left_out = {*_RUN_FIELDS, *_LISTS, "bundle", "snapshot", "kind", "metric_points", "latest_metrics", "files"}
    _print_pairs(_fields(document, (*_RUN_FIELDS, *(name for name in document if name not in left_out))))
    _print_key_values("params", document["params"])
    _print_key_values("tags", document["tags"])
    for found in document["inputs"]:
        dataset = found["dataset"]
        tags = ", ".join(f"{clean(tag['key'])}={clean(tag['value'])}" for tag in found["tags"])
        put("")
        put(f"dataset {clean(dataset['name'])} {clean(dataset['digest'])}" + (f" ({tags})" if tags else ""))
    for model in document["model_inputs"]:
        put("")
        put(f"model read {clean(model['model_id'])}")
    for model in document["model_outputs"]:
        put("")
        put(f"model made {clean(model['model_id'])} (step {model['step']:,})")
    if document["latest_metrics"]:
        put("")
        put(f"metrics ({plural(document['metric_points'], 'point')}), latest:")
        rows = (
            (
                f"  {clean(m['key'])}",
                _number(m["value"]),
                f"step {m['step']:,}",
                *((drawn.get(m["key"], ""),) if drawn else (time_text(m["timestamp"]),)),
            )
            for m in document["latest_metrics"]
        )
        table((), rows, flexible=0, right=(1, 2))
    if files := document["files"]:
        put("")
        put(f"files ({len(files):,}, {bytes_text(sum(file['size'] for file in files))}):")
        table((), ((f"  artifacts/{clean(file['path'])}", _size(file)) for file in files), flexible=0, right=(1,))


def _size(file: dict[str, Any]) -> str:
    return bytes_text(file["size"]) if file["sha256"] else clean(file["state"])


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _fields(document: dict[str, Any], names: Iterable[str]) -> Iterator[tuple[str, object]]:
    """Those fields of a record that say something, in words."""
    for name in names:
        value = document.get(name)
        if value not in (None, "", []):
            yield name.replace("_", " "), time_text(value) if name in _TIMES else value


def _print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    table((), ((clean(name), clean(value)) for name, value in pairs))


def _print_key_values(name: str, items: Sequence[dict[str, str] | KeyValue]) -> None:
    if items:
        put("")
        put(f"{name} ({len(items):,}):")
        rows = ((f"  {clean(item['key'])}", clean(item["value"])) for item in items)  # type: ignore[index]
        table((), rows, flexible=1)
