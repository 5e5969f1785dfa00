"""The example consumer with a real broker and the real daemon: what its README promises, through everything."""

import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import library_consumer
import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel

from tests.bed import fold
from tests.bed.consumer import PROGRAM, Consumer
from tests.bed.daemon import Daemon
from tests.bed.rabbit import RabbitNode

Make = Callable[..., Any]


@pytest.fixture
def consumer(tmp_path: Path) -> Iterator[Callable[..., Consumer]]:
    """Make consumers that are not yet started: `consumer(url, queue="library")`."""
    with contextlib.ExitStack() as stack:

        def make(url: str, *, name: str = "consumer") -> Consumer:
            return stack.enter_context(Consumer(tmp_path / name, url))

        yield make


@contextlib.contextmanager
def channel_to(url: str) -> Iterator[BlockingChannel]:
    """Open a channel."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def publish(url: str, *bodies: bytes) -> None:
    """Publish as trackwatch does; the queue must be bound."""
    with channel_to(url) as channel:
        for body in bodies:
            persistent = pika.BasicProperties(delivery_mode=2, message_id=str(uuid4()))
            channel.basic_publish("file_events", "file.created", body, persistent, mandatory=True)


def waiting(url: str, queue: str) -> int:
    """Return how many messages are ready in a queue."""
    with channel_to(url) as channel:
        return int(channel.queue_declare(queue, passive=True).method.message_count)


def created(sequence: int, *, name: str | None = None) -> bytes:
    """Return a message about a file that nobody has."""
    event = {
        "event_type": "created", "file_path": f"/music/{name or sequence}.mp3", "old_path": None,
        "instance_id": "one", "event_id": str(uuid4()), "sequence": sequence, "schema_version": 1, "root": "/music",
        "sha256_hash": f"{sequence:064x}", "size_bytes": 1, "modified_at": None, "metadata": None,
    }  # fmt: skip
    return json.dumps(event).encode()


def in_hand(node: RabbitNode, url: str) -> int:
    """Return how many messages of the queue were delivered and not acknowledged."""
    vhost = pika.URLParameters(url).virtual_host
    lines = node.rabbitmqctl("list_queues", "-p", vhost, "name", "messages_unacknowledged", "--no-table-headers")
    return next(int(line.split()[1]) for line in lines.splitlines() if line.split()[0] == "library")


def has_events(consumer: Consumer, count: int) -> bool:
    """Whether so many events have come."""
    return consumer.total("events") >= count


def has_folded(consumer: Consumer, root: Path, running: Daemon) -> Callable[[], bool]:
    """Return a look at whether all that the daemon has to tell has come, and is what is on the disk."""

    def look() -> bool:
        files = consumer.files()
        return len(files) > 0 and files == fold.library(root) and running.status()[1]["outbox"]["pending"] == 0

    return look


def test_a_library_is_rebuilt_through_kills_of_everything_that_takes_part(
    own_rabbit: Make, daemon: Make, library: Make, consumer: Callable[..., Consumer]
) -> None:
    node, root = own_rabbit(), library(300)
    folding, running = consumer(node.url()), daemon(root, args=["--to", node.url()])
    folding.start()
    node.wait_until_registered("library")
    node.wait_until_registered("library.dead")
    with folding.locked():
        running.start()
        folding.wait_until(lambda: in_hand(node, node.url()) >= 100, 60, "messages in its hands")
        folding.kill()  # with a hundred messages that it has not committed
    running.kill()
    # What nobody watches: moves of directories, odd names, changes, removals; a name that another file had.
    albums = sorted(path for path in root.glob("*/*") if path.is_dir())
    albums[0].rename(root / "moved album")
    albums[1].parent.rename(root / "moved artist")
    odd = os.fsencode(root) + b"/moved album/\xff\xfe odd.mp3"
    song, other = sorted((root / "moved album").glob("*.mp3"))[:2]
    shutil.copy(song, odd)
    song.unlink()
    other.rename(song)
    running.start()
    folding.start()
    node.restart()
    folding.wait_until(has_folded(folding, root, running), 60, "the library on disk")
    # And what is watched, with chains.
    (root / "moved album").rename(root / "once more")
    (root / "once more").rename(root / "and again")
    shutil.copy(root / "and again" / song.name, root / "new.mp3")
    with (root / "new.mp3").open("ab") as file:
        file.write(b"changed")
    node.kill()
    running.kill()
    folding.kill()
    node.start()
    folding.start()
    running.start()
    folding.wait_until(has_folded(folding, root, running), 60, "the library on disk")
    # All of it again, old news of names that are other files now.
    told, doubles = folding.total("events"), folding.total("doubles")
    assert running.run("replay", "--sequence", "1-", "--yes").returncode == 0
    folding.wait_until(lambda: folding.total("doubles") >= doubles + told, 60, "as many doubles as events")
    assert folding.stop() == 0
    assert folding.files() == fold.library(root)
    assert odd.replace(b"moved album", b"and again") in folding.files()
    checked = folding.run("verify", str(root))
    assert (checked.returncode, checked.stdout) == (0, "301 of 301 files equal\n")
    status = folding.run("status")
    assert status.returncode == 0, status.stdout  # nothing is missing
    assert folding.total("events") == told
    assert folding.total("beginnings") == 1
    assert folding.total("redelivered") >= 100


def test_what_is_no_event_is_set_aside_and_holds_nothing_up(vhost_url: str, consumer: Callable[..., Consumer]) -> None:
    folding = consumer(vhost_url)
    folding.start()
    later = json.dumps({**json.loads(created(2)), "schema_version": 2}).encode()
    publish(vhost_url, created(1), b"no JSON", later, created(3), created(4))
    folding.wait_until(lambda: folding.total("events") == 3, 30, "three events")
    folding.wait_until(lambda: waiting(vhost_url, "library.dead") == 2, 30, "two messages aside")
    assert folding.stop() == 0
    said = [line for line in folding.said().splitlines() if "set aside in library.dead" in line]
    assert len(said) == 2
    assert "JSONDecodeError" in said[0]
    assert "schema_version 2" in said[1]
    status = folding.run("status")
    assert status.returncode == 1
    assert "1 events did not come, sequence 2; on its host, for each: trackwatch replay --sequence 2" in status.stdout


def test_a_stop_neither_loses_nor_doubles(vhost_url: str, consumer: Callable[..., Consumer]) -> None:
    folding = consumer(vhost_url)
    folding.start()
    for round_number in range(4):
        first = round_number * 500 + 1
        publish(vhost_url, *(created(sequence) for sequence in range(first, first + 500)))
        folding.wait_until(partial(has_events, folding, first), 30, "the first of them")
        assert folding.stop() == 0
        folding.start()
    folding.wait_until(lambda: folding.total("events") == 2000, 30, "all events")
    assert folding.stop() == 0
    assert (folding.total("doubles"), folding.total("late"), len(folding.files())) == (0, 0, 2000)


def test_after_a_kill_what_was_in_hand_comes_again_first(
    rabbit: RabbitNode, vhost_url: str, consumer: Callable[..., Consumer]
) -> None:
    """In the queue's order: with a limit of deliveries, a quorum queue puts messages back where they were."""
    folding = consumer(vhost_url)
    folding.start()
    with folding.locked():
        publish(vhost_url, *(created(sequence) for sequence in range(1, 1501)))
        folding.wait_until(lambda: in_hand(rabbit, vhost_url) == 1000, 30, "a thousand in its hands")
        folding.kill()
    done = folding.run_once()
    assert done.returncode == 0, done.stderr
    assert "1,500 events, the last is 1,500 · 0 doubles · 0 late · 1,000 redelivered" in done.stdout


def test_one_of_several_works_and_another_goes_on_when_it_dies(
    rabbit: RabbitNode, vhost_url: str, consumer: Callable[..., Consumer]
) -> None:
    """With one database: they share it, as on one machine."""
    first, second = consumer(vhost_url), consumer(vhost_url)
    first.start()
    second.folder = first.folder / "second"  # its log
    second.folder.mkdir()
    second.start()
    publish(vhost_url, *(created(sequence) for sequence in range(1, 301)))
    first.wait_until(lambda: first.total("events") == 300, 30, "the first half")
    assert second.running
    with first.locked():
        publish(vhost_url, *(created(sequence) for sequence in range(301, 601)))
        first.wait_until(lambda: in_hand(rabbit, vhost_url) == 300, 30, "the second half in its hands")
        first.kill()
    second.wait_until(lambda: second.total("events") == 600, 30, "the second half")
    assert second.stop() == 0
    assert (second.total("late"), second.total("doubles"), second.total("redelivered")) == (0, 0, 300)


def test_while_the_database_cannot_be_written_messages_stay_in_the_queue(
    vhost_url: str, consumer: Callable[..., Consumer]
) -> None:
    folding = consumer(vhost_url)
    folding.start()
    with folding.locked():
        publish(vhost_url, *(created(sequence) for sequence in range(1, 11)))
        folding.wait_until(lambda: "cannot write" in folding.said(), 30, "words about the database")
        assert "database is locked; the messages stay in the queue" in folding.said()
        assert folding.running
        assert folding.stop() == 0
        assert waiting(vhost_url, "library") == 10
    assert "10 events, the last is 10 · 0 doubles" in folding.run_once().stdout


def test_a_lost_state_of_the_daemon_is_noticed_and_its_library_folded_anew(
    vhost_url: str, daemon: Make, library: Make, consumer: Callable[..., Consumer]
) -> None:
    root = library(40)
    folding = consumer(vhost_url)
    folding.start()
    first = daemon(root, args=["--to", vhost_url], env={"INSTANCE_ID": "studio"})
    first.start()
    folding.wait_until(has_folded(folding, root, first), 60, "the library on disk")
    assert first.stop() == 0
    next(root.rglob("*.mp3")).unlink()  # which the new state never knows
    second = daemon(root, args=["--to", vhost_url], env={"INSTANCE_ID": "studio"})
    second.start()
    folding.wait_until(has_folded(folding, root, second), 60, "the library on disk")
    assert folding.stop() == 0
    assert "instance studio began again: sequence 1 is another event" in folding.said()
    assert folding.run("verify", str(root)).stdout == "39 of 39 files equal\n"


def test_a_queue_that_was_deleted_is_declared_again(vhost_url: str, consumer: Callable[..., Consumer]) -> None:
    """trackwatch holds its events until it is there."""
    folding = consumer(vhost_url)
    folding.start()
    with channel_to(vhost_url) as channel:
        channel.queue_delete("library")
    folding.wait_until(lambda: folding.said().count("consuming library") == 2, 30, "to be consuming again")
    assert "the broker has cancelled the consumer" in folding.said()
    publish(vhost_url, created(1))
    folding.wait_until(partial(has_events, folding, 1), 30, "an event")


def test_the_definitions_of_the_broker_declare_the_queue_as_the_consumer_does() -> None:
    """Otherwise the broker would refuse the consumer."""
    definitions = json.loads((PROGRAM.parents[1] / "rabbitmq" / "definitions.json").read_text())
    assert {queue["name"]: queue["arguments"] for queue in definitions["queues"]} == {
        "library": library_consumer.queue_arguments("library"),
        "library.dead": {"x-queue-type": "quorum"},
    }


def test_a_queue_of_another_kind_is_said_to_be_so_and_ends_it(
    vhost_url: str, consumer: Callable[..., Consumer]
) -> None:
    with channel_to(vhost_url) as channel:
        channel.queue_declare("library", durable=True)
    done = consumer(vhost_url).run_once()
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("library_consumer: queue or exchange exists with other properties (PRECONDITION_FAILED")


def test_its_commands_need_its_database(tmp_path: Path, consumer: Callable[..., Consumer]) -> None:
    nowhere = consumer("amqp://localhost/")
    for arguments in (["status"], ["verify", str(tmp_path)], ["forget", "one"]):
        done = nowhere.run(*arguments)
        assert (done.returncode, done.stderr.splitlines()) == (
            2,
            [f"library_consumer: {nowhere.db}: no such file; `run` makes it (--db names it)"],
        )
    sqlite3.connect(nowhere.db).close()
    assert nowhere.run("status").stdout == "no event has come yet\n"
    assert nowhere.run("forget", "one").stderr == "library_consumer: no instance 'one'; there are: none\n"
