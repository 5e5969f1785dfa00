"""Events: what they say, the ids they keep for ever, and their JSON form.

The contract with consumers lives here. Knows nothing of files, SQL or AMQP.
"""

import base64
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum, StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from trackwatch.track import Metadata

SCHEMA_VERSION = 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH = EPOCH.replace(tzinfo=None)  # the same, and faster to reckon with
# As in `json.dumps`, which would make the encoder anew each time; and what that one does with a string, directly.
_encoded = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring


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
    # `secrets` is made of this, and would load OpenSSL, into each `status` as well.
    return UUID(int=value | 0b10 << 62 | int.from_bytes(os.urandom(8)) & (1 << 62) - 1)


def first_event_id(at_us: int) -> bytes:
    """Return the smallest id that an event of that moment can have, to look up ranges of time; none is before 1970."""
    millis, micros = divmod(max(0, at_us), 1000)
    return ((millis & (1 << 48) - 1) << 80 | 0x7 << 76 | (micros * 4096 // 1000) << 64 | 0b10 << 62).to_bytes(16)


def rfc3339(at_us: int) -> str:
    """Return a moment as RFC 3339 text in UTC, always with six digits of a second."""
    return (_EPOCH + timedelta(microseconds=at_us)).isoformat(timespec="microseconds") + "Z"


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
        "audio_md5": metadata.audio_md5,
        "format": metadata.format,
    }
    known = {name: value for name, value in facts.items() if value is not None}
    tags = dict(metadata.tags or {})
    return {**known, "tags": tags} if form is MetadataForm.STRUCTURED else flattened({**known, "tags": tags})


def metadata_text(metadata: Metadata) -> str:
    """Return metadata in the structured form as JSON, written as in a message: from there on it is copied."""
    return _encoded(metadata_json(metadata))


def flattened(structured: Mapping[str, Any]) -> dict[str, str]:
    """Return structured metadata in the flat form. A tag never hides a fact of the same name."""
    facts = {name: value for name, value in structured.items() if name != "tags"}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in
            {**structured.get("tags", {}), **facts}.items()}  # fmt: skip


class Content(NamedTuple):
    """What is at a path: the part of an event that describes a file. `metadata` is what `metadata_text` returns.

    `audio_xxh128` is the hash of the encoded audio alone, None where it is not known for certain.
    """

    sha256: bytes
    xxh128: bytes
    size_bytes: int
    mtime_ns: int
    metadata: str | None = None
    metadata_error: str | None = None
    audio_xxh128: bytes | None = None


def changed_parts(before: Content, after: Content) -> list[str] | None:
    """Return in which parts two contents that are not the same differ, by the alphabet; None where that is not certain.

    With the same audio, it is what surrounds it. With other audio, the tags are compared as they are told: a change of
    what is not told (a picture, say) is not seen then.
    """
    if before.audio_xxh128 is None or after.audio_xxh128 is None:
        return None
    if before.audio_xxh128 == after.audio_xxh128:
        return ["tags"]
    if before.metadata is None or after.metadata is None:
        return None
    if before.metadata == after.metadata or json.loads(before.metadata)["tags"] == json.loads(after.metadata)["tags"]:
        return ["audio"]
    return ["audio", "tags"]


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
        """Return the message body, its fields in the order in which people read them.

        Written out, as an encoder would write it: to build the same as values and to encode those took most of the time
        of recording a file.
        """
        content, previous, path, old_path = self.content, self.previous, self.path, self.old_path
        metadata = error = size = modified = before = _NULL
        changed = exact = ""
        if content is not None:
            if content.metadata is not None:
                metadata = content.metadata if form is MetadataForm.STRUCTURED else _flat_text(content.metadata)
            error = _text_or_null(content.metadata_error)
            size = str(content.size_bytes)
            modified = _text_or_null(modified_at(content.mtime_ns))
        if previous is not None:
            before = f'{{{_hashes(previous)},"size_bytes":{previous.size_bytes}}}'
            if content is not None and (parts := changed_parts(previous, content)):
                changed = f',"changed":{_encoded(parts)}'
        file_path = displayed(path)
        if file_path.encode() != path:
            exact = f',"file_path_bytes":"{base64.b64encode(path).decode()}"'
        if old_path is not None and displayed(old_path).encode() != old_path:
            exact += f',"old_path_bytes":"{base64.b64encode(old_path).decode()}"'
        return (
            f'{{"event_type":"{self.event_type}","file_path":{_quoted(file_path)},'
            f'"old_path":{_text_or_null(None if old_path is None else displayed(old_path))},'
            f'"timestamp":"{rfc3339(self.at_us)}","instance_id":{_quoted(self.instance_id)},{_hashes(content)},'
            f'"metadata":{metadata},"metadata_error":{error},'
            f'"event_id":"{self.event_id}","sequence":{self.sequence},"schema_version":{SCHEMA_VERSION},'
            f'"root":{_quoted(displayed(self.root))},"relative_path":{_quoted(displayed(self.relative_path))},'
            f'"size_bytes":{size},"modified_at":{modified},"previous":{before}{changed}{exact}}}'
        ).encode()

    def message(self, form: MetadataForm = MetadataForm.STRUCTURED) -> dict[str, Any]:
        """Return the message as plain values."""
        message: dict[str, Any] = json.loads(self.to_json(form))
        return message


_NULL = "null"


def _hashes(content: Content | None) -> str:
    if content is None:
        return '"sha256_hash":null,"xxh128_hash":null,"audio_hash":null'
    audio = _NULL if content.audio_xxh128 is None else f'"xxh128:{content.audio_xxh128.hex()}"'
    return f'"sha256_hash":"{content.sha256.hex()}","xxh128_hash":"{content.xxh128.hex()}","audio_hash":{audio}'


def _text_or_null(text: str | None) -> str:
    return _NULL if text is None else _quoted(text)


def _flat_text(metadata: str) -> str:
    return _encoded(flattened(json.loads(metadata)))


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
