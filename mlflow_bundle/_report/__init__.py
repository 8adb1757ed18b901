"""``report``: an archive as one HTML page to hand over, which opens from disk without a network."""

from mlflow_bundle._report._page import report_html

__all__ = ["report_html"]
