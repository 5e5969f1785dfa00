"""Whether a place may be believed when it says that files are gone: is what was mounted there still mounted there?

A library's disk that is unmounted, or mounted over, or replaced by another one, looks like a mass removal. So the
mounts that a root consists of (the one it lies on, and those below it) are remembered with the catalogue, and while one
of them is not as it was, nothing in it is called gone. Device numbers are no help: they change with every reboot.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from trackwatch.errors import RootUnavailable
from trackwatch.mounts import Mount, mount_of, read_mounts
from trackwatch.sweep import check_root
from trackwatch.track import Root

# Their id (statvfs) is made of their UUID alone: whatever device it is on, another id is another file system. Others
# make it of the device's number (xfs, vfat), or change it with a snapshot that was rolled back (btrfs).
OWN_ID_TYPES = frozenset({b"ext2", b"ext3", b"ext4"})


@dataclass(frozen=True, slots=True)
class Identity:
    """Which part of which file system is mounted: the same if its id is the same, or else source and type are.

    `inner` is the directory of it that is mounted (a bind mount, a subvolume): another one is another place.
    The id (statvfs) is the file system's own on ext4 and btrfs, so it survives a renamed disk, and on ext4 it tells two
    disks apart that were given one name; on others the source does better. Zero where there is none.
    """

    source: bytes
    fstype: bytes
    fsid: int
    inner: bytes = b"/"

    def same(self, other: "Identity") -> bool:
        """Whether this is the file system that the other one was."""
        if (self.fstype, self.inner) != (other.fstype, other.inner):
            return False
        if self.fsid == other.fsid != 0:
            return True
        is_told = self.fsid != 0 and other.fsid != 0 and self.fstype in OWN_ID_TYPES
        return self.source == other.source and not is_told

    @property
    def name(self) -> str:
        """What people call it."""
        inner = "" if self.inner == b"/" else f"[{os.fsdecode(self.inner)}]"
        return f"{os.fsdecode(self.source)}{inner}, {os.fsdecode(self.fstype)}"


# Of one root: the mounts by their paths below it; the empty path stands for the one that holds the root itself.
RootMounts = Mapping[bytes, Identity]


def identify(path: bytes, mount: Mount) -> Identity:
    """Return which file system is mounted at a path."""
    try:
        fsid = os.statvfs(path).f_fsid
    except OSError:
        fsid = 0
    return Identity(mount.source, mount.fstype, fsid, mount.inner)


def root_mounts(root: Root, mounts: list[Mount] | None = None) -> dict[bytes, Identity]:
    """Return the mounts that a root consists of now; empty where the system does not tell."""
    mounts = read_mounts() if mounts is None else mounts
    real = os.path.realpath(root.path)
    holding = mount_of(real, mounts)
    if holding is None:
        return {}
    found = {b"": identify(root.path, holding)}
    prefix = real.rstrip(b"/") + b"/"
    for mount in mounts:
        if mount.point.startswith(prefix) and mount_of(mount.point, mounts) is mount:  # no other covers it
            found[mount.point[len(prefix) :]] = identify(mount.point, mount)
    return found


@dataclass(frozen=True, slots=True)
class Away:
    """A part of a root about which nothing may be concluded, and why; an empty path means all of it."""

    path: bytes
    reason: str

    def holds(self, path: bytes) -> bool:
        """Whether a path of the root lies in it."""
        return not self.path or path == self.path or path.startswith(self.path + b"/")


def look_away(root: Root, known: RootMounts) -> list[Away]:
    """Return the parts of a root that are not what they were; empty if all of it can be believed.

    Raises:
        RootUnavailable: the root itself cannot be looked at.
    """
    check_root(root.path)
    now = root_mounts(root)
    if not now or not known:
        return []
    away = []
    for path, was in known.items():
        present = now.get(path)
        if present is None or not present.same(was):
            there = "nothing is mounted there" if present is None else f"now {present.name}"
            away.append(Away(path, f"{_shown(root, path)}: {there} (was {was.name})"))
    for path, identity in now.items():
        if path not in known:
            away.append(Away(path, f"{_shown(root, path)}: {identity.name} was mounted over it"))
    return away


def _shown(root: Root, path: bytes) -> str:
    return repr(os.fsdecode(root.absolute(path)))


class Trust:
    """What is known of the mounts of all roots; `may_conclude` answers for one moment, from one look at the system."""

    def __init__(self, roots: Iterable[Root]) -> None:
        self._roots = {root.id: root for root in roots}
        self._known: dict[int, RootMounts] = {}
        self._accepted: set[int] = set()

    def learn(self, root_id: int, mounts: RootMounts) -> None:
        """Remember what a root consists of, now that its files have been compared with it."""
        self._known[root_id] = mounts

    def accept(self, root_id: int, accepted: bool) -> None:
        """Believe whatever a root says, or no longer: a person has looked at it."""
        (self._accepted.add if accepted else self._accepted.discard)(root_id)

    def is_accepted(self, root_id: int) -> bool:
        """Whether a person has said that what is missing in a root is really gone."""
        return root_id in self._accepted

    def away(self, root: Root) -> list[Away]:
        """Return the parts of a root about which nothing may be concluded. Blocks: for a thread.

        Raises:
            RootUnavailable: the root itself cannot be looked at.
        """
        if self.is_accepted(root.id):
            return []
        return look_away(root, self._known.get(root.id, {}))

    def moment(self) -> "Moment":
        """Begin a number of questions that one look at the system answers."""
        return Moment(self)


class Moment:
    """Answers for one moment, looking at each root at most once. Used by one thread."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust
        self._away: dict[int, list[Away]] = {}

    def may_conclude(self, root: Root, path: bytes, has_several: Callable[[], bool]) -> bool:
        """Whether something that is not found at a path of a root may be called gone.

        `has_several` tells whether more than one file is known in the root: the last one can go like any other, but
        several that go and leave the root empty are a mount that fell off.
        """
        if root.id not in self._away:
            self._away[root.id] = self._look(root, has_several)
        return not any(away.holds(path) for away in self._away[root.id])

    def _look(self, root: Root, has_several: Callable[[], bool]) -> list[Away]:
        if self._trust.is_accepted(root.id):
            return []
        try:
            away = self._trust.away(root)
            with os.scandir(root.path) as entries:
                is_empty = next(entries, None) is None
        except (RootUnavailable, OSError) as error:
            return [Away(b"", str(error))]
        return [*away, Away(b"", "it is empty")] if is_empty and has_several() else away
