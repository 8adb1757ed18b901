"""An independent reader of mlflow-bundle archives, by spec/v1.md alone (comments name its sections): checks, extracts files.

Needs zstandard and pyarrow. Exit code 0: sound; 1: no bundle, or one that needs a newer reader; 4: problems were found."""

import argparse
import datetime
import hashlib
import json
import re
import struct
import sys
import unicodedata
import zipfile
import zlib
from itertools import groupby, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

OBJECT = re.compile(r"objects/([a-z][a-z_]*)/(?:[0-9a-f]{2}/)?([0-9a-f]{64})(?:\.[a-z0-9]+)*")  # 3.2
SNAPSHOT = re.compile(r"snapshots/([0-9]{8}T[0-9]{6}\.[0-9]{3}Z)-([0-9a-f]{16})\.json")  # 3.3
LOCATIONS = ("artifact_location", "artifact_uri")  # 8.1
SUFFIX = {"records": ".jsonl.zst", "lists": ".jsonl.zst", "packs": ".zip", "blobs": ""}
KEYS = {"experiment": ("creation_time", "experiment_id"), "run": ("start_time", "run_id")}  # 4.1
UNSAFE = re.compile(r"(?is)\.{0,2}|.*\x00.*|[a-z]:.*|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")  # 10.2
ERRORS = (LookupError, ValueError, TypeError, OSError, EOFError, RuntimeError)
ERRORS += (struct.error, zlib.error, zipfile.BadZipFile, zstandard.ZstdError, pa.ArrowException)


def store_of(bundle):
    root = Path(bundle)
    if root.is_dir():
        names = {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()}
    else:  # 3.5
        root = zipfile.Path(bundle)
        names = set(root.root.namelist())

    def read(name, start=0, length=-1):
        with root.joinpath(name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    return names, read


def sha(data):
    return hashlib.sha256(data).hexdigest()


def compact(value):  # 2.2: canonical JSON, as far as there are no floats and all names are ASCII
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def leaf(kind, *digests):  # 8.1
    return hashlib.sha256(b"\0mlflow-bundle/1 " + kind.encode() + b"\0" + b"".join(digests)).digest()


def merkle(leaves):  # 8.2
    if len(leaves) < 2:
        return leaves[0] if leaves else hashlib.sha256().digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\1" + merkle(leaves[:split]) + merkle(leaves[split:])).digest()


def lines_of(data):  # 4.5
    count, descriptor, magic = struct.unpack("<IBI", data[-9:])
    entry = 12 if descriptor & 0x80 else 8
    table = len(data) - 17 - count * entry
    if magic != 0x8F92EAB1 or table < 0 or struct.unpack_from("<II", data, table) != (0x184D2A5E, count * entry + 9):
        raise ValueError("has no seek table")
    offset, lines = 0, []
    for number in range(count):
        length, raw = struct.unpack_from("<II", data, table + 8 + number * entry)
        frame = data[offset : offset + length]
        if raw > 128 << 20 or (raw > 1 << 20 and raw > 10_000 * length) or zstandard.frame_content_size(frame) != raw:  # 10.1
            raise ValueError("has a zstd frame beyond the limits, or not of the size that the seek table says")
        text, offset = zstandard.ZstdDecompressor().decompress(frame, max_output_size=raw), offset + length
        lines += text[:-1].split(b"\n")
        if len(text) != raw or text[-1:] != b"\n" or (number == count - 1 and offset != table):
            raise ValueError("has zstd frames that are not what the seek table says")
    return lines


def rows_of(data, schema, *columns):  # 5.1: tuples; read a row group at a time
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    if (table.metadata.metadata or {}).get(b"mlflow_bundle.schema") != schema.encode():
        raise ValueError(f"is not a table {schema}")
    for number in range(table.num_row_groups):
        rows = table.read_row_group(number, columns=list(columns), use_threads=False).select(columns)
        if any(rows[name].null_count for name in columns if name != "sha256"):
            raise ValueError("has nulls where none may be")
        if "value" in columns:  # doubles as their bits, so that every NaN stays what it is
            bits = [chunk.view(pa.int64()) for chunk in rows.column("value").chunks]
            rows = rows.set_column(columns.index("value"), "value", bits)
        yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def series_of(data):  # 8.3: (run, rows, digest) of each run of a metrics object
    rows = rows_of(data, "metrics/1", "run_id", "key", "step", "timestamp", "value")
    for run, points in groupby(rows, key=lambda row: row[0]):
        keys, last, hashers = [], (b"",), [hashlib.sha256() for _ in range(3)]
        for key, group in groupby(points, key=lambda row: row[1]):
            columns = list(zip(*(row[2:] for row in group), strict=True))
            places = [(key.encode(), s, t, v ^ ((v >> 63) & 2**63 - 1)) for s, t, v in zip(*columns, strict=True)]  # 5.2
            if [last, *places] != sorted([last, *places]):
                raise ValueError(f"has points of run {run} out of order")
            last = places[-1]
            keys.append([key, len(places)])
            for hasher, column in zip(hashers, columns, strict=True):
                hasher.update(struct.pack(f"<{len(column)}q", *column))
        yield run, sum(n for _, n in keys), sha(compact(keys) + b"\n" + b"".join(hasher.digest() for hasher in hashers))


def files_of(data):  # 8.4: (run, [[path, size, sha256, state], ...]) of each run of a files object
    rows = rows_of(data, "files/1", "owner_id", "path", "size", "sha256", "state")
    for run, group in groupby(rows, key=lambda row: row[0]):
        listing = [list(row[1:]) for row in group]
        paths = [row[0].encode() for row in listing]
        if paths != sorted(set(paths)) or any(row[3] != ("ok" if row[2] else "unreadable") for row in listing):
            raise ValueError(f"has files of run {run} out of order, doubled, or with a wrong state")
        yield run, listing


class Check:
    """One pass over a bundle. Problems are collected; a missing or damaged object does not stop the rest."""

    def __init__(self, bundle):
        self.problems, self.records, self.series, self.files, self.index, self.listed = [], {}, {}, {}, {}, {}
        self.names, self.read = store_of(bundle)
        self.marker = json.loads(self.read("mlflow-bundle.json"))
        found = sorted((name for name in self.names if SNAPSHOT.fullmatch(name)), reverse=True)  # 6.1
        whole = [name for name in found if sha(self.read(name))[:16] == SNAPSHOT.fullmatch(name)[2]]
        self.problems += [f"{name}: does not match its name: torn or damaged" for name in found if name not in whole]
        if not whole:
            raise ValueError("there is no snapshot")
        self.path, data = whole[0], self.read(whole[0])
        self.snapshot = json.loads(data)
        for document in (self.marker, self.snapshot):
            said = [document["format"], document["layout"], document["requires"]["read"], document.get("hash", "sha256")]
            if said != ["mlflow-bundle", 1, [], "sha256"]:
                raise ValueError("another format, or one that needs a newer reader")
        time = f"{datetime.datetime.fromtimestamp(self.snapshot['created_at'] / 1000, datetime.UTC):%Y%m%dT%H%M%S.%f}"
        if time[:19] + "Z" != SNAPSHOT.fullmatch(self.path)[1] or self.snapshot["bundle_id"] != self.marker["bundle_id"]:
            self.problem(self.path, "has another time than its name, or belongs to another bundle")
        if compact(self.snapshot) != data or (self.snapshot["state"] == "partial") != bool(self.snapshot["problems"]):
            self.problem(self.path, "is not canonical, or its state does not fit its problems")

    def problem(self, where, what):
        self.problems.append(f"{where}: {what}")

    def guarded(self, ref, use):
        try:
            use(self.read(ref["path"]) if ref["path"] in self.names else None)
        except ERRORS as error:
            self.problem(ref["path"], str(error) or type(error).__name__)

    def run(self, folder):
        refs = [*self.snapshot["objects"], *self.snapshot["object_lists"]]
        for listing in self.snapshot["object_lists"]:  # 6.3
            self.guarded(listing, lambda data: refs.extend(map(json.loads, lines_of(data))))
        for ref in refs:
            self.guarded(ref, lambda data, ref=ref: self.enlist(ref, data))
        takers = {"records": self.take_records, "metrics": self.take_series, "files": self.take_files, "index": self.take_index}
        for role, take in takers.items():
            for ref in (ref for ref in self.listed.values() if ref["role"] == role):
                self.guarded(ref, lambda data, ref=ref, take=take: take(ref, data))
        self.check_roots()
        for ref in (ref for ref in self.listed.values() if ref["role"] == "views"):
            self.guarded(ref, lambda data, ref=ref: self.check_view(ref, data))
        for known in sorted({(row[2], row[1]) for listing in self.files.values() for row in listing if row[2]}):
            self.guarded({"path": known[0]}, lambda _, known=known: sum(map(len, self.content(*known))))
        if folder:
            self.extract(folder)

    def enlist(self, ref, data):  # 2.1, 3.2
        path, match = ref["path"], OBJECT.fullmatch(ref["path"])
        fan = f"{match[2][:2]}/" if match and match[1] in ("packs", "blobs") else ""
        if not match or path != f"objects/{ref['role']}/{fan}{match[2]}{SUFFIX.get(ref['role'], '.parquet')}":
            raise ValueError("is not the path of an object of its role")
        if data is None or path in self.listed or (len(data), sha(data)) != (ref["size"], match[2]):
            raise ValueError("is missing" if data is None else "is damaged, or listed twice")
        self.listed[path] = ref

    def agree(self, ref, rows, content):
        if (rows, content) != (ref.get("rows", 0), ref.get("content")):
            self.problem(ref["path"], "has other rows or another content than the snapshot says")

    def take_records(self, ref, data):
        kind, lines, found = ref["kind"], lines_of(data), []
        for line in lines:
            record = json.loads(line)
            if record["kind"] != kind or compact(record) != line:
                raise ValueError(f"has a line that is not a canonical record of kind {kind}")
            place = [record.get(KEYS[kind][0], 2**53 - 1), record[KEYS[kind][1]]] if kind in KEYS else None  # 4.1
            found.append((place, sha(line), sha(compact({k: v for k, v in record.items() if k not in LOCATIONS}))))
        known = self.records.setdefault(kind, [])
        places = [place for place, *_ in known[-1:] + found if place]
        known += found
        if any(after <= before for before, after in pairwise(places)):
            self.problem(ref["path"], f"has a {kind} out of order, or twice")
        if places and [found[0][0], found[-1][0]] != [ref["first"], ref["last"]]:
            self.problem(ref["path"], "has other order keys than the snapshot says")
        self.agree(ref, len(lines), "sha256:" + sha(b"".join(line + b"\n" for line in lines)))

    def take_series(self, ref, data):
        self.take_owners(ref, self.series, [(run, (rows, digest), rows, digest) for run, rows, digest in series_of(data)])

    def take_files(self, ref, data):
        self.take_owners(ref, self.files, [(run, files, len(files), sha(compact(files))) for run, files in files_of(data)])

    def take_owners(self, ref, known, found):
        runs = [run for run, *_ in found]
        if len(set(runs)) != len(runs) or known.keys() & set(runs):
            self.problem(ref["path"], "has rows of one run in two places")
        known.update((run, value) for run, value, _, _ in found)
        self.agree(ref, sum(rows for *_, rows, _ in found), "sha256:" + sha("".join(d for *_, d in found).encode()))

    def take_index(self, ref, data):  # 5.3
        rows = list(rows_of(data, "index/1", "sha256", "part", "object", "offset", "length", "codec", "raw_length"))
        for row in rows:
            self.index.setdefault(row[0], {}).setdefault(row[1], row[2:])
        self.agree(ref, len(rows), None)

    def digests(self, run):  # 8.3, 8.4
        return self.series.get(run, (0, sha(b"[]\n" + 3 * hashlib.sha256().digest())))[1], sha(compact(self.files.get(run, [])))

    def check_roots(self):  # 8.5
        files = [row for listing in self.files.values() for row in listing]
        self.counts = {"metric_point": sum(rows for rows, _ in self.series.values()), "file": len(files)}
        self.counts |= {"file_bytes": sum(row[1] for row in files if row[3] == "ok"), "experiment": 0, "run": 0}
        kinds = {}
        for kind, records in sorted(self.records.items()):
            parts = [(logical, *(self.digests(place[1]) if kind == "run" else ())) for place, _, logical in records]
            root = merkle([leaf(kind, *map(bytes.fromhex, digests)) for digests in parts])
            kinds[kind] = {"root": "sha256:" + root.hex(), "rows": len(records)}
            self.counts[kind] = len(records)
        over = [leaf("root", kind.encode(), b"\0", bytes.fromhex(value["root"][7:])) for kind, value in kinds.items()]
        self.root = "sha256:" + merkle(over).hex()
        if self.snapshot["logical"] != {"kinds": kinds, "root": self.root}:
            self.problem("logical", f"the logical root is {self.root}, and the snapshot says something else")
        if {kind: count for kind, count in self.snapshot["counts"].items() if kind in self.counts} != self.counts:
            self.problem("counts", f"are {self.counts}, and the snapshot says something else")
        if strangers := (self.series.keys() | self.files.keys()) - {place[1] for place, *_ in self.records.get("run", [])}:
            self.problem("tables", f"have rows of unknown runs: {sorted(strangers)}")

    def check_view(self, ref, data):  # 5.4
        rows = list(rows_of(data, "runs_view/1", "run_id", "record_digest", "metric_digest", "file_digest"))
        records = {place[1]: digest for place, digest, _ in self.records.get("run", [])}
        if any(row != (row[0], records.get(row[0]), *self.digests(row[0])) for row in rows):
            self.problem(ref["path"], "says something else than records and tables")
        self.agree(ref, len(rows), None)

    def content(self, digest, size):  # 5.3: the bytes of a content, extent by extent
        extents, hasher = self.index.get(digest, {}), hashlib.sha256()
        if sorted(extents) != list(range(max(len(extents), 1))) or sum(extent[-1] for extent in extents.values()) != size:
            raise ValueError("the index does not have this content, or not all its parts")
        for _, (path, offset, length, codec, raw_length) in sorted(extents.items()):
            if path not in self.listed or codec not in ("raw", "deflate"):
                raise ValueError(f"has an extent in {path} ({codec}), which is not there")
            stored = self.read(path, offset, length)
            data = zlib.decompressobj(-15).decompress(stored, raw_length + 1) if codec == "deflate" else stored
            hasher.update(data if len(data) == raw_length else b"wrong")
            yield data
        if hasher.hexdigest() != digest:
            raise ValueError("this content has another SHA-256, or an extent of another length")

    def extract(self, folder):  # 10.2
        taken, above = set(), set()
        for full, row in sorted((f"{run}/{row[0]}", row) for run, listing in self.files.items() for row in listing):
            folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", full).casefold())
            parents = {folded[:place] for place, letter in enumerate(folded) if letter == "/"}
            if any(map(UNSAFE.fullmatch, full.split("/"))) or folded in taken | above or parents & taken:
                self.problem(full, "is not extracted: its path is unsafe, or collides with another")
            elif row[2]:
                taken.add(folded)
                above |= parents
                Path(folder, full).parent.mkdir(parents=True, exist_ok=True)
                with Path(folder, full).open("xb") as file:
                    self.guarded({"path": full}, lambda _, r=row, file=file: file.writelines(self.content(r[2], r[1])))


def main(arguments=None):
    parser = argparse.ArgumentParser(usage="reader.py BUNDLE [--extract DIR]")
    parser.add_argument("bundle")
    parser.add_argument("--extract")
    try:
        check = Check((options := parser.parse_args(arguments)).bundle)
        check.run(options.extract)
    except ERRORS as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    found = {"snapshot": check.path, "counts": check.counts, "logical_root": check.root, "problems": check.problems}
    print(json.dumps(found, indent=2))
    return 4 if check.problems else 0


if __name__ == "__main__":
    sys.exit(main())
