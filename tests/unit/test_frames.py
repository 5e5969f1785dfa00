"""What is sent for an event, and how answers are told from the rest, however the stream is cut into pieces."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pamqp.body
import pamqp.commands
import pamqp.frame
import pamqp.header
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sink_suite import rows
from trackwatch.event import SCHEMA_VERSION, EventType
from trackwatch.frames import ENCODING_ERRORS, Confirm, Ear, Encoder, Returned

CHANNEL = 1
BASIC, CONNECTION = pamqp.commands.Basic, pamqp.commands.Connection


def frames_of(data: bytes) -> list[tuple[int, Any]]:
    """Return channel and frame of all that is in some bytes, as another implementation reads them."""
    found = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        found.append((channel, frame))
        data = data[size:]
    return found


def marshalled(*frames: Any, channel: int = CHANNEL) -> bytes:
    return b"".join(pamqp.frame.marshal(frame, channel) for frame in frames)


def returned(message_id: str, body: bytes) -> bytes:
    """What a broker sends for a message that no queue wants."""
    properties = BASIC.Properties(message_id=message_id)
    parts = [pamqp.body.ContentBody(body[start : start + 3]) for start in range(0, len(body), 3)]
    return marshalled(
        BASIC.Return(312, "NO_ROUTE", "file_events", "file.created"),
        pamqp.header.ContentHeader(body_size=len(body), properties=properties),
        *parts,
    )


@given(
    sequence=st.integers(1, (1 << 63) - 1),
    event_id=st.uuids(),
    kind=st.sampled_from(EventType),
    seconds=st.integers(0, 4_102_444_800),
    exchange=st.text("abcXYZ019-_.:", max_size=20),
    instance_id=st.text(max_size=40),
)
def test_an_event_is_a_persistent_mandatory_message_with_all_its_properties(
    sequence: int, event_id: UUID, kind: EventType, seconds: int, exchange: str, instance_id: str
) -> None:
    row = replace(
        rows(1)[0], sequence=sequence, event_id=event_id, event_type=kind, at_us=seconds * 1_000_000 + 999_999
    )
    encoder = Encoder(exchange, instance_id, channel=CHANNEL, frame_max=4096)
    encoder.encode(rows(1)[0])  # what one event left behind is not in the next one's
    (channel, method), (_, header), *bodies = frames_of(encoder.encode(row))
    assert channel == CHANNEL
    assert (method.exchange, method.routing_key, method.mandatory) == (
        exchange,
        f"file.{row.event_type}",
        True,
    )
    assert header.body_size == len(row.payload)
    assert b"".join(frame.value for _, frame in bodies) == row.payload
    assert dict(header.properties) == {
        **dict.fromkeys(BASIC.Properties.__slots__),
        "content_type": "application/json",
        "headers": {"instance_id": instance_id, "sequence": row.sequence, "schema_version": SCHEMA_VERSION},
        "delivery_mode": 2,
        "message_id": str(row.event_id),
        "timestamp": datetime.fromtimestamp(seconds, UTC),
        "message_type": f"file.{row.event_type}",
        "app_id": "trackwatch",
        "cluster_id": "",
    }


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 10_000])
def test_a_body_of_any_length_is_cut_into_frames_that_the_broker_takes(size: int) -> None:
    row = replace(rows(1)[0], payload=(bytes(range(256)) * 40)[:size])
    data = Encoder("x", "here", channel=CHANNEL, frame_max=4096).encode(row)
    _, (_, header), *bodies = frames_of(data)
    assert header.body_size == size
    assert b"".join(frame.value for _, frame in bodies) == row.payload
    assert all(len(pamqp.frame.marshal(frame, CHANNEL)) <= 4096 for _, frame in bodies)


def test_what_cannot_be_encoded_says_so() -> None:
    (row,) = rows(1)
    encoder = Encoder("x", "here", channel=CHANNEL, frame_max=4096)
    with pytest.raises(ENCODING_ERRORS):
        encoder.encode(replace(row, sequence=1 << 70))


# What goes on in a session, as (bytes, what is heard of it, whether it is passed on).
SAID = st.one_of(
    st.builds(
        lambda tag, multiple: (marshalled(BASIC.Ack(tag, multiple)), [Confirm(tag, True, multiple)], False),
        st.integers(0, 2**63 - 1),
        st.booleans(),
    ),
    st.builds(
        lambda tag, multiple: (marshalled(BASIC.Nack(tag, multiple)), [Confirm(tag, False, multiple)], False),
        st.integers(0, 2**63 - 1),
        st.booleans(),
    ),
    st.builds(
        lambda name, body: (returned(name, body), [Returned(name)], False),
        st.text("0123456789abcdef-", min_size=1, max_size=36),
        st.binary(max_size=20),
    ),
    st.just((marshalled(pamqp.commands.Channel.CloseOk()), [], True)),
    st.just((marshalled(BASIC.Ack(7, False), channel=2), [], True)),  # another channel's
    st.just((b"\x08\x00\x00\x00\x00\x00\x00\xce", [], True)),  # a heartbeat
    st.just((marshalled(CONNECTION.Unblocked(), channel=0), ["Connection.Unblocked"], True)),
    st.just((marshalled(CONNECTION.Blocked("low on memory"), channel=0), ["Connection.Blocked"], True)),
)


def cut(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({end % (len(data) + 1) for end in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@given(said=st.lists(SAID, max_size=12), cuts=st.lists(st.integers(0, 2000), max_size=12), opening=st.integers(0, 200))
def test_answers_are_heard_and_the_rest_is_passed_on_however_the_stream_is_cut(
    said: list[tuple[bytes, list[Any], bool]], cuts: list[int], opening: int
) -> None:
    """Before the channel is known everything is passed on, a part of a frame too: its rest follows then."""
    heard: list[Any] = []
    ear = Ear(lambda what: heard.append(what if isinstance(what, Confirm | Returned) else what.name))
    before = marshalled(pamqp.commands.Channel.OpenOk(), pamqp.commands.Exchange.DeclareOk())
    early = before[: opening % (len(before) + 1)]
    passed = ear.feed(early)
    assert passed == early
    ear.take_answers(CHANNEL)
    for piece in cut(before[len(early) :] + b"".join(data for data, _, _ in said), cuts):
        passed += ear.feed(piece)
    assert heard == [what for _, sounds, _ in said for what in sounds]
    assert passed == before + b"".join(data for data, _, is_passed in said if is_passed)


def test_where_the_broker_sets_no_limit_a_body_is_sent_all_the_same() -> None:
    (row,) = rows(1)
    _, _, (_, body) = frames_of(Encoder("x", "here", channel=CHANNEL, frame_max=0).encode(row))
    assert body.value == row.payload
