"""Every way in which the fixtures are damaged, with the code that a verification reports for it."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from _fixture_content import MINIMAL, START, TINY, Content, pack_content, pairs, run_id
from _fixture_workshop import Workshop, flipped, lines_in, lines_object, table_object, with_column

from mlflow_bundle import _layout
from mlflow_bundle._codec import encode
from mlflow_bundle._limits import Targets
from mlflow_bundle.records import Experiment, Run

Edit = Callable[[Workshop], None]


@dataclass(frozen=True)
class Damage:
    """One bad bundle. ``mend``: everything that follows from the edit is made consistent again, so that just the edit is wrong."""

    code: str
    what: str
    edit: Edit
    mend: bool = False
    base: str = "small"
    limits: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the fixture."""
        return f"{self.code}_{self.what}"

    def write(self, folder: Path, bases: Mapping[str, Path]) -> None:
        """Write the bundle, and the lowered limits beside it."""
        shop = Workshop(bases[self.base])
        before = shop.path, json.dumps(shop.snapshot)
        self.edit(shop)
        if self.mend:
            shop.mend()
        if (shop.path, json.dumps(shop.snapshot)) != before and shop.path == before[0]:
            shop.commit()
        shop.save(folder / self.name)
        if self.limits:
            (folder / f"{self.name}.limits.json").write_text(json.dumps(self.limits) + "\n", encoding="utf-8")


def _small(place: Path) -> None:
    """Two experiments, four runs; files in a pack, as a blob, and as a blob in parts."""
    runs = [
        Run(run_id=run_id(n), experiment_id=str(n % 2), start_time=START + n, status="FINISHED", tags=pairs(n=str(n)))
        for n in range(1, 5)
    ]
    content = Content(
        experiments=[Experiment(experiment_id=str(n), name=f"experiment {n}", creation_time=START + n) for n in range(2)],
        runs=runs,
        metrics={run.run_id: [(key, s, START + s, s / 4) for key in ("acc", "loss") for s in range(4)] for run in runs[:3]},
        files={
            runs[0].run_id: {"a.txt": b"first\n", "shrinks.txt": b"again and " * 20, "whole.bin": bytes(range(256)) + b"."},
            runs[1].run_id: {"a.txt": b"second\n", "parts.bin": b"".join(bytes([n]) * 200 for n in range(6))},
        },
    )
    pack_content(place, content, targets=Targets(blob_bytes=257, split_bytes=1_000, part_bytes=500))


BASES: Final[dict[str, Callable[[Path], None]]] = {
    "small": _small,
    "lists": lambda place: pack_content(place, MINIMAL, targets=Targets(inline_bytes=100)) and None,
    "frames": lambda place: pack_content(place, MINIMAL, targets=TINY) and None,
}

WARN: Final[list[Damage]] = []
BAD: Final[list[Damage]] = []
