"""The contract with consumers as documents: a JSON Schema of one message, and an AsyncAPI description of the exchange.

The types below say what `event.py` writes, field by field, and the schema is made from them; a test validates real
messages with it. Consumers must accept fields that they do not know, so the schema does too.
`python -m trackwatch.contract ops/contract` writes the documents.
"""

import json
import os
import sys
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, with_config
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict  # pydantic takes typing's own from Python 3.12 on

from trackwatch.event import SCHEMA_VERSION, EventType, routing_key

SCHEMA_FILE = "event.schema.json"
ASYNCAPI_FILE = "asyncapi.json"

_TOLERANT = ConfigDict(extra="allow")

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="SHA-256 of the content, in hexadecimal.")]
Xxh128 = Annotated[str, Field(pattern="^[0-9a-f]{32}$", description="XXH3-128 of the content, in hexadecimal.")]
AudioHash = Annotated[
    str,
    Field(
        pattern="^xxh128:[0-9a-f]{32}$",
        description=(
            "Hash of the encoded audio without the tags around it: the same for two contents means the same audio,"
            " wherever they are. null where it is not known for certain, and for files that are not audio."
        ),
    ),
]
Moment = Annotated[
    str,
    Field(
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z$",
        json_schema_extra={"format": "date-time"},
        description="RFC 3339, UTC, always with microseconds.",
    ),
]
Base64 = Annotated[
    str,
    Field(pattern="^[A-Za-z0-9+/]+={0,2}$", json_schema_extra={"contentEncoding": "base64"}),
]
Size = Annotated[int, Field(ge=0, description="Size in bytes.")]
Text = Annotated[str, Field(min_length=1)]
Ordinal = Annotated[int, Field(ge=0)]
MusicBrainzIds = Annotated[
    str,
    Field(
        pattern="^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(; [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12})*$",
        description="MusicBrainz ids, nearly always one; an artist's are as many as the artists.",
    ),
]
Gain = Annotated[float, Field(ge=-128, le=128, description="ReplayGain, decibels.")]
Peak = Annotated[float, Field(ge=0, le=100, description="ReplayGain, 1 is full scale.")]
R128Gain = Annotated[
    int, Field(ge=-32768, le=32767, description="As RFC 7845 has it for Opus: 1/256 decibel, towards -23 LUFS.")
]


@with_config(_TOLERANT)
class Tags(TypedDict):
    """The tags that the file has; several values of one tag are joined with "; ". What is unknown is left out."""

    title: NotRequired[Text]
    artist: NotRequired[Text]
    album: NotRequired[Text]
    album_artist: NotRequired[Text]
    date: NotRequired[Annotated[Text, Field(description="As the file has it: often a year alone.")]]
    genre: NotRequired[Text]
    composer: NotRequired[Text]
    track: NotRequired[Ordinal]
    track_total: NotRequired[Ordinal]
    disc: NotRequired[Ordinal]
    disc_total: NotRequired[Ordinal]
    compilation: NotRequired[bool]
    isrc: NotRequired[
        Annotated[
            Text,
            Field(
                pattern="^[A-Z]{2}[A-Z0-9]{3}[0-9]{7}(; [A-Z]{2}[A-Z0-9]{3}[0-9]{7})*$",
                description="Without the hyphens that some write.",
            ),
        ]
    ]
    musicbrainz_trackid: NotRequired[
        Annotated[
            MusicBrainzIds, Field(description="The recording: files had this name for it before releases had ids.")
        ]
    ]
    musicbrainz_releasetrackid: NotRequired[Annotated[MusicBrainzIds, Field(description="The track on its release.")]]
    musicbrainz_albumid: NotRequired[Annotated[MusicBrainzIds, Field(description="The release.")]]
    musicbrainz_artistid: NotRequired[MusicBrainzIds]
    musicbrainz_albumartistid: NotRequired[MusicBrainzIds]
    musicbrainz_releasegroupid: NotRequired[MusicBrainzIds]
    musicbrainz_workid: NotRequired[MusicBrainzIds]
    replaygain_track_gain: NotRequired[Gain]
    replaygain_track_peak: NotRequired[Peak]
    replaygain_album_gain: NotRequired[Gain]
    replaygain_album_peak: NotRequired[Peak]
    r128_track_gain: NotRequired[R128Gain]
    r128_album_gain: NotRequired[R128Gain]


@with_config(_TOLERANT)
class StructuredMetadata(TypedDict):
    """What an audio file says of itself. What is unknown is left out, never invented."""

    format: Annotated[Text, Field(description="MIME type.", examples=["audio/flac"])]
    duration: NotRequired[Annotated[float, Field(ge=0, description="Seconds.")]]
    bitrate: NotRequired[Annotated[int, Field(ge=0, description="Bits per second.")]]
    sample_rate: NotRequired[Annotated[int, Field(ge=0, description="Hertz.")]]
    channels: NotRequired[Annotated[int, Field(ge=0)]]
    audio_md5: NotRequired[
        Annotated[
            str,
            Field(
                pattern="^[0-9a-f]{32}$",
                description="FLAC: MD5 of the decoded audio, as its encoder wrote it down; later damage does not show.",
            ),
        ]
    ]
    tags: Tags


@with_config(ConfigDict(json_schema_extra={"additionalProperties": {"type": "string"}}))
class FlatMetadata(TypedDict):
    """The same with TRACKWATCH_METADATA=flat: every value a string, and tags beside the rest."""

    format: Annotated[Text, Field(description="MIME type.", examples=["audio/flac"])]


@with_config(_TOLERANT)
class Previous(TypedDict):
    """What was at the path before."""

    sha256_hash: Sha256
    xxh128_hash: Xxh128
    audio_hash: AudioHash | None
    size_bytes: Size


# What depends on the type of the event: fields that then hold a value, and fields that then are null.
_RULES: dict[EventType, tuple[tuple[str, ...], tuple[str, ...]]] = {
    EventType.CREATED: (("sha256_hash", "xxh128_hash", "size_bytes"), ("old_path", "previous")),
    EventType.MODIFIED: (("sha256_hash", "xxh128_hash", "size_bytes", "previous"), ("old_path",)),
    EventType.DELETED: (
        ("previous",),
        (
            "old_path",
            "sha256_hash",
            "xxh128_hash",
            "audio_hash",
            "size_bytes",
            "modified_at",
            "metadata",
            "metadata_error",
        ),
    ),
    EventType.MOVED: (("old_path", "sha256_hash", "xxh128_hash", "size_bytes"), ("previous",)),
    EventType.RENAMED: (("old_path", "sha256_hash", "xxh128_hash", "size_bytes"), ("previous",)),
}


def _rule(event_type: EventType) -> dict[str, Any]:
    present, absent = _RULES[event_type]
    then: dict[str, Any] = {name: {"not": {"type": "null"}} for name in present}
    then |= {name: {"type": "null"} for name in absent}
    if event_type is not EventType.MODIFIED:
        then["changed"] = False
    return {"if": {"properties": {"event_type": {"const": event_type.value}}}, "then": {"properties": then}}


def _schema_rules(schema: dict[str, Any]) -> None:
    schema["allOf"] = [
        *(_rule(event_type) for event_type in EventType),
        # Either it was understood or there is a reason why not.
        {
            "if": {"properties": {"metadata": {"type": "object"}}},
            "then": {"properties": {"metadata_error": {"type": "null"}}},
        },
    ]
    known = {"properties": {"audio_hash": {"type": "string"}}}
    schema["dependentSchemas"] = {
        # The exact bytes of an old name go with an old name.
        "old_path_bytes": {"properties": {"old_path": {"type": "string"}}},
        # What has changed is only known where both hashes of the audio are.
        "changed": {"properties": {**known["properties"], "previous": known}},
    }


@with_config(ConfigDict(extra="allow", title="trackwatch event", json_schema_extra=_schema_rules))
class Message(TypedDict):
    """One finished change of one file. Of two about the same path the one with the higher `sequence` holds."""

    event_type: Annotated[
        Literal["created", "modified", "deleted", "moved", "renamed"],
        Field(description="What happened. `moved`: into another directory; `renamed`: within its directory."),
    ]
    file_path: Annotated[
        Text,
        Field(description="Absolute path, as the daemon sees it; bytes that are not UTF-8 are shown as U+FFFD."),
    ]
    file_path_bytes: NotRequired[
        Annotated[Base64, Field(description="The exact path, only where `file_path` cannot show it.")]
    ]
    old_path: Annotated[Text | None, Field(description="Where the file was; moved and renamed only.")]
    old_path_bytes: NotRequired[
        Annotated[Base64, Field(description="The exact old path, only where `old_path` cannot show it.")]
    ]
    timestamp: Annotated[Moment, Field(description="When the change was confirmed.")]
    instance_id: Annotated[Text, Field(max_length=128, description="Which trackwatch says so.")]
    sha256_hash: Sha256 | None
    xxh128_hash: Xxh128 | None
    audio_hash: AudioHash | None
    metadata: Annotated[
        StructuredMetadata | FlatMetadata | None, Field(description="null for deletions, and files that are not audio.")
    ]
    metadata_error: Annotated[Text | None, Field(description="Why an audio file has no metadata.")]
    event_id: Annotated[
        str,
        Field(
            pattern="^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$",
            json_schema_extra={"format": "uuid"},
            description="UUIDv7; never changes, also when the event is sent again.",
        ),
    ]
    sequence: Annotated[int, Field(ge=1, description="Grows by one with each event of an instance.")]
    schema_version: Literal[1]
    root: Annotated[Text, Field(description="The watched directory, absolute.")]
    relative_path: Annotated[Text, Field(description="The path below the root.")]
    size_bytes: Size | None
    modified_at: Annotated[Moment | None, Field(description="The file's mtime; null outside the years 1 to 9999.")]
    previous: Annotated[Previous | None, Field(description="What was there; modified and deleted only.")]
    changed: NotRequired[
        Annotated[
            list[Literal["audio", "tags"]],
            Field(
                min_length=1,
                max_length=2,
                json_schema_extra={"uniqueItems": True},
                description=(
                    "Which parts of the file are others than before, in this order; modified only, and left out where"
                    ' that is not certain. `["tags"]`: the audio is the same to the last byte, what surrounds it is'
                    " not. `audio`: the encoded audio is another one, and then `tags`: so are the tags in `metadata`."
                ),
            ),
        ]
    ]


class _Untitled(GenerateJsonSchema):
    """Leaves out the titles that pydantic makes of field names: they say nothing more."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def event_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of one message."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:trackwatch:event:{SCHEMA_VERSION}",
        **TypeAdapter(Message).json_schema(schema_generator=_Untitled),
    }


_SUMMARIES = {
    EventType.CREATED: "A file that was never told about is there, whole.",
    EventType.MODIFIED: "The content of a known file is another.",
    EventType.DELETED: "A known file is gone.",
    EventType.MOVED: "A known file is in another directory.",
    EventType.RENAMED: "A known file has another name in its directory.",
}

_EXCHANGE = "file_events"


def asyncapi() -> dict[str, Any]:
    """Return the AsyncAPI 3.0 document: the exchange, its routing keys, and what a message carries."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "trackwatch",
            "version": f"{SCHEMA_VERSION}.0.0",
            "description": (
                f"Events of a music library, published to the durable topic exchange `{_EXCHANGE}` (RABBITMQ_EXCHANGE)."
                " Bind a queue to `file.*`, or to single routing keys. Delivery is at least once, and in the order of"
                " `sequence`; what is sent again keeps its `event_id` and `sequence`. Of two events of an instance"
                " about the same path the one with the higher `sequence` holds, in whatever order they come. Applying"
                " all events from the first one gives the library."
            ),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "{host}:{port}",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "RABBITMQ_URL, or RABBITMQ_HOST and RABBITMQ_PORT.",
                "variables": {"host": {"default": "localhost"}, "port": {"default": "5672"}},
            }
        },
        "channels": {event_type.value: _channel(event_type) for event_type in EventType},
        "operations": {f"publish_{event_type.value}": _operation(event_type) for event_type in EventType},
        "components": {
            "messages": {event_type.value: _message(event_type) for event_type in EventType},
            "schemas": {"headers": _headers()},
        },
    }


def _channel(event_type: EventType) -> dict[str, Any]:
    return {
        "address": routing_key(event_type),
        "summary": _SUMMARIES[event_type],
        "servers": [{"$ref": "#/servers/broker"}],
        "messages": {event_type.value: {"$ref": f"#/components/messages/{event_type.value}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": _EXCHANGE, "type": "topic", "durable": True, "autoDelete": False, "vhost": "/"},
                "bindingVersion": "0.3.0",
            }
        },
    }


def _operation(event_type: EventType) -> dict[str, Any]:
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{event_type.value}"},
        "summary": _SUMMARIES[event_type],
        "messages": [{"$ref": f"#/channels/{event_type.value}/messages/{event_type.value}"}],
        # Persistent, and returned to us when no queue is bound.
        "bindings": {"amqp": {"deliveryMode": 2, "mandatory": True, "timestamp": True, "bindingVersion": "0.3.0"}},
    }


def _message(event_type: EventType) -> dict[str, Any]:
    return {
        "name": routing_key(event_type),
        "title": f"File {event_type.value}",
        "summary": _SUMMARIES[event_type],
        "description": (
            "Properties: `message_id` is `event_id`, `type` the routing key, `app_id` is `trackwatch`, `timestamp`"
            " whole seconds, `delivery_mode` 2."
        ),
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/headers"},
        "payload": {
            "schemaFormat": "application/schema+json;version=draft-2020-12",
            "schema": {
                "allOf": [
                    {"$ref": f"./{SCHEMA_FILE}"},
                    {"properties": {"event_type": {"const": event_type.value}}},
                ]
            },
        },
        "bindings": {"amqp": {"messageType": routing_key(event_type), "bindingVersion": "0.3.0"}},
    }


def _headers() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["instance_id", "sequence", "schema_version"],
        "properties": {
            "instance_id": {"type": "string", "description": "As in the message."},
            "sequence": {"type": "integer", "minimum": 1, "description": "As in the message."},
            "schema_version": {"type": "integer", "const": SCHEMA_VERSION},
        },
    }


def documents() -> dict[str, str]:
    """Return the text of each document, by file name."""
    made = {SCHEMA_FILE: event_schema(), ASYNCAPI_FILE: asyncapi()}
    return {name: json.dumps(document, ensure_ascii=False, indent=2) + "\n" for name, document in made.items()}


def main(directory: str) -> None:
    """Write the documents into a directory."""
    os.makedirs(directory, exist_ok=True)
    for name, text in documents().items():
        with open(os.path.join(directory, name), "w", encoding="utf-8") as file:
            file.write(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m trackwatch.contract DIRECTORY")
    main(sys.argv[1])
