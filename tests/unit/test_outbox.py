"""The outbox's SQL on a real database: the states of an event, selections, and what the schema forbids."""

import sqlite3
from datetime import UTC, datetime
from uuid import UUID

import pytest

from trackwatch import outbox
from trackwatch.event import Event, EventType, MetadataForm, new_event_id
from trackwatch.outbox import REPLAY_BATCH, OutboxTotals, Selected, Selection

NOW_US = 1_795_000_000_123_456
SECOND_US = 1_000_000


def append(
    conn: sqlite3.Connection,
    *names: bytes,
    kind: EventType = EventType.CREATED,
    at_us: int | None = None,
) -> list[UUID]:
    """Append an event for each name, a second after the one before unless told, and return the ids."""
    ids = []
    for name in names:
        sequence = outbox.last_sequence(conn) + 1
        moment_us = NOW_US + sequence * SECOND_US if at_us is None else at_us
        event = Event(new_event_id(moment_us), kind, sequence, moment_us, "here", b"/music", name)
        outbox.append(conn, event, MetadataForm.STRUCTURED)
        ids.append(event.event_id)
    return ids


def pending(conn: sqlite3.Connection) -> list[int]:
    """Return what is to be sent."""
    return [event.sequence for event in outbox.pending(conn, 1000)]


def publish(conn: sqlite3.Connection) -> None:
    """Confirm all that is pending."""
    outbox.confirm(conn, [(event.sequence, event.generation) for event in outbox.pending(conn, 1000)])


def chosen(conn: sqlite3.Connection, **conditions: object) -> list[int]:
    """Return what a selection chooses."""
    return list(outbox.select(conn, Selection(**conditions)).sequences)  # type: ignore[arg-type]  # given by the tests


# ---- states


def test_an_appended_event_is_pending_with_all_it_needs(conn: sqlite3.Connection) -> None:
    """The id, the type, the time and the very bytes of the message."""
    (event_id,) = append(conn, b"a.mp3", kind=EventType.DELETED)
    (event,) = outbox.pending(conn, 10)
    assert (event.sequence, event.generation, event.event_id) == (1, 0, event_id)
    assert (event.event_type, event.at_us) == (EventType.DELETED, NOW_US + SECOND_US)
    assert (event.payload,) == conn.execute("SELECT payload FROM outbox").fetchone()


def test_pending_events_come_in_order_and_in_pieces(conn: sqlite3.Connection) -> None:
    """Also when they became pending in another order, by a replay."""
    append(conn, *(b"%d" % number for number in range(10)))
    publish(conn)
    outbox.replay(conn, [7, 2, 9])
    assert pending(conn) == [2, 7, 9]
    assert [event.sequence for event in outbox.pending(conn, 2)] == [2, 7]
    outbox.confirm(conn, [(event.sequence, event.generation) for event in outbox.pending(conn, 2)])
    assert [event.sequence for event in outbox.pending(conn, 2)] == [9]


def test_a_confirmed_event_is_published_and_kept(conn: sqlite3.Connection) -> None:
    """In any order; once more does no harm."""
    append(conn, b"a", b"b", b"c")
    outbox.confirm(conn, [(2, 0)])
    assert pending(conn) == [1, 3]
    outbox.confirm(conn, [(2, 0), (99, 0)])
    totals = outbox.totals(conn)
    assert totals == OutboxTotals(3, 2, 0, NOW_US + SECOND_US, 0, NOW_US + 3 * SECOND_US, NOW_US + SECOND_US)
    assert totals.published == 1


def test_a_replay_makes_a_confirm_that_is_under_way_void(conn: sqlite3.Connection) -> None:
    """Or else the operator's wish would be lost with it."""
    append(conn, b"a")
    (under_way,) = outbox.pending(conn, 1)
    outbox.replay(conn, [1])
    outbox.confirm(conn, [(under_way.sequence, under_way.generation)])
    (again,) = outbox.pending(conn, 1)
    assert again.generation > under_way.generation
    assert again.event_id == under_way.event_id
    assert again.payload == under_way.payload


def test_a_confirm_from_before_the_publication_is_void_too(conn: sqlite3.Connection) -> None:
    """A batch that was sent twice is confirmed twice; the second confirm may come after a replay."""
    append(conn, b"a")
    (under_way,) = outbox.pending(conn, 1)
    outbox.confirm(conn, [(1, under_way.generation)])
    outbox.replay(conn, [1])
    outbox.confirm(conn, [(1, under_way.generation)])
    assert pending(conn) == [1]


def test_a_parked_event_waits_for_a_person_with_its_reason(conn: sqlite3.Connection) -> None:
    """It is not sent, it is counted, and a replay sends it again."""
    append(conn, b"a", b"b")
    outbox.park(conn, 1, 0, "no queue")
    assert pending(conn) == [2]
    totals = outbox.totals(conn)
    assert (totals.pending, totals.parked, totals.oldest_pending_us) == (1, 1, NOW_US + 2 * SECOND_US)
    assert conn.execute("SELECT attempts, last_error FROM outbox_pending WHERE seq = 1").fetchone() == (1, "no queue")
    outbox.replay(conn, [1])
    assert pending(conn) == [2, 1]
    totals = outbox.totals(conn)
    assert (totals.pending, totals.parked, totals.replaying) == (2, 0, 1)


def test_parking_after_a_replay_is_void_as_a_confirm_is(conn: sqlite3.Connection) -> None:
    """The replayed event has not been tried yet."""
    append(conn, b"a")
    outbox.replay(conn, [1])
    outbox.park(conn, 1, 0, "no queue")
    assert pending(conn) == [1]


def test_replaying_what_is_not_there_does_nothing(conn: sqlite3.Connection) -> None:
    """It may have been pruned since it was chosen."""
    outbox.replay(conn, [1, 2])
    assert pending(conn) == []


def test_a_replayed_event_is_parked_as_any_other(conn: sqlite3.Connection) -> None:
    """With its reason; and nothing of it is left in the lane of what is sent again."""
    append(conn, b"a")
    publish(conn)
    outbox.replay(conn, [1])
    (event,) = outbox.pending(conn, 10)
    outbox.park(conn, 1, event.generation, "no queue")
    totals = outbox.totals(conn)
    assert (totals.pending, totals.parked, totals.replaying) == (0, 1, 0)
    assert conn.execute("SELECT count(*) FROM outbox_replay_path").fetchone() == (0,)


# ---- the lane of what is sent again


def moved(conn: sqlite3.Connection, old: bytes, new: bytes) -> None:
    """Append a move within /music."""
    sequence = outbox.last_sequence(conn) + 1
    at_us = NOW_US + sequence * SECOND_US
    event = Event(new_event_id(at_us), EventType.MOVED, sequence, at_us, "here", b"/music", new, b"/music/" + old)
    outbox.append(conn, event, MetadataForm.STRUCTURED)


def sent(conn: sqlite3.Connection, limit: int) -> list[int]:
    """Return the next batch, and confirm it."""
    batch = outbox.pending(conn, limit)
    outbox.confirm(conn, [(event.sequence, event.generation) for event in batch])
    return [event.sequence for event in batch]


def test_new_events_do_not_wait_behind_those_that_are_sent_again(conn: sqlite3.Connection) -> None:
    """However many there are: what is new is in the next batch."""
    append(conn, *(b"%d" % number for number in range(50)))
    publish(conn)
    outbox.replay(conn, range(1, 51))
    append(conn, b"new")
    assert sent(conn, 5) == [51, 1, 2, 3, 4]
    assert sent(conn, 5) == [5, 6, 7, 8, 9]


def test_while_new_events_fill_every_batch_a_replay_goes_on(conn: sqlite3.Connection) -> None:
    """One in ten is enough: an import may take hours."""
    append(conn, *(b"%d" % number for number in range(5)))
    publish(conn)
    outbox.replay(conn, range(1, 6))
    append(conn, *(b"new%d" % number for number in range(40)))
    assert sent(conn, 20) == [*range(6, 24), 1, 2]
    assert sent(conn, 20) == [*range(24, 42), 3, 4]


def test_a_replay_alone_is_sent_in_small_batches(conn: sqlite3.Connection) -> None:
    """So that a new event never waits for a large one that is under way."""
    append(conn, *(b"%d" % number for number in range(300)))
    publish(conn)
    outbox.replay(conn, range(1, 301))
    assert sent(conn, 1000) == list(range(1, REPLAY_BATCH + 1))


def test_a_new_event_does_not_overtake_what_is_sent_again_of_its_file(conn: sqlite3.Connection) -> None:
    """Those go before it, and before the rest of the replay."""
    append(conn, *(b"%d" % number for number in range(50)), b"a", b"b", b"a")
    publish(conn)
    outbox.replay(conn, range(1, 54))
    append(conn, b"a")
    assert sent(conn, 5) == [51, 53, 54, 1, 2]


def test_names_that_a_file_had_before_count_as_its_own(conn: sqlite3.Connection) -> None:
    """The new event is about what was `a` once; created, moved and moved again come in their order."""
    append(conn, *(b"%d" % number for number in range(50)), b"a")
    moved(conn, b"a", b"b")
    moved(conn, b"b", b"c")
    publish(conn)
    outbox.replay(conn, range(1, 54))
    append(conn, b"c", kind=EventType.MODIFIED)
    assert sent(conn, 4) == [51, 52, 53, 54]


def test_one_that_is_held_is_asked_with_alone(conn: sqlite3.Connection) -> None:
    """The oldest new one, or what must go before it; a replay waits meanwhile."""
    append(conn, b"a", b"b")
    publish(conn)
    outbox.replay(conn, [1, 2])
    append(conn, b"c", b"b")
    assert [sent(conn, 1) for _ in range(4)] == [[3], [2], [4], [1]]


def test_what_was_never_sent_keeps_its_place_when_it_is_replayed(conn: sqlite3.Connection) -> None:
    """It is new to others, and is sent once."""
    append(conn, b"a", b"b")
    outbox.replay(conn, [1, 2])
    assert outbox.totals(conn).replaying == 0
    assert sent(conn, 10) == [1, 2]
    assert pending(conn) == []


def test_replaying_twice_sends_once(conn: sqlite3.Connection) -> None:
    """As long as it waits."""
    append(conn, b"a", b"b")
    publish(conn)
    outbox.replay(conn, [1, 2])
    outbox.replay(conn, [2, 1])
    assert (outbox.count_replayed(conn), outbox.count_replayed(conn, 2, 9)) == (2, 1)
    assert sent(conn, 10) == [1, 2]
    assert pending(conn) == []
    assert conn.execute("SELECT count(*) FROM outbox_replay_path").fetchone() == (0,)


def test_choosing_the_next_batch_does_not_read_the_whole_replay(conn: sqlite3.Connection) -> None:
    """It is done for each batch; also when a file has thousands of events."""
    append(conn, *(b"a" for _ in range(3000)))
    publish(conn)
    outbox.replay(conn, range(1, 3001))
    append(conn, b"a", *(b"%d" % number for number in range(100)))
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    conn.set_progress_handler(step, 100)
    assert len(outbox.pending(conn, 20)) == 20
    conn.set_progress_handler(None, 0)
    assert steps < 50


# ---- selections


@pytest.fixture
def many(conn: sqlite3.Connection) -> sqlite3.Connection:
    """Six events, all published but the fourth, which is parked."""
    append(conn, b"d/a.mp3", "d/é.mp3".encode(), b"d/\xff.mp3", b"e/[x].flac")
    append(conn, b"d/a.mp3", kind=EventType.MODIFIED)
    append(conn, b"d/a.mp3", kind=EventType.DELETED)
    outbox.park(conn, 4, 0, "no queue")
    publish(conn)
    return conn


def test_an_empty_selection_chooses_nothing(many: sqlite3.Connection) -> None:
    """Never everything by accident."""
    assert outbox.select(many, Selection()) == Selected()


def test_a_selection_tells_how_many_and_from_when_to_when(many: sqlite3.Connection) -> None:
    """People are asked before anything is sent."""
    found = outbox.select(many, Selection(sequences=(2, 4)))
    assert (found.count, list(found.sequences), found.common) == (3, [2, 3, 4], b"/music")
    assert (found.first_us, found.last_us) == (NOW_US + 2 * SECOND_US, NOW_US + 4 * SECOND_US)


def test_a_selection_tells_the_directory_that_holds_all_of_it(many: sqlite3.Connection) -> None:
    """One that is beside another, or above it, makes it the one above both."""
    assert outbox.select(many, Selection(types=(EventType.DELETED,))).common == b"/music/d"
    append(many, b"dd/a.mp3")
    assert outbox.select(many, Selection(path_glob=b"*/a.mp3")).common == b"/music"


def test_a_large_selection_is_read_in_pieces(many: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is the same."""
    whole = chosen(many, sequences=(1, 6))
    monkeypatch.setattr(outbox, "SELECT_ROWS", 2)
    assert chosen(many, sequences=(1, 6)) == whole == [1, 2, 3, 4, 5, 6]
    assert chosen(many, since_us=NOW_US + 3 * SECOND_US, until_us=NOW_US + 6 * SECOND_US) == [3, 4, 5]
    assert chosen(many, parked=True) == [4]


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({"parked": True}, [4]),
        ({"since_us": NOW_US + 5 * SECOND_US}, [5, 6]),
        ({"since_us": NOW_US + 5 * SECOND_US + 1}, [6]),
        ({"until_us": NOW_US + 2 * SECOND_US}, [1]),
        ({"until_us": NOW_US + 2 * SECOND_US + 1}, [1, 2]),
        ({"since_us": NOW_US + 2 * SECOND_US, "until_us": NOW_US + 4 * SECOND_US}, [2, 3]),
        ({"since_us": -SECOND_US}, [1, 2, 3, 4, 5, 6]),
        ({"until_us": -SECOND_US}, []),
        ({"sequences": (2, 2)}, [2]),
        ({"sequences": (5, 3)}, []),
        ({"sequences": (5, 10**30)}, [5, 6]),
        ({"types": (EventType.MODIFIED, EventType.DELETED)}, [5, 6]),
        ({"types": (EventType.RENAMED,)}, []),
        ({"types": (EventType.CREATED,), "path_glob": b"*/a.mp3"}, [1]),
        ({"parked": True, "path_glob": b"/music/d/*"}, []),
    ],
)
def test_conditions_are_combined(many: sqlite3.Connection, conditions: dict[str, object], expected: list[int]) -> None:
    """Each narrows what the others choose; `until` is exclusive."""
    assert chosen(many, **conditions) == expected


@pytest.mark.parametrize(
    ("glob", "expected"),
    [
        (b"/music/d/*", [1, 2, 3, 5, 6]),
        (b"*.mp3", [1, 2, 3, 5, 6]),
        (b"/music/d/?.mp3", [1, 2, 3, 5, 6]),
        ("/music/d/é.mp3".encode(), [2]),
        ("/music/d/[é].mp3".encode(), [2]),
        (b"/music/d/\xff.mp3", [3]),
        (b"/music/d/[\xf0-\xff].mp3", [3]),
        (b"/music/e/[[]x].flac", [4]),
        (b"/music/e/[x].flac", [4]),
        (b"/music/e", [4]),
        (b"/music/e/", [4]),
        (b"/music/d/a.mp3", [1, 5, 6]),
        (b"d/*", []),
        (b"*.MP3", []),
        (b"(", []),
    ],
)
def test_a_path_glob_is_matched_by_characters_and_odd_bytes(
    many: sqlite3.Connection, glob: bytes, expected: list[int]
) -> None:
    """Against the whole path, in both cases as it is written; names need not be UTF-8."""
    assert chosen(many, path_glob=glob) == expected


def test_the_old_path_of_a_move_counts_as_well(conn: sqlite3.Connection) -> None:
    """Or else a consumer that rebuilds a directory would keep what has left it."""
    append(conn, b"d/a.mp3")
    moved(conn, b"d/a.mp3", b"e/a.mp3")
    publish(conn)
    assert chosen(conn, path_glob=b"/music/d/*") == [1, 2]


def test_events_are_chosen_by_their_ids(conn: sqlite3.Connection) -> None:
    """In the order of the sequence, whatever the order of the ids; an unknown one chooses nothing."""
    ids = append(conn, b"a", b"b", b"c")
    assert chosen(conn, event_ids=(ids[2], ids[0])) == [1, 3]
    assert chosen(conn, event_ids=(UUID(int=0),)) == []


# ---- what the schema forbids


@pytest.mark.parametrize("column", ["payload = x'00'", "event_id = zeroblob(16)", "seq = 9", "created_us = 0"])
def test_an_event_never_changes(conn: sqlite3.Connection, column: str) -> None:
    """Not one column of it, pending or published."""
    append(conn, b"a")
    for _ in range(2):
        with pytest.raises(sqlite3.IntegrityError, match="immutable"):
            conn.execute(f"UPDATE outbox SET {column}")
        publish(conn)


def test_an_event_is_not_deleted_before_it_is_published(conn: sqlite3.Connection) -> None:
    """A parked one neither."""
    append(conn, b"a")
    for _ in range(2):
        with pytest.raises(sqlite3.IntegrityError, match="not published"):
            conn.execute("DELETE FROM outbox")
        outbox.park(conn, 1, 0, "no queue")


_INSERT = "INSERT INTO outbox(seq, event_id, event_type, path, created_us, payload) VALUES "


@pytest.mark.parametrize(
    "sql",
    [
        _INSERT + "(5, zeroblob(15), 'created', x'61', 0, x'61')",
        _INSERT + "(5, zeroblob(16), 'touched', x'61', 0, x'61')",
        _INSERT + "(5, zeroblob(16), 'created', x'61', 0, x'')",
        _INSERT + "(5, zeroblob(16), 'created', 'text', 0, x'61')",
        "INSERT INTO outbox_pending(seq) VALUES (77)",
        "UPDATE outbox_pending SET parked = 1",
    ],
)
def test_a_wrong_row_cannot_be_stored(conn: sqlite3.Connection, sql: str) -> None:
    """What a row must satisfy is written in the schema; parked without a reason is wrong too."""
    append(conn, b"a")
    with pytest.raises(sqlite3.IntegrityError):
        conn.execute(sql)


def test_an_event_id_is_used_once(conn: sqlite3.Connection) -> None:
    """Consumers de-duplicate by it."""
    append(conn, b"a")
    with pytest.raises(sqlite3.IntegrityError):
        conn.execute(
            "INSERT INTO outbox(event_id, event_type, path, created_us, payload)"
            " SELECT event_id, event_type, path, created_us, payload FROM outbox"
        )


# ---- pruning


def test_pruning_leaves_alone_what_is_pending_or_parked(many: sqlite3.Connection) -> None:
    """However old it is."""
    outbox.replay(many, [2])
    assert outbox.prune(many, NOW_US + 3600 * SECOND_US, 1000) == 4
    assert many.execute("SELECT seq FROM outbox").fetchall() == [(2,), (4,)]
    totals = outbox.totals(many)
    assert (totals.events, totals.pending, totals.parked, totals.replaying) == (2, 1, 1, 1)
    with pytest.raises(sqlite3.IntegrityError, match="not published"):
        many.execute("DELETE FROM outbox WHERE seq = 2")


def test_pruning_takes_the_oldest_up_to_its_limit_and_time(many: sqlite3.Connection) -> None:
    """In chunks; what is younger stays."""
    assert outbox.prune(many, NOW_US + 3 * SECOND_US, 1) == 1
    assert outbox.prune(many, NOW_US + 3 * SECOND_US, 10) == 1
    assert outbox.prune(many, NOW_US + 3 * SECOND_US, 10) == 0
    assert [seq for (seq,) in many.execute("SELECT seq FROM outbox ORDER BY seq")] == [3, 4, 5, 6]


def test_finding_nothing_to_prune_does_not_read_the_whole_outbox(conn: sqlite3.Connection) -> None:
    """The writer asks every few seconds, and intake waits meanwhile."""
    append(conn, *(b"%d" % number for number in range(2000)))
    publish(conn)
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1

    conn.set_progress_handler(step, 100)
    assert outbox.prune(conn, NOW_US, 1000) == 0
    conn.set_progress_handler(None, 0)
    assert steps < 5


def test_keeping_events_for_a_hundred_years_prunes_none(many: sqlite3.Connection) -> None:
    """A century ago was before 1970, which no event id can say."""
    century_ago_us = NOW_US - 36500 * 86400 * SECOND_US
    assert datetime.fromtimestamp(century_ago_us / 1e6, UTC).year < 1970
    assert outbox.prune(many, century_ago_us, 1000) == 0


def test_a_sequence_is_never_used_again_after_pruning(many: sqlite3.Connection) -> None:
    """Also when the outbox is empty."""
    outbox.replay(many, [4])
    publish(many)
    assert outbox.prune(many, NOW_US + 3600 * SECOND_US, 1000) == 6
    assert outbox.totals(many) == OutboxTotals(0, 0, 0, None)
    assert outbox.last_sequence(many) == 6
    append(many, b"next")
    assert pending(many) == [7]


def test_a_sequence_that_was_rolled_back_is_used_again(conn: sqlite3.Connection) -> None:
    """A gap would look like a loss."""
    append(conn, b"a")
    conn.execute("BEGIN")
    append(conn, b"b")
    conn.execute("ROLLBACK")
    assert outbox.last_sequence(conn) == 1


def test_before_the_first_event_the_sequence_is_zero(conn: sqlite3.Connection) -> None:
    """So the first one is 1."""
    assert outbox.last_sequence(conn) == 0
    assert outbox.totals(conn) == OutboxTotals(0, 0, 0, None)


@pytest.mark.parametrize(
    ("pairs", "runs"),
    [
        ([], []),
        ([(1, 0)], [(1, 1, 0)]),
        ([(1, 0), (2, 0), (3, 0)], [(1, 3, 0)]),
        ([(1, 0), (3, 0), (4, 0)], [(1, 1, 0), (3, 4, 0)]),
        ([(1, 0), (2, 1), (3, 1)], [(1, 1, 0), (2, 3, 1)]),
    ],
)
def test_what_was_confirmed_goes_in_runs_that_hold_nothing_else(
    pairs: list[tuple[int, int]], runs: list[tuple[int, int, int]]
) -> None:
    assert list(outbox._runs(pairs)) == runs
