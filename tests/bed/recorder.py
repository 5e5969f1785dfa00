"""What a consumer gets: an independent witness of the event stream, over AMQP or as JSON lines.

It speaks AMQP with pika and shares no code with trackwatch. It keeps every delivery that ever arrived, doubles
included, acknowledges each after keeping it, and comes back by itself when the broker goes away: in fault tests, that
is its job. It judges nothing; `fold` does.
"""

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Literal, Self
from uuid import uuid4

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.adapters.utils.connection_workflow import (
    AMQPConnectorException,
)  # no AMQPError: a handshake that took too long
from pika.exceptions import AMQPError, ChannelClosedByBroker

EXCHANGE = "file_events"
BINDING = "file.*"
PREFETCH = 500
HEARTBEAT_S = 2  # with pika's own margins, a frozen broker is noticed after 14 s
CONNECT_DEADLINE_S = 10.0  # to a frozen broker, connecting would hang
RETRY_S = 0.1
LOOK_S = 0.05  # how often a wait looks again: predicates may fold the whole stream
PRECONDITION_FAILED = 406

# It logs each failed connection several times, tracebacks included; `troubles` says it once.
logging.getLogger("pika").setLevel(logging.CRITICAL)


class NotRecordedError(AssertionError):
    """What a test has waited for did not come."""


@dataclass(frozen=True)
class Message:
    """One delivery, as it arrived."""

    body: Any  # the parsed JSON
    raw: bytes
    routing_key: str
    properties: pika.BasicProperties
    headers: dict[str, Any]
    delivery_mode: int | None
    message_id: str | None
    redelivered: bool
    arrived_at_s: float  # time.monotonic()


class Recorder:
    """A durable queue bound to every event, and a thread that consumes it. A context manager, or call `close`.

    It returns from its making once the queue is bound, so whatever is published after that is recorded. With
    `consume=False` the queue only fills, until `consume` is called. A `queue` name makes it take over that queue.
    """

    def __init__(
        self,
        url: str,
        *,
        queue: str | None = None,
        queue_type: Literal["classic", "quorum"] = "classic",
        consume: bool = True,
        exchange: str = EXCHANGE,
        binding: str = BINDING,
        timeout_s: float = 30.0,
    ) -> None:
        self.url = url
        self.queue = queue or f"recorder-{uuid4().hex[:12]}"
        self.queue_type = queue_type
        self.exchange = exchange
        self.binding = binding
        self.connections = 0  # how often it has bound its queue; more than 1 means that it came back
        self.troubles: list[str] = []  # why connections have ended
        # Everything above and below is written by the thread alone, under the condition's lock where others wait.
        self._messages: list[Message] = []
        self._defect: BaseException | None = None
        self._changed = threading.Condition()
        self._wanted = threading.Event()
        self._closing = threading.Event()
        if consume:
            self._wanted.set()
        self._thread = threading.Thread(target=self._run, name=f"recorder of {self.queue}", daemon=True)
        self._thread.start()
        try:
            self.wait_connected(1, timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def messages(self) -> list[Message]:
        """Everything that has arrived so far, in the order of arrival."""
        if self._defect is not None:
            raise self._defect
        with self._changed:
            return list(self._messages)

    @property
    def bodies(self) -> list[Any]:
        """The parsed bodies of everything that has arrived so far."""
        return [message.body for message in self.messages]

    def consume(self) -> None:
        """Begin to consume, if it was made not to."""
        self._wanted.set()

    def wait_for(self, count: int, timeout_s: float = 30.0) -> list[Message]:
        """Wait until that many different messages have arrived (doubles of one event id count once); return all."""
        return self.wait_until(lambda messages: distinct(messages) >= count, timeout_s, f"{count} different messages")

    def wait_until(
        self, predicate: Callable[[Sequence[Message]], bool], timeout_s: float = 30.0, what: str = "what was waited for"
    ) -> list[Message]:
        """Wait until the messages so far satisfy a predicate, and return them.

        Raises:
            NotRecordedError: they did not in time
        """
        deadline = time.monotonic() + timeout_s
        while True:
            messages = self.messages
            if self._defect is not None:
                raise self._defect
            if predicate(messages):
                return messages
            if time.monotonic() > deadline:
                raise NotRecordedError(
                    f"{what}: not recorded within {timeout_s:g} s; {len(messages)} messages, {distinct(messages)} "
                    f"different; last connection problems: {self.troubles[-3:]}"
                )
            time.sleep(LOOK_S)

    def wait_connected(self, times: int, timeout_s: float = 30.0) -> None:
        """Wait until it has connected that often (2 after one broken connection).

        Raises:
            NotRecordedError: it did not in time
        """
        with self._changed:
            done = self._changed.wait_for(lambda: self.connections >= times or self._defect is not None, timeout_s)
        if self._defect is not None:
            raise self._defect
        if not done:
            raise NotRecordedError(f"connected {self.connections} times of {times}; problems: {self.troubles[-3:]}")

    def close(self) -> None:
        """Stop consuming. The queue stays, with what has not been acknowledged. A frozen broker costs 14 s here."""
        self._closing.set()
        self._thread.join(30)
        if self._thread.is_alive():
            raise RuntimeError(f"the recorder of {self.queue} does not end")

    # --- its thread ---

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                try:
                    self._session()
                except (AMQPError, AMQPConnectorException, OSError) as error:
                    # Everything heals by itself but a queue or an exchange that exists in another form.
                    if isinstance(error, ChannelClosedByBroker) and error.reply_code == PRECONDITION_FAILED:
                        raise
                    self.troubles.append(repr(error))
                    self._closing.wait(RETRY_S)
        except BaseException as error:  # whoever waits must learn of it, whatever it is
            with self._changed:
                self._defect = error
                self._changed.notify_all()

    def _session(self) -> None:
        """Live as long as one connection."""
        parameters = pika.URLParameters(self.url)
        parameters.heartbeat = HEARTBEAT_S
        parameters.socket_timeout = CONNECT_DEADLINE_S
        parameters.stack_timeout = CONNECT_DEADLINE_S
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.exchange_declare(self.exchange, "topic", durable=True)
            channel.queue_declare(self.queue, durable=True, arguments={"x-queue-type": self.queue_type})
            channel.queue_bind(self.queue, self.exchange, self.binding)
            channel.basic_qos(prefetch_count=PREFETCH)
            with self._changed:
                self.connections += 1
                self._changed.notify_all()
            consuming = False
            while not self._closing.is_set():
                if self._wanted.is_set() and not consuming:
                    channel.basic_consume(self.queue, self._keep)
                    consuming = True
                connection.process_data_events(time_limit=LOOK_S)
                if consuming and not channel.consumer_tags:
                    raise AMQPError("the broker has cancelled the consumer")

    def _keep(self, channel: BlockingChannel, method: Any, properties: pika.BasicProperties, raw: bytes) -> None:
        message = Message(
            body=json.loads(raw.decode()),
            raw=raw,
            routing_key=method.routing_key,
            properties=properties,
            headers=dict(properties.headers or {}),
            delivery_mode=properties.delivery_mode,
            message_id=properties.message_id,
            redelivered=method.redelivered,
            arrived_at_s=time.monotonic(),
        )
        with self._changed:
            self._messages.append(message)
        channel.basic_ack(method.delivery_tag)


def distinct(messages: Sequence[Message]) -> int:
    """Return how many different messages these are; one without an event id is like no other."""
    ids = [message.body.get("event_id") if isinstance(message.body, dict) else None for message in messages]
    return len({event_id for event_id in ids if event_id is not None}) + ids.count(None)


def read_json_lines(source: str | os.PathLike[str] | IO[bytes] | IO[str]) -> list[Any]:
    """Return the values of a file or an open stream of JSON lines, without an unfinished last line."""
    if isinstance(source, str | os.PathLike):
        with open(source, "rb") as stream:
            return read_json_lines(stream)
    content = source.read()
    raw = content.encode() if isinstance(content, str) else content
    return [json.loads(line.decode()) for line in raw.split(b"\n")[:-1]]
