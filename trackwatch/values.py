"""How the single values of settings are read, and what they may be: each function raises ValueError with what is right.

The types that several of them share are here too: where events go, and what becomes of an event that no queue takes.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv6Address
from itertools import permutations
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pydantic import BeforeValidator, SecretStr

from trackwatch.patterns import problem_of

# An instance id travels in each message, and is read by people.
_INSTANCE_ID_CHARS = 128
# AMQP writes names of exchanges as short strings.
_EXCHANGE_BYTES = 255
# Kubernetes describes its services to every pod: one called rabbitmq as RABBITMQ_PORT=tcp://10.0.0.1:5672, which says
# nothing about whether we are to use it.
KUBERNETES_LINK = "tcp://"
NO_ROOT = "no root to watch: name one (trackwatch run ~/Music) or set DATA_DIR"


class Problem(ValueError):
    """A problem whose text is the whole line, not only what is wrong with the value of one variable."""


class Unroutable(StrEnum):
    """What to do with an event for which nobody has bound a queue."""

    HOLD = "hold"  # wait, in order, and say so
    PARK = "park"  # set it aside, and go on
    DROP = "drop"  # forget it


@dataclass(frozen=True, slots=True)
class AmqpTarget:
    """A broker to publish to. `url` holds the password; show people `display`."""

    url: str = field(repr=False)
    exchange: str = "file_events"
    heartbeat_s: int = 10
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None

    @property
    def display(self) -> str:
        """The address without the password."""
        parts = urlsplit(self.url)
        user = f"{parts.username}@" if parts.username else ""
        return urlunsplit((parts.scheme, user + parts.netloc.rpartition("@")[2], parts.path or "/", "", ""))


@dataclass(frozen=True, slots=True)
class JsonLinesTarget:
    """A file that gets one line for each event; standard output when `path` is None."""

    path: str | None = None

    @property
    def display(self) -> str:
        """Where the lines go, in words."""
        return "standard output" if self.path is None else self.path


# ---- how values are read: each of these raises ValueError with what would have been right


def whole(low: int, high: int) -> BeforeValidator:
    """Read a whole number within bounds."""

    def parse(value: object) -> int:
        text = str(value).strip()
        # int() also takes "1_000" and other scripts' digits, which no other program would read the same way.
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not low <= int(text) <= high:
            raise ValueError(f"not a whole number from {low} to {high}")
        return int(text)

    return BeforeValidator(parse)


def number(low: float, high: float) -> BeforeValidator:
    """Read a number within bounds."""

    def parse(value: object) -> float:
        text = str(value).strip()
        if not re.fullmatch(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)", text) or not low <= float(text) <= high:
            raise ValueError(f"not a number from {low:g} to {high:g}")
        return float(text)

    return BeforeValidator(parse)


def word(*words: str) -> BeforeValidator:
    """Read one of some words, in any letter case."""

    def parse(value: object) -> str:
        word = str(value).strip().lower()
        if word not in words:
            raise ValueError(f"not one of {', '.join(words)}")
        return word

    return BeforeValidator(parse)


def port(value: object) -> int | None:
    """Read a TCP port; None for the note of a service that Kubernetes leaves under the same name."""
    text = str(value).strip()
    if text.startswith(KUBERNETES_LINK):
        return None
    if not re.fullmatch(r"[0-9]{1,5}", text) or not 1 <= int(text) <= 65535:
        raise ValueError("not a whole number from 1 to 65535")
    return int(text)


def host(value: object) -> str:
    """Read a host name or address."""
    text = str(value).strip()
    try:
        return f"[{IPv6Address(text.strip('[]'))}]"
    except ValueError:
        pass
    if not re.fullmatch(r"[\w.-]+", text):
        raise ValueError("not a host name (the port goes into RABBITMQ_PORT, a whole address into RABBITMQ_URL)")
    return text


def http_address(value: object) -> tuple[str, int] | None:
    """Read host:port, or a port of this machine's own address; None for an empty one."""
    text = str(value).strip()
    if text.lower() in ("", "off"):
        return None
    host, colon, port = text.rpartition(":")
    if colon and not host:
        raise ValueError("no host before the port: 127.0.0.1 for this machine alone, 0.0.0.0 for everybody")
    if not re.fullmatch(r"[0-9]{1,5}", port) or not 1 <= int(port) <= 65535:
        raise ValueError("not host:port with a port from 1 to 65535, such as 127.0.0.1:9464, or off")
    return host.strip("[]") or "127.0.0.1", int(port)


def printable(text: str) -> bool:
    """Whether a text can be shown in one line."""
    # Also false for the surrogates that stand for bytes which are not UTF-8.
    return text.isprintable() and bool(text.strip())


def plain_text(value: object) -> str:
    """Read a text without control characters."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not UTF-8 text") from None
    return text


def instance_id(value: object) -> str:
    """Read the name of an instance."""
    text = str(value)
    if len(text) > _INSTANCE_ID_CHARS or not printable(text):
        raise ValueError(f"not 1 to {_INSTANCE_ID_CHARS} printable characters")
    return text


def exchange(value: object) -> str:
    """Read the name of an exchange."""
    text = str(value)
    if not printable(text) or len(text.encode()) > _EXCHANGE_BYTES:
        raise ValueError(f"not 1 to {_EXCHANGE_BYTES} bytes of printable text")
    return text


def amqp_url(value: str) -> str:
    """Return a broker's address with user and password percent-encoded; the messages never hold any part of it."""
    text = value.strip()
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(
            "host or port cannot be read; in a password write / ? # % and @ percent-encoded (%2F %3F %23 %25 %40)"
        ) from None
    if parts.scheme not in ("amqp", "amqps") or not text.lower().startswith(f"{parts.scheme}://"):
        raise ValueError("does not begin with amqp:// or amqps://")
    if not parts.hostname:
        raise ValueError("names no host")
    if port == 0:
        raise ValueError("port 0 cannot be connected to")
    if parts.fragment or not printable(text) or " " in text:
        raise ValueError("holds a character that does not belong there; write it percent-encoded")
    login, at, host = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    # aio-pika would log in as guest for an empty user name as well as for none.
    login = quoted(user) + colon + quoted(password) if at else ""
    return urlunsplit((parts.scheme, login + at + host, parts.path, parts.query, ""))


def quoted(text: str) -> str:
    """Return a part of a URL in which every special character is escaped."""
    return quote(unquote(text), safe="")


def secret_url(value: object) -> SecretStr:
    """Read the address of a broker, to be kept secret."""
    return SecretStr(amqp_url(value.get_secret_value() if isinstance(value, SecretStr) else str(value)))


def readable(value: object) -> str:
    """Read the name of a file that can be read."""
    path = os.path.abspath(str(value))
    try:
        with open(path, "rb") as file:
            file.read(1)
    except OSError as error:
        raise ValueError(f"cannot be read ({reason(error)})") from None
    return path


def reason(error: OSError) -> str:
    """Return why the system refused, in lower case."""
    return (error.strerror or str(error)).lower()


def secret_in(value: object) -> SecretStr:
    """Read a secret from a file."""
    path = readable(value)
    with open(path, "rb") as file:
        content = file.read(64 << 10)  # more than any password, less than a mistaken film
    try:
        # Editors and `echo` end a file with a newline; secrets do not.
        secret = content.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise ValueError("does not hold UTF-8 text") from None
    if not secret:
        raise ValueError("is empty")
    return SecretStr(secret)


def secret_url_in(value: object) -> SecretStr:
    """Read the address of a broker from a file."""
    secret = secret_in(value)
    try:
        return secret_url(secret)
    except ValueError as error:
        raise ValueError(f"the address in it: {error}") from None


def roots(value: object) -> tuple[bytes, ...]:
    """Return absolute roots, each once. A string (the environment) holds several; a sequence (arguments) one each."""
    if isinstance(value, str):
        names = [os.path.expanduser(name) for name in value.split(":") if name]
    else:
        assert isinstance(value, Sequence)
        names = list(value)
    if not names:
        raise Problem(NO_ROOT)
    if "" in names:
        raise Problem("root '': an empty name is no directory (for the current one write .)")
    roots = tuple(dict.fromkeys(os.path.abspath(os.fsencode(name)) for name in names))
    for inner, outer in permutations(roots, 2):
        if below(inner, outer) is not None:
            raise Problem(
                f"root {os.fsdecode(inner)!r} lies inside root {os.fsdecode(outer)!r}: name the outer one alone"
                " (TRACKWATCH_INCLUDE and TRACKWATCH_EXCLUDE narrow it down)"
            )
    return roots


def below(path: bytes, root: bytes) -> bytes | None:
    """Return the path below a root, None for what lies elsewhere."""
    prefix = root.rstrip(b"/") + b"/"
    return path[len(prefix) :] if path.startswith(prefix) else None


def pattern_list(value: object) -> tuple[str, ...]:
    """Return patterns from lines or, in a single line, from between commas; `\\,` is a comma in a name.

    `:` would be a comma's rival, but lines are how git has it, and names with commas are the ones that need lines.
    """
    text = str(value)
    if "\n" in text:
        found = text.splitlines()
    else:
        found = [part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]
    for pattern in found:
        if problem := problem_of(pattern):
            raise ValueError(f"{pattern!r} is {problem}")
    return tuple(pattern for pattern in found if pattern.strip())


def target(value: object) -> AmqpTarget | JsonLinesTarget:
    """Read where events go."""
    text = str(value)
    if text == "-":
        return JsonLinesTarget()
    if re.match(r"amqps?:", text, re.IGNORECASE):
        return AmqpTarget(amqp_url(text))
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    path = text
    if scheme and scheme[1].lower() == "file":
        host, slash, rest = text[len(scheme[0]) :].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError("not a file of this machine; write file:///path")
        path = slash + unquote(rest, errors="surrogateescape")
    elif scheme:
        raise ValueError(
            f"{scheme[1]}:// is unknown; use amqp://, amqps://, file:///path, a path, or - (standard output)"
        )
    if not text or os.path.isdir(path):
        raise ValueError("not a file; use amqp://, amqps://, file:///path, a path, or - (standard output)")
    return JsonLinesTarget(os.path.abspath(path))
