#!/usr/bin/env python3
# /// script
# requires-python = ">=3.11"
# dependencies = ["pika >= 1.3.2, < 2"]
# ///
"""An example consumer of trackwatch: folds its events into a SQLite database, one row for each file.

One rule makes it right: *an event says what is at its path (and that nothing is at its old path), and of a path the
statement with the highest `sequence` holds*. So events may come twice, late, or in any order, and when all have come
the rows are the files on disk. Everything else here sees to it that all come: messages are acknowledged after the
commit, sequences are counted so that a loss shows, and what cannot be understood is set aside where it can be seen.

Start from this file: keep `Library`'s rule, and replace what it stores. See README.md beside it.
"""

import argparse
import base64
import hashlib
import json
import logging
import os
import random
import signal
import sqlite3
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pika
from pika.adapters.utils.connection_workflow import AMQPConnectorException  # a handshake that failed: no AMQPError
from pika.exceptions import AMQPError, ChannelClosedByBroker

SCHEMA_VERSION = 1
EVENT_TYPES = ("created", "modified", "deleted", "moved", "renamed")
AUDIO_SUFFIXES = "flac,wav,wave,mp3,ogg,oga,aac,opus,m4a,m4b,m4p,m4v,m4r,mp4,wma"

PREFETCH = 1000  # messages in hand; a batch is never larger
BATCH_EVENTS, BATCH_S = 500, 0.2  # one commit for so many events, or for those of so long
IDLE_S = 0.5  # how long to wait for a message before looking at other things
HEARTBEAT_S, CONNECT_S = 20, 8  # seconds
LOCKED_S = 3.0  # how long to wait for another process that writes into the database
AWAY_MAX_S = 5.0  # longest delay before connecting again; a random part of it is waited
GAP_S = 30.0  # a sequence that is missing for so long is told; within a few seconds, they may overtake each other
# How often a message may have been in the hands of a consumer that died, before it is set aside. Said on purpose:
# without it RabbitMQ 4 gives up after 20, which a service that restarts in a loop soon reaches, and RabbitMQ 3 puts
# what is returned with basic.nack to the end of the queue instead of where it was.
DELIVERY_LIMIT = 100
PRECONDITION_FAILED = 406
SHOWN = 20  # differences of each kind

log = logging.getLogger("library-consumer")


class Unusable(ValueError):
    """A message that is no event of a version that this program knows; the text says why."""


class Misconfigured(Exception):
    """It cannot work like this; the text says what to do."""


# ---- what a message says


@dataclass(frozen=True, slots=True)
class Event:
    """The fields of an event that are used here. `sha256` is None for a deletion; `metadata` is JSON."""

    instance_id: str
    sequence: int
    event_id: bytes
    event_type: str
    root: str
    path: bytes
    old_path: bytes | None
    sha256: str | None
    size_bytes: int | None
    modified_at: str | None
    metadata: str | None
    redelivered: bool


def parse(body: bytes, *, redelivered: bool = False) -> Event:
    """Return the event that a message's body holds. Fields that are not known are ignored: more may come.

    Raises:
        Unusable: it is none, or of a later version.
    """
    try:
        message = json.loads(body)
        version = message["schema_version"]
        if version != SCHEMA_VERSION:
            raise Unusable(f"schema_version {version!r}, and this program knows {SCHEMA_VERSION}")
        metadata = message["metadata"]
        event = Event(
            instance_id=_text(message["instance_id"]),
            sequence=_number(message["sequence"]),
            event_id=UUID(message["event_id"]).bytes,
            event_type=message["event_type"],
            root=_text(message["root"]),
            path=_path(message, "file_path"),
            old_path=None if message["old_path"] is None else _path(message, "old_path"),
            sha256=None if message["sha256_hash"] is None else _text(message["sha256_hash"]),
            size_bytes=None if message["size_bytes"] is None else _number(message["size_bytes"]),
            modified_at=None if message["modified_at"] is None else _text(message["modified_at"]),
            metadata=None if metadata is None else _text(json.dumps(metadata, ensure_ascii=False)),
            redelivered=redelivered,
        )
        has_moved = event.event_type in ("moved", "renamed")
        if event.event_type not in EVENT_TYPES or has_moved != (event.old_path is not None) or event.sequence < 1:
            raise ValueError(f"{event.event_type!r}, sequence {event.sequence}, old path {event.old_path!r}")
        if (event.sha256 is None) != (event.event_type == "deleted"):
            raise ValueError(f"{event.event_type!r} with the hash {event.sha256!r}")
    except Unusable:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise Unusable(f"no event: {type(error).__name__}: {error}") from error
    return event


# What SQLite takes, and nothing else: a message that cannot be stored would come again for ever.


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    value.encode()  # JSON can hold halves of characters, which are a ValueError here
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 63:
        raise ValueError(f"{value!r} is no number that can be")
    return value


def _path(message: Any, name: str) -> bytes:
    """Return a path as the bytes that it has on disk: the text shows what is not UTF-8 as U+FFFD."""
    exact = message.get(f"{name}_bytes")
    path = _text(message[name]).encode() if exact is None else base64.b64decode(exact, validate=True)
    if not path.startswith(b"/"):
        raise ValueError(f"{name} {path!r} is not absolute")
    return path


# ---- what is kept


SCHEMA = """
CREATE TABLE instances(  -- of trackwatch: each counts its own events
  id INTEGER PRIMARY KEY,
  instance_id TEXT NOT NULL UNIQUE,
  last INTEGER NOT NULL DEFAULT 0,         -- the highest sequence that came
  events INTEGER NOT NULL DEFAULT 0,       -- how many different ones came: fewer than `last` is a gap
  doubles INTEGER NOT NULL DEFAULT 0,      -- came again
  late INTEGER NOT NULL DEFAULT 0,         -- came after a later one
  redelivered INTEGER NOT NULL DEFAULT 0,  -- had been in the hands of a consumer that did not acknowledge it
  beginnings INTEGER NOT NULL DEFAULT 1    -- how often its numbers began again
) STRICT;
CREATE TABLE roots(root TEXT NOT NULL, instance INTEGER NOT NULL, PRIMARY KEY(root, instance)) STRICT, WITHOUT ROWID;
CREATE TABLE events(  -- all that came
  instance INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  event_id BLOB NOT NULL,
  PRIMARY KEY(instance, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE files(
  instance INTEGER NOT NULL,
  path BLOB NOT NULL,         -- the bytes; CAST(path AS TEXT) for people
  sequence INTEGER NOT NULL,  -- of the event that said this
  sha256 TEXT,                -- NULL: there is no file, kept for as long as an earlier event may come late
  size_bytes INTEGER,
  modified_at TEXT,
  metadata TEXT,              -- JSON, as in the message
  PRIMARY KEY(instance, path)
) STRICT, WITHOUT ROWID;
CREATE INDEX files_gone ON files(instance) WHERE sha256 IS NULL;
CREATE VIEW library AS SELECT instance_id, CAST(path AS TEXT) AS path, size_bytes, modified_at, sha256,
  coalesce(json_extract(metadata, '$.tags.artist'), json_extract(metadata, '$.artist')) AS artist,
  coalesce(json_extract(metadata, '$.tags.album'), json_extract(metadata, '$.album')) AS album,
  coalesce(json_extract(metadata, '$.tags.title'), json_extract(metadata, '$.title')) AS title
  FROM files JOIN instances ON instances.id = files.instance WHERE sha256 IS NOT NULL;
PRAGMA user_version = 1;
"""


@dataclass(slots=True)
class Instance:
    """A row of `instances`."""

    id: int
    instance_id: str
    last: int
    events: int
    doubles: int
    late: int
    redelivered: int
    beginnings: int

    @property
    def missing(self) -> int:
        """How many sequences from 1 to the last did not come."""
        return self.last - self.events


class Library:
    """The fold: what the events so far come to. Several processes may open one file."""

    def __init__(self, file: str, *, must_exist: bool = False) -> None:
        if must_exist and not os.path.exists(file):
            raise Misconfigured(f"{file}: no such file; `run` makes it (--db names it)")
        self.file = file
        # An acknowledged message is gone, so what was committed must survive a loss of power: FULL.
        self._conn = sqlite3.connect(file, timeout=LOCKED_S, isolation_level=None)
        self._conn.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
        if self._version() == 0:
            self._begin()
            if self._version() == 0:  # nobody else has made it meanwhile
                for statement in SCHEMA.split(";\n"):
                    self._conn.execute(statement)
            self._conn.execute("COMMIT")
        if self._version() != 1:
            self.close()
            raise Misconfigured(f"{file}: was written by a later version of this program")

    def close(self) -> None:
        """Close the database."""
        self._conn.close()

    def apply(self, events: Sequence[Event]) -> list[tuple[int, str]]:
        """Fold events in one transaction; return what a person should know, each with its level of `logging`.

        Raises:
            sqlite3.OperationalError: it could not be written (a full disk, a lock); nothing was.
        """
        notices: list[tuple[int, str]] = []
        touched: dict[str, Instance] = {}
        self._begin()
        try:
            for event in events:
                if event.instance_id not in touched:
                    touched[event.instance_id] = self._instance(event.instance_id)
                self._take(touched[event.instance_id], event, notices)
            for instance in touched.values():
                self._write_back(instance)
            self._conn.execute("COMMIT")
        except BaseException:
            if self._conn.in_transaction:  # a full disk may have rolled it back
                self._conn.execute("ROLLBACK")
            raise
        return notices

    def _version(self) -> int:
        version: int = self._conn.execute("PRAGMA user_version").fetchone()[0]
        return version

    def _begin(self) -> None:
        self._conn.execute("BEGIN IMMEDIATE")

    def _take(self, instance: Instance, event: Event, notices: list[tuple[int, str]]) -> None:
        instance.redelivered += event.redelivered
        known = self._event_id(instance, event.sequence)
        if known == event.event_id:
            instance.doubles += 1
            return
        if known is not None or (event.sequence == 1 and self._is_new_beginning(instance, event)):
            self._begin_again(instance, event.sequence)
            text = (
                f"instance {instance.instance_id} began again: sequence {event.sequence:,} is another event than it was"
                " before, so its state was lost, or an older backup of it restored. What it said from there on is void"
                + ("" if event.sequence == 1 else "; verify the library: what changed and changed back is not told")
            )
            notices.append((logging.WARNING, text))
        self._note_root(instance, event.root, notices)
        self._conn.execute("INSERT INTO events VALUES (?, ?, ?)", (instance.id, event.sequence, event.event_id))
        instance.events += 1
        instance.late += event.sequence < instance.last
        instance.last = max(instance.last, event.sequence)
        if event.old_path is not None:
            self._state(instance.id, event.old_path, event.sequence)
        self._state(
            instance.id, event.path, event.sequence, event.sha256, event.size_bytes, event.modified_at, event.metadata
        )

    def _state(
        self,
        instance: int,
        path: bytes,
        sequence: int,
        sha256: str | None = None,
        size_bytes: int | None = None,
        modified_at: str | None = None,
        metadata: str | None = None,
    ) -> None:
        """The rule: what is at a path, unless something later was said of it."""
        self._conn.execute(
            "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT(instance, path) DO UPDATE SET"
            " sequence = excluded.sequence, sha256 = excluded.sha256, size_bytes = excluded.size_bytes,"
            " modified_at = excluded.modified_at, metadata = excluded.metadata"
            " WHERE excluded.sequence > files.sequence",
            (instance, path, sequence, sha256, size_bytes, modified_at, metadata),
        )

    def _is_new_beginning(self, instance: Instance, event: Event) -> bool:
        """Whether a first event that we did not have is no replay: ids grow with time, and this one is younger."""
        sql = "SELECT event_id FROM events WHERE instance = ? ORDER BY sequence LIMIT 1"
        first = self._conn.execute(sql, (instance.id,)).fetchone()
        return first is not None and event.event_id > first[0]

    def _begin_again(self, instance: Instance, sequence: int) -> None:
        """Drop what was said from a sequence on; from 1 on, that is all, and the library is announced anew."""
        for table in ("files", "events"):
            self._conn.execute(f"DELETE FROM {table} WHERE instance = ? AND sequence >= ?", (instance.id, sequence))
        sql = "SELECT coalesce(max(sequence), 0), count(*) FROM events WHERE instance = ?"
        instance.last, instance.events = self._conn.execute(sql, (instance.id,)).fetchone()
        instance.beginnings += 1

    def _note_root(self, instance: Instance, root: str, notices: list[tuple[int, str]]) -> None:
        if not self._conn.execute("INSERT OR IGNORE INTO roots VALUES (?, ?)", (root, instance.id)).rowcount:
            return
        notices.append((logging.INFO, f"instance {instance.instance_id} tells of {root}"))
        sql = "SELECT instance_id FROM roots JOIN instances ON id = instance WHERE root = ? AND id != ?"
        for (other,) in self._conn.execute(sql, (root, instance.id)).fetchall():
            text = f"so did instance {other}: if that is the same library, and its state was lost, `forget {other}`"
            notices.append((logging.WARNING, text))

    def _instance(self, instance_id: str) -> Instance:
        self._conn.execute("INSERT OR IGNORE INTO instances(instance_id) VALUES (?)", (instance_id,))
        return Instance(*self._conn.execute("SELECT * FROM instances WHERE instance_id = ?", (instance_id,)).fetchone())

    def _event_id(self, instance: Instance, sequence: int) -> bytes | None:
        if sequence > instance.last:
            return None
        sql = "SELECT event_id FROM events WHERE instance = ? AND sequence = ?"
        row = self._conn.execute(sql, (instance.id, sequence)).fetchone()
        return row[0] if row else None

    def _write_back(self, instance: Instance) -> None:
        self._conn.execute(
            "UPDATE instances SET last = ?, events = ?, doubles = ?, late = ?, redelivered = ?, beginnings = ?"
            " WHERE id = ?",
            (instance.last, instance.events, instance.doubles, instance.late, instance.redelivered, instance.beginnings,
             instance.id),
        )  # fmt: skip
        if not instance.missing:  # nothing that we do not have is earlier than what we have
            self._conn.execute("DELETE FROM files WHERE instance = ? AND sha256 IS NULL", (instance.id,))

    def instances(self) -> list[Instance]:
        """Return all instances."""
        return [Instance(*row) for row in self._conn.execute("SELECT * FROM instances ORDER BY instance_id").fetchall()]

    def gaps(self, instance: Instance) -> list[tuple[int, int]]:
        """Return the first and the last sequence of each piece that did not come."""
        if not instance.missing:
            return []
        return self._conn.execute(
            "SELECT first, last FROM (SELECT lag(sequence, 1, 0) OVER (ORDER BY sequence) + 1 AS first,"
            " sequence - 1 AS last FROM events WHERE instance = ?) WHERE first <= last ORDER BY first",
            (instance.id,),
        ).fetchall()

    def count_files(self, instance: Instance) -> int:
        """Return how many files an instance has."""
        sql = "SELECT count(*) FROM files WHERE instance = ? AND sha256 IS NOT NULL"
        count: int = self._conn.execute(sql, (instance.id,)).fetchone()[0]
        return count

    def files(self, instance: Instance, root: bytes) -> dict[bytes, str]:
        """Return the files below a root: path relative to it, and SHA-256."""
        start = root.rstrip(b"/") + b"/"
        sql = "SELECT path, sha256 FROM files WHERE instance = ? AND path > ? AND path < ? AND sha256 IS NOT NULL"
        rows = self._conn.execute(sql, (instance.id, start, start[:-1] + b"0"))  # "0" comes after "/"
        return {path[len(start) :]: sha256 for path, sha256 in rows}

    def forget(self, instance: Instance) -> None:
        """Drop an instance with its files."""
        self._begin()
        for table in ("files", "events", "roots"):
            self._conn.execute(f"DELETE FROM {table} WHERE instance = ?", (instance.id,))
        self._conn.execute("DELETE FROM instances WHERE id = ?", (instance.id,))
        self._conn.execute("COMMIT")


# ---- how messages come


def queue_arguments(queue: str) -> dict[str, object]:
    """Return what the queue is declared with; ops/rabbitmq/definitions.json has the same."""
    return {
        "x-queue-type": "quorum",
        # One of us works, the others wait: the order of the queue is the order of the work.
        "x-single-active-consumer": True,
        "x-delivery-limit": DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": f"{queue}.dead",
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",  # which that strategy needs
    }


@dataclass
class Consumer:
    """Takes messages from the queue into the library, until it is told to stop; comes back when the broker was away."""

    library: Library
    url: str
    queue: str
    exchange: str
    once: bool
    stopping: threading.Event
    poison: int = 0
    _committed: int = 0
    _batch: list[Event] = field(default_factory=list)
    _last_tag: int = 0  # of the batch
    _away: str = ""  # why the broker is
    _gaps_told: dict[str, int] = field(default_factory=dict)
    _gaps_seen: dict[str, int] = field(default_factory=dict)
    _look_at_gaps_s: float = 0.0

    def run(self) -> None:
        """Consume until stopped, or with `once` until the queue is empty.

        Raises:
            Misconfigured: the queue cannot be used.
        """
        failures = 0
        while not self.stopping.is_set():
            committed = self._committed
            try:
                self._session()
            except (AMQPError, AMQPConnectorException, OSError) as error:
                if isinstance(error, ChannelClosedByBroker) and error.reply_code == PRECONDITION_FAILED:
                    raise Misconfigured(
                        f"queue or exchange exists with other properties ({error.reply_text}): delete it when it is"
                        " empty, or choose another queue (--queue)"
                    ) from error
                failures = 1 if self._committed > committed else failures + 1
                delay_s = random.uniform(0, min(AWAY_MAX_S, 0.5 * 2 ** min(failures, 10)))
                reason = str(error) or repr(error)
                if reason != self._away:  # the same one again and again is said once
                    log.warning("broker away: %s; trying again", reason)
                self._away = reason
                self.stopping.wait(delay_s)
            else:
                return

    def _session(self) -> None:
        """Consume as long as one connection lasts; what is not acknowledged when it is lost comes again."""
        parameters = pika.URLParameters(self.url)
        parameters.heartbeat = HEARTBEAT_S
        parameters.socket_timeout = parameters.stack_timeout = CONNECT_S
        self._batch, self._last_tag = [], 0
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            self._declare(channel)
            channel.basic_qos(prefetch_count=PREFETCH)
            channel.basic_consume(self.queue, self._take)
            log.info("consuming %s at %s:%s", self.queue, parameters.host, parameters.port)
            self._away = ""
            began_s = time.monotonic()  # of the batch
            while not self.stopping.is_set():
                if not self._batch:
                    began_s = time.monotonic()
                connection.process_data_events(time_limit=BATCH_S if self._batch else IDLE_S)
                if len(self._batch) >= BATCH_EVENTS or (self._batch and time.monotonic() >= began_s + BATCH_S):
                    self._commit(connection, channel)
                elif not self._batch and self.once and self._is_empty(connection, channel):
                    return
                self._tell_gaps()
                if not channel.consumer_tags:
                    raise AMQPError("the broker has cancelled the consumer: the queue was deleted, or moved")
            if self._batch:
                self._commit(connection, channel)

    def _declare(self, channel: Any) -> None:
        """Declare everything that it needs: whoever comes first makes it, and the events wait until somebody does."""
        channel.exchange_declare(self.exchange, "topic", durable=True)
        channel.queue_declare(f"{self.queue}.dead", durable=True, arguments={"x-queue-type": "quorum"})
        channel.queue_declare(self.queue, durable=True, arguments=queue_arguments(self.queue))
        channel.queue_bind(self.queue, self.exchange, "file.*")

    def _take(self, channel: Any, method: Any, properties: Any, body: bytes) -> None:
        try:
            event = parse(body, redelivered=method.redelivered)
        except Unusable as unusable:
            # Never back into the queue, where it would come again at once.
            channel.basic_reject(method.delivery_tag, requeue=False)
            self.poison += 1
            log.error("message %s set aside in %s.dead: %s", properties.message_id, self.queue, unusable)
            return
        self._batch.append(event)
        self._last_tag = method.delivery_tag

    def _commit(self, connection: Any, channel: Any) -> None:
        """Write the batch, and then acknowledge it; neither, if it cannot be written before we are told to stop."""
        has_failed = False
        while True:
            batch, last_tag = list(self._batch), self._last_tag
            try:
                notices = self.library.apply(batch)
                break
            except sqlite3.OperationalError as error:
                if not has_failed:
                    log.error("cannot write %s: %s; the messages stay in the queue", self.library.file, error)
                    has_failed = True
                if self.stopping.is_set():
                    return
                # With signs of life to the broker: a lost connection counts as a failed delivery. More may come.
                connection.sleep(1)
        if has_failed:
            log.info("%s can be written again", self.library.file)
        channel.basic_ack(last_tag, multiple=True)
        del self._batch[: len(batch)]
        self._committed += len(batch)
        for level, notice in notices:
            log.log(level, "%s", notice)

    def _is_empty(self, connection: Any, channel: Any) -> bool:
        if channel.queue_declare(self.queue, passive=True).method.message_count:
            return False
        connection.process_data_events(time_limit=0)  # what came with the answer
        return not self._batch

    def _tell_gaps(self) -> None:
        """Say once what is missing, when it was missing the last time as well; and when it has come."""
        if time.monotonic() < self._look_at_gaps_s:
            return
        self._look_at_gaps_s = time.monotonic() + GAP_S
        for instance in self.library.instances():
            name, missing = instance.instance_id, instance.missing
            if missing == self._gaps_seen.get(name, 0) != self._gaps_told.get(name, 0):
                log.warning("%s", gap_line(self.library, instance) if missing else f"instance {name}: all has come now")
                self._gaps_told[name] = missing
            self._gaps_seen[name] = missing


def gap_line(library: Library, instance: Instance) -> str:
    """Return what did not come of an instance's events, and what to do, in one line."""
    gaps = [f"{first}-{last}" if first < last else str(first) for first, last in library.gaps(instance)]
    return (
        f"instance {instance.instance_id}: {instance.missing:,} events did not come, sequence {', '.join(gaps[:SHOWN])}"
        + (f" and {len(gaps) - SHOWN} other pieces" if len(gaps) > SHOWN else "")
        + "; on its host, for each: trackwatch replay --sequence " + gaps[0]
    )  # fmt: skip


# ---- is it so?


def regular_files(directory: bytes, below: bytes = b"") -> Iterator[bytes]:
    """Yield the paths of all regular files, relative to the directory; links are not followed."""
    with os.scandir(os.path.join(directory, below)) as entries:
        for entry in entries:
            path = os.path.join(below, entry.name)
            if entry.is_dir(follow_symlinks=False):
                yield from regular_files(directory, path)
            elif entry.is_file(follow_symlinks=False):
                yield path


def sha256_of(path: bytes) -> str | None:
    """Return a regular file's SHA-256, None if there is none that can be read."""
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return None
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def verify(library: Library, directory: bytes, root: bytes, suffixes: Sequence[str], instance_id: str | None) -> bool:
    """Compare what was told of a root with a directory, path by path and hash by hash; print what differs."""
    candidates = [one for one in library.instances() if instance_id in (None, one.instance_id)]
    told_by = {one.instance_id: library.files(one, root) for one in candidates}
    tellers = [name for name, files in told_by.items() if files]
    if len(tellers) > 1:
        raise Misconfigured(f"instances {', '.join(tellers)} tell of {os.fsdecode(root)}: choose one (--instance)")
    told = told_by[tellers[0]] if tellers else {}
    endings = tuple(f".{suffix.strip()}".encode() for suffix in suffixes)
    on_disk = {
        path
        for path in regular_files(directory)
        if path.lower().endswith(endings) and not os.path.basename(path).startswith(b"._")  # macOS' attributes
    }
    hashes = {path: sha256_of(os.path.join(directory, path)) for path in on_disk | told.keys()}
    differences = {
        "not told, but on disk": sorted(on_disk - told.keys()),
        "told, but not on disk": sorted(path for path in told if hashes[path] is None),
        "another content": sorted(path for path in told if hashes[path] not in (None, told[path])),
    }
    different = sum(map(len, differences.values()))
    total = len(told.keys() | on_disk)
    print(f"{total - different:,} of {total:,} files equal")
    for kind, paths in differences.items():
        if paths:
            print(f"{len(paths):,} {kind}:")
            for path in paths[:SHOWN]:
                print(f"  {os.path.join(root, path).decode(errors='replace')!r}")
            if len(paths) > SHOWN:
                print(f"  and {len(paths) - SHOWN:,} more")
    return not different and total > 0


def show(library: Library) -> bool:
    """Print how each instance stands; return whether all that was sent has come."""
    instances = library.instances()
    for one in instances:
        print(
            f"{one.instance_id}: {library.count_files(one):,} files · {one.events:,} events, the last is {one.last:,}"
            f" · {one.doubles:,} doubles · {one.late:,} late · {one.redelivered:,} redelivered"
            + (f" · began {one.beginnings} times" if one.beginnings > 1 else "")
        )
        if one.missing:
            print(f"  {gap_line(library, one)}")
    if not instances:
        print("no event has come yet")
    return not any(one.missing for one in instances)


# ---- the program


def arguments() -> argparse.Namespace:
    """Return what the command line says."""
    parser = argparse.ArgumentParser(description="fold trackwatch's events into a SQLite database")
    parser.add_argument("--db", metavar="FILE", default="library.db", help="the database (library.db)")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="consume until SIGTERM or Ctrl-C")
    run.add_argument("--once", action="store_true", help="until the queue is empty")
    run.add_argument(
        "--url",
        default=os.environ.get("RABBITMQ_URL", "amqp://guest:guest@localhost:5672/"),
        help="the broker (RABBITMQ_URL, or guest at localhost); a password is better in the variable",
    )
    run.add_argument("--queue", default="library", help="one for each database (library)")
    run.add_argument("--exchange", default="file_events")
    check = commands.add_parser("verify", help="compare with a directory tree, by SHA-256; exit 1 if it differs")
    check.add_argument("directory", metavar="DIR")
    check.add_argument("--root", metavar="PATH", help="what trackwatch calls DIR, where it has another name for it")
    check.add_argument("--instance", metavar="ID", help="whose files, if several instances have that root")
    check.add_argument("--suffixes", default=AUDIO_SUFFIXES, help="of the files that trackwatch tells about")
    commands.add_parser("status", help="how far it is, and what is missing; exit 1 if something is")
    forget = commands.add_parser("forget", help="drop an instance that is gone for ever, with its files")
    forget.add_argument("instance", metavar="ID")
    return parser.parse_args()


def main() -> int:
    """Run the program; return its exit code."""
    chosen = arguments()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it tells each failure several times, with tracebacks
    try:
        with closing(Library(chosen.db, must_exist=chosen.command != "run")) as library:
            return 0 if COMMANDS[chosen.command](library, chosen) else 1
    except (Misconfigured, sqlite3.Error) as error:
        print(f"library_consumer: {error}", file=sys.stderr)
        return 2


def run_command(library: Library, chosen: argparse.Namespace) -> bool:
    """Consume."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    consumer = Consumer(library, chosen.url, chosen.queue, chosen.exchange, chosen.once, stopping)
    consumer.run()
    log.info("stopped; %d messages were set aside", consumer.poison)
    show(library)
    return True


def verify_command(library: Library, chosen: argparse.Namespace) -> bool:
    """Compare with a directory."""
    directory = os.fsencode(os.path.abspath(chosen.directory))
    if not os.path.isdir(directory):
        raise Misconfigured(f"{chosen.directory}: no such directory")
    root = directory if chosen.root is None else os.fsencode(chosen.root)
    return verify(library, directory, root, chosen.suffixes.split(","), chosen.instance)


def forget_command(library: Library, chosen: argparse.Namespace) -> bool:
    """Drop an instance."""
    known = {one.instance_id: one for one in library.instances()}
    if chosen.instance not in known:
        raise Misconfigured(f"no instance {chosen.instance!r}; there are: {', '.join(known) or 'none'}")
    library.forget(known[chosen.instance])
    return True


COMMANDS: dict[str, Callable[[Library, argparse.Namespace], bool]] = {
    "run": run_command,
    "verify": verify_command,
    "status": lambda library, _: show(library),
    "forget": forget_command,
}


if __name__ == "__main__":
    sys.exit(main())
