"""Status: what is collected from a state, the exit code, and what people read."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from trackwatch import catalogue, outbox
from trackwatch.clock import wall_clock_us
from trackwatch.database import open_for_writing
from trackwatch.errors import ExitCode, StoreError
from trackwatch.event import MetadataForm, rfc3339
from trackwatch.publisher import BrokerWord
from trackwatch.record import Absent, Ledger, Present, Unreadable
from trackwatch.root import RootWord
from trackwatch.status import (
    SILENT_S,
    broker_word,
    collect,
    duration,
    exit_code,
    lines,
    lock_mark,
    shown_path,
    size,
    write_snapshot,
)
from trackwatch.track import Location, Observation, Signature

SCHEMA = json.loads((Path(__file__).parents[2] / "ops" / "contract" / "status.schema.json").read_text("utf-8"))
SECOND_US = 1_000_000
NOW_US = 1_795_000_000_000_000
FAR = {
    "files": 8911,
    "files_total": 12408,
    "size_bytes": 61 * 10**9,
    "total_bytes": 85 * 10**9,
    "bytes_per_s": 1.31e9,
    "left_s": 18.2,
}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state with two files of 1500 bytes in /music, one that is unreadable, and six events, an hour old.

    One of them is published, one parked.
    """
    with closing(open_for_writing(tmp_path / "trackwatch.db")) as conn:
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
    descriptor = os.open(state, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    (state / "lock").write_text(f"{os.getpid()}\n")
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
        "seen_at": rfc3339(wall_clock_us()),
        "retention_days": 7.0,
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
    here, old = report["roots"]
    assert (here["path"], here["state"], here["files"], here["size_bytes"]) == ("/music", "ok", 2, 3000)
    assert (here["swept_at"], here["reason"]) == (rfc3339(NOW_US), "")
    assert (old["path"], old["state"], old["files"], old["swept_at"]) == ("/\ufffdold", "not watched", 0, None)
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
    assert report["seen_at"] is not None
    assert (report["intake"], report["broker"], report["roots"][0]["state"]) == (None, None, "unknown")
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


def test_in_a_container_an_earlier_process_has_the_same_id(held: Path) -> None:
    """The moment when the state was taken tells them apart."""
    write_snapshot(held, snapshot(lock_mark=lock_mark(held)))
    assert collect(held)["state"] == "watching"
    write_snapshot(held, snapshot(lock_mark=(lock_mark(held) or 0) - 1))
    assert collect(held)["state"] == "starting"


def test_a_daemon_that_holds_the_state_and_says_nothing_is_silent(held: Path) -> None:
    """It hangs, or is paused; that is not well, and people are told what to do."""
    write_snapshot(held, snapshot(seen_at=rfc3339(wall_clock_us() - int((SILENT_S + 5) * SECOND_US))))
    report = collect(held)
    assert (report["state"], report["exit_code"]) == ("silent", ExitCode.NOT_RUNNING)
    head, remedy, *_ = lines(report, wall_clock_us())
    assert head.facts[-1] == "last seen 35 s ago"
    assert "restart it" in remedy.facts[0]


def test_a_daemon_that_ended_in_order_was_stopped(state: Path) -> None:
    """Of one that was killed the last word is another; both are not running."""
    write_snapshot(state, snapshot(pid=4711, state="stopped"))
    report = collect(state)
    assert (report["state"], report["running"], exit_code(report)) == ("stopped", False, ExitCode.NOT_RUNNING)
    assert next(iter(lines(report, wall_clock_us()))) == ("○", "stopped", ("0 s ago", "4 events pending"))


def test_the_broker_s_word_alone_comes_from_the_snapshot(held: Path) -> None:
    """For those who wait until it is connected."""
    assert broker_word(held) == "starting"
    write_snapshot(held, snapshot())
    assert broker_word(held) == "connected"


# ---- the form of the report


def test_a_report_is_as_its_schema_says(held: Path) -> None:
    """Starting, running, silent: nothing is missing, and nothing is undocumented."""
    jsonschema.validate(collect(held), SCHEMA)
    cases: list[dict[str, Any]] = [
        {},
        {"seen_at": rfc3339(0)},
        {"state": "importing", "intake": {"import": FAR, "new": 1}},
        {"roots": [], "broker": None, "store": 7, "retention_days": None},
    ]
    for changed in cases:
        write_snapshot(held, snapshot(**changed))
        jsonschema.validate(collect(held), SCHEMA)


@pytest.mark.parametrize("last", ["watching", "stopped", None])
def test_a_dead_daemon_s_report_is_as_its_schema_says(state: Path, last: str | None) -> None:
    """With a snapshot, and without."""
    if last is not None:
        write_snapshot(state, snapshot(pid=4711, state=last))
    jsonschema.validate(collect(state), SCHEMA)


def test_the_schema_knows_every_word() -> None:
    """Those of the broker, and of the roots."""
    known = SCHEMA["properties"]
    assert set(known["broker"]["properties"]["state"]["enum"]) == set(BrokerWord)
    assert set(known["roots"]["items"]["properties"]["state"]["enum"]) >= set(RootWord)


def test_how_many_problems_are_listed_is_for_the_caller(held: Path) -> None:
    """The count is that of all."""
    assert collect(held, problems_max=0)["problems"] == {"count": 1, "recent": []}
    *_, more = lines(collect(held, problems_max=0), NOW_US)
    assert more.facts == ("and 1 more (--problems 1 shows all)",)


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


def shown(report: dict[str, Any], now_us: int = NOW_US) -> list[tuple[str, str, str]]:
    """Return what people read, the facts as one text."""
    return [(label, word, " · ".join(facts)) for label, word, facts in lines(report, now_us)]


def test_people_read_one_line_for_each_stage(held: Path) -> None:
    """With the word first, numbers grouped, and times as how long ago."""
    write_snapshot(held, snapshot())
    report = collect(held)
    report["outbox"] |= {"oldest_pending_s": 3600.0, "last_event_at": rfc3339(NOW_US - 12 * SECOND_US)}
    assert shown(report) == [
        ("●", "watching", f"up 2 h · pid {os.getpid()} · instance here"),
        ("roots", "ok", "/music · 2 files · 3.0 kB · swept 0 s ago"),
        ("roots", "not watched", "/\ufffdold · 0 files · 0 B · not swept yet"),
        ("intake", "busy", "1,200 dirty · 3 in hand · last change 12 s ago"),
        ("outbox", "4 pending", "oldest 60 min · 1 parked · 1 published, kept 7 d"),
        ("↳", "", "parked: no queue; trackwatch replay --parked sends them again"),
        ("broker", "connected", "amqp://rabbit:5672/ · for 5 min"),
        ("problems", "1 file", ""),
        ("↳", "", "/music/\ufffd.mp3: not readable (permission denied)"),
    ]


def test_a_dead_daemon_s_lines_say_when_it_was_seen_and_what_waits(state: Path) -> None:
    """And claim nothing of roots and broker that was true once."""
    write_snapshot(state, snapshot(pid=4711, seen_at=rfc3339(NOW_US - 7300 * SECOND_US)))
    told = shown(collect(state))
    assert told[0] == ("○", "not running", "last seen 2 h ago · 4 events pending")
    assert "those pending are sent then" in told[1][2]
    assert [word for label, word, _ in told if label == "roots"] == ["-", "-"]
    assert not {"broker", "intake"} & {label for label, _, _ in told}


def test_a_state_without_any_daemon_s_word_says_so(state: Path) -> None:
    """A copy of the database alone."""
    assert shown(collect(state))[0] == ("○", "not running", "never seen · 4 events pending")


def test_trouble_comes_with_its_reason(held: Path) -> None:
    """Below the line that it explains; of a root that is away, with how many files are kept, and since when."""
    broker = snapshot()["broker"] | {"state": "refused", "reason": "wrong password"}
    roots = [root(state="unavailable", reason="it is empty", since=rfc3339(NOW_US - 60 * SECOND_US))]
    write_snapshot(held, snapshot(broker=broker, roots=roots, store={"trouble": "the disk is full"}))
    told = shown(collect(held))
    assert ("state", "unwritable", "the disk is full") in told
    assert ("roots", "unavailable", "/music · for 60 s · 2 files kept · 3.0 kB · swept 0 s ago") in told
    for label, word, reason in (("roots", "unavailable", "it is empty"), ("broker", "refused", "wrong password")):
        at = next(number for number, line in enumerate(told) if line[:2] == (label, word))
        assert told[at + 1] == ("↳", "", reason)


def test_directories_that_are_not_watched_are_told_with_the_remedy(held: Path) -> None:
    """One or many; those that cannot be read, too."""
    write_snapshot(held, snapshot(roots=[root(unwatched_directories=1200, unlistable_directories=1, sweeping=True)]))
    told = [rest for _, _, rest in shown(collect(held))]
    assert "/music · 2 files · 3.0 kB · being swept" in told
    assert any(rest.startswith("1,200 directories are not watched, only swept") for rest in told)
    assert any(rest.startswith("1 directory cannot be listed") for rest in told)


def test_an_idle_intake_is_called_idle(held: Path) -> None:
    """Nothing dirty, nothing in hand; what it did a moment ago is over."""
    write_snapshot(held, snapshot(intake={"dirty": 0, "in_hand": 0, "files_per_s": 3.5}))
    report = collect(held)
    report["outbox"]["last_event_at"] = None
    assert ("intake", "idle", "0 dirty · 0 in hand") in shown(report)


def test_an_import_says_how_far_it_is_and_how_long_it_will_take(held: Path) -> None:
    """At its present pace."""
    intake = {"dirty": 900, "in_hand": 8, "files_per_s": 192.0, "bytes_per_s": 1.31e9, "import": FAR}
    write_snapshot(held, snapshot(state="importing", intake=intake))
    report = collect(held)
    report["outbox"]["last_event_at"] = None
    rest = "900 dirty · 8 in hand · 192 files/s · 1.3 GB/s · 8,911/12,408 files · 61.0 GB/85.0 GB · 18 s left"
    assert ("intake", "busy", rest) in shown(report)


def test_a_replay_is_told_apart_from_what_is_new(held: Path) -> None:
    """Its events are old: they make nothing late."""
    with closing(open_for_writing(held / "trackwatch.db")) as conn:
        outbox.confirm(conn, [(event.sequence, event.generation) for event in outbox.pending(conn, 100)])
        outbox.replay(conn, [1, 3])
    write_snapshot(held, snapshot())
    report = collect(held)
    assert (report["outbox"]["oldest_pending_s"], report["outbox"]["replaying"]) == (None, 2)
    (rest,) = (rest for label, _, rest in shown(report) if label == "outbox")
    assert rest == "2 of them sent again · 1 parked · 3 published, kept 7 d"


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
