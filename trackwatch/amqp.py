"""The AMQP sink: one session with a broker, confirmed batch by batch.

The only place that knows asyncio, trio-asyncio, aio-pika and aiormq: the asyncio loop lives and dies with one session,
and every exception of theirs is translated here. A session never reconnects: once lost it stays lost, and its owner
opens another. There is an outcome only for what the broker has answered; a row that was broken off has none, and is
to be sent again under its old id. Functions are Trio-flavoured unless their docstring begins with "(asyncio)".
"""

import asyncio
import logging
import math
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any, NoReturn, TypeAlias
from uuid import UUID

import aio_pika
import structlog
import trio
import trio_asyncio
from aio_pika.connection import make_url
from aiormq import exceptions as amqp_errors
from aiormq import spec
from aiormq.connection import TransportFactory

from trackwatch.errors import BrokerRefused, BrokerUnavailable
from trackwatch.event import CONFIRMED, Outcome, Outgoing, Verdict, routing_key
from trackwatch.frames import ENCODING_ERRORS, HEARTBEAT, Confirm, Ear, Encoder, Returned

log = structlog.get_logger(__name__)
# What they log comes to us as an exception or a frame as well; printed, it would be lines of another kind in our log.
logging.getLogger("aiormq").setLevel(logging.CRITICAL)
logging.getLogger("aio_pika").setLevel(logging.CRITICAL)

CONNECT_S = 10.0  # name, TCP, TLS, login and exchange; takes milliseconds, a few seconds on a node that is starting
CONFIRM_S = 10.0  # one batch; a node that syncs to a slow disk needs a second or two, and longer means it is stuck
SIGN_OF_LIFE_S = 1.0  # well below the shortest heartbeat that brokers agree to
CLOSE_S = 3.0  # the closing handshake of an idle session; takes milliseconds
BROKEN_CLOSE_S = 0.5  # the same when a batch was broken off: enough for a live broker, and a frozen one never answers

# Scheme, user, host, port, virtual host; the password is all up to the last @, however badly it is encoded.
SHOWN = re.compile(r"(amqps?://)(?:([^:@]*)(?::.*)?(@))?(\[[^]@]*\]|[^:/?#@]*)(:\d+)?(/[^?#@]*)?(?:[?#][^@]*)?")

LostSession: TypeAlias = BrokerUnavailable | BrokerRefused

# What comes out of aio-pika when a session breaks. asyncio.CancelledError is among them: aiormq cancels its futures
# when it misses heartbeats. OSError includes TimeoutError and ssl.SSLError, EOFError is an incomplete read. With a
# StopAsyncIteration aiormq says that the other side had hung up before it began to read, as a port forwarder does.
HUNG_UP = (asyncio.IncompleteReadError, ConnectionResetError, BrokenPipeError, StopAsyncIteration)
BREAKAGES = (
    asyncio.CancelledError,
    amqp_errors.AMQPError,
    amqp_errors.ChannelInvalidStateError,
    OSError,
    EOFError,
    StopAsyncIteration,
)


@dataclass(frozen=True, slots=True)
class Broker:
    """Where to publish, and how. `url` is amqp:// or amqps:// and holds the password: only `display` may be shown."""

    url: str = field(repr=False)
    exchange: str = "file_events"
    heartbeat_s: int = 10  # aiormq gives a silent broker up after three of these
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def display(self) -> str:
        """The URL without password and parameters; nothing at all of what does not look like one."""
        shown = SHOWN.fullmatch(self.url)
        return "".join(part or "" for part in shown.groups()) if shown else "(not an AMQP URL)"


@asynccontextmanager
async def open_amqp(broker: Broker, *, instance_id: str) -> AsyncIterator["AmqpSink"]:
    """Open a session with the broker and close it again; an error of the body comes out as it went in.

    Raises:
        BrokerUnavailable: it cannot be reached, or does not answer.
        BrokerRefused: it does not let us in, or has an exchange of another kind under our name.
    """
    failure: Exception | None = None
    try:
        async with trio_asyncio.open_loop() as loop:
            loop.set_exception_handler(_note)
            sink = AmqpSink(broker, instance_id)
            try:
                await sink.connect()
                yield sink
            except Exception as error:
                failure = error  # raised below, where the loop's nurseries cannot wrap it into groups any more
            finally:
                await sink.hang_up()
    except BaseExceptionGroup as group:
        # The loop's nurseries wrap what was not put off: a defect, or an error beside a Cancelled; the Cancelled may
        # give way, since it comes again at the next checkpoint.
        leaves = list(_leaves(group))
        errors = [leaf for leaf in leaves if not isinstance(leaf, trio.Cancelled)] or leaves[:1]
        if len(errors) == 1:
            raise errors[0] from errors[0].__cause__
        raise
    if failure is not None:
        raise failure


class AmqpSink:
    """One session. All its state is touched in Trio's thread only: asyncio callbacks run there as well."""

    def __init__(self, broker: Broker, instance_id: str) -> None:
        self._broker = broker
        self._instance_id = instance_id
        self._line = _Line(self._hear)
        self._connection: aio_pika.Connection | None = None
        self._channel: aio_pika.abc.AbstractChannel
        self._encoder: Encoder
        self._tag = 0  # the delivery tag of the last message: they are counted from 1
        self._sending: _Sending | None = None  # the batch under way
        self._closed_as: spec.Connection.Close | None = None  # why the broker closed the connection
        self._blocked: str | None = None
        self._patience: trio.CancelScope | None = None  # the scope of the batch under way; `_hear` moves its deadline
        self._established = False
        self._lost = trio.Event()
        self._loss: LostSession | None = None

    @property
    def blocked(self) -> str | None:
        """Why the broker takes nothing now (a memory or disk alarm), None while it does."""
        return self._blocked

    async def wait_lost(self) -> NoReturn:
        """Wait until the session is lost, then raise as `publish` does."""
        await self._lost.wait()
        raise self._fresh_loss()

    async def publish(self, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        """Send the batch in order; put sequence -> Outcome into `outcomes` as each is known.

        Of rows with the same event id only the first is sent, the others stay without an outcome. While the broker has
        an alarm there is no deadline, as long as the connection lives. Whatever breaks a batch off, cancellation too,
        ends the session: a late answer could not be told from the answer to the next sending of the same id.

        Raises:
            BrokerUnavailable: the session is lost, or was before.
            BrokerRefused: the same, and a person must act (no permission to publish).
        """
        if self._loss is not None:
            raise self._fresh_loss()
        answered = False
        try:
            with trio.CancelScope() as self._patience:
                self._set_deadline()
                await self._cross(self._send, batch, outcomes)
                answered = True
            if not answered:
                raise self._lose(self._unavailable(f"no confirm within {CONFIRM_S:g} s"))
        finally:
            self._patience = None
            if not answered:
                self._lose(self._unavailable("broken off in the middle of a batch"))

    async def connect(self) -> None:
        """Reach the broker, log in, declare the exchange. Trio dials: asyncio cannot cancel the look-up of a name."""
        with trio.move_on_after(CONNECT_S) as patience:
            try:
                url = make_url(self._broker.url, heartbeat=self._broker.heartbeat_s)
                tls = {"amqp": False, "amqps": True}[url.scheme]
                host, port = url.host or "localhost", url.port or (5671 if tls else 5672)
            except (ValueError, KeyError):
                remedy = "it is not amqp[s]://user:password@host:port/vhost; percent-encode special characters"
                # `from None`: the parser quotes the piece it stumbled over, which may be of the password.
                raise BrokerRefused(f"read the broker's URL {self._broker.display!r}: {remedy}") from None
            if tls:
                self._line.tls, self._line.host = self._tls_context(), host
            try:
                self._line.socket = await _dial(host, port)
            except (OSError, UnicodeError) as error:  # UnicodeError: a name that cannot be looked up
                raise self._unavailable(f"{_reason(error)}; is it running, and reachable?") from error
            await self._cross(self._establish, url)
            self._established = True
        if patience.cancelled_caught:
            raise self._unavailable(f"no answer within {CONNECT_S:g} s; is it running, and reachable?")

    async def hang_up(self) -> None:
        """Close the session politely within a bounded time, then by force; does not raise for a broken session."""
        patience_s = CLOSE_S if self._established and self._loss is None else BROKEN_CLOSE_S
        # The line is cut after `patience_s`, which ends whatever aiormq is doing; the second more is for it to notice.
        with trio.move_on_after(patience_s + 1, shield=True):
            try:
                await trio_asyncio.aio_as_trio(self._say_goodbye)(patience_s)
            except BREAKAGES as error:
                # No event is in hand here: what has no outcome is sent again, however the session ended.
                log.debug("session not closed", target=self._broker.display, reason=_reason(error))
        self._line.abort()  # also when connecting was broken off half-way, and aio-pika knows of no connection

    async def _cross(self, function: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Call an asyncio function: the one door that exceptions pass on their way to Trio, and where they change.

        An asyncio.CancelledError that is none of Trio's doing is a BaseException: let out, it would end the program.
        """
        try:
            await trio_asyncio.aio_as_trio(function)(*args)
        except BREAKAGES as error:
            raise self._lose(self._translated(error)) from error

    async def _establish(self, url: Any) -> None:
        """(asyncio) Log in over the dialled socket, open a confirming channel, declare the exchange."""
        # What `aio_pika.connect` does, plus our own transport, which it has no way to pass on.
        name = f"trackwatch {self._instance_id}"
        self._connection = aio_pika.Connection(url, client_properties={"connection_name": name})
        self._connection.kwargs["transport_factory"] = self._line
        await self._connection.connect()
        self._connection.close_callbacks.add(self._on_closed)
        try:
            self._channel = self._connection.channel(publisher_confirms=True, on_return_raises=True)
            await self._channel.initialize()
        except RuntimeError as error:  # what aiormq says of a connection that has closed in between
            raise amqp_errors.ChannelInvalidStateError(str(error)) from error
        self._channel.close_callbacks.add(self._on_closed)
        kind = aio_pika.ExchangeType.TOPIC
        await self._channel.declare_exchange(self._broker.exchange, kind, durable=True)
        channel = await self._channel.get_underlay_channel()
        self._encoder = Encoder(
            self._broker.exchange,
            self._instance_id,
            channel=channel.number,
            frame_max=channel.connection.connection_tune.frame_max,
        )
        self._line.ear.take_answers(channel.number)

    async def _send(self, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        """(asyncio) Send the batch as one piece, and wait until every row has an outcome or the session is lost."""
        sending = _Sending(outcomes, asyncio.get_running_loop().create_future())
        frames: list[bytes] = []
        for row in batch:
            # The broker returns a message by its id: with two of one id in flight the wrong one would fail.
            if row.event_id in sending.rows:
                continue
            try:
                frames.append(self._encoder.encode(row))
            except ENCODING_ERRORS as error:
                outcomes[row.sequence] = Outcome(
                    Verdict.UNSENDABLE, f"it cannot be put into a message: {_reason(error)}"
                )
                continue
            self._tag += 1
            sending.rows[row.event_id] = row
            sending.waiting[self._tag] = row
        if not frames:
            return
        self._sending = sending
        try:
            self._line.write(b"".join(frames))
            await sending.done
        except amqp_errors.ChannelPreconditionFailed as error:
            _sort_out_oversized(str(error), batch, outcomes)
            raise
        finally:
            self._sending = None

    async def _say_goodbye(self, patience_s: float) -> None:
        """(asyncio) Close the connection; cut the line when that takes longer than `patience_s`."""
        cut = asyncio.get_running_loop().call_later(patience_s, self._line.abort)
        try:
            if self._connection is not None:
                await self._connection.close()
        finally:
            cut.cancel()

    def _hear(self, said: Any) -> None:
        """Note what the broker says. Called from within asyncio's loop."""
        match said:
            case Confirm() | Returned():
                if self._sending is not None:
                    self._sending.answer(said)
                    self._set_deadline()  # a slow disk or line takes its time, but goes on
            case spec.Connection.Close():
                self._closed_as = said
            case _:
                alarm = isinstance(said, spec.Connection.Blocked)
                self._blocked = (_one_line(said.reason) or "it gives no reason") if alarm else None
                self._set_deadline()

    def _set_deadline(self) -> None:
        """Give the batch under way its time from now: none while blocked, since nothing is confirmed in an alarm."""
        if self._patience is not None:
            self._patience.deadline = math.inf if self._blocked else trio.current_time() + CONFIRM_S

    def _on_closed(self, _: object, error: BaseException | None) -> None:
        """Note that connection or channel has closed. Called from within asyncio's loop."""
        self._lose(self._translated(error))
        if self._sending is not None:
            self._sending.fail(error or ConnectionResetError("closed"))

    def _lose(self, loss: LostSession) -> LostSession:
        """Mark the session as lost; the first cause stays. Return what to raise."""
        if self._loss is None:
            self._loss = loss
            self._lost.set()
        return self._fresh_loss()

    def _fresh_loss(self) -> LostSession:
        """Return the loss as a new exception: one object raised in two tasks would mix their tracebacks."""
        assert self._loss is not None
        return type(self._loss)(*self._loss.args)

    def _tls_context(self) -> ssl.SSLContext:
        ca, cert, key = self._broker.ca_file, self._broker.cert_file, self._broker.key_file
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert:  # an empty password: an encrypted key is an error, not a question on the terminal
                context.load_cert_chain(cert, key, password=lambda: "")
        except OSError as error:
            files = ", ".join(repr(name) for name in (ca, cert, key) if name)
            reason = f"{_reason(error)}; check them and RABBITMQ_CA_FILE"
            raise BrokerRefused(f"read the TLS files {files} for {self._broker.display}: {reason}") from error
        return context

    def _unavailable(self, reason: str) -> BrokerUnavailable:
        deed = "publish" if self._established else "connect"
        return BrokerUnavailable(f"{deed} to {self._broker.display}: {reason}")

    def _translated(self, error: BaseException | None) -> LostSession:
        """Say what a breakage means for us; what the broker said in its closing frame beats what aiormq made of it."""
        where, opening = self._broker.display, not self._established
        exchange = f"the exchange {self._broker.exchange!r} at {where}"
        code, said = 0, ""
        if self._closed_as is not None:
            code, said = self._closed_as.reply_code or 0, _one_line(self._closed_as.reply_text)
        tls = next((cause for cause in _causes(error) if isinstance(cause, ssl.SSLError)), None)
        match error:
            case _ if code == 403 or isinstance(error, amqp_errors.AuthenticationError):
                remedy = "check RABBITMQ_USER and RABBITMQ_PASS (guest is let in from localhost only)"
                return BrokerRefused(f"log in to {where}: user name or password refused; {remedy}")
            case _ if code == 530:
                remedy = "create it, or give the user permissions on it"
                return BrokerRefused(f"open the virtual host of {where}: {said}; {remedy}")
            case _ if code:
                return self._unavailable(said or "closed by the broker")
            case amqp_errors.ChannelPreconditionFailed() if opening:
                remedy = "delete that one, or choose another name with RABBITMQ_EXCHANGE"
                return BrokerRefused(f"declare {exchange}: there is one of another kind ({_reason(error)}); {remedy}")
            case amqp_errors.ChannelAccessRefused():
                remedy = "give the user permission to configure and write it"
                return BrokerRefused(f"use {exchange}: {_reason(error)}; {remedy}")
            case amqp_errors.InvalidFrameError() | amqp_errors.ProtocolSyntaxError() if opening:
                remedy = "check host and port"
                return BrokerRefused(f"connect to {where}: what listens there is no AMQP 0-9-1 broker; {remedy}")
            case _ if opening and tls and not isinstance(tls, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
                remedy = "check RABBITMQ_CA_FILE and RABBITMQ_CERT_FILE, and that this is the TLS port"
                return BrokerRefused(f"connect to {where}: TLS failed ({_reason(tls)}); {remedy}")
            case _ if any(isinstance(cause, HUNG_UP) for cause in _causes(error)):
                # With TLS 1.3 a broker learns only after the handshake that there is no certificate, and hangs up.
                wanted = opening and self._line.tls is not None and not self._broker.cert_file
                hint = "; does it want to see a certificate (RABBITMQ_CERT_FILE)?" if wanted else ""
                return self._unavailable(f"connection lost, the other side has closed it{hint}")
            case None | asyncio.CancelledError():
                return self._unavailable("connection lost, the broker may have fallen silent")
            case _:
                return self._unavailable(f"connection lost ({_reason(error)})")


class _Line(TransportFactory):
    """The byte stream to the broker, kept hold of: only who holds the transport can cut it, write to it, and hear it.

    aiormq waits without an end for a stream to a frozen peer to drain before it closes; and it tells nobody of
    Connection.Blocked, nor why the broker refuses a virtual host.
    """

    def __init__(self, hear: Callable[[Any], None]) -> None:
        self.socket: socket.socket | None = None  # dialled, ours until `create` hands it to the transport
        self.tls: ssl.SSLContext | None = None
        self.host: str | None = None  # whom the certificate must name
        self.ear = Ear(hear)
        self._transport: asyncio.Transport | None = None

    async def create(self, url: Any, **_: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """(asyncio) Put the dialled socket to work; what asyncio.open_connection does, with a reader that overhears."""
        loop = asyncio.get_running_loop()
        reader = _OverheardReader(self.ear)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        options: dict[str, Any] = {"sock": self.socket, "ssl": self.tls}
        if self.tls:  # a frozen peer answers no TLS goodbye either: wait no longer for it than without TLS
            options |= {"server_hostname": self.host, "ssl_shutdown_timeout": BROKEN_CLOSE_S}
        self._transport, _protocol = await loop.create_connection(lambda: protocol, **options)
        return reader, asyncio.StreamWriter(self._transport, protocol, reader, loop)

    def write(self, frames: bytes) -> None:
        """(asyncio) Send whole frames, which nothing of aiormq's can come between.

        Raises:
            ConnectionResetError: the line is cut.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection is closing")
        self._transport.write(frames)

    def abort(self) -> None:
        """Cut the line now; what waits to be sent is dropped. Does nothing the second time."""
        if self._transport is not None:
            self._transport.abort()
        elif self.socket is not None:
            self.socket.close()


@dataclass(slots=True, eq=False)
class _Sending:
    """A batch on its way."""

    outcomes: dict[int, Outcome]
    done: asyncio.Future[None]
    rows: dict[UUID, Outgoing] = field(default_factory=dict)
    waiting: dict[int, Outgoing] = field(default_factory=dict)  # by delivery tag, in that order

    def answer(self, said: Confirm | Returned) -> None:
        """Note what became of some of it."""
        if isinstance(said, Returned):
            row = self.rows.get(UUID(said.message_id))
            if row is not None:
                key = routing_key(row.event_type)
                self.outcomes[row.sequence] = Outcome(Verdict.UNROUTABLE, f"no queue is bound to {key}")
            return
        tags = [said.tag]
        if said.multiple:  # 0: all there are
            tags = list(takewhile(lambda tag: tag <= said.tag or not said.tag, self.waiting))
        for tag in tags:
            row = self.waiting.pop(tag, None)
            if row is None:
                continue
            if said.is_ack:
                self.outcomes.setdefault(row.sequence, CONFIRMED)  # what was returned is confirmed as well
            else:
                key = routing_key(row.event_type)
                self.outcomes[row.sequence] = Outcome(Verdict.REJECTED, f"a queue bound to {key} takes no more")
        if not self.waiting and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: BaseException) -> None:
        """Note that there will be no more answers."""
        if not self.done.done():
            self.done.set_exception(error)


class _OverheardReader(asyncio.StreamReader):
    """A stream reader that keeps back what is for the ear alone."""

    def __init__(self, ear: Ear) -> None:
        super().__init__()
        self._ear = ear
        self._fed_at = 0.0

    def feed_data(self, data: Any) -> None:
        now = asyncio.get_running_loop().time()
        passed = self._ear.feed(bytes(data))
        if not passed and now > self._fed_at + SIGN_OF_LIFE_S and self._ear.is_between_frames:
            passed = HEARTBEAT  # or else aiormq would take a broker that only confirms for a silent one
        if passed:
            self._fed_at = now
            super().feed_data(passed)


async def _dial(host: str, port: int) -> socket.socket:
    """Connect, in a way that can be cancelled at any moment, and return a plain socket for asyncio."""
    stream = await trio.open_tcp_stream(host, port)
    plain = socket.socket(fileno=stream.socket.detach())
    plain.setblocking(False)
    return plain


def _sort_out_oversized(complaint: str, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
    """Give up the rows that are larger than the broker takes: it closes the channel over them, each time they come."""
    if found := re.search(r"message size (\d+) is larger than", complaint):
        for row in batch:
            if len(row.payload) == int(found[1]):
                reason = f"it is larger than the broker's max_message_size: {_one_line(complaint)}"
                outcomes.setdefault(row.sequence, Outcome(Verdict.UNSENDABLE, reason))


def _note(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Take what asyncio has nobody to tell, instead of the default handler, which would end the loop.

    These are echoes of a broken session in futures that nobody awaits any more; its cause has been raised elsewhere.
    """
    error = context.get("exception")
    log.debug("session echo", message=context.get("message"), reason="" if error is None else _reason(error))


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, its cause, the cause of that; of a group the first member."""
    while error is not None:
        yield error
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__


def _reason(error: BaseException) -> str:
    """Return the innermost reason as one line of text."""
    innermost = list(_causes(error))[-1]
    if isinstance(innermost, ssl.SSLError):
        return _one_line(getattr(innermost, "verify_message", None) or innermost.reason or str(innermost)).lower()
    if isinstance(innermost, OSError) and innermost.strerror:
        # asyncio puts the address into the text, which we have told already; a resolver's errors have negative numbers.
        number = innermost.errno or 0
        return (os.strerror(number) if number > 0 else innermost.strerror).lower()
    return _one_line(str(innermost)) or type(innermost).__name__


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())
