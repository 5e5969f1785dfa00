"""Says where a file that appeared came from: pure, given what stat and the catalogue say.

A move within a file system keeps device, inode, size, modification time and birth time; the old path must not hold the
file any more. A file that appears while the old path still holds the same inode is another hard link to it.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from trackwatch.catalogue import Entry
from trackwatch.track import Location, Signature


class Holder(Enum):
    """What is at a catalogued path now."""

    SAME = "the same file"
    OTHER = "nothing, or another file"
    UNKNOWN = "cannot be told"  # its root is away, or unreadable: nothing may be concluded


@dataclass(frozen=True, slots=True)
class Candidate:
    """A catalogued file that may be the one that appeared."""

    entry: Entry
    holder: Holder


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a file came from: it left that place, or it is there as well."""

    source: Location
    is_link: bool


def origin(appeared: Location, seen: Signature, candidates: Iterable[Candidate]) -> Origin | None:
    """Return which of the candidates with its inode the file is, None if it is none of them."""
    same = [candidate for candidate in candidates if candidate.entry.signature.same_file(seen)]
    left = [candidate.entry.location for candidate in same if candidate.holder is Holder.OTHER]
    if left:
        return Origin(nearest(appeared, left), is_link=False)
    linked = [candidate.entry for candidate in same if candidate.holder is Holder.SAME]
    # A link changes the ctime of the file under all its names; with the rest equal the content is the known one.
    return Origin(nearest(appeared, [entry.location for entry in linked]), is_link=True) if linked else None


def nearest(appeared: Location, locations: Iterable[Location]) -> Location:
    """Return the location that the file most likely came from, should there be several links or copies."""

    def distance(location: Location) -> tuple[bool, bool, bool, Location]:
        directory, name = os.path.split(location.path)
        new_directory, new_name = os.path.split(appeared.path)
        return location.root_id != appeared.root_id, directory != new_directory, name != new_name, location

    return min(locations, key=distance)
