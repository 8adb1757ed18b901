"""The hand-made content of the fixtures that is no experiment and no run: every other kind of record, with all its members."""

from __future__ import annotations

from typing import Any, Final

from mlflow_bundle import entities as e

#: 2023-11-14T22:13:20Z in milliseconds.
START: Final = 1_700_000_000_000
_RUN: Final = f"{1:032x}"
_NANO: Final = START * 1_000_000


def pairs(**values: str) -> tuple[e.KeyValue, ...]:
    """Tags or params in key order."""
    return tuple(e.KeyValue(key=key, value=value) for key, value in sorted(values.items()))


def _made(**more: Any) -> dict[str, Any]:
    """Who made and changed something, and when."""
    return {"created_by": "ada", "created_at": START, "last_updated_by": "ünal", "last_updated_at": START + 1, **more}


def _model(number: int, **more: Any) -> e.LoggedModel:
    fields = {"creation_timestamp_ms": START + number, "last_updated_timestamp_ms": START + number, "status": "READY"}
    return e.LoggedModel(model_id=f"m-{number:032x}", experiment_id="1", name=f"model {number}", **(fields | more))


def _trace(number: int, **more: Any) -> e.Trace:
    fields = {"request_time": START + number, "execution_duration": 12, "state": "OK"}
    return e.Trace(trace_id=f"tr-{number:032x}", experiment_id="1", **(fields | more))


_MODELS: Final = [
    _model(
        1,
        model_type="agent",
        source_run_id=_RUN,
        params=pairs(k="1"),
        tags=pairs(a="ü"),
        artifact_uri="mlflow-artifacts:/1/models/1",
    ),
    _model(2, status="FAILED", status_message="out of memory", lifecycle_stage="deleted"),
    e.LoggedModel(model_id="m-plain", experiment_id="1", name="plain"),
    e.RegisteredModel(
        name="shop",
        creation_timestamp=START,
        last_updated_timestamp=START + 1,
        description="all that is sold",
        tags=pairs(team="größe"),
        aliases=(e.Alias(alias="best", version=2),),
    ),
    e.RegisteredModel(name="shop", workspace="team-a", creation_timestamp=START),
    e.RegisteredModel(name="greeting", creation_timestamp=START + 5, tags=pairs(**{"mlflow.prompt.is_prompt": "true"})),
    e.ModelVersion(
        name="shop",
        version=1,
        creation_timestamp=START,
        last_updated_timestamp=START + 3,
        user_id="ada",
        current_stage="Production",
        description="the first",
        source=f"models:/m-{1:032x}",
        storage_location="mlflow-artifacts:/1/models/1",
        run_id=_RUN,
        run_link="https://example.org/run",
        status="READY",
        tags=pairs(ok="yes"),
    ),
    e.ModelVersion(name="shop", version=2, creation_timestamp=START + 1, source="s3://elsewhere/model", status="READY"),
    e.ModelVersion(
        name="shop", version=3, creation_timestamp=START + 2, current_stage="Deleted_Internal", status_message="gone"
    ),
    e.ModelVersion(name="shop", version=1, workspace="team-a", creation_timestamp=START + 3),
    e.ModelVersion(name="greeting", version=1, creation_timestamp=START + 5, tags=pairs(**{"mlflow.prompt.text": "Hi {{x}}"})),
]
_TRACES: Final = [
    _trace(
        1,
        client_request_id="req-1",
        request_preview='{"q": "größe?"}',
        response_preview='"yes"',
        artifact_uri="mlflow-artifacts:/1/traces/1",
        spans_location="TRACKING_STORE",
        archive_location="s3://archive/1",
        tags=pairs(**{"mlflow.traceName": "ask"}),
        trace_metadata=pairs(**{"mlflow.trace.session": "s-1"}),
        assessments=(
            e.Assessment(
                assessment_id="a-1",
                assessment_name="good",
                assessment_type="feedback",
                value="0.1",
                source_type="HUMAN",
                source_id="ada",
                create_time=START,
                last_update_time=START + 1,
                rationale="it is",
                span_id="0000000000000001",
                run_id=_RUN,
                overrides="a-0",
                valid=False,
                metadata=pairs(m="1"),
            ),
            e.Assessment(assessment_id="a-2", assessment_name="bad", assessment_type="issue", error='{"error_code": "E"}'),
        ),
        run_ids=(_RUN,),
        prompts=(e.PromptLink(name="greeting", version="1"),),
    ),
    _trace(2, state="ERROR"),
    e.Trace(trace_id="tr-plain", experiment_id="1"),
]
_EVALUATION: Final = [
    e.Issue(
        issue_id="iss-1",
        experiment_id="1",
        name="slow",
        description="too slow",
        status="pending",
        severity="high",
        root_causes='["network"]',
        categories="[]",
        metadata='{"seen": "often"}',
        source_run_id=_RUN,
        created_timestamp=START,
        last_updated_timestamp=START + 1,
        last_seen_timestamp=START + 2,
        created_by="ada",
        last_updated_by="bob",
    ),
    e.EvaluationDataset(
        dataset_id="d-1",
        name="questions",
        schema='{"inputs": {}}',
        profile='{"rows": 1.50}',
        digest="0badf00d",
        created_time=START,
        last_update_time=START + 1,
        created_by="ada",
        last_updated_by="ünal",
        tags=pairs(a=""),
        experiment_ids=("0", "1"),
    ),
    e.DatasetRecord(
        dataset_record_id="dr-1",
        dataset_id="d-1",
        inputs='{"q": 1.0}',
        outputs="null",
        expectations='{"a": 1e2}',
        tags="{}",
        source='{"trace_id": "tr-plain"}',
        source_id="tr-plain",
        source_type="TRACE",
        created_time=START,
        last_update_time=START + 1,
        created_by="ada",
        last_updated_by="ada",
    ),
    e.DatasetRecord(dataset_record_id="dr-2", dataset_id="d-1", created_time=START),
    e.Scorer(
        experiment_id="1",
        scorer_name="polite/größe",
        scorer_id="sc-1",
        versions=(
            e.ScorerVersion(scorer_version=1, serialized_scorer='{"name": "polite"}', creation_time=START),
            e.ScorerVersion(scorer_version=2, serialized_scorer="{}"),
        ),
        online=(e.OnlineScoring(online_scoring_config_id="oc-1", sample_rate="0.25", filter_string="status = 'OK'"),),
    ),
    e.Scorer(experiment_id="1", scorer_name="empty"),
    e.LabelSchema(
        schema_id="ls-1",
        experiment_id="1",
        name="quality",
        type="feedback",
        instruction="How good?",
        enable_comment=True,
        input_type="numeric",
        input_config='{"max_value": 5.0}',
        created_by="ada",
        created_time=START,
        last_update_time=START + 1,
        is_default=False,
    ),
    e.ReviewQueue(
        queue_id="q-1",
        experiment_id="1",
        name="to review",
        queue_type="USER",
        created_by="ada",
        creation_time_ms=START,
        last_update_time_ms=START + 1,
        users=("ada", "ünal"),
        schema_ids=("ls-1",),
        items=(
            e.ReviewItem(
                item_type="trace",
                item_id=f"tr-{1:032x}",
                status="COMPLETED",
                completed_by="ada",
                completed_time_ms=START + 9,
                creation_time_ms=START,
                last_update_time_ms=START + 9,
            ),
        ),
    ),
]
_SERVER: Final = [
    e.Workspace(name="default"),
    e.Workspace(
        name="team-a",
        description="a team",
        default_artifact_root="s3://team-a",
        trace_archival_location="s3://team-a/traces",
        trace_archival_retention="30d",
    ),
    e.Webhook(
        webhook_id="w-1",
        name="notify",
        url="https://example.org/hook",
        description="tells all",
        status="ACTIVE",
        events=(e.WebhookEvent(entity="registered_model", action="created"),),
        creation_timestamp=START,
        last_updated_timestamp=START + 1,
        deleted_timestamp=START + 2,
    ),
    e.GatewaySecret(secret_id="s-1", secret_name="key of a provider", provider="openai", description="", **_made()),
    e.GatewayModelDefinition(
        model_definition_id="d-1", name="large", secret_id="s-1", provider="openai", model_name="gpt-large", **_made()
    ),
    e.GatewayEndpoint(
        endpoint_id="e-1",
        name="chat",
        routing_strategy="REQUEST_BASED_TRAFFIC_SPLIT",
        fallback_config_json='{"max_attempts": 2}',
        experiment_id="1",
        usage_tracking=True,
        tags=pairs(a="b"),
        model_mappings=(
            e.GatewayModelMapping(
                mapping_id="mp-1",
                model_definition_id="d-1",
                weight="0.5",
                linkage_type="PRIMARY",
                fallback_order=0,
                created_by="ada",
                created_at=START,
            ),
        ),
        bindings=(e.GatewayBinding(resource_type="scorer", resource_id="sc-1", display_name="polite", **_made()),),
        **_made(),
    ),
    e.BudgetPolicy(
        budget_policy_id="b-1",
        budget_unit="USD",
        budget_amount="12.5",
        duration_unit="MONTHS",
        duration_value=1,
        target_scope="WORKSPACE",
        target_value="default",
        budget_action="REJECT",
        **_made(),
    ),
    e.Guardrail(
        guardrail_id="g-1",
        name="no secrets",
        scorer_id="sc-1",
        scorer_version=1,
        stage="AFTER",
        action="VALIDATION",
        action_endpoint_id="e-1",
        configs=(e.GuardrailConfig(endpoint_id="e-1", execution_order=1, created_by="ada", created_at=START),),
        **_made(),
    ),
    e.McpServer(
        name="org.example/tools",
        display_name="Tools",
        description="",
        icons="[]",
        tags=pairs(a="b"),
        aliases=(e.McpAlias(alias="live", version="1.0.0"),),
        **_made(),
    ),
    e.McpServerVersion(
        name="org.example/tools",
        version="1.0.0",
        server_json='{"name": "org.example/tools"}',
        status="active",
        tools="[]",
        source="https://example.org/tools",
        connect_options="{}",
        tags=pairs(a="b"),
        **_made(),
    ),
    e.McpAccessEndpoint(
        id="ae-1",
        server_name="org.example/tools",
        url="https://example.org/mcp",
        server_version="1.0.0",
        server_alias="live",
        transport_type="streamable-http",
        **_made(),
    ),
    e.Skill(
        name="review",
        organization="acme",
        description="reads code",
        icons='[{"src": "https://example.org/icon.png"}]',
        tags=pairs(a="b"),
        aliases=(e.Alias(alias="live", version=2),),
        **_made(),
    ),
    e.SkillVersion(
        name="review",
        organization="acme",
        version=1,
        source_type="git",
        source="https://example.org/skills.git",
        ref="main",
        subpath="review",
        digest="0" * 64,
        status="deprecated",
        **_made(),
    ),
    e.SkillVersion(
        name="review",
        organization="acme",
        version=2,
        source_type="mlflow",
        source="mlflow-artifacts:/skills/@acme/review/0123456789abcdef0123456789abcdef",
        digest="1" * 64,
        status="active",
        tags=pairs(a="b"),
        **_made(),
    ),
]

#: Every kind but experiments and runs.
ENTITIES: Final[list[e.Record]] = [*_MODELS, *_TRACES, *_EVALUATION, *_SERVER]


def span(number: int, **more: Any) -> tuple[Any, ...]:
    """A span as a row of ROW_SCHEMAS without the owner."""
    fields: dict[str, Any] = {
        "span_id": f"{number:016x}",
        "parent_span_id": None,
        "name": "ask",
        "type": "LLM",
        "status": "OK",
        "start_time_unix_nano": _NANO + number,
        "end_time_unix_nano": _NANO + number + 1_000,
        "content": '{"name": "ask", "größe": [1.50]}',
        "input_cost": None,
        "output_cost": None,
        "total_cost": None,
        "model_name": None,
        "model_provider": None,
    }
    return tuple((fields | more).values())


_COSTS: Final = {"input_cost": 0.1, "output_cost": 0.2, "total_cost": 0.3, "model_name": "gpt", "model_provider": "openai"}
#: What some of them own, in the order of ROW_SCHEMAS without the owner.
ROWS: Final[dict[str, dict[str, list[tuple[Any, ...]]]]] = {
    "model_metrics/1": {
        f"m-{1:032x}": [
            ("acc", 0, START, -0.0, _RUN, None, None),
            ("acc", 0, START, 0.75, f"{2:032x}", "träning", "0badf00d"),
            ("acc", 1, START, None, _RUN, "träning", "0badf00d"),
            ("größe", -1, START, float("nan"), _RUN, None, None),
        ],
        "m-plain": [("acc", 0, START, 1.0, _RUN, None, None)],
    },
    "spans/1": {
        f"tr-{1:032x}": [
            span(1, **_COSTS),
            span(2, parent_span_id=f"{1:016x}", status="ERROR", end_time_unix_nano=None),
            span(3, parent_span_id=f"{1:016x}", name=None, type=None, content="{}"),
        ],
        "tr-plain": [span(1), span(2)],
    },
}
#: Their files, by the id of the owner.
FILES: Final[dict[str, dict[str, bytes | None]]] = {
    f"m-{1:032x}": {"MLmodel": b"flavors: {}\n", "weights.bin": bytes(range(200))},
    "shop/2": {"model/MLmodel": b"flavors: {}\n", "lost.bin": None},
    "team-a/shop/1": {"own.txt": b"its own\n"},
    f"tr-{2:032x}": {"traces.json": b'{"spans": []}', "attachments/größe.png": b"\x89PNG"},
}
