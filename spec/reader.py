"""Checks a bundle, and extracts its files, by spec/v1.md alone. Exit code 0: sound; 1: none, or a newer one; 4: problems."""

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
SUFFIX = {"records": ".jsonl.zst", "lists": ".jsonl.zst", "packs": ".zip", "blobs": ""}
KINDS = json.loads(Path(__file__).with_name("v1").joinpath("kinds.json").read_bytes())  # 4.1
UNNAMED = (("workspace", ""), ("workspace", "default"), ("@organization", ""))  # 4.1
PLAIN = {"model_metrics/1": "model_id key step timestamp value? run_id dataset_name? dataset_digest?"}  # 5.2: ? may be null
PLAIN["spans/1"] = "trace_id span_id parent_span_id? name? type? status start_time_unix_nano end_time_unix_nano? content"
NOTHING = {"metrics/1": b"[]\n" + 3 * hashlib.sha256().digest(), "files/1": b"[]"}  # 8.3, 8.4
COUNTED = {"metrics/1": "metric_point", "model_metrics/1": "model_metric_point", "spans/1": "span", "files/1": "file"}  # 6.2
UNSAFE = re.compile(r"(?is)\.{0,2}|.*\x00.*|[a-z]:.*|(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")  # 10.2


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
        if raw > min(128 << 20, max(1 << 20, length << 15)) or zstandard.frame_content_size(frame) != raw:  # 10.1
            raise ValueError("has a zstd frame beyond the limits, or not of the size that the seek table says")
        text, offset = zstandard.ZstdDecompressor().decompress(frame, max_output_size=raw), offset + length
        lines += text[:-1].split(b"\n")
        if len(text) != raw or text[-1:] != b"\n" or (number == count - 1 and offset != table):
            raise ValueError("has zstd frames that are not what the seek table says")
    return lines


def rows_of(data, schema, *wanted):  # 5.1: tuples; read a row group at a time
    columns = [name.rstrip("?") for name in wanted]
    table = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
    if (table.metadata.metadata or {}).get(b"mlflow_bundle.schema") != schema.encode():
        raise ValueError(f"is not a table {schema}")
    for number in range(table.num_row_groups):
        rows = table.read_row_group(number, columns=columns, use_threads=False).select(columns)
        if any(rows[name].null_count for name in wanted if name in columns):
            raise ValueError("has nulls where none may be")
        if "value" in columns:  # doubles as their bits, so that every NaN stays what it is
            bits = [chunk.view(pa.int64()) for chunk in rows.column("value").chunks]
            rows = rows.set_column(columns.index("value"), "value", bits)
        yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def plain_of(data, schema):  # 8.3: (owner, rows, digest, None) of each owner of plain rows
    kind, order = ("trace", (6, 1)) if schema == "spans/1" else ("logged_model", (1, 2, 3, 5))
    for owner, group in groupby(rows_of(data, schema, *PLAIN[schema].split()), key=lambda row: row[0]):
        hasher, rows = hashlib.sha256(), list(group)
        if (places := [[row[column] for column in order] for row in rows]) != sorted(places):
            raise ValueError(f"has rows of {kind} {owner} out of order")
        for row in rows:
            double = schema == "model_metrics/1" and row[4] is not None
            hasher.update(compact([*row[1:4], f"{row[4] % 2**64:016x}" if double else row[4], *row[5:]]) + b"\n")
        yield (kind, owner), len(rows), hasher.hexdigest(), None


def series_of(data, schema):  # 8.3: the same of each run of a metrics object
    for run, group in groupby(rows_of(data, schema, "run_id", "key", "step", "timestamp", "value"), key=lambda row: row[0]):
        rows = list(group)
        places = [(*place, bits ^ ((bits >> 63) & 2**63 - 1)) for _, *place, bits in rows]  # 5.2
        if places != sorted(places):
            raise ValueError(f"has points of run {run} out of order")
        head = [[key, len(list(points))] for key, points in groupby(row[1] for row in rows)]
        digests = (hashlib.sha256(struct.pack(f"<{len(rows)}q", *column)).digest() for column in [*zip(*rows, strict=True)][2:])
        yield ("run", run), len(rows), sha(compact(head) + b"\n" + b"".join(digests)), None


def files_of(data, schema):  # 8.4: the same of each owner in a files object, and [path, size, sha256, state] of each file
    rows = rows_of(data, schema, "owner_kind", "owner_id", "path", "size", "sha256?", "state")
    for owner, group in groupby(rows, key=lambda row: row[:2]):
        listing = [list(row[2:]) for row in group]
        paths = [row[0] for row in listing]
        if paths != sorted(set(paths)) or any(row[3] != ("ok" if row[2] else "unreadable") for row in listing):
            raise ValueError(f"has files of {owner} out of order, doubled, or with a wrong state")
        yield owner, len(listing), sha(compact(listing)), listing


def place_of(kind, record):  # 4.1
    time, *first = (KINDS[kind]["time"] or "").split(".")  # versions.creation_time: of the first version
    when = (record[time] or [{}])[0].get(first[0]) if first else record.get(time)
    parts = [(name, str(record.get(name.lstrip("@"), ""))) for name in KINDS[kind]["id"]]
    named = "/".join("@" * (name[0] == "@") + value for name, value in parts if (name, value) not in UNNAMED)
    return [2**53 - 1 if when is None else when, named]


class Check:
    """One pass over a bundle. Problems are collected; a missing or damaged object does not stop the rest."""

    def __init__(self, bundle):
        self.problems, self.records, self.index, self.listed = [], {}, {}, {}
        self.owned = {schema: {} for schema in COUNTED}  # by owner: rows, digest, listing of its files
        self.place = Path(bundle) if Path(bundle).is_dir() else zipfile.Path(bundle)  # 3.5
        inside = (path for path in Path(bundle).rglob("*") if path.is_file())
        self.names = {path.relative_to(bundle).as_posix() for path in inside} or set(self.place.root.namelist())
        self.marker = json.loads(self.read("mlflow-bundle.json"))
        found = sorted((name for name in self.names if SNAPSHOT.fullmatch(name)), reverse=True)  # 6.1
        whole = [name for name in found if sha(self.read(name))[:16] == SNAPSHOT.fullmatch(name)[2]]
        self.problems += [f"{name}: does not match its name: torn or damaged" for name in found if name not in whole]
        if not whole or self.marker["hash"] != "sha256":
            raise ValueError("there is no snapshot, or one of a newer format")
        self.path, data = whole[0], self.read(whole[0])
        document = self.snapshot = json.loads(data)
        for said in (self.marker, document):
            if compact([said["format"], said["layout"], said["requires"]["read"]]) != b'["mlflow-bundle",1,[]]':
                raise ValueError("another format, or one that needs a newer reader")
        time = f"{datetime.datetime.fromtimestamp(document['created_at'] / 1000, datetime.UTC):%Y%m%dT%H%M%S.%f}"
        named = (time[:19] + "Z", self.marker["bundle_id"]) == (SNAPSHOT.fullmatch(self.path)[1], document["bundle_id"])
        if not named or compact(document) != data or (document["state"] == "partial") != bool(document["problems"]):
            self.problem(self.path, "has another time or bundle than its name, is not canonical, or hides its problems")

    def read(self, name, start=0, length=-1):
        with self.place.joinpath(name).open("rb") as file:
            file.seek(start)
            return file.read(length)

    def problem(self, where, what):
        self.problems.append(f"{where}: {what}")

    def guarded(self, ref, use):
        try:
            use(self.read(ref["path"]) if ref["path"] in self.names else None)
        except Exception as error:  # damaged input may raise anything
            self.problem(ref["path"], str(error) or type(error).__name__)

    def run(self, folder):
        refs = [*self.snapshot["objects"], *self.snapshot["object_lists"]]
        for listing in self.snapshot["object_lists"]:  # 6.3
            self.guarded(listing, lambda data: refs.extend(map(json.loads, lines_of(data))))
        for ref in refs:
            self.guarded(ref, lambda data, ref=ref: self.enlist(ref, data))
        takers = {"records": self.take_records} | dict.fromkeys((table[:-2] for table in COUNTED), self.take_rows)
        for role, take in (takers | {"index": self.take_index, "views": self.check_view}).items():
            for ref in (ref for ref in self.listed.values() if ref["role"] == role):
                self.guarded(ref, lambda data, ref=ref, take=take: take(ref, data))
        self.check_roots()
        for known in sorted({(row[2], row[1]) for *_, listing in self.owned["files/1"].values() for row in listing if row[2]}):
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
            place, locations = (place_of(kind, record), KINDS[kind]["locations"]) if kind in KINDS else (None, ())
            found.append((place, sha(line), sha(compact({k: v for k, v in record.items() if k not in locations}))))
        known = self.records.setdefault(kind, [])
        places, ends = [place for place, *_ in known[-1:] + found if place], [found[0][0], found[-1][0]]
        known += found
        if any(after <= before for before, after in pairwise(places)) or (places and ends != [ref["first"], ref["last"]]):
            self.problem(ref["path"], f"has a {kind} out of order or twice, or other order keys than the snapshot says")
        self.agree(ref, len(lines), "sha256:" + sha(b"".join(line + b"\n" for line in lines)))

    def take_rows(self, ref, data):
        schema = ref["role"] + "/1"
        found = list({"metrics/1": series_of, "files/1": files_of}.get(schema, plain_of)(data, schema))
        owners, known = [owner for owner, *_ in found], self.owned[schema]
        if len(set(owners)) != len(owners) or known.keys() & set(owners):
            self.problem(ref["path"], "has rows of one owner in two places")
        known.update((owner, rest) for owner, *rest in found)
        self.agree(ref, sum(rows for _, rows, *_ in found), "sha256:" + sha("".join(row[2] for row in found).encode()))

    def take_index(self, ref, data):  # 5.3
        rows = list(rows_of(data, "index/1", "sha256", "part", "object", "offset", "length", "codec", "raw_length"))
        for row in rows:
            self.index.setdefault(row[0], {}).setdefault(row[1], row[2:])
        self.agree(ref, len(rows), None)

    def digests(self, kind, name):  # of each table of an entity
        return [self.owned[t].get((kind, name), (0, sha(NOTHING.get(t, b""))))[1] for t in KINDS[kind]["tables"]]

    def check_roots(self):  # 8.5
        said, kinds = self.snapshot["counts"], {}
        counts = {name: sum(rows for rows, *_ in self.owned[table].values()) for table, name in COUNTED.items()}
        counts |= {kind: len(self.records.get(kind, [])) for kind in KINDS}
        counts["file_bytes"] = sum(
            row[1] for *_, listing in self.owned["files/1"].values() for row in listing if row[3] == "ok"
        )
        self.counts = {name: count for name, count in counts.items() if count or name in said}
        for kind, records in sorted(self.records.items()):
            root = self.snapshot["logical"]["kinds"].get(kind, {}).get("root", "")  # of a kind that nobody knows, as it is said
            if kind in KINDS:
                parts = [[logical, *self.digests(kind, place[1])] for place, _, logical in records]
                root = "sha256:" + merkle([leaf(kind, *map(bytes.fromhex, digests)) for digests in parts]).hex()
            kinds[kind] = {"root": root, "rows": len(records)}
        above = [leaf("root", kind.encode(), b"\0", bytes.fromhex(value["root"][7:])) for kind, value in kinds.items()]
        self.root = "sha256:" + merkle(above).hex()
        logical = self.snapshot["logical"] == {"kinds": kinds, "root": self.root}
        if not logical or any(said.get(name, 0) != count for name, count in counts.items()):
            self.problem(self.path, f"has another logical root than {self.root}, or other counts than {self.counts}")
        known = {(kind, place[1]) for kind, records in self.records.items() for place, *_ in records if place}
        if strangers := {owner for owners in self.owned.values() for owner in owners if owner[0] in KINDS} - known:
            self.problem("tables", f"have rows of unknown owners: {sorted(strangers)}")

    def check_view(self, ref, data):  # 5.4
        if (kind := ref["kind"]) not in KINDS:
            return
        schema, name, table = ("runs_view/1", "run_id", "metric") if kind == "run" else ("entity_view/1", "id", "table")
        rows = list(rows_of(data, schema, name, "record_digest", f"{table}_digest", "file_digest"))
        records, none = {place[1]: digest for place, digest, _ in self.records.get(kind, [])}, [sha(b"")]
        if any([*row] != [row[0], records.get(row[0]), *(none + self.digests(kind, row[0]))[-2:]] for row in rows):
            self.problem(ref["path"], "says something else than records and tables")
        self.agree(ref, len(rows), None)

    def content(self, digest, size):  # 5.3: the bytes of a content, extent by extent
        extents, hasher = self.index.get(digest, {}), hashlib.sha256()
        known = all(extent[0] in self.listed and extent[3] in ("raw", "deflate") for extent in extents.values())
        if not known or sorted(extents) != [*range(max(len(extents), 1))] or sum(part[-1] for part in extents.values()) != size:
            raise ValueError("the index does not have this content, not all its parts, or parts in objects that are not there")
        for _, (path, offset, length, codec, raw_length) in sorted(extents.items()):
            stored = self.read(path, offset, length)
            data = zlib.decompressobj(-15).decompress(stored, raw_length + 1) if codec == "deflate" else stored
            hasher.update(data if len(data) == raw_length else b"wrong")
            yield data
        if hasher.hexdigest() != digest:
            raise ValueError("this content has another SHA-256, or an extent of another length")

    def extract(self, folder):  # 10.2
        taken, above = set(), set()
        named = (("/".join((*owner, row[0])), row) for owner, (*_, rows) in self.owned["files/1"].items() for row in rows)
        for full, row in sorted(named):
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


def main(bundle, option="--extract", folder=None):
    try:
        (check := Check(bundle)).run(folder if option == "--extract" else sys.exit(f"{option}: no such option"))
    except Exception as error:  # damaged input may raise anything
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        return 1
    found = {"snapshot": check.path, "counts": check.counts, "logical_root": check.root, "problems": check.problems}
    print(json.dumps(found, indent=2))
    return 4 if check.problems else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]) if len(sys.argv) in (2, 4) else "usage: reader.py BUNDLE [--extract DIR]")
