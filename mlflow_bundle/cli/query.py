"""``mlflow-bundle query``: SQL over a bundle, printed or written to a file."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click
import pyarrow as pa

from mlflow_bundle._bundle import Bundle, open_bundle
from mlflow_bundle._query import _files
from mlflow_bundle.cli._options import (
    LocalPath,
    bundle_argument,
    common,
    options_of,
    pass_state,
    snapshot_option,
    storage_option,
)
from mlflow_bundle.cli._output import State, plural, put, say
from mlflow_bundle.cli._results import json_rows, put_csv, put_table
from mlflow_bundle.errors import UsageError

__all__ = ["query"]

_EXAMPLE: Final = "select run_name, metrics['loss'] from runs order by start_time desc limit 10"


@click.command()
@bundle_argument
@click.argument("sql", metavar="[SQL]", default="")
@click.option("--csv", is_flag=True, help="Comma-separated values with a head.")
@click.option("--parquet", metavar="FILE", type=LocalPath(path_type=Path), help="Write the result to a new Parquet file.")
@click.option(
    "--export", metavar="FILE", type=LocalPath(path_type=Path), help="Write all views as tables to a new DuckDB file; no SQL."
)
@click.option("--views", is_flag=True, help="Print the views as SQL for DuckDB without mlflow-bundle; no SQL.")
@click.option("--all-snapshots", is_flag=True, help="All snapshots; the first column of every view is the snapshot.")
@snapshot_option
@storage_option
@common
@pass_state
def query(
    state: State,
    /,
    bundle: str,
    sql: str,
    *,
    csv: bool,
    parquet: Path | None,
    export: Path | None,
    views: bool,
    all_snapshots: bool,
    snapshot: str | None,
    storage_option: Sequence[str],
) -> None:
    """Ask a bundle in SQL (DuckDB); nothing is restored, and only what the question needs is read.

    Views are experiments, runs, params, tags, metrics, latest_metrics, files, models, registered_models, model_versions,
    aliases, prompts, traces, spans, assessments and one for every other kind: "show tables" lists them, "describe runs" their
    columns. Times are UTC.

    \b
    mlflow-bundle query BUNDLE "select run_name, metrics['loss'] from runs
                                where status = 'FINISHED' order by 2 limit 10"
    mlflow-bundle query BUNDLE "select params['lr'], avg(metrics['loss'])
                                from runs group by 1"

    In a pipe the columns are separated by tabs. Control characters are shown as escapes there and on terminals; --csv (in a
    pipe), --json and --parquet give exact values. SHA-256 is not checked: `mlflow-bundle verify` does that.
    """
    _check(
        sql,
        {"--export": export is not None, "--views": views},
        {"--csv": csv, "--parquet": parquet is not None, "--json": state.json},
    )
    if snapshot is not None and all_snapshots:
        raise UsageError("--snapshot and --all-snapshots exclude each other")
    with open_bundle(bundle, snapshot=snapshot, storage_options=options_of(storage_option)) as archive:
        if views:
            put(archive.views_sql(all_snapshots=all_snapshots).rstrip("\n"))
        elif export is not None:
            with contextlib.closing(archive.duckdb(all_snapshots=all_snapshots)) as con:
                tables = _files.export_tables(con, export)
            _told(state, archive, export, {"tables": tables}, plural(len(tables), "table"))
        else:
            result = archive.sql(sql, all_snapshots=all_snapshots)
            _answer(state, archive, result, csv=csv, parquet=parquet)


def _check(sql: str, without: dict[str, bool], forms: dict[str, bool]) -> None:
    """One form of answer, and SQL where it is a question."""
    chosen = [name for name, given in {**without, **forms}.items() if given]
    if [name for name in chosen if name in forms and name != "--json"] and len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} exclude each other")
    if without["--views"] and forms["--json"]:
        raise UsageError("--views and --json exclude each other: the views are SQL")
    others = [name for name, given in without.items() if given]
    if len(others) > 1:
        raise UsageError(f"{' and '.join(others)} exclude each other")
    if others and sql.strip():
        raise UsageError(f"{others[0]} takes no SQL: it gives all views")
    if not others and not sql.strip():
        raise UsageError("there is no SQL", hint=f'for example "{_EXAMPLE}"')


def _answer(state: State, archive: Bundle, result: pa.Table, *, csv: bool, parquet: Path | None) -> None:
    if parquet is not None:
        _files.write_parquet(result, parquet)
        _told(state, archive, parquet, {"rows": result.num_rows}, plural(result.num_rows, "row"))
    elif state.json:
        columns = [{"name": field.name, "type": str(field.type)} for field in result.schema]
        document = {"bundle": archive.url, "snapshot": archive.snapshot_id, "columns": columns, "rows": json_rows(result)}
        state.put(document)
    elif csv:
        put_csv(result)
    else:
        put_table(result)


def _told(state: State, archive: Bundle, place: Path, document: dict[str, Any], what: str) -> None:
    """What was written where."""
    if state.json:
        state.put({"bundle": archive.url, "snapshot": archive.snapshot_id, "file": str(place), **document})
    else:
        say(f"{what} in {place}")
