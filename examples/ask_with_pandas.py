"""Data frames out of an archive: ``ask_with_pandas.py churn.mlbundle.zip``. Tables are Arrow tables; nothing is restored."""

import sys

import mlflow_bundle as bundle


def main(place: str) -> None:
    """Print the runs with their params and metrics as columns, and how the loss of the newest one fell."""
    with bundle.open(place) as archive:
        runs = archive.runs(wide=True).to_pandas()  # the columns of mlflow.search_runs
        if runs.empty:
            sys.exit(f"{place} has no runs")
        columns = ["run_id", "status", *(name for name in runs if name.startswith(("params.", "metrics.")))]
        print(runs[columns].to_string(index=False))
        newest = runs.sort_values("start_time").iloc[-1]
        loss = archive.metrics(run_id=newest.run_id, key="loss").to_pandas()
        print(loss[["step", "value"]].describe().to_string())


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except bundle.BundleError as error:
        sys.exit(str(error))
