"""Back up a tracking server every night, for example from cron: ``nightly_backup.py http://mlflow:5000 s3://backups/mlflow``.

Only what is new is stored. Seven nights verify every byte; anything that is wrong ends with another code than 0.
"""

import datetime
import sys

import mlflow_bundle as bundle


def main(tracking_uri: str, place: str) -> int:
    """Add a snapshot, then check that it is whole: its tables all, of the large contents one part in seven."""
    report = bundle.pack(None, place, tracking_uri=tracking_uri)
    tonight = datetime.datetime.now(datetime.UTC).isoweekday()
    check = bundle.verify(place, subset=(tonight, 7))
    for note in report.notes:  # what may be missing, such as a folder that is not on this machine
        print(f"note: {note}", file=sys.stderr)
    for problem in check.problems:
        print(f"{problem.code} {problem.message}", file=sys.stderr)
    print(f"{report.snapshot}: {report.counts['run']:,} runs, {report.new_bytes:,} new bytes, root {report.root_digest}")
    return 0 if check.ok else 4


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        sys.exit(main(*sys.argv[1:]))
    except bundle.BundleError as error:
        for problem in getattr(error, "problems", ()):
            print(f"{problem.code} {problem.message}", file=sys.stderr)
        sys.exit(str(error))
