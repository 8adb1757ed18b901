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


# -- the marker and the snapshot --------------------------------------------------------------------------------------


def _marker(**members: object) -> Edit:
    def edit(shop: Workshop) -> None:
        shop.files[_layout.MARKER] = encode(json.loads(shop.files[_layout.MARKER]) | members)

    return edit


def _snapshot(**members: object) -> Edit:
    return lambda shop: shop.snapshot.update(members)


def _encoded(change: Callable[[bytes], bytes]) -> Edit:
    """Commit other bytes than the canonical ones, under the name that is right for them."""
    return lambda shop: shop.commit(encoded=change(encode(shop.snapshot)))


def _raw(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of the snapshot document and keep its name."""

    def edit(shop: Workshop) -> None:
        shop.files[shop.path] = change(shop.files[shop.path])

    return edit


def _another_time(shop: Workshop) -> None:
    data = shop.files.pop(shop.path)
    shop.path = shop.path.replace("20261121T000000.000Z", "20261121T000000.001Z")
    shop.files[shop.path] = data


def _ref(role: str, kind: str | None = None, **members: object) -> Edit:
    """Let the reference of an object say something else."""
    return lambda shop: shop.ref(role, kind).update(members)


def _listed_twice(shop: Workshop) -> None:
    shop.snapshot["objects"].append(shop.ref(_layout.METRICS))


def _outside(shop: Workshop) -> None:
    shop.ref(_layout.METRICS)["path"] = "../../etc/passwd"


def _upper_case(shop: Workshop) -> None:
    ref = shop.ref(_layout.BLOBS)
    folder, _, stem = ref["path"].rpartition("/")
    shop.files[f"{folder}/{stem.upper()}"] = shop.files.pop(ref["path"])
    ref["path"] = f"{folder}/{stem.upper()}"


def _count(name: str) -> Edit:
    def edit(shop: Workshop) -> None:
        shop.snapshot["counts"][name] += 1

    return edit


def _logical_root(shop: Workshop) -> None:
    shop.snapshot["logical"]["root"] = "sha256:" + 64 * "0"


def _list_is_short(shop: Workshop) -> None:
    (listing,) = shop.snapshot["object_lists"]
    data = lines_object(lines_in(shop.files.pop(listing["path"]))[1:])
    listing["path"] = _layout.object_path(_layout.LISTS, hex_of(data))
    listing["size"] = len(data)
    shop.files[listing["path"]] = data


# -- objects ------------------------------------------------------------------------------------------------------------


def _flip(role: str, kind: str | None = None) -> Edit:
    def edit(shop: Workshop) -> None:
        path = shop.ref(role, kind)["path"]
        shop.files[path] = flipped(shop.files[path], len(shop.files[path]) // 2)

    return edit


def _cut(shop: Workshop) -> None:
    path = shop.ref(_layout.METRICS)["path"]
    shop.files[path] = shop.files[path][:-1]


def _missing(role: str, kind: str | None = None) -> Edit:
    def edit(shop: Workshop) -> None:
        del shop.files[shop.ref(role, kind)["path"]]

    return edit


def _swapped(shop: Workshop) -> None:
    one, two = (shop.ref(_layout.BLOBS, number=number)["path"] for number in (1, 2))
    shop.files[one], shop.files[two] = shop.files[two], shop.files[one]


def _foreign(shop: Workshop) -> None:
    shop.files[_layout.object_path(_layout.BLOBS, hex_of(b"foreign"))] = b"foreign"


def _foreign_and_wrong(shop: Workshop) -> None:
    shop.files[_layout.object_path(_layout.BLOBS, hex_of(b"foreign"))] = b"Foreign"


# -- records --------------------------------------------------------------------------------------------------------------


def _lines(kind: str, change: Callable[[list[bytes]], list[bytes]]) -> Edit:
    return lambda shop: shop.edit_lines(kind, change)


def _run_record(change: Callable[[bytes], bytes]) -> Edit:
    """Change the bytes of the first run's line. What follows from it cannot be mended, because it is no record any more."""
    return _lines("run", lambda lines: [change(lines[0]), *lines[1:]])


def _object_bytes(role: str, change: Callable[[bytes], bytes], kind: str | None = None) -> Edit:
    """Change the bytes of an object and give it the name that is right for them."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(role, kind)
        shop.swap(ref, change(shop.data(ref)))

    return edit


def _bad_frame(data: bytes) -> bytes:
    """Another byte in the checksum of the only frame."""
    place = len(data) - 17 - 8 - 1
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def _bomb(raw: int) -> bytes:
    """A frame of zeros that is a million times smaller."""
    stored = zstandard.ZstdCompressor(write_content_size=True, write_checksum=True).compress(bytes(raw))
    foot = struct.pack("<II", len(stored), raw) + struct.pack("<IBI", 1, 0, 0x8F92EAB1)
    return stored + struct.pack("<II", 0x184D2A5E, len(foot)) + foot


# -- tables -----------------------------------------------------------------------------------------------------------------


def _table(role: str, schema: str, change: Callable[[pa.Table], pa.Table]) -> Edit:
    return lambda shop: shop.edit_table(role, schema, change)


def _values(role: str, schema: str, column: str, change: Callable[[list[Any]], list[Any]]) -> Edit:
    return _table(role, schema, lambda table: with_column(table, column, change(table[column].to_pylist())))


def _rows(role: str, schema: str, order: Callable[[list[int]], list[int]]) -> Edit:
    return _table(role, schema, lambda table: table.take(pa.array(order(list(range(table.num_rows))), pa.int64())))


def _plain_parquet(table: pa.Table, schema: bytes | None) -> bytes:
    sink = pa.BufferOutputStream()
    metadata = None if schema is None else {b"mlflow_bundle.schema": schema}
    pq.write_table(table.replace_schema_metadata(metadata), sink, store_schema=False, write_page_checksum=True)
    return bytes(sink.getvalue().to_pybytes())


def _rewritten(role: str, change: Callable[[pa.Table], pa.Table], schema: bytes | None) -> Edit:
    """Let another Parquet writer write a table, with other columns or another schema name."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(role)
        table = pq.read_table(pa.BufferReader(shop.data(ref)))
        shop.swap(ref, _plain_parquet(change(table), schema))

    return edit


def _page_bit(data: bytes) -> bytes:
    """Another bit in the data of the last column's page, which page checksums cover."""
    column = pq.ParquetFile(pa.BufferReader(data)).metadata.row_group(0).column(5)
    return flipped(data, column.data_page_offset + column.total_compressed_size - 3)


# -- contents -----------------------------------------------------------------------------------------------------------------


def _pack(change: Callable[[list[tuple[zipfile.ZipInfo, bytes]]], None]) -> Edit:
    """Write the pack again with other entries; its index rows point where they pointed."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(_layout.PACKS)
        with zipfile.ZipFile(io.BytesIO(shop.data(ref))) as pack:
            entries = [(info, pack.read(info)) for info in pack.infolist()]
        change(entries)
        sink = io.BytesIO()
        with zipfile.ZipFile(sink, "w") as pack:
            for info, data in entries:
                pack.writestr(info, data, info.compress_type, 6)
        shop.swap(ref, sink.getvalue())

    return edit


def _other_content(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    place = next(number for number, (info, _) in enumerate(entries) if info.compress_type == zipfile.ZIP_STORED)
    info, data = entries[place]
    entries[place] = (info, data.upper())


def _other_name(entries: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    entries[0][0].filename = 64 * "0"


def _deflated_rows(change: Callable[[dict[str, Any]], None]) -> Edit:
    """Change the index row of the deflated content."""

    def edit(shop: Workshop) -> None:
        ref = shop.ref(_layout.INDEX)
        table = shop.table(ref, "index/1")
        rows = table.to_pylist()
        change(next(row for row in rows if row["codec"] == "deflate"))
        shop.swap(ref, table_object(pa.Table.from_pylist(rows, schema=table.schema), "index/1"))

    return edit


def _damaged_deflate(shop: Workshop) -> None:
    row = next(row for row in shop.table(shop.ref(_layout.INDEX), "index/1").to_pylist() if row["codec"] == "deflate")
    ref = shop.ref(_layout.PACKS)
    data = bytearray(shop.data(ref))
    data[row["offset"]] = 0xFF
    shop.swap(ref, bytes(data))


def _without_index(shop: Workshop) -> None:
    ref = shop.ref(_layout.INDEX)
    shop.snapshot["objects"].remove(ref)
    del shop.files[ref["path"]]


def _blob_not_listed(shop: Workshop) -> None:
    shop.snapshot["objects"].remove(shop.ref(_layout.BLOBS))


# -- the one-file form -----------------------------------------------------------------------------------------------------------


def _zip_of(shop: Workshop) -> bytes:
    sink = io.BytesIO()
    parts = [Part(path, len(data), zlib.crc32(data), partial(_chunk, data)) for path, data in shop.files.items()]
    write_archive(sink, parts)
    return sink.getvalue()


def _chunk(data: bytes) -> Iterator[bytes]:
    yield data


def _compressed_zip(shop: Workshop) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, data in shop.files.items():
            archive.writestr(zipfile.ZipInfo(path), data, zipfile.ZIP_DEFLATED)
    return sink.getvalue()


def _reserved_field(data: bytes) -> bytes:
    """Another bit in a date of the central directory, which belongs to no file."""
    return flipped(data, data.rindex(b"PK\x01\x02") + 12)
