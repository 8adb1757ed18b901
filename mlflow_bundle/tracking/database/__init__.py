"""Reading from and writing to a tracking database, without MLflow."""
