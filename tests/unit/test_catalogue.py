"""The catalogue's SQL on a real database: subtrees of bytes, chunked reading, roots, problems."""

import sqlite3
from contextlib import closing
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackwatch import catalogue
from trackwatch.catalogue import CHUNK_ROWS, FIND_ROWS, Description, Entry, RootTotals
from trackwatch.track import Location, Root, Signature


@pytest.fixture
def conn(conn: sqlite3.Connection) -> sqlite3.Connection:
    """A new state in memory, with the roots 1 and 2."""
    catalogue.claim_roots(conn, (b"/music", b"/more"))
    return conn


def put(
    conn: sqlite3.Connection,
    *paths: bytes,
    root_id: int = 1,
    content: bytes = b"one",
    inode: int = 1,
    described: Description | None = None,
) -> int:
    """Catalogue files and return the id of the last one."""
    file_id = 0
    for path in paths:
        seen = Signature(5, inode, len(content), 10, 20, None)
        digest = sha256(content).digest()
        entry = Entry(0, Location(root_id, path), seen, digest, digest[:16], 1)
        file_id = catalogue.add(conn, entry, described or Description()) or 0
        if not file_id and (known := catalogue.find(conn, entry.location)) is not None:
            file_id = known.id
            catalogue.replace(conn, entry._replace(id=file_id), described or Description())
    return file_id


# All that sorts near "a/": the range of a subtree must hold nothing else.
NEIGHBOURS = (b"a", b"a-b", b"a-b/x", b"a.mp3", b"a/x", b"a/x/y", b"a/\xff", b"a0", b"a0/x", b"aa", b"b", b"\xff")


def test_a_subtree_is_what_lies_below_it_and_nothing_that_sorts_near(conn: sqlite3.Connection) -> None:
    """Names with `-`, `.` and `0` sort around the slash."""
    put(conn, *NEIGHBOURS)
    put(conn, b"a/other", root_id=2)
    below = [b"a/x", b"a/x/y", b"a/\xff"]
    assert catalogue.find_below(conn, Location(1, b"a")) == below
    assert [path for path, _ in catalogue.signatures(conn, Location(1, b"a"))] == below
    assert catalogue.any_below(conn, Location(1, b"a"))
    assert catalogue.find_below(conn, Location(1, b"a/x")) == [b"a/x/y"]
    for leaf in (b"a.mp3", b"b", b"c", b"a/x/y", b"\xff"):
        assert catalogue.find_below(conn, Location(1, leaf)) == []
        assert not catalogue.any_below(conn, Location(1, leaf))


def test_an_empty_path_means_the_whole_root(conn: sqlite3.Connection) -> None:
    """For each of the questions about a subtree."""
    assert not catalogue.any_below(conn, Location(1, b""))
    put(conn, *NEIGHBOURS)
    assert catalogue.find_below(conn, Location(1, b"")) == sorted(NEIGHBOURS)
    assert [path for path, _ in catalogue.signatures(conn, Location(1, b""))] == sorted(NEIGHBOURS)
    assert catalogue.any_below(conn, Location(1, b""))
    assert not catalogue.any_below(conn, Location(2, b""))


NAME = st.lists(st.sampled_from([b"a", b"-", b".", b"/", b"0", b"\xff", b"\x01"]), min_size=1, max_size=5).map(b"".join)


@given(paths=st.frozensets(NAME, max_size=20), directory=NAME)
def test_a_subtree_is_a_matter_of_the_slash_alone(paths: frozenset[bytes], directory: bytes) -> None:
    """The range and the prefix say the same of any bytes."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute(
        "CREATE TABLE catalogue(root_id INTEGER, path BLOB, dev, inode, size_bytes, mtime_ns, ctime_ns, btime_ns)"
    )
    conn.executemany("INSERT INTO catalogue VALUES (1, ?, 1, 1, 1, 1, 1, 1)", [(path,) for path in paths])
    expected = sorted(path for path in paths if path.startswith(directory + b"/"))
    # A path that ends in a slash is no file's: `signatures` leaves out the directory's own name with a slash.
    named = [path for path in expected if path != directory + b"/"]
    assert catalogue.find_below(conn, Location(1, directory)) == expected
    assert catalogue.any_below(conn, Location(1, directory)) == bool(expected)
    assert [path for path, _ in catalogue.signatures(conn, Location(1, directory))] == named
    conn.close()


# What a tree's files can be named so that their paths sort around those of directories beside them.
PARTS = st.sampled_from([b"a", b"a0", b"a-b", b"a.mp3", b"a.", b"b", b"0", b"\xff", b"\x01"])
FILES = st.lists(PARTS, min_size=1, max_size=4).map(b"/".join)


def naive_children(paths: frozenset[bytes], directory: bytes) -> dict[bytes, bool]:
    """Return what lies directly in a directory, and whether it is a file's own path."""
    prefix = directory + b"/" if directory else b""
    found: dict[bytes, bool] = {}
    for path in paths:
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition(b"/")
            # A path may be that of a file and of a directory at once: it was one and has become the other.
            found[prefix + name] = found.get(prefix + name, False) or not slash
    return found


@given(paths=st.frozensets(FILES, max_size=25), directory=st.one_of(st.just(b""), FILES))
def test_children_are_those_of_a_naive_listing(paths: frozenset[bytes], directory: bytes) -> None:
    """Files with signatures, directories of known files with None, whatever sorts between a name and its slash."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as conn:
        conn.execute(
            "CREATE TABLE catalogue(id INTEGER PRIMARY KEY, root_id, path BLOB, dev, inode, size_bytes, mtime_ns,"
            " ctime_ns, btime_ns, sha256, xxh128, last_seq)"
        )
        rows = [(root_id, path) for path in paths for root_id in (1, 2)]
        conn.executemany("INSERT INTO catalogue VALUES (NULL, ?, ?, 1, 1, 1, 1, 1, 1, x'', x'', 1)", rows)
        conn.execute("INSERT INTO catalogue VALUES (NULL, 2, ?, 1, 1, 1, 1, 1, 1, x'', x'', 1)", (b"a/other",))
        found = list(catalogue.children(conn, Location(1, directory)))
    expected = naive_children(paths, directory)
    assert {path for path, _ in found} == expected.keys()
    # What is both comes twice: the directory, and the file, in the order of their keys.
    files = {path for path, seen in found if seen is not None}
    assert files == {path for path, is_file in expected.items() if is_file}
    below = {path for path in expected if any(other.startswith(path + b"/") for other in paths)}
    assert {path for path, seen in found if seen is None} == below
    assert len(found) == len(files) + len(below)


def test_children_jump_over_whole_subtrees(conn: sqlite3.Connection) -> None:
    """A directory with a few children costs a few steps, however much lies below them."""
    conn.execute("BEGIN")
    put(conn, *(b"big/%04d/x" % number for number in range(2000)), b"a", b"z")
    conn.execute("COMMIT")
    statements: list[str] = []
    conn.set_trace_callback(statements.append)
    assert [path for path, _ in catalogue.children(conn, Location(1, b""))] == [b"a", b"big", b"z"]
    conn.set_trace_callback(None)
    assert len(statements) < 10


def test_children_of_a_name_that_is_a_file_and_a_directory_are_both_told(conn: sqlite3.Connection) -> None:
    put(conn, b"a", b"a/x", b"a0", b"a0/x")
    found = [(path, seen is not None) for path, seen in catalogue.children(conn, Location(1, b""))]
    assert found == [(b"a", True), (b"a", False), (b"a0", True), (b"a0", False)]


def test_children_written_meanwhile_disturb_nobody(conn: sqlite3.Connection) -> None:
    put(conn, b"a/x", b"b", b"c")
    seen: list[bytes] = []
    for path, _ in catalogue.children(conn, Location(1, b"")):
        put(conn, b"a/y", b"bb")
        conn.execute("DELETE FROM catalogue WHERE path = ?", (b"c",))
        seen.append(path)
    assert seen == [b"a", b"b", b"bb"]


def test_whether_a_root_has_fewer_files_is_told_at_each_side_of_the_number(conn: sqlite3.Connection) -> None:
    assert not catalogue.has_fewer(conn, 1, 0)
    assert catalogue.has_fewer(conn, 1, 1)
    put(conn, b"a", b"b/c", b"d")
    put(conn, b"a", b"b", b"c", b"d", root_id=2)
    assert [catalogue.has_fewer(conn, 1, count) for count in (1, 2, 3, 4, 5)] == [False, False, False, True, True]


def test_an_accepted_removal_is_remembered_until_it_is_dealt_with(conn: sqlite3.Connection) -> None:
    assert not catalogue.are_removals_accepted(conn, 1)
    catalogue.accept_removals(conn, 1, 1_700_000_000_000_000)
    assert catalogue.are_removals_accepted(conn, 1)
    assert not catalogue.are_removals_accepted(conn, 2)
    catalogue.accept_removals(conn, 1, None)
    assert not catalogue.are_removals_accepted(conn, 1)
    assert not catalogue.are_removals_accepted(conn, 77), "a root that nobody knows"


def test_the_mounts_of_a_root_are_kept_as_they_are_and_replaced_as_a_whole(conn: sqlite3.Connection) -> None:
    """Ids are unsigned 64-bit numbers, names are bytes."""
    assert catalogue.root_mounts(conn, 1) == {}
    first = {b"": (b"/dev/sda1", b"ext4", (1 << 64) - 1, b"/musi\xff"), b"a/\xff": (b"\xfe", b"nfs4", 0, b"/")}
    catalogue.set_root_mounts(conn, 1, first)
    catalogue.set_root_mounts(conn, 2, {b"": (b"x", b"xfs", 1 << 63, b"/")})
    assert catalogue.root_mounts(conn, 1) == first
    catalogue.set_root_mounts(conn, 1, {b"": (b"/dev/sdb1", b"ext4", 3, b"/")})
    assert catalogue.root_mounts(conn, 1) == {b"": (b"/dev/sdb1", b"ext4", 3, b"/")}
    assert catalogue.root_mounts(conn, 2) == {b"": (b"x", b"xfs", 1 << 63, b"/")}


@pytest.mark.parametrize("count", [0, 1, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 7])
def test_chunks_join_without_loss_or_double(conn: sqlite3.Connection, count: int) -> None:
    """At each side of a boundary, below a directory and for the whole root."""
    paths = [b"d/%06d" % number for number in range(count)]
    conn.execute("BEGIN")
    put(conn, *paths)
    put(conn, b"c", b"d0", b"e")
    conn.execute("COMMIT")
    assert [path for path, _ in catalogue.signatures(conn, Location(1, b"d"))] == paths
    assert [path for path, _ in catalogue.signatures(conn, Location(1, b""))] == [b"c", *paths, b"d0", b"e"]


def test_what_is_written_behind_the_cursor_is_seen_from_the_next_chunk_on(conn: sqlite3.Connection) -> None:
    """Nothing that stays is left out or told twice, and no read stays open between chunks."""
    conn.execute("BEGIN")
    put(conn, *(b"%06d" % number for number in range(0, 6 * CHUNK_ROWS, 2)))
    conn.execute("COMMIT")
    seen: list[bytes] = []
    for path, _ in catalogue.signatures(conn, Location(1, b"")):
        if len(seen) == CHUNK_ROWS // 2:
            put(conn, b"000001", b"%06d" % (5 * CHUNK_ROWS + 1), b"999999")
            conn.execute("DELETE FROM catalogue WHERE path = ?", (b"%06d" % (4 * CHUNK_ROWS),))
            conn.execute("UPDATE catalogue SET inode = 77 WHERE path = ?", (b"999999",))
        seen.append(path)
    assert seen == sorted(set(seen))
    assert b"000001" not in seen
    assert {b"999999", b"%06d" % (5 * CHUNK_ROWS + 1)} < set(seen)
    assert b"%06d" % (4 * CHUNK_ROWS) not in seen
    assert len(seen) == 3 * CHUNK_ROWS + 2 - 1


def test_a_file_is_added_once_and_keeps_its_id_when_its_content_is_replaced(conn: sqlite3.Connection) -> None:
    """With its description; an empty one takes the known one away."""
    described = Description('{"format":"audio/mpeg"}', None)
    first = put(conn, b"a", described=described)
    assert catalogue.describe(conn, first) == described
    known = catalogue.find(conn, Location(1, b"a"))
    assert known is not None
    assert catalogue.add(conn, known._replace(id=0, last_seq=9), Description(None, "no")) is None
    assert catalogue.find(conn, Location(1, b"a")) == known
    assert catalogue.describe(conn, first) == described
    assert put(conn, b"a", content=b"two") == first
    put(conn, b"a", described=Description(None, "cut off", b"\x05" * 16))
    assert catalogue.describe(conn, first) == Description(None, "cut off", b"\x05" * 16)
    put(conn, b"a", described=Description())
    assert catalogue.describe(conn, first) == Description()
    assert conn.execute("SELECT count(*) FROM catalogue_metadata").fetchone() == (0,)


def test_files_are_found_by_inode_and_by_content(conn: sqlite3.Connection) -> None:
    """A farm of links or copies gives a few candidates, not all."""
    put(conn, b"a", b"b", inode=1)
    put(conn, b"c", content=b"two", inode=1 << 63)
    assert {entry.location.path for entry in catalogue.find_inode(conn, 1)} == {b"a", b"b"}
    assert [entry.signature.inode for entry in catalogue.find_inode(conn, 1 << 63)] == [1 << 63]
    one = sha256(b"one").digest()
    assert {entry.location.path for entry in catalogue.find_content(conn, one, 3)} == {b"a", b"b"}
    assert catalogue.find_content(conn, one, 4) == []
    put(conn, *(b"farm/%d" % number for number in range(100)), inode=1)
    assert len(catalogue.find_inode(conn, 1)) == catalogue.CANDIDATES_MAX


def test_a_file_cannot_be_put_where_another_is(conn: sqlite3.Connection) -> None:
    """The schema refuses two files under one name."""
    first = put(conn, b"a")
    put(conn, b"b")
    with pytest.raises(sqlite3.IntegrityError):
        catalogue.relocate(conn, first, Location(1, b"b"), Signature(1, 1, 1, 1, 1), 2)


def test_a_file_under_another_device_number_is_that_file(conn: sqlite3.Connection) -> None:
    put(conn, b"a")
    put(conn, b"a", root_id=2)
    catalogue.renumber(conn, Location(1, b"a"), (1 << 64) - 1)
    assert [signature.dev for _, signature in catalogue.signatures(conn, Location(1, b""))] == [(1 << 64) - 1]
    assert [signature.dev for _, signature in catalogue.signatures(conn, Location(2, b""))] == [5]


@pytest.mark.parametrize("count", [0, 1, FIND_ROWS, FIND_ROWS + 1])
def test_many_are_looked_for_at_once(conn: sqlite3.Connection, count: int) -> None:
    """Of those that are not known nothing comes back; the same path in another root is another file."""
    known = [b"%04d" % number for number in range(0, count, 2)]
    put(conn, *known)
    put(conn, b"0001", root_id=2)
    found = catalogue.find_all(conn, [Location(1, b"%04d" % number) for number in range(count)])
    assert found == {Location(1, path): catalogue.find(conn, Location(1, path)) for path in known}


def test_looking_for_many_reads_no_more_than_them(conn: sqlite3.Connection) -> None:
    plans: list[str] = []
    conn.set_trace_callback(plans.append)
    catalogue.find_all(conn, [Location(1, b"a"), Location(1, b"b")])
    conn.set_trace_callback(None)
    (sql,) = plans
    steps = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {sql}")]
    assert any(step.startswith("SEARCH catalogue") for step in steps)
    assert not any("SCAN catalogue" in step for step in steps)


def test_totals_are_those_of_each_root(conn: sqlite3.Connection) -> None:
    """Also of one without files."""
    put(conn, b"a", b"b")
    catalogue.set_swept(conn, 1, 42)
    assert catalogue.totals(conn) == [
        RootTotals(Root(1, b"/music"), 2, 6, 42),
        RootTotals(Root(2, b"/more"), 0, 0, None),
    ]


def test_totals_follow_every_change(conn: sqlite3.Connection) -> None:
    """Files that are added, that change, that move to another root, and that go."""

    def told() -> list[tuple[int, int]]:
        return [(total.files, total.size_bytes) for total in catalogue.totals(conn)]

    first = put(conn, b"a", content=b"four")
    put(conn, b"b", content=b"")
    assert told() == [(2, 4), (0, 0)]
    put(conn, b"a", content=b"longer")
    assert told() == [(2, 6), (0, 0)]
    catalogue.relocate(conn, first, Location(2, b"c"), Signature(1, 1, 7, 1, 1), 2)
    assert told() == [(1, 0), (1, 7)]
    catalogue.relocate(conn, first, Location(2, b"d"), Signature(1, 1, 7, 1, 1), 3)
    assert told() == [(1, 0), (1, 7)]
    catalogue.remove(conn, first)
    assert told() == [(1, 0), (0, 0)]


def test_problems_of_both_kinds_are_counted_and_listed(conn: sqlite3.Connection) -> None:
    """Files that could not be described come first, the newest of them first, up to the limit."""
    put(conn, b"tags.mp3", described=Description(None, "cut off"))
    put(conn, b"good.mp3", described=Description('{"format":"audio/mpeg"}'))
    catalogue.set_problem(conn, Location(1, b"\xff.mp3"), "denied", 1)
    catalogue.set_problem(conn, Location(2, b"b.mp3"), "denied", 2)
    assert catalogue.count_problems(conn) == 3
    listed = [
        (b"/more/b.mp3", "denied"),
        (b"/music/\xff.mp3", "denied"),
        (b"/music/tags.mp3", "no metadata (cut off)"),
    ]
    for limit in range(5):
        assert catalogue.list_problems(conn, limit) == listed[:limit]
    assert catalogue.problem_paths(conn, 1) == [b"\xff.mp3"]
    catalogue.clear_problem(conn, Location(1, b"\xff.mp3"))
    assert catalogue.problem_paths(conn, 1) == []
