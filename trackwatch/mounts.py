"""What is mounted where, from /proc/self/mountinfo; on systems without it, nothing is known and nobody is stopped."""

import os
import re
from dataclasses import dataclass

# Where another machine changes files without the kernel here noticing, and where SQLite's locks and its shared memory
# cannot be trusted.
NETWORK_TYPES = frozenset(
    {
        b"nfs",
        b"nfs4",
        b"cifs",
        b"smb3",
        b"smbfs",
        b"afs",
        b"ceph",
        b"glusterfs",
        b"9p",
        b"lustre",
        b"ncpfs",
        b"virtiofs",
    }
)
_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mounted file system; `id` and `parent` are those of the mount tree.

    `inner` is the directory of the file system that is mounted: not its root for a bind mount, or a btrfs subvolume.
    """

    id: int
    parent: int
    point: bytes
    fstype: bytes
    source: bytes
    dev: int
    inner: bytes = b"/"

    @property
    def is_remote(self) -> bool:
        """Whether inotify may be blind here: a network file system, or one in user space."""
        return self.fstype in NETWORK_TYPES or self.fstype.split(b".")[0] == b"fuse"


def read_mounts() -> list[Mount]:
    """Return the mounts of this mount namespace; empty where /proc does not tell."""
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            return [_parse(line) for line in table]
    except OSError:
        return []


def _parse(line: bytes) -> Mount:
    fields, _, tail = line.partition(b" - ")
    number, parent, device, inner, point = fields.split(b" ")[:5]
    major, _, minor = device.partition(b":")
    fstype, source = tail.split(b" ")[:2]
    dev = os.makedev(int(major), int(minor))
    return Mount(int(number), int(parent), _unescaped(point), fstype, _unescaped(source), dev, _unescaped(inner))


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text)


def mount_of(path: bytes, mounts: list[Mount]) -> Mount | None:
    """Return the mount that holds an absolute path without symlinks.

    Goes down the tree as the kernel does: of several mounts on the way the one that is met first covers the others.
    """
    holders = [mount for mount in mounts if _contains(mount.point, path)]
    numbers = {mount.id for mount in holders}
    found = min(
        (mount for mount in holders if mount.parent not in numbers or mount.parent == mount.id),
        key=lambda mount: len(mount.point),
        default=None,
    )
    while found is not None:
        below = [mount for mount in holders if mount.parent == found.id and mount is not found]
        if not below:
            return found
        found = min(below, key=lambda mount: len(mount.point))
    return None


def _contains(point: bytes, path: bytes) -> bool:
    return point == b"/" or path == point or path.startswith(point + b"/")
