"""Give one experiment to a colleague: ``hand_over.py http://mlflow:5000 churn`` makes ``churn.mlbundle.zip``, ``churn.html``.

A third argument is the folder for both. The ZIP file is a whole archive, to look into or to restore into any MLflow; the page
opens in a browser.
"""

import sys
from pathlib import Path

import mlflow_bundle as bundle


def main(tracking_uri: str, experiment: str, folder: str = ".") -> None:
    """Write both files into a folder."""
    archive_file = Path(folder) / f"{experiment}.mlbundle.zip"
    bundle.pack(experiment, archive_file, tracking_uri=tracking_uri)
    with bundle.open(archive_file) as archive:
        page = Path(folder) / f"{experiment}.html"
        page.write_text(bundle.report_html(archive), encoding="utf-8")
        print(f"{archive_file} and {page}; the colleague can prove that it is this archive by its root digest:")
        print(archive.root_digest)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except bundle.BundleError as error:
        sys.exit(str(error))
