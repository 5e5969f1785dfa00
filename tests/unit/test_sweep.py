"""Walking real directories in the catalogue's order, and telling how the catalogue differs."""

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trackwatch import sweep
from trackwatch.errors import RootUnavailable
from trackwatch.sweep import (
    Differs,
    Directory,
    Missing,
    Renumbered,
    Sight,
    Unlistable,
    Wanted,
    check_root,
    compare_directory,
    differences,
    standing,
    walk,
)
from trackwatch.track import Signature

EVERYTHING = Wanted(lambda _path: True)
# In the order of their bytes, which is not that of a walk that sorts names: "-" and "." come before "/", "0" after.
TREE = [
    b"a",
    b"a b/x.mp3",
    b"a-b.mp3",
    b"a-b/x.mp3",
    b"a.mp3",
    b"a.mp3.d/x",
    b"b/\n.mp3",
    b"b/c/d/e.mp3",
    b"b/c0",
    b"b0.mp3",
    b"\xc3\xa9.mp3",
    b"\xff/\xfe.mp3",
    b"\xff0",
]


@pytest.fixture
def root(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path)


def make(root: bytes, *paths: bytes) -> None:
    for path in paths:
        absolute = os.path.join(root, path)
        os.makedirs(os.path.dirname(absolute), exist_ok=True)
        with open(absolute, "wb") as file:
            file.write(path)


def seen(root: bytes, top: bytes = b"", wanted: Wanted = EVERYTHING, **options: bool) -> list[Sight]:
    return list(walk(root, top, wanted, **options))


def files(sights: Iterable[object]) -> list[bytes]:
    return [path for sight in sights if isinstance(sight, list) for path, _ in sight]


def directories(sights: Iterable[object]) -> list[bytes]:
    return [sight.path for sight in sights if isinstance(sight, Directory)]


def sealed(sights: Iterable[object]) -> dict[bytes, str]:
    return {sight.path: sight.reason for sight in sights if isinstance(sight, Unlistable)}


def signature(root: bytes, path: bytes) -> Signature:
    return Signature.of(os.lstat(os.path.join(root, path)))


def known(root: bytes, *paths: bytes) -> Iterator[tuple[bytes, Signature]]:
    """A catalogue that knows the files as they are, and those that are not there as well."""
    nothing = Signature(0, 0, 0, 0, 0)
    for path in sorted(paths):
        yield path, signature(root, path) if os.path.lexists(os.path.join(root, path)) else nothing


@contextmanager
def failing(monkeypatch: pytest.MonkeyPatch, deed: str, failures: dict[bytes, int]) -> Iterator[None]:
    """Let a call of os fail for some paths, as it does for one who is not allowed: tests may run as root."""
    real: Callable[..., Any] = getattr(os, deed)

    def deed_or_error(path: bytes, *args: Any, **options: Any) -> Any:
        if (number := failures.get(path)) is not None:
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, deed, deed_or_error)
        yield


@contextmanager
def entry_failing(monkeypatch: pytest.MonkeyPatch, name: bytes, number: int) -> Iterator[None]:
    """Let the look at one entry of a listing fail, as on a disk that dies: nothing else can make that happen."""
    scandir = os.scandir

    class Broken:
        def __init__(self, entry: os.DirEntry[bytes]) -> None:
            self.name = entry.name
            self.is_dir = entry.is_dir

        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            raise OSError(number, os.strerror(number))

    @contextmanager
    def listing(path: bytes) -> Iterator[Iterator[Any]]:
        with scandir(path) as entries:
            yield (Broken(entry) if entry.name == name else entry for entry in entries)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", listing)
        yield


def test_files_come_in_the_byte_order_of_their_whole_paths(root: bytes) -> None:
    make(root, *TREE[1:])
    make(root, b"a/x", b"a/x.mp3")
    assert files(seen(root)) == sorted([*TREE[1:], b"a/x", b"a/x.mp3"])


def test_a_file_comes_where_its_name_sorts_beside_longer_ones(root: bytes) -> None:
    make(root, *TREE)
    assert files(seen(root)) == sorted(TREE)


def test_directories_are_met_before_what_is_in_them_and_count_their_files(root: bytes) -> None:
    make(root, b"a/1.mp3", b"a/2.txt", b"a/b/3.mp3", b"4.mp3")
    sights = seen(root, wanted=Wanted(lambda path: path.endswith(b".mp3")))
    met = [sight.path if isinstance(sight, Directory) else files([sight]) for sight in sights]
    assert met == [b"", [b"4.mp3"], b"a", [b"a/1.mp3"], b"a/b", [b"a/b/3.mp3"]]
    assert [sight.files for sight in sights if isinstance(sight, Directory)] == [1, 1, 1]
    (top,) = [sight for sight in sights if isinstance(sight, Directory) and sight.path == b"a"]
    result = os.stat(os.path.join(root, b"a"))
    assert (top.dev, top.inode, top.mtime_ns) == (result.st_dev, result.st_ino, result.st_mtime_ns)


def test_a_subtree_is_walked_by_itself_with_paths_from_the_root(root: bytes) -> None:
    make(root, b"a/b/1.mp3", b"a/b/c/2.mp3", b"a/bb/3.mp3", b"4.mp3")
    sights = seen(root, b"a/b")
    assert files(sights) == [b"a/b/1.mp3", b"a/b/c/2.mp3"]
    assert directories(sights) == [b"a/b", b"a/b/c"]


def test_without_files_only_directories_are_met(root: bytes) -> None:
    make(root, b"a/1.mp3", b"a/b/2.mp3", b"3.mp3")
    sights = seen(root, with_files=False)
    assert all(isinstance(sight, Directory) for sight in sights)
    assert [(sight.path, sight.files) for sight in sights if isinstance(sight, Directory)] == [
        (b"", 1),
        (b"a", 1),
        (b"a/b", 1),
    ]


def test_what_is_not_wanted_is_not_met(root: bytes) -> None:
    make(root, b"a.mp3", b"a.txt", b"b/c.mp3")
    assert files(seen(root, wanted=Wanted(lambda path: path.endswith(b".txt")))) == [b"a.txt"]


def test_directories_that_are_left_out_are_not_even_listed(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, b"a/x.mp3", b"trash/y.mp3", b"trash/deep/z.mp3")
    wanted = Wanted(lambda _path: True, lambda path: path != b"trash")
    with failing(monkeypatch, "scandir", {os.path.join(root, b"trash"): errno.EIO}):
        sights = seen(root, wanted=wanted)
    assert directories(sights) == [b"", b"a"]
    assert files(sights) == [b"a/x.mp3"]
    assert sealed(sights) == {}


def test_symlinks_are_neither_followed_nor_met(root: bytes) -> None:
    make(root, b"real/x.mp3")
    os.symlink(b"real", os.path.join(root, b"linked"))
    os.symlink(b"real/x.mp3", os.path.join(root, b"linked.mp3"))
    os.symlink(b"nowhere", os.path.join(root, b"broken.mp3"))
    os.symlink(b".", os.path.join(root, b"real/loop"))
    sights = seen(root)
    assert files(sights) == [b"real/x.mp3"]
    assert directories(sights) == [b"", b"real"]


def test_a_top_that_has_become_a_symlink_is_not_followed(root: bytes) -> None:
    make(root, b"real/x.mp3")
    os.symlink(b"real", os.path.join(root, b"linked"))
    sights = seen(root, b"linked")
    assert files(sights) == []
    assert sealed(sights) == {b"linked": "not a directory"}


def test_a_root_may_be_a_symlink(root: bytes) -> None:
    make(root, b"real/x.mp3")
    os.symlink(b"real", os.path.join(root, b"linked"))
    assert files(seen(os.path.join(root, b"linked"))) == [b"x.mp3"]


def test_what_is_no_regular_file_is_not_met(root: bytes) -> None:
    os.mkfifo(os.path.join(root, b"pipe.mp3"))
    assert files(seen(root)) == []


def test_directories_with_names_that_are_no_text_are_odd(root: bytes) -> None:
    make(root, b"fine/\xc3\xa9.mp3", b"odd/\xff.mp3", b"\xfe/x.mp3", b"upper/\xfd/y.mp3")
    odd = {sight.path for sight in seen(root) if isinstance(sight, Directory) and sight.is_odd}
    assert odd == {b"", b"odd", b"\xfe", b"upper", b"upper/\xfd"}


def test_a_directory_below_an_odd_name_is_odd_itself(root: bytes) -> None:
    make(root, b"\xff/plain/x.mp3")
    assert {sight.path for sight in seen(root) if isinstance(sight, Directory) and sight.is_odd} == {
        b"",
        b"\xff",
        b"\xff/plain",
    }


def test_a_file_that_vanishes_during_the_walk_is_not_met(root: bytes) -> None:
    make(root, b"a.mp3", b"b.mp3")
    sights = walk(root, b"", EVERYTHING)
    assert directories([next(sights)]) == [b""]
    os.unlink(os.path.join(root, b"a.mp3"))
    assert files(sights) == [b"b.mp3"]


def test_nothing_is_concluded_about_a_directory_that_vanishes_during_the_walk(root: bytes) -> None:
    """Its parent's next listing will say so; an unmounted volume looks just like this."""
    make(root, b"a.mp3", b"b/c.mp3", b"d.mp3")
    sights = walk(root, b"", EVERYTHING)
    assert directories([next(sights)]) == [b""]
    os.unlink(os.path.join(root, b"b/c.mp3"))
    os.rmdir(os.path.join(root, b"b"))
    found = list(differences(sights, known(root, b"a.mp3", b"b/c.mp3", b"c.mp3", b"d.mp3")))
    assert found == [Unlistable(b"b", "no such file or directory", is_gone=True), Missing(b"c.mp3")]


def test_a_missing_root_is_unlistable_and_nothing_is_missing(root: bytes) -> None:
    away = os.path.join(root, b"away")
    found = list(differences(walk(away, b"", EVERYTHING), known(away, b"a.mp3", b"b/c.mp3")))
    assert found == [Unlistable(b"", "no such file or directory", is_gone=True)]


def test_a_directory_that_may_not_be_read_seals_what_is_below(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, b"a/x.mp3", b"b/y.mp3", b"b/z/w.mp3", b"c/v.mp3")
    catalogue = known(root, b"a/gone.mp3", b"a/x.mp3", b"b/gone.mp3", b"b/y.mp3", b"b/z/w.mp3", b"b0.mp3", b"c/v.mp3")
    with failing(monkeypatch, "scandir", {os.path.join(root, b"b"): errno.EACCES}):
        found = list(differences(walk(root, b"", EVERYTHING), catalogue))
    assert [item for item in found if not isinstance(item, Directory)] == [
        Missing(b"a/gone.mp3"),
        Unlistable(b"b", "permission denied"),
        Missing(b"b0.mp3"),
    ]


def test_several_sealed_directories_keep_their_seals(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """`a-b` and `a.d` sort before `a/`, and their files come up in the merge only after all of them were met."""
    make(root, b"a-b/x.mp3", b"a.d/x.mp3", b"a/x.mp3", b"a0/x.mp3")
    catalogue = known(
        root, b"a-b/x.mp3", b"a-gone.mp3", b"a.d/x.mp3", b"a.gone.mp3", b"a/x.mp3", b"a/y/z.mp3", b"a0/x.mp3"
    )
    refused = {os.path.join(root, name): errno.EACCES for name in (b"a-b", b"a.d", b"a")}
    with failing(monkeypatch, "scandir", refused):
        found = list(differences(walk(root, b"", EVERYTHING), catalogue))
    assert [item.path for item in found if isinstance(item, Unlistable)] == [b"a-b", b"a.d", b"a"]
    assert [item for item in found if isinstance(item, Missing)] == [Missing(b"a-gone.mp3"), Missing(b"a.gone.mp3")]


def test_a_file_whose_device_has_another_number_is_unchanged_otherwise(root: bytes) -> None:
    """As after a reboot."""
    make(root, b"a.mp3", b"b.mp3")
    before = [(path, signature._replace(dev=signature.dev + 1)) for path, signature in known(root, b"a.mp3")]
    found = list(differences(walk(root, b"", EVERYTHING), iter([*before, *known(root, b"b.mp3")])))[1:]
    assert found == [Renumbered(b"a.mp3", os.stat(root).st_dev)]


def test_a_file_that_cannot_be_looked_at_is_not_missing(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, b"a.mp3", b"b.mp3", b"c.mp3")
    catalogue = known(root, b"a.mp3", b"b-gone.mp3", b"b.mp3", b"c.mp3")
    with entry_failing(monkeypatch, b"b.mp3", errno.EIO):
        found = list(differences(walk(root, b"", EVERYTHING), catalogue))[1:]
    assert found == [Missing(b"b-gone.mp3"), Unlistable(b"b.mp3", "input/output error")]


def test_paths_beyond_the_systems_limit_are_unlistable_and_stop_nothing(root: bytes) -> None:
    """4096 bytes at once; the rest of the tree is walked, and nothing is concluded about what lies that deep."""
    make(root, b"a.mp3", b"z.mp3")
    name = b"d" * 250
    here = os.open(root, os.O_RDONLY)
    for _ in range(18):
        os.mkdir(name, dir_fd=here)
        deeper = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(os.open(b"deep.mp3", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    deep = b"/".join([name] * 18) + b"/deep.mp3"
    sights = seen(root)
    assert files(sights) == [b"a.mp3", b"z.mp3"]
    ((unlistable, reason),) = sealed(sights).items()
    assert reason == "file name too long"
    assert deep.startswith(unlistable + b"/")
    nothing = Signature(0, 0, 0, 0, 0)
    catalogue = iter([(b"a.mp3", signature(root, b"a.mp3")), (deep, nothing), (b"z.mp3", signature(root, b"z.mp3"))])
    found = list(differences(iter(sights), catalogue))
    assert not any(isinstance(item, Missing | Differs) for item in found)


def test_a_tree_deeper_than_the_interpreters_stack_is_walked(root: bytes) -> None:
    made = [b"/".join([b"d"] * depth) for depth in range(1, 1200)]
    for path in made:
        os.mkdir(os.path.join(root, path))
    try:
        assert directories(seen(root, with_files=False)) == [b"", *made]
    finally:
        for path in reversed(made):  # whoever cleans up after tests may well recurse
            os.rmdir(os.path.join(root, path))


def test_descriptors_are_closed_also_when_a_walk_is_given_up(root: bytes) -> None:
    make(root, *TREE)
    before = len(os.listdir("/proc/self/fd"))
    sights = walk(root, b"", EVERYTHING)
    for _ in range(5):
        next(sights)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_changed_file_differs_and_an_unchanged_one_is_only_counted(root: bytes) -> None:
    make(root, b"a.mp3", b"b.mp3", b"c.mp3")
    catalogue = list(known(root, b"a.mp3", b"b.mp3"))
    with open(os.path.join(root, b"b.mp3"), "ab") as file:
        file.write(b"more")
    counted: list[bytes] = []
    found = list(differences(walk(root, b"", EVERYTHING), iter(catalogue), lambda met: counted.extend(files([met]))))
    assert [item.path for item in found if isinstance(item, Differs)] == [b"b.mp3", b"c.mp3"]
    assert counted == [b"a.mp3", b"b.mp3", b"c.mp3"]


def test_everything_is_missing_from_an_empty_root_until_somebody_judges(root: bytes) -> None:
    """These are hints; whether an empty root may be believed is decided where they are looked at."""
    found = list(differences(walk(root, b"", EVERYTHING), known(root, b"a.mp3", b"b/c.mp3")))
    assert found[1:] == [Missing(b"a.mp3"), Missing(b"b/c.mp3")]


def test_a_good_root_is_checked_without_a_word(root: bytes) -> None:
    assert check_root(root).st_ino == os.stat(root).st_ino


def test_what_is_wrong_with_a_root_is_said_with_a_remedy(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    make(root, b"file")
    with pytest.raises(RootUnavailable, match="no such directory; is the volume mounted"):
        check_root(os.path.join(root, b"missing"))
    with pytest.raises(RootUnavailable, match="is not a directory; name the folder"):
        check_root(os.path.join(root, b"file"))
    with pytest.raises(RootUnavailable, match="not a directory"):
        check_root(os.path.join(root, b"file/below"))
    with (
        failing(monkeypatch, "scandir", {root: errno.EACCES}),
        pytest.raises(RootUnavailable, match="permission denied; let user"),
    ):
        check_root(root)
    with (
        failing(monkeypatch, "scandir", {root: errno.EIO}),
        pytest.raises(RootUnavailable, match="input/output error; look at its disk"),
    ):
        check_root(root)


# One directory alone


def children(root: bytes, directory: bytes, *paths: bytes) -> Iterator[tuple[bytes, Signature | None]]:
    """What a catalogue that knows these paths as they are says of one directory: files, and directories with None."""
    prefix = directory + b"/" if directory else b""
    for path, remembered in known(root, *paths):
        if path.startswith(prefix):
            name, slash, _ = path[len(prefix) :].partition(b"/")
            yield prefix + name, None if slash else remembered


def compared(
    root: bytes, directory: bytes, *paths: bytes, wanted: Wanted = EVERYTHING
) -> tuple[object, list[tuple[type, bytes]]]:
    """Return what is said of the directory itself, and of what is in it."""
    itself, *found = compare_directory(root, directory, wanted, children(root, directory, *paths))
    return itself, [(type(item), item.path) for item in found]


def test_a_directory_alone_differs_by_what_is_directly_in_it(root: bytes) -> None:
    make(root, b"a/same.mp3", b"a/new.mp3", b"a/touched.mp3", b"a/b/deep.mp3", b"beside.mp3")
    before = list(
        children(root, b"a", b"a/same.mp3", b"a/touched.mp3", b"a/gone.mp3", b"a/b/deep.mp3", b"a/c/gone.mp3")
    )
    os.truncate(os.path.join(root, b"a/touched.mp3"), 0)
    itself, *found = compare_directory(root, b"a", EVERYTHING, iter(before))
    result = os.stat(os.path.join(root, b"a"))
    assert itself == Directory.of(b"a", result, files=3)
    assert [(type(item), item.path) for item in found] == [
        (Directory, b"a/b"),
        (Differs, b"a/new.mp3"),
        (Differs, b"a/touched.mp3"),
        (Missing, b"a/gone.mp3"),
        (Missing, b"a/c"),
    ]
    (below,) = [item for item in found if isinstance(item, Directory)]
    result = os.stat(os.path.join(root, b"a/b"))
    assert (below.dev, below.inode, below.mtime_ns) == (result.st_dev, result.st_ino, result.st_mtime_ns)


def test_a_root_alone_is_a_directory_like_others(root: bytes) -> None:
    make(root, b"a.mp3", b"b/c.mp3")
    itself, found = compared(root, b"", b"a.mp3", b"b/c.mp3", b"d.mp3")
    assert isinstance(itself, Directory)
    assert found == [(Directory, b"b"), (Missing, b"d.mp3")]


def test_nothing_is_said_of_what_is_in_a_directory_that_cannot_be_listed(
    root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, b"a/x.mp3", b"file.mp3")
    with failing(monkeypatch, "scandir", {os.path.join(root, b"a"): errno.EACCES}):
        assert compared(root, b"a", b"a/x.mp3", b"a/gone.mp3") == (Unlistable(b"a", "permission denied"), [])
    gone = Unlistable(b"b", "no such file or directory", is_gone=True)
    assert compared(root, b"b", b"b/x.mp3") == (gone, [])
    assert compared(root, b"file.mp3", b"file.mp3/x") == (Unlistable(b"file.mp3", "not a directory"), [])


def test_a_directory_that_has_become_a_symlink_is_not_compared_with_where_it_leads(root: bytes) -> None:
    make(root, b"real/x.mp3")
    os.symlink(b"real", os.path.join(root, b"a"))
    assert compared(root, b"a", b"a/x.mp3") == (Unlistable(b"a", "not a directory"), [])


def test_what_cannot_be_looked_at_in_a_directory_is_neither_missing_nor_different(
    root: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(root, b"a/x.mp3", b"a/y/z.mp3", b"a/new.mp3")
    paths = {os.path.join(root, path): errno.EIO for path in (b"a/x.mp3", b"a/y", b"a/new.mp3")}
    catalogue = list(children(root, b"a", b"a/x.mp3", b"a/y/z.mp3"))
    with failing(monkeypatch, "lstat", paths):
        assert len(compare_directory(root, b"a", EVERYTHING, iter(catalogue))) == 1


def test_a_known_file_where_a_directory_is_now_is_missing(root: bytes) -> None:
    make(root, b"a/x.mp3")
    assert compared(root, b"", b"a", b"a/x.mp3")[1] == [(Directory, b"a"), (Missing, b"a")]


def test_a_known_directory_where_a_file_is_now_is_missing(root: bytes) -> None:
    make(root, b"a")
    assert compared(root, b"", b"a/x.mp3")[1] == [(Differs, b"a"), (Missing, b"a")]


@pytest.mark.parametrize("kind", ["symlink", "pipe"])
def test_a_known_file_that_is_no_file_any_more_is_missing(root: bytes, kind: str) -> None:
    path = os.path.join(root, b"a.mp3")
    if kind == "symlink":
        os.symlink(b"elsewhere", path)
    else:
        os.mkfifo(path)
    nothing = Signature(0, 0, 0, 0, 0)
    assert compare_directory(root, b"", EVERYTHING, iter([(b"a.mp3", nothing)]))[1:] == [Missing(b"a.mp3")]


def test_what_is_not_wanted_in_a_directory_is_as_if_it_were_not_there(root: bytes) -> None:
    make(root, b"a.mp3", b"a.txt", b"trash/x.mp3")
    wanted = Wanted(lambda path: path.endswith(b".mp3"), lambda path: path != b"trash")
    itself, found = compared(root, b"", b"a.txt", wanted=wanted)
    assert isinstance(itself, Directory)
    assert itself.files == 1
    assert found == [(Differs, b"a.mp3"), (Missing, b"a.txt")]


def test_subdirectories_whose_names_are_no_text_are_odd_and_make_their_parent_odd(root: bytes) -> None:
    make(root, b"a/\xff/x", b"a/b/x")
    itself, *found = compare_directory(root, b"a", EVERYTHING, iter([]))
    assert isinstance(itself, Directory)
    assert itself.is_odd
    assert {item.path: item.is_odd for item in found if isinstance(item, Directory)} == {b"a/\xff": True, b"a/b": False}


# The few bytes around "/" decide about the order.
names = st.text(st.sampled_from("a-./0\xff"), min_size=1, max_size=3).map(
    lambda text: text.replace("/", "b").encode("latin-1")
)
paths = st.lists(names.filter(lambda name: name not in {b".", b".."}), min_size=1, max_size=3).map(b"/".join)


def standing_files(wished: Iterable[bytes]) -> list[bytes]:
    """Leave out the files that would have to be directories as well."""
    chosen = set(wished)
    return sorted(path for path in chosen if not any(other.startswith(path + b"/") for other in chosen))


@settings(max_examples=100)
@given(
    tree=st.lists(paths, max_size=8).map(standing_files),
    catalogued=st.dictionaries(paths, st.booleans(), max_size=8),
    unlistable=st.sets(paths, max_size=3),
)
@example(tree=[b"0.", b"0/0"], catalogued={b"0": False}, unlistable={b"0"})
@example(tree=[b"a-b/x", b"a/x"], catalogued={b"a-b/x": True, b"a/x": True}, unlistable={b"a-b", b"a"})
def test_differences_are_those_of_a_naive_comparison(
    tree: list[bytes], catalogued: dict[bytes, bool], unlistable: set[bytes]
) -> None:
    """The catalogue knows a path as it is (True) or as it was once (False)."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        root = os.fsencode(folder)
        make(root, *tree)
        actual = {path: signature(root, path) for path in tree}
        nothing = Signature(0, 0, 0, 0, 0)
        remembered = {path: actual.get(path, nothing) if same else nothing for path, same in catalogued.items()}
        refused = {os.path.join(root, path): errno.EACCES for path in unlistable}
        with failing(monkeypatch, "scandir", refused):
            found = list(differences(walk(root, b"", EVERYTHING), iter(sorted(remembered.items()))))

    shut = [path for path in unlistable if any(file.startswith(path + b"/") for file in tree)]

    def judged(path: bytes) -> bool:
        return not any(path == top or path.startswith(top + b"/") for top in shut)

    differing = {path for path in tree if judged(path) and remembered.get(path) != actual[path]}
    assert [item.path for item in found if isinstance(item, Differs)] == sorted(differing)
    gone = {path for path in remembered.keys() - actual.keys() if judged(path)}
    missing = [item.path for item in found if isinstance(item, Missing)]
    # A known file where an unlistable directory is now may be told as gone, which it is, or later.
    assert [path for path in missing if path not in shut] == sorted(gone)
    met = {item.path for item in found if isinstance(item, Unlistable)}
    assert met == {top for top in shut if not any(top.startswith(other + b"/") for other in shut)}


@settings(max_examples=100)
@given(
    tree=st.lists(paths, max_size=8).map(standing_files),
    catalogued=st.dictionaries(paths, st.booleans(), max_size=8),
    directory=st.one_of(st.just(b""), names.filter(lambda name: name not in {b".", b".."})),
)
@example(tree=[b"a/x"], catalogued={b"a": False, b"a/x": True}, directory=b"")
def test_a_directory_alone_differs_as_a_naive_comparison_of_its_listing(
    tree: list[bytes], catalogued: dict[bytes, bool], directory: bytes
) -> None:
    """The catalogue knows a path as it is (True) or as it was once (False)."""
    with tempfile.TemporaryDirectory() as folder:
        root = os.fsencode(folder)
        make(root, *tree)
        actual = {path: signature(root, path) for path in tree}
        nothing = Signature(0, 0, 0, 0, 0)
        remembered = {path: actual.get(path, nothing) if same else nothing for path, same in catalogued.items()}
        prefix = directory + b"/" if directory else b""
        direct: list[tuple[bytes, Signature | None]] = []
        for path, sign in sorted(remembered.items()):
            name, slash, _ = path[len(prefix) :].partition(b"/")
            if path.startswith(prefix) and (prefix + name, None) not in direct:
                direct.append((prefix + name, None if slash else sign))
        itself, *found = compare_directory(root, directory, EVERYTHING, iter(direct))

    def in_it(path: bytes) -> bytes:
        return prefix + path[len(prefix) :].partition(b"/")[0]

    if not isinstance(itself, Directory):
        assert not any(path.startswith(prefix) for path in tree)
        assert found == []
        return
    there = {in_it(path) for path in tree if path.startswith(prefix)}
    files = there & actual.keys()
    assert {item.path for item in found if isinstance(item, Directory)} == there - files
    differing = {path for path in files if remembered.get(path) != actual[path]}
    assert {item.path for item in found if isinstance(item, Differs)} == differing
    known_files = {path for path, sign in direct if sign is not None}
    known_directories = {path for path, sign in direct if sign is None}
    gone = (known_files - files) | (known_directories - (there - files))
    assert {item.path for item in found if isinstance(item, Missing)} == gone
    assert len(found) == len(there - files) + len(differing) + len(gone)


@settings(max_examples=100)
@given(tree=st.lists(paths, max_size=8).map(standing_files), known_files=st.sets(paths, max_size=8))
@example(tree=[b"a-b/x", b"a/x"], known_files={b"a-b/x", b"a/x", b"a/b/c"})
def test_what_stands_above_known_files_is_found_unlisted_each_once(tree: list[bytes], known_files: set[bytes]) -> None:
    """As the walk finds it, but for what holds nothing known."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
        root = os.fsencode(folder)
        make(root, *tree)
        walked = {sight.path: sight for sight in seen(root) if isinstance(sight, Directory)}
        monkeypatch.setattr(os, "scandir", None)
        found = list(standing(root, iter([sorted(known_files)[:3], sorted(known_files)[3:]]), EVERYTHING))
    above = {path[:end] for path in known_files for end in range(len(path)) if path[end : end + 1] == b"/"} | {b""}
    assert sorted(each.path for each in found) == sorted(above & walked.keys())
    for each in found:
        same = walked[each.path]
        assert (each.dev, each.inode, each.mtime_ns) == (same.dev, same.inode, same.mtime_ns)


def test_nothing_stands_below_a_symlink_or_where_a_pattern_forbids_it(root: bytes, tmp_path: Path) -> None:
    make(root, b"a/b/1.mp3", b"no/c/2.mp3", b"real/d/3.mp3")
    os.symlink(b"real", os.path.join(root, b"link"))
    catalogued = [b"a/b/1.mp3", b"link/d/3.mp3", b"no/c/2.mp3"]
    wanted = Wanted(lambda _path: True, lambda path: path != b"no")
    assert {each.path for each in standing(root, [catalogued], wanted)} == {b"", b"a", b"a/b"}


def test_a_directory_is_known_to_be_odd_by_the_names_that_are_known_in_it(root: bytes) -> None:
    make(root, b"a/\xff.mp3", b"a/b.mp3", b"\xfe/c.mp3", b"d/e.mp3")
    catalogued = [b"a/b.mp3", b"a/\xff.mp3", b"d/e.mp3", b"\xfe/c.mp3"]
    odd = {each.path: each.is_odd for each in standing(root, [catalogued], EVERYTHING)}
    assert odd == {b"": True, b"a": True, b"d": False, b"\xfe": True}


def test_what_must_not_be_read_does_not_stand(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be watched either, and not everywhere does anything tell that."""
    make(root, b"a/1.mp3", b"a/b/2.mp3", b"c/3.mp3")
    monkeypatch.setattr(os, "access", lambda path, _mode, *, effective_ids: path != os.path.join(root, b"a"))
    found = standing(root, [[b"a/1.mp3", b"a/b/2.mp3", b"c/3.mp3"]], EVERYTHING)
    assert {each.path for each in found} == {b"", b"c"}


def test_nothing_stands_where_the_root_is_gone(root: bytes) -> None:
    assert list(standing(os.path.join(root, b"away"), [[b"a/b.mp3"]], EVERYTHING)) == []


def test_a_directory_of_more_files_than_a_run_is_walked_whole(root: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RUN", 2)
    names = [b"%d.mp3" % number for number in range(5)]
    make(root, *names, b"2.d/x.mp3")
    sights = seen(root)
    assert files(sights) == sorted([*names, b"2.d/x.mp3"])
    assert max(len(sight) for sight in sights if isinstance(sight, list)) == 2
