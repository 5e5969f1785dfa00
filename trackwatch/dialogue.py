"""A dialogue with a broker in AMQP 0-9-1, one question and one answer at a time: what `trackwatch check` asks.

Apart from the sink, which makes things true that are only asked here: each step can fail by itself, no wait is longer
than one deadline for all of it, and whatever is asked, nothing is made, changed or sent. What would be (an exchange, a
message) is asked for in a way that the broker judges first and then does not do.
"""

import re
import shlex
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar
from urllib.parse import unquote, urlsplit

import pamqp.base
import pamqp.commands
import pamqp.frame
import pamqp.header

from trackwatch import __version__
from trackwatch.values import AmqpTarget

T = TypeVar("T")

_COMMANDS = pamqp.commands
_FRAME = struct.Struct(">BHI")  # type, channel, size of the payload; one end byte follows the payload
_HEARTBEAT = 8
_PREFACE = b"AMQP\x00\x00\x09\x01"
# What a TLS server answers to bytes that are no TLS: an alert.
_TLS_ALERT = b"\x15\x03"
ACCESS_REFUSED, NOT_FOUND, PRECONDITION_FAILED, NOT_ALLOWED = 403, 404, 406, 530


class Refused(Exception):
    """The dialogue ended where it should have gone on: a reason, and what to do about it."""

    def __init__(self, reason: str, *remedies: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedies = remedies


@dataclass(frozen=True, slots=True)
class ChannelClosed:
    """The broker's answer to a question that it refuses."""

    code: int
    text: str


class Dialogue:
    """An open connection; made by `converse`."""

    def __init__(self, target: AmqpTarget, ends_at: float) -> None:
        self.product = ""
        self.version = ""
        self.confirms = False  # whether the broker confirms what is published
        self.heartbeat_s = 0  # what it proposes
        self.blocked: str | None = (
            None  # why it takes no messages now; told to who tries to publish, and to nobody else
        )
        self._target = target
        self._ends_at = ends_at
        self._socket: socket.socket
        self._unread = b""
        self._channel = 0

    # ---- the steps of opening it

    def connect(self) -> None:
        """Find the host, reach it, come to terms on TLS if the address has it. Raises Refused."""
        parts = urlsplit(self._target.url)
        host, secure = parts.hostname or "localhost", parts.scheme == "amqps"
        port = parts.port or (5671 if secure else 5672)
        self._socket = self._dial(self._found(host, port), port)
        if secure:
            self._secure(host)

    def log_in(self) -> None:
        """Greet the broker, log in, open the virtual host. Raises Refused."""
        parts = urlsplit(self._target.url)
        user, password = unquote(parts.username or "guest"), unquote(parts.password or "guest")
        vhost = unquote(parts.path[1:]) or "/"
        self._say(_PREFACE)
        start = self._hear_greeting()
        properties = start.server_properties or {}
        self.product, self.version = str(properties.get("product", "")), str(properties.get("version", ""))
        capabilities = properties.get("capabilities")
        self.confirms = isinstance(capabilities, dict) and bool(capabilities.get("publisher_confirms"))
        if "PLAIN" not in str(start.mechanisms).split():
            raise Refused(
                f"it lets nobody in by user name and password (it offers {start.mechanisms})",
                "allow the mechanism PLAIN: auth_mechanisms.1 = PLAIN in its rabbitmq.conf",
            )
        said: Any = {
            "product": "trackwatch",
            "version": __version__,
            "connection_name": "trackwatch check",
            "capabilities": {"authentication_failure_close": True, "connection.blocked": True},
        }
        login = _COMMANDS.Connection.StartOk(said, "PLAIN", f"\0{user}\0{password}", "en_US")
        self._send(0, login)
        tune = self._hear(0, _COMMANDS.Connection.Tune, lambda close: _login_refused(user, close))
        self.heartbeat_s = int(tune.heartbeat or 0)
        self._send(0, _COMMANDS.Connection.TuneOk(tune.channel_max, tune.frame_max, self._target.heartbeat_s))
        self._send(0, _COMMANDS.Connection.Open(vhost))
        self._hear(
            0, _COMMANDS.Connection.OpenOk, lambda close: _vhost_refused(user, vhost, self._target.exchange, close)
        )

    def hang_up(self) -> None:
        """Say goodbye if somebody listens, and close the socket."""
        if not hasattr(self, "_socket"):
            return
        try:
            if self.blocked is None:
                self._send(0, _COMMANDS.Connection.Close(200, "bye", 0, 0))
                self._hear(0, _COMMANDS.Connection.CloseOk)
        except (Refused, OSError):
            pass  # it has gone, or is silent: no more is to be said
        finally:
            self._socket.close()

    # ---- questions

    def find_exchange(self, name: str) -> ChannelClosed | None:
        """Ask whether an exchange is there; None if it is."""
        return self._ask(_COMMANDS.Exchange.Declare(exchange=name, passive=True), _COMMANDS.Exchange.DeclareOk)

    def compare_exchange(self, name: str) -> ChannelClosed | None:
        """Ask whether an exchange that is there is a durable topic exchange which we may configure; None if so."""
        same = _COMMANDS.Exchange.Declare(exchange=name, exchange_type="topic", durable=True)
        return self._ask(same, _COMMANDS.Exchange.DeclareOk)

    def may_configure(self, name: str) -> ChannelClosed | None:
        """Ask whether we may make an exchange, without making it; None if it cannot be told.

        An alternate exchange whose name is a number is refused (406), after permissions were looked at (403). A broker
        that is not known to do so is not asked: it might make it.
        """
        if self.product != "RabbitMQ":
            return None
        odd: Any = {"alternate-exchange": 0}
        declare = _COMMANDS.Exchange.Declare(exchange=name, exchange_type="topic", durable=True, arguments=odd)
        return self._ask(declare, _COMMANDS.Exchange.DeclareOk)

    def may_publish(self, name: str, key: str) -> ChannelClosed | None:
        """Ask whether we may publish; None if so, or if an alarm has `blocked` us before it was answered.

        In a transaction, which is rolled back: the broker looks at permissions at once, and at queues only when it is
        committed.
        """
        closed = self._ask(_COMMANDS.Tx.Select(), _COMMANDS.Tx.SelectOk)
        if closed is not None:
            return closed
        header = pamqp.header.ContentHeader(body_size=0, properties=_COMMANDS.Basic.Properties())
        self._send(self._channel, _COMMANDS.Basic.Publish(exchange=name, routing_key=key))
        self._say(pamqp.frame.marshal(header, self._channel))
        return self._ask(_COMMANDS.Tx.Rollback(), _COMMANDS.Tx.RollbackOk, same_channel=True)

    # ---- inside

    def _ask(
        self, question: pamqp.base.Frame, answer: type[pamqp.base.Frame], *, same_channel: bool = False
    ) -> ChannelClosed | None:
        """Ask on a channel of its own: a refusal closes it."""
        if not same_channel:
            self._channel += 1
            self._send(self._channel, _COMMANDS.Channel.Open())
            self._hear(self._channel, _COMMANDS.Channel.OpenOk)
        self._send(self._channel, question)
        heard = self._hear(self._channel, answer)
        if isinstance(heard, _COMMANDS.Channel.Close):
            self._send(self._channel, _COMMANDS.Channel.CloseOk())
            return ChannelClosed(heard.reply_code or 0, _one_line(heard.reply_text))
        return None

    def _found(self, host: str, port: int) -> list[Any]:
        """Return the addresses of a host."""
        try:
            # In a thread: what looks names up cannot be told how long it may take.
            return within(self._left_s(), lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except TimeoutError:
            raise Refused(f"the name {host!r} is not found in time", f"$ getent hosts {host}") from None
        except (OSError, UnicodeError) as error:
            raise Refused(
                f"the name {host!r} is not known ({_reason(error)})",
                "check the name; in a container: is it on the broker's network?",
            ) from None

    def _dial(self, addresses: list[Any], port: int) -> socket.socket:
        failure: OSError = TimeoutError()
        for place, (family, kind, number, _, address) in enumerate(addresses):
            dialled = socket.socket(family, kind, number)
            dialled.settimeout(self._left_s() / (len(addresses) - place))
            try:
                dialled.connect(address)
            except OSError as error:
                dialled.close()
                failure = error
            else:
                dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return dialled
        if isinstance(failure, ConnectionRefusedError):
            raise Refused(
                f"nothing listens on port {port} there", "start the broker, or set RABBITMQ_PORT (RABBITMQ_URL)"
            )
        if isinstance(failure, TimeoutError):
            raise Refused(f"port {port} does not answer", "look at firewalls and networks between here and there")
        raise Refused(
            f"port {port} cannot be reached: {_reason(failure)}", "look at the network between here and there"
        )

    def _secure(self, host: str) -> None:
        ca, cert, key = self._target.ca_file, self._target.cert_file, self._target.key_file
        try:
            context = ssl.create_default_context(cafile=ca)
            if cert:  # an empty password: an encrypted key is an error, not a question on the terminal
                context.load_cert_chain(cert, key, password=lambda: "")
        except OSError as error:
            files = ", ".join(repr(name) for name in (ca, cert, key) if name)
            raise Refused(
                f"the TLS files {files} cannot be used: {_reason(error)}",
                "RABBITMQ_CA_FILE, RABBITMQ_CERT_FILE and RABBITMQ_KEY_FILE are PEM files, the key without a password",
            ) from None
        self._socket.settimeout(self._left_s())
        try:
            self._socket = context.wrap_socket(self._socket, server_hostname=host)
        except ssl.SSLCertVerificationError as error:
            raise _certificate_refused(error, host) from None
        except TimeoutError:
            self._fall_silent("does not answer to TLS")
        except ssl.SSLError as error:
            remedies = ["check that this is the broker's TLS port (5671)"]
            if error.reason == "WRONG_VERSION_NUMBER":
                remedies = ["this port has no TLS: use amqp://, or the TLS port (5671)"]
            raise Refused(f"TLS failed: {_reason(error)}", *remedies) from None
        except OSError as error:
            self._hung_up(error)

    def _hear_greeting(self) -> Any:
        """Return Connection.Start; what listens there need not be a broker at all."""
        while len(self._unread) < len(_PREFACE):
            self._unread += self._read()
        first = self._unread[: len(_PREFACE)]
        if first.startswith(_TLS_ALERT):
            raise Refused("that port speaks TLS", "set RABBITMQ_URL=amqps://…, or take the port without TLS (5672)")
        if first.startswith(b"AMQP"):
            raise Refused(
                "it speaks another version of AMQP, not 0-9-1", "take the port on which it speaks 0-9-1 (5672)"
            )
        if first[0] != 1:
            what = "HTTP (its management page?)" if first.startswith(b"HTTP") else "something else"
            raise Refused(
                f"no AMQP broker listens there, it speaks {what}", "check host and port (5672, with TLS 5671)"
            )
        return self._hear(0, _COMMANDS.Connection.Start)

    def _hear(
        self,
        channel: int,
        wanted: type[pamqp.base.Frame],
        closed: Callable[[ChannelClosed], Refused] | None = None,
    ) -> Any:
        """Return the next frame that is wanted, or a Channel.Close instead; `closed` words a Connection.Close.

        Returns None if the broker says that it is blocked: it reads nothing more then.
        """
        while True:
            number, frame = self._next_frame()
            if isinstance(frame, _COMMANDS.Connection.Blocked):
                self.blocked = _one_line(frame.reason) or "it gives no reason"
                return None
            if isinstance(frame, _COMMANDS.Connection.Close):
                said = ChannelClosed(frame.reply_code or 0, _one_line(frame.reply_text))
                raise closed(said) if closed else Refused(f"it has closed the connection: {said.text}", "see its log")
            if number == channel and isinstance(frame, wanted | _COMMANDS.Channel.Close):
                return frame

    def _next_frame(self) -> tuple[int, Any]:
        head = self._take(_FRAME.size)
        kind, channel, size = _FRAME.unpack(head)
        if size > 1 << 20:
            raise Refused("it does not speak AMQP", "check host and port")
        whole = head + self._take(size + 1)
        if kind == _HEARTBEAT:
            return channel, None
        return channel, pamqp.frame.unmarshal(whole)[2]

    def _take(self, count: int) -> bytes:
        while len(self._unread) < count:
            self._unread += self._read()
        taken, self._unread = self._unread[:count], self._unread[count:]
        return taken

    def _read(self) -> bytes:
        self._socket.settimeout(self._left_s())
        try:
            data = self._socket.recv(65536)
        except TimeoutError:
            self._fall_silent("takes connections, and says nothing")
        except OSError as error:
            self._hung_up(error)
        if not data:
            self._hung_up(None)
        return data

    def _send(self, channel: int, frame: pamqp.base.Frame) -> None:
        self._say(pamqp.frame.marshal(frame, channel))

    def _say(self, data: bytes) -> None:
        self._socket.settimeout(self._left_s())
        try:
            self._socket.sendall(data)
        except TimeoutError:
            self._fall_silent("takes connections, and reads nothing")
        except OSError as error:
            self._hung_up(error)

    def _left_s(self) -> float:
        left_s = self._ends_at - time.monotonic()
        return max(left_s, 0.01)  # zero would mean: do not wait at all, and be another error

    def _fall_silent(self, how: str) -> NoReturn:
        raise Refused(
            f"it {how}",
            "is it the broker's port? If so, it hangs, is paused, or is still starting; on its machine:",
            "$ rabbitmq-diagnostics check_running",
        ) from None

    def _hung_up(self, error: OSError | None) -> NoReturn:
        if isinstance(error, ssl.SSLError) and "CERTIFICATE" in (error.reason or ""):
            # With TLS 1.3 a broker says only after the handshake that it wants a certificate.
            raise Refused(f"TLS failed: {_reason(error)}", "set RABBITMQ_CERT_FILE and RABBITMQ_KEY_FILE") from None
        reason = "" if error is None else f" ({_reason(error)})"
        remedies = ["see its log"]
        if self._target.url.startswith("amqps:") and not self._target.cert_file:
            remedies.append("it may want to see a certificate: set RABBITMQ_CERT_FILE and RABBITMQ_KEY_FILE")
        raise Refused(f"it has closed the connection{reason}", *remedies) from None


@contextmanager
def converse(target: AmqpTarget, patience_s: float) -> Iterator[Dialogue]:
    """Open a dialogue, for so many seconds in all.

    Raises:
        Refused: also from whatever is asked.
    """
    dialogue = Dialogue(target, time.monotonic() + patience_s)
    try:
        dialogue.connect()
        dialogue.log_in()
        yield dialogue
    finally:
        dialogue.hang_up()


def _login_refused(user: str, close: ChannelClosed) -> Refused:
    if close.code != ACCESS_REFUSED:
        return Refused(f"it refuses the login: {close.text}", "see its log")
    remedies = [
        "check RABBITMQ_USER and RABBITMQ_PASS (or RABBITMQ_URL); on the broker's machine:",
        f"$ rabbitmqctl authenticate_user {shlex.quote(user)}",
    ]
    if user == "guest":
        remedies.append("guest is let in from the broker's own machine only: make a user for trackwatch")
    return Refused(f"user name or password refused for {user}", *remedies)


def _vhost_refused(user: str, vhost: str, exchange: str, close: ChannelClosed) -> Refused:
    if close.code == NOT_ALLOWED and "not found" in close.text:
        return Refused(
            f"there is no virtual host {vhost!r}",
            f"$ rabbitmqctl add_vhost {shlex.quote(vhost)}",
            "or name another one: RABBITMQ_URL=amqp://…/NAME",
        )
    if close.code == NOT_ALLOWED and "refused" in close.text:
        return Refused(f"{user} has no permissions on the virtual host {vhost!r}", permissions(user, vhost, exchange))
    return Refused(f"the virtual host {vhost!r} cannot be opened: {close.text}", "see its log")


def permissions(user: str, vhost: str, exchange: str) -> str:
    """Return the command that gives a user what trackwatch needs, and no more."""
    pattern = shlex.quote(f"^{re.escape(exchange)}$")
    return f"$ rabbitmqctl set_permissions -p {shlex.quote(vhost)} {shlex.quote(user)} {pattern} {pattern} '^$'"


def _certificate_refused(error: ssl.SSLCertVerificationError, host: str) -> Refused:
    said = _one_line(error.verify_message) or _reason(error)
    remedy = "set RABBITMQ_CA_FILE to the authority that has signed it (PEM)"
    if "mismatch" in said:
        remedy = f"use a name that is in it, not {host}, or have one made for {host}"
    elif "expired" in said or "not yet valid" in said:
        remedy = "renew the certificate, and look at the clocks of both machines"
    return Refused(f"its certificate is not accepted: {said}", remedy)


def within(seconds: float, function: Callable[[], T]) -> T:
    """Return what a function returns; it runs in a thread, which is left to itself when it takes longer.

    Raises:
        TimeoutError: it took longer.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            results.append(function())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError
    return results[0]


def _reason(error: OSError | UnicodeError) -> str:
    if isinstance(error, ssl.SSLError):
        return _one_line(error.reason or str(error)).lower().replace("_", " ")
    return (getattr(error, "strerror", None) or str(error)).lower()


def _one_line(text: object) -> str:
    return " ".join(str(text or "").split())
