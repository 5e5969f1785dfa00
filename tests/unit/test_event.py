"""Events: ids that sort by time, text that consumers can parse, and names that are not text."""

import base64
import json
from collections.abc import Mapping
from typing import Any
from uuid import RFC_4122, UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackwatch.event import (
    Content,
    Event,
    EventType,
    MetadataForm,
    changed_parts,
    displayed,
    first_event_id,
    flattened,
    metadata_json,
    metadata_text,
    modified_at,
    new_event_id,
    rfc3339,
    routing_key,
)
from trackwatch.track import Metadata

NOW_US = 1_795_000_000_123_456  # in November 2026
MOMENTS = st.integers(min_value=0, max_value=(1 << 48) * 1000 - 1)


def content(**changed: Any) -> Content:
    """Return a file's content."""
    values: dict[str, Any] = {"sha256": b"\x01" * 32, "xxh128": b"\x02" * 16, "size_bytes": 5, "mtime_ns": 10**18}
    return Content(**(values | changed))


def event(**changed: Any) -> Event:
    """Return an event: created, unless changed."""
    values: dict[str, Any] = {
        "event_id": new_event_id(NOW_US),
        "event_type": EventType.CREATED,
        "sequence": 7,
        "at_us": NOW_US,
        "instance_id": "here",
        "root": b"/music",
        "relative_path": b"a/b.mp3",
        "content": content(),
    }
    return Event(**(values | changed))


# ---- ids


@given(MOMENTS)
def test_an_event_id_is_a_uuid_of_version_7(now_us: int) -> None:
    """Version, variant, and the millisecond in its first 48 bits (RFC 9562)."""
    made = new_event_id(now_us)
    assert made.version == 7
    assert made.variant == RFC_4122
    assert made.int >> 80 == now_us // 1000


@given(MOMENTS, MOMENTS)
def test_event_ids_sort_by_time(one_us: int, other_us: int) -> None:
    """To the microsecond, as numbers, bytes and text alike."""
    one, other = new_event_id(one_us), new_event_id(other_us)
    if one_us < other_us:
        assert one < other
        assert one.bytes < other.bytes
        assert str(one) < str(other)


def test_neighbouring_microseconds_differ() -> None:
    """All thousand of a millisecond, the first of the next included."""
    ids = [new_event_id(NOW_US // 1000 * 1000 + micros) for micros in range(1001)]
    assert ids == sorted(ids)


def test_ids_of_one_moment_differ() -> None:
    """62 random bits."""
    assert len({new_event_id(NOW_US) for _ in range(1000)}) == 1000


@given(MOMENTS, MOMENTS)
def test_the_first_id_of_a_moment_bounds_a_range_of_time(event_us: int, bound_us: int) -> None:
    """An event is at or after a moment exactly when its id is at or after that moment's first id."""
    assert (new_event_id(event_us).bytes >= first_event_id(bound_us)) == (event_us >= bound_us)


def test_the_first_id_is_a_good_one() -> None:
    """It could be an event's."""
    assert UUID(bytes=first_event_id(NOW_US)).version == 7


# ---- times


@pytest.mark.parametrize(
    ("at_us", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (NOW_US, "2026-11-18T11:06:40.123456Z"),
        (1_000_000, "1970-01-01T00:00:01.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
    ],
)
def test_a_moment_always_has_six_digits(at_us: int, text: str) -> None:
    """Also where Python's own text would leave them out."""
    assert rfc3339(at_us) == text


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (10**18, "2001-09-09T01:46:40.000000Z"),
        (999, "1970-01-01T00:00:00.000000Z"),
        (253_402_300_799_999_999_999, "9999-12-31T23:59:59.999999Z"),
        (253_402_300_800_000_000_000, None),
        (-62_135_596_800_000_000_000, "0001-01-01T00:00:00.000000Z"),
        (-62_135_596_800_000_000_001, None),
        ((1 << 63) * 10**9, None),
        (-(1 << 63) * 10**9, None),
    ],
)
def test_a_modification_time_beyond_the_calendar_is_null(mtime_ns: int, text: str | None) -> None:
    """Anyone can set any number; an event must come out all the same."""
    assert modified_at(mtime_ns) == text
    assert event(content=content(mtime_ns=mtime_ns)).message()["modified_at"] == text


# ---- names


def test_a_name_that_is_text_is_shown_as_it_is() -> None:
    """And needs no bytes beside it."""
    message = event(relative_path="é\U0001f3b5\n.mp3".encode(), old_path=b"/music/x.mp3").message()
    assert message["file_path"] == "/music/é\U0001f3b5\n.mp3"
    assert message["old_path"] == "/music/x.mp3"
    assert "file_path_bytes" not in message
    assert "old_path_bytes" not in message


def test_a_name_that_is_no_text_comes_with_its_bytes() -> None:
    """U+FFFD for people, base64 for programs; for the old name likewise."""
    message = event(root=b"/m\xfe", relative_path=b"\xff.mp3", old_path=b"/m\xfe/\xc3.mp3").message()
    assert message["file_path"] == "/m\ufffd/\ufffd.mp3"
    assert base64.b64decode(message["file_path_bytes"]) == b"/m\xfe/\xff.mp3"
    assert message["old_path"] == "/m\ufffd/\ufffd.mp3"
    assert base64.b64decode(message["old_path_bytes"]) == b"/m\xfe/\xc3.mp3"
    assert message["root"] == "/m\ufffd"
    assert message["relative_path"] == "\ufffd.mp3"


def test_a_name_that_really_holds_the_replacement_character_is_text() -> None:
    """Nothing was replaced, so nothing is lost."""
    assert "file_path_bytes" not in event(relative_path="\ufffd.mp3".encode()).message()


@given(st.binary(min_size=1).filter(lambda name: b"\0" not in name and not name.startswith(b"/")))
def test_any_name_can_be_read_back(name: bytes) -> None:
    """From the bytes if there are any, else from the text; through JSON."""
    message = json.loads(event(relative_path=name).to_json())
    exact = message.get("file_path_bytes")
    path = message["file_path"].encode() if exact is None else base64.b64decode(exact)
    assert path == b"/music/" + name
    assert message["file_path"] == displayed(path)


# ---- metadata

METADATA = Metadata(
    format="audio/flac",
    duration_s=1.5,
    bitrate=None,
    sample_rate=44100,
    channels=2,
    tags={"title": "Käse", "track": 3, "compilation": True, "format": "vinyl"},
)


def test_structured_metadata_leaves_out_what_is_unknown() -> None:
    """Types as they are, tags apart."""
    assert metadata_json(METADATA) == {
        "duration": 1.5,
        "sample_rate": 44100,
        "channels": 2,
        "format": "audio/flac",
        "tags": {"title": "Käse", "track": 3, "compilation": True, "format": "vinyl"},
    }
    assert metadata_json(Metadata("audio/mpeg")) == {"format": "audio/mpeg", "tags": {}}


def test_flat_metadata_is_strings_on_one_level() -> None:
    """Numbers as JSON writes them; a tag does not hide a fact of the same name."""
    flat = metadata_json(METADATA, MetadataForm.FLAT)
    assert flat == {
        "title": "Käse",
        "track": "3",
        "compilation": "true",
        "format": "audio/flac",
        "duration": "1.5",
        "sample_rate": "44100",
        "channels": "2",
    }
    assert flattened({"format": "x"}) == {"format": "x"}


@given(
    st.dictionaries(st.text(), st.text() | st.integers() | st.booleans()),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
)
def test_every_flat_value_is_a_string(tags: Mapping[str, str | int | bool], duration_s: float | None) -> None:
    """For consumers that keep key/value text, whatever the tags are."""
    flat = metadata_json(Metadata("audio/flac", duration_s=duration_s, tags=tags), MetadataForm.FLAT)
    assert all(isinstance(value, str) for value in flat.values())
    assert flat["format"] == "audio/flac"
    assert set(tags) <= set(flat)


# ---- messages


def test_a_created_message_says_what_is_there() -> None:
    """Field by field."""
    made = event(content=content(metadata=metadata_text(METADATA)))
    assert made.message() == {
        "event_type": "created",
        "file_path": "/music/a/b.mp3",
        "old_path": None,
        "timestamp": "2026-11-18T11:06:40.123456Z",
        "instance_id": "here",
        "sha256_hash": "01" * 32,
        "xxh128_hash": "02" * 16,
        "audio_hash": None,
        "metadata": metadata_json(METADATA),
        "metadata_error": None,
        "event_id": str(made.event_id),
        "sequence": 7,
        "schema_version": 1,
        "root": "/music",
        "relative_path": "a/b.mp3",
        "size_bytes": 5,
        "modified_at": "2001-09-09T01:46:40.000000Z",
        "previous": None,
    }


def test_a_deleted_message_says_what_was_there() -> None:
    """Nothing is there, and `previous` tells what was."""
    message = event(event_type=EventType.DELETED, content=None, previous=content()).message()
    hashes, facts = ("sha256_hash", "xxh128_hash", "audio_hash"), ("size_bytes", "modified_at", "old_path")
    for field in (*hashes, *facts, "metadata", "metadata_error"):
        assert message[field] is None
    assert message["previous"] == {
        "sha256_hash": "01" * 32,
        "xxh128_hash": "02" * 16,
        "audio_hash": None,
        "size_bytes": 5,
    }


def audio(number: int | None, tags: Mapping[str, Any] | None = METADATA.tags) -> Content:
    """Return a content with this audio, None for unknown, and these tags, None for unreadable."""
    metadata = None if tags is None else metadata_text(METADATA._replace(tags=tags))
    return content(audio_xxh128=None if number is None else bytes([number]) * 16, metadata=metadata)


def test_the_audio_has_a_hash_of_its_own() -> None:
    """With its kind before it; that of before likewise."""
    made = event(event_type=EventType.MODIFIED, content=audio(3), previous=audio(4))
    assert made.message()["audio_hash"] == "xxh128:" + "03" * 16
    assert made.message()["previous"]["audio_hash"] == "xxh128:" + "04" * 16


OTHER_TAGS = {"title": "Brot"}


@pytest.mark.parametrize(
    ("before", "after", "parts"),
    [
        (audio(1), audio(1, OTHER_TAGS), ["tags"]),
        (audio(1), audio(1), ["tags"]),  # a picture, padding: what surrounds the audio
        (audio(1, None), audio(1), ["tags"]),
        (audio(1), audio(1, None), ["tags"]),
        (audio(1), audio(2), ["audio"]),
        (audio(1), audio(2, OTHER_TAGS), ["audio", "tags"]),
        (audio(1, None), audio(2), None),
        (audio(1), audio(2, None), None),
        (audio(None), audio(2), None),
        (audio(1), audio(None, OTHER_TAGS), None),
        (audio(None), audio(None), None),
    ],
)
def test_what_has_changed_is_told_only_where_it_is_certain(
    before: Content, after: Content, parts: list[str] | None
) -> None:
    """The same audio needs no tags to be sure; other audio needs those of both sides."""
    assert changed_parts(before, after) == parts
    message = event(event_type=EventType.MODIFIED, content=after, previous=before).message()
    assert message.get("changed") == parts
    assert ("changed" in message) == (parts is not None)


def test_only_a_modification_says_what_has_changed() -> None:
    """The others have one side alone."""
    assert "changed" not in event(content=audio(1)).message()
    assert "changed" not in event(event_type=EventType.DELETED, content=None, previous=audio(1)).message()
    assert "changed" not in event(event_type=EventType.MOVED, old_path=b"/music/b.mp3", content=audio(1)).message()


def test_a_message_says_why_there_is_no_metadata() -> None:
    """In both forms."""
    for form in MetadataForm:
        message = event(content=content(metadata_error="broken")).message(form)
        assert message["metadata"] is None
        assert message["metadata_error"] == "broken"


def test_the_form_changes_the_metadata_alone() -> None:
    """Everything else is the same in both."""
    made = event(content=content(metadata=metadata_text(METADATA)))
    structured, flat = made.message(), made.message(MetadataForm.FLAT)
    assert flat.pop("metadata") == metadata_json(METADATA, MetadataForm.FLAT)
    structured.pop("metadata")
    assert structured == flat


TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # a lone surrogate is no UTF-8, and comes from no decoder
TAGS = st.dictionaries(TEXT, TEXT | st.integers() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False))
NAMES = st.binary(min_size=1).filter(lambda name: b"\0" not in name and not name.startswith(b"/"))
CONTENTS = st.builds(
    lambda size, mtime, tags, error, number: content(
        size_bytes=size, mtime_ns=mtime, metadata_error=error,
        metadata=None if tags is None else metadata_text(Metadata("audio/flac", 0.1, tags=tags)),
        audio_xxh128=None if number is None else bytes([number]) * 16,
    ),
    st.integers(0, 1 << 63), st.integers(-(1 << 70), 1 << 70), st.none() | TAGS, st.none() | TEXT,
    st.none() | st.integers(0, 1),
)  # fmt: skip


@given(
    st.sampled_from(EventType), NAMES, NAMES, st.none() | NAMES, TEXT, st.none() | CONTENTS, st.none() | CONTENTS,
    st.sampled_from(MetadataForm),
)  # fmt: skip
def test_a_body_is_written_as_an_encoder_writes_it(
    kind: EventType,
    root: bytes,
    path: bytes,
    old_path: bytes | None,
    instance_id: str,
    now: Content | None,
    before: Content | None,
    form: MetadataForm,
) -> None:
    """Byte by byte, whatever is in it: for speed it is put together from pieces."""
    made = event(
        event_type=kind, root=b"/" + root, relative_path=path, old_path=old_path, instance_id=instance_id, content=now,
        previous=before,
    )  # fmt: skip
    body = made.to_json(form)
    message = json.loads(body)
    assert json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode() == body
    assert message["instance_id"] == instance_id
    assert message["event_type"] == kind.value
    assert message["metadata_error"] == (None if now is None else now.metadata_error)
    assert message["size_bytes"] == (None if now is None else now.size_bytes)
    if now is None or now.metadata is None:
        assert message["metadata"] is None
    elif form is MetadataForm.STRUCTURED:
        assert message["metadata"] == json.loads(now.metadata)
    else:
        assert message["metadata"] == flattened(json.loads(now.metadata))
    assert (message["previous"] is None) == (before is None)


def test_json_is_utf_8_on_one_line() -> None:
    """What both sinks write: not escaped, no newline inside."""
    body = event(relative_path="Käse\n.mp3".encode()).to_json()
    assert "Käse\\n.mp3".encode() in body
    assert b"\n" not in body


@pytest.mark.parametrize("event_type", EventType)
def test_routing_keys_are_those_of_the_contract(event_type: EventType) -> None:
    """One for each type."""
    assert routing_key(event_type) == f"file.{event_type}"


def test_a_file_in_the_root_of_everything_has_one_slash() -> None:
    """A root may be /."""
    assert event(root=b"/", relative_path=b"a.mp3").path == b"/a.mp3"
