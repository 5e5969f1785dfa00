"""The ledger on a real database: which changes become which events, and what is remembered of each file."""

import base64
import json
import sqlite3
from hashlib import sha256
from itertools import count
from typing import Any

import pytest

from trackwatch import catalogue, outbox
from trackwatch.event import EventType, MetadataForm
from trackwatch.record import Absent, Exchanged, Ledger, Linked, Moved, Present, Unreadable
from trackwatch.track import Location, Metadata, Observation, Signature

NOW_US = 1_795_000_000_000_000
AUDIO, AUDIO_HASH = b"\x05" * 16, "xxh128:" + "05" * 16
TAGS = Metadata("audio/mpeg", duration_s=12.5, sample_rate=44100, tags={"title": "Ünï", "track": 3})


@pytest.fixture
def ledger(conn: sqlite3.Connection) -> Ledger:
    """A ledger on a new state in memory, with two roots, 1 (/music) and 2 (/more); its clock ticks with each look."""
    clock = count(NOW_US)
    made = Ledger(conn, "here", MetadataForm.STRUCTURED, lambda: next(clock))
    made.claim_roots((b"/music", b"/more"))
    return made


def at(path: bytes, root_id: int = 1) -> Location:
    """Return a location, in the first root unless told."""
    return Location(root_id, path)


def signature(inode: int = 1, **changed: Any) -> Signature:
    """Return what stat says of a file."""
    values: dict[str, Any] = {"dev": 5, "size_bytes": 7, "mtime_ns": 10**18, "ctime_ns": 10**18}
    return Signature(inode=inode, **(values | changed))


def observation(content: bytes = b"one", inode: int = 1, metadata: Metadata | None = TAGS, **changed: Any) -> Any:
    """Return what a look at a file with this content found; its audio is the same unless there is no metadata."""
    seen = signature(inode, size_bytes=len(content), **changed)
    digest, audio = sha256(content).digest(), AUDIO if metadata else None
    return Observation(seen, digest, digest[:16], metadata, audio_xxh128=audio)


def present(path: bytes, content: bytes = b"one", inode: int = 1, root_id: int = 1, **changed: Any) -> Present:
    """Return the change that a described file is."""
    return Present(at(path, root_id), observation(content, inode, **changed))


def events(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the payloads of all events, oldest first."""
    rows = ledger.conn.execute("SELECT payload FROM outbox ORDER BY seq").fetchall()
    return [json.loads(payload) for (payload,) in rows]


def told(ledger: Ledger) -> list[tuple[str, str]]:
    """Return type and path of all events, oldest first."""
    return [(event["event_type"], event["file_path"]) for event in events(ledger)]


def known(ledger: Ledger, path: bytes, root_id: int = 1) -> catalogue.Entry:
    """Return the file that is known at a path, which must be known."""
    entry = catalogue.find(ledger.conn, at(path, root_id))
    assert entry is not None
    return entry


def problems(ledger: Ledger) -> list[tuple[bytes, str]]:
    """Return what cannot be described."""
    return catalogue.list_problems(ledger.conn, 10)


# ---- created, modified, deleted


def test_a_new_file_is_created_with_all_that_is_known_of_it(ledger: Ledger) -> None:
    """Catalogue row and event are both there, and agree."""
    assert ledger.record(present(b"a/b.mp3"))
    (event,) = events(ledger)
    entry = known(ledger, b"a/b.mp3")
    assert entry.sha256.hex() == event["sha256_hash"]
    assert entry.xxh128.hex() == event["xxh128_hash"]
    assert entry.last_seq == event["sequence"] == 1
    assert event["event_type"] == "created"
    assert event["root"] == "/music"
    assert event["relative_path"] == "a/b.mp3"
    assert event["file_path"] == "/music/a/b.mp3"
    assert event["metadata"]["tags"] == {"title": "Ünï", "track": 3}
    assert event["size_bytes"] == 3
    assert event["instance_id"] == "here"
    assert event["previous"] is None
    assert event["old_path"] is None


def test_other_content_is_a_modification_that_tells_what_was_there(ledger: Ledger) -> None:
    """`previous` has the old hashes and size."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"a.mp3", b"other", inode=2))
    event = events(ledger)[1]
    assert event["event_type"] == "modified"
    assert event["previous"] == {
        "sha256_hash": sha256(b"one").hexdigest(),
        "xxh128_hash": sha256(b"one").hexdigest()[:32],
        "audio_hash": AUDIO_HASH,
        "size_bytes": 3,
    }
    assert known(ledger, b"a.mp3").sha256 == sha256(b"other").digest()
    assert known(ledger, b"a.mp3").last_seq == 2


def test_the_same_content_under_another_signature_is_no_news(ledger: Ledger) -> None:
    """Touched or copied over itself: the signature is remembered, nobody is told."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"a.mp3", inode=9, mtime_ns=2 * 10**18))
    assert told(ledger) == [("created", "/music/a.mp3")]
    entry = known(ledger, b"a.mp3")
    assert (entry.signature.inode, entry.signature.mtime_ns) == (9, 2 * 10**18)
    assert entry.last_seq == 1


def test_tags_that_a_silent_refresh_reads_anew_are_remembered(ledger: Ledger) -> None:
    """A later release may read more than the one that described the file first."""
    ledger.record(present(b"a.mp3", metadata=None))
    ledger.record(present(b"a.mp3"))
    described = catalogue.describe(ledger.conn, known(ledger, b"a.mp3").id)
    assert described.metadata is not None
    assert json.loads(described.metadata)["sample_rate"] == 44100


def test_a_deletion_tells_what_was_there(ledger: Ledger) -> None:
    """It has no content of its own."""
    ledger.record(present(b"a.mp3"))
    assert ledger.record(Absent(at(b"a.mp3")))
    event = events(ledger)[1]
    assert event["event_type"] == "deleted"
    assert event["sha256_hash"] is None
    assert event["metadata"] is None
    assert event["previous"]["sha256_hash"] == sha256(b"one").hexdigest()
    assert catalogue.find(ledger.conn, at(b"a.mp3")) is None
    assert ledger.conn.execute("SELECT count(*) FROM catalogue_metadata").fetchone() == (0,)


def test_what_was_never_announced_is_not_deleted(ledger: Ledger) -> None:
    """A temporary file that came and went is nobody's business."""
    assert ledger.record(Absent(at(b"tmp.mp3")))
    assert told(ledger) == []


def test_a_file_that_comes_back_is_created_again(ledger: Ledger) -> None:
    """Not modified: for consumers it was gone."""
    for change in (present(b"a.mp3"), Absent(at(b"a.mp3")), present(b"a.mp3", b"other")):
        ledger.record(change)
    assert [kind for kind, _ in told(ledger)] == ["created", "deleted", "created"]


def test_the_same_path_below_two_roots_is_two_files(ledger: Ledger) -> None:
    """Each with its own events."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"a.mp3", root_id=2))
    ledger.record(Absent(at(b"a.mp3", 2)))
    assert told(ledger) == [("created", "/music/a.mp3"), ("created", "/more/a.mp3"), ("deleted", "/more/a.mp3")]
    assert known(ledger, b"a.mp3").last_seq == 1


@pytest.mark.parametrize(
    "change",
    [
        present(b"a.mp3", b"other"),
        Absent(at(b"a.mp3")),
        Moved(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3)),
        Linked(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3)),
    ],
    ids=["modified", "deleted", "moved", "linked"],
)
def test_doing_it_twice_says_nothing_twice(ledger: Ledger, change: Any) -> None:
    """A caller that was cancelled does not know whether it was done, and may ask again."""
    ledger.record(present(b"a.mp3"))
    ledger.record(change)
    once = told(ledger)
    assert len(once) == 2
    ledger.record(change)
    assert told(ledger) == once


# ---- moves


def test_a_new_name_in_the_same_directory_is_a_rename(ledger: Ledger) -> None:
    """With hashes and metadata, without reading a byte."""
    ledger.record(present(b"d/a.mp3"))
    moved = Moved(at(b"d/a.mp3"), at(b"d/b.mp3"), signature(size_bytes=3, ctime_ns=11 * 10**17))
    assert ledger.record(moved)
    event = events(ledger)[1]
    assert event["event_type"] == "renamed"
    assert (event["old_path"], event["file_path"]) == ("/music/d/a.mp3", "/music/d/b.mp3")
    assert event["sha256_hash"] == sha256(b"one").hexdigest()
    assert event["previous"] is None
    assert catalogue.find(ledger.conn, at(b"d/a.mp3")) is None
    assert known(ledger, b"d/b.mp3").signature == moved.signature
    assert known(ledger, b"d/b.mp3").last_seq == 2


@pytest.mark.parametrize("to", [at(b"e/a.mp3"), at(b"a.mp3"), at(b"d/e/a.mp3"), at(b"d/a.mp3", 2)])
def test_another_directory_or_root_is_a_move(ledger: Ledger, to: Location) -> None:
    """Also one level up or down."""
    ledger.record(present(b"d/a.mp3"))
    assert ledger.record(Moved(at(b"d/a.mp3"), to, signature(size_bytes=3)))
    event = events(ledger)[1]
    assert event["event_type"] == "moved"
    assert event["old_path"] == "/music/d/a.mp3"
    assert event["root"] == ("/music" if to.root_id == 1 else "/more")


def test_metadata_is_kept_over_a_move(ledger: Ledger) -> None:
    """In the event and in the catalogue; an error is kept likewise."""
    ledger.record(present(b"a.mp3"))
    unreadable = observation(b"two", 2, None)._replace(metadata_error="cut off")
    ledger.record(Present(at(b"b.mp3"), unreadable))
    ledger.record(Moved(at(b"a.mp3"), at(b"d/a.mp3"), signature(size_bytes=3)))
    ledger.record(Moved(at(b"b.mp3"), at(b"d/b.mp3"), signature(2, size_bytes=3)))
    good, bad = events(ledger)[2:]
    assert good["metadata"] == events(ledger)[0]["metadata"]
    assert bad["metadata_error"] == "cut off"
    assert json.loads(catalogue.describe(ledger.conn, known(ledger, b"d/a.mp3").id).metadata or "") == good["metadata"]
    assert catalogue.describe(ledger.conn, known(ledger, b"d/b.mp3").id).error == "cut off"


def test_what_is_moved_over_is_deleted_first(ledger: Ledger) -> None:
    """Or else a consumer would hold two files under one name."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"b.mp3", b"two", inode=2))
    assert ledger.record(Moved(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3)))
    assert told(ledger)[2:] == [("deleted", "/music/b.mp3"), ("renamed", "/music/b.mp3")]
    assert events(ledger)[2]["previous"]["sha256_hash"] == sha256(b"two").hexdigest()
    assert known(ledger, b"b.mp3").sha256 == sha256(b"one").digest()
    assert ledger.conn.execute("SELECT count(*) FROM catalogue").fetchone() == (1,)


@pytest.mark.parametrize(
    "change",
    [
        Moved(at(b"never.mp3"), at(b"b.mp3"), signature(size_bytes=3)),
        Moved(at(b"a.mp3"), at(b"b.mp3"), signature(2, size_bytes=3)),
        Moved(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=4)),
        Moved(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3), sha256(b"two").digest()),
        Moved(at(b"a.mp3"), at(b"a.mp3"), signature(size_bytes=3)),
        Linked(at(b"never.mp3"), at(b"b.mp3"), signature(size_bytes=3)),
        Linked(at(b"a.mp3"), at(b"b.mp3"), signature(2, size_bytes=3)),
    ],
    ids=["unknown", "inode", "size", "hash", "onto itself", "unknown source", "other source"],
)
def test_what_no_longer_fits_is_refused_and_leaves_no_trace(ledger: Ledger, change: Moved | Linked) -> None:
    """Also not the deletion of what stands at the new place."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"b.mp3", b"bbb", inode=3))
    ledger.record(Unreadable(at(b"c.mp3"), "no"))
    before = list(ledger.conn.iterdump())
    assert not ledger.record(change)
    assert list(ledger.conn.iterdump()) == before
    assert ledger.next_sequence == 3


def test_over_file_systems_the_hash_is_the_evidence(ledger: Ledger) -> None:
    """Inode, device and times are all others; the event tells the new modification time."""
    ledger.record(present(b"a.mp3"))
    elsewhere = signature(99, dev=6, size_bytes=3, mtime_ns=2 * 10**18)
    assert ledger.record(Moved(at(b"a.mp3"), at(b"a.mp3", 2), elsewhere, sha256(b"one").digest()))
    assert events(ledger)[1]["modified_at"] == "2033-05-18T03:33:20.000000Z"
    assert known(ledger, b"a.mp3", 2).signature == elsewhere


def test_a_chain_and_a_swap_of_moves_keep_the_files_apart(ledger: Ledger) -> None:
    """Two files change their names by way of a third."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"b.mp3", b"two", inode=2))
    one, two = signature(1, size_bytes=3), signature(2, size_bytes=3)
    for old, new, seen in ((b"a.mp3", b"c.mp3", one), (b"b.mp3", b"a.mp3", two), (b"c.mp3", b"b.mp3", one)):
        assert ledger.record(Moved(at(old), at(new), seen))
    assert known(ledger, b"a.mp3").sha256 == sha256(b"two").digest()
    assert known(ledger, b"b.mp3").sha256 == sha256(b"one").digest()


def test_files_that_changed_places_are_modified_each(ledger: Ledger) -> None:
    """With the metadata that came along; nothing at all once one of them no longer fits."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"b.mp3", b"two", inode=2, metadata=None))
    one, two = signature(1, size_bytes=3, ctime_ns=3), signature(2, size_bytes=3, ctime_ns=3)
    circle = (Moved(at(b"a.mp3"), at(b"b.mp3"), one), Moved(at(b"b.mp3"), at(b"a.mp3"), two))
    assert ledger.record(Exchanged(circle))
    assert told(ledger)[2:] == [("modified", "/music/b.mp3"), ("modified", "/music/a.mp3")]
    assert events(ledger)[2]["metadata"] == events(ledger)[0]["metadata"]
    assert known(ledger, b"a.mp3").sha256 == sha256(b"two").digest()
    assert known(ledger, b"b.mp3").sha256 == sha256(b"one").digest()
    assert not ledger.record(Exchanged(circle))
    assert len(told(ledger)) == 4


def test_a_link_is_created_with_what_is_known_of_its_source(ledger: Ledger) -> None:
    """The source stays."""
    ledger.record(present(b"a.mp3"))
    assert ledger.record(Linked(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3, ctime_ns=3)))
    event = events(ledger)[1]
    assert (event["event_type"], event["file_path"], event["old_path"]) == ("created", "/music/b.mp3", None)
    assert event["metadata"] == events(ledger)[0]["metadata"]
    assert known(ledger, b"a.mp3").sha256 == known(ledger, b"b.mp3").sha256


def test_a_link_over_a_known_file_is_a_modification(ledger: Ledger) -> None:
    """What was there is told."""
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"b.mp3", b"two", inode=2))
    assert ledger.record(Linked(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3)))
    assert events(ledger)[2]["event_type"] == "modified"
    assert events(ledger)[2]["previous"]["sha256_hash"] == sha256(b"two").hexdigest()


# ---- what changed


def test_a_modification_says_what_has_changed(ledger: Ledger) -> None:
    """By the hash of the audio, and by the tags as they were told."""
    retagged, other = TAGS._replace(tags={"title": "Other"}), b"\x06" * 16
    ledger.record(present(b"a.mp3"))
    ledger.record(present(b"a.mp3", b"tags", metadata=retagged))
    ledger.record(Present(at(b"a.mp3"), observation(b"audio", metadata=retagged)._replace(audio_xxh128=other)))
    ledger.record(Present(at(b"a.mp3"), observation(b"both")))
    ledger.record(Present(at(b"a.mp3"), observation(b"unknown")._replace(audio_xxh128=None)))
    ledger.record(Present(at(b"a.mp3"), observation(b"known again")))
    changed = [event.get("changed", "absent") for event in events(ledger)]
    assert changed == ["absent", ["tags"], ["audio"], ["audio", "tags"], "absent", "absent"]
    hashes = [event["audio_hash"] for event in events(ledger)]
    assert hashes == [AUDIO_HASH, AUDIO_HASH, "xxh128:" + "06" * 16, AUDIO_HASH, None, AUDIO_HASH]
    before = [event["previous"]["audio_hash"] for event in events(ledger)[1:]]
    assert before == hashes[:-1]


def test_other_audio_with_tags_that_cannot_be_read_is_not_guessed_about(ledger: Ledger) -> None:
    """Neither when they could not be read before; with the same audio there is no need to know them."""
    broken = observation(b"two", metadata=None)._replace(metadata_error="cut off", audio_xxh128=b"\x06" * 16)
    ledger.record(present(b"a.mp3"))
    ledger.record(Present(at(b"a.mp3"), broken))
    ledger.record(present(b"a.mp3", b"three"))
    ledger.record(Present(at(b"a.mp3"), broken._replace(sha256=bytes(32), audio_xxh128=AUDIO)))
    assert [event.get("changed") for event in events(ledger)] == [None, None, None, ["tags"]]


def test_the_hash_of_the_audio_goes_where_the_file_goes(ledger: Ledger) -> None:
    """Moves, links and exchanges tell it, and what was there when something takes a place or goes."""
    other = Present(at(b"b.mp3"), observation(b"two", 2)._replace(audio_xxh128=b"\x06" * 16))
    ledger.record(present(b"a.mp3"))
    ledger.record(other)
    one, two = signature(1, size_bytes=3), signature(2, size_bytes=3)
    ledger.record(Moved(at(b"a.mp3"), at(b"d/a.mp3"), one))
    ledger.record(Linked(at(b"d/a.mp3"), at(b"link.mp3"), one))
    circle = (Moved(at(b"d/a.mp3"), at(b"b.mp3"), one), Moved(at(b"b.mp3"), at(b"d/a.mp3"), two))
    ledger.record(Exchanged(circle))
    ledger.record(Absent(at(b"b.mp3")))
    moved, linked, *exchanged, gone = events(ledger)[2:]
    assert moved["audio_hash"] == linked["audio_hash"] == AUDIO_HASH
    assert [event["audio_hash"] for event in exchanged] == [AUDIO_HASH, "xxh128:" + "06" * 16]
    assert [event["changed"] for event in exchanged] == [["audio"], ["audio"]]
    assert gone["audio_hash"] is None
    assert gone["previous"]["audio_hash"] == AUDIO_HASH


def test_what_has_changed_is_told_in_the_flat_form_too(ledger: Ledger) -> None:
    """Tags are compared as they are, not as they are written."""
    ledger.form = MetadataForm.FLAT
    ledger.record(present(b"a.mp3"))
    ledger.record(Present(at(b"a.mp3"), observation(b"two")._replace(audio_xxh128=b"\x06" * 16)))
    assert events(ledger)[1]["changed"] == ["audio"]


def test_an_audio_hash_that_a_silent_refresh_finds_is_remembered(ledger: Ledger) -> None:
    """A file that was described while it grew has none at first."""
    ledger.record(Present(at(b"a.mp3"), observation()._replace(audio_xxh128=None)))
    ledger.record(present(b"a.mp3"))
    assert catalogue.describe(ledger.conn, known(ledger, b"a.mp3").id).audio_xxh128 == AUDIO
    ledger.record(present(b"a.mp3", b"two"))
    assert [event.get("changed") for event in events(ledger)] == [None, ["tags"]]


def test_an_audio_hash_is_not_forgotten_while_the_content_is_the_same(ledger: Ledger) -> None:
    """A look beside its writer cannot tell it, and the bytes are those that it was told of."""
    ledger.record(present(b"a.mp3"))
    ledger.record(Present(at(b"a.mp3"), observation(inode=2)._replace(audio_xxh128=None)))
    ledger.record(present(b"a.mp3", b"two"))
    assert [event.get("changed") for event in events(ledger)] == [None, ["tags"]]


# ---- problems


def test_a_problem_of_an_earlier_run_ends_as_well(ledger: Ledger) -> None:
    """Whoever opens the state looks whether there are any."""
    catalogue.set_problem(ledger.conn, at(b"a.mp3"), "denied", NOW_US)
    ledger.record(present(b"a.mp3"))
    assert problems(ledger) == []


def test_a_file_that_cannot_be_described_is_a_problem_and_no_event(ledger: Ledger) -> None:
    """The reason follows the last try, the time stays that of the first."""
    assert ledger.record(Unreadable(at(b"a.mp3"), "denied"))
    assert ledger.record(Unreadable(at(b"a.mp3"), "failing disk"))
    assert told(ledger) == []
    assert problems(ledger) == [(b"/music/a.mp3", "failing disk")]
    assert ledger.conn.execute("SELECT since_us FROM problem").fetchone() == (NOW_US,)


def test_a_known_file_that_becomes_unreadable_is_still_there(ledger: Ledger) -> None:
    """Its content is what was last confirmed."""
    ledger.record(present(b"a.mp3"))
    ledger.record(Unreadable(at(b"a.mp3"), "denied"))
    assert told(ledger) == [("created", "/music/a.mp3")]
    assert problems(ledger) == [(b"/music/a.mp3", "denied")]


@pytest.mark.parametrize(
    "mended",
    [
        present(b"p.mp3", b"new"),
        Absent(at(b"p.mp3")),
        Moved(at(b"a.mp3"), at(b"p.mp3"), signature(size_bytes=3)),
        Linked(at(b"a.mp3"), at(b"p.mp3"), signature(size_bytes=3)),
    ],
    ids=["described", "gone", "moved over", "linked over"],
)
def test_a_problem_ends_with_the_next_thing_that_is_known(ledger: Ledger, mended: Any) -> None:
    """Described, gone, or replaced by a known file."""
    ledger.record(present(b"a.mp3"))
    ledger.record(Unreadable(at(b"p.mp3"), "denied"))
    assert ledger.record(mended)
    assert problems(ledger) == []


def test_a_known_problem_ends_where_the_file_is_moved_away(ledger: Ledger) -> None:
    """The path that had it is empty now."""
    ledger.record(present(b"a.mp3"))
    ledger.record(Unreadable(at(b"a.mp3"), "denied"))
    assert ledger.record(Moved(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3)))
    assert problems(ledger) == []


# ---- sequence, ids, odd values


def test_the_sequence_has_no_gap_and_travels_in_the_payload(ledger: Ledger) -> None:
    """Whatever is recorded in between without an event."""
    for number in range(20):
        ledger.record(present(b"%d.mp3" % number, b"x%d" % number, inode=number))
        ledger.record(present(b"%d.mp3" % number, b"x%d" % number, inode=number + 100))
        ledger.record(Moved(at(b"nowhere"), at(b"%d.mp3" % number), signature()))
        ledger.record(Absent(at(b"nowhere")))
    rows = ledger.conn.execute("SELECT seq, event_id, payload FROM outbox ORDER BY seq").fetchall()
    assert [row[0] for row in rows] == list(range(1, 21))
    for seq, event_id, payload in rows:
        message = json.loads(payload)
        assert message["sequence"] == seq
        assert message["event_id"].replace("-", "") == event_id.hex()
    assert ledger.next_sequence == 21
    assert ledger.appended == {EventType.CREATED: 20}


@pytest.mark.parametrize("number", [0, 2**31, 2**63 - 1, 2**63, 2**64 - 1])
def test_inode_and_device_numbers_of_64_bits_are_kept(ledger: Ledger, number: int) -> None:
    """FUSE and some network file systems use all of them."""
    ledger.record(present(b"a.mp3", inode=number, dev=number))
    assert known(ledger, b"a.mp3").signature == signature(number, dev=number, size_bytes=3)
    assert [entry.location.path for entry in catalogue.find_inode(ledger.conn, number)] == [b"a.mp3"]
    assert ledger.record(Moved(at(b"a.mp3"), at(b"b.mp3"), signature(number, dev=number, size_bytes=3)))


@pytest.mark.parametrize("mtime_ns", [15_032_385_535 * 10**9, 10**22, -(10**22), -1, 0])
def test_times_beyond_every_clock_do_not_stop_the_recording(ledger: Ledger, mtime_ns: int) -> None:
    """ext4 can hold the year 2446 and tmpfs any number: more nanoseconds than SQLite's integers have."""
    assert ledger.record(present(b"a.mp3", mtime_ns=mtime_ns, ctime_ns=mtime_ns, btime_ns=mtime_ns))
    assert told(ledger) == [("created", "/music/a.mp3")]
    stored = known(ledger, b"a.mp3").signature.mtime_ns
    assert stored == max(-(2**63), min(2**63 - 1, mtime_ns))


def test_names_that_are_not_text_are_recorded_as_they_are(ledger: Ledger) -> None:
    """Shown as U+FFFD, exact in base64, and moved like any other."""
    ledger.record(present(b"d/\xff\xfe.mp3"))
    ledger.record(Moved(at(b"d/\xff\xfe.mp3"), at(b"d/\xe9.mp3"), signature(size_bytes=3)))
    created, renamed = events(ledger)
    assert created["file_path"] == "/music/d/\ufffd\ufffd.mp3"
    assert base64.b64decode(created["file_path_bytes"]) == b"/music/d/\xff\xfe.mp3"
    assert base64.b64decode(renamed["old_path_bytes"]) == b"/music/d/\xff\xfe.mp3"
    assert base64.b64decode(renamed["file_path_bytes"]) == b"/music/d/\xe9.mp3"
    assert known(ledger, b"d/\xe9.mp3").sha256 == sha256(b"one").digest()


def test_the_flat_form_is_that_of_the_payload_alone(ledger: Ledger) -> None:
    """The catalogue keeps the structured form, so that a later change of the setting holds for moves too."""
    ledger.form = MetadataForm.FLAT
    ledger.record(present(b"a.mp3"))
    flat = events(ledger)[0]["metadata"]
    assert flat == {
        "duration": "12.5",
        "sample_rate": "44100",
        "format": "audio/mpeg",
        "title": "Ünï",
        "track": "3",
    }
    ledger.form = MetadataForm.STRUCTURED
    ledger.record(Moved(at(b"a.mp3"), at(b"b.mp3"), signature(size_bytes=3)))
    assert events(ledger)[1]["metadata"]["tags"] == {"title": "Ünï", "track": 3}


def test_roots_keep_their_ids(ledger: Ledger) -> None:
    """In any order, with new ones among them; a root that is not configured any more is still known."""
    claimed = ledger.claim_roots((b"/third", b"/more"))
    assert [(root.id, root.path) for root in claimed] == [(3, b"/third"), (2, b"/more")]
    assert {root.id: root.path for root in ledger.roots.values()} == {1: b"/music", 2: b"/more", 3: b"/third"}


def test_a_row_that_breaks_a_rule_of_the_schema_is_not_stored(ledger: Ledger) -> None:
    """A hash of the wrong length, for instance: the writer undoes the event with it."""
    broken = observation()._replace(sha256=b"short")
    ledger.conn.execute("BEGIN")
    with pytest.raises(sqlite3.IntegrityError):
        ledger.record(Present(at(b"a.mp3"), broken))
    ledger.conn.execute("ROLLBACK")
    assert told(ledger) == []
    assert outbox.last_sequence(ledger.conn) == 0
