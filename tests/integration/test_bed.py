"""The test bed itself: what everything else is judged with must be seen to work, and to fail."""

import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import AMQPConnectionError, ChannelClosedByBroker, ProbableAccessDeniedError

from tests.bed import daemon as daemon_module
from tests.bed import rabbit as rabbit_module
from tests.bed.daemon import Daemon, DaemonError
from tests.bed.proxy import Direction, Frames, Proxy
from tests.bed.rabbit import PortInUseError, Ports, RabbitError, RabbitNode, RabbitNotInstalledError, free_ports
from tests.bed.recorder import NotRecordedError, Recorder, read_json_lines

MakeNode = Callable[..., RabbitNode]
MakeRecorder = Callable[..., Recorder]
MakeDaemon = Callable[..., Daemon]


@contextmanager
def channel_to(url: str) -> Iterator[BlockingChannel]:
    """Give a channel with confirms, for publishing by hand."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def publish(channel: BlockingChannel, *bodies: Any) -> None:
    for body in bodies:
        properties = pika.BasicProperties(delivery_mode=2, message_id="an id", headers={"sequence": 1})
        channel.basic_publish("file_events", "file.created", json.dumps(body).encode(), properties, mandatory=True)


# --- rabbit ---


def test_a_published_message_is_recorded_as_it_was_sent(vhost_url: str, recorder: MakeRecorder) -> None:
    recorded = recorder(vhost_url)
    before_s = time.monotonic()
    with channel_to(vhost_url) as channel:
        publish(channel, {"event_id": "é"})
    (message,) = recorded.wait_for(1)
    assert message.body == {"event_id": "é"}
    assert message.raw == b'{"event_id": "\\u00e9"}'
    assert message.routing_key == "file.created"
    assert (message.message_id, message.delivery_mode, message.headers) == ("an id", 2, {"sequence": 1})
    assert not message.redelivered
    assert before_s < message.arrived_at_s < time.monotonic()
    assert recorded.bodies == [{"event_id": "é"}]


def test_tests_do_not_see_each_others_vhosts(vhost_url: str, recorder: MakeRecorder, rabbit: RabbitNode) -> None:
    rabbit.add_vhost("another, with a / in it")
    other = rabbit.url("another, with a / in it")
    here, there = recorder(vhost_url), recorder(other)
    with channel_to(other) as channel:
        publish(channel, 1)
    there.wait_for(1)
    with channel_to(vhost_url) as channel:
        publish(channel, 2)
    here.wait_for(1)
    assert (here.bodies, there.bodies) == ([2], [1])


def test_a_user_may_do_what_it_was_given_and_no_more(rabbit: RabbitNode, vhost_url: str) -> None:
    rabbit.add_vhost("closed")
    rabbit.add_user("visitor", "a/b@c", vhost="/", permissions="^visitor-")
    with channel_to(rabbit.url(user="visitor", password="a/b@c")) as channel:
        channel.queue_declare("visitor-1")
        with pytest.raises(ChannelClosedByBroker, match="403"):
            channel.queue_declare("other")
    with (
        pytest.raises(ProbableAccessDeniedError),
        channel_to(rabbit.url("closed", user="visitor", password="a/b@c")),
    ):
        pass


def test_the_words_of_rabbitmqctl_are_in_the_error(rabbit: RabbitNode) -> None:
    with pytest.raises(RabbitError, match="no_such_command"):
        rabbit.rabbitmqctl("no_such_command")


@pytest.mark.parametrize("queue_type", ["classic", "quorum"])
def test_a_killed_broker_comes_back_with_its_messages_and_the_recorder_with_it(
    own_rabbit: MakeNode, recorder: MakeRecorder, queue_type: str
) -> None:
    node = own_rabbit()
    consuming = recorder(node.url(), queue_type=queue_type)
    waiting = recorder(node.url(), queue_type=queue_type, consume=False)
    if queue_type == "quorum":
        node.wait_until_registered(consuming.queue)
        node.wait_until_registered(waiting.queue)
    ports = node.ports
    with channel_to(node.url()) as channel:
        publish(channel, *range(20))
        consuming.wait_for(20)
        node.kill()
        with pytest.raises(AMQPConnectionError):
            publish(channel, "nobody will ever see this")
    assert not node.running
    assert not node.greets()
    node.start()
    assert node.ports == ports
    consuming.wait_connected(2)
    assert consuming.troubles
    with channel_to(node.url()) as channel:
        publish(channel, "after")
    waiting.consume()
    assert [message.body for message in waiting.wait_for(21)] == [*range(20), "after"]
    # Acknowledgements that died with the broker are repeated as doubles: only then may there be more.
    messages = consuming.wait_until(lambda messages: messages[-1].body == "after")
    assert {message.body for message in messages} == {*range(20), "after"}
    assert all(message.redelivered for message in messages[20:-1])


def test_a_frozen_broker_accepts_connections_and_does_not_answer(own_rabbit: MakeNode) -> None:
    node = own_rabbit()
    node.freeze()
    assert node.running
    with socket.create_connection(("127.0.0.1", node.port), 5) as connection:
        connection.sendall(b"AMQP\x00\x00\x09\x01")
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert not node.greets()
    node.thaw()
    node.wait_until_ready()
    node.restart()
    assert node.greets()
    node.freeze()
    node.kill()
    assert not node.running


def test_a_closed_node_leaves_no_process(own_rabbit: MakeNode) -> None:
    node = own_rabbit()
    mark = str(node.folder).encode()
    assert len(processes_with(mark)) >= 2
    pid = node.pid
    node.close()
    wait_until(lambda: not processes_with(mark))
    assert pid not in processes_with(mark)
    with pytest.raises(RabbitError, match="not running"):
        node.kill()


def processes_with(mark: bytes) -> list[int]:
    """Return the processes that have something in their environment."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                environment = Path("/proc", entry, "environ").read_bytes()
            except OSError:
                continue
            if mark in environment:
                found.append(int(entry))
    return found


def wait_until(predicate: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.broker
@pytest.mark.parametrize("taken", Ports._fields)
def test_a_node_that_loses_a_port_takes_others_but_only_at_first(tmp_path: Path, taken: str) -> None:
    ports = free_ports()
    node = RabbitNode(tmp_path / "rabbit", ports=ports)
    try:
        with listener(getattr(ports, taken)):
            node.start()
        assert getattr(node.ports, taken) != getattr(ports, taken)
        assert node.greets()
        ports = node.ports
        if taken != "amqp":
            return
        node.stop()
        with listener(ports.amqp), pytest.raises(PortInUseError, match="eaddrinuse"):
            node.start()
        assert node.ports == ports
    finally:
        node.close()


@contextmanager
def listener(port: int) -> Iterator[None]:
    with socket.socket() as taken:
        # The node's own old connections do not count.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        yield


@pytest.mark.broker
def test_a_node_that_fails_otherwise_is_not_tried_again(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path / "rabbit", config="no_such_setting = 1")
    with pytest.raises(RabbitError, match="no_such_setting") as caught:
        node.start()
    assert not isinstance(caught.value, PortInUseError)
    assert not node.running


def test_without_the_server_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbit_module, "SERVER_PLACES", [str(tmp_path / "*")])
    monkeypatch.delenv(rabbit_module.PLACE_VARIABLE, raising=False)
    with pytest.raises(RabbitNotInstalledError, match="apt-get install rabbitmq-server"):
        RabbitNode(tmp_path)


def test_another_place_for_the_server_is_taken_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(rabbit_module.PLACE_VARIABLE, str(tmp_path))
    with pytest.raises(RabbitNotInstalledError):
        RabbitNode(tmp_path)


def test_the_latest_version_is_taken(tmp_path: Path) -> None:
    for name in ("server-3.9.27", "server-3.13.2", "server-3.10.8"):
        (tmp_path / name).mkdir()
    found = [path.name for path in rabbit_module.globbed([f"{tmp_path}/server-*"])]
    assert found == ["server-3.13.2", "server-3.10.8", "server-3.9.27"]


# --- recorder ---


def test_a_wait_for_what_does_not_come_says_what_came(vhost_url: str, recorder: MakeRecorder) -> None:
    recorded = recorder(vhost_url)
    with channel_to(vhost_url) as channel:
        publish(channel, {"event_id": "a"}, {"event_id": "a"})
    recorded.wait_until(lambda messages: len(messages) == 2)
    recorded.wait_for(1)
    with pytest.raises(NotRecordedError, match=r"2 different messages: .* 2 messages, 1 different"):
        recorded.wait_for(2, timeout_s=0.1)


def test_a_recorder_can_take_over_the_queue_of_another(vhost_url: str, recorder: MakeRecorder) -> None:
    first = recorder(vhost_url)
    with channel_to(vhost_url) as channel:
        publish(channel, 1)
        first.wait_for(1)
        first.close()
        publish(channel, 2)
    assert [message.body for message in recorder(vhost_url, queue=first.queue).wait_for(1)] == [2]


def test_what_a_recorder_cannot_heal_is_raised(vhost_url: str, recorder: MakeRecorder) -> None:
    first = recorder(vhost_url)
    with pytest.raises(ChannelClosedByBroker, match="PRECONDITION_FAILED"):
        recorder(vhost_url, queue=first.queue, queue_type="quorum")
    with channel_to(vhost_url) as channel:
        channel.basic_publish("file_events", "file.created", b"not JSON")
    with pytest.raises(json.JSONDecodeError):
        first.wait_for(1)


def test_without_a_broker_a_recorder_gives_up(recorder: MakeRecorder) -> None:
    with pytest.raises(NotRecordedError, match="connected 0 times"):
        recorder(f"amqp://127.0.0.1:{free_ports().amqp}/", timeout_s=0.5)


def test_json_lines_are_read_without_an_unfinished_one(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    content = '{"file_path": "é"}\n2\n{"cut'
    file.write_text(content)
    expected = [{"file_path": "é"}, 2]
    assert read_json_lines(file) == read_json_lines(str(file)) == expected
    assert read_json_lines(io.StringIO(content)) == read_json_lines(io.BytesIO(content.encode())) == expected
    assert read_json_lines(io.StringIO("")) == []
    with pytest.raises(ValueError, match="Expecting"):
        read_json_lines(io.StringIO("{\n{}\n"))


# --- daemon ---

# Behaves as the daemon does towards the bed, with a worker process that survives it.
STAND_IN = r"""#!{python}
import json, os, signal, subprocess, sys, time
command = sys.argv[1]
if command == "status":
    print(json.dumps({{"state": os.environ["TRACKWATCH_STATE_DIR"], "arguments": sys.argv[1:]}}))
    sys.exit(4)
if command == "environment":
    print(json.dumps(dict(os.environ)))
    sys.exit()
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
worker = subprocess.Popen(["sleep", "1000"])
said = {{"event_id": "1", "roots": sys.argv[2:], "worker": worker.pid, "user": os.getuid(),
    "reads": os.access(os.environ.get("SECRET", "/"), os.R_OK)}}
sys.stdout.write(json.dumps(said) + "\n" + '{{"event_id": "to')
sys.stdout.flush()
print(os.environ.get("SAY", "watching 1 root"), file=sys.stderr, flush=True)
if "END" in os.environ:
    sys.exit(int(os.environ["END"]))
while True:
    signal.pause()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "stand-in"
    script.write_text(STAND_IN.format(python="/usr/bin/env python3"))
    script.chmod(0o755)
    monkeypatch.setattr(daemon_module, "SCRIPT", script)
    return script


@pytest.mark.usefixtures("stand_in")
def test_a_daemon_is_started_stopped_and_heard(tmp_path: Path, daemon: MakeDaemon) -> None:
    watched = daemon([tmp_path / "a", b"/\xff"], args=["--to", "-"])
    assert not watched.running
    watched.start()
    first = watched.wait_for_event(lambda event: event["event_id"] == "1")
    assert first["roots"] == ["--to", "-", str(tmp_path / "a"), "/\udcff"]
    assert len(watched.events()) == 1  # and half a line
    assert "watching 1 root" in watched.stderr()
    with pytest.raises(DaemonError, match="runs already"):
        watched.start()
    assert watched.stop() == 0
    watched.start()
    assert len(watched.events()) == 2  # of both starts
    watched.kill()
    assert watched.exit_code == -signal.SIGKILL


@pytest.mark.usefixtures("stand_in")
def test_a_daemons_processes_are_frozen_with_it_and_killed_after_it(tmp_path: Path, daemon: MakeDaemon) -> None:
    watched = daemon(tmp_path)
    watched.start()
    worker = watched.wait_for_event(lambda _: True)["worker"]
    assert watched.descendants() == [worker]
    watched.freeze()
    wait_until(lambda: process_state(watched.pid) == process_state(worker) == "T")
    watched.thaw()
    wait_until(lambda: process_state(watched.pid) == process_state(worker) == "S")
    watched.kill()
    assert watched.descendants() == [worker]
    watched.start()
    assert len(watched.descendants()) == 2
    watched.close()
    wait_until(lambda: watched.descendants() == [])


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize(
    ("said", "ready"),
    [
        ("watching 2 roots", True),
        ("\x1b[32mwatching\x1b[0m 2 roots", True),
        ('{"event": "watching", "roots": 2}', True),
        ("not watching", False),
        ('{"event": "starting", "path": "watching"}', False),
        ("", False),
    ],
)
def test_readiness_is_what_it_says(tmp_path: Path, daemon: MakeDaemon, said: str, ready: bool) -> None:
    watched = daemon(tmp_path, env={"SAY": said})
    watched.start(wait=False)
    watched.wait_until(lambda: watched.stderr().endswith("\n"))
    assert watched.is_ready() is ready


@pytest.mark.usefixtures("stand_in")
def test_a_failed_wait_shows_what_the_daemon_said_last(tmp_path: Path, daemon: MakeDaemon) -> None:
    silent = daemon(tmp_path, env={"SAY": "looking for the key"})
    with pytest.raises(DaemonError, match=r"waited for to be watching(?s:.*)looking for the key"):
        silent.start(timeout_s=0.5)
    with pytest.raises(DaemonError, match="looking for the key"):
        silent.wait_for_exit(0.1)
    dead = daemon(tmp_path, env={"SAY": "no key", "END": "3"})
    with pytest.raises(DaemonError, match=r"has ended(?s:.*)exit code 3(?s:.*)no key"):
        dead.start()
    assert dead.wait_for_exit() == dead.exit_code == 3
    with pytest.raises(DaemonError, match="is not running"):
        dead.kill()
    assert [event["event_id"] for event in dead.events()] == ["1"]


@pytest.mark.usefixtures("stand_in")
def test_commands_run_beside_the_daemon_on_its_state(
    tmp_path: Path, daemon: MakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = daemon(tmp_path, tmp_path / "state", env={"INSTANCE_ID": "here"})
    assert watched.status() == (4, {"state": str(tmp_path / "state"), "arguments": ["status", "--json"]})
    monkeypatch.setenv("RABBITMQ_URL", "amqp://elsewhere")
    monkeypatch.setenv("COVERAGE_PROCESS_START", "")
    environment = json.loads(watched.run("environment").stdout)
    assert "RABBITMQ_URL" not in environment
    assert environment["INSTANCE_ID"] == "here"
    assert environment["HOME"].startswith(str(tmp_path))
    assert "COVERAGE_PROCESS_START" in environment
    with pytest.raises(DaemonError, match="INSTANCE_ID"):
        daemon_printing_no_status(watched)


def daemon_printing_no_status(watched: Daemon) -> None:
    daemon_module.SCRIPT.write_text('#!/bin/sh\necho "the INSTANCE_ID is wrong" >&2\nexit 2\n')
    watched.status()


@pytest.mark.usefixtures("stand_in")
@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a daemon as somebody else")
def test_a_daemon_can_run_as_another_user(public_path: Path, daemon: MakeDaemon, stand_in: Path) -> None:
    script = public_path / stand_in.name
    script.write_text(stand_in.read_text())
    script.chmod(0o755)
    daemon_module.SCRIPT = script  # put back by the fixture's monkeypatch
    watched = daemon(public_path, public_path / "state", user=65534)
    watched.start()
    assert watched.wait_for_event(lambda _: True)["user"] == 65534
    assert (public_path / "state").stat().st_uid == 65534
    assert watched.stop() == 0


@pytest.mark.usefixtures("stand_in")
def test_permissions_mean_something_to_an_unprivileged_daemon(tmp_path: Path, daemon: MakeDaemon) -> None:
    secret = tmp_path / "secret.mp3"
    secret.touch(mode=0)
    watched = daemon(tmp_path, env={"SECRET": str(secret)}, unprivileged=True)
    watched.start()
    assert watched.wait_for_event(lambda _: True)["reads"] is False
    assert watched.stop() == 0
    secret.chmod(0o400)
    watched.start()
    watched.wait_until(lambda: len(watched.events()) == 2)
    assert watched.events()[1]["reads"] is True
    watched.kill()


# --- library ---


def test_a_library_is_made_of_different_files(library: Callable[..., Path]) -> None:
    from tests.bed.fold import library as on_disk

    music = library(20)
    assert len(set(on_disk(music).values())) == 20
    assert len(on_disk([music, library(3, name="more", seed=1)])) == 23


# --- proxy ---

GREETING = b"AMQP\x00\x00\x09\x01"


def frame(payload: bytes) -> bytes:
    return Frames.HEADER.pack(1, 0, len(payload)) + payload + b"\xce"


class Line:
    """A proxy between a client and a server, which are both ours."""

    def __init__(self, proxy: Proxy, server: socket.socket) -> None:
        self.proxy = proxy
        self._server = server

    @contextmanager
    def connected(self) -> Iterator[tuple[socket.socket, socket.socket]]:
        """Give both ends of a connection through the proxy."""
        with socket.create_connection(("127.0.0.1", self.proxy.port), 10) as client:
            broker, _ = self._server.accept()
            with broker:
                broker.settimeout(10)
                yield client, broker


@pytest.fixture
def line() -> Iterator[Line]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        with Proxy(server.getsockname()[1], free_ports().amqp) as proxy:
            yield Line(proxy, server)


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the other end says that it was all."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))


def has_ended(connection: socket.socket) -> bool:
    """Return whether the other end has gone, once something is known of it."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def test_a_proxy_passes_every_byte_both_ways_and_the_end(line: Line) -> None:
    with line.connected() as (client, broker):
        sent = bytes(range(256)) * 4000
        client.sendall(b"ping")
        assert broker.recv(4) == b"ping"
        broker.sendall(b"pong")
        assert client.recv(4) == b"pong"
        sender = threading.Thread(target=client.sendall, args=(sent,))
        sender.start()
        got = b""
        while len(got) < len(sent):
            got += broker.recv(1 << 16)
        assert got == sent
        sender.join()
        client.shutdown(socket.SHUT_WR)
        assert received(broker) == b""


def test_a_proxy_that_refuses_ends_connections_and_takes_none_until_it_lets_pass(line: Line) -> None:
    with line.connected() as (client, broker):
        line.proxy.refuse()
        assert has_ended(client)
        assert has_ended(broker)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", line.proxy.port), 10)
    line.proxy.let_pass()
    with line.connected() as (client, broker):
        client.sendall(b"again")
        assert broker.recv(5) == b"again"


def test_a_proxy_in_front_of_nobody_takes_nobody(line: Line) -> None:
    with Proxy(free_ports().amqp) as proxy:
        try:
            client = socket.create_connection(("127.0.0.1", proxy.port), 10)
        except ConnectionResetError:
            return  # it has ended before we knew that it had begun
        with client:
            assert has_ended(client)


def test_what_a_stalled_proxy_keeps_arrives_when_it_lets_pass(line: Line) -> None:
    with line.connected() as (client, broker):
        line.proxy.stall(frozenset({Direction.UP}))
        client.sendall(b"kept")
        broker.sendall(b"the other way")
        assert client.recv(13) == b"the other way"
        broker.settimeout(0.2)
        with pytest.raises(TimeoutError):
            broker.recv(1)
        broker.settimeout(10)
        line.proxy.let_pass()
        assert broker.recv(4) == b"kept"


def test_a_proxy_cuts_a_connection_within_a_frame(line: Line) -> None:
    with line.connected() as (client, broker):
        client.sendall(GREETING)
        assert broker.recv(8) == GREETING
        line.proxy.cut_mid_frame(Direction.UP)
        client.sendall(frame(b"x" * 100))
        part = received(broker)
        assert 0 < len(part) < len(frame(b"x" * 100))
        assert frame(b"x" * 100).startswith(part)
        assert line.proxy.wait_for_cut(1, 10)
        assert has_ended(client)


def test_a_slow_proxy_passes_everything_in_small_pieces(line: Line) -> None:
    with line.connected() as (client, broker):
        line.proxy.slow_down(bytes_per_s=5000)
        client.sendall(b"x" * 1000)
        first = broker.recv(1000)
        assert len(first) < 1000
        client.shutdown(socket.SHUT_WR)
        assert len(first + received(broker)) == 1000


@pytest.mark.parametrize("step", [1, 3, 7, 8, 9, 1000])
def test_the_proxy_knows_where_frames_end_however_their_bytes_come(step: int) -> None:
    stream = GREETING + frame(b"") + frame(b"abc") + frame(b"x" * 20)
    ends = {len(GREETING), len(GREETING) + 8, len(GREETING) + 19, len(stream)}
    frames = Frames(Direction.UP)
    for position in range(0, len(stream), step):
        cut = frames.middle(stream[position : position + step])
        assert cut is None or position + cut not in ends
        frames.feed(stream[position : position + step])
        assert frames.inside == (min(position + step, len(stream)) not in ends)
