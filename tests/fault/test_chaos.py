"""The chaos (tests/chaos.py), short and always with the same seed; and its judge, which must be seen to condemn.

`make chaos SECONDS=900` does this for as long as one likes, with every fault and longer ones.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import NonCallableMock

import pika
import pytest

from tests.bed.recorder import Message, Recorder
from tests.chaos import DELETED, FAULTS, Chaos, Oracle, Problem, sha256, summary_line, table

# What costs little time. Those of the line that take their time to be noticed are in tests/integration/test_amqp.py.
BRIEF = (
    "daemon killed before it has marked",
    "broker killed",
    "memory alarm",
    "queue full",
    "exchange of another type",
    "password wrong",
    "line cut in mid-frame",
    "clock set back",
    "disk full",
    "database locked",
    DELETED,
)


@pytest.mark.broker
@pytest.mark.timeout(290)
def test_no_fault_loses_anything() -> None:
    with Chaos(seed=2, brief=True) as chaos:
        chaos.run(seconds=1, only=BRIEF)
        figures = chaos.summary()
    print(summary_line(figures), table(chaos.records), sep="\n")
    assert set(figures["faults"]) | set(chaos.not_tried) == set(BRIEF)
    assert figures["changes"] > 500
    assert figures["messages"] > figures["changes"]
    assert figures["doubles"] > 0, "a daemon that is killed before it has marked sends again"
    bad = ("lost", "gaps", "order_violations", "wrong", "problems")
    assert {name: figures[name] for name in bad if figures[name]} == {}


def test_each_fault_has_a_name_of_its_own_and_ends_after_it_begins() -> None:
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.brief_s <= fault.most_s and fault.least_s <= fault.most_s for fault in FAULTS)


# --- the judge ---

ROOT = Path("/music")


def event(sequence: int, kind: str = "created", path: str = "a.mp3", **more: Any) -> dict[str, Any]:
    """Return the body of an event about a file in the root."""
    return {
        "event_id": f"id {sequence}",
        "event_type": kind,
        "file_path": str(ROOT / path),
        "sequence": sequence,
        "instance_id": "one",
        "sha256_hash": sha256(path.encode()),
        "timestamp": "2026-01-01T00:00:00.000000Z",
        **more,
    }


def message(body: dict[str, Any], raw: bytes | None = None, **properties: Any) -> Message:
    """Return a message as it arrives."""
    headers = {"sequence": body["sequence"], **properties.pop("headers", {})}
    return Message(
        body=body,
        raw=json.dumps(body).encode() if raw is None else raw,
        routing_key=f"file.{body['event_type']}",
        properties=pika.BasicProperties(message_id=body["event_id"], headers=headers, **properties),
        headers=headers,
        delivery_mode=2,
        message_id=body["event_id"],
        redelivered=False,
        arrived_at_s=float(body["sequence"]),
    )


@pytest.fixture
def judged() -> Callable[[Sequence[Message]], Oracle]:
    """Return an oracle that has read these messages, with `a.mp3` and `b.mp3` of the root owed."""

    def judge(messages: Sequence[Message]) -> Oracle:
        oracle = Oracle(NonCallableMock(Recorder, messages=messages))
        oracle.watch_closely(ROOT)
        for name in ("a.mp3", "b.mp3"):
            oracle.owe("created", ROOT / name, sha256=sha256(name.encode()))
        oracle.read()
        return oracle

    return judge


def test_the_oracle_has_no_complaint_of_a_good_stream(judged: Callable[[Sequence[Message]], Oracle]) -> None:
    oracle = judged([message(event(1)), message(event(2, path="b.mp3")), message(event(1))])
    oracle.check()
    assert (oracle.owed, oracle.gaps, oracle.doubles, oracle.events, oracle.messages) == ([], 0, 1, 2, 3)
    assert oracle.files == {os.fsencode(ROOT / name): sha256(name.encode()) for name in ("a.mp3", "b.mp3")}


def test_the_oracle_knows_what_was_never_told(judged: Callable[[Sequence[Message]], Oracle]) -> None:
    assert [owed[1] for owed in judged([message(event(1))]).owed] == [b"/music/b.mp3"]


def test_the_oracle_sees_a_gap(judged: Callable[[Sequence[Message]], Oracle]) -> None:
    assert judged([message(event(1)), message(event(4, path="b.mp3"))]).gaps == 2


def test_the_oracle_allows_overtaking_among_files_and_not_of_one(judged: Callable[[Sequence[Message]], Oracle]) -> None:
    other = judged([message(event(2, path="b.mp3")), message(event(1))])
    other.check()
    assert other.overtakings == 1
    changed = event(2, "modified", sha256_hash="f" * 64, previous={"sha256_hash": sha256(b"a.mp3")})
    with pytest.raises(Problem, match="order"):
        judged([message(changed), message(event(1))]).check()


@pytest.mark.parametrize(
    "messages",
    [
        pytest.param([message(event(1)), message(event(1), raw=b"{ }")], id="a double with other bytes"),
        pytest.param([message(event(1)), message(event(1), app_id="x")], id="a double with other properties"),
        pytest.param([message(event(1)), message(event(1, path="b.mp3", event_id="x"))], id="a number used twice"),
        pytest.param([message(event(1, path="c.mp3"))], id="a change that nobody made"),
        pytest.param([message(event(1, sha256_hash="f" * 64))], id="another content"),
        pytest.param([message(event(1), headers={"sequence": 7})], id="a header that says otherwise"),
        pytest.param([message(event(1)), message(event(2, event_id="x"))], id="the same told under another id"),
        pytest.param([message(event(1, "deleted", sha256_hash=None))], id="what a fold refuses"),
    ],
)
def test_the_oracle_condemns(judged: Callable[[Sequence[Message]], Oracle], messages: list[Message]) -> None:
    with pytest.raises(Problem, match="wrong"):
        judged(messages).check()
