"""What is mounted where: reading the kernel's table, and finding the mount of a path."""

import os

import pytest

from trackwatch import mounts
from trackwatch.mounts import Mount, mount_of, read_mounts


def mount(point: bytes, fstype: bytes = b"ext4", *, number: int = 1, parent: int = 0) -> Mount:
    return Mount(number, parent, point, fstype, b"source", 1)


def test_a_line_of_the_table_is_read() -> None:
    line = b"36 35 98:1 /sub /mnt/music rw,noatime master:1 propagate_from:2 - ext4 /dev/root rw,errors=continue\n"
    assert mounts._parse(line) == Mount(36, 35, b"/mnt/music", b"ext4", b"/dev/root", os.makedev(98, 1), b"/sub")


def test_a_line_without_optional_fields_and_with_an_empty_source_is_read() -> None:
    read = mounts._parse(b"36 35 0:40 / /mnt rw - tmpfs  rw\n")
    assert read == Mount(36, 35, b"/mnt", b"tmpfs", b"", os.makedev(0, 40))


def test_escaped_names_are_unescaped() -> None:
    line = b"36 35 0:40 / /mnt/a\\040b\\011c\\134d\\012\xc3\xa9\\043 rw - cifs //nas/my\\040music rw\n"
    read = mounts._parse(line)
    assert read.point == b"/mnt/a b\tc\\d\n\xc3\xa9#"
    assert read.source == b"//nas/my music"


def test_a_name_that_looks_like_the_separator_is_no_separator() -> None:
    assert mounts._parse(b"36 35 0:40 / /mnt/a\\040-\\040b rw - ext4 /dev/x rw\n").point == b"/mnt/a - b"


def test_this_machine_has_a_mount_for_every_path() -> None:
    table = read_mounts()
    assert table, "these tests run on Linux"
    found = mount_of(b"/proc/self", table)
    assert found is not None
    assert found.fstype == b"proc"
    assert mount_of(os.getcwdb(), table) is not None


def test_where_the_table_cannot_be_read_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    assert read_mounts() == []


def test_the_deepest_mount_holds_a_path() -> None:
    table = [
        mount(b"/"),
        mount(b"/srv", number=2, parent=1),
        mount(b"/srv/music/nas", number=4, parent=3),
        mount(b"/srv/music", number=3, parent=2),
    ]
    assert mount_of(b"/srv/music/nas/a.mp3", table) == table[2]
    assert mount_of(b"/srv/music/nas", table) == table[2]
    assert mount_of(b"/srv/music", table) == table[3]
    assert mount_of(b"/etc", table) == table[0]


def test_a_mount_beside_a_path_does_not_hold_it() -> None:
    table = [mount(b"/"), mount(b"/srv/music", number=2, parent=1)]
    assert mount_of(b"/srv/music-old/a.mp3", table) == table[0]


def test_of_two_mounts_at_one_point_the_later_covers_the_earlier() -> None:
    table = [mount(b"/"), mount(b"/srv", b"ext4", number=2, parent=1), mount(b"/srv", b"nfs4", number=3, parent=2)]
    assert mount_of(b"/srv/a", table) == table[2]
    assert mount_of(b"/srv", table) == table[2]
    assert mount_of(b"/srv/a", [table[2], table[1], table[0]]) == table[2], "the tree decides, not the table's order"


def test_a_mount_over_an_upper_directory_covers_the_deeper_ones() -> None:
    """/srv/music was there first; then /srv was mounted over, and nobody comes to /srv/music any more."""
    table = [
        mount(b"/"),
        mount(b"/srv", number=2, parent=1),
        mount(b"/srv/music", number=3, parent=2),
        mount(b"/srv", number=4, parent=2),
    ]
    assert mount_of(b"/srv/music/a.mp3", table) == table[3]
    assert mount_of(b"/srv", table) == table[3]
    below = mount(b"/srv/music", number=5, parent=4)
    assert mount_of(b"/srv/music/a.mp3", [*table, below]) == below


def test_a_mount_over_the_deepest_of_a_stack_is_found_whatever_its_number() -> None:
    """The kernel gives the numbers of unmounted ones to the next."""
    table = [
        mount(b"/", number=70, parent=69),
        mount(b"/srv", number=90, parent=70),
        mount(b"/srv/music", number=12, parent=90),
        mount(b"/srv/music", number=5, parent=12),
    ]
    assert mount_of(b"/srv/music/a.mp3", table) == table[3]


def test_a_root_mount_that_is_its_own_parent_ends_the_search() -> None:
    table = [mount(b"/", number=1, parent=1), mount(b"/srv", number=2, parent=1)]
    assert mount_of(b"/etc", table) == table[0]
    assert mount_of(b"/srv/a", table) == table[1]


def test_without_a_table_nothing_holds_a_path() -> None:
    assert mount_of(b"/srv", []) is None


@pytest.mark.parametrize("fstype", [b"nfs", b"nfs4", b"cifs", b"smb3", b"9p", b"virtiofs", b"fuse", b"fuse.sshfs"])
def test_file_systems_that_others_can_change_are_remote(fstype: bytes) -> None:
    assert mount(b"/", fstype).is_remote


@pytest.mark.parametrize("fstype", [b"ext4", b"btrfs", b"xfs", b"zfs", b"tmpfs", b"overlay", b"fuseblk", b"exfat"])
def test_local_file_systems_are_not_remote(fstype: bytes) -> None:
    assert not mount(b"/", fstype).is_remote
