"""What people review: questions, queues, and the issues that were found."""

from __future__ import annotations

from msgspec import UNSET

from mlflow_bundle.entities._base import Document, Flag, Json, Milliseconds, Record, Text

__all__ = ["Issue", "LabelSchema", "ReviewItem", "ReviewQueue"]


class LabelSchema(Record, frozen=True, tag="label_schema"):
    """A question that reviewers answer."""

    schema_id: str
    experiment_id: str
    name: str
    type: Text = UNSET
    instruction: Text = UNSET
    enable_comment: Flag = UNSET
    input_type: Text = UNSET
    input_config: Json = UNSET
    created_by: Text = UNSET
    created_time: Milliseconds = UNSET
    last_update_time: Milliseconds = UNSET
    is_default: Flag = UNSET


class ReviewItem(Document, frozen=True):
    """A trace in a review queue."""

    item_type: str
    item_id: str
    status: Text = UNSET
    completed_by: Text = UNSET
    completed_time_ms: Milliseconds = UNSET
    creation_time_ms: Milliseconds = UNSET
    last_update_time_ms: Milliseconds = UNSET


class ReviewQueue(Record, frozen=True, tag="review_queue"):
    """A queue of traces to review, its users, its questions and its items."""

    queue_id: str
    experiment_id: str
    name: str
    queue_type: Text = UNSET
    created_by: Text = UNSET
    creation_time_ms: Milliseconds = UNSET
    last_update_time_ms: Milliseconds = UNSET
    users: tuple[str, ...] = ()
    schema_ids: tuple[str, ...] = ()
    items: tuple[ReviewItem, ...] = ()


class Issue(Record, frozen=True, tag="issue"):
    """A problem found in the traces of an experiment. ``root_causes``, ``categories`` and ``metadata`` are JSON texts."""

    issue_id: str
    experiment_id: str
    name: str
    description: Text = UNSET
    status: Text = UNSET
    severity: Text = UNSET
    root_causes: Json = UNSET
    categories: Json = UNSET
    metadata: Json = UNSET
    source_run_id: Text = UNSET
    created_timestamp: Milliseconds = UNSET
    last_updated_timestamp: Milliseconds = UNSET
    last_seen_timestamp: Milliseconds = UNSET
    created_by: Text = UNSET
    last_updated_by: Text = UNSET
