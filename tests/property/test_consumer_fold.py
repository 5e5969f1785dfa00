"""The example consumer's rule: in whatever order events come, and however often, they come to the same library."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from library_consumer import Library, Misconfigured, Unusable, gap_line, parse, verify

from trackwatch.event import Content, Event, EventType, new_event_id

ROOT = b"/music"
NAMES = (b"a.mp3", b"b.mp3", b"A/c.mp3", b"A/\xff.mp3", b"B/c.mp3")
STARTED_US = 1_790_000_000_000_000
OPERATIONS = st.tuples(st.sampled_from(["write", "delete", "move"]), st.sampled_from(NAMES), st.sampled_from(NAMES))


def content(number: int) -> Content:
    return Content(number.to_bytes(32), number.to_bytes(16), number, 0, '{"format":"audio/mpeg","tags":{"title":"T"}}')


@pytest.fixture
def library() -> Iterator[Library]:
    """An empty library."""
    with closing(Library(":memory:")) as made:
        yield made


class Teller:
    """What trackwatch would tell of operations, and what is there after them."""

    def __init__(self, instance_id: str = "one", *, sequence: int = 0, at_us: int = STARTED_US) -> None:
        self.instance_id = instance_id
        self.events: list[Event] = []
        self.files: dict[bytes, Content] = {}
        self._sequence, self._at_us = sequence, at_us

    def do(self, operation: str, name: bytes, other: bytes) -> None:
        """Write, delete or move a file, if that can be done."""
        if operation == "write":
            self.write(name)
        elif operation == "delete" and name in self.files:
            self._tell(EventType.DELETED, name, previous=self.files.pop(name))
        elif operation == "move" and name in self.files and name != other:
            if other in self.files:
                self._tell(EventType.DELETED, other, previous=self.files.pop(other))
            kind = EventType.RENAMED if os.path.dirname(name) == os.path.dirname(other) else EventType.MOVED
            self.files[other] = self.files.pop(name)
            self._tell(kind, other, content=self.files[other], old_path=os.path.join(ROOT, name))

    def write(self, name: bytes) -> None:
        """Write a file anew."""
        previous = self.files.get(name)
        self.files[name] = content(self._sequence + 1)
        kind = EventType.CREATED if previous is None else EventType.MODIFIED
        self._tell(kind, name, content=self.files[name], previous=previous)

    def _tell(self, kind: EventType, name: bytes, **facts: Any) -> None:
        self._sequence += 1
        self._at_us += 1000
        event_id = new_event_id(self._at_us)
        self.events.append(
            Event(event_id, kind, self._sequence, self._at_us, self.instance_id, ROOT, name, **facts)
        )  # fmt: skip

    @property
    def truth(self) -> dict[bytes, str]:
        """What is there: path below the root, and SHA-256."""
        return {name: content.sha256.hex() for name, content in self.files.items()}


def give(library: Library, *events: Event) -> list[str]:
    return [text for _, text in library.apply([parse(event.to_json()) for event in events])]


def folded(library: Library, number: int = 0) -> dict[bytes, str]:
    return library.files(library.instances()[number], ROOT)


@given(st.lists(OPERATIONS, min_size=1, max_size=25), st.data())
def test_any_order_and_any_doubles_come_to_the_same_library(
    operations: list[tuple[str, bytes, bytes]], data: st.DataObject
) -> None:
    teller = Teller()
    teller.write(NAMES[0])
    for operation in operations:
        teller.do(*operation)
    deliveries = data.draw(st.permutations(teller.events + data.draw(st.lists(st.sampled_from(teller.events)))))
    with closing(Library(":memory:")) as library:
        while deliveries:
            size = data.draw(st.integers(1, len(deliveries)))
            give(library, *deliveries[:size])
            deliveries = deliveries[size:]
        assert folded(library) == teller.truth
        (instance,) = library.instances()
        assert (instance.events, instance.missing, instance.beginnings) == (len(teller.events), 0, 1)
        # What is gone is kept only for as long as something earlier may come.
        assert library._conn.execute("SELECT count(*) FROM files WHERE sha256 IS NULL").fetchone() == (0,)


@given(st.lists(OPERATIONS, min_size=1, max_size=25), st.data())
def test_whatever_is_sent_again_changes_nothing(
    operations: list[tuple[str, bytes, bytes]], data: st.DataObject
) -> None:
    teller = Teller()
    for operation in [("write", NAMES[0], b""), *operations]:
        teller.do(*operation)
    with closing(Library(":memory:")) as library:
        give(library, *teller.events)
        again = data.draw(st.lists(st.sampled_from(teller.events), min_size=1))
        give(library, *again)
        assert folded(library) == teller.truth
        assert library.instances()[0].doubles == len(again)


def test_instances_with_the_same_paths_are_apart(library: Library) -> None:
    one, two = Teller("one"), Teller("two")
    for teller in (one, two):
        teller.write(b"a.mp3")
    one.do("delete", b"a.mp3", b"")
    assert give(library, *one.events, *two.events) == [
        "instance one tells of /music",
        "instance two tells of /music",
        "so did instance one: if that is the same library, and its state was lost, `forget one`",
    ]
    assert (folded(library, 0), folded(library, 1)) == ({}, two.truth)


def test_an_instance_that_lost_its_state_is_folded_anew(library: Library) -> None:
    """Its numbers begin again; what is no longer there by then is never told as deleted."""
    before = Teller()
    for name in NAMES:
        before.write(name)
    give(library, *before.events)
    after = Teller(at_us=STARTED_US + 10**9)
    after.write(NAMES[2])
    (notice,) = give(library, *after.events)
    assert notice.startswith("instance one began again: sequence 1 is another event than it was before")
    assert folded(library) == after.truth == {NAMES[2]: content(1).sha256.hex()}
    assert (library.instances()[0].missing, library.instances()[0].beginnings) == (0, 2)


def test_an_instance_that_lost_its_state_is_noticed_by_who_never_had_its_first_event(library: Library) -> None:
    before = Teller(sequence=700)
    before.write(b"a.mp3")
    give(library, *before.events)
    after = Teller(at_us=STARTED_US + 10**9)
    after.write(b"b.mp3")
    assert "began again" in give(library, *after.events)[0]
    assert folded(library) == after.truth


def test_a_first_event_that_is_replayed_is_no_new_beginning(library: Library) -> None:
    teller = Teller()
    for name in NAMES:
        teller.write(name)
    give(library, *teller.events[1:])
    assert give(library, teller.events[0]) == []
    assert folded(library) == teller.truth


def test_an_older_backup_of_the_state_makes_void_what_was_said_after_it(library: Library) -> None:
    before = Teller()
    for name in NAMES[:3]:
        before.write(name)
    before.do("delete", NAMES[0], b"")
    give(library, *before.events)
    after = Teller(sequence=2, at_us=STARTED_US + 10**9)
    after.write(NAMES[4])
    assert "verify the library" in give(library, *after.events)[0]
    assert folded(library) == {NAMES[1]: content(2).sha256.hex(), NAMES[4]: content(3).sha256.hex()}


def test_a_gap_is_told_with_what_to_do_until_it_is_filled(library: Library) -> None:
    teller = Teller()
    for _ in range(9):
        teller.write(NAMES[0])
    give(library, *(event for event in teller.events if event.sequence in (3, 4, 6, 9)))
    (instance,) = library.instances()
    assert library.gaps(instance) == [(1, 2), (5, 5), (7, 8)]
    assert gap_line(library, instance) == (
        "instance one: 5 events did not come, sequence 1-2, 5, 7-8; on its host, for each: "
        "trackwatch replay --sequence 1-2"
    )
    give(library, *teller.events)
    (instance,) = library.instances()
    assert (library.gaps(instance), instance.missing) == ([], 0)


def test_a_transaction_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    teller = Teller()
    for name in NAMES:
        teller.write(name)

    def fail(*_: object) -> None:
        raise OSError("out of luck")

    with monkeypatch.context() as patched:
        patched.setattr(library, "_write_back", fail)
        with pytest.raises(OSError, match="out of luck"):
            give(library, *teller.events)
    assert library.instances() == []
    give(library, *teller.events)
    assert folded(library) == teller.truth


# What is no event


def good() -> dict[str, Any]:
    teller = Teller()
    teller.write(b"A/\xff.mp3")
    return teller.events[0].message()


def test_an_event_is_what_it_says_and_more_fields_may_come() -> None:
    event = parse(json.dumps(good() | {"later": 1}).encode())
    assert (event.path, event.sequence, event.old_path) == (b"/music/A/\xff.mp3", 1, None)
    assert event.metadata == '{"format": "audio/mpeg", "tags": {"title": "T"}}'


CHANGES: tuple[dict[str, object], ...] = (
    {"schema_version": 2}, {"schema_version": "1"}, {"schema_version": None},
    {"sequence": 0}, {"sequence": -1}, {"sequence": True}, {"sequence": 1.0}, {"sequence": 1 << 63},
    {"sequence": None}, {"event_id": "x"}, {"event_id": 7}, {"event_id": None}, {"instance_id": None},
    {"instance_id": "\ud800"}, {"event_type": "created twice"}, {"event_type": []}, {"event_type": "deleted"},
    {"event_type": "moved"}, {"old_path": "/a"}, {"file_path": "a", "file_path_bytes": None},
    {"file_path": 7, "file_path_bytes": None},
    {"file_path_bytes": "%"}, {"file_path_bytes": 7}, {"sha256_hash": None}, {"sha256_hash": 7},
    {"size_bytes": 1 << 70}, {"size_bytes": []}, {"modified_at": {}}, {"metadata": "\udfff"}, {"root": None},
)  # fmt: skip


@pytest.mark.parametrize(
    "body",
    [
        b"", b"no JSON", b"\xff", b"[]", b"null", b"7", b"{}", b"[" * 100_000,
        *(json.dumps(good() | change).encode() for change in CHANGES),
        *(json.dumps({k: v for k, v in good().items() if k != name}).encode() for name in (
            "schema_version", "sequence", "event_id", "sha256_hash", "metadata", "root", "old_path",
        )),
    ],
)  # fmt: skip
def test_what_is_no_event_is_unusable_and_never_anything_worse(body: bytes, library: Library) -> None:
    with pytest.raises(Unusable):
        library.apply([parse(body)])


@given(st.dictionaries(st.sampled_from(sorted(good())), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner))))  # fmt: skip
def test_whatever_is_parsed_can_be_stored(change: dict[str, Any]) -> None:
    """A message that parses and cannot be stored would come again for ever."""
    try:
        event = parse(json.dumps(good() | change).encode())
    except Unusable:
        return
    with closing(Library(":memory:")) as library:
        library.apply([event])


# verify


def test_verify_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str], library: Library) -> None:
    teller, music = Teller(), tmp_path / "music"
    (music / "A").mkdir(parents=True)
    files = {b"a.mp3": b"1", b"A/c.MP3": b"2", b"A/\xff.mp3": b"3"}
    for name, data in files.items():
        (music / os.fsdecode(name)).write_bytes(data)
        teller.write(name)
    (music / "cover.jpg").write_bytes(b"no audio")
    (music / "link.mp3").symlink_to("a.mp3")
    hashed = [replace(parse(event.to_json()), sha256=hash_of(files[event.relative_path])) for event in teller.events]
    library.apply(hashed)
    assert verify(library, os.fsencode(music), ROOT, ["mp3"], None)
    assert capsys.readouterr().out == "3 of 3 files equal\n"
    (music / "a.mp3").write_bytes(b"other")
    (music / "A" / "c.MP3").rename(music / "new.mp3")
    assert not verify(library, os.fsencode(music), ROOT, ["mp3"], "one")
    assert capsys.readouterr().out.splitlines() == [
        "1 of 4 files equal",
        "1 not told, but on disk:", "  '/music/new.mp3'",
        "1 told, but not on disk:", "  '/music/A/c.MP3'",
        "1 another content:", "  '/music/a.mp3'",
    ]  # fmt: skip
    assert not verify(library, os.fsencode(music / "A"), b"/elsewhere", ["flac"], None)
    assert capsys.readouterr().out == "0 of 0 files equal\n"


def test_verify_asks_whose_files_are_meant(tmp_path: Path, library: Library) -> None:
    for name in ("one", "two"):
        teller = Teller(name)
        teller.write(b"a.mp3")
        give(library, *teller.events)
    with pytest.raises(Misconfigured, match=r"one, two tell of /music: choose one \(--instance\)"):
        verify(library, os.fsencode(tmp_path), ROOT, ["mp3"], None)


def test_a_database_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    file = str(tmp_path / "library.db")
    with closing(Library(file)) as library:
        library._conn.execute("PRAGMA user_version = 2")
    with pytest.raises(Misconfigured, match="later version"):
        Library(file)
    with pytest.raises(Misconfigured, match="no such file"):
        Library(file + "x", must_exist=True)


def test_an_instance_can_be_forgotten(library: Library) -> None:
    teller = Teller()
    teller.write(b"a.mp3")
    assert give(library, *teller.events) == ["instance one tells of /music"]
    library.forget(library.instances()[0])
    assert library.instances() == []
    assert give(library, *teller.events) == ["instance one tells of /music"]


def hash_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
