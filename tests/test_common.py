"""What two sources can both say of an entity."""

from __future__ import annotations

import pytest
from msgspec import UNSET

from mlflow_bundle._common import Common
from mlflow_bundle.entities import Assessment, KeyValue, LoggedModel, RegisteredModel, Run, Trace
from mlflow_bundle.records import Record, Source

DATABASE = Source(kind="sqlite", uri="sqlite:///x", absent=("skill", "run.tags"))
SERVER = Source(
    kind="rest",
    uri="http://x",
    absent=(
        "skill",
        "workspace",
        "run.tags",
        "run.source_type",
        "trace.assessments.run_id",
        "logged_model.unknown_deleted_ones",
    ),
)
ASSESSMENT = Assessment(assessment_id="a", assessment_name="n", assessment_type="feedback", run_id="r")
TRACE = Trace(trace_id="t", experiment_id="1", assessments=(ASSESSMENT,))
RUN = Run(run_id="r", experiment_id="1", source_type="LOCAL", user_id="me", tags=(KeyValue(key="k", value=""),))


@pytest.mark.parametrize("sides", [(DATABASE, SERVER), (SERVER, DATABASE)])
def test_what_one_side_lacks_is_left_out(sides: tuple[Source, Source]) -> None:
    """Kinds, members, members of listed items, and deleted entities that one side never shows; from either side."""
    common = Common(*sides)
    assert [common.has(kind) for kind in ("run", "workspace", "skill")] == [True, False, True]
    run = common.of(RUN)
    assert isinstance(run, Run)
    assert (run.source_type, run.user_id, run.tags) == (UNSET, "me", RUN.tags)
    trace = common.of(TRACE)
    assert isinstance(trace, Trace)
    assert (trace.assessments[0].run_id, trace.assessments[0].assessment_id) == (UNSET, "a")
    assert common.of(RegisteredModel(name="m", description="")) == RegisteredModel(name="m")
    gone, kept = (
        LoggedModel(model_id="m", experiment_id="1", name="n", lifecycle_stage=stage) for stage in ("deleted", "active")
    )
    assert (common.shows(gone), common.shows(kept)) == (False, True)
    assert common.hidden(["run"]) == ("run.source_type", "empty texts")


@pytest.mark.parametrize("record", [RUN, TRACE, RegisteredModel(name="m", description="")])
@pytest.mark.parametrize("source", [DATABASE, SERVER])
def test_one_source_hides_nothing_from_itself(source: Source, record: Record) -> None:
    """Two snapshots of the same source are compared in everything that they say."""
    common = Common(source, source)
    assert common.of(record) is record
    assert (common.hides("run"), common.hidden(["run", "skill"])) == (False, ())
