"""The values that everything else talks about: roots, locations, signatures, metadata, observations.

Names of files are bytes, because the file system's are; text is derived from them for people and for JSON.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The formats that consumers of this contract expect (any letter case).
AUDIO_SUFFIXES = (
    "flac", "wav", "wave", "mp3", "ogg", "oga", "aac", "opus", "m4a", "m4b", "m4p", "m4v", "m4r", "mp4", "wma",
)  # fmt: skip

_SUFFIXES = frozenset(suffix.encode() for suffix in AUDIO_SUFFIXES)

TagValue = str | int | float | bool


def storable(time_ns: int) -> int:
    """Return a time within signed 64 bits, as databases store it: ext4 can hold the year 2446, which is outside."""
    return max(-(1 << 63), min((1 << 63) - 1, time_ns))


def suffix_of(path: bytes) -> bytes:
    """Return what follows the last dot of a file's name, in lower case; empty if there is none."""
    # Not splitext, for which ".mp3" is a name without a suffix: the patterns want such a file, as audio.
    _, dot, suffix = path.rpartition(b"/")[2].rpartition(b".")
    return suffix.lower() if dot else b""


def is_audio(path: bytes) -> bool:
    """Whether a file is described by tags as well as by hashes: decided by its name alone."""
    return suffix_of(path) in _SUFFIXES


class Location(NamedTuple):
    """Where a file is: the id of its root, and its path below that root."""

    root_id: int
    path: bytes


@dataclass(frozen=True, slots=True)
class Root:
    """A configured directory whose files we know; the id outlives what is mounted there."""

    id: int
    path: bytes

    def absolute(self, path: bytes) -> bytes:
        """Return the absolute form of a path below this root (the root itself for an empty one)."""
        return os.path.join(self.path, path) if path else self.path

    def relative(self, absolute: bytes) -> bytes | None:
        """Return the path below this root, empty for the root itself, None for what lies elsewhere."""
        if absolute == self.path:
            return b""
        prefix = self.path.rstrip(b"/") + b"/"
        return absolute[len(prefix) :] if absolute.startswith(prefix) else None


class Signature(NamedTuple):
    """What `stat` says of a file: while all of it stays the same, so does the content, as far as anyone can tell.

    `btime_ns` (birth) is None where the file system or the kernel does not tell it. (A tuple: a sweep makes one for
    each known file, and a frozen dataclass takes three times as long to make.)
    """

    dev: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    btime_ns: int | None = None

    @classmethod
    def of(cls, stat: os.stat_result, btime_ns: int | None = None) -> "Signature":
        """Return the signature that a stat result describes."""
        mtime_ns, ctime_ns = storable(stat.st_mtime_ns), storable(stat.st_ctime_ns)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, mtime_ns, ctime_ns, btime_ns)

    def unchanged_since(self, other: "Signature") -> bool:
        """Whether nothing has happened to the file since `other` was taken.

        Device numbers are left out: they change over reboots and remounts, and the same inode with the same change
        time is the same file.
        """
        return self[1:5] == other[1:5]

    def same_file(self, other: "Signature") -> bool:
        """Whether this is the same file with the same content, perhaps under another name (which changes its ctime).

        File systems hand a freed inode to the next file, so the birth times must agree too where both are known.
        """
        if self.btime_ns is not None and other.btime_ns is not None and self.btime_ns != other.btime_ns:
            return False
        return (self.dev, self.inode, self.size_bytes, self.mtime_ns) == (
            other.dev,
            other.inode,
            other.size_bytes,
            other.mtime_ns,
        )


class Metadata(NamedTuple):
    """What an audio file says of itself. None and missing tags mean unknown: nothing is ever invented.

    `tags` has the names of the contract (title, artist, album, ...); several values of one tag are joined with "; ".
    """

    format: str  # MIME type
    duration_s: float | None = None
    bitrate: int | None = None  # bit/s
    sample_rate: int | None = None  # Hz
    channels: int | None = None
    audio_md5: str | None = None  # of the decoded audio, in hexadecimal, as the encoder has written it into the file
    tags: Mapping[str, TagValue] | None = None


class Observation(NamedTuple):
    """What one look at one file found, true for the moment when `signature` was taken.

    Exactly one of `metadata` and `metadata_error` is set for an audio file, neither for any other kind of file.
    `audio_xxh128` is the hash of the encoded audio alone (see `spans`), None where that is not known for certain.
    """

    signature: Signature
    sha256: bytes
    xxh128: bytes
    metadata: Metadata | None = None
    metadata_error: str | None = None
    audio_xxh128: bytes | None = None
