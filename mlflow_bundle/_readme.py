"""The README inside every bundle: how to get everything out with tools that everybody has."""

from typing import Final

__all__ = ["BUNDLE_README"]

BUNDLE_README: Final = """\
# An MLflow bundle

This folder (or ZIP file) is an archive of what MLflow held, in the format mlflow-bundle, layout 1.
Nothing in it is ever changed; new snapshots only add files. No special software is needed to read it.

    mlflow-bundle.json        what this is
    snapshots/*.json          one document per backup: counts, source, and the list of objects it needs
    objects/records/          experiments, runs, models, traces and all else, each with its "kind": JSON lines, zstd
    objects/metrics/          metric histories of runs: Parquet
    objects/model_metrics/    metrics of logged models: Parquet
    objects/spans/            spans of traces: Parquet
    objects/files/            which artifact file of which run, model or trace has which content: Parquet
    objects/index/            which content (SHA-256) lies where: Parquet
    objects/packs/            small contents: ZIP files, each entry is named by the SHA-256 of its content
    objects/blobs/            large contents, as they are
    objects/views/            tables that are derived from the rest: of the runs, and where things lie: Parquet
    objects/lists/            the list of objects of a large snapshot: JSON lines, zstd

Check it. The SHA-256 of every file below objects/ is its name:

    find objects -type f | while read -r f; do
      n=$(basename "$f"); test "$(sha256sum < "$f" | cut -c1-64)" = "${n%%.*}" || echo "DAMAGED $f"
    done

See which objects the newest snapshot needs (older snapshots may share some and need others). Where that prints nothing,
the list was long: `zstd -dc` the object that "object_lists" names. A snapshot that is no whole JSON was cut off: take the
one before.

    jq -r '.objects[].path' "$(ls snapshots/*.json | tail -n 1)"

A pattern such as `objects/metrics/*.parquet` takes what ALL snapshots hold: a run that several snapshots have comes several
times, once for each state in which it was found. To read one snapshot alone, name the objects that it lists:

    newest=$(ls snapshots/*.json | tail -n 1)
    zstd -dc $(jq -r '.objects[] | select(.role == "records").path' "$newest") | jq -c 'select(.kind == "run").run_id'

and in DuckDB, in place of `'objects/metrics/*.parquet'` below, `read_parquet(...)` with the list that this prints (likewise
for the roles "files", "spans", "model_metrics" and "index"):

    role=metrics
    jq -c --arg role "$role" '[.objects[] | select(.role == $role).path]' "$(ls snapshots/*.json | tail -n 1)" | tr '"' "'"

Read the runs, here and below of all snapshots:

    zstd -dc objects/records/*.jsonl.zst | jq -c 'select(.kind == "run") | {run_id, run_name, status}'

Read the metrics, in DuckDB:

    select run_id, key, max(value) from 'objects/metrics/*.parquet' group by all;

Get a file back. Look up its content, then where that content lies:

    select path, sha256 from 'objects/files/*.parquet' where owner_id = '<run id>';
    select * from 'objects/index/*.parquet' where sha256 = '<sha256>' order by part;

    unzip -p objects/packs/ab/<pack>.zip <sha256> > model.pkl      # an object that is a pack
    cp objects/blobs/ab/<sha256> model.pkl                         # an object that is a blob; several parts: cat them in order

With the library: pip install mlflow-bundle; mlflow-bundle ls .; mlflow-bundle unpack . --tracking-uri URI
"""
