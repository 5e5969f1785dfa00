"""Whether a root may be believed: which file systems it consists of, and whether they are what they were."""

import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from trackwatch import trust
from trackwatch.errors import RootUnavailable
from trackwatch.mounts import Mount
from trackwatch.track import Root
from trackwatch.trust import Away, Identity, Moment, Trust, look_away, root_mounts

SYSTEM = Identity(b"/dev/sda1", b"ext4", 11)
DISK = Identity(b"/dev/sdb1", b"ext4", 22)
NAS = Identity(b"nas:/music", b"nfs4", 0)


@pytest.fixture
def root(tmp_path: Path) -> Root:
    """A root with one file in it, at a path without symlinks."""
    path = os.path.realpath(os.fsencode(tmp_path)) + b"/music"
    os.mkdir(path)
    os.close(os.open(path + b"/keep.mp3", os.O_CREAT))
    return Root(1, path)


Mounted = Callable[[Mapping[bytes, Identity]], None]


@pytest.fixture
def mounted(root: Root, monkeypatch: pytest.MonkeyPatch) -> Mounted:
    """Say what is mounted, by paths below the root; the empty path is the root's own mount, `/` is always there.

    Patched, because no test can plug in disks: the table and the ids are all that the module asks the system for.
    """

    def set_mounts(mounts: Mapping[bytes, Identity]) -> None:
        table = [Mount(1, 0, b"/", SYSTEM.fstype, SYSTEM.source, 1)]
        ids = {b"/": SYSTEM.fsid, root.path: SYSTEM.fsid}
        parent = 1
        for number, (path, identity) in enumerate(sorted(mounts.items()), 2):
            point = os.path.normpath(root.absolute(path))
            table.append(Mount(number, parent, point, identity.fstype, identity.source, number))
            ids[point] = identity.fsid
            parent = parent if path else number  # what lies below hangs on the root's own mount
        monkeypatch.setattr(trust, "read_mounts", lambda: table)
        monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_fsid=ids[path]))

    return set_mounts


def away(root: Root, known: Mapping[bytes, Identity]) -> dict[bytes, str]:
    """Return the parts that are not what they were, with the reasons without their paths."""
    return {part.path: part.reason.partition(": ")[2] for part in look_away(root, known)}


def concludes(moment: Moment, root: Root, path: bytes, *, several: bool = True) -> bool:
    return moment.may_conclude(root, path, lambda: several)


# Which file system is which


def test_a_file_system_is_itself() -> None:
    assert DISK.same(DISK)
    assert NAS.same(NAS)


def test_the_same_id_under_another_source_name_is_the_same_file_system() -> None:
    """After a reboot the disks were found in another order."""
    assert Identity(b"/dev/sdc1", b"ext4", 22).same(DISK)
    assert Identity(b"/dev/disk/by-label/music", b"btrfs", 5).same(Identity(b"/dev/sdb", b"btrfs", 5))


def test_the_same_source_with_another_id_is_the_same_where_the_id_is_not_its_own() -> None:
    """NFS has none, xfs makes it of the device's number, btrfs of the snapshot that was rolled back to."""
    assert Identity(b"/dev/sdb1", b"xfs", 1).same(Identity(b"/dev/sdb1", b"xfs", 2))
    assert Identity(b"/dev/sdb1", b"btrfs", 1).same(Identity(b"/dev/sdb1", b"btrfs", 2))
    assert Identity(b"nas:/music", b"nfs4", 7).same(NAS)


def test_another_disk_under_the_same_device_name_is_another_one() -> None:
    """One disk was unplugged and another one plugged in: it gets the name that has become free."""
    assert not Identity(b"/dev/sdb1", b"ext4", 23).same(DISK)
    assert Identity(b"/dev/sdb1", b"ext4", 0).same(DISK), "its id could not be asked for"
    assert DISK.same(Identity(b"/dev/sdb1", b"ext4", 0))


def test_without_ids_the_sources_decide() -> None:
    assert not Identity(b"nas:/films", b"nfs4", 0).same(NAS)


def test_another_type_is_another_file_system_whatever_its_id_and_source() -> None:
    assert not Identity(b"/dev/sdb1", b"xfs", 22).same(DISK)


def test_a_file_system_is_named_for_people() -> None:
    assert NAS.name == "nas:/music, nfs4"


# What a root consists of


def test_a_root_consists_of_its_own_mount_and_those_below(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK, b"nas": NAS, b"a/b": SYSTEM})
    assert root_mounts(root) == {b"": DISK, b"nas": NAS, b"a/b": SYSTEM}


def test_a_root_that_is_no_mount_point_lies_on_one(root: Root, mounted: Mounted) -> None:
    mounted({})
    assert root_mounts(root) == {b"": SYSTEM}


def test_a_mount_beside_a_root_is_none_of_its_own(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK, b"../music-old": NAS, b"../music-old/x": NAS})
    assert root_mounts(root) == {b"": DISK}


def test_a_mount_that_another_one_covers_is_none_of_its_own(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _path: SimpleNamespace(f_fsid=0))  # no disks here: see `mounted`
    table = [
        Mount(1, 0, b"/", b"ext4", b"/dev/sda1", 1),
        Mount(2, 1, root.path + b"/a/nas", b"nfs4", b"covered", 2),
        Mount(3, 1, root.path + b"/a", b"ext4", b"/dev/sdb1", 3),
        Mount(4, 3, root.path + b"/a/disk", b"ext4", b"below", 4),
        Mount(5, 4, root.path + b"/a/disk", b"ext4", b"above", 5),
    ]
    sources = {path: identity.source for path, identity in root_mounts(root, table).items()}
    assert sources == {b"": b"/dev/sda1", b"a": b"/dev/sdb1", b"a/disk": b"above"}


def test_a_root_behind_a_symlink_consists_of_what_it_leads_to(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK, b"nas": NAS})
    link = Root(2, os.path.dirname(root.path) + b"/link")
    os.symlink(root.path, link.path)
    asked = []

    def statvfs(path: bytes) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_fsid=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", statvfs)  # the ids are those of the real paths, see `mounted`
        assert root_mounts(link).keys() == {b"", b"nas"}
    assert asked == [link.path, root.path + b"/nas"]


def test_where_the_system_does_not_tell_nothing_is_known_and_nobody_is_stopped(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "read_mounts", list)  # no /proc
    assert root_mounts(root) == {}
    assert look_away(root, {b"": DISK}) == []


def test_a_file_system_that_cannot_be_asked_has_no_id(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK})

    def fail(_path: bytes) -> None:
        raise OSError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "statvfs", fail)  # a server that has gone
        assert root_mounts(root) == {b"": Identity(DISK.source, DISK.fstype, 0)}


# What is not as it was


def test_a_root_that_is_what_it_was_is_believed(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK, b"nas": NAS})
    assert away(root, {b"": DISK, b"nas": NAS}) == {}


def test_a_root_seen_for_the_first_time_is_believed(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK, b"nas": NAS})
    assert away(root, {}) == {}


def test_a_root_whose_disk_was_renamed_is_believed(root: Root, mounted: Mounted) -> None:
    mounted({b"": Identity(b"/dev/sdc1", b"ext4", DISK.fsid)})
    assert away(root, {b"": DISK}) == {}


def test_a_root_whose_disk_was_unmounted_is_away_as_a_whole(root: Root, mounted: Mounted) -> None:
    """What is seen there now is the directory below the mount, on the system's disk."""
    mounted({})
    assert away(root, {b"": DISK}) == {b"": "now /dev/sda1, ext4 (was /dev/sdb1, ext4)"}
    ((part),) = look_away(root, {b"": DISK})
    assert all(part.holds(path) for path in (b"", b"a", b"a/b.mp3"))
    assert repr(os.fsdecode(root.path)) in part.reason


def test_a_root_whose_disk_was_replaced_by_another_is_away(root: Root, mounted: Mounted) -> None:
    mounted({b"": Identity(DISK.source, DISK.fstype, 99)})
    assert away(root, {b"": DISK}) == {b"": "now /dev/sdb1, ext4 (was /dev/sdb1, ext4)"}


def test_a_root_that_was_mounted_over_is_away(root: Root, mounted: Mounted) -> None:
    mounted({b"": NAS})
    assert away(root, {b"": SYSTEM}) == {b"": "now nas:/music, nfs4 (was /dev/sda1, ext4)"}


def test_a_mount_below_that_fell_off_takes_its_part_away_and_no_more(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK})
    assert away(root, {b"": DISK, b"nas": NAS}) == {b"nas": "nothing is mounted there (was nas:/music, nfs4)"}
    ((part),) = look_away(root, {b"": DISK, b"nas": NAS})
    assert [path for path in (b"", b"na", b"nas", b"nas/a", b"nas-b", b"nas0", b"b") if part.holds(path)] == [
        b"nas",
        b"nas/a",
    ]


def test_a_mount_below_that_was_replaced_takes_its_part_away(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK, b"nas": Identity(b"nas:/films", b"nfs4", 0)})
    assert away(root, {b"": DISK, b"nas": NAS}) == {b"nas": "now nas:/films, nfs4 (was nas:/music, nfs4)"}


def test_a_new_mount_over_known_files_takes_its_part_away(root: Root, mounted: Mounted) -> None:
    """They are still there, below it."""
    mounted({b"": DISK, b"albums": NAS})
    assert away(root, {b"": DISK}) == {b"albums": "nas:/music, nfs4 was mounted over it"}


@pytest.mark.parametrize("how", ["missing", "file"])
def test_a_root_that_cannot_be_looked_at_is_unavailable(root: Root, mounted: Mounted, how: str) -> None:
    mounted({b"": DISK})
    os.rename(root.path, root.path + b".away")
    if how == "file":
        os.close(os.open(root.path, os.O_CREAT))
    with pytest.raises(RootUnavailable):
        look_away(root, {b"": DISK})


# One moment


def test_a_moment_concludes_by_parts(root: Root, mounted: Mounted) -> None:
    mounted({b"": DISK})
    known = Trust([root])
    known.learn(root.id, {b"": DISK, b"nas": NAS})
    moment = known.moment()
    assert concludes(moment, root, b"a.mp3")
    assert not concludes(moment, root, b"nas/a.mp3")
    assert concludes(moment, root, b"nas-b.mp3")


def test_a_moment_looks_once_and_the_next_one_again(root: Root, mounted: Mounted) -> None:
    """The answers of one batch agree with each other, and cost one look."""
    mounted({b"": DISK})
    known = Trust([root])
    known.learn(root.id, {b"": DISK})
    moment = known.moment()
    assert concludes(moment, root, b"a.mp3")
    mounted({})
    assert concludes(moment, root, b"a.mp3")
    assert not concludes(known.moment(), root, b"a.mp3")
    mounted({b"": DISK})
    assert concludes(known.moment(), root, b"a.mp3")


def test_what_a_sweep_has_learned_is_what_counts_from_then_on(root: Root, mounted: Mounted) -> None:
    mounted({b"": NAS})
    known = Trust([root])
    known.learn(root.id, {b"": DISK})
    assert known.away(root) == [Away(b"", f"{os.fsdecode(root.path)!r}: now {NAS.name} (was {DISK.name})")]
    known.learn(root.id, {b"": NAS})
    assert known.away(root) == []


def test_an_accepted_root_is_believed_whatever_it_says_until_that_is_taken_back(root: Root, mounted: Mounted) -> None:
    mounted({})
    known = Trust([root])
    known.learn(root.id, {b"": DISK, b"nas": NAS})
    known.accept(root.id, True)
    assert known.is_accepted(root.id)
    assert known.away(root) == []
    os.unlink(root.absolute(b"keep.mp3"))
    assert concludes(known.moment(), root, b"nas/a.mp3"), "empty as well"
    os.rmdir(root.path)
    assert concludes(known.moment(), root, b"nas/a.mp3"), "missing as well"
    known.accept(root.id, False)
    assert not known.is_accepted(root.id)
    assert not concludes(known.moment(), root, b"nas/a.mp3")


def test_accepting_one_root_says_nothing_of_another(root: Root, mounted: Mounted) -> None:
    other = Root(2, root.path + b"-other")
    mounted({})
    known = Trust([root, other])
    known.accept(root.id, True)
    moment = known.moment()
    assert concludes(moment, root, b"a.mp3")
    assert not concludes(moment, other, b"a.mp3"), "it is missing"


def test_several_files_do_not_vanish_from_a_root_and_leave_it_empty(root: Root) -> None:
    os.unlink(root.absolute(b"keep.mp3"))
    known = Trust([root])
    assert not concludes(known.moment(), root, b"keep.mp3", several=True)
    assert concludes(known.moment(), root, b"keep.mp3", several=False), "the last file can go like any other"


def test_nobody_counts_the_files_of_a_root_that_is_not_empty(root: Root) -> None:
    def count() -> bool:
        raise AssertionError("this is a query")

    assert Trust([root]).moment().may_conclude(root, b"a.mp3", count)


@pytest.mark.parametrize("how", ["missing", "file"])
def test_nothing_is_concluded_in_a_root_that_cannot_be_looked_at(root: Root, how: str) -> None:
    os.rename(root.path, root.path + b".away")
    if how == "file":
        os.close(os.open(root.path, os.O_CREAT))
    assert not concludes(Trust([root]).moment(), root, b"a.mp3", several=False)


def test_nothing_is_concluded_in_a_root_that_must_not_be_read(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: bytes) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)  # tests may run as root, whom nothing is forbidden
    assert not concludes(Trust([root]).moment(), root, b"a.mp3", several=False)


# Real mounts


@pytest.fixture
def mount_tmpfs() -> Iterator[Callable[[bytes], None]]:
    """Mount real file systems in memory, and unmount what is left of them."""
    points: list[bytes] = []

    def mount(point: bytes) -> None:
        if os.geteuid() != 0:
            pytest.skip("only root can mount")
        os.makedirs(point, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", b"trackwatch-%d" % len(points), point], capture_output=True)
        if done.returncode != 0:
            pytest.skip(f"cannot mount here: {done.stderr.decode().strip()}")
        points.append(point)

    yield mount
    for point in reversed(points):
        subprocess.run(["umount", point], capture_output=True)


def unmount(point: bytes) -> None:
    subprocess.run(["umount", point], check=True)


def test_a_real_mount_below_is_seen_to_come_and_go(root: Root, mount_tmpfs: Callable[[bytes], None]) -> None:
    before = root_mounts(root)
    assert before.keys() == {b""}
    point = root.absolute(b"a b\n\xff")  # mountinfo escapes what is not plain
    mount_tmpfs(point)
    now = root_mounts(root)
    assert now.keys() == {b"", b"a b\n\xff"}
    assert now[b""] == before[b""]
    assert now[b"a b\n\xff"].name == "trackwatch-0, tmpfs"
    assert away(root, now) == {}
    assert away(root, before).keys() == {b"a b\n\xff"}
    unmount(point)
    assert away(root, now) == {b"a b\n\xff": "nothing is mounted there (was trackwatch-0, tmpfs)"}
    assert away(root, before) == {}


def test_a_real_mount_over_the_root_and_over_that_takes_all_of_it_away(
    root: Root, mount_tmpfs: Callable[[bytes], None]
) -> None:
    plain = root_mounts(root)
    mount_tmpfs(root.path)
    first = root_mounts(root)
    assert first[b""].source == b"trackwatch-0"
    assert away(root, plain).keys() == {b""}
    mount_tmpfs(root.path)
    assert root_mounts(root)[b""].source == b"trackwatch-1"
    assert away(root, first).keys() == {b""}
    unmount(root.path)
    assert away(root, first) == {}
    unmount(root.path)
    assert away(root, plain) == {}


def test_a_real_mount_over_an_upper_directory_hides_the_one_below_it(
    root: Root, mount_tmpfs: Callable[[bytes], None]
) -> None:
    mount_tmpfs(root.absolute(b"a/nas"))
    known = root_mounts(root)
    mount_tmpfs(root.absolute(b"a"))
    assert root_mounts(root).keys() == {b"", b"a"}
    assert away(root, known).keys() == {b"a/nas", b"a"}
    unmount(root.absolute(b"a"))
    assert away(root, known) == {}


def test_another_directory_of_the_same_file_system_is_another_place() -> None:
    """A bind mount that is gone leaves the mount around it: the same disk, and not the same files."""
    assert not Identity(DISK.source, DISK.fstype, DISK.fsid, b"/music").same(DISK)
    assert Identity(b"/dev/sdc1", DISK.fstype, DISK.fsid, b"/music").same(
        Identity(DISK.source, DISK.fstype, DISK.fsid, b"/music")
    )
    assert Identity(b"/dev/sdb1", b"ext4", 22, b"/music").name == "/dev/sdb1[/music], ext4"
