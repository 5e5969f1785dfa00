"""The whole daemon with a real broker."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.bed.rabbit import RabbitNode
from tests.bed.recorder import Recorder


def test_an_import_arrives_as_the_contract_says(
    daemon: Callable[..., Daemon], library: Callable[..., Path], recorder: Callable[..., Recorder], vhost_url: str
) -> None:
    root = library(300)
    recorded = recorder(vhost_url)
    running = daemon(root, args=["--to", vhost_url], env={"INSTANCE_ID": "studio one"})
    running.start()
    messages = recorded.wait_for(300)
    assert len(messages) == 300
    for message in messages:
        properties, body = message.properties, message.body
        assert message.routing_key == properties.type == f"file.{body['event_type']}" == "file.created"
        assert message.delivery_mode == 2
        assert properties.message_id == body["event_id"]
        assert properties.app_id == "trackwatch"
        assert properties.content_type == "application/json"
        assert properties.timestamp == int(datetime.fromisoformat(body["timestamp"]).timestamp())
        assert message.headers == {"instance_id": "studio one", "sequence": body["sequence"], "schema_version": 1}
    assert datetime.fromisoformat(messages[0].body["timestamp"]).tzinfo == UTC
    assert_equal_fold(recorded.messages, root)
    assert running.events() == []


def test_what_was_imported_before_the_broker_came_arrives_when_it_is_there(
    daemon: Callable[..., Daemon],
    library: Callable[..., Path],
    recorder: Callable[..., Recorder],
    own_rabbit: Callable[..., RabbitNode],
) -> None:
    root = library(200)
    node = own_rabbit()
    recorded = recorder(node.url())
    node.stop()
    running = daemon(root, args=["--to", node.url()])
    running.start()
    running.wait_until(lambda: running.status()[1]["outbox"]["pending"] == 200, 30, "a full outbox")
    code, status = running.status()
    assert (code, status["broker"]["state"]) == (1, "unavailable")
    node.start()
    recorded.wait_for(200, 60)
    assert_equal_fold(recorded.messages, root)
    running.wait_until(lambda: running.status()[0] == 0, 30, "healthy")


def test_events_wait_for_somebody_to_bind_a_queue(
    daemon: Callable[..., Daemon], library: Callable[..., Path], recorder: Callable[..., Recorder], vhost_url: str
) -> None:
    root = library(20)
    running = daemon(root, args=["--to", vhost_url])
    running.start()
    running.wait_until(lambda: running.status()[1]["broker"]["state"] == "unroutable", 30, "unroutable")
    assert "no queue is bound to file.created" in running.status()[1]["broker"]["reason"]
    recorded = recorder(vhost_url)
    recorded.wait_for(20, 60)
    assert_equal_fold(recorded.messages, root)


def test_a_replay_arrives_again_under_the_old_ids(
    daemon: Callable[..., Daemon], library: Callable[..., Path], recorder: Callable[..., Recorder], vhost_url: str
) -> None:
    root = library(30)
    recorded = recorder(vhost_url)
    running = daemon(root, args=["--to", vhost_url])
    running.start()
    first = recorded.wait_for(30)
    running.wait_until(lambda: running.status()[1]["outbox"]["pending"] == 0)
    dry = running.run("replay", "--sequence", "11-20", "--dry-run")
    assert (dry.returncode, dry.stdout.startswith("10 events")) == (0, True)
    assert running.run("replay", "--sequence", "11-20", "--yes").returncode == 0
    again = recorded.wait_until(lambda messages: len(messages) == 40, 30, "ten doubles")[30:]
    assert [message.message_id for message in again] == [message.message_id for message in first[10:20]]
    assert [message.raw for message in again] == [message.raw for message in first[10:20]]
    assert running.stop() == 0
