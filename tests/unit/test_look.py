"""Looking at paths of a real folder, with a real catalogue to compare with."""

import hashlib
import itertools
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from trackwatch import catalogue, database, outbox
from trackwatch.event import EventType, MetadataForm
from trackwatch.look import Kind, Lookout, Sighting
from trackwatch.record import Absent, Ledger, Linked, Moved, Present
from trackwatch.settle import Due
from trackwatch.statx import signature_of
from trackwatch.sweep import Wanted
from trackwatch.track import Location, Metadata, Observation, Root, is_audio
from trackwatch.trust import Identity, Trust, root_mounts

UNWANTED = b"trash"


def is_wanted(path: bytes) -> bool:
    return not path.endswith(b".part") and not path.startswith(UNWANTED + b"/")


class Bed:
    """A folder with two roots, the catalogue that knows them, and somebody who looks."""

    def __init__(self, folder: bytes, conn: sqlite3.Connection) -> None:
        self.conn = conn
        self.in_hand: set[Location] = set()
        self.ledger = Ledger(conn, "test", MetadataForm.STRUCTURED, lambda: 1)
        self.root, self.other = self.ledger.claim_roots((folder + b"/music", folder + b"/other"))
        os.mkdir(self.root.path)
        os.mkdir(self.other.path)
        self.write(b"keep.mp3", b"a root is never empty here")
        self.trust = Trust([self.root, self.other])
        self.lookout = Lookout(
            {self.root.id: self.root, self.other.id: self.other},
            Wanted(is_wanted, lambda path: path != UNWANTED),
            self.trust,
            self.in_hand.__contains__,
        )

    def at(self, path: bytes) -> Location:
        return Location(self.root.id, path)

    def absolute(self, path: bytes) -> bytes:
        return self.root.absolute(path)

    def write(self, path: bytes, content: bytes | None = None, root: Root | None = None) -> None:
        absolute = (root or self.root).absolute(path)
        os.makedirs(os.path.dirname(absolute), exist_ok=True)
        with open(absolute, "wb") as file:
            file.write(path if content is None else content)

    def observe(self, location: Location) -> Observation:
        absolute = self.lookout.roots[location.root_id].absolute(location.path)
        with open(absolute, "rb") as file:
            content = file.read()
        return Observation(
            signature_of(absolute),
            hashlib.sha256(content).digest(),
            xxhash.xxh3_128_digest(content),
            Metadata("audio/mpeg") if is_audio(location.path) else None,
        )

    def know(self, *paths: bytes, root: Root | None = None) -> None:
        """Take what is at some paths into the catalogue."""
        for path in paths:
            location = Location((root or self.root).id, path)
            self.ledger.record(Present(location, self.observe(location)))

    def make_known(self, *paths: bytes) -> None:
        for path in paths:
            self.write(path)
        self.know(*paths)

    def rename(self, old: bytes, new: bytes) -> None:
        os.makedirs(os.path.dirname(self.absolute(new)), exist_ok=True)
        os.rename(self.absolute(old), self.absolute(new))

    def write_in_secret(self, path: bytes, content: bytes) -> None:
        """Write as tag editors may: in place, as long as before, with the modification time put back."""
        times = os.stat(self.absolute(path))
        with open(self.absolute(path), "r+b") as file:
            file.write(content)
        os.utime(self.absolute(path), ns=(times.st_atime_ns, times.st_mtime_ns))

    def due(self, location: Location) -> Due:
        """Return a path that is taken for a look."""
        return Due(location, is_live=True, quiet_s=1.0, at_ceiling=False)

    def look(self, path: bytes) -> Sighting:
        return self.look_at(self.at(path))

    def look_at(self, location: Location, lookout: Lookout | None = None) -> Sighting:
        """Look at one location alone."""
        (seen,) = (lookout or self.lookout).look_at_all([self.due(location)], self.conn)
        return seen

    def look_together(self, *paths: bytes) -> list[Sighting]:
        """Look at paths that were taken together, and so are all in hand."""
        locations = [self.at(path) for path in paths]
        self.in_hand.update(locations)
        try:
            return self.lookout.look_at_all([self.due(location) for location in locations], self.conn)
        finally:
            self.in_hand.difference_update(locations)

    def record(self, sightings: Sequence[Sighting]) -> list[bool]:
        """Record in the order of the sightings, as is done in one transaction."""
        return [self.ledger.record(seen.change) for seen in sightings if seen.change is not None]

    def still_gone(self, *paths: bytes) -> list[bytes]:
        """Return those paths that are known and gone, of a root that is believed."""
        gone, doubtful = self.lookout.still_gone([self.at(path) for path in paths], self.conn)
        assert doubtful == set()
        return [location.path for location in gone]

    def doubted(self, *paths: bytes) -> bool:
        """Whether none of these paths may be called gone, because their root is in doubt."""
        gone, doubtful = self.lookout.still_gone([self.at(path) for path in paths], self.conn)
        return (gone, doubtful) == ([], {self.root.id})

    def events(self) -> list[tuple[str, str, str | None]]:
        """Return type, path and old path of every event, roots left out."""
        return [
            (kind, _short(path), None if old is None else _short(old))
            for kind, path, old in self.conn.execute(
                "SELECT event_type, payload ->> 'file_path', payload ->> 'old_path' FROM"
                " (SELECT seq, event_type, CAST(payload AS TEXT) AS payload FROM outbox) ORDER BY seq"
            )
        ]


def _short(path: str) -> str:
    return path.partition("/music/")[2]


def moved(seen: Sighting) -> tuple[bytes, bytes] | None:
    """Return from where to where, if this is a move."""
    if seen.kind is Kind.ELSEWHERE and isinstance(seen.change, Moved):
        return seen.change.old.path, seen.change.new.path
    return None


@pytest.fixture(scope="module")
def fresh_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state as the daemon makes it, to be copied: making one waits for the disk several times."""
    path = tmp_path_factory.mktemp("state") / "trackwatch.db"
    database.open_for_writing(path).close()
    return path


@pytest.fixture
def bed(tmp_path: Path, fresh_state: Path) -> Iterator[Bed]:
    path = shutil.copy(fresh_state, tmp_path)
    with closing(database.connect(Path(path), "rw")) as conn:
        conn.execute("PRAGMA synchronous = OFF")
        yield Bed(os.fsencode(tmp_path), conn)


# What is where it was, or new, or gone


def test_a_known_file_is_unchanged(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    assert bed.look(b"a.mp3") == Sighting(bed.due(bed.at(b"a.mp3")), Kind.UNCHANGED)


def test_a_new_file_has_to_be_read(bed: Bed) -> None:
    bed.write(b"a.mp3")
    assert bed.look(b"a.mp3").kind is Kind.CHANGED


@pytest.mark.parametrize(
    "deed",
    [
        lambda path: os.truncate(path, 1),
        lambda path: os.utime(path, ns=(1, 1)),
        lambda path: os.chmod(path, 0o600),
        lambda path: os.replace(shutil_copy(path), path),
    ],
    ids=["truncated", "touched", "chmod", "replaced"],
)
def test_a_known_file_with_another_signature_has_to_be_read(bed: Bed, deed: Callable[[bytes], object]) -> None:
    bed.make_known(b"a.mp3")
    deed(bed.absolute(b"a.mp3"))
    assert bed.look(b"a.mp3").kind is Kind.CHANGED


def shutil_copy(path: bytes) -> bytes:
    with open(path, "rb") as file, open(path + b".new", "wb") as copy:
        copy.write(file.read())
    return path + b".new"


def test_a_vanished_file_is_gone(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.unlink(bed.absolute(b"a.mp3"))
    assert bed.look(b"a.mp3") == Sighting(bed.due(bed.at(b"a.mp3")), Kind.GONE, gone=(b"a.mp3",))


def test_what_was_never_known_is_gone_without_a_word(bed: Bed) -> None:
    assert bed.look(b"a.mp3") == Sighting(bed.due(bed.at(b"a.mp3")), Kind.GONE)


def test_a_vanished_directory_takes_everything_below_it(bed: Bed) -> None:
    bed.make_known(b"a-b.mp3", b"a/1.mp3", b"a/b/2.mp3", b"a0.mp3")
    bed.rename(b"a", b"../elsewhere")
    assert bed.look(b"a").gone == (b"a/1.mp3", b"a/b/2.mp3")


def test_a_directory_is_a_directory_and_so_is_the_root(bed: Bed) -> None:
    bed.make_known(b"a/1.mp3")
    assert bed.look(b"a") == Sighting(bed.due(bed.at(b"a")), Kind.DIRECTORY)
    assert bed.look(b"").kind is Kind.DIRECTORY


def test_a_directory_that_is_left_out_is_not_swept(bed: Bed) -> None:
    bed.write(UNWANTED + b"/1.mp3")
    assert bed.look(UNWANTED).kind is Kind.UNCHANGED


def test_a_file_where_a_directory_was_takes_what_was_below(bed: Bed) -> None:
    bed.make_known(b"a.mp3/1.mp3", b"a.mp3/b/2.mp3")
    bed.rename(b"a.mp3", b"../elsewhere")
    bed.write(b"a.mp3")
    seen = bed.look(b"a.mp3")
    assert (seen.kind, seen.gone) == (Kind.CHANGED, (b"a.mp3/1.mp3", b"a.mp3/b/2.mp3"))
    assert bed.still_gone(*seen.gone) == list(seen.gone)


def test_a_directory_where_a_file_was_takes_the_file(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.unlink(bed.absolute(b"a.mp3"))
    bed.write(b"a.mp3/1.mp3")
    assert bed.look(b"a.mp3") == Sighting(bed.due(bed.at(b"a.mp3")), Kind.DIRECTORY, gone=(b"a.mp3",))
    assert bed.still_gone(b"a.mp3") == [b"a.mp3"]


@pytest.mark.parametrize("kind", ["symlink", "pipe"])
def test_what_is_no_file_any_more_is_gone(bed: Bed, kind: str) -> None:
    bed.make_known(b"a.mp3")
    bed.rename(b"a.mp3", b"../a.mp3")
    if kind == "symlink":
        os.symlink(b"../a.mp3", bed.absolute(b"a.mp3"))
    else:
        os.mkfifo(bed.absolute(b"a.mp3"))
    assert bed.look(b"a.mp3") == Sighting(bed.due(bed.at(b"a.mp3")), Kind.GONE, gone=(b"a.mp3",))
    assert bed.still_gone(b"a.mp3") == [b"a.mp3"]


def test_a_file_that_is_no_longer_wanted_is_gone(bed: Bed) -> None:
    """The patterns have changed since it was announced."""
    bed.make_known(b"a.part")
    assert bed.look(b"a.part").gone == (b"a.part",)
    assert bed.still_gone(b"a.part") == [b"a.part"]


def test_a_file_that_was_never_wanted_is_nothing(bed: Bed) -> None:
    bed.write(b"a.part")
    assert bed.look(b"a.part") == Sighting(bed.due(bed.at(b"a.part")), Kind.GONE)


def test_a_file_that_cannot_be_looked_at_is_left_alone(bed: Bed) -> None:
    """The name is too long for any file system, which is not the same as gone."""
    assert bed.look(b"x" * 300).kind is Kind.UNCHANGED
    assert bed.still_gone(b"x" * 300) == []


def test_a_file_that_came_back_is_not_gone(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    assert bed.still_gone(b"a.mp3") == []


def test_names_that_are_no_text_are_looked_at_like_others(bed: Bed) -> None:
    bed.make_known(b"\xff/\n.mp3")
    assert bed.look(b"\xff/\n.mp3").kind is Kind.UNCHANGED
    bed.rename(b"\xff", b"\xfe")
    assert moved(bed.look(b"\xfe/\n.mp3")) == (b"\xff/\n.mp3", b"\xfe/\n.mp3")


# Roots that cannot be trusted


def lose_root(bed: Bed, how: str) -> None:
    os.rename(bed.root.path, bed.root.path + b".away")
    if how == "empty":
        os.mkdir(bed.root.path)
    elif how == "file":
        with open(bed.root.path, "wb"):
            pass


@pytest.mark.parametrize("how", ["missing", "empty", "file"])
def test_nothing_is_gone_from_a_root_that_is_missing_or_empty(bed: Bed, how: str) -> None:
    """A look names what is not there; whether that is gone is asked when its grace ends, and answered with a doubt."""
    bed.make_known(b"a/1.mp3", b"a/2.mp3", b"b.mp3")
    lose_root(bed, how)
    assert bed.look(b"a").gone == (b"a/1.mp3", b"a/2.mp3")
    for path in (b"a/1.mp3", b"b.mp3"):
        assert bed.look(path) == Sighting(bed.due(bed.at(path)), Kind.GONE, gone=(path,))
        assert bed.doubted(path)
    assert bed.doubted(b"a/1.mp3", b"b.mp3")


@pytest.mark.parametrize("how", ["missing", "empty", "file"])
def test_a_root_whose_removals_are_accepted_is_believed_whatever_it_says(bed: Bed, how: str) -> None:
    bed.make_known(b"a/1.mp3", b"b.mp3")
    lose_root(bed, how)
    bed.trust.accept(bed.root.id, True)
    assert bed.still_gone(b"a/1.mp3", b"b.mp3") == [b"a/1.mp3", b"b.mp3"]
    bed.trust.accept(bed.root.id, False)
    assert bed.doubted(b"a/1.mp3", b"b.mp3")


def test_a_doubt_about_one_root_is_none_about_another(bed: Bed) -> None:
    bed.make_known(b"a/1.mp3", b"b.mp3")
    for path in (b"gone.mp3", b"kept.mp3"):
        bed.write(path, root=bed.other)
    bed.know(b"gone.mp3", b"kept.mp3", root=bed.other)
    os.unlink(bed.other.absolute(b"gone.mp3"))
    lose_root(bed, "missing")
    elsewhere = Location(bed.other.id, b"gone.mp3")
    gone, doubtful = bed.lookout.still_gone([bed.at(b"b.mp3"), elsewhere], bed.conn)
    assert (gone, doubtful) == ([elsewhere], {bed.root.id})


def test_nothing_is_gone_from_a_part_that_is_not_what_it_was(bed: Bed) -> None:
    """A disk was mounted on `nas`, and is not any more; what lies beside it can go as ever."""
    bed.make_known(b"nas/1.mp3", b"nas/2.mp3", b"b.mp3")
    disk = Identity(b"/dev/sdz1", b"ext4", 77)
    bed.trust.learn(bed.root.id, {**root_mounts(bed.root), b"nas": disk})
    for path in (b"nas/1.mp3", b"b.mp3"):
        os.unlink(bed.absolute(path))
    gone, doubtful = bed.lookout.still_gone([bed.at(b"nas/1.mp3"), bed.at(b"b.mp3")], bed.conn)
    assert (gone, doubtful) == ([bed.at(b"b.mp3")], {bed.root.id})


def test_what_turned_up_elsewhere_is_neither_gone_nor_in_doubt(bed: Bed) -> None:
    """Nothing is known at its old place any more, so there is nothing to tell of it."""
    assert bed.still_gone(b"never known.mp3") == []
    lose_root(bed, "missing")
    assert bed.still_gone(b"never known.mp3") == []


@pytest.mark.parametrize("how", ["missing", "empty"])
def test_nothing_has_moved_out_of_a_root_that_is_away(bed: Bed, how: str) -> None:
    """It may be mounted elsewhere for a while: the file under its other name says nothing about the first."""
    bed.make_known(b"a.mp3", b"b.mp3")
    lose_root(bed, how)
    os.rename(bed.root.path + b".away/a.mp3", bed.other.absolute(b"a.mp3"))
    location = Location(bed.other.id, b"a.mp3")
    assert bed.look_at(location).kind is Kind.CHANGED
    assert bed.lookout.content_origin(location, bed.observe(location), bed.conn) is None


def test_the_last_file_of_a_root_can_go(bed: Bed) -> None:
    bed.know(b"keep.mp3")
    os.unlink(bed.absolute(b"keep.mp3"))
    assert bed.look(b"keep.mp3").gone == (b"keep.mp3",)
    assert bed.still_gone(b"keep.mp3") == [b"keep.mp3"]


def test_a_root_that_was_configured_once_says_nothing(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.rename(bed.absolute(b"a.mp3"), bed.other.absolute(b"a.mp3"))
    alone = Lookout({bed.other.id: bed.other}, bed.lookout.wanted, bed.trust, bed.lookout.is_in_hand)
    assert bed.look_at(Location(bed.other.id, b"a.mp3"), alone).kind is Kind.CHANGED


# Moves


@pytest.mark.parametrize("new", [b"b.mp3", b"d/a.mp3", b"d/e/b.mp3"])
def test_a_renamed_file_has_moved(bed: Bed, new: bytes) -> None:
    bed.make_known(b"a.mp3")
    before = signature_of(bed.absolute(b"a.mp3"))
    bed.rename(b"a.mp3", new)
    seen = bed.look(new)
    assert moved(seen) == (b"a.mp3", new)
    assert isinstance(seen.change, Moved)
    assert seen.change.signature == before


def test_a_file_moves_between_roots(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.rename(bed.absolute(b"a.mp3"), bed.other.absolute(b"a.mp3"))
    seen = bed.look_at(Location(bed.other.id, b"a.mp3"))
    assert isinstance(seen.change, Moved)
    assert (seen.change.old, seen.change.new) == (bed.at(b"a.mp3"), Location(bed.other.id, b"a.mp3"))


def test_every_file_of_a_renamed_directory_has_moved(bed: Bed) -> None:
    bed.make_known(b"a/1.mp3", b"a/b/2.mp3")
    bed.rename(b"a", b"c")
    assert moved(bed.look(b"c/1.mp3")) == (b"a/1.mp3", b"c/1.mp3")
    assert moved(bed.look(b"c/b/2.mp3")) == (b"a/b/2.mp3", b"c/b/2.mp3")


def test_a_file_that_moved_over_a_known_one_has_moved(bed: Bed) -> None:
    bed.make_known(b"a.mp3", b"b.mp3")
    bed.rename(b"a.mp3", b"b.mp3")
    assert moved(bed.look(b"b.mp3")) == (b"a.mp3", b"b.mp3")


def test_a_file_that_moved_and_was_changed_has_to_be_read(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    bed.rename(b"a.mp3", b"b.mp3")
    bed.write(b"b.mp3", b"something else")
    assert bed.look(b"b.mp3").kind is Kind.CHANGED


def test_a_file_that_moves_from_an_unwanted_name_has_to_be_read(bed: Bed) -> None:
    """It was never announced, so nobody could make sense of a move."""
    bed.write(b"a.mp3.part")
    bed.rename(b"a.mp3.part", b"a.mp3")
    assert bed.look(b"a.mp3").kind is Kind.CHANGED


def test_a_file_that_becomes_audio_by_its_name_has_to_be_read(bed: Bed) -> None:
    bed.make_known(b"a.bin")
    bed.rename(b"a.bin", b"a.mp3")
    assert bed.look(b"a.mp3").kind is Kind.CHANGED
    assert bed.lookout.content_origin(bed.at(b"a.mp3"), bed.observe(bed.at(b"a.mp3")), bed.conn) is None


def test_a_reused_inode_with_another_birth_is_another_file(bed: Bed) -> None:
    """ext4 gives the inode of a removed file to the next one; size and mtime may agree after a restore."""
    bed.write(b"b.mp3")
    seen = bed.observe(bed.at(b"b.mp3"))
    if seen.signature.btime_ns is None:
        pytest.skip("no birth times here")
    elder = seen.signature._replace(btime_ns=seen.signature.btime_ns - 1)
    bed.ledger.record(Present(bed.at(b"a.mp3"), seen._replace(signature=elder)))
    assert bed.look(b"b.mp3").kind is Kind.CHANGED


def test_without_known_births_the_inode_size_and_mtime_decide(bed: Bed) -> None:
    bed.write(b"b.mp3")
    seen = bed.observe(bed.at(b"b.mp3"))
    known = seen.signature._replace(btime_ns=None, ctime_ns=1)
    bed.ledger.record(Present(bed.at(b"a.mp3"), seen._replace(signature=known)))
    assert moved(bed.look(b"b.mp3")) == (b"a.mp3", b"b.mp3")


def test_a_file_whose_old_path_is_in_a_workers_hand_is_for_later(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    bed.rename(b"a.mp3", b"b.mp3")
    bed.in_hand.add(bed.at(b"a.mp3"))
    assert bed.look(b"b.mp3").kind is Kind.LATER
    bed.in_hand.clear()
    assert moved(bed.look(b"b.mp3")) == (b"a.mp3", b"b.mp3")


def test_what_was_taken_together_waits_for_nobody(bed: Bed) -> None:
    """Both ends of a move are due at the same moment as a rule; no worker has any of them."""
    bed.make_known(b"a.mp3")
    bed.rename(b"a.mp3", b"b.mp3")
    sightings = {seen.due.location.path: seen for seen in bed.look_together(b"a.mp3", b"b.mp3")}
    assert sightings[b"a.mp3"].kind is Kind.GONE
    assert moved(sightings[b"b.mp3"]) == (b"a.mp3", b"b.mp3")


@pytest.mark.parametrize("order", [(1, 2, 3, 4), (4, 3, 2, 1), (2, 4, 1, 3)])
def test_a_chain_of_renames_comes_out_as_renames_whatever_is_looked_at_first(bed: Bed, order: Sequence[int]) -> None:
    """Somebody renumbers the tracks of an album: 3 -> 4, 2 -> 3, 1 -> 2."""
    bed.make_known(b"1.mp3", b"2.mp3", b"3.mp3")
    announced = len(bed.events())
    for number in (3, 2, 1):
        bed.rename(b"%d.mp3" % number, b"%d.mp3" % (number + 1))
    sightings = bed.look_together(*(b"%d.mp3" % number for number in order))
    assert len(sightings) == 4
    assert bed.record(sightings) == [True, True, True]
    assert bed.events()[announced:] == [
        ("renamed", "4.mp3", "3.mp3"),
        ("renamed", "3.mp3", "2.mp3"),
        ("renamed", "2.mp3", "1.mp3"),
    ]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_files_that_changed_places_are_told_as_modified_in_one_look(bed: Bed, order: Sequence[int]) -> None:
    """A ring of renames has no order in which none of them overwrites what moved on. Nothing is read, nothing lost."""
    paths = [b"1.mp3", b"2.mp3", b"3.mp3"]
    bed.make_known(*paths)
    announced = len(bed.events())
    bed.rename(b"3.mp3", b"waiting.mp3")
    for old, new in ((b"2.mp3", b"3.mp3"), (b"1.mp3", b"2.mp3"), (b"waiting.mp3", b"1.mp3")):
        bed.rename(old, new)
    sightings = bed.look_together(*(paths[number] for number in order))
    assert sorted(seen.due.location.path for seen in sightings) == paths
    assert bed.record(sightings) == [True]
    assert sorted(bed.events()[announced:]) == [("modified", path.decode(), None) for path in paths]
    for path in paths:
        entry = catalogue.find(bed.conn, bed.at(path))
        assert entry is not None
        assert entry.sha256 == bed.observe(bed.at(path)).sha256
    assert [seen.kind for seen in bed.look_together(*paths)] == [Kind.CHANGED] * 3  # as whatever was renamed


def test_a_ring_of_renames_that_was_overtaken_is_looked_at_again(bed: Bed) -> None:
    bed.make_known(b"a.mp3", b"b.mp3")
    for old, new in ((b"a.mp3", b"c.mp3"), (b"b.mp3", b"a.mp3"), (b"c.mp3", b"b.mp3")):
        bed.rename(old, new)
    sightings = bed.look_together(b"a.mp3", b"b.mp3")
    bed.ledger.record(Absent(bed.at(b"a.mp3")))
    announced = bed.events()
    assert bed.record(sightings) == [False]
    assert bed.events() == announced


def test_every_path_that_was_taken_comes_back_once(bed: Bed) -> None:
    bed.make_known(b"1.mp3", b"2.mp3", b"3.mp3", b"4.mp3")
    bed.rename(b"3.mp3", b"5.mp3")
    bed.rename(b"2.mp3", b"3.mp3")
    os.link(bed.absolute(b"5.mp3"), bed.absolute(b"6.mp3"))
    paths = [b"%d.mp3" % number for number in range(9)]
    assert sorted(seen.due.location.path for seen in bed.look_together(*paths)) == paths


# Hard links


def test_a_second_name_of_a_known_file_is_a_link(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    before = signature_of(bed.absolute(b"a.mp3"))
    os.link(bed.absolute(b"a.mp3"), bed.absolute(b"b.mp3"))
    seen = bed.look(b"b.mp3")
    assert seen.kind is Kind.ELSEWHERE
    assert seen.change == Linked(bed.at(b"a.mp3"), bed.at(b"b.mp3"), before)


def test_a_link_to_a_file_that_has_changed_since_has_to_be_read(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.link(bed.absolute(b"a.mp3"), bed.absolute(b"b.mp3"))
    bed.write(b"b.mp3", b"written through the link")
    assert bed.look(b"b.mp3").kind is Kind.CHANGED


def test_of_two_links_the_one_that_left_was_renamed(bed: Bed) -> None:
    bed.write(b"a.mp3")
    os.link(bed.absolute(b"a.mp3"), bed.absolute(b"b.mp3"))
    bed.know(b"a.mp3", b"b.mp3")
    bed.rename(b"b.mp3", b"d/c.mp3")
    assert moved(bed.look(b"d/c.mp3")) == (b"b.mp3", b"d/c.mp3")


# Files that may have been written in secret (their size and mtime kept) and were renamed


def test_a_file_that_was_renamed_is_read_after_it_has_moved(bed: Bed) -> None:
    """Its ctime is a new one, and nothing tells whether that comes of its new name alone."""
    bed.make_known(b"a.mp3")
    bed.write_in_secret(b"a.mp3", b"other")
    bed.rename(b"a.mp3", b"d/b.mp3")
    seen = bed.look(b"d/b.mp3")
    assert moved(seen) == (b"a.mp3", b"d/b.mp3")
    assert seen.is_doubtful
    assert bed.record([seen]) == [True]
    assert bed.look(b"d/b.mp3").kind is Kind.CHANGED
    bed.know(b"d/b.mp3")
    assert bed.look(b"d/b.mp3").kind is Kind.UNCHANGED
    assert [kind for kind, _, _ in bed.events()][-2:] == ["moved", "modified"]


def test_files_of_a_renamed_directory_are_sure_to_be_what_they_were(bed: Bed) -> None:
    """The ctime of what is in a directory stays when that moves."""
    bed.make_known(b"a/1.mp3")
    bed.rename(b"a", b"c")
    seen = bed.look(b"c/1.mp3")
    assert moved(seen) == (b"a/1.mp3", b"c/1.mp3")
    assert not seen.is_doubtful
    assert bed.record([seen]) == [True]
    assert bed.look(b"c/1.mp3").kind is Kind.UNCHANGED


def test_a_new_link_is_read_once_for_all_its_names(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    bed.write_in_secret(b"a.mp3", b"other")
    os.link(bed.absolute(b"a.mp3"), bed.absolute(b"b.mp3"))
    seen = bed.look(b"b.mp3")
    assert isinstance(seen.change, Linked)
    assert seen.is_doubtful
    assert bed.record([seen]) == [True]
    again = bed.look(b"b.mp3")
    assert (again.kind, again.also) == (Kind.CHANGED, (bed.at(b"a.mp3"),))
    bed.know(b"b.mp3")
    told = bed.look(b"a.mp3")
    assert told.kind is Kind.ELSEWHERE
    assert not told.is_doubtful
    assert bed.record([told]) == [True]
    assert [bed.look(path).kind for path in (b"a.mp3", b"b.mp3")] == [Kind.UNCHANGED] * 2
    assert bed.events()[-2:] == [("modified", "b.mp3", None), ("modified", "a.mp3", None)]


def test_all_names_of_a_file_that_was_written_in_secret_are_looked_at(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.link(bed.absolute(b"a.mp3"), bed.absolute(b"b.mp3"))
    bed.know(b"a.mp3", b"b.mp3")
    bed.write_in_secret(b"a.mp3", b"other")
    seen = bed.look(b"a.mp3")
    assert (seen.kind, seen.also) == (Kind.CHANGED, (bed.at(b"b.mp3"),))


# Symlinks to directories: what they lead to is not ours


def test_a_directory_replaced_by_a_symlink_takes_what_was_below(bed: Bed) -> None:
    """Moved to a larger disk, with a symlink left in its place: the files are still there for who follows it."""
    bed.make_known(b"a/1.mp3", b"a/b/2.mp3")
    os.rename(bed.absolute(b"a"), bed.root.path + b"/../big")
    os.symlink(b"../big", bed.absolute(b"a"))
    assert bed.look(b"a").gone == (b"a/1.mp3", b"a/b/2.mp3")
    assert bed.still_gone(b"a/1.mp3", b"a/b/2.mp3") == [b"a/1.mp3", b"a/b/2.mp3"]
    assert bed.look(b"a/1.mp3") == Sighting(bed.due(bed.at(b"a/1.mp3")), Kind.GONE, gone=(b"a/1.mp3",))


def test_a_directory_renamed_behind_a_symlink_has_moved_and_is_no_link(bed: Bed) -> None:
    bed.make_known(b"a/1.mp3")
    bed.rename(b"a", b"c")
    os.symlink(b"c", bed.absolute(b"a"))
    assert moved(bed.look(b"c/1.mp3")) == (b"a/1.mp3", b"c/1.mp3")


def test_a_root_behind_a_symlink_is_a_root(bed: Bed) -> None:
    bed.make_known(b"a/1.mp3")
    os.rename(bed.root.path, bed.root.path + b".real")
    os.symlink(b"music.real", bed.root.path)
    assert bed.look(b"a/1.mp3").kind is Kind.UNCHANGED
    assert bed.still_gone(b"a/1.mp3") == []


# Moves by content


def copy_away(bed: Bed, path: bytes) -> Location:
    """Put the content of a file elsewhere under another inode, as a move to another file system does."""
    with open(bed.absolute(path), "rb") as file:
        bed.write(b"copy.mp3", file.read(), bed.other)
    return Location(bed.other.id, b"copy.mp3")


def test_a_described_file_with_the_content_of_a_vanished_one_has_moved(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    copy = copy_away(bed, b"a.mp3")
    os.unlink(bed.absolute(b"a.mp3"))
    seen = bed.observe(copy)
    assert bed.lookout.content_origin(copy, seen, bed.conn) == Moved(
        bed.at(b"a.mp3"), copy, seen.signature, seen.sha256
    )


def test_a_copy_is_no_move_while_the_first_is_there_or_in_hand(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    copy = copy_away(bed, b"a.mp3")
    assert bed.lookout.content_origin(copy, bed.observe(copy), bed.conn) is None
    os.unlink(bed.absolute(b"a.mp3"))
    bed.in_hand.add(bed.at(b"a.mp3"))
    assert bed.lookout.content_origin(copy, bed.observe(copy), bed.conn) is None


def test_what_is_known_at_its_place_already_moves_from_nowhere(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    copy = copy_away(bed, b"a.mp3")
    bed.know(b"copy.mp3", root=bed.other)
    os.unlink(bed.absolute(b"a.mp3"))
    assert bed.lookout.content_origin(copy, bed.observe(copy), bed.conn) is None


def test_a_look_changes_nothing(bed: Bed) -> None:
    bed.make_known(b"a.mp3", b"b.mp3")
    bed.rename(b"a.mp3", b"c.mp3")
    before = bed.conn.total_changes
    bed.look_together(b"a.mp3", b"b.mp3", b"c.mp3")
    assert bed.conn.total_changes == before


def test_what_is_gone_and_recorded_is_announced_as_deleted(bed: Bed) -> None:
    bed.make_known(b"a.mp3")
    os.unlink(bed.absolute(b"a.mp3"))
    (gone,) = bed.look(b"a.mp3").gone
    bed.ledger.record(Absent(bed.at(gone)))
    assert bed.events()[-1] == (EventType.DELETED.value, "a.mp3", None)
    assert catalogue.find(bed.conn, bed.at(b"a.mp3")) is None
    assert outbox.last_sequence(bed.conn) == len(bed.events())
