"""The AMQP sink against a real broker: properties, refusals, losses, alarms. The common contract is in test_sinks."""

import itertools
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import pika
import pytest
import trio
import trio.testing

from tests.bed.rabbit import RabbitNode, free_ports
from tests.sink_suite import AT_US, PATIENCE_S, rows
from trackwatch.amqp import CLOSE_S, Broker, open_amqp
from trackwatch.errors import BrokerRefused, BrokerUnavailable
from trackwatch.event import CONFIRMED, EventType, Outcome, Outgoing, Verdict
from trackwatch.publisher import Sink

pytestmark = pytest.mark.broker


@pytest.fixture
def queue(vhost_url: str) -> Iterator[Any]:
    """A channel of another AMQP implementation, with the queue "all" bound to everything."""
    with pika.BlockingConnection(pika.URLParameters(vhost_url)) as connection:
        channel = connection.channel()
        bind(channel)
        yield channel


class Victim(NamedTuple):
    """A broker to kill, freeze and alarm, and the URL of a vhost with the queue "all" bound to everything."""

    node: RabbitNode
    url: str


@pytest.fixture(scope="module")
def victim_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """One for the module: a start takes five seconds, and every test leaves it running."""
    with RabbitNode(tmp_path_factory.mktemp("victim")) as node:
        yield node


@pytest.fixture
def victim(victim_node: RabbitNode, request: pytest.FixtureRequest) -> Iterator[Victim]:
    """The broker that a test may maltreat, in good health again afterwards."""
    vhost = request.node.name
    victim_node.add_vhost(vhost)
    url = victim_node.url(vhost)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        bind(connection.channel())
    yield Victim(victim_node, url)
    if victim_node.running:
        victim_node.thaw()
    else:
        victim_node.start()


def bind(channel: Any, queue: str = "all", arguments: dict[str, object] | None = None) -> None:
    channel.exchange_declare("file_events", "topic", durable=True)
    channel.queue_declare(queue, durable=True, arguments=arguments)
    channel.queue_bind(queue, "file_events", "file.*")


def drain(channel: Any) -> list[bytes]:
    """Take all that is in the queue; what was confirmed before is."""
    left = channel.queue_declare("all", passive=True).method.message_count
    taken = [body for _, _, body in itertools.islice(channel.consume("all", auto_ack=True), left)] if left else []
    channel.cancel()
    return taken


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so that nobody announces."""
    with trio.fail_after(PATIENCE_S):
        while True:
            if condition():
                return
            await trio.sleep(0.01)


async def publish(url: str, batch: list[Outgoing], *, instance_id: str = "tests") -> dict[int, Outcome]:
    """Publish one batch in a session of its own."""
    outcomes: dict[int, Outcome] = {}
    async with open_amqp(Broker(url), instance_id=instance_id) as sink:
        await sink.publish(batch, outcomes)
    return outcomes


async def refusal(broker: Broker) -> str:
    """Return why the broker refuses us; the words never hold the password, nor does what caused them."""
    with pytest.raises(BrokerRefused) as caught:
        async with open_amqp(broker, instance_id="tests"):
            pass
    message = str(caught.value)
    assert "\n" not in message
    password = urlsplit(broker.url).password
    if password and password != "guest":
        error: BaseException | None = caught.value
        while error is not None:
            assert password not in repr(error)
            error = error.__cause__
    return message


# --- messages ---


async def test_a_message_has_the_properties_of_the_contract(vhost_url: str, queue: Any) -> None:
    """What consumers see besides the body."""
    (row,) = rows(1)
    assert await publish(vhost_url, [row], instance_id="here") == {1: CONFIRMED}
    method, properties, body = queue.basic_get("all", auto_ack=True)
    assert body == row.payload
    assert method.exchange == "file_events"
    assert method.routing_key == properties.type == f"file.{row.event_type}"
    assert properties.message_id == str(row.event_id)
    assert properties.app_id == "trackwatch"
    assert properties.timestamp == AT_US // 1_000_000
    assert properties.content_type == "application/json"
    assert properties.delivery_mode == 2
    assert properties.headers == {"instance_id": "here", "sequence": 1, "schema_version": 1}


async def test_each_kind_of_event_has_its_routing_key(vhost_url: str, queue: Any) -> None:
    """Consumers bind to the kinds they want."""
    await publish(vhost_url, rows(len(EventType)))
    keys = {queue.basic_get("all", auto_ack=True)[0].routing_key for _ in EventType}
    assert keys == {"file.created", "file.modified", "file.deleted", "file.moved", "file.renamed"}


async def test_the_exchange_is_durable_and_the_connection_has_a_name(rabbit: RabbitNode, vhost_url: str) -> None:
    """An operator finds our connection among others, and the exchange after a restart."""
    async with open_amqp(Broker(vhost_url), instance_id="cellar"):
        run = partial(rabbit.rabbitmqctl, "list_connections", "client_properties")
        assert "trackwatch cellar" in await trio.to_thread.run_sync(run)
    vhost = urlsplit(vhost_url).path.removeprefix("/")
    run = partial(rabbit.rabbitmqctl, "-p", vhost, "list_exchanges", "name", "type", "durable")
    listed = await trio.to_thread.run_sync(run)
    assert "file_events\ttopic\ttrue" in listed


# --- outcomes ---


async def test_an_unroutable_event_says_what_is_missing(vhost_url: str, queue: Any) -> None:
    """Rows that do have a queue are confirmed beside it."""
    queue.queue_unbind("all", "file_events", "file.*")
    queue.queue_bind("all", "file_events", "file.deleted")
    batch = rows(20)
    outcomes = await publish(vhost_url, batch)
    for row in batch:
        missing = Outcome(Verdict.UNROUTABLE, f"no queue is bound to file.{row.event_type}")
        assert outcomes[row.sequence] == (CONFIRMED if row.event_type is EventType.DELETED else missing)


async def test_a_full_queue_rejects_and_the_session_goes_on(vhost_url: str, queue: Any) -> None:
    """A nack says "not now", of one row."""
    bind(queue, "small", {"x-max-length": 2, "x-overflow": "reject-publish"})
    outcomes: dict[int, Outcome] = {}
    async with open_amqp(Broker(vhost_url), instance_id="tests") as sink:
        for row in rows(5):  # one by one: the queue counts a batch when it likes
            await sink.publish([row], outcomes)
        verdicts = [outcomes[sequence].verdict for sequence in sorted(outcomes)]
        assert verdicts[:2] == [Verdict.CONFIRMED] * 2
        assert verdicts[-1] is Verdict.REJECTED
        assert outcomes[5].reason
        queue.queue_purge("small")
        await sink.publish(rows(1, start=6), outcomes)
    assert outcomes[6] == CONFIRMED


async def test_a_poison_row_does_not_hold_up_the_others(vhost_url: str, queue: Any) -> None:
    """What cannot be put into a message is named as such, with the reason, and costs the session nothing."""
    batch = rows(9)
    batch[2] = poisoned(batch[2], sequence=1 << 70)  # no AMQP integer
    batch[4] = poisoned(batch[4], at_us=-1_000_000)  # before AMQP's time
    batch[6] = poisoned(batch[6], at_us=1 << 70)  # after Python's
    batch[8] = poisoned(batch[8], payload="text")  # not bytes
    outcomes = await publish(vhost_url, batch)
    for index, row in enumerate(batch):
        expected = Verdict.UNSENDABLE if index in (2, 4, 6, 8) else Verdict.CONFIRMED
        assert outcomes[row.sequence].verdict is expected, row
        assert bool(outcomes[row.sequence].reason) is (expected is Verdict.UNSENDABLE)
    assert drain(queue) == [batch[index].payload for index in (0, 1, 3, 5, 7)]


def poisoned(row: Outgoing, **changes: Any) -> Outgoing:
    fields = {name: getattr(row, name) for name in Outgoing.__slots__}
    return Outgoing(**{**fields, **changes})


async def test_an_id_is_never_in_flight_twice(vhost_url: str, queue: Any) -> None:
    """The second sending of an event within a batch gets no outcome, and is for the next one."""
    batch = rows(4)
    batch[2] = poisoned(batch[2], event_id=batch[0].event_id)
    outcomes: dict[int, Outcome] = {}
    async with open_amqp(Broker(vhost_url), instance_id="tests") as sink:
        await sink.publish(batch, outcomes)
        assert sorted(outcomes) == [1, 2, 4]
        await sink.publish([batch[2]], outcomes)
    assert outcomes == dict.fromkeys((1, 2, 3, 4), CONFIRMED)
    order = [queue.basic_get("all", auto_ack=True)[1].headers["sequence"] for _ in batch]
    assert order == [1, 2, 4, 3]


# --- refusals: a person must act ---


@pytest.mark.parametrize(
    ("url", "display"),
    [
        ("amqp://guest:secret@rabbit:5672/music", "amqp://guest@rabbit:5672/music"),
        ("amqps://guest:secret@[::1]/", "amqps://guest@[::1]/"),
        ("amqp://guest:se@cr/et@rabbit/?heartbeat=5", "amqp://guest@rabbit/"),
        ("amqp://:secret@rabbit", "amqp://@rabbit"),
        ("amqp://rabbit:5672", "amqp://rabbit:5672"),
        ("guest:secret@rabbit", "(not an AMQP URL)"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, display: str) -> None:
    """Also one that is not well encoded."""
    assert Broker(url).display == display
    assert "secret" not in repr(Broker(url))


async def test_a_wrong_password_is_refused_without_being_shown(rabbit: RabbitNode) -> None:
    """The remedy names the settings; the password is in no word and no cause."""
    broker = Broker(rabbit.url(password="tr0ub4dor"))
    message = await refusal(broker)
    assert "user name or password refused; check RABBITMQ_USER and RABBITMQ_PASS" in message
    assert "amqp://guest@127.0.0.1" in message
    assert "tr0ub4dor" not in repr(broker)


async def test_a_missing_vhost_is_refused(rabbit: RabbitNode) -> None:
    """The broker's own words come through."""
    message = await refusal(Broker(rabbit.url("nowhere")))
    assert "vhost nowhere not found; create it" in message


async def test_a_forbidden_vhost_is_refused(rabbit: RabbitNode, vhost_url: str) -> None:
    """A user without permissions on the vhost is told so."""
    vhost = urlsplit(vhost_url).path.removeprefix("/")
    user = f"stranger-{vhost}"
    await trio.to_thread.run_sync(partial(rabbit.add_user, user, "s3cr3t"))
    message = await refusal(Broker(rabbit.url(vhost, user=user, password="s3cr3t")))
    assert "refused for user" in message
    assert "permissions" in message


async def test_a_user_who_may_not_use_the_exchange_is_refused(rabbit: RabbitNode, vhost_url: str) -> None:
    """The permission is missing on the exchange alone."""
    vhost = urlsplit(vhost_url).path.removeprefix("/")
    user = f"reader-{vhost}"
    await trio.to_thread.run_sync(partial(rabbit.add_user, user, "s3cr3t", vhost=vhost, permissions="^other$"))
    message = await refusal(Broker(rabbit.url(vhost, user=user, password="s3cr3t")))
    assert "use the exchange 'file_events'" in message
    assert "give the user permission to configure and write it" in message


async def test_an_exchange_of_another_type_is_refused(vhost_url: str, queue: Any) -> None:
    """We do not touch what somebody else made."""
    queue.exchange_declare("others", "fanout")
    message = await refusal(Broker(vhost_url, exchange="others"))
    assert "declare the exchange 'others'" in message
    assert "RABBITMQ_EXCHANGE" in message


@pytest.mark.parametrize(
    "url",
    [
        "amqp://guest:pass/word@127.0.0.1:5672/",
        "amqp://guest:secret@127.0.0.1:99999/",
        "http://guest:secret@127.0.0.1/",
        "guest:secret@127.0.0.1",
        "guest:secret",
        "amqp://guest:secret",
        "amqp://guest:sec@ret:secret",
        "",
    ],
)
async def test_a_url_that_is_none_is_refused_without_its_password(url: str) -> None:
    """Whatever is wrong with it, no piece of the password is shown."""
    with pytest.raises(BrokerRefused, match="percent-encode") as caught:
        async with open_amqp(Broker(url), instance_id="tests"):
            pass
    assert "pass" not in str(caught.value).replace("user:password", "")
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_something_else_than_a_broker_is_refused() -> None:
    """A port that answers in another language."""
    async with serving(lambda stream: stream.send_all(b"AMQP\x00\x01\x00\x00")) as port:
        message = await refusal(Broker(f"amqp://guest:guest@127.0.0.1:{port}/"))
    assert "no AMQP 0-9-1 broker; check host and port" in message


# --- TLS ---


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for localhost that nobody has signed, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert)
    subprocess.run([*command, *subject], check=True, capture_output=True)
    return cert, key


@asynccontextmanager
async def serving(serve: Callable[[trio.SocketStream], Any]) -> AsyncIterator[int]:
    """Serve each connection on a port of its own; what a client does to it is no error of the server."""

    async def answer(stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await serve(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, answer, [listener])
        yield listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


def server_context(certificate: tuple[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    return context


def tls_front(certificate: tuple[str, str], backend_port: int) -> Callable[[trio.SocketStream], Any]:
    """Return what serves TLS in front of a plain broker."""

    async def copy(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, scope: trio.CancelScope) -> None:
        async for data in source:
            await sink.send_all(data)
        scope.cancel()

    async def serve(stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, server_context(certificate), server_side=True, https_compatible=True)
        try:
            async with await trio.open_tcp_stream("127.0.0.1", backend_port) as backend, trio.open_nursery() as nursery:
                nursery.start_soon(copy, backend, secure, nursery.cancel_scope)
                nursery.start_soon(copy, secure, backend, nursery.cancel_scope)
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # a client that does not like the certificate

    return serve


async def test_tls_with_a_trusted_authority_works(
    rabbit: RabbitNode, vhost_url: str, queue: Any, certificate: tuple[str, str]
) -> None:
    """The same contract over amqps."""
    async with serving(tls_front(certificate, rabbit.port)) as port:
        url = f"amqps://guest:guest@localhost:{port}{urlsplit(vhost_url).path}"
        outcomes: dict[int, Outcome] = {}
        async with open_amqp(Broker(url, ca_file=certificate[0]), instance_id="tests") as sink:
            await sink.publish(rows(100), outcomes)
    assert set(outcomes.values()) == {CONFIRMED}
    assert len(outcomes) == 100


def sign(folder: Path, name: str, authority: tuple[str, str]) -> tuple[str, str]:
    """Return a certificate that an authority has signed, and its key."""
    cert, key, request, names = (str(folder / f"{name}.{suffix}") for suffix in ("pem", "key", "csr", "ext"))
    Path(names).write_text("subjectAltName=DNS:localhost\n")
    for command in (
        ("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}"),
        (*("openssl", "x509", "-req", "-in", request, "-CA", authority[0], "-CAkey", authority[1]),
         *("-CAcreateserial", "-days", "2", "-extfile", names, "-out", cert)),
    ):  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
    return cert, key


async def test_a_broker_that_wants_to_know_who_we_are_is_shown_our_certificate(
    tmp_path: Path, certificate: tuple[str, str]
) -> None:
    """RabbitMQ's own TLS listener, which refuses who has none that its authority has signed."""
    server, ours = sign(tmp_path, "localhost", certificate), sign(tmp_path, "trackwatch", certificate)
    port = free_ports().amqp
    options = {
        "cacertfile": certificate[0],
        "certfile": server[0],
        "keyfile": server[1],
        "verify": "verify_peer",
        "fail_if_no_peer_cert": "true",
    }
    lines = [f"listeners.ssl.1 = 127.0.0.1:{port}", *(f"ssl_options.{name} = {at}" for name, at in options.items())]
    with RabbitNode(tmp_path / "node", config="\n".join(lines)) as node:
        with pika.BlockingConnection(pika.URLParameters(node.url())) as connection:
            bind(connection.channel())
        url = f"amqps://guest:guest@localhost:{port}/"
        outcomes: dict[int, Outcome] = {}
        with_ours = Broker(url, ca_file=certificate[0], cert_file=ours[0], key_file=ours[1])
        async with open_amqp(with_ours, instance_id="tests") as sink:
            await sink.publish(rows(3), outcomes)
        assert list(outcomes.values()) == [CONFIRMED] * 3
        with pytest.raises((BrokerRefused, BrokerUnavailable), match="RABBITMQ_CERT_FILE"):
            async with open_amqp(Broker(url, ca_file=certificate[0]), instance_id="tests"):
                pass


@pytest.mark.parametrize(
    ("host", "trusted", "reason"),
    [("localhost", False, "self-signed certificate"), ("127.0.0.1", True, "ip address mismatch")],
)
async def test_a_certificate_that_proves_nothing_is_refused(
    rabbit: RabbitNode, certificate: tuple[str, str], host: str, trusted: bool, reason: str
) -> None:
    """Unknown authority, or issued to another name."""
    async with serving(tls_front(certificate, rabbit.port)) as port:
        ca_file = certificate[0] if trusted else None
        message = await refusal(Broker(f"amqps://guest:guest@{host}:{port}/", ca_file=ca_file))
    assert reason in message.replace("self signed", "self-signed")
    assert "RABBITMQ_CA_FILE" in message


async def test_who_takes_connections_only_to_hang_up_is_a_broker_that_is_away() -> None:
    """As port forwarders and load balancers do that have nobody behind them; some find out before we have begun."""

    async def hang_up(_stream: trio.SocketStream) -> None:
        pass  # whoever serves closes it

    async with serving(hang_up) as port:
        for _ in range(20):
            with pytest.raises(BrokerUnavailable, match=r"connection lost, the other side|connection reset"):
                async with open_amqp(Broker(f"amqp://guest:guest@127.0.0.1:{port}/"), instance_id="tests"):
                    pass


async def test_tls_at_a_plain_port_is_refused(rabbit: RabbitNode) -> None:
    """Both ports look alike to a person."""
    message = await refusal(Broker(rabbit.url().replace("amqp:", "amqps:")))
    assert "this is the TLS port" in message


async def test_a_missing_certificate_file_is_refused(rabbit: RabbitNode, tmp_path: Path) -> None:
    """The file is named."""
    absent = str(tmp_path / "absent.pem")
    message = await refusal(Broker(rabbit.url().replace("amqp:", "amqps:"), ca_file=absent))
    assert repr(absent) in message


# --- losses: it heals by itself ---


async def test_a_closed_port_is_a_broker_that_is_away() -> None:
    """The cause is named."""
    with socket.socket() as held:  # bound but not listening: nobody else can listen there meanwhile
        held.bind(("127.0.0.1", 0))
        with pytest.raises(BrokerUnavailable, match="connection refused") as caught:
            await publish(f"amqp://guest:{quote('s3cr3t')}@127.0.0.1:{held.getsockname()[1]}/", rows(1))
    assert "s3cr3t" not in str(caught.value)


async def test_a_name_that_is_not_known_is_a_broker_that_is_away() -> None:
    """In a container network the name appears with its container."""
    with pytest.raises(BrokerUnavailable, match=r"connect to amqp://guest@nowhere\.invalid/"):
        await publish("amqp://guest:guest@nowhere.invalid/", rows(1))


async def test_a_port_that_hangs_up_is_a_broker_that_is_away() -> None:
    """As a proxy does in front of a broker that is down."""
    async with serving(lambda stream: stream.receive_some(1)) as port:
        with pytest.raises(BrokerUnavailable, match="connection lost"):
            await publish(f"amqp://guest:guest@127.0.0.1:{port}/", rows(1))


@pytest.mark.parametrize(("scheme", "greets"), [("amqp", False), ("amqps", False), ("amqps", True)])
async def test_a_port_that_says_nothing_can_be_left_at_once(
    certificate: tuple[str, str], scheme: str, greets: bool
) -> None:
    """Cancelling the opening waits for nobody, not even for TLS's goodbye."""

    async def say_nothing(stream: trio.SocketStream) -> None:
        if greets:
            await trio.SSLStream(stream, server_context(certificate), server_side=True).do_handshake()
        await trio.sleep_forever()

    async with serving(say_nothing) as port:
        broker = Broker(f"{scheme}://guest:guest@localhost:{port}/", ca_file=certificate[0])
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(open_amqp(broker, instance_id="tests").__aenter__)
                await trio.testing.wait_all_tasks_blocked(0.2)
                scope.cancel()
                cancelled_at = trio.current_time()
        assert trio.current_time() - cancelled_at < CLOSE_S  # nobody has waited for a handshake


async def test_a_killed_broker_loses_the_session_and_nothing_else(victim: Victim) -> None:
    """kill -9 in mid-batch: what was confirmed stays so, both tasks learn of it, and no BaseException gets out."""

    class Fatal(dict[int, Outcome]):
        """Outcomes the first of which kill the broker: whoever looked now and then could be too late."""

        def setdefault(self, sequence: int, outcome: Outcome) -> Outcome:
            if len(self) == 50:
                victim.node.kill()
            return super().setdefault(sequence, outcome)

    victim.node.flush_topology()  # or the binding may be gone with the broker
    outcomes = Fatal()
    batch = rows(15_000)
    seen: list[str] = []

    async def watch(sink: Sink) -> None:
        try:
            await sink.wait_lost()
        except BrokerUnavailable as error:
            seen.append(f"watch: {error}")

    async def send(sink: Sink) -> None:
        try:
            await sink.publish(batch, outcomes)
        except BrokerUnavailable as error:
            seen.append(f"publish: {error}")

    async with open_amqp(Broker(victim.url), instance_id="tests") as sink:
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch, sink)
                nursery.start_soon(send, sink)
                await until(lambda: len(outcomes) > 50)
                killed_at = trio.current_time()
        assert trio.current_time() - killed_at < 5
        assert {words.partition(":")[0] for words in seen} == {"watch", "publish"}
        assert 50 < len(outcomes) < len(batch)
        with pytest.raises(BrokerUnavailable, match="connection lost"):  # a lost session stays lost
            await sink.publish(rows(1), {})
    assert set(outcomes.values()) == {CONFIRMED}

    victim.node.start()
    told = await publish(victim.url, [row for row in batch if row.sequence not in outcomes])
    assert set(told.values()) == {CONFIRMED}, victim.node.log()[-5000:]
    assert len(outcomes) + len(told) == len(batch)
    with pika.BlockingConnection(pika.URLParameters(victim.url)) as connection:
        arrived = drain(connection.channel())
    assert list(dict.fromkeys(arrived)) == [row.payload for row in batch]


async def test_a_stopped_broker_says_why(victim: Victim) -> None:
    """An orderly stop comes through in the broker's words."""
    async with open_amqp(Broker(victim.url), instance_id="tests") as sink:
        await trio.to_thread.run_sync(victim.node.stop)
        with trio.fail_after(PATIENCE_S), pytest.raises(BrokerUnavailable, match="CONNECTION_FORCED"):
            await sink.wait_lost()


async def test_a_frozen_broker_can_be_left_at_once(victim: Victim) -> None:
    """SIGSTOP: cancelling reaches publish and open within a second, and thawed, the broker serves the next session."""
    batch = rows(200, payload=lambda sequence: b'{"sequence":%d,"padding":"%s"}' % (sequence, b"x" * 100_000))
    outcomes: dict[int, Outcome] = {}
    try:
        with trio.CancelScope() as scope:
            async with open_amqp(Broker(victim.url), instance_id="tests") as sink, trio.open_nursery() as nursery:
                await sink.publish(batch[:10], outcomes)
                victim.node.freeze()
                nursery.start_soon(sink.publish, batch[10:], outcomes)  # 19 MB: more than the kernel buffers
                await trio.testing.wait_all_tasks_blocked(0.2)
                scope.cancel()
                cancelled_at = trio.current_time()
        assert trio.current_time() - cancelled_at < CLOSE_S  # nobody has waited for a handshake
        assert sorted(outcomes) == list(range(1, 11))

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish, victim.url, batch[:1])
                await trio.testing.wait_all_tasks_blocked(0.2)
                scope.cancel()
                cancelled_at = trio.current_time()
        assert trio.current_time() - cancelled_at < CLOSE_S  # nobody has waited for a handshake
    finally:
        victim.node.thaw()
    assert len(await publish(victim.url, batch[10:])) == 190


async def test_a_silent_broker_is_given_up_after_the_confirm_deadline(
    victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is confirmed in time: the session is lost, its rows are for the next one."""
    monkeypatch.setattr("trackwatch.amqp.CONFIRM_S", 0.5)
    try:
        async with open_amqp(Broker(victim.url), instance_id="tests") as sink:
            victim.node.freeze()
            outcomes: dict[int, Outcome] = {}
            with pytest.raises(BrokerUnavailable, match=r"no confirm within 0\.5 s"):
                await sink.publish(rows(5), outcomes)
            with pytest.raises(BrokerUnavailable, match=r"no confirm within 0\.5 s"):
                await sink.wait_lost()
    finally:
        victim.node.thaw()
    assert outcomes == {}


async def test_missed_heartbeats_lose_the_session(victim: Victim) -> None:
    """aiormq cancels its own futures then: the asyncio.CancelledError must not reach Trio."""
    try:
        async with open_amqp(Broker(victim.url, heartbeat_s=1), instance_id="tests") as sink:
            victim.node.freeze()
            with trio.fail_after(PATIENCE_S), pytest.raises(BrokerUnavailable):
                await sink.publish(rows(50), {})
            with pytest.raises(BrokerUnavailable):
                await sink.wait_lost()
    finally:
        victim.node.thaw()


async def test_an_alarm_is_shown_and_waited_for(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is short of memory blocks publishers: that takes as long as it takes, and costs no session."""
    monkeypatch.setattr("trackwatch.amqp.CONFIRM_S", 1.0)
    batch = rows(20)
    outcomes: dict[int, Outcome] = {}

    async def watermark(value: str) -> None:
        await trio.to_thread.run_sync(partial(victim.node.rabbitmqctl, "set_vm_memory_high_watermark", value))

    async with open_amqp(Broker(victim.url), instance_id="tests") as sink:
        await sink.publish(batch[:1], outcomes)
        async with trio.open_nursery() as nursery:
            try:
                await watermark("0.0000001")
                nursery.start_soon(sink.publish, batch[1:], outcomes)
                await until(lambda: sink.blocked)
                reason = sink.blocked
                assert reason == "low on memory"
                await trio.sleep(1.5)  # the point: longer than the deadline of a batch
                assert len(outcomes) == 1
            finally:
                with trio.CancelScope(shield=True):
                    await watermark("0.4")
        assert sink.blocked is None
        await sink.publish(rows(1, start=21), outcomes)
    assert len(outcomes) == 21
    assert set(outcomes.values()) == {CONFIRMED}


async def test_a_row_that_is_larger_than_the_broker_takes_is_unsendable(
    victim: Victim, request: pytest.FixtureRequest
) -> None:
    """The broker closes the channel over it each time it comes: named, it can be parked, and the rest goes on."""
    request.addfinalizer(partial(limit_messages, victim.node, 128 * 1024 * 1024))
    await trio.to_thread.run_sync(limit_messages, victim.node, 5000)
    batch = rows(5, payload=lambda sequence: b'{"sequence":%d,"padding":"%s"}' % (sequence, b"x" * 200))
    batch[3] = poisoned(batch[3], payload=b'"%s"' % (b"x" * 6000))
    outcomes: dict[int, Outcome] = {}
    async with open_amqp(Broker(victim.url), instance_id="tests") as sink:
        with pytest.raises(BrokerUnavailable, match="message size 6002 is larger"):
            await sink.publish(batch, outcomes)
    assert outcomes[4].verdict is Verdict.UNSENDABLE
    outcomes |= await publish(victim.url, [row for row in batch if row.sequence not in outcomes])
    assert [outcomes[sequence].verdict.name for sequence in range(1, 6)] == [
        "CONFIRMED", "CONFIRMED", "CONFIRMED", "UNSENDABLE", "CONFIRMED",
    ]  # fmt: skip


def limit_messages(node: RabbitNode, size_bytes: int) -> None:
    """Set the broker's max_message_size while it runs."""
    node.rabbitmqctl("eval", f"application:set_env(rabbit, max_message_size, {size_bytes}).")


async def test_a_broker_that_is_kept_busy_with_confirms_is_not_taken_for_a_silent_one(
    vhost_url: str, queue: Any
) -> None:
    """It sends heartbeats only when it has nothing else to say, and aiormq does not see the confirms."""
    async with open_amqp(Broker(vhost_url, heartbeat_s=1), instance_id="tests") as sink:
        sequence = 0
        until_s = trio.current_time() + 8  # aiormq gives up after three heartbeats, and a second for each
        while trio.current_time() < until_s:
            outcomes: dict[int, Outcome] = {}
            await sink.publish(rows(20, start=sequence + 1), outcomes)
            assert len(outcomes) == 20
            sequence += 20
