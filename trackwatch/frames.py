"""The AMQP 0-9-1 frames of a publishing channel: what is sent for an event, and what the broker answers. Pure.

aiormq has a future for each message, and one more for its confirm; under trio-asyncio each of these costs a turn of the
scheduler, which was most of what publishing took. Here a batch is one piece of bytes, and its confirms are read out of
the stream before aiormq sees them. All else (login, heartbeats, channels, closing) is left to it.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pamqp.commands
import pamqp.frame
import pamqp.header

from trackwatch.event import SCHEMA_VERSION, EventType, Outgoing, routing_key

# Type, channel, size of the payload; one end byte follows the payload.
_FRAME = struct.Struct(">BHI")
_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_CONFIRM = struct.Struct(">IQB")  # class and method in one, delivery tag, bits
_ACK, _NACK, _RETURN = (
    command.index for command in (pamqp.commands.Basic.Ack, pamqp.commands.Basic.Nack, pamqp.commands.Basic.Return)
)
_MULTIPLE = 1  # the lowest bit of an Ack and of a Nack
# What is said about the connection as a whole, and told to `hear` as well as passed on.
_CONNECTION = (
    pamqp.commands.Connection.Close.index,
    pamqp.commands.Connection.Blocked.index,
    pamqp.commands.Connection.Unblocked.index,
)
# What RabbitMQ proposes, unless it is told otherwise.
FRAME_DEFAULT_BYTES = 131_072
# Read by a client as a sign of life.
HEARTBEAT = _FRAME.pack(8, 0, 0) + _END

# What an event that cannot be put into frames raises.
ENCODING_ERRORS = (TypeError, ValueError, OverflowError, struct.error)


@dataclass(frozen=True, slots=True)
class Confirm:
    """The broker has taken a message, or (no ack) refuses it; `multiple`: and all before it that were not answered."""

    tag: int
    is_ack: bool
    multiple: bool


@dataclass(frozen=True, slots=True)
class Returned:
    """No queue wants the message with this id; its confirm follows."""

    message_id: str


# What stands in a template where each event has its own; none of these bytes can come from anywhere else in it.
_SEQUENCE, _BODY_BYTES, _SECONDS = 0x7EA1_7EA2_7EA3_7EA4, 0x7EB1_7EB2_7EB3_7EB4, 0x7EC1_7EC2
_MESSAGE_ID = str(UUID(int=0))
_YEAR_10000 = 253_402_300_800  # seconds since 1970
_U64 = struct.Struct(">Q")
_I64 = struct.Struct(">q")


class _Template:
    """The method and the header of a message, as pamqp encodes them, but for what each event has of its own."""

    def __init__(self, exchange: str, key: str, instance_id: str, channel: int) -> None:
        publish = pamqp.commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
        properties = pamqp.commands.Basic.Properties(
            content_type="application/json",
            headers={"instance_id": instance_id, "sequence": _SEQUENCE, "schema_version": SCHEMA_VERSION},
            delivery_mode=2,  # persistent
            message_id=_MESSAGE_ID,
            timestamp=datetime.fromtimestamp(_SECONDS, UTC),
            message_type=key,
            app_id="trackwatch",
        )
        header = pamqp.header.ContentHeader(body_size=_BODY_BYTES, properties=properties)
        method = pamqp.frame.marshal(publish, channel)
        self._bytes = method + pamqp.frame.marshal(header, channel)
        # Behind the method: its names are the exchange's and the key's, and may hold anything.
        self._body_bytes_at = self._bytes.index(_U64.pack(_BODY_BYTES), len(method))
        # `l` is the type: 64 bits, whatever the sequence.
        self._sequence_at = self._bytes.index(b"sequencel" + _I64.pack(_SEQUENCE), len(method)) + len(b"sequencel")
        self._message_id_at = self._bytes.rindex(_MESSAGE_ID.encode())
        self._seconds_at = self._bytes.rindex(_U64.pack(_SECONDS))

    def filled(self, row: Outgoing) -> bytearray:
        """Return the frames of an event, its body left out."""
        filled = bytearray(self._bytes)
        _U64.pack_into(filled, self._body_bytes_at, len(row.payload))
        _I64.pack_into(filled, self._sequence_at, row.sequence)
        filled[self._message_id_at : self._message_id_at + len(_MESSAGE_ID)] = str(row.event_id).encode()
        seconds = row.at_us // 1_000_000
        if seconds >= _YEAR_10000:
            raise ValueError("after the year 9999, where consumers' clocks end")
        _U64.pack_into(filled, self._seconds_at, seconds)
        return filled


class Encoder:
    """Puts events into frames for one exchange, on one channel.

    `frame_max` is the largest frame that was agreed on with the broker, in bytes; 0: any.
    """

    def __init__(self, exchange: str, instance_id: str, *, channel: int, frame_max: int) -> None:
        self._exchange = exchange
        self._instance_id = instance_id
        self._channel = channel
        self._body_max = (frame_max or FRAME_DEFAULT_BYTES) - _FRAME.size - len(_END)
        self._templates: dict[EventType, _Template] = {}

    def encode(self, row: Outgoing) -> bytes:
        """Return all frames of a mandatory, persistent message.

        Raises:
            TypeError, ValueError, OverflowError, struct.error: a property cannot be encoded (`ENCODING_ERRORS`).
        """
        kind = row.event_type
        template = self._templates.get(kind)
        if template is None:
            template = _Template(self._exchange, routing_key(kind), self._instance_id, self._channel)
            self._templates[kind] = template
        body = row.payload
        frames: list[bytes | bytearray] = [template.filled(row)]
        for start in range(0, len(body), self._body_max):
            part = body[start : start + self._body_max]
            frames += (_FRAME.pack(_BODY, self._channel, len(part)), part, _END)
        return b"".join(frames)


class Ear:
    """Takes the answers to our messages out of what the broker sends, and passes on the rest.

    `hear` is called with a Confirm or Returned for each answer, and with the frames about the connection as a whole.
    """

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self._hear = hear
        self._unseen = bytearray()
        self._channel: int | None = None  # before it is known everything is passed on as it comes
        self._passed = 0  # so many of the unseen bytes were passed on before that
        self._returning: int | None = None  # bytes of a returned message's body that are still to come

    def take_answers(self, channel: int) -> None:
        """Take the answers on this channel from now on."""
        self._channel = channel
        self._passed = len(self._unseen)

    @property
    def is_between_frames(self) -> bool:
        """Whether all that was passed on so far were whole frames."""
        return not self._passed

    def feed(self, data: bytes) -> bytes:
        """Return what of the data so far is to be passed on: whole frames, once the channel is known."""
        self._unseen += data
        is_deaf = self._channel is None
        passed: list[bytes] = []
        start = 0
        while len(self._unseen) - start >= _FRAME.size:
            kind, channel, size = _FRAME.unpack_from(self._unseen, start)
            end = start + _FRAME.size + size + 1
            if len(self._unseen) < end:
                break
            payload = memoryview(self._unseen)[start + _FRAME.size : end - 1]
            is_taken = self._take(kind, channel, payload)
            payload.release()
            if not is_taken:
                passed.append(bytes(self._unseen[start + self._passed : end]))
            self._passed = 0
            start = end
        del self._unseen[:start]
        return data if is_deaf else b"".join(passed)

    def _take(self, kind: int, channel: int, payload: memoryview) -> bool:
        """Whether a frame is an answer to us: then it has been heard."""
        if kind == _METHOD and channel == 0 and int.from_bytes(payload[:4]) in _CONNECTION:
            self._hear(pamqp.frame.unmarshal(_FRAME.pack(kind, channel, len(payload)) + bytes(payload) + _END)[2])
        if channel != self._channel:
            return False
        if kind == _METHOD:
            name = int.from_bytes(payload[:4])
            if name in (_ACK, _NACK):
                _, tag, bits = _CONFIRM.unpack(payload)
                self._hear(Confirm(tag, name == _ACK, bool(bits & _MULTIPLE)))
                return True
            if name == _RETURN:
                self._returning = 0
                return True
            return False
        if self._returning is None:
            return False
        if kind == _HEADER:
            header = pamqp.frame.unmarshal(_FRAME.pack(kind, channel, len(payload)) + bytes(payload) + _END)[2]
            assert isinstance(header, pamqp.header.ContentHeader)
            self._returning = header.body_size or 0
            self._hear(Returned(header.properties.message_id or ""))
        else:
            self._returning -= len(payload)
        if self._returning <= 0:
            self._returning = None
        return True
