"""What the rest of the package has to know of each kind of record: a new entity is a new row of ``KINDS``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Final

import msgspec
from msgspec import UNSET, UnsetType

from mlflow_bundle import entities as e

__all__ = [
    "KINDS",
    "NO_TIME",
    "PARENT_TAG",
    "PROMPT_TAG",
    "Kind",
    "OrderKey",
    "Reference",
    "full_name",
    "order_key",
    "record_id",
]

OrderKey = tuple[int, str]
#: A kind and the id of one of its records.
Reference = tuple[str, str]

#: Stands for an absent time in order keys: entities without one come last.
NO_TIME: Final = 2**53 - 1
#: The tag of a run that names its parent, and the one that makes a registered model or a version a prompt.
PARENT_TAG: Final = "mlflow.parentRunId"
PROMPT_TAG: Final = "mlflow.prompt.is_prompt"
#: Names of the tables that records own, as in their key_value_metadata.
_METRICS, _MODEL_METRICS, _SPANS, _FILES = "metrics/1", "model_metrics/1", "spans/1", "files/1"


def _nothing(_: Any) -> tuple[Any, ...]:
    return ()


class Kind(msgspec.Struct, frozen=True):
    """A kind of record.

    ``rank`` orders the kinds. ``identify`` gives the id, unique within the kind, ``created`` the time that orders records.
    ``tables`` are the tables whose rows belong to a record: their digests follow that of the record in its leaf.
    ``locations`` are members that say where the source keeps files: archived, and no part of the logical root, because a
    restore puts the files elsewhere and is the same all the same. ``experiments`` are the experiments that the entity
    is in, none for what belongs to a whole server. ``references`` are other records that it names.
    """

    name: str
    type: type[e.Record]
    rank: int
    identify: Callable[[Any], str]
    created: Callable[[Any], int | UnsetType]
    tables: tuple[str, ...] = ()
    locations: tuple[str, ...] = ()
    experiments: Callable[[Any], tuple[str, ...]] = _nothing
    references: Callable[[Any], Iterable[Reference]] = _nothing

    @property
    def is_server_wide(self) -> bool:
        """Whether the entity belongs to a server and not to experiments."""
        return self.experiments is _nothing


def _in_workspace(name: str, workspace: str | UnsetType) -> str:
    """Names are unique within a workspace; ids are unique within a bundle."""
    return name if workspace in (UNSET, "", "default") else f"{workspace}/{name}"


def full_name(record: Any) -> str:
    """The name that is unique within a workspace: of a skill ``@organization/name`` where it belongs to one."""
    organization = getattr(record, "organization", "")
    return f"@{organization}/{record.name}" if organization else record.name


def _skill(record: Any) -> str:
    return _in_workspace(full_name(record), record.workspace)


def _own_experiment(record: Any) -> tuple[str, ...]:
    return (record.experiment_id,)


def _some(kind: str, *ids: str | UnsetType) -> list[Reference]:
    return [(kind, identity) for identity in ids if identity is not UNSET and identity]


def _of_run(run: e.Run) -> list[Reference]:
    parents = [tag.value for tag in run.tags if tag.key == PARENT_TAG]
    models = [*(link.model_id for link in run.model_inputs), *(link.model_id for link in run.model_outputs)]
    return [("experiment", run.experiment_id), *_some("run", *parents), *_some("logged_model", *models)]


def _of_version(version: e.ModelVersion) -> list[Reference]:
    if version.current_stage == "Deleted_Internal":  # what it named, MLflow has blanked out
        return [("registered_model", _in_workspace(version.name, version.workspace))]
    source = version.source if isinstance(version.source, str) else ""
    model = source.removeprefix("models:/").partition("/")[0] if source.startswith("models:/m-") else UNSET
    return [
        ("registered_model", _in_workspace(version.name, version.workspace)),
        *_some("run", version.run_id),
        *_some("logged_model", model),
    ]


def _of_trace(trace: e.Trace) -> list[Reference]:
    return [("experiment", trace.experiment_id), *_some("run", *trace.run_ids)]


def _of_endpoint(endpoint: e.GatewayEndpoint) -> list[Reference]:
    models = [mapping.model_definition_id for mapping in endpoint.model_mappings]
    return [*_some("experiment", endpoint.experiment_id), *_some("gateway_model_definition", *models)]


def _of_queue(queue: e.ReviewQueue) -> list[Reference]:
    traces = [item.item_id for item in queue.items if item.item_type.lower() == "trace"]
    return [("experiment", queue.experiment_id), *_some("label_schema", *queue.schema_ids), *_some("trace", *traces)]


#: Every kind of record, in archive order.
KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind(
                "workspace",
                e.Workspace,
                5,
                lambda r: r.name,
                lambda _: UNSET,
                locations=("default_artifact_root", "trace_archival_location"),
            ),
            Kind(
                "experiment",
                e.Experiment,
                10,
                lambda r: r.experiment_id,
                lambda r: r.creation_time,
                locations=("artifact_location",),
                experiments=_own_experiment,
            ),
            Kind(
                "run",
                e.Run,
                20,
                lambda r: r.run_id,
                lambda r: r.start_time,
                tables=(_METRICS, _FILES),
                locations=("artifact_uri",),
                experiments=_own_experiment,
                references=_of_run,
            ),
            Kind(
                "logged_model",
                e.LoggedModel,
                30,
                lambda r: r.model_id,
                lambda r: r.creation_timestamp_ms,
                tables=(_MODEL_METRICS, _FILES),
                locations=("artifact_uri",),
                experiments=_own_experiment,
                references=lambda r: [("experiment", r.experiment_id), *_some("run", r.source_run_id)],
            ),
            Kind(
                "registered_model",
                e.RegisteredModel,
                40,
                lambda r: _in_workspace(r.name, r.workspace),
                lambda r: r.creation_timestamp,
            ),
            Kind(
                "model_version",
                e.ModelVersion,
                45,
                lambda r: f"{_in_workspace(r.name, r.workspace)}/{r.version}",
                lambda r: r.creation_timestamp,
                tables=(_FILES,),
                locations=("source", "storage_location"),
                references=_of_version,
            ),
            Kind(
                "issue",
                e.Issue,
                48,
                lambda r: r.issue_id,
                lambda r: r.created_timestamp,
                experiments=_own_experiment,
                references=lambda r: [("experiment", r.experiment_id), *_some("run", r.source_run_id)],
            ),
            Kind(
                "trace",
                e.Trace,
                50,
                lambda r: r.trace_id,
                lambda r: r.request_time,
                tables=(_SPANS, _FILES),
                locations=("artifact_uri", "spans_location", "archive_location"),
                experiments=_own_experiment,
                references=_of_trace,
            ),
            Kind(
                "evaluation_dataset",
                e.EvaluationDataset,
                60,
                lambda r: r.dataset_id,
                lambda r: r.created_time,
                experiments=lambda r: r.experiment_ids,
                references=lambda r: _some("experiment", *r.experiment_ids),
            ),
            Kind(
                "dataset_record",
                e.DatasetRecord,
                65,
                lambda r: r.dataset_record_id,
                lambda r: r.created_time,
                references=lambda r: [("evaluation_dataset", r.dataset_id)],
            ),
            Kind(
                "scorer",
                e.Scorer,
                70,
                lambda r: f"{r.experiment_id}/{r.scorer_name}",
                lambda r: r.versions[0].creation_time if r.versions else UNSET,
                experiments=_own_experiment,
                references=lambda r: [("experiment", r.experiment_id)],
            ),
            Kind(
                "label_schema",
                e.LabelSchema,
                72,
                lambda r: r.schema_id,
                lambda r: r.created_time,
                experiments=_own_experiment,
                references=lambda r: [("experiment", r.experiment_id)],
            ),
            Kind(
                "review_queue",
                e.ReviewQueue,
                74,
                lambda r: r.queue_id,
                lambda r: r.creation_time_ms,
                experiments=_own_experiment,
                references=_of_queue,
            ),
            Kind("webhook", e.Webhook, 80, lambda r: r.webhook_id, lambda r: r.creation_timestamp),
            Kind("gateway_secret", e.GatewaySecret, 82, lambda r: r.secret_id, lambda r: r.created_at),
            Kind(
                "gateway_model_definition",
                e.GatewayModelDefinition,
                83,
                lambda r: r.model_definition_id,
                lambda r: r.created_at,
                references=lambda r: _some("gateway_secret", r.secret_id),
            ),
            Kind(
                "gateway_endpoint",
                e.GatewayEndpoint,
                84,
                lambda r: r.endpoint_id,
                lambda r: r.created_at,
                references=_of_endpoint,
            ),
            Kind("budget_policy", e.BudgetPolicy, 85, lambda r: r.budget_policy_id, lambda r: r.created_at),
            Kind(
                "guardrail",
                e.Guardrail,
                86,
                lambda r: r.guardrail_id,
                lambda r: r.created_at,
                references=lambda r: [
                    *_some("gateway_endpoint", r.action_endpoint_id, *(config.endpoint_id for config in r.configs))
                ],
            ),
            Kind("mcp_server", e.McpServer, 90, lambda r: _in_workspace(r.name, r.workspace), lambda r: r.created_at),
            Kind(
                "mcp_server_version",
                e.McpServerVersion,
                92,
                lambda r: f"{_in_workspace(r.name, r.workspace)}/{r.version}",
                lambda r: r.created_at,
                references=lambda r: [("mcp_server", _in_workspace(r.name, r.workspace))],
            ),
            Kind(
                "mcp_access_endpoint",
                e.McpAccessEndpoint,
                94,
                lambda r: r.id,
                lambda r: r.created_at,
                references=lambda r: [("mcp_server", _in_workspace(r.server_name, r.workspace))],
            ),
            Kind("skill", e.Skill, 96, _skill, lambda r: r.created_at),
            Kind(
                "skill_version",
                e.SkillVersion,
                98,
                lambda r: f"{_skill(r)}/{r.version}",
                lambda r: r.created_at,
                tables=(_FILES,),
                locations=("source",),
                references=lambda r: [("skill", _skill(r))],
            ),
        )
    }
)


def _kind(record: e.Record) -> Kind:
    return KINDS[str(record.__struct_config__.tag)]


def record_id(record: e.Record) -> str:
    """The id of the entity, unique within its kind."""
    identify: str = _kind(record).identify(record)
    return identify


def order_key(record: e.Record) -> OrderKey:
    """Where the record stands among those of its kind: (creation or start time, id)."""
    kind = _kind(record)
    created = kind.created(record)
    return (NO_TIME if created is UNSET else created, kind.identify(record))
