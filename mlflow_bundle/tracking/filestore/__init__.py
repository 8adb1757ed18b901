"""Reads file stores such as ``./mlruns`` of any release of MLflow, without MLflow."""
