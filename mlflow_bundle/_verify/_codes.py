"""The codes that a verification reports: append-only, never reused (spec/v1.md, section 11.3)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

__all__ = ["CODES", "Code"]


class Code(NamedTuple):
    """One kind of finding. ``E``: the bundle is not what it should be; ``W``: it is whole, and somebody should look."""

    code: str
    slug: str
    meaning: str


#: Every code, in order.
CODES: Final[Mapping[str, Code]] = MappingProxyType(
    {
        code: Code(code, slug, meaning)
        for code, slug, meaning in (
            ("E010", "marker", "The marker is missing or invalid, or layout, hash or features are unknown to this release."),
            ("E020", "snapshot-bytes", "The bytes of a snapshot document do not match its name: it is torn or damaged."),
            ("E021", "object-path", "A path is not the path of an object, or is one of another role."),
            ("E022", "object-bytes", "The bytes of an object do not have the SHA-256 of its name."),
            ("E023", "snapshot-time", "The name of a snapshot says another time than its document."),
            ("E024", "snapshot-bundle", "A snapshot does not belong to the bundle of the marker."),
            ("E025", "object-missing", "An object that a snapshot lists is not there."),
            ("E026", "object-size", "An object has another size than the snapshot says."),
            ("E027", "object-twice", "A snapshot lists an object twice."),
            ("E028", "snapshot-state", "A snapshot is complete and lists problems, or partial and lists none."),
            ("E029", "unreadable", "The storage failed or refused when a file was read: nobody can say whether it is whole."),
            ("E030", "document", "A snapshot document or an object list is not valid canonical JSON of its type."),
            ("E031", "record", "A record line is not valid canonical JSON of its kind."),
            ("E032", "seek-table", "A records or lists object has no zstd seek table, or one that does not cover it."),
            ("E033", "zstd-frame", "A zstd frame does not decode to what the seek table says."),
            ("E034", "lines-summary", "Rows, digest or order keys of a records or lists object are not what is said."),
            ("E040", "parquet", "A table object is not a readable Parquet file."),
            ("E041", "table-schema", "A table object has another schema than its role needs, or a null where none may be."),
            ("E042", "owner-rows", "The rows of an owner are not together in one object, or owners not in archive order."),
            ("E043", "page-checksum", "A page of a table object does not match its checksum."),
            ("E044", "table-summary", "The rows or the content digest of a table object are not what the snapshot says."),
            ("E045", "points-order", "The rows of an owner are out of order."),
            ("E046", "owner-unknown", "Rows of a table belong to an entity without a record, or name another experiment."),
            ("E047", "files-order", "The files of an owner are out of order, or one path is listed twice."),
            ("E048", "file-row", "A file has an unknown state, a content that does not fit its state, or an impossible size."),
            ("E050", "content", "A content does not have the SHA-256 or the size that the index and the files table say."),
            ("E051", "extents", "The index does not place a content that a file needs inside objects of the snapshot."),
            ("E052", "extent-damaged", "The stored bytes of a content do not decode to the length that the index says."),
            ("E053", "pack", "A pack is not a plain ZIP file as specified, or its central directory disagrees with the index."),
            ("E060", "view", "A view does not say what records and tables say."),
            ("E061", "records-order", "Records are out of order."),
            ("E062", "record-twice", "Two records of a kind have one id."),
            ("E063", "experiment-unknown", "A run belongs to an experiment that has no record."),
            ("E064", "counts", "The counts of a snapshot are not what its records and tables say."),
            ("E065", "logical-root", "The logical root of a snapshot is not that of its records and tables."),
            ("E070", "one-file-framing", "Bytes between the files of a bundle in one file are not what a writer must produce."),
            ("E071", "one-file", "A bundle in one file is not a whole ZIP file of stored entries with safe names."),
            ("E090", "json-depth", "JSON nests deeper than the limit."),
            ("E091", "frame-size", "A zstd frame decodes to more than the limit."),
            ("E092", "line-size", "A line is longer than the limit."),
            ("E093", "snapshot-size", "A snapshot document is larger than the limit."),
            ("E094", "object-size-limit", "An object, or a part of one, is larger than the limit."),
            ("W010", "object-unlisted", "An object that no snapshot lists, as an interrupted pack leaves it: harmless."),
            (
                "W011",
                "object-unlisted-damaged",
                "An object that no snapshot lists is damaged: a pack that compares only sizes could take it for whole.",
            ),
            ("W012", "file-foreign", "A file that is no part of the format."),
            ("W013", "snapshot-torn", "A snapshot document was cut off while it was written; a later one is whole."),
            ("W090", "credential", "A URI holds what looks like a credential."),
            ("W091", "path-unsafe", "A path of a file that must not be used as it is when files are written."),
        )
    }
)  # fmt: skip
