"""The scripts that ``mlflow-bundle demo`` writes and runs: what a user of MLflow and of an archive would write."""

from __future__ import annotations

from typing import Final

__all__ = ["ASK", "QUERY", "TRAIN"]

TRAIN: Final = '''\
"""Logistic regression by gradient descent with several learning rates, logged to MLflow."""

import mlflow
import numpy as np

STEPS = 40
random = np.random.default_rng(7)
customers = np.c_[np.ones(2000), random.normal(size=(2000, 3))]
churned = (customers @ [0.3, 2.0, -1.0, 0.5] + random.logistic(size=2000) > 0).astype(float)
x, y, x_test, y_test = customers[:1500], churned[:1500], customers[1500:], churned[1500:]

mlflow.set_tracking_uri("sqlite:///training.db")
mlflow.set_experiment("churn")
with mlflow.start_run(run_name="sweep"):
    mlflow.log_input(mlflow.data.from_numpy(x, targets=y, name="customers"), context="training")
    accuracies = []
    for rate in (0.01, 0.1, 1.0, 10.0):
        with mlflow.start_run(run_name=f"rate-{rate}", nested=True):
            mlflow.log_params({"rate": rate, "steps": STEPS})
            weights = np.zeros(4)
            for step in range(STEPS):
                guess = 1 / (1 + np.exp(-x @ weights))
                loss = np.mean(np.logaddexp(0, x @ weights) - y * (x @ weights))
                accuracy = np.mean((x_test @ weights > 0) == y_test)
                mlflow.log_metrics({"loss": loss, "accuracy": accuracy}, step=step)
                weights -= rate * x.T @ (guess - y) / len(y)
            mlflow.log_dict({"weights": weights.tolist()}, "model/weights.json")
            accuracies.append(accuracy)
    mlflow.log_metric("best_accuracy", max(accuracies))
'''

QUERY: Final = """\
import mlflow_bundle as bundle

with bundle.open("churn.mlbundle") as archive:
    runs = archive.runs(wide=True).to_pandas()
columns = ["tags.mlflow.runName", "status", "params.rate", "metrics.loss", "metrics.accuracy"]
print(runs[columns].to_string(index=False))
"""

ASK: Final = """\
import duckdb

duckdb.sql('''
    select run_id[:8] as run, count(*) as points, arg_min(value, step) as first, min(value) as best
    from 'churn.mlbundle/objects/metrics/*.parquet'
    where key = 'loss' group by run_id order by best
''').show()
"""
