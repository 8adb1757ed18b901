"""Load a model out of an archive: ``load_model.py churn.mlbundle.zip``. MLflow reads its files from there, one by one."""

import sys

import mlflow

import mlflow_bundle as bundle


def main(place: str) -> None:
    """Load the newest logged model and print what it is."""
    with bundle.open(place) as archive:
        models = archive.models().to_pylist()
    if not models:
        sys.exit(f"{place} has no logged model")
    newest = models[-1]
    print(f"{newest['name']} {newest['model_id']}")
    model = mlflow.pyfunc.load_model(f"mlflow-bundle://logged_models/{newest['model_id']}::{place}")
    print(model)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except bundle.BundleError as error:
        sys.exit(str(error))
