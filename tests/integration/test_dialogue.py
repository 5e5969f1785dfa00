"""What a broker answers to `check`: each refusal for what it is, and nothing of it is left there."""

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pika
import pytest

from tests.bed.rabbit import RabbitNode, free_ports
from tests.integration.test_amqp import sign
from trackwatch.dialogue import Dialogue, Refused, converse
from trackwatch.event import EventType, routing_key
from trackwatch.finding import Finding, Word
from trackwatch.outlet import outlet_findings
from trackwatch.values import AmqpTarget

pytestmark = pytest.mark.broker

PATIENCE_S = 30.0
KEYS = [routing_key(kind) for kind in EventType]
# What each user may configure and write in the vhost of these tests.
USERS = {"all": (".*", ".*"), "none": ("^$", "^$"), "writer": ("^$", ".*"), "maker": (".*", "^$")}
VHOST = "check"


@pytest.fixture(scope="module")
def node(rabbit: RabbitNode) -> RabbitNode:
    """The shared broker, with users of different powers in a vhost of these tests."""
    rabbit.add_vhost(VHOST)
    for user, (configure, write) in USERS.items():
        rabbit.rabbitmqctl("add_user", user, "secret")
        rabbit.rabbitmqctl("set_permissions", "-p", VHOST, user, configure, write, "^$")
    return rabbit


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A certificate for localhost that nobody has signed, and its key."""
    folder = tmp_path_factory.mktemp("certificate")
    cert, key = str(folder / "cert.pem"), str(folder / "key.pem")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", cert)
    subprocess.run([*command, *names], check=True, capture_output=True)
    return cert, key


@pytest.fixture
def channel(node: RabbitNode) -> Iterator[Any]:
    """A channel of another implementation, in that vhost; the exchanges that a test makes go with it."""
    with pika.BlockingConnection(pika.URLParameters(node.url(VHOST))) as connection:
        channel = connection.channel()
        yield channel
        for name in ("file_events", "direct", "passing"):
            connection.channel().exchange_delete(name)


def target(node: RabbitNode, user: str = "all", **options: Any) -> AmqpTarget:
    return AmqpTarget(node.url(VHOST, user=user, password="secret"), **options)


def findings(target: AmqpTarget, running: dict[str, Any] | None = None) -> dict[str, Finding]:
    return {finding.subject: finding for finding in outlet_findings(target, running or {})}


def words(found: dict[str, Finding]) -> dict[str, str]:
    return {subject: finding.word.value for subject, finding in found.items()}


def refusal(target: AmqpTarget, patience_s: float = PATIENCE_S) -> Refused:
    """Return why there is no dialogue; never with the password in it."""
    with pytest.raises(Refused) as caught, converse(target, patience_s):
        pass
    refused = caught.value
    assert refused.remedies, "it says what to do"
    password = urlsplit(target.url).password
    assert password
    assert password not in repr((refused.reason, refused.remedies, refused.__cause__))
    return refused


def exchanges(channel: Any, node: RabbitNode) -> set[str]:
    return set(node.rabbitmqctl("list_exchanges", "-p", VHOST, "name", "type", "durable", "arguments").splitlines())


# --- what is well ---


def test_a_broker_where_all_is_well(node: RabbitNode, channel: Any) -> None:
    """Told with its name, so that one sees which it is."""
    channel.exchange_declare("file_events", "topic", durable=True)
    found = findings(target(node))
    assert words(found) == {"broker": "ok", "exchange": "ok", "bindings": "skip"}
    assert any(fact.startswith("RabbitMQ ") for fact in found["broker"].facts)
    assert found["bindings"].remedies == (
        f"$ rabbitmqctl list_bindings -p {VHOST} source_name routing_key destination_name",
    )


def test_an_exchange_that_is_not_there_yet_is_not_made(node: RabbitNode, channel: Any) -> None:
    """Whoever asks may make it, and does not."""
    before = exchanges(channel, node)
    found = findings(target(node))
    assert words(found) == {"broker": "ok", "exchange": "ok", "bindings": "warn"}
    assert "not there yet: the daemon makes it when it starts" in found["exchange"].facts
    assert exchanges(channel, node) == before


def test_no_consumer_sees_anything_of_it(node: RabbitNode, channel: Any) -> None:
    """The messages by which we ask are taken back, whatever is bound; and the exchange is as it was."""
    channel.exchange_declare("file_events", "topic", durable=True)
    channel.queue_declare("q", exclusive=True)
    channel.queue_bind("q", "file_events", "#")
    before = exchanges(channel, node)
    assert findings(target(node))["exchange"].word is Word.OK
    assert channel.queue_declare("q", passive=True).method.message_count == 0
    assert exchanges(channel, node) == before
    channel.confirm_delivery()
    channel.basic_publish("file_events", "file.created", b"")  # and it would have been seen
    assert channel.queue_declare("q", passive=True).method.message_count == 1


def test_a_transaction_that_is_rolled_back_does_not_tell_whether_a_queue_is_bound(channel: Any) -> None:
    """Why bindings cannot be asked about: the broker looks at queues only when it would send to them."""
    returned = []
    channel.exchange_declare("file_events", "topic", durable=True)
    channel.add_on_return_callback(lambda *what: returned.append(what))
    channel.tx_select()
    for end in (channel.tx_rollback, channel.tx_commit):
        channel.basic_publish("file_events", "file.created", b"", mandatory=True)
        end()
        channel.connection.process_data_events(0)
        assert len(returned) == (end == channel.tx_commit)


# --- what is not ---


def test_a_wrong_password_is_told(node: RabbitNode) -> None:
    refused = refusal(AmqpTarget(node.url(VHOST, user="all", password="wrong")))
    assert refused.reason == "user name or password refused for all"
    assert "$ rabbitmqctl authenticate_user all" in refused.remedies


def test_a_virtual_host_that_is_not_there_is_told(node: RabbitNode) -> None:
    refused = refusal(AmqpTarget(node.url("no such", user="all", password="secret")))
    assert refused.reason == "there is no virtual host 'no such'"
    assert refused.remedies[0] == "$ rabbitmqctl add_vhost 'no such'"


def test_a_virtual_host_without_permissions_is_told(node: RabbitNode) -> None:
    refused = refusal(AmqpTarget(node.url("/", user="all", password="secret")))
    assert refused.reason == "all has no permissions on the virtual host '/'"
    assert refused.remedies[0] == r"$ rabbitmqctl set_permissions -p / all '^file_events$' '^file_events$' '^$'"


@pytest.mark.parametrize("is_there", [False, True])
@pytest.mark.parametrize(
    ("user", "reason"),
    [("none", "may not"), ("writer", "may not"), ("maker", "may not publish file.created to it")],
)
def test_missing_permissions_are_told_before_they_are_needed(
    node: RabbitNode, channel: Any, user: str, reason: str, is_there: bool
) -> None:
    """Whether there is an exchange yet or not; with the command that gives what is missing."""
    if is_there:
        channel.exchange_declare("file_events", "topic", durable=True)
    before = exchanges(channel, node)
    found = findings(target(node, user))
    assert words(found) == {"broker": "ok", "exchange": "fail", "bindings": "skip"}
    assert reason in found["exchange"].facts[1]
    assert f"set_permissions -p {VHOST} {user} '^file_events$' '^file_events$' '^$'" in found["exchange"].remedies[0]
    assert exchanges(channel, node) == before


def test_what_the_remedy_gives_is_enough(node: RabbitNode, channel: Any) -> None:
    """The least that trackwatch needs, in the words of the remedy."""
    node.rabbitmqctl("add_user", "least", "secret")
    node.rabbitmqctl("set_permissions", "-p", VHOST, "least", "^file_events$", "^file_events$", "^$")
    assert findings(target(node, "least"))["exchange"].word is Word.OK


def test_topic_permissions_are_asked_about_too(node: RabbitNode, channel: Any) -> None:
    """Of every routing key: one that is left out would be found at the first rename."""
    channel.exchange_declare("file_events", "topic", durable=True)
    node.rabbitmqctl("add_user", "topical", "secret")
    node.rabbitmqctl("set_permissions", "-p", VHOST, "topical", ".*", ".*", ".*")
    node.rabbitmqctl("set_topic_permissions", "-p", VHOST, "topical", "file_events", r"^file\.[^r]", ".*")
    found = findings(target(node, "topical"))["exchange"]
    assert (found.word, found.facts[1]) == (Word.FAIL, "topical may not publish file.renamed to it")
    assert found.remedies == (f"$ rabbitmqctl clear_topic_permissions -p {VHOST} topical",)


@pytest.mark.parametrize(
    ("name", "kind", "durable", "reason"),
    [
        ("direct", "direct", True, "its type is direct, and has to be topic"),
        ("passing", "topic", False, "its durable is false, and has to be true"),
    ],
)
def test_an_exchange_of_another_kind_is_told(
    node: RabbitNode, channel: Any, name: str, kind: str, durable: bool, reason: str
) -> None:
    channel.exchange_declare(name, kind, durable=durable)
    found = findings(target(node, exchange=name))["exchange"]
    assert found.word is Word.FAIL
    assert found.facts[1] == f"there is one of another kind: {reason}"


def test_names_that_are_the_brokers_own_cannot_be_made(node: RabbitNode) -> None:
    found = findings(target(node, exchange="amq.mine"))["exchange"]
    assert found.word is Word.FAIL
    assert "RABBITMQ_EXCHANGE" in found.remedies[0]


class Victim(NamedTuple):
    """A broker to alarm and to freeze, its TLS port, and the certificate that it wants to see, with its key."""

    node: RabbitNode
    tls_port: int
    ours: tuple[str, str]


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory, certificate: tuple[str, str]) -> Iterator[Victim]:
    """One for the module; every test leaves it well."""
    folder = tmp_path_factory.mktemp("victim")
    server, ours = (sign(folder, name, certificate) for name in ("localhost", "trackwatch"))
    port = free_ports().amqp
    options = f"""listeners.ssl.1 = 127.0.0.1:{port}
        ssl_options.cacertfile = {certificate[0]}
        ssl_options.certfile = {server[0]}
        ssl_options.keyfile = {server[1]}
        ssl_options.verify = verify_peer
        ssl_options.fail_if_no_peer_cert = true"""
    with RabbitNode(folder / "node", config=options) as node:
        yield Victim(node, port, ours)


def test_a_broker_with_an_alarm_says_so(victim: Victim) -> None:
    """It tells that to those who publish alone; what we ask by is forgotten when the alarm has passed."""
    node = victim.node
    with pika.BlockingConnection(pika.URLParameters(node.url())) as connection:
        channel = connection.channel()
        channel.exchange_declare("file_events", "topic", durable=True)
        channel.queue_declare("q")
        channel.queue_bind("q", "file_events", "#")
        node.rabbitmqctl("set_vm_memory_high_watermark", "0.0000001")
        found = findings(AmqpTarget(node.url()))
        assert words(found) == {"broker": "fail", "exchange": "ok", "bindings": "skip"}
        assert any("low on memory" in fact for fact in found["broker"].facts)
        node.rabbitmqctl("set_vm_memory_high_watermark", "0.6")
        channel.confirm_delivery()
        channel.basic_publish("file_events", "file.created", b"ours")  # returns when the alarm has passed
        assert channel.queue_declare("q", passive=True).method.message_count == 1
    assert findings(AmqpTarget(node.url()))["broker"].word is Word.OK


def test_a_frozen_broker_is_waited_for_no_longer_than_allowed(victim: Victim) -> None:
    """Before the dialogue and in the middle of it."""
    node, frozen = victim.node, AmqpTarget(victim.node.url())
    ends = time.monotonic() + PATIENCE_S
    with converse(frozen, 3.0) as dialogue:
        node.freeze()
        with pytest.raises(Refused, match="says nothing"):
            dialogue.find_exchange("file_events")
    assert refusal(frozen, 0.5).reason == "it takes connections, and says nothing"
    assert time.monotonic() < ends
    node.thaw()
    assert findings(frozen)["broker"].word is Word.OK


def test_a_broker_behind_tls_is_asked_as_any_other(victim: Victim, certificate: tuple[str, str]) -> None:
    """With our authority and our certificate; without them it is told which of the two is missing."""
    url = f"amqps://guest:guest@localhost:{victim.tls_port}/"
    ours: dict[str, Any] = {"cert_file": victim.ours[0], "key_file": victim.ours[1]}
    assert findings(AmqpTarget(url, ca_file=certificate[0], **ours))["broker"].word is Word.OK
    for target, remedy in (
        (AmqpTarget(url, **ours), "RABBITMQ_CA_FILE"),
        (AmqpTarget(url, ca_file=certificate[0]), "RABBITMQ_CERT_FILE"),
    ):
        found = findings(target)
        assert words(found) == {"broker": "fail", "exchange": "skip", "bindings": "skip"}
        assert any(remedy in told for told in found["broker"].remedies), found["broker"]


# --- what is no broker, or not to be reached ---


def test_a_closed_port_is_told() -> None:
    with socket.socket() as held:  # bound but not listening: nobody else can listen there meanwhile
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        refused = refusal(AmqpTarget(f"amqp://me:s3cr3t@127.0.0.1:{port}/"))
    assert refused.reason == f"nothing listens on port {port} there"


def test_a_name_that_nobody_knows_is_told() -> None:
    assert refusal(AmqpTarget("amqp://me:s3cr3t@nowhere.invalid/")).reason.startswith("the name 'nowhere.invalid'")


@contextmanager
def serving(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve one connection at a port, in a thread that ends with the dialogue."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            connection, _ = listening.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                serve(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield listening.getsockname()[1]
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "no AMQP broker listens there, it speaks HTTP"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "no AMQP broker listens there"),
        (b"AMQP\x00\x01\x00\x00", "another version of AMQP"),
        (b"\x15\x03\x03\x00\x02\x02\x46\x00", "that port speaks TLS"),
        (b"", "it has closed the connection"),
        (b"\x01\x00\x00\xff\xff\xff\xff\x00", "it does not speak AMQP"),
    ],
)
def test_what_is_no_broker_is_told_for_what_it_is(said: bytes, reason: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(64)
        connection.sendall(said)

    with serving(answer) as port:
        assert reason in refusal(AmqpTarget(f"amqp://me:s3cr3t@127.0.0.1:{port}/")).reason


def test_a_port_without_tls_is_told(node: RabbitNode) -> None:
    refused = refusal(AmqpTarget(node.url(VHOST, user="all", password="secret").replace("amqp:", "amqps:")))
    assert refused.reason.startswith("TLS failed")
    assert "this port has no TLS" in refused.remedies[0]


@pytest.mark.parametrize(
    ("host", "trusted", "reason", "remedy"),
    [
        ("localhost", False, "self-signed certificate", "RABBITMQ_CA_FILE"),
        ("127.0.0.1", True, "mismatch", "use a name that is in it"),
        ("localhost", True, "it has closed the connection", "RABBITMQ_CERT_FILE"),
    ],
)
def test_certificates_are_told(
    certificate: tuple[str, str], host: str, trusted: bool, reason: str, remedy: str
) -> None:
    """One that nobody has signed, one for another name; and a server that may want to see ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)

    def shake(connection: socket.socket) -> None:
        try:
            with context.wrap_socket(connection, server_side=True) as secure:
                secure.recv(64)
        except OSError:
            pass  # a client that does not like the certificate

    with serving(shake) as port:
        refused = refusal(AmqpTarget(f"amqps://me:s3cr3t@{host}:{port}/", ca_file=certificate[0] if trusted else None))
    assert reason.lower() in refused.reason.lower()
    assert any(remedy in words for words in refused.remedies)


def test_a_certificate_file_that_is_none_is_told(node: RabbitNode, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    url = node.url(VHOST, user="all", password="secret").replace("amqp:", "amqps:")
    assert str(tmp_path / "ca.pem") in refusal(AmqpTarget(url, ca_file=str(tmp_path / "ca.pem"))).reason


def test_another_product_is_not_asked_in_ways_that_it_may_understand_otherwise(node: RabbitNode, channel: Any) -> None:
    """Another broker might make the exchange that RabbitMQ refuses to make."""
    before = exchanges(channel, node)
    with converse(target(node), PATIENCE_S) as dialogue:
        dialogue.product = "Another"
        assert dialogue.may_configure("file_events") is None
    assert exchanges(channel, node) == before
    assert isinstance(dialogue, Dialogue)


# --- what a running daemon knows of bindings ---


@pytest.mark.parametrize(
    ("live", "word"),
    [
        ({"state": "unroutable", "reason": "no queue is bound to file.created; bind one"}, Word.FAIL),
        ({"state": "connected", "published": 12}, Word.OK),
        ({"state": "connected", "published": 0}, Word.SKIP),
        ({"state": "connected", "published": 12, "target": "amqp://elsewhere/"}, Word.SKIP),
    ],
)
def test_a_daemon_that_publishes_knows_whether_queues_are_bound(
    node: RabbitNode, channel: Any, live: dict[str, Any], word: Word
) -> None:
    """If it is this broker that it publishes to."""
    channel.exchange_declare("file_events", "topic", durable=True)
    broker = {"target": target(node).display, **live}
    found = findings(target(node), {"broker": broker, "intake": {"events": {"created": 10, "moved": 0}}})["bindings"]
    assert found.word is word
    if word is Word.OK:
        assert found.data["unknown"] == ["file.deleted", "file.modified", "file.moved", "file.renamed"]
