"""SQL of the outbox: the immutable log of events, and which of them are still to be sent.

States of an event: pending (a row in `outbox_pending`, or in `outbox_replay` when it is to be sent again), parked (a
row in `outbox_pending`, set aside with its reason), published (no such row). New events go before those that are sent
again, but never before those of their own file (decision 0004). Functions over a connection that the store hands out;
nothing here begins or ends a transaction.
"""

import fnmatch
import itertools
import os
import re
import sqlite3
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import UUID

from trackwatch.event import Event, EventType, MetadataForm, Outgoing, first_event_id

_SEQUENCE_MAX = (1 << 63) - 1  # SQLite's largest integer
_OUTGOING = "outbox.seq, generation, event_id, event_type, created_us, payload, path, old_path"
# While new events fill every batch (an import), one in so many of what is sent is a replayed one: it goes on, too.
REPLAY_SHARE = 10
# A replay alone is sent in batches of at most so many: a new event waits until the batch that is under way is through.
REPLAY_BATCH = 100
# One look at so many events when choosing: some 20 ms.
SELECT_ROWS = 20_000


def last_sequence(conn: sqlite3.Connection) -> int:
    """Return the sequence of the newest event ever appended (also when it was pruned), 0 before the first."""
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    return row[0] if row else 0


def append(conn: sqlite3.Connection, event: Event, form: MetadataForm) -> None:
    """Append an event; a trigger makes it pending."""
    conn.execute(
        "INSERT INTO outbox(seq, event_id, event_type, path, old_path, created_us, payload)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            event.sequence,
            event.event_id.bytes,
            event.event_type.value,
            event.path,
            event.old_path,
            event.at_us,
            event.to_json(form),
        ),
    )


def pending(conn: sqlite3.Connection, limit: int) -> list[Outgoing]:
    """Return the next events to send, at most so many: the order of one file's events is that of their sequence.

    First the oldest new ones, in order, with what is to be sent again of their files before them; then, in what room
    they leave, the oldest of the others that are to be sent again.
    """
    # CROSS: in this order, whatever a tool's ANALYZE has made SQLite believe about the sizes of the two.
    new = conn.execute(
        f"SELECT {_OUTGOING} FROM outbox_pending CROSS JOIN outbox USING(seq) WHERE parked = 0"
        " ORDER BY outbox_pending.seq LIMIT ?",
        (limit,),
    ).fetchall()
    oldest = [seq for (seq,) in conn.execute("SELECT seq FROM outbox_replay ORDER BY seq LIMIT ?", (limit,))]
    before = _replayed_about(conn, (path for row in new for path in row[-2:]), limit) if oldest and new else set()
    room = max(min(limit - len(new) - len(before), REPLAY_BATCH), limit // REPLAY_SHARE)
    others = [seq for seq in oldest if seq not in before][:room]
    first = sorted([*new, *_replayed(conn, before)])[: limit - len(others)]
    return [
        Outgoing(seq, gen, UUID(bytes=id_), EventType(kind), at, body, (path,) if old is None else (path, old))
        for seq, gen, id_, kind, at, body, path, old in [*first, *_replayed(conn, others)]
    ]


def _replayed(conn: sqlite3.Connection, sequences: Iterable[int]) -> Iterator[tuple[Any, ...]]:
    sql = f"SELECT {_OUTGOING} FROM outbox_replay JOIN outbox USING(seq) WHERE seq = ?"
    return itertools.chain.from_iterable(conn.execute(sql, (sequence,)) for sequence in sequences)


def _replayed_about(conn: sqlite3.Connection, paths: Iterable[bytes | None], limit: int) -> set[int]:
    """Return what is to be sent again about files, also under the names they had before: the oldest of each name."""
    found: set[int] = set()
    to_ask = {path for path in paths if path is not None}
    asked: set[bytes] = set()
    while to_ask:
        path = to_ask.pop()
        asked.add(path)
        for seq, *names in conn.execute(
            "SELECT seq, outbox.path, old_path FROM outbox_replay_path AS about JOIN outbox USING(seq)"
            " WHERE about.path = ? ORDER BY seq LIMIT ?",
            (path, limit),
        ):
            found.add(seq)
            to_ask.update(name for name in names if name is not None and name not in asked)
    return found


def confirm(conn: sqlite3.Connection, confirmed: Iterable[tuple[int, int]]) -> None:
    """Mark (sequence, generation) pairs as published; one that was replayed meanwhile stays pending."""
    pairs = sorted(confirmed)
    sql = "DELETE FROM outbox_pending WHERE seq BETWEEN ? AND ? AND generation = ?"
    if conn.executemany(sql, _runs(pairs)).rowcount < len(pairs):
        conn.executemany("DELETE FROM outbox_replay WHERE seq = ? AND generation = ?", pairs)


def _runs(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Yield the first, the last and the generation of sequences without a gap: in one statement goes a whole batch."""
    run: tuple[int, int, int] | None = None
    for sequence, generation in pairs:
        if run is not None and sequence == run[1] + 1 and generation == run[2]:
            run = run[0], sequence, generation
        else:
            if run is not None:
                yield run
            run = sequence, sequence, generation
    if run is not None:
        yield run


def park(conn: sqlite3.Connection, sequence: int, generation: int, reason: str) -> None:
    """Set an event aside with the reason why it was not sent."""
    fitting = conn.execute("DELETE FROM outbox_replay WHERE seq = ? AND generation = ?", (sequence, generation))
    if fitting.rowcount:
        conn.execute(
            "INSERT INTO outbox_pending(seq, generation, parked, attempts, last_error) VALUES (?, ?, 1, 1, ?)",
            (sequence, generation, reason),
        )
    else:
        conn.execute(
            "UPDATE outbox_pending SET parked = 1, attempts = attempts + 1, last_error = ?"
            " WHERE seq = ? AND generation = ?",
            (reason, sequence, generation),
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events to replay; conditions are combined with AND, and at least one must be given.

    `sequences` are the first and the last one, `until_us` is the first moment that is not meant. `path_glob` is a path
    (of a file, or of a directory with all that is in it) or a pattern; the old path of a move counts as well.
    """

    parked: bool = False
    since_us: int | None = None
    until_us: int | None = None
    sequences: tuple[int, int] | None = None
    event_ids: tuple[UUID, ...] = ()
    path_glob: bytes | None = None
    types: tuple[EventType, ...] = ()


def _condition(chosen: Selection) -> tuple[str, list[object]]:
    """Return a selection's SQL condition over `outbox` with its parameters; paths are not looked at there."""
    conditions: list[str] = []
    values: list[object] = []
    if chosen.parked:
        conditions.append("EXISTS (SELECT 1 FROM outbox_pending AS p WHERE p.seq = outbox.seq AND p.parked = 1)")
    if chosen.since_us is not None:
        conditions.append("event_id >= ?")
        values.append(first_event_id(chosen.since_us))
    if chosen.until_us is not None:
        conditions.append("event_id < ?")
        values.append(first_event_id(chosen.until_us))
    if chosen.event_ids:
        conditions.append(f"event_id IN ({', '.join('?' * len(chosen.event_ids))})")
        values += [event_id.bytes for event_id in chosen.event_ids]
    if chosen.types:
        conditions.append(f"event_type IN ({', '.join('?' * len(chosen.types))})")
        values += [kind.value for kind in chosen.types]
    return " AND ".join(conditions) or "1", values


def _bounds(conn: sqlite3.Connection, chosen: Selection) -> tuple[int, int]:
    """Return a range of sequences that holds all of a selection: by indexes, without reading the events."""
    first, last = conn.execute("SELECT (SELECT min(seq) FROM outbox), (SELECT max(seq) FROM outbox)").fetchone()
    ranges: list[tuple[int | None, int | None]] = [(first, last)]
    if chosen.sequences is not None:
        ranges.append(chosen.sequences)
    if chosen.parked:
        ranges.append(conn.execute("SELECT min(seq), max(seq) FROM outbox_pending WHERE parked = 1").fetchone())
    # Ids sort by time and have an index, the column of the time has none.
    if chosen.since_us is not None or chosen.until_us is not None or chosen.event_ids:
        condition, values = _condition(Selection(False, chosen.since_us, chosen.until_us, None, chosen.event_ids))
        ranges.append(conn.execute(f"SELECT min(seq), max(seq) FROM outbox WHERE {condition}", values).fetchone())
    known = [(start, end) for start, end in ranges if start is not None and end is not None]
    if len(known) < len(ranges):
        return 0, -1
    return max(start for start, _ in known), min(end for _, end in known)


def _path_test(glob: bytes | None) -> Callable[[bytes | None], bool]:
    """Return what says whether a path is meant. SQLite's GLOB would match no BLOB, in silence."""
    if glob is None:
        return lambda path: path is not None
    # A `?` is one character, or one byte of a name that is not UTF-8.
    matches = re.compile(fnmatch.translate(_characters(glob))).match
    folder = glob.rstrip(b"/") + b"/"
    return lambda path: (
        path is not None and (path == glob or path.startswith(folder) or matches(_characters(path)) is not None)
    )


def _characters(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Selected:
    """What a selection found; `common` is the longest directory that holds all of it."""

    count: int = 0
    first_us: int | None = None
    last_us: int | None = None
    common: bytes | None = None
    sequences: Sequence[int] = field(default=(), repr=False)


def select(conn: sqlite3.Connection, selection: Selection) -> Selected:
    """Return what a selection chooses, in the order of the sequence.

    Read in pieces: one long look at millions of events would keep the daemon's write-ahead log from being cut back.
    """
    if selection == Selection():
        return Selected()
    condition, values = _condition(selection)
    is_meant = _path_test(selection.path_glob)
    first, last = _bounds(conn, selection)
    sequences = array("q")  # eight bytes each: there may be millions
    times: tuple[int, int] | None = None
    common: bytes | None = None
    for start in range(first, last + 1, SELECT_ROWS):
        # By sequence, whatever other index there is: that one's rows would be sorted anew for each piece.
        for seq, at_us, path, old_path in conn.execute(
            f"SELECT seq, created_us, path, old_path FROM outbox NOT INDEXED WHERE seq BETWEEN ? AND ? AND {condition}"
            " ORDER BY seq",
            (start, min(last, start + SELECT_ROWS - 1), *values),
        ):
            if not (is_meant(path) or is_meant(old_path)):
                continue
            sequences.append(seq)
            times = (at_us, at_us) if times is None else (min(times[0], at_us), max(times[1], at_us))
            folder = os.path.dirname(path)
            if common is None:
                common = folder
            elif folder != common and not folder.startswith(common.rstrip(b"/") + b"/"):
                common = os.path.commonpath((common, folder))
    if times is None:
        return Selected()
    return Selected(len(sequences), *times, common, sequences)


class Chosen(NamedTuple):
    """One event that a selection chose."""

    sequence: int
    at_us: int
    event_type: str
    path: bytes
    old_path: bytes | None


def list_chosen(conn: sqlite3.Connection, sequences: Iterable[int]) -> list[Chosen]:
    """Return what these events are about; those that were pruned meanwhile are left out."""
    sql = "SELECT seq, created_us, event_type, path, old_path FROM outbox WHERE seq = ?"
    return [Chosen(*row) for sequence in sequences for row in conn.execute(sql, (sequence,))]


class Kept(NamedTuple):
    """The range of events that are not pruned; zeros where there is none."""

    first_sequence: int
    last_sequence: int
    oldest_us: int


def kept(conn: sqlite3.Connection) -> Kept:
    """Return which events are kept."""
    sql = "SELECT seq, created_us FROM outbox ORDER BY seq LIMIT 1"
    first, oldest_us = conn.execute(sql).fetchone() or (0, 0)
    return Kept(first, last_sequence(conn), oldest_us)


def replay(conn: sqlite3.Connection, sequences: Iterable[int]) -> None:
    """Make events pending again, under their own ids; harmless for those that are pending already.

    The generation of one that was published begins at random: a confirm from before may still be under way (a batch
    that was sent twice is confirmed twice), and must not fit.
    """
    rows = [(sequence,) for sequence in sequences]
    # Never sent yet: it keeps its place, and a confirm that is under way no longer fits.
    conn.executemany("UPDATE outbox_pending SET generation = generation + 1 WHERE seq = ? AND parked = 0", rows)
    conn.executemany("DELETE FROM outbox_pending WHERE seq = ? AND parked = 1", rows)
    conn.executemany(
        "INSERT INTO outbox_replay(seq, generation) SELECT seq, abs(random() / 2) FROM outbox WHERE seq = ?"
        " AND NOT EXISTS (SELECT 1 FROM outbox_pending WHERE outbox_pending.seq = outbox.seq)"
        " ON CONFLICT(seq) DO UPDATE SET generation = generation + 1",
        rows,
    )


def has_new(conn: sqlite3.Connection) -> bool:
    """Whether an event waits that was never sent."""
    return bool(conn.execute("SELECT EXISTS (SELECT 1 FROM outbox_pending WHERE parked = 0)").fetchone()[0])


def count_replayed(conn: sqlite3.Connection, first: int = 0, last: int = _SEQUENCE_MAX) -> int:
    """Return how many events of a range wait to be sent again."""
    sql = "SELECT count(*) FROM outbox_replay WHERE seq BETWEEN ? AND ?"
    count: int = conn.execute(sql, (first, last)).fetchone()[0]
    return count


@dataclass(frozen=True, slots=True)
class OutboxTotals:
    """How the outbox stands. `pending` counts `replaying` too; the oldest one pending is one that was never sent."""

    events: int
    pending: int
    parked: int
    oldest_pending_us: int | None
    replaying: int = 0
    newest_us: int | None = None  # of all that are kept
    oldest_us: int | None = None

    @property
    def published(self) -> int:
        """Events that are kept and were confirmed."""
        return self.events - self.pending - self.parked


def totals(conn: sqlite3.Connection) -> OutboxTotals:
    """Return how many events are kept, pending and parked, and since when the oldest waits."""
    events, waiting, parked, replaying, oldest_pending_us, newest_us, oldest_us = conn.execute(
        "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM outbox_pending),"
        " (SELECT count(*) FROM outbox_pending WHERE parked = 1), (SELECT count(*) FROM outbox_replay),"
        " (SELECT created_us FROM outbox WHERE seq = (SELECT min(seq) FROM outbox_pending WHERE parked = 0)),"
        " (SELECT created_us FROM outbox WHERE seq = (SELECT max(seq) FROM outbox)),"
        " (SELECT created_us FROM outbox WHERE seq = (SELECT min(seq) FROM outbox))"
    ).fetchone()
    return OutboxTotals(
        events, waiting - parked + replaying, parked, oldest_pending_us, replaying, newest_us, oldest_us
    )


def last_parked(conn: sqlite3.Connection) -> str | None:
    """Return why the newest of the parked events was set aside, None if there is none."""
    row = conn.execute("SELECT last_error FROM outbox_pending WHERE parked = 1 ORDER BY seq DESC LIMIT 1").fetchone()
    return row[0] if row else None


def count_pending(conn: sqlite3.Connection) -> int:
    """Return how many events were never published, parked ones too, without a look at those that were: millions."""
    count: int = conn.execute("SELECT count(*) FROM outbox_pending").fetchone()[0]
    return count


def prune(conn: sqlite3.Connection, before_us: int, limit: int, now_us: int | None = None) -> int:
    """Delete at most `limit` published events older than a moment; return how many went.

    An event that comes after a younger one was stamped by a wrong clock, and is as young as that. One from after
    `now_us` was, too, and says nothing of others.
    """
    oldest_kept = first_event_id(before_us)
    if not conn.execute("SELECT EXISTS (SELECT 1 FROM outbox WHERE event_id < ?)", (oldest_kept,)).fetchone()[0]:
        return 0
    # By the index alone, 40 ms for a million events; the table in the order of `seq` may be gigabytes.
    young = conn.execute(
        "SELECT min(+seq) FROM outbox WHERE event_id >= ? AND event_id <= ?",
        (oldest_kept, b"\xff" * 16 if now_us is None else first_event_id(now_us + 1)),
    ).fetchone()[0]
    # In the order of the ids, which is that of time: by `seq` SQLite would read the whole table to find nothing.
    cursor = conn.execute(
        "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE event_id < ? AND +seq < ?"
        " AND NOT EXISTS (SELECT 1 FROM outbox_pending WHERE outbox_pending.seq = outbox.seq)"
        " AND NOT EXISTS (SELECT 1 FROM outbox_replay WHERE outbox_replay.seq = outbox.seq) ORDER BY event_id LIMIT ?)",
        (oldest_kept, _SEQUENCE_MAX if young is None else young, limit),
    )
    return cursor.rowcount
