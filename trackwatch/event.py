"""Events: what they say, the ids they keep for ever, and their JSON form.

The contract with consumers lives here. Knows nothing of files, SQL or AMQP.
"""

import base64
import json
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any
from uuid import UUID

from trackwatch.track import Metadata

SCHEMA_VERSION = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class EventType(StrEnum):
    """What happened to a file."""

    CREATED = "created"
    MODIFIED = "modified"
    DELETED = "deleted"
    MOVED = "moved"  # into another directory
    RENAMED = "renamed"  # within its directory


class MetadataForm(StrEnum):
    """How `metadata` is written: with types and a `tags` object, or every value a string on one level."""

    STRUCTURED = "structured"
    FLAT = "flat"


def new_event_id(now_us: int) -> UUID:
    """Return a fresh UUIDv7 (RFC 9562) for a moment in microseconds since 1970.

    The 12 bits after the millisecond hold its fraction (method 3 of section 6.2), so ids sort by time within a process.
    """
    millis, micros = divmod(now_us, 1000)
    value = (millis & (1 << 48) - 1) << 80 | 0x7 << 76 | (micros * 4096 // 1000) << 64
    return UUID(int=value | 0b10 << 62 | secrets.randbits(62))


def first_event_id(at_us: int) -> bytes:
    """Return the smallest id that an event of that moment can have, to look up ranges of time; none is before 1970."""
    millis, micros = divmod(max(0, at_us), 1000)
    return ((millis & (1 << 48) - 1) << 80 | 0x7 << 76 | (micros * 4096 // 1000) << 64 | 0b10 << 62).to_bytes(16)


def rfc3339(at_us: int) -> str:
    """Return a moment as RFC 3339 text in UTC, always with six digits of a second."""
    return (EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds").replace("+00:00", "Z")


def modified_at(mtime_ns: int) -> str | None:
    """Return a file's modification time as text, None outside the years 1 to 9999 (any number can be set)."""
    try:
        return rfc3339(mtime_ns // 1000)
    except OverflowError:
        return None


def displayed(name: bytes) -> str:
    """Return a name as text, bytes that are not UTF-8 shown as U+FFFD."""
    return name.decode("utf-8", "replace")


def metadata_json(metadata: Metadata, form: MetadataForm = MetadataForm.STRUCTURED) -> dict[str, Any]:
    """Return metadata as the contract writes it; unknown values are left out."""
    facts: dict[str, Any] = {
        "duration": metadata.duration_s,
        "bitrate": metadata.bitrate,
        "sample_rate": metadata.sample_rate,
        "channels": metadata.channels,
        "format": metadata.format,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    tags = dict(metadata.tags or {})
    return {**known, "tags": tags} if form is MetadataForm.STRUCTURED else flattened({**known, "tags": tags})


def flattened(structured: Mapping[str, Any]) -> dict[str, str]:
    """Return structured metadata in the flat form. A tag never hides a fact of the same name."""
    facts = {name: value for name, value in structured.items() if name != "tags"}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in
            {**structured.get("tags", {}), **facts}.items()}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Content:
    """What is at a path: the part of an event that describes a file. `metadata` is in the structured form."""

    sha256: bytes
    xxh128: bytes
    size_bytes: int
    mtime_ns: int
    metadata: Mapping[str, Any] | None = None
    metadata_error: str | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One fact for others: it has a sequence number and an id that never change, also when it is sent again.

    `root` and `old_path` are absolute, `relative_path` is below the root. `content` is None for a deletion; `previous`
    is what was there before a modification or a deletion.
    """

    event_id: UUID
    event_type: EventType
    sequence: int
    at_us: int
    instance_id: str
    root: bytes
    relative_path: bytes
    old_path: bytes | None = None
    content: Content | None = None
    previous: Content | None = None

    @property
    def path(self) -> bytes:
        """The absolute path, as the daemon sees it."""
        return os.path.join(self.root, self.relative_path)

    def to_json(self, form: MetadataForm = MetadataForm.STRUCTURED) -> bytes:
        """Return the message body."""
        return json.dumps(self.message(form), ensure_ascii=False, separators=(",", ":")).encode()

    def message(self, form: MetadataForm = MetadataForm.STRUCTURED) -> dict[str, Any]:
        """Return the message as plain values, in the order in which people read it."""
        content, previous = self.content, self.previous
        metadata = dict(content.metadata) if content and content.metadata is not None else None
        message: dict[str, Any] = {
            "event_type": self.event_type.value,
            "file_path": displayed(self.path),
            "old_path": None if self.old_path is None else displayed(self.old_path),
            "timestamp": rfc3339(self.at_us),
            "instance_id": self.instance_id,
            "sha256_hash": content.sha256.hex() if content else None,
            "xxh128_hash": content.xxh128.hex() if content else None,
            "metadata": flattened(metadata) if metadata is not None and form is MetadataForm.FLAT else metadata,
            "metadata_error": content.metadata_error if content else None,
            "event_id": str(self.event_id),
            "sequence": self.sequence,
            "schema_version": SCHEMA_VERSION,
            "root": displayed(self.root),
            "relative_path": displayed(self.relative_path),
            "size_bytes": content.size_bytes if content else None,
            "modified_at": modified_at(content.mtime_ns) if content else None,
            "previous": {
                "sha256_hash": previous.sha256.hex(),
                "xxh128_hash": previous.xxh128.hex(),
                "size_bytes": previous.size_bytes,
            } if previous else None,
        }  # fmt: skip
        for field, name in (("file_path_bytes", self.path), ("old_path_bytes", self.old_path)):
            if name is not None and displayed(name).encode() != name:
                message[field] = base64.b64encode(name).decode()
        return message


def routing_key(event_type: EventType) -> str:
    """Return the AMQP routing key of an event type."""
    return f"file.{event_type.value}"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """An event on its way out, as the outbox holds it.

    `generation` says which sending this is: a replay during the sending makes its confirm void.
    """

    sequence: int
    generation: int
    event_id: UUID
    event_type: EventType
    at_us: int
    payload: bytes
    paths: tuple[bytes, ...] = ()  # what it is about, absolute: its path, and the old one of a move


class Verdict(Enum):
    """What a sink says of one event."""

    CONFIRMED = "confirmed"  # it is theirs now
    UNROUTABLE = "unroutable"  # nobody has bound a queue
    REJECTED = "rejected"  # not now: a queue is full
    UNSENDABLE = "unsendable"  # never: it cannot be put into a message


@dataclass(frozen=True, slots=True)
class Outcome:
    """A verdict with its reason, which is empty when it was confirmed."""

    verdict: Verdict
    reason: str = ""


CONFIRMED = Outcome(Verdict.CONFIRMED)
