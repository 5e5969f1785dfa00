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
    """One mounted file system."""

    point: bytes
    fstype: bytes
    source: bytes
    dev: int

    @property
    def is_remote(self) -> bool:
        """Whether inotify may be blind here: a network file system, or one in user space."""
        return self.fstype in NETWORK_TYPES or self.fstype.split(b".")[0] == b"fuse"


def read_mounts() -> list[Mount]:
    """Return the mounts of this mount namespace, later (covering) ones last; empty where /proc does not tell."""
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            return [_parse(line) for line in table]
    except OSError:
        return []


def _parse(line: bytes) -> Mount:
    fields, _, tail = line.partition(b" - ")
    major, _, minor = fields.split(b" ")[2].partition(b":")
    fstype, source = tail.split(b" ")[:2]
    point = fields.split(b" ")[4]
    return Mount(_unescaped(point), fstype, _unescaped(source), os.makedev(int(major), int(minor)))


def _unescaped(text: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), text)


def mount_of(path: bytes, mounts: list[Mount]) -> Mount | None:
    """Return the mount that holds an absolute path without symlinks."""
    found: Mount | None = None
    for mount in mounts:
        inside = mount.point == b"/" or path == mount.point or path.startswith(mount.point + b"/")
        if inside and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found
