"""SQL of the catalogue: what was last confirmed, and told to others, about each file.

Functions over a connection that the store hands out; nothing here begins or ends a transaction, and nothing decides.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from trackwatch.track import Location, Root, Signature, storable

# Long enough to amortise a query, short enough that a reader never holds back the write-ahead log.
CHUNK_ROWS = 2000
# An inode or a hash that this many files share is a farm of links or of copies; the first few candidates tell enough.
CANDIDATES_MAX = 16
# How many are looked for in one statement.
FIND_ROWS = 200

_SIGNATURE = "dev, inode, size_bytes, mtime_ns, ctime_ns, btime_ns"
_COLUMNS = f"id, root_id, path, {_SIGNATURE}, sha256, xxh128, last_seq"


# A mount's source, type, id (statvfs), and the directory of the file system that is mounted.
MountRow = tuple[bytes, bytes, int, bytes]


class Entry(NamedTuple):
    """One catalogued file; `id` is 0 for one that is not catalogued yet."""

    id: int
    location: Location
    signature: Signature
    sha256: bytes
    xxh128: bytes
    last_seq: int


class Description(NamedTuple):
    """What is known of a file's tags and of its audio; `metadata` is in the structured form of the contract, as JSON.

    `audio_xxh128` is there only for what has metadata, or a reason why not: for an audio file.
    """

    metadata: str | None = None
    error: str | None = None
    audio_xxh128: bytes | None = None


def wrapped(number: int) -> int:
    """Return an unsigned 64-bit number (inode, device) as the signed one that SQLite can store."""
    return number - (1 << 64) if number >= 1 << 63 else number


def _unwrapped(number: int) -> int:
    return number + (1 << 64) if number < 0 else number


def _signature_row(signature: Signature) -> tuple[int | None, ...]:
    return (
        wrapped(signature.dev),
        wrapped(signature.inode),
        signature.size_bytes,
        storable(signature.mtime_ns),
        storable(signature.ctime_ns),
        None if signature.btime_ns is None else storable(signature.btime_ns),
    )


def _signature(row: tuple[Any, ...]) -> Signature:
    dev, inode = row[0], row[1]
    if dev < 0 or inode < 0:
        return Signature(_unwrapped(dev), _unwrapped(inode), *row[2:])
    return Signature._make(row)


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(row[0], Location(row[1], row[2]), _signature(row[3:9]), row[9], row[10], row[11])


_FIND = f"SELECT {_COLUMNS} FROM catalogue WHERE root_id = ? AND path = ?"


def find(conn: sqlite3.Connection, location: Location) -> Entry | None:
    """Return the file known at a location."""
    row = conn.execute(_FIND, location).fetchone()
    return _entry(row) if row else None


def find_all(conn: sqlite3.Connection, locations: Sequence[Location]) -> dict[Location, Entry]:
    """Return what is known at some locations, in few statements."""
    found: dict[Location, Entry] = {}
    for start in range(0, len(locations), FIND_ROWS):
        chunk = locations[start : start + FIND_ROWS]
        # A join: for `(root_id, path) IN (VALUES ...)` SQLite would read the whole index.
        sql = (
            f"WITH asked(root_id, path) AS (VALUES {', '.join(['(?, ?)'] * len(chunk))})"
            f" SELECT {_COLUMNS} FROM asked CROSS JOIN catalogue USING (root_id, path)"
        )
        for row in conn.execute(sql, [value for location in chunk for value in location]):
            entry = _entry(row)
            found[entry.location] = entry
    return found


def find_inode(conn: sqlite3.Connection, inode: int) -> list[Entry]:
    """Return the files known under an inode number, on any device."""
    sql = f"SELECT {_COLUMNS} FROM catalogue WHERE inode = ? LIMIT {CANDIDATES_MAX}"
    return [_entry(row) for row in conn.execute(sql, (wrapped(inode),))]


def find_content(conn: sqlite3.Connection, sha256: bytes, size_bytes: int) -> list[Entry]:
    """Return the files known to have this content."""
    sql = f"SELECT {_COLUMNS} FROM catalogue WHERE sha256 = ? AND size_bytes = ? LIMIT {CANDIDATES_MAX}"
    return [_entry(row) for row in conn.execute(sql, (sha256, size_bytes))]


def find_below(conn: sqlite3.Connection, directory: Location) -> list[bytes]:
    """Return the paths known below a directory, in byte order; an empty path means the whole root."""
    if not directory.path:
        return [
            path
            for (path,) in conn.execute(
                "SELECT path FROM catalogue WHERE root_id = ? ORDER BY path", (directory.root_id,)
            )
        ]
    # '/' + 1 is '0': the half-open range holds what begins with "directory/" and nothing else.
    sql = "SELECT path FROM catalogue WHERE root_id = ? AND path >= ? AND path < ? ORDER BY path"
    return [path for (path,) in conn.execute(sql, (directory.root_id, directory.path + b"/", directory.path + b"0"))]


def any_below(conn: sqlite3.Connection, directory: Location) -> bool:
    """Whether any file is known below a directory; an empty path means the whole root."""
    if not directory.path:
        sql = "SELECT 1 FROM catalogue WHERE root_id = ? LIMIT 1"
        return conn.execute(sql, (directory.root_id,)).fetchone() is not None
    sql = "SELECT 1 FROM catalogue WHERE root_id = ? AND path >= ? AND path < ? LIMIT 1"
    return conn.execute(sql, (directory.root_id, directory.path + b"/", directory.path + b"0")).fetchone() is not None


def signatures(conn: sqlite3.Connection, directory: Location) -> Iterator[tuple[bytes, Signature]]:
    """Yield the files below a directory (an empty path: the whole root) in byte order of their paths.

    Each chunk is a read transaction of its own: rows written behind the cursor's back are seen from the next chunk on,
    and nothing holds up a checkpoint.
    """
    after = directory.path + b"/" if directory.path else b""
    until = directory.path + b"0" if directory.path else None
    sql = f"SELECT path, {_SIGNATURE} FROM catalogue WHERE root_id = ? AND path > ?" + (
        f" ORDER BY path LIMIT {CHUNK_ROWS}" if until is None else f" AND path < ? ORDER BY path LIMIT {CHUNK_ROWS}"
    )
    while True:
        bounds = (directory.root_id, after) if until is None else (directory.root_id, after, until)
        rows = conn.execute(sql, bounds).fetchall()
        for row in rows:
            yield row[0], _signature(row[1:])
        if len(rows) < CHUNK_ROWS:
            return
        after = rows[-1][0]


def paths(conn: sqlite3.Connection, root_id: int) -> Iterator[list[bytes]]:
    """Yield the paths of a root's files in lots and in their byte order; each lot is a read transaction of its own."""
    sql = f"SELECT path FROM catalogue WHERE root_id = ? AND path > ? ORDER BY path LIMIT {CHUNK_ROWS}"
    after = b""
    while lot := [path for (path,) in conn.execute(sql, (root_id, after))]:
        yield lot
        after = lot[-1]


def children(conn: sqlite3.Connection, directory: Location) -> Iterator[tuple[bytes, Signature | None]]:
    """Yield what is known directly in a directory: files with their signatures, directories of known files with None.

    Jumps over whole subtrees, so its cost is that of the directory alone.
    """
    prefix = directory.path + b"/" if directory.path else b""
    sql = f"SELECT path, {_SIGNATURE} FROM catalogue WHERE root_id = ? AND path > ? ORDER BY path LIMIT 1"
    after = prefix
    while (row := conn.execute(sql, (directory.root_id, after)).fetchone()) and row[0].startswith(prefix):
        name, slash, _ = row[0][len(prefix) :].partition(b"/")
        if slash:
            yield prefix + name, None
            after = prefix + name + b"0"  # '/' + 1: behind everything below it
            # The key itself may be a file's path; the search goes on behind it, so it is looked up here.
            exact = find(conn, Location(directory.root_id, after))
            if exact is not None:
                yield after, exact.signature
        else:
            yield row[0], _signature(row[1:])
            after = row[0]


def has_fewer(conn: sqlite3.Connection, root_id: int, count: int) -> bool:
    """Whether fewer than so many files are known in a root."""
    sql = "SELECT count(*) FROM (SELECT 1 FROM catalogue WHERE root_id = ? LIMIT ?)"
    known: int = conn.execute(sql, (root_id, count)).fetchone()[0]
    return known < count


def describe(conn: sqlite3.Connection, file_id: int) -> Description:
    """Return what is known of a file's tags and audio; empty for a file that is not audio."""
    sql = "SELECT metadata, metadata_error, audio_xxh128 FROM catalogue_metadata WHERE file_id = ?"
    row = conn.execute(sql, (file_id,)).fetchone()
    if row is None:
        return Description()
    return Description(*row)


_ADD = (
    f"INSERT INTO catalogue(root_id, path, {_SIGNATURE}, sha256, xxh128, last_seq)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT(root_id, path) DO NOTHING"
)
_REPLACE = (
    "UPDATE catalogue SET root_id = ?, path = ?, dev = ?, inode = ?, size_bytes = ?, mtime_ns = ?, ctime_ns = ?,"
    " btime_ns = ?, sha256 = ?, xxh128 = ?, last_seq = ? WHERE id = ?"
)
_DESCRIBE = "INSERT INTO catalogue_metadata(file_id, metadata, metadata_error, audio_xxh128) VALUES (?, ?, ?, ?)"
_DESCRIBE_ANEW = (
    f"{_DESCRIBE} ON CONFLICT(file_id) DO UPDATE SET metadata = excluded.metadata,"
    " metadata_error = excluded.metadata_error, audio_xxh128 = excluded.audio_xxh128"
)


def add(conn: sqlite3.Connection, entry: Entry, description: Description) -> int | None:
    """Insert a file and return its id; None, and nothing is done, if one is known at its location."""
    location, signature = entry.location, entry.signature
    cursor = conn.execute(_ADD, (*location, *_signature_row(signature), entry.sha256, entry.xxh128, entry.last_seq))
    if cursor.rowcount == 0:
        return None
    file_id = cursor.lastrowid
    if description.metadata is not None or description.error is not None:
        conn.execute(_DESCRIBE, (file_id, *description))
    return file_id


def replace(conn: sqlite3.Connection, entry: Entry, description: Description) -> None:
    """Put another content, and what is known of it, in the place of a known file; `entry.id` says of which."""
    conn.execute(
        _REPLACE,
        (*entry.location, *_signature_row(entry.signature), entry.sha256, entry.xxh128, entry.last_seq, entry.id),
    )
    if description.metadata is not None or description.error is not None:
        conn.execute(_DESCRIBE_ANEW, (entry.id, *description))
    else:
        conn.execute("DELETE FROM catalogue_metadata WHERE file_id = ?", (entry.id,))


def relocate(conn: sqlite3.Connection, file_id: int, to: Location, signature: Signature, last_seq: int) -> None:
    """Put a known file at another location, where none is known."""
    conn.execute(
        "UPDATE catalogue SET root_id = ?, path = ?, dev = ?, inode = ?, size_bytes = ?, mtime_ns = ?, ctime_ns = ?,"
        " btime_ns = ?, last_seq = ? WHERE id = ?",
        (*to, *_signature_row(signature), last_seq, file_id),
    )


def remove(conn: sqlite3.Connection, file_id: int) -> None:
    """Forget a file."""
    conn.execute("DELETE FROM catalogue WHERE id = ?", (file_id,))


def renumber(conn: sqlite3.Connection, location: Location, dev: int) -> None:
    """Note that the device of a file has another number now (after a reboot or a remount)."""
    conn.execute("UPDATE catalogue SET dev = ? WHERE root_id = ? AND path = ?", (wrapped(dev), *location))


def set_problem(conn: sqlite3.Connection, location: Location, reason: str, now_us: int) -> None:
    """Note why a file cannot be described; the time of the first failure stays."""
    conn.execute(
        "INSERT INTO problem(root_id, path, reason, since_us) VALUES (?, ?, ?, ?)"
        " ON CONFLICT(root_id, path) DO UPDATE SET reason = excluded.reason WHERE reason <> excluded.reason",
        (*location, reason, now_us),
    )


def clear_problem(conn: sqlite3.Connection, location: Location) -> None:
    """Forget the problem of a file that was described or has gone."""
    conn.execute("DELETE FROM problem WHERE root_id = ? AND path = ?", location)


def has_problems(conn: sqlite3.Connection) -> bool:
    """Whether there is a file that could not be described at all."""
    return bool(conn.execute("SELECT EXISTS (SELECT 1 FROM problem)").fetchone()[0])


def problem_paths(conn: sqlite3.Connection, root_id: int) -> list[bytes]:
    """Return the paths of a root that could not be described."""
    return [path for (path,) in conn.execute("SELECT path FROM problem WHERE root_id = ? ORDER BY path", (root_id,))]


def count_problems(conn: sqlite3.Connection) -> int:
    """Return how many files could not be described, or only without their metadata."""
    count: int = conn.execute(
        "SELECT (SELECT count(*) FROM problem)"
        " + (SELECT count(*) FROM catalogue_metadata WHERE metadata_error IS NOT NULL)"
    ).fetchone()[0]
    return count


def list_problems(conn: sqlite3.Connection, limit: int) -> list[tuple[bytes, str]]:
    """Return the absolute paths and reasons of some problems, those of undescribed files first."""
    undescribed = conn.execute(
        "SELECT root.path, problem.path, reason FROM problem JOIN root ON root.id = root_id"
        " ORDER BY since_us DESC LIMIT ?",
        (limit,),
    ).fetchall()
    without_metadata = conn.execute(
        "SELECT root.path, catalogue.path, 'no metadata (' || metadata_error || ')' FROM catalogue_metadata"
        " JOIN catalogue ON catalogue.id = file_id JOIN root ON root.id = root_id"
        " WHERE metadata_error IS NOT NULL ORDER BY file_id DESC LIMIT ?",
        (limit - len(undescribed),),
    ).fetchall()
    return [(os.path.join(root, path), reason) for root, path, reason in undescribed + without_metadata]


def roots(conn: sqlite3.Connection) -> list[Root]:
    """Return every root that ever was configured and still has an entry."""
    return [Root(*row) for row in conn.execute("SELECT id, path FROM root ORDER BY id")]


def claim_roots(conn: sqlite3.Connection, paths: Iterable[bytes]) -> list[Root]:
    """Return the roots with these paths, giving an id to those that are new."""
    claimed = []
    for path in paths:
        conn.execute("INSERT INTO root(path) VALUES (?) ON CONFLICT(path) DO NOTHING", (path,))
        claimed.append(Root(*conn.execute("SELECT id, path FROM root WHERE path = ?", (path,)).fetchone()))
    return claimed


def last_swept_us(conn: sqlite3.Connection) -> int | None:
    """Return when a root was last swept, None if none ever was."""
    swept_us: int | None = conn.execute("SELECT max(swept_us) FROM root").fetchone()[0]
    return swept_us


def was_swept(conn: sqlite3.Connection, root_id: int) -> bool:
    """Whether a whole root was ever swept to its end."""
    return bool(conn.execute("SELECT swept_us IS NOT NULL FROM root WHERE id = ?", (root_id,)).fetchone()[0])


def set_swept(conn: sqlite3.Connection, root_id: int, at_us: int) -> None:
    """Note when a whole root was last swept to its end."""
    conn.execute("UPDATE root SET swept_us = ? WHERE id = ?", (at_us, root_id))


def accept_removals(conn: sqlite3.Connection, root_id: int, at_us: int | None) -> None:
    """Note that a person believes what is missing in a root to be gone; None when that has been dealt with."""
    conn.execute("UPDATE root SET accepted_us = ? WHERE id = ?", (at_us, root_id))


def are_removals_accepted(conn: sqlite3.Connection, root_id: int) -> bool:
    """Whether a person has said so, and it has not been dealt with."""
    row = conn.execute("SELECT accepted_us FROM root WHERE id = ?", (root_id,)).fetchone()
    return row is not None and row[0] is not None


def odd_directories(conn: sqlite3.Connection, root_id: int) -> set[bytes]:
    """Return the directories of a root that held names which cannot be watched, when it was last swept."""
    return {path for (path,) in conn.execute("SELECT path FROM root_odd WHERE root_id = ?", (root_id,))}


def set_odd_directories(conn: sqlite3.Connection, root_id: int, paths: Iterable[bytes]) -> None:
    """Note which directories of a root hold names that cannot be watched."""
    conn.execute("DELETE FROM root_odd WHERE root_id = ?", (root_id,))
    conn.executemany("INSERT INTO root_odd(root_id, path) VALUES (?, ?)", [(root_id, path) for path in paths])


def root_mounts(conn: sqlite3.Connection, root_id: int) -> dict[bytes, MountRow]:
    """Return the mounts that a root consisted of, by path."""
    sql = "SELECT path, source, fstype, fsid, inner FROM root_mount WHERE root_id = ?"
    rows = conn.execute(sql, (root_id,))
    return {path: (source, fstype, _unwrapped(fsid), inner) for path, source, fstype, fsid, inner in rows}


def set_root_mounts(conn: sqlite3.Connection, root_id: int, mounts: Mapping[bytes, MountRow]) -> None:
    """Replace the mounts that a root consists of."""
    conn.execute("DELETE FROM root_mount WHERE root_id = ?", (root_id,))
    conn.executemany(
        "INSERT INTO root_mount(root_id, path, source, fstype, fsid, inner) VALUES (?, ?, ?, ?, ?, ?)",
        (
            (root_id, path, source, fstype, wrapped(fsid), inner)
            for path, (source, fstype, fsid, inner) in mounts.items()
        ),
    )


@dataclass(frozen=True, slots=True)
class RootTotals:
    """What the catalogue knows of one root."""

    root: Root
    files: int
    size_bytes: int
    swept_us: int | None


def totals(conn: sqlite3.Connection) -> list[RootTotals]:
    """Return the totals of each root; triggers keep them, counting a million files takes a fifth of a second."""
    rows = conn.execute("SELECT id, path, files, size_bytes, swept_us FROM root ORDER BY id")
    return [RootTotals(Root(row[0], row[1]), *row[2:]) for row in rows]
