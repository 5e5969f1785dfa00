"""Where a change to the catalogue becomes an event: both are written here, in one transaction, or neither is.

`Ledger` is what the store's writer hands to every piece of work. It decides from the rows as they are in this very
transaction, so the rules that consumers rely on (created before modified, nothing deleted that was not announced, no
move from a path that was never told) hold whatever order the work arrives in, and work that is done twice says nothing
twice.
"""

import os
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from trackwatch import catalogue, outbox
from trackwatch.catalogue import Description, Entry
from trackwatch.event import Content, Event, EventType, MetadataForm, metadata_text, new_event_id
from trackwatch.track import Location, Observation, Root, Signature


@dataclass(frozen=True, slots=True)
class Present:
    """A file was described: it is at this location, with this content."""

    location: Location
    observation: Observation


@dataclass(frozen=True, slots=True)
class Moved:
    """The file known at `old` is now at `new`, with the same content.

    The evidence is the signature (the very same file), or, across file systems, the hash of what was read at `new`.
    """

    old: Location
    new: Location
    signature: Signature
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Exchanged:
    """Files known to us have changed places in a circle: each location now has the content of another one's file."""

    moves: tuple[Moved, ...]


@dataclass(frozen=True, slots=True)
class Linked:
    """A file appeared at `new` that has the content of the file known at `source`: a hard link to it."""

    source: Location
    new: Location
    signature: Signature


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no file at this location any more."""

    location: Location


@dataclass(frozen=True, slots=True)
class Unreadable:
    """There is a file at this location, and it cannot be described."""

    location: Location
    reason: str


Change = Present | Moved | Exchanged | Linked | Absent | Unreadable


@dataclass(slots=True)
class Ledger:
    """The catalogue and the outbox as one thing; lives as long as the store, used by the writer's thread alone.

    The writer sets `next_sequence` and `appended` again after a rollback.
    """

    conn: sqlite3.Connection
    instance_id: str
    form: MetadataForm
    now_us: Callable[[], int]
    roots: dict[int, Root] = field(default_factory=dict)
    next_sequence: int = 1
    appended: Counter[EventType] = field(default_factory=Counter)
    _has_problems: bool | None = None  # None until it is looked up; False only while there never was one

    def claim_roots(self, paths: tuple[bytes, ...]) -> list[Root]:
        """Return the roots with these paths, each with the id that it keeps."""
        claimed = catalogue.claim_roots(self.conn, paths)
        self.roots = {root.id: root for root in catalogue.roots(self.conn)}
        return claimed

    def record(self, change: Change) -> bool:
        """Record a change with its events; return False if it does not fit what is known (look at the path again)."""
        match change:
            case Present():
                self._record_present(change)
            case Moved():
                return self._record_moved(change)
            case Exchanged():
                return self._record_exchanged(change)
            case Linked():
                return self._record_linked(change)
            case Absent():
                self._record_absent(change.location)
            case Unreadable():
                self._has_problems = True
                catalogue.set_problem(self.conn, change.location, change.reason, self.now_us())
        return True

    def _record_present(self, change: Present) -> None:
        seen = change.observation
        metadata = None if seen.metadata is None else metadata_text(seen.metadata)
        described = Description(metadata, seen.metadata_error, seen.audio_xxh128)
        self._put(change.location, seen.signature, seen.sha256, seen.xxh128, described)

    def _record_linked(self, change: Linked) -> bool:
        source = catalogue.find(self.conn, change.source)
        if source is None or not source.signature.same_file(change.signature):
            return False
        described = catalogue.describe(self.conn, source.id)
        self._put(change.new, change.signature, source.sha256, source.xxh128, described)
        return True

    def _put(
        self, location: Location, signature: Signature, sha256: bytes, xxh128: bytes, described: Description
    ) -> None:
        self._clear_problem(location)
        entry = Entry(0, location, signature, sha256, xxh128, self.next_sequence)
        content = Content(
            sha256,
            xxh128,
            signature.size_bytes,
            signature.mtime_ns,
            described.metadata,
            described.error,
            described.audio_xxh128,
        )
        # Most are new, when there is much to do; so the row is tried before it is looked for.
        if catalogue.add(self.conn, entry, described):
            self._append(EventType.CREATED, location, content=content)
            return
        known = catalogue.find(self.conn, location)
        assert known is not None
        if known.sha256 == sha256 and known.xxh128 == xxh128:
            # Touched, copied over itself, or under another inode: true for us, no news for others.
            entry = entry._replace(last_seq=known.last_seq)
            if described.audio_xxh128 is None:
                # This look could not tell it; the content is the same, and so is its audio.
                described = described._replace(audio_xxh128=catalogue.describe(self.conn, known.id).audio_xxh128)
        else:
            self._append(EventType.MODIFIED, location, content=content, previous=self._known_content(known))
        catalogue.replace(self.conn, entry._replace(id=known.id), described)

    def _record_moved(self, change: Moved) -> bool:
        known = catalogue.find(self.conn, change.old)
        if known is None or change.old == change.new:
            return False
        if not (
            known.signature.same_file(change.signature) if change.sha256 is None else known.sha256 == change.sha256
        ):
            return False
        self._record_absent(change.new)  # what was there has been moved over
        sequence = self._append(
            _move_type(self._absolute(change.old), self._absolute(change.new)),
            change.new,
            old=change.old,
            content=self._known_content(known, change.signature.mtime_ns),
        )
        catalogue.relocate(self.conn, known.id, change.new, change.signature, sequence)
        self._clear_problem(change.old)
        self._clear_problem(change.new)
        return True

    def _record_exchanged(self, change: Exchanged) -> bool:
        # No order of moves says this without losing a file on the way, so each place has a new content: `modified`.
        known = [catalogue.find(self.conn, move.old) for move in change.moves]
        for move, entry in zip(change.moves, known, strict=True):
            if entry is None or not entry.signature.same_file(move.signature):
                return False
        sources = [(entry, catalogue.describe(self.conn, entry.id)) for entry in known if entry is not None]
        for move, (entry, described) in zip(change.moves, sources, strict=True):
            self._put(move.new, move.signature, entry.sha256, entry.xxh128, described)
        return True

    def _record_absent(self, location: Location) -> None:
        self._clear_problem(location)
        known = catalogue.find(self.conn, location)
        if known is not None:
            self._append(EventType.DELETED, location, previous=self._known_content(known))
            catalogue.remove(self.conn, known.id)

    def _append(
        self,
        kind: EventType,
        location: Location,
        *,
        old: Location | None = None,
        content: Content | None = None,
        previous: Content | None = None,
    ) -> int:
        now_us = self.now_us()
        event = Event(
            event_id=new_event_id(now_us),
            event_type=kind,
            sequence=self.next_sequence,
            at_us=now_us,
            instance_id=self.instance_id,
            root=self.roots[location.root_id].path,
            relative_path=location.path,
            old_path=None if old is None else self._absolute(old),
            content=content,
            previous=previous,
        )
        outbox.append(self.conn, event, self.form)
        self.next_sequence += 1
        self.appended[kind] += 1
        return event.sequence

    def _known_content(self, entry: Entry, mtime_ns: int | None = None) -> Content:
        described = catalogue.describe(self.conn, entry.id)
        return Content(
            entry.sha256,
            entry.xxh128,
            entry.signature.size_bytes,
            entry.signature.mtime_ns if mtime_ns is None else mtime_ns,
            described.metadata,
            described.error,
            described.audio_xxh128,
        )

    def _clear_problem(self, location: Location) -> None:
        # Nearly always there is none. Once there was one it may be there again, after a rollback for instance.
        if self._has_problems is None:
            self._has_problems = catalogue.has_problems(self.conn)
        if self._has_problems:
            catalogue.clear_problem(self.conn, location)

    def _absolute(self, location: Location) -> bytes:
        return self.roots[location.root_id].absolute(location.path)


def _move_type(old: bytes, new: bytes) -> EventType:
    return EventType.RENAMED if os.path.dirname(old) == os.path.dirname(new) else EventType.MOVED
