"""Evaluation and review at a server: which writer restores which kind."""

from __future__ import annotations

from mlflow_bundle.entities import Record, Scorer
from mlflow_bundle.records import Problem
from mlflow_bundle.tracking.rest._datasets_write import DatasetWriter
from mlflow_bundle.tracking.rest._evaluation_common import API3
from mlflow_bundle.tracking.rest._review_write import ReviewWriter
from mlflow_bundle.tracking.rest._road import Server
from mlflow_bundle.tracking.rest._scorers_write import ScorerWriter, code_problems

__all__ = ["API3", "EvaluationWriter"]


class EvaluationWriter:
    """Restores what experiments hold beside runs, models and traces. Everything is found again by its name, so that a
    second restore doubles nothing; datasets, whose names are not unique, by their source tags."""

    def __init__(self, server: Server) -> None:
        datasets, review = DatasetWriter(server), ReviewWriter(server)
        self.restore_datasets = datasets.restore
        self.restore_records = datasets.restore_records
        self.finish = datasets.finish
        self.restore_scorers = ScorerWriter(server).restore
        self.restore_schemas = review.restore_schemas
        self.restore_queues = review.restore_queues
        self.restore_issues = review.restore_issues
        self.name_taken = review.name_taken

    def cannot_hold(self, record: Record) -> list[Problem]:
        """Scorers that are program code, which a stock server refuses."""
        return code_problems(record) if isinstance(record, Scorer) else []
