"""The command ``mlflow-bundle``."""
