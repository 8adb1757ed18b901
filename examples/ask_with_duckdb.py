"""SQL over an archive: ``ask_with_duckdb.py s3://backups/mlflow``. Needs ``pip install duckdb``."""

import sys

import mlflow_bundle as bundle

BEST = """
    SELECT experiment_name, run_name, round(value, 4) AS accuracy
    FROM latest_metrics JOIN runs USING (run_id)
    WHERE key = 'accuracy'
    ORDER BY value DESC
    LIMIT 5
"""


def main(place: str) -> None:
    """Print the best runs, then the mean accuracy by a param."""
    with bundle.open(place) as archive:
        print(archive.sql(BEST).to_pandas().to_string(index=False))
        con = archive.duckdb()
        con.sql(
            """
            SELECT p.key AS param, p.value, count(*) AS runs, avg(m.value) AS mean_accuracy
            FROM params p JOIN latest_metrics m USING (run_id)
            WHERE m.key = 'accuracy'
            GROUP BY ALL
            ORDER BY ALL
            LIMIT 20
            """
        ).show()
        con.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except bundle.BundleError as error:
        sys.exit(str(error))
