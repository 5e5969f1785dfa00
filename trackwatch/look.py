"""Looks at paths: what is there now, compared with what is known. Runs in a reader's thread, changes nothing.

Every conclusion that something has gone is drawn here, and only where the root can be trusted (see `trust`).
"""

import errno
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from trackwatch import catalogue
from trackwatch.catalogue import Entry
from trackwatch.correlate import Candidate, Holder, nearest, origin
from trackwatch.record import Exchanged, Linked, Moved
from trackwatch.settle import Due
from trackwatch.statx import birth_ns
from trackwatch.sweep import Wanted
from trackwatch.track import Location, Observation, Root, Signature, is_audio
from trackwatch.trust import Moment, Trust

GONE = (errno.ENOENT, errno.ENOTDIR)


class Kind(Enum):
    """What a look at one path found."""

    UNCHANGED = "unchanged"
    CHANGED = "changed"  # its content has to be read
    ELSEWHERE = "elsewhere"  # known from another place: moved or linked
    GONE = "gone"
    DIRECTORY = "directory"
    LATER = "later"  # depends on a path that is in hand


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a look at one due path found; `gone` are known paths of the same root that are not there any more.

    `also` are other names of the same file, which may have another content than we know: notifications only come for
    the name that it was written by. What `is_doubtful` may have been written to on the way from elsewhere: it is
    recorded with its old change time, and has to be looked at, and so read, again.
    """

    due: Due
    kind: Kind
    change: Moved | Exchanged | Linked | None = None
    gone: tuple[bytes, ...] = ()
    also: tuple[Location, ...] = ()
    is_doubtful: bool = False
    size_bytes: int = 0  # of what is to be read


@dataclass(frozen=True, slots=True)
class Lookout:
    """Looks at the paths of some roots.

    `is_in_hand` tells whether a location was taken and is not finished.
    """

    roots: Mapping[int, Root]
    wanted: Wanted
    trust: Trust
    is_in_hand: Callable[[Location], bool]
    quiet_s: float = 0.0  # what was changed more recently than this, by its own ctime, is not at rest yet

    def look_at_all(self, batch: Sequence[Due], conn: sqlite3.Connection) -> list[Sighting]:
        """Look at each of some paths that were taken together.

        They come back in an order in which they can be recorded: what moved away from a path before what moved to it.
        """
        together = frozenset(due.location for due in batch)
        glance = _Glance(conn, self.trust.moment())
        known = catalogue.find_all(conn, [due.location for due in batch])
        return _leaving_first([self._look_at(due, known.get(due.location), glance, together) for due in batch])

    def _look_at(self, due: Due, known: Entry | None, glance: "_Glance", together: frozenset[Location]) -> Sighting:
        """Look at one path, and what is known of it; those taken `together` with it are in no worker's hand."""
        location, conn = due.location, glance.conn
        root = self.roots[location.root_id]
        path = root.absolute(location.path)
        if not location.path:
            return Sighting(due, Kind.DIRECTORY)
        try:
            result = _lstat(root, location.path)
        except OSError as error:
            if error.errno not in GONE:
                return Sighting(due, Kind.UNCHANGED)  # nobody can tell now; the sweep of its directory says why
            return Sighting(due, Kind.GONE, gone=self._known_at(location, glance))
        if stat.S_ISDIR(result.st_mode):
            kind = Kind.DIRECTORY if self.wanted.directory(location.path) else Kind.UNCHANGED
            return Sighting(due, kind, gone=(location.path,) if known else ())
        seen = Signature.of(result)
        others = self._other_names(location, seen, conn) if stat.S_ISREG(result.st_mode) and result.st_nlink > 1 else ()
        also = tuple(entry.location for entry in others if not entry.signature.unchanged_since(seen))
        if not stat.S_ISREG(result.st_mode) or not self.wanted.file(location.path):
            return Sighting(due, Kind.GONE, gone=self._known_at(location, glance), also=also)
        below = self._known_below(location, conn)  # it was a directory
        if known is not None and known.signature.unchanged_since(seen):
            # Known with another content under another name: one of the two was a guess.
            is_denied = any(other.sha256 != known.sha256 and other.signature.unchanged_since(seen) for other in others)
            if is_denied:
                return Sighting(due, Kind.CHANGED, gone=below, size_bytes=seen.size_bytes)
            return Sighting(due, Kind.UNCHANGED, gone=below)
        if self._is_restless(due, seen):
            return Sighting(due, Kind.LATER, gone=below)
        for other in others:
            # As it is now it was described under another name.
            if other.signature.unchanged_since(seen) and is_audio(other.location.path) == is_audio(location.path):
                return Sighting(due, Kind.ELSEWHERE, Linked(other.location, location, seen), gone=below)
        if known is None or known.signature.inode != seen.inode:
            found = self._trace(due, path, seen, glance, together)
            return replace(found, gone=below, also=also, size_bytes=seen.size_bytes)
        return Sighting(due, Kind.CHANGED, gone=below, also=also, size_bytes=seen.size_bytes)

    def _is_restless(self, due: Due, seen: Signature) -> bool:
        """Whether a file was changed so recently that it is not at rest, though the last hint of it is older."""
        age_ns = time.time_ns() - seen.ctime_ns
        return due.is_live and not due.at_ceiling and 0 <= age_ns < self.quiet_s * 1e9

    def _other_names(self, location: Location, seen: Signature, conn: sqlite3.Connection) -> tuple[Entry, ...]:
        """Return what is known of a file with several names under its other ones."""
        return tuple(
            entry
            for entry in catalogue.find_inode(conn, seen.inode)
            if entry.location != location and entry.location.root_id in self.roots
        )

    def content_origin(self, location: Location, seen: Observation, conn: sqlite3.Connection) -> Moved | None:
        """Return the move from another file system that a newly described file is, if it is one."""
        if catalogue.find(conn, location) is not None:
            return None
        glance = _Glance(conn, self.trust.moment())
        left = [
            entry.location
            for entry in catalogue.find_content(conn, seen.sha256, seen.signature.size_bytes)
            if self._can_become(entry, location)
            and not self.is_in_hand(entry.location)
            and self._holder(entry, glance) is Holder.OTHER
        ]
        return Moved(nearest(location, left), location, seen.signature, seen.sha256) if left else None

    def still_gone(self, locations: Sequence[Location], conn: sqlite3.Connection) -> tuple[list[Location], set[int]]:
        """Return those known locations where no wanted file is, and the roots that must not be believed about it."""
        glance = _Glance(conn, self.trust.moment())
        gone: list[Location] = []
        doubtful: set[int] = set()
        for location in locations:
            if catalogue.find(conn, location) is None:
                continue  # it has turned up elsewhere, or was told already
            match self._is_gone(location, glance):
                case True:
                    gone.append(location)
                case None:
                    doubtful.add(location.root_id)
        return gone, doubtful

    def _is_gone(self, location: Location, glance: "_Glance") -> bool | None:
        """Whether no wanted file is at a location; None if its root may not be believed."""
        root = self.roots[location.root_id]
        try:
            result = _lstat(root, location.path)
        except OSError as error:
            return (True if glance.may_conclude(root, location.path) else None) if error.errno in GONE else False
        return not stat.S_ISREG(result.st_mode) or not self.wanted.file(location.path)

    def _known_at(self, location: Location, glance: "_Glance") -> tuple[bytes, ...]:
        below = self._known_below(location, glance.conn)
        return (location.path, *below) if catalogue.find(glance.conn, location) else below

    def _known_below(self, location: Location, conn: sqlite3.Connection) -> tuple[bytes, ...]:
        return tuple(catalogue.find_below(conn, location)) if catalogue.any_below(conn, location) else ()

    def _trace(
        self, due: Due, path: bytes, seen: Signature, glance: "_Glance", together: frozenset[Location]
    ) -> Sighting:
        """Say where a file that appeared comes from."""
        location = due.location
        entries = [
            entry for entry in catalogue.find_inode(glance.conn, seen.inode) if self._can_become(entry, location)
        ]
        if not entries:
            return Sighting(due, Kind.CHANGED)
        if any(self.is_in_hand(entry.location) and entry.location not in together for entry in entries):
            return Sighting(due, Kind.LATER)
        born = seen._replace(btime_ns=birth_ns(path))
        found = origin(location, born, [Candidate(entry, self._holder(entry, glance)) for entry in entries])
        if found is None:
            return Sighting(due, Kind.CHANGED)
        # A new name changes the ctime as writing does, and tag editors write within the padding, put the mtime back and
        # rename, in this or another order: it is told at once, and read at leisure. (The files of a directory that was
        # renamed keep their ctime.) Notifications cannot rule it out: see decision 0007.
        known_ctime_ns = next(entry.signature.ctime_ns for entry in entries if entry.location == found.source)
        is_doubtful = known_ctime_ns != seen.ctime_ns
        change = (Linked if found.is_link else Moved)(found.source, location, born._replace(ctime_ns=known_ctime_ns))
        return Sighting(due, Kind.ELSEWHERE, change, is_doubtful=is_doubtful)

    def _can_become(self, entry: Entry, location: Location) -> bool:
        # What is known of a file's tags depends on the kind of its name: audio, or anything else.
        return entry.location != location and is_audio(entry.location.path) == is_audio(location.path)

    def _holder(self, entry: Entry, glance: "_Glance") -> Holder:
        """Say what is at a catalogued path now."""
        root = self.roots.get(entry.location.root_id)
        if root is None:
            return Holder.UNKNOWN  # a root that is no longer configured: nobody looks there
        try:
            result = _lstat(root, entry.location.path)
        except OSError as error:
            is_gone = error.errno in GONE and glance.may_conclude(root, entry.location.path)
            return Holder.OTHER if is_gone else Holder.UNKNOWN
        return Holder.SAME if result.st_ino == entry.signature.inode else Holder.OTHER


@dataclass(frozen=True, slots=True)
class _Glance:
    """What one batch of looks shares: the catalogue's connection, and one look at the roots' mounts."""

    conn: sqlite3.Connection
    moment: Moment

    def may_conclude(self, root: Root, path: bytes) -> bool:
        """Whether something that is not found there may be called gone."""
        return self.moment.may_conclude(root, path, lambda: not catalogue.has_fewer(self.conn, root.id, 2))


def _lstat(root: Root, path: bytes) -> os.stat_result:
    """Return the lstat of a path below a root. Raises OSError, and ENOTDIR where only a symlink leads.

    A directory that was moved away and replaced by a symlink to it holds nothing of ours: sweeps do not go there.
    """
    result = os.lstat(root.absolute(path))
    end = path.find(b"/")
    while end >= 0:
        if stat.S_ISLNK(os.lstat(root.absolute(path[:end])).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        end = path.find(b"/", end + 1)
    return result


def _leaving_first(sightings: Sequence[Sighting]) -> list[Sighting]:
    """Order sightings so that b -> c comes before a -> b, which would otherwise overwrite what moved on.

    A circle has no such order: one of its sightings stands for all of it, and the others are looked at again.
    """
    leaving = {seen.change.old: seen for seen in sightings if isinstance(seen.change, Moved)}
    ordered: dict[Location, Sighting] = {}
    for sighting in sightings:
        chain: dict[Location, Sighting] = {}
        following: Sighting | None = sighting
        while following is not None and (location := following.due.location) not in ordered and location not in chain:
            chain[location] = following
            following = leaving.get(location)
        if following is not None and (start := following.due.location) in chain:
            circle = list(chain)[list(chain).index(start) :]
            moves = tuple(move for place in circle if isinstance(move := chain[place].change, Moved))
            for place in circle:
                chain[place] = replace(chain[place], kind=Kind.LATER, change=None)
            chain[start] = replace(chain[start], kind=Kind.ELSEWHERE, change=Exchanged(moves))
        ordered.update(reversed(chain.items()))
    return list(ordered.values())
