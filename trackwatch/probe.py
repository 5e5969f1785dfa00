"""Describe one file from one open descriptor: is it finished, its hashes in one read, its tags, did it stay the same.

Runs in a thread (or a process) of its own: synchronous, knows nothing of tasks, catalogue or events.
"""

import errno
import fcntl
import hashlib
import io
import math
import os
import stat
import time
from collections.abc import Callable
from enum import Enum

import xxhash

from trackwatch.errors import FileProblem
from trackwatch.settle import UNKNOWN_WRITER_QUIET_S, Rest
from trackwatch.statx import birth_ns
from trackwatch.tags import TagsUnreadable, read_tags
from trackwatch.track import Observation, Signature, is_audio, suffix_of

# Large enough for xxhash and hashlib to let go of the interpreter lock (both do above 64 KiB) and for few system calls,
# small enough to stay in a processor's cache: 256 KiB to 1 MiB measured alike.
BUFFER_BYTES = 512 * 1024

# A server's clock may be ahead of ours by so much and still tell when a file last changed, only later.
CLOCK_SKEW_S = 60.0

# Gone, or something else than a file by now. EAGAIN: somebody holds a write lease on it (Samba does for its clients),
# and opening it has asked for the lease back.
MOVED_ON = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ESTALE, errno.ENXIO, errno.EAGAIN}


class _Writer(Enum):
    """Whether anybody has a file open for writing."""

    NONE = "none"
    SOME = "some"
    UNKNOWN = "unknown"


def describe(
    path: bytes,
    *,
    quiet_s: float,
    at_ceiling: bool = False,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Observation | Rest:
    """Return what is in a file, or why it has to be looked at again later.

    `quiet_s` says for how long nothing was heard of the file; `at_ceiling` waives the wait for its writer.
    `check_cancelled` is called between reads and may raise. The caller's process must ignore SIGIO (see `_writer`).

    Raises:
        FileProblem: the file cannot be read (permissions, a failing disk).
    """
    try:
        with open(path, "rb", opener=_opener) as file:
            return _describe_open(file, path, quiet_s, at_ceiling, check_cancelled)
    except OSError as error:
        return _gone_or_problem(error)


def _opener(path: bytes | str, flags: int) -> int:
    # Not blocking: the path may have become a FIFO since it was looked at.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _describe_open(
    file: io.BufferedReader,
    path: bytes,
    quiet_s: float,
    at_ceiling: bool,
    check_cancelled: Callable[[], None],
) -> Observation | Rest:
    before = os.fstat(file.fileno())
    if not stat.S_ISREG(before.st_mode):
        return Rest.MOVED_ON
    if not at_ceiling:
        writer = _writer(file.fileno())
        if writer is _Writer.SOME:
            return Rest.MOVED_ON
        if writer is _Writer.UNKNOWN and _rest_s(quiet_s, before) < UNKNOWN_WRITER_QUIET_S:
            return Rest.UNSURE
    hashes = _hash(file, before.st_size, check_cancelled)
    if hashes is None:
        return Rest.MOVED_ON
    sha256, xxh128 = hashes
    metadata, metadata_error = None, None
    if is_audio(path):
        file.seek(0)
        try:
            metadata = read_tags(file, suffix_of(path).decode("ascii", "replace"), before.st_size)
        except TagsUnreadable as error:
            metadata_error = str(error)  # the file is announced all the same, with its hashes
    after = os.fstat(file.fileno())
    signature = Signature.of(before)
    is_same = signature.unchanged_since(Signature.of(after))
    # At the ceiling a file that only grew is told as it was when the look began: it did have this content then, and
    # the next hint or sweep finds that it has changed.
    has_grown = at_ceiling and after.st_size > before.st_size
    if not (is_same or has_grown) or os.lstat(path).st_ino != before.st_ino:
        return Rest.MOVED_ON
    if not at_ceiling and _writer(file.fileno()) is _Writer.SOME:
        return Rest.MOVED_ON
    return Observation(Signature.of(before, birth_ns(b"", file.fileno())), sha256, xxh128, metadata, metadata_error)


def _hash(file: io.BufferedReader, size_bytes: int, check_cancelled: Callable[[], None]) -> tuple[bytes, bytes] | None:
    """Return the hashes of the first so many bytes, None if the file has become shorter than that."""
    sha256, xxh128 = hashlib.sha256(), xxhash.xxh3_128()
    buffer = memoryview(bytearray(max(1, min(BUFFER_BYTES, size_bytes + 1))))
    raw, left = file.raw, size_bytes
    while left > 0 and (count := raw.readinto(buffer[: min(len(buffer), left)])):
        left -= count
        sha256.update(buffer[:count])
        xxh128.update(buffer[:count])
        check_cancelled()
    return None if left else (sha256.digest(), xxh128.digest())


def _writer(descriptor: int) -> _Writer:
    """Ask for a read lease, which the kernel grants only while nobody has the file open for writing, and give it back.

    Needs the file's owner or CAP_LEASE, and a file system with leases. Somebody who opens the file for writing within
    these microseconds makes the kernel send SIGIO, whose default action would end the process.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except BlockingIOError:
        return _Writer.SOME
    except OSError:
        return _Writer.UNKNOWN
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return _Writer.NONE


def _rest_s(quiet_s: float, result: os.stat_result) -> float:
    """For how long the file has been at rest, by what was heard of it and by its own ctime, which no program can set.

    A ctime that lies far in the future says only that a clock was set back: then what was heard decides, and nothing if
    nobody was listening.
    """
    age_s = time.time() - result.st_ctime
    if age_s < -CLOCK_SKEW_S:
        return 0.0 if math.isinf(quiet_s) else quiet_s
    return min(quiet_s, age_s)


def _gone_or_problem(error: OSError) -> Rest:
    """Sort an error of a file that was there a moment ago: it has changed (look again), or it has a problem (tell)."""
    if error.errno in MOVED_ON:
        return Rest.MOVED_ON
    raise FileProblem(f"not readable ({(error.strerror or str(error)).lower()})") from error
