"""The documents for consumers: up to date, true of every message, and strict where the contract is."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.unit.test_event import METADATA, content, event
from trackwatch import contract
from trackwatch.event import EventType, MetadataForm, metadata_text, routing_key
from trackwatch.track import Metadata

DOCUMENTS = Path(__file__).parents[2] / "ops" / "contract"

SCHEMA = contract.event_schema()
VALIDATOR = Draft202012Validator(SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)

DESCRIBED = content(metadata=metadata_text(METADATA._replace(audio_md5="0a" * 16)), audio_xxh128=b"\x03" * 16)
BEFORE = content(metadata=metadata_text(METADATA), audio_xxh128=b"\x04" * 16)
MESSAGES: dict[str, dict[str, Any]] = {
    "created": event(content=DESCRIBED).message(),
    "created, flat": event(content=DESCRIBED).message(MetadataForm.FLAT),
    "created, no audio": event(relative_path=b"x.ast.json").message(),
    "created, broken": event(content=content(metadata_error="no tags")).message(),
    "created, empty": event(content=content(size_bytes=0, metadata_error="empty")).message(),
    "created, hardly known": event(content=content(metadata=metadata_text(Metadata("audio/mpeg")))).message(),
    "created, hardly known, flat": event(content=content(metadata=metadata_text(Metadata("audio/mpeg")))).message(
        MetadataForm.FLAT
    ),
    "created, undecodable": event(relative_path=b"\xff.mp3").message(),
    "created, absurd time": event(content=content(mtime_ns=1 << 80)).message(),
    "modified": event(event_type=EventType.MODIFIED, content=DESCRIBED, previous=content()).message(),
    "modified, tags": event(
        event_type=EventType.MODIFIED, content=DESCRIBED, previous=DESCRIBED._replace(sha256=bytes(32))
    ).message(),
    "modified, audio": event(event_type=EventType.MODIFIED, content=DESCRIBED, previous=BEFORE).message(),
    "modified, both": event(
        event_type=EventType.MODIFIED,
        content=content(metadata=metadata_text(Metadata("x")), audio_xxh128=bytes(16)),
        previous=BEFORE,
    ).message(),
    "deleted": event(event_type=EventType.DELETED, content=None, previous=content()).message(),
    "moved": event(event_type=EventType.MOVED, old_path=b"/music/x/b.mp3", content=DESCRIBED).message(),
    "renamed": event(event_type=EventType.RENAMED, old_path=b"/music/a/\xff.mp3", content=DESCRIBED).message(),
}


def wrong(message: dict[str, Any]) -> set[str]:
    """Return the fields that the schema finds wrong in a message, "" for the message itself."""
    return {str(error.path[0]) if error.path else "" for error in VALIDATOR.iter_errors(message)}


@pytest.mark.parametrize("name", [contract.SCHEMA_FILE, contract.ASYNCAPI_FILE])
def test_the_committed_documents_are_not_stale(name: str) -> None:
    """Write them again with: python -m trackwatch.contract ops/contract."""
    assert (DOCUMENTS / name).read_text(encoding="utf-8") == contract.documents()[name]


def test_the_documents_can_be_written(tmp_path: Path) -> None:
    """By the command that the other test names; without a directory it says how it is used."""
    command = [sys.executable, "-m", "trackwatch.contract"]
    subprocess.run([*command, tmp_path / "new"], check=True)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {contract.SCHEMA_FILE, contract.ASYNCAPI_FILE}
    refused = subprocess.run(command, check=False, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "usage" in refused.stderr


def test_the_schema_is_a_good_one() -> None:
    """By the rules of JSON Schema itself."""
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("name", MESSAGES)
def test_every_kind_of_message_is_valid(name: str) -> None:
    """As `Event` makes it, and after JSON."""
    VALIDATOR.validate(json.loads(json.dumps(MESSAGES[name])))


def test_the_schema_describes_every_field_that_there_is() -> None:
    """A new field of a message needs its description; a described one must exist."""
    written = set().union(*MESSAGES.values())
    assert written == set(SCHEMA["properties"])
    metadata = MESSAGES["created"]["metadata"]
    assert set(metadata) <= set(SCHEMA["$defs"]["StructuredMetadata"]["properties"])
    assert set(MESSAGES["deleted"]["previous"]) == set(SCHEMA["$defs"]["Previous"]["properties"])
    always = {field for field in written if all(field in message for message in MESSAGES.values())}
    assert set(SCHEMA["required"]) == always


def test_a_message_is_an_object() -> None:
    """And nothing else."""
    others: list[object] = [None, [], "created", 1]
    assert not any(VALIDATOR.is_valid(other) for other in others)


def test_fields_that_nobody_knows_yet_are_valid() -> None:
    """Consumers must take them, so the schema does: in the message and in what it holds."""
    message = copy.deepcopy(MESSAGES["modified"])
    message["new"] = message["previous"]["new"] = message["metadata"]["new"] = message["metadata"]["tags"]["new"] = [1]
    assert wrong(message) == set()


@pytest.mark.parametrize("field", SCHEMA["required"])
def test_a_message_without_one_of_its_fields_is_wrong(field: str) -> None:
    """Null is written, not left out."""
    message = {name: value for name, value in MESSAGES["moved"].items() if name != field}
    assert "" in wrong(message)


_TEXTS = ("title", "artist", "album", "album_artist", "date", "genre", "composer")
_NUMBERS = ("track", "track_total", "disc", "disc_total")

# A kind of message, a field, and values that it cannot have there.
WRONG: list[tuple[str, str, list[Any]]] = [
    ("created", "event_type", ["gone", None, 1]),
    ("created", "file_path", ["", None, 1]),
    ("created, undecodable", "file_path_bytes", ["", None, "not base64", "=="]),
    ("renamed", "old_path_bytes", ["", None, "not base64"]),
    ("created", "old_path", ["", 1, "/music/old.mp3"]),
    ("created", "timestamp", [None, "2026-11-18", "2026-11-18T11:06:40Z", "2026-11-18T11:06:40.123456+00:00", 1.5]),
    ("created", "instance_id", ["", None, "x" * 129]),
    ("created", "sha256_hash", [None, 1, "", "01" * 31, "AB" * 32, "01" * 33]),
    ("created", "audio_hash", [1, "", "03" * 16, "xxh128:" + "03" * 15, "xxh128:" + "AB" * 16, "md5:" + "03" * 16]),
    ("deleted", "audio_hash", ["xxh128:" + "03" * 16]),
    ("modified, audio", "audio_hash", [None]),
    ("modified, audio", "previous", [{**MESSAGES["modified, audio"]["previous"], "audio_hash": None}]),
    (
        "modified",
        "previous",
        [{**MESSAGES["deleted"]["previous"], "audio_hash": value} for value in ("", 1, "03" * 16)],
    ),
    ("modified, audio", "changed", [None, [], "tags", ["title"], ["tags", "tags"], ["audio", "tags", "title"]]),
    ("modified", "changed", [["tags"]]),
    *((kind, "changed", [["tags"], None]) for kind in ("created", "deleted", "moved", "renamed")),
    ("created", "xxh128_hash", [None, 1, "", "01" * 15, "AB" * 16, "01" * 17]),
    ("created", "metadata", ["x", [], {}, {"tags": {}}, {"format": "", "tags": {}}]),
    ("created", "metadata_error", ["", 1, "broken"]),
    ("created", "event_id", [None, "", "0199c0de-0000-4000-8000-000000000000", "0199c0de-0000-7000-0000-000000000000"]),
    ("created", "sequence", [0, -1, None, "1", 1.5]),
    ("created", "schema_version", [2, None, "1"]),
    ("created", "root", ["", None]),
    ("created", "relative_path", ["", None]),
    ("created", "size_bytes", [-1, None, "1", 1.5]),
    ("created", "modified_at", ["yesterday", 1]),
    ("created", "previous", [{}, MESSAGES["deleted"]["previous"]]),
    ("modified", "previous", [None, {}, {**MESSAGES["deleted"]["previous"], "size_bytes": None}]),
    ("modified", "previous", [{**MESSAGES["deleted"]["previous"], "size_bytes": -1}, [], "x"]),
    *(
        ("modified", "previous", [{**MESSAGES["deleted"]["previous"], field: value} for value in (None, "", "0g", 1)])
        for field in ("sha256_hash", "xxh128_hash")
    ),
    *(("modified", field, [None]) for field in ("sha256_hash", "xxh128_hash", "size_bytes")),
    ("modified", "old_path", ["/music/old.mp3"]),
    ("deleted", "previous", [None]),
    *(
        ("deleted", field, [MESSAGES["created"][field]])
        for field in ("sha256_hash", "xxh128_hash", "size_bytes", "modified_at", "metadata")
    ),
    ("deleted", "metadata_error", ["broken"]),
    ("created, broken", "metadata_error", ["", 1]),
    ("created", "old_path_bytes", ["/w=="]),
    ("deleted", "old_path", ["/music/old.mp3"]),
    *((kind, "old_path", [None, "", 1]) for kind in ("moved", "renamed")),
    *((kind, "previous", [MESSAGES["deleted"]["previous"]]) for kind in ("moved", "renamed")),
    *((kind, field, [None]) for kind in ("moved", "renamed") for field in ("sha256_hash", "xxh128_hash", "size_bytes")),
]


@pytest.mark.parametrize(
    ("kind", "field", "value"),
    [
        pytest.param(kind, field, value, id=f"{kind}-{field}-{value!r:.30}")
        for kind, field, values in WRONG
        for value in values
    ],
)
def test_a_wrong_value_is_found(kind: str, field: str, value: object) -> None:
    """Each rule of the schema can fail."""
    assert wrong(MESSAGES[kind] | {field: value}) != set()


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("created", {"duration": "1.5"}),
        ("created", {"duration": -1}),
        ("created", {"bitrate": 1.5}),
        ("created", {"sample_rate": "44100"}),
        ("created", {"bitrate": -1}),
        ("created", {"sample_rate": -1}),
        ("created", {"channels": -2}),
        ("created", {"channels": "2"}),
        ("created", {"audio_md5": "0A" * 16}),
        ("created", {"audio_md5": "00"}),
        ("created", {"audio_md5": None}),
        ("created", {"format": 1}),
        *(("created", {"tags": {name: value}}) for name in _TEXTS for value in ("", 1)),
        *(("created", {"tags": {name: value}}) for name in _NUMBERS for value in ("3", -1, 1.5)),
        ("created", {"tags": {"compilation": "yes"}}),
        ("created", {"tags": []}),
        ("created, flat", {"format": ""}),
        ("created, flat", {"format": 1}),
        ("created, flat", {"track": 3}),
        ("created, flat", {"duration": 1.5}),
        ("created, flat", {"compilation": True}),
    ],
)
def test_metadata_of_neither_form_is_found(kind: str, value: dict[str, Any]) -> None:
    """Structured is typed, flat is strings alone, and nothing is half of each."""
    message = MESSAGES[kind]
    assert wrong(message | {"metadata": message["metadata"] | value}) == {"metadata"}


# ---- AsyncAPI


def test_the_asyncapi_document_names_every_routing_key() -> None:
    """A channel, an operation and a message for each."""
    document = json.loads((DOCUMENTS / contract.ASYNCAPI_FILE).read_text(encoding="utf-8"))
    assert document["asyncapi"] == "3.0.0"
    keys = {routing_key(event_type) for event_type in EventType}
    assert {channel["address"] for channel in document["channels"].values()} == keys
    assert {message["name"] for message in document["components"]["messages"].values()} == keys
    assert len(document["operations"]) == len(keys)
    for channel in document["channels"].values():
        exchange = channel["bindings"]["amqp"]["exchange"]
        assert (exchange["name"], exchange["type"], exchange["durable"]) == ("file_events", "topic", True)


def references(part: object) -> Iterator[str]:
    """Yield what a document refers to."""
    if isinstance(part, dict):
        for name, value in part.items():
            if name == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(part, list):
        for value in part:
            yield from references(value)


def test_every_reference_leads_somewhere() -> None:
    """Inside the document, or to the schema beside it."""
    document = contract.asyncapi()
    found = set(references(document))
    assert f"./{contract.SCHEMA_FILE}" in found
    for reference in found - {f"./{contract.SCHEMA_FILE}"}:
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]
        assert target


def test_the_headers_are_described() -> None:
    """Those that the AMQP sink sets."""
    headers = contract.asyncapi()["components"]["schemas"]["headers"]
    Draft202012Validator(headers).validate({"instance_id": "here", "sequence": 7, "schema_version": 1})
    assert set(headers["required"]) == {"instance_id", "sequence", "schema_version"}
