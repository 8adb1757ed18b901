"""What runs in a process of its own: ``python -m tests.benchmarks.child MODULE.WORK OPTIONS``. The last line of stdout is JSON.

Imports come before the clock starts, as the start of the peer's commands is taken off their time.
"""

from __future__ import annotations

import importlib
import json
import re
import resource
import sys
import time
from pathlib import Path


def _peak() -> int:
    """Peak resident memory of this process in bytes.

    On Linux ``ru_maxrss`` may still hold the peak of the process that started this one, so the kernel's own mark is read.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Prepare, work, tell."""
    name, options = sys.argv[1:]
    module, function = name.split(".")
    work = getattr(importlib.import_module(f"tests.benchmarks.{module}"), function)(**json.loads(options))
    started, processor = time.perf_counter(), time.process_time()
    answer = work()
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    print(json.dumps({"seconds": seconds, "processor": processor, "peak": _peak(), "answer": answer}))


if __name__ == "__main__":
    main()
