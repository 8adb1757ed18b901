"""Open an archive in the stock MLflow UI, and ask it with MLflow's own client: ``open_in_the_ui.py churn.mlbundle.zip``.

Nothing is restored: the metadata goes into a SQLite file, artifacts are read from the archive when somebody looks at them.
"""

import json
import subprocess
import sys

import mlflow


def main(place: str) -> None:
    """Serve the archive, list its experiments through the server, and stop it again."""
    command = [sys.executable, "-m", "mlflow_bundle", "serve", place, "--port", "0", "--no-open", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            text = ""
            while not text.endswith("\n}\n"):  # one JSON document, when the server answers
                line = server.stdout.readline()
                if not line:  # it ended, and has said why
                    sys.exit(server.wait())
                text += line
            said = json.loads(text)
            print(f"open {said['url']}")
            mlflow.set_tracking_uri(said["url"])
            for experiment in mlflow.search_experiments():
                print(experiment.experiment_id, experiment.name, len(mlflow.search_runs([experiment.experiment_id])))
        finally:
            server.terminate()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
