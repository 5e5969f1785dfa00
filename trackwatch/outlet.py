"""What `trackwatch check` sees of where events go: a broker, asked in a way that leaves nothing behind, or a file."""

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

from trackwatch.dialogue import ACCESS_REFUSED, Dialogue, Refused, converse, permissions
from trackwatch.event import EventType, routing_key
from trackwatch.finding import LEAST_ROOM_BYTES, Finding, Word, reason, room_bytes, skip
from trackwatch.status import size
from trackwatch.values import AmqpTarget, JsonLinesTarget

# From the broker's name to its last answer: as long as the daemon gives it to connect; milliseconds are usual.
BROKER_S = 10.0

# How RabbitMQ says that an exchange is of another kind.
_KIND = re.compile(
    r"inequivalent arg '([^']*)' .* received (?:the value )?'([^']*)'.* but current is (?:the value )?(.*)$"
)


def outlet_findings(sink: AmqpTarget | JsonLinesTarget, running: Mapping[str, Any]) -> Iterator[Finding]:
    """Yield how it is where events go; `running` is what `status` says of a running daemon, empty without one."""
    match sink:
        case AmqpTarget() as target:
            yield from _broker(target, running)
        case JsonLinesTarget(path=None):
            hint = "set RABBITMQ_URL to publish to a broker"
            yield Finding("output", Word.OK, (f"events go to standard output ({hint})",), (), {"path": None})
        case JsonLinesTarget(path=str(path)):
            yield _file(path)


def _broker(target: AmqpTarget, running: Mapping[str, Any]) -> Iterator[Finding]:
    data: dict[str, Any] = {"target": target.display}
    remedies: tuple[str, ...]
    try:
        with converse(target, BROKER_S) as dialogue:
            facts = [target.display, f"{dialogue.product} {dialogue.version}".strip()]
            data |= {"product": dialogue.product, "version": dialogue.version}
            exchange = _exchange(target, dialogue)
            if not dialogue.confirms:
                facts.append("it confirms nothing, and without that no event is known to be safe")
                remedies = ("use RabbitMQ, or a broker with publisher confirms",)
                yield Finding("broker", Word.FAIL, tuple(facts), remedies, data)
            elif dialogue.blocked is not None:
                facts.append(f"takes no messages now, an alarm is raised ({dialogue.blocked}); events wait")
                remedies = ("make room there (memory, disk); on the broker's machine:", "$ rabbitmq-diagnostics alarms")
                yield Finding("broker", Word.FAIL, tuple(facts), remedies, {**data, "blocked": dialogue.blocked})
            else:
                facts.append(f"user {unquote(urlsplit(target.url).username or 'guest')} is let in")
                yield Finding("broker", Word.OK, tuple(facts), (), data)
    except Refused as refused:
        yield Finding("broker", Word.FAIL, (target.display, refused.reason), refused.remedies, data)
        yield skip("exchange", "not looked at without a broker")
        yield skip("bindings", "not looked at without a broker")
        return
    yield exchange
    yield _bindings(target, running, exchange)


def _exchange(target: AmqpTarget, dialogue: Dialogue) -> Finding:
    name, parts = target.exchange, urlsplit(target.url)
    user, vhost = unquote(parts.username or "guest"), unquote(parts.path[1:]) or "/"
    is_there = dialogue.find_exchange(name) is None
    data = {"exchange": name, "exists": is_there}
    closed = dialogue.compare_exchange(name) if is_there else dialogue.may_configure(name)
    grant = (permissions(user, vhost, name), f"it replaces what {user} may do there so far")
    remedies: tuple[str, ...]
    if closed is not None and closed.code == ACCESS_REFUSED:
        if name.startswith("amq."):
            remedies = ("choose another name with RABBITMQ_EXCHANGE: those with amq. are the broker's own",)
            return Finding("exchange", Word.FAIL, (name, "may not be made"), remedies, data)
        deed = "declare it, as the daemon does at each start" if is_there else "make it"
        return Finding("exchange", Word.FAIL, (name, f"{user} may not {deed}"), grant, data)
    if is_there and closed is not None:
        said = _KIND.search(closed.text)
        other = f"its {said[1]} is {said[3]}, and has to be {said[2]}" if said else closed.text
        other = other.replace("'", "")
        remedies = ("choose another name with RABBITMQ_EXCHANGE, or delete that one if nobody needs it",)
        return Finding("exchange", Word.FAIL, (name, f"there is one of another kind: {other}"), remedies, data)
    for kind in EventType:
        refused = dialogue.may_publish(name, routing_key(kind))
        if dialogue.blocked is not None:
            return Finding("exchange", Word.OK, (name, "there" if is_there else "not there yet"), (), data)
        if refused is not None and refused.code == ACCESS_REFUSED:
            remedies = grant
            if "topic" in refused.text:
                remedies = (f"$ rabbitmqctl clear_topic_permissions -p {shlex.quote(vhost)} {shlex.quote(user)}",)
            return Finding(
                "exchange", Word.FAIL, (name, f"{user} may not publish {routing_key(kind)} to it"), remedies, data
            )
    if is_there:
        return Finding("exchange", Word.OK, (name, "durable topic", f"{user} may publish to it"), (), data)
    return Finding("exchange", Word.OK, (name, "not there yet: the daemon makes it when it starts"), (), data)


def _bindings(target: AmqpTarget, running: Mapping[str, Any], exchange: Finding) -> Finding:
    """Say whether a queue is bound. Only the broker's own tools list that; a daemon that publishes finds it out.

    A mandatory message would tell, and be one to the consumers; in a transaction the broker looks at queues only when
    that is committed, so a rolled back one tells nothing (measured on RabbitMQ 3.10).
    """
    vhost = unquote(urlsplit(target.url).path[1:]) or "/"
    command = f"$ rabbitmqctl list_bindings -p {shlex.quote(vhost)} source_name routing_key destination_name"
    queue = f"$ rabbitmqadmin declare binding source={target.exchange} destination=QUEUE routing_key='file.*'"
    live = running.get("broker") or {}
    if live.get("target") != target.display:
        live = {}
    if live.get("state") == "unroutable":
        return Finding("bindings", Word.FAIL, (f"the daemon says: {live['reason']}",), (queue,))
    if exchange.word is not Word.OK:
        return skip("bindings", "not looked at without an exchange")
    if not exchange.data.get("exists"):
        remedy = "bind a queue to file.* once the daemon has made it; until then events wait, in order"
        return Finding("bindings", Word.WARN, ("without an exchange no queue can be bound",), (remedy,))
    if live.get("state") == "connected" and live.get("published"):
        told = {f"file.{kind}" for kind, count in running["intake"]["events"].items() if count}
        unknown = sorted({routing_key(kind) for kind in EventType} - told)
        facts = [f"queues take what the running daemon publishes ({live['published']:,} so far)"]
        if unknown and told:
            facts.append(f"not yet seen: {', '.join(unknown)}")
        return Finding("bindings", Word.OK, tuple(facts), (), {"unknown": unknown})
    reason = "only the broker's own tools list them; without a queue for file.* events wait here"
    return Finding("bindings", Word.SKIP, (reason,), (command,))


def _file(path: str) -> Finding:
    data = {"path": path}
    folder = os.path.dirname(path)
    user = os.geteuid()

    def found(word: Word, *facts: str, remedies: Sequence[str] = ()) -> Finding:
        return Finding("output", word, (path, *facts), tuple(remedies), data)

    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        if not os.path.isdir(folder):
            return found(Word.FAIL, "its folder is not there", remedies=[f"$ mkdir -p {shlex.quote(folder)}"])
        if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
            remedies = [f"$ install -o {user} /dev/null {shlex.quote(path)}", "or name another file: --to"]
            return found(Word.FAIL, f"user {user} cannot make it", remedies=remedies)
        return found(Word.OK, "is made at the first event")
    except OSError as error:
        return found(Word.FAIL, reason(error), remedies=["name another file: --to"])
    if not os.access(path, os.W_OK, effective_ids=True):
        return found(Word.FAIL, f"user {user} cannot write it", remedies=[f"$ chown {user} {shlex.quote(path)}"])
    if not stat.S_ISREG(mode):
        return found(Word.OK, "may be written, and is no plain file")
    room = room_bytes(os.fsencode(folder))
    if room is not None and room < LEAST_ROOM_BYTES:
        return found(Word.FAIL, f"only {size(room)} free", remedies=["make room on its disk"])
    return found(Word.OK, "may be written", f"{size(room)} free" if room is not None else "")
