"""Each bad or doubtful fixture is noticed for its own reason, and not for another that has the same code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

import mlflow_bundle as bundle
from mlflow_bundle._limits import Limits
from mlflow_bundle.errors import BundleError

FIXTURES: Final = Path(__file__).parent.parent / "spec" / "v1" / "fixtures"

#: Words of the message that a verification has for what is wrong, by the name of the fixture.
CAUSES: Final[Mapping[str, str]] = {
    "E010_another_format": "says the format 'something-else'",
    "E010_another_hash": "says the hash 'blake3'",
    "E010_marker_is_no_json": "not a valid document: Input data was truncated",
    "E010_newer_layout": "says layout 2",
    "E010_no_marker": "mlflow-bundle.json is missing",
    "E010_unknown_feature": "lacks (chunked-blobs)",
    "E020_damaged_before_a_whole_one": "snapshots/20261120T000000.000Z",
    "E020_flipped_bit": "does not match its name",
    "E020_torn": "does not match its name",
    "E021_path_of_another_role": "is not the path of an object of role 'metrics'",
    "E021_path_outside": "'../../etc/passwd' is not the path",
    "E021_upper_case_digits": "is not the path of an object of role 'blobs'",
    "E022_flipped_bit_in_blob": "objects/blobs/",
    "E022_flipped_bit_in_metrics": "objects/metrics/",
    "E022_flipped_bit_in_pack": "objects/packs/",
    "E022_flipped_bit_in_records": "objects/records/",
    "E022_flipped_bit_in_view": "objects/views/",
    "E022_swapped_blobs": "objects/blobs/",
    "E023_another_time_than_the_name": "has another time in its name than inside",
    "E024_of_another_bundle": f"belongs to the bundle '{'f' * 32}'",
    "E025_missing_blob": "objects/blobs/",
    "E025_missing_metrics": "objects/metrics/",
    "E025_missing_records": "objects/records/",
    "E026_another_size_in_the_snapshot": "where the snapshot says 1",
    "E026_cut_object": "has 1,542 bytes where the snapshot says 1,543",
    "E027_listed_twice": "objects/metrics/",
    "E028_complete_with_problems": "is complete and lists 1 problems",
    "E028_partial_without_problems": "is partial and lists 0 problems",
    "E030_no_json": "Input data was truncated",
    "E030_not_canonical": "is not canonical JSON",
    "E030_size_is_text": "Expected `int`, got `str`",
    "E031_another_kind": "holds a record of kind 'experiment' where its reference says 'run'",
    "E031_float": "is not canonical JSON",
    "E031_name_twice": "is not canonical JSON",
    "E031_no_json": "Input data was truncated",
    "E031_not_canonical": "is not canonical JSON",
    "E031_without_run_id": "missing required field `run_id`",
    "E032_no_seek_table": "has no zstd seek table",
    "E032_seek_table_too_short": "has a zstd seek table that does not cover it",
    "E033_wrong_checksum": "checksum",
    "E034_other_content": "other rows, content or order keys",
    "E034_other_first_key": "other rows, content or order keys",
    "E034_other_rows": "other rows, content or order keys",
    "E034_no_lines": "objects/records/",
    "E034_short_list": "objects/lists/",
    "E040_no_parquet": "Parquet magic bytes not found",
    "E041_column_missing": "lacks the column 'step' of type int64",
    "E041_no_schema_name": "has the table schema '' where 'metrics/1'",
    "E041_null": "has nulls in the column 'key'",
    "E041_other_schema_name": "has the table schema 'metrics/2' where 'metrics/1'",
    "E041_span_without_content": "has nulls in the column 'content'",
    "E042_rows_of_a_run_apart": "in two places",
    "E042_spans_of_a_trace_apart": "holds rows of trace tr-0 in two places",
    "E042_traces_in_another_order": "holds traces in another order than that of their records",
    "E042_runs_in_another_order": "in another order than that of their records",
    "E043_page_checksum": "CRC checksum verification failed",
    "E044_other_content": "objects/files/",
    "E044_other_rows": "objects/metrics/",
    "E044_other_spans": "objects/spans/",
    "E045_model_metrics_out_of_order": "holds rows of one model_id out of order",
    "E045_points_out_of_order": "out of order",
    "E045_spans_out_of_order": "holds rows of one trace_id out of order",
    "E046_files_of_another_kind": "holds rows of logged_model tr-0, which has no record",
    "E046_model_metrics_elsewhere": "holds rows of logged_model m-0 in several experiments",
    "E046_spans_of_an_unknown_trace": "holds rows of trace tr-9, which has no record",
    "E046_files_of_an_unknown_run": "objects/files/",
    "E046_points_of_an_unknown_run": "objects/metrics/",
    "E046_points_of_another_experiment": "in another experiment than its record",
    "E047_files_out_of_order": "out of order",
    "E047_path_twice": " twice",
    "E048_negative_size": "with a size of -1 bytes",
    "E048_ok_without_content": "in the state 'ok' with the content None",
    "E048_unknown_state": "in the unknown state 'lost'",
    "E050_pack_entry_has_another_content": "is another one",
    "E050_size_of_a_file": "has another size than a file that names it",
    "E051_beyond_the_object": "beyond the bounds of an object",
    "E051_content_unknown": "is not in the index",
    "E051_no_index": "and 3 more is not in the index",
    "E051_object_not_listed": "in an object that the snapshot does not list",
    "E051_part_missing": "lacks parts in the index",
    "E051_unknown_codec": "with an unknown codec",
    "E052_does_not_inflate": "does not inflate: ",
    "E052_other_raw_length": "does not inflate to just 201 bytes",
    "E053_entry_has_another_name": "disagree about the content",
    "E053_no_zip": "does not end as a ZIP file",
    "E060_first_row": "metric_start",
    "E060_first_span": "table_start",
    "E060_record_digest": "record_digest",
    "E060_span_digest": "of trace tr-0 than its objects: table_digest",
    "E060_status": "what it repeats of the record",
    "E061_runs_out_of_order": "00000003 out of order",
    "E061_traces_out_of_order": "holds trace tr-0 out of order",
    "E062_run_twice": "several records of run 00000000000000000000000000000002",
    "E063_experiment_unknown": "experiment 9 of run",
    "E064_bytes_of_files": "of file_bytes;",
    "E064_metric_points": "of metric_point;",
    "E064_runs": "of run;",
    "E064_spans": "of span;",
    "E065_logical_root": f"not sha256:{'0' * 64}",
    "E065_root_of_traces": "other records: trace",
    "E070_bytes_at_the_end": "the central directory",
    "E070_flipped_bit_between_the_files": "the central directory",
    "E071_compressed": "is compressed",
    "E090_deep_record": "nests JSON deeper than 64 levels",
    "E091_zstd_bomb": "that claims 209,715,200",
    "E092_long_line": "has a line of",
    "E093_large_snapshot": "more than 1,000",
    "E094_large_records": "objects/records/",
    "E094_large_table": "objects/metrics/",
    "W010_object_that_no_snapshot_names": "objects/blobs/",
    "W011_object_that_no_snapshot_names_is_damaged": "does not match its name",
    "W012_file_that_is_no_part_of_the_format": "notes.txt",
    "W013_snapshot_cut_off_before_a_whole_one": "was cut off while it was written",
    "W090_password_in_a_uri": "what looks like a credential",
    "W091_absolute_path": "'/etc/passwd'",
    "W091_path_that_climbs_out": "'../../a.txt'",
    "W091_paths_that_collide": "that collides with another",
    "W091_reserved_name": "that Windows reserves for devices",
}
PLACES: Final = {
    path.name.removesuffix(".mlbundle.zip"): path
    for group in ("bad", "warn")
    for path in (FIXTURES / group).iterdir()
    if path.suffix != ".json"
}


def messages(place: Path) -> list[tuple[str, str]]:
    """(code, message) of all that a full verification says."""
    lowered = place.with_name(f"{place.name}.limits.json")
    limits = Limits(**json.loads(lowered.read_text(encoding="utf-8"))) if lowered.exists() else Limits()
    try:
        report = bundle.verify(place, level="full", limits=limits)
    except BundleError as error:
        return [(error.code, error.message)]
    return [(problem.code, problem.message) for problem in (*report.problems, *report.warnings)]


def test_each_fixture_has_a_cause() -> None:
    """A new fixture states here what a verification has to say of it."""
    assert CAUSES.keys() == PLACES.keys()


@pytest.mark.parametrize("name", sorted(PLACES))
def test_the_message_is_about_the_cause(name: str) -> None:
    """Among the messages under the code of the fixture is one about what was done to it."""
    said = [message for code, message in messages(PLACES[name]) if code == name[:4]]
    assert any(CAUSES[name] in message for message in said), said


def test_one_table_lacks_just_what_its_name_says() -> None:
    """The tables of the E041 fixtures are otherwise those of a good bundle: with the name of the schema, or all columns."""
    import pyarrow.parquet as pq  # noqa: PLC0415

    found = {}
    for name in ("column_missing", "null", "other_schema_name", "no_schema_name"):
        (path,) = (PLACES[f"E041_{name}"] / "objects" / "metrics").iterdir()
        file = pq.ParquetFile(path)
        named = (file.metadata.metadata or {}).get(b"mlflow_bundle.schema")
        found[name] = (named, "step" in file.schema_arrow.names, file.read(["key"]).column("key").null_count)
    assert found == {
        "column_missing": (b"metrics/1", False, 0),
        "null": (b"metrics/1", True, 1),
        "other_schema_name": (b"metrics/2", True, 0),
        "no_schema_name": (None, True, 0),
    }
