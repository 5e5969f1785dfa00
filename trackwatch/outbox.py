"""SQL of the outbox: the immutable log of events, and which of them are still to be sent.

States of an event: pending (a row in `outbox_pending`), parked (the same row, set aside with its reason), published (no
such row). Functions over a connection that the store hands out; nothing here begins or ends a transaction.
"""

import fnmatch
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from trackwatch.event import Event, EventType, MetadataForm, Outgoing, first_event_id

# SQLite's largest integer.
_SEQUENCE_MAX = (1 << 63) - 1
_OUTGOING = "outbox.seq, generation, event_id, event_type, created_us, payload, path, old_path"


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


def pending(conn: sqlite3.Connection, limit: int, after: int = 0) -> list[Outgoing]:
    """Return the oldest events to send, in the order of their sequence, beginning after a sequence."""
    rows = conn.execute(
        f"SELECT {_OUTGOING} FROM outbox_pending JOIN outbox USING(seq)"
        " WHERE parked = 0 AND outbox_pending.seq > ? ORDER BY outbox_pending.seq LIMIT ?",
        (after, limit),
    )
    return [
        Outgoing(seq, gen, UUID(bytes=id_), EventType(kind), at, body, (path,) if old is None else (path, old))
        for seq, gen, id_, kind, at, body, path, old in rows
    ]


def confirm(conn: sqlite3.Connection, confirmed: Iterable[tuple[int, int]]) -> None:
    """Mark (sequence, generation) pairs as published; one that was replayed meanwhile stays pending."""
    conn.executemany("DELETE FROM outbox_pending WHERE seq = ? AND generation = ?", confirmed)


def park(conn: sqlite3.Connection, sequence: int, generation: int, reason: str) -> None:
    """Set an event aside with the reason why it was not sent."""
    conn.execute(
        "UPDATE outbox_pending SET parked = 1, attempts = attempts + 1, last_error = ?"
        " WHERE seq = ? AND generation = ?",
        (reason, sequence, generation),
    )


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events to replay; conditions are combined with AND, and at least one must be given."""

    parked: bool = False
    since_us: int | None = None
    until_us: int | None = None
    sequences: tuple[int, int] | None = None
    event_ids: tuple[UUID, ...] = ()
    path_glob: bytes | None = None
    types: tuple[EventType, ...] = ()

    def where(self) -> tuple[str, list[object]]:
        """Return the SQL condition over `outbox` with its parameters."""
        conditions: list[str] = []
        values: list[object] = []
        if self.parked:
            conditions.append("seq IN (SELECT seq FROM outbox_pending WHERE parked = 1)")
        # Ids sort by time and have an index, the column has none.
        if self.since_us is not None:
            conditions.append("event_id >= ?")
            values.append(first_event_id(self.since_us))
        if self.until_us is not None:
            conditions.append("event_id < ?")
            values.append(first_event_id(self.until_us))
        if self.sequences is not None:
            conditions.append("seq BETWEEN ? AND ?")
            values += [min(sequence, _SEQUENCE_MAX) for sequence in self.sequences]
        if self.event_ids:
            conditions.append(f"event_id IN ({', '.join('?' * len(self.event_ids))})")
            values += [event_id.bytes for event_id in self.event_ids]
        if self.path_glob is not None:
            conditions.append("path_matches(path)")  # GLOB matches no BLOB; `select` defines this
        if self.types:
            conditions.append(f"event_type IN ({', '.join('?' * len(self.types))})")
            values += [kind.value for kind in self.types]
        return " AND ".join(conditions) or "0", values


def _characters(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")


@dataclass(frozen=True, slots=True)
class Selected:
    """What a selection found."""

    count: int = 0
    first_us: int | None = None
    last_us: int | None = None
    sequences: Sequence[int] = field(default=(), repr=False)


def select(conn: sqlite3.Connection, selection: Selection) -> Selected:
    """Return what a selection chooses, in the order of the sequence."""
    if selection.path_glob is not None:
        # A `?` is one character, or one byte of a name that is not UTF-8.
        matches = re.compile(fnmatch.translate(_characters(selection.path_glob))).match
        conn.create_function("path_matches", 1, lambda path: matches(_characters(path)) is not None)
    where, values = selection.where()
    rows = conn.execute(f"SELECT seq, created_us FROM outbox WHERE {where} ORDER BY seq", values).fetchall()
    if not rows:
        return Selected()
    times = [at for _, at in rows]
    return Selected(len(rows), min(times), max(times), [seq for seq, _ in rows])


def replay(conn: sqlite3.Connection, sequences: Iterable[int]) -> None:
    """Make events pending again, under their own ids; harmless for those that are pending already.

    The generation of one that was published begins at random: a confirm from before may still be under way (a batch
    that was sent twice is confirmed twice), and must not fit.
    """
    conn.executemany(
        "INSERT INTO outbox_pending(seq, generation) SELECT seq, abs(random() / 2) FROM outbox WHERE seq = ?"
        " ON CONFLICT(seq) DO UPDATE SET generation = generation + 1, parked = 0, last_error = NULL",
        ((sequence,) for sequence in sequences),
    )


@dataclass(frozen=True, slots=True)
class OutboxTotals:
    """How the outbox stands."""

    events: int
    pending: int
    parked: int
    oldest_pending_us: int | None

    @property
    def published(self) -> int:
        """Events that are kept and were confirmed."""
        return self.events - self.pending - self.parked


def totals(conn: sqlite3.Connection) -> OutboxTotals:
    """Return how many events are kept, pending and parked, and since when the oldest waits."""
    events, waiting, parked = conn.execute(
        "SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM outbox_pending),"
        " (SELECT count(*) FROM outbox_pending WHERE parked = 1)"
    ).fetchone()
    oldest = conn.execute(
        "SELECT created_us FROM outbox WHERE seq = (SELECT min(seq) FROM outbox_pending WHERE parked = 0)"
    ).fetchone()
    return OutboxTotals(events, waiting - parked, parked, oldest[0] if oldest else None)


def count_pending(conn: sqlite3.Connection) -> int:
    """Return how many events wait, parked ones too, without looking at the published ones: there may be millions."""
    count: int = conn.execute("SELECT count(*) FROM outbox_pending").fetchone()[0]
    return count


def prune(conn: sqlite3.Connection, before_us: int, limit: int) -> int:
    """Delete at most `limit` published events older than a moment; return how many went."""
    # In the order of the ids, which is that of time: by `seq` SQLite would read the whole table to find nothing.
    cursor = conn.execute(
        "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox WHERE event_id < ? AND NOT EXISTS"
        " (SELECT 1 FROM outbox_pending WHERE outbox_pending.seq = outbox.seq) ORDER BY event_id LIMIT ?)",
        (first_event_id(before_us), limit),
    )
    return cursor.rowcount
