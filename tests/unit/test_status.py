"""Status: what is collected from a state, the exit code, and what people read."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from trackwatch import catalogue, outbox
from trackwatch.errors import ExitCode, StoreError
from trackwatch.event import MetadataForm, rfc3339
from trackwatch.record import Absent, Ledger, Present, Unreadable
from trackwatch.status import collect, duration, exit_code, lines, shown_path, size, write_snapshot
from trackwatch.store import _open_for_writing, wall_clock_us
from trackwatch.track import Location, Observation, Signature

SECOND_US = 1_000_000
NOW_US = 1_795_000_000_000_000


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state with two files of 1500 bytes in /music, one that is unreadable, and six events, an hour old.

    One of them is published, one parked.
    """
    with closing(_open_for_writing(tmp_path / "trackwatch.db")) as conn:
        conn.execute("BEGIN")
        clock = count(wall_clock_us() - 3600 * SECOND_US)
        ledger = Ledger(conn, "here", MetadataForm.STRUCTURED, lambda: next(clock))
        ledger.claim_roots((b"/music", b"/\xffold"))
        for number in range(4):
            seen = Observation(Signature(5, number, 1500, 10, 20), bytes([number]) * 32, bytes(16))
            ledger.record(Present(Location(1, b"%d.mp3" % number), seen))
        for number in range(2):
            ledger.record(Absent(Location(1, b"%d.mp3" % number)))
        ledger.record(Unreadable(Location(1, b"\xff.mp3"), "not readable (permission denied)"))
        outbox.confirm(conn, [(1, 0)])
        outbox.park(conn, 2, 0, "no queue")
        catalogue.set_swept(conn, 1, NOW_US)
        conn.execute("COMMIT")
    return tmp_path


@pytest.fixture
def held(state: Path) -> Iterator[Path]:
    """The same state, held by this process as a daemon does."""
    descriptor = os.open(state / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    yield state
    os.close(descriptor)


def snapshot(**changed: Any) -> dict[str, Any]:
    """Return what a healthy daemon writes."""
    return {
        "pid": os.getpid(),
        "version": "1.2.3",
        "instance_id": "here",
        "state": "watching",
        "started_at": rfc3339(NOW_US - 7200 * SECOND_US),
        "seen_at": rfc3339(NOW_US - 10 * SECOND_US),
        "roots": [{"path": "/music", "state": "ok", "reason": ""}],
        "intake": {"dirty": 1200, "in_hand": 3},
        "broker": {
            "state": "connected",
            "reason": "",
            "since": rfc3339(NOW_US - 300 * SECOND_US),
            "target": "amqp://rabbit:5672/",
        },
        "store": {"trouble": "", "commits": 5},
        **changed,
    }


def root(**changed: Any) -> dict[str, Any]:
    """Return what a healthy daemon says of its root."""
    return {"path": "/music", "state": "ok", "reason": "", **changed}


# ---- what is collected


def test_a_running_daemon_is_described_from_its_snapshot_and_the_database(held: Path) -> None:
    """What lives in memory from the one, what lasts from the other."""
    write_snapshot(held, snapshot())
    report = collect(held)
    assert (report["running"], report["state"], report["pid"]) == (True, "watching", os.getpid())
    assert report["instance_id"] == "here"
    assert report["roots"] == [
        {
            "path": "/music",
            "files": 2,
            "size_bytes": 3000,
            "swept_at": rfc3339(NOW_US),
            "state": "ok",
            "reason": "",
        },
        {"path": "/\ufffdold", "files": 0, "size_bytes": 0, "swept_at": None, "state": "not watched"},
    ]
    events = report["outbox"]
    assert (events["kept"], events["pending"], events["parked"], events["published"]) == (6, 4, 1, 1)
    assert 3599 < events["oldest_pending_s"] < 3700
    assert report["problems"] == {
        "count": 1,
        "recent": [{"path": "/music/\ufffd.mp3", "reason": "not readable (permission denied)"}],
    }
    assert exit_code(report) is ExitCode.OK


def test_a_dead_daemon_is_not_running_whatever_it_wrote_last(state: Path) -> None:
    """Its last words tell when it was seen; its intake is over."""
    write_snapshot(state, snapshot(pid=4711))
    report = collect(state)
    assert (report["running"], report["state"], report["pid"]) == (False, "not running", None)
    assert report["seen_at"] == rfc3339(NOW_US - 10 * SECOND_US)
    assert report["intake"] == {}
    assert exit_code(report) is ExitCode.NOT_RUNNING


@pytest.mark.parametrize("content", [None, "", "{", "\udcff"])
def test_a_snapshot_that_is_missing_or_broken_is_done_without(held: Path, content: str | None) -> None:
    """The daemon has only just begun, or the machine lost power."""
    if content is not None:
        (held / "status.json").write_text(content, errors="surrogateescape")
    report = collect(held)
    assert (report["running"], report["state"]) == (True, "starting")
    assert exit_code(report) is ExitCode.OK
    assert list(lines(report, NOW_US))


def test_the_snapshot_of_an_earlier_process_is_not_taken_for_this_one_s(held: Path) -> None:
    """Until the new one has written its own."""
    write_snapshot(held, snapshot(pid=4711, state="stopped"))
    assert collect(held)["state"] == "starting"


def test_a_snapshot_takes_any_text(held: Path) -> None:
    """Half of a name's bytes, for instance: no name stops the daemon from being seen."""
    broker = snapshot()["broker"] | {"target": "/out/\udcff/é.jsonl"}
    write_snapshot(held, snapshot(broker=broker))
    assert collect(held)["broker"]["target"] == "/out/?/é.jsonl"
    assert sorted(path.name for path in held.glob("status*")) == ["status.json"]


def test_without_a_state_there_is_nothing_to_say(tmp_path: Path) -> None:
    """And nothing is made."""
    with pytest.raises(StoreError, match="no state"):
        collect(tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- the exit code


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, ExitCode.OK),
        ({"state": "importing"}, ExitCode.OK),
        ({"state": "stopping"}, ExitCode.OK),
        ({"broker": {"state": "starting"}}, ExitCode.OK),
        ({"broker": {"state": "unavailable"}}, ExitCode.DEFECT),
        ({"broker": {"state": "refused"}}, ExitCode.DEFECT),
        ({"broker": {"state": "blocked"}}, ExitCode.DEFECT),
        ({"broker": {"state": "unroutable"}}, ExitCode.DEFECT),
        ({"broker": {"state": "rejected"}}, ExitCode.DEFECT),
        ({"roots": [root(state="unavailable", reason="empty")]}, ExitCode.DEFECT),
        ({"roots": [root(state="starting")]}, ExitCode.OK),
        ({"store": {"trouble": "the disk is full"}}, ExitCode.DEFECT),
    ],
)
def test_the_exit_code_says_whether_anything_needs_a_person_or_patience(
    held: Path, changed: dict[str, Any], expected: ExitCode
) -> None:
    """Everything has to be well; a root that is no longer configured does not count."""
    write_snapshot(held, snapshot(**changed))
    assert exit_code(collect(held)) is expected


# ---- what people read


def test_people_read_one_line_for_each_stage(held: Path) -> None:
    """With the word first, numbers grouped, and times as how long ago."""
    write_snapshot(held, snapshot())
    report = collect(held)
    report["outbox"]["oldest_pending_s"] = 3600.0
    assert list(lines(report, NOW_US)) == [
        ("●", "watching", f"up 2 h · pid {os.getpid()} · instance here"),
        ("roots", "ok", "/music · 2 files · 3.0 kB · swept 0 s ago"),
        ("roots", "not watched", "/\ufffdold · 0 files · 0 B · not swept yet"),
        ("intake", "busy", "1,200 dirty · 3 in hand"),
        ("outbox", "4 pending", "oldest 60 min · 1 parked · 1 published"),
        ("broker", "connected", "amqp://rabbit:5672/ · since 5 min"),
        ("problems", "1 files", ""),
        ("↳", "", "/music/\ufffd.mp3: not readable (permission denied)"),
    ]


def test_a_dead_daemon_s_lines_say_when_it_was_seen_and_what_waits(state: Path) -> None:
    """And claim nothing of roots and broker that was true once."""
    write_snapshot(state, snapshot(pid=4711))
    shown = list(lines(collect(state), NOW_US))
    assert shown[0] == ("○", "not running", "last seen 10 s ago, 4 events pending")
    assert [word for label, word, _ in shown if label == "roots"] == ["-", "-"]
    assert not {"broker", "intake"} & {label for label, _, _ in shown}


def test_trouble_comes_with_its_reason(held: Path) -> None:
    """Below the line that it explains."""
    broker = snapshot()["broker"] | {"state": "refused", "reason": "wrong password"}
    roots = [root(state="unavailable", reason="it is empty")]
    write_snapshot(held, snapshot(broker=broker, roots=roots, store={"trouble": "the disk is full"}))
    shown = list(lines(collect(held), NOW_US))
    assert ("state", "unwritable", "the disk is full") in shown
    for label, word, reason in (("roots", "unavailable", "it is empty"), ("broker", "refused", "wrong password")):
        at = next(number for number, line in enumerate(shown) if line[:2] == (label, word))
        assert shown[at + 1] == ("↳", "", reason)


def test_an_idle_intake_is_called_idle(held: Path) -> None:
    """Nothing dirty, nothing in hand."""
    write_snapshot(held, snapshot(intake={"dirty": 0, "in_hand": 0}))
    assert ("intake", "idle", "0 dirty · 0 in hand") in list(lines(collect(held), NOW_US))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (41.4, "41 s"),
        (99, "99 s"),
        (100, "2 min"),
        (5999, "100 min"),
        (6000, "2 h"),
        (86400, "24 h"),
        (48 * 3600, "2 d 0 h"),
        (76 * 3600 + 3599, "3 d 4 h"),
    ],
)
def test_a_duration_is_told_in_the_unit_that_fits(seconds: float, words: str) -> None:
    """Never more precise than it is useful."""
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("count_bytes", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_940, "999.9 kB"),
        (999_960, "1.0 MB"),
        (999_999_999, "1.0 GB"),
        (25 * 10**11, "2.5 TB"),
        (10**16, "10000.0 TB"),
    ],
)
def test_a_size_is_told_in_powers_of_ten(count_bytes: int, words: str) -> None:
    """As disks are sold."""
    assert size(count_bytes) == words


def test_the_home_directory_is_shown_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only itself and what lies in it."""
    monkeypatch.setenv("HOME", "/home/me")
    assert shown_path(b"/home/me/\xff") == "~/\ufffd"
    assert shown_path(b"/home/me") == "~"
    assert shown_path(b"/home/mega") == "/home/mega"
