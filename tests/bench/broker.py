"""The broker's side of what is measured: its queue, what is in it, and when a message reaches a consumer."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

import pika
from pika.adapters.blocking_connection import BlockingChannel

EXCHANGE, QUEUE, BINDING = "file_events", "all", "file.*"
# The queue's kinds, by the arguments of its declaration.
QUEUES: dict[str, dict[str, str]] = {
    "classic": {"x-queue-type": "classic"},
    "lazy": {"x-queue-mode": "lazy"},
    "quorum": {"x-queue-type": "quorum"},
    "stream": {"x-queue-type": "stream"},
}
SILENCE_S = 30.0  # for which a queue that should hold more may have nothing to give
POLL_S = 0.005


@contextmanager
def channel_of(url: str) -> Iterator[BlockingChannel]:
    """Yield a channel of a connection of its own."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        yield connection.channel()


def declare_queue(url: str, kind: str = "classic") -> None:
    """Make the durable queue to which every event goes."""
    with channel_of(url) as channel:
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        channel.queue_declare(QUEUE, durable=True, arguments=QUEUES[kind])
        channel.queue_bind(QUEUE, EXCHANGE, BINDING)


def count(url: str) -> int:
    """Return how many messages are in the queue."""
    with channel_of(url) as channel:
        messages: int = channel.queue_declare(QUEUE, passive=True).method.message_count
        return messages


def purge(url: str) -> int:
    """Delete what is in the queue, and return how much that was."""
    with channel_of(url) as channel:
        messages: int = channel.queue_purge(QUEUE).method.message_count
        return messages


def empty_queue(url: str, messages: int) -> dict[str, tuple[str, str]]:
    """Take so many messages from the queue, which must hold no more; return the hashes of each path."""
    told: dict[str, tuple[str, str]] = {}
    if not messages:
        assert not count(url), "messages too many"
        return told
    with channel_of(url) as channel:
        channel.basic_qos(prefetch_count=1000)
        for number, (method, properties, body) in enumerate(channel.consume(QUEUE, inactivity_timeout=SILENCE_S), 1):
            assert method is not None, f"{number - 1} messages instead of {messages}"
            assert properties.delivery_mode == 2, "a message that a restart of the broker would lose"
            event = json.loads(body)
            told[event["file_path"]] = event["sha256_hash"], event["xxh128_hash"]
            channel.basic_ack(method.delivery_tag)
            if number == messages:
                break
        channel.cancel()
    assert not count(url), "messages too many"
    assert len(told) == messages, f"{len(told)} different files instead of {messages}"
    return told


class Arrival(NamedTuple):
    """One message, and when it was there (monotonic clock)."""

    at_s: float
    event_id: str
    sequence: int  # 0, if it says none
    body: bytes  # nothing, unless the consumer was to keep it


class Consumer:
    """Takes what comes to the queue, in a thread. A context manager; the queue must have been declared.

    `keep` says of which messages the bodies are wanted: to look at a million of them would be work of its own.
    """

    def __init__(self, url: str, keep: Callable[[bytes], bool] = lambda _: False) -> None:
        self.arrivals: list[Arrival] = []
        self._keep = keep
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel = self._connection.channel()
        self._channel.basic_consume(QUEUE, self._take, auto_ack=True)
        self._thread = threading.Thread(target=self._channel.start_consuming, name="consumer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.add_callback_threadsafe(self._channel.stop_consuming)
        self._thread.join()
        self._connection.close()

    def kept(self, since: int = 0) -> list[tuple[float, dict[str, Any]]]:
        """Return the events whose bodies were kept, and when each one came, from the so-manieth arrival on."""
        return [(arrival.at_s, json.loads(arrival.body)) for arrival in self.arrivals[since:] if arrival.body]

    def wait_for(self, messages: int, timeout_s: float) -> bool:
        """Wait until so many have come in all; return whether they have."""
        deadline = time.monotonic() + timeout_s
        while len(self.arrivals) < messages:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_S)
        return True

    def _take(self, _channel: BlockingChannel, _method: Any, properties: pika.BasicProperties, body: bytes) -> None:
        at_s, headers = time.monotonic(), properties.headers or {}
        kept = body if self._keep(body) else b""
        self.arrivals.append(Arrival(at_s, str(properties.message_id), int(headers.get("sequence", 0)), kept))
