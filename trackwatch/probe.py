"""Describe one file from one open descriptor: is it finished, its hashes in one read, its tags, did it stay the same.

Synchronous, knows nothing of tasks, catalogue or events: `pool` runs `describe_all` in worker processes, which
`prepare_process` has given limits that hold whatever a file does to the libraries that read it.
"""

import errno
import fcntl
import hashlib
import importlib
import io
import math
import os
import resource
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum
from types import FrameType
from typing import BinaryIO, NamedTuple

import xxhash

from trackwatch.errors import FileProblem
from trackwatch.settle import UNKNOWN_WRITER_QUIET_S, Rest
from trackwatch.spans import encoded_audio
from trackwatch.statx import birth_ns
from trackwatch.track import Metadata, Observation, Signature, is_audio, suffix_of

# Large enough for xxhash and hashlib to let go of the interpreter lock (both do above 64 KiB) and for few system calls,
# small enough to stay in a processor's cache: 256 KiB to 1 MiB measured alike.
BUFFER_BYTES = 512 * 1024

# Of a worker process, code and libraries (some 60 MB) included. What needs more is no music: FACTS has 3 GB for a tag.
ADDRESS_SPACE_BYTES = 512 * 1024 * 1024
# Of that, reading tags may not have: where it has failed for want of memory, this is left to say so with.
RESERVED_BYTES = 32 * 1024 * 1024
# A worker process that has grown beyond this is replaced by a new one: the allocator seldom gives back what it had.
WORN_OUT_BYTES = 96 * 1024 * 1024
# The exit code of a process that could not go on.
NO_MEMORY = 70
# Reading tags is given up after so many seconds of processor time: of its own, so that a busy machine condemns no file.
# Where the exception does not end it (a long call into C, a parser that catches everything), the kernel's kill does.
PARSE_CPU_S, PARSE_KILL_CPU_S = 10.0, 15.0
# The daemon's own loop, the broker and whoever plays the music come first.
NICENESS = 10
# A call returns what it has after so long: others wait for the results, and for the files it has not begun with.
CALL_S = 0.05

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


class Request(NamedTuple):
    """A file to be described.

    `quiet_s` says for how long nothing was heard of it; `at_ceiling` waives the wait for its writer. `refusal` is given
    instead of metadata to an audio file whose tags are not to be read (again).
    """

    path: bytes
    quiet_s: float
    at_ceiling: bool = False
    refusal: str = ""


Answer = Observation | Rest | FileProblem


# In a worker process


def prepare_process() -> None:
    """Make this process one that describes files: with limits, deaf to the signals that are meant for the daemon."""
    for number in (signal.SIGIO, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # SIGIO: see `_writer`; the daemon ends this process by closing its pipe
    signal.signal(signal.SIGVTALRM, _give_up)
    importlib.import_module("trackwatch.tags")  # now, and not on the first file's account
    allowed = _allowed_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(NICENESS)
    # Whatever a library prints, or warns of, must come between neither events nor lines of the log.
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the life of the process
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("500")  # when memory runs out, better this process than the daemon
    except OSError:
        pass  # no /proc, or not writable: then the kernel chooses by size alone


def is_worn_out() -> bool:
    """Whether this process has become so large that a new one should take its place."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * resource.getpagesize() > WORN_OUT_BYTES
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 > WORN_OUT_BYTES


def describe_all(requests: Sequence[Request]) -> list[Answer]:
    """Describe files one after the other, as many as fit into a short time; at least the first one.

    For a process that `prepare_process` has prepared. Every answer is about the request in the same place.
    """
    parent, ends_at = os.getppid(), time.monotonic() + CALL_S
    buffer = memoryview(bytearray(BUFFER_BYTES))

    def check_cancelled() -> None:
        if os.getppid() != parent:
            raise SystemExit  # the daemon was killed: nobody waits for this

    answers: list[Answer] = []
    for path, quiet_s, at_ceiling, refusal in requests:
        try:
            answers.append(
                describe(
                    path,
                    quiet_s=quiet_s,
                    at_ceiling=at_ceiling,
                    refusal=refusal,
                    buffer=buffer,
                    is_limited=True,
                    check_cancelled=check_cancelled,
                )
            )
        except FileProblem as problem:
            answers.append(problem)
        except MemoryError:
            os._exit(NO_MEMORY)  # outside the tags: whatever has eaten it, a new process begins with none of it
        if time.monotonic() > ends_at:
            break
    return answers


class _GivenUp(BaseException):
    """Reading tags has taken too long. No Exception, so that no parser takes it for a damaged file."""


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise _GivenUp


@contextmanager
def _limited() -> Iterator[None]:
    allowed = _allowed_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (allowed - RESERVED_BYTES, allowed))
    signal.setitimer(signal.ITIMER_PROF, PARSE_KILL_CPU_S)  # SIGPROF has its default action, which ends the process
    signal.setitimer(signal.ITIMER_VIRTUAL, PARSE_CPU_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))


def _allowed_bytes() -> int:
    """Return how much address space this process may have: our limit, or a lower one that it was started under."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    return ADDRESS_SPACE_BYTES if hard == resource.RLIM_INFINITY else min(ADDRESS_SPACE_BYTES, hard)


# Anywhere


def describe(
    path: bytes,
    *,
    quiet_s: float,
    at_ceiling: bool = False,
    refusal: str = "",
    buffer: memoryview | None = None,
    is_limited: bool = False,
    check_cancelled: Callable[[], None] = lambda: None,
) -> Observation | Rest:
    """Return what is in a file, or why it has to be looked at again later.

    For the first arguments see `Request`. `buffer` is used for reading; `is_limited` needs a process that
    `prepare_process` has prepared. `check_cancelled` is called between reads and may raise. The caller's process must
    ignore SIGIO (see `_writer`).

    Raises:
        FileProblem: the file cannot be read (permissions, a failing disk).
    """
    buffer = memoryview(bytearray(BUFFER_BYTES)) if buffer is None else buffer
    try:
        with open(path, "rb", buffering=0, opener=_opener) as file:
            return _describe_open(file, path, quiet_s, at_ceiling, refusal, buffer, is_limited, check_cancelled)
    except OSError as error:
        return _gone_or_problem(error)


def _opener(path: bytes | str, flags: int) -> int:
    # Not blocking: the path may have become a FIFO since it was looked at.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _describe_open(
    file: io.FileIO,
    path: bytes,
    quiet_s: float,
    at_ceiling: bool,
    refusal: str,
    buffer: memoryview,
    is_limited: bool,
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
    hashes = _hash(file, before.st_size, buffer, check_cancelled, has_audio=is_audio(path))
    if hashes is None:
        return Rest.MOVED_ON
    sha256, xxh128, audio_xxh128 = hashes
    metadata, metadata_error = None, None
    if is_audio(path) and refusal:
        metadata_error = refusal
    elif is_audio(path):
        # A file that fits into the buffer is still there, and need not be read again.
        whole = before.st_size <= len(buffer)
        source = (
            io.BytesIO(buffer[: before.st_size])
            if whole
            else io.BufferedReader(io.FileIO(file.fileno(), closefd=False))
        )
        metadata, metadata_error = _metadata(source, path, before.st_size, is_limited)
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
    # Where the audio ends was read apart from the rest, so of a file that is being written it is not certain.
    audio_xxh128 = audio_xxh128 if is_same else None
    signature = Signature.of(before, birth_ns(b"", file.fileno()))
    return Observation(signature, sha256, xxh128, metadata, metadata_error, audio_xxh128)


def _hash(
    file: io.FileIO, size_bytes: int, buffer: memoryview, check_cancelled: Callable[[], None], *, has_audio: bool
) -> tuple[bytes, bytes, bytes | None] | None:
    """Return the hashes of the first so many bytes and that of the audio in them (None if it is not certain where).

    None if the file has become shorter than that.
    """
    sha256, xxh128, audio = hashlib.sha256(), xxhash.xxh3_128(), xxhash.xxh3_128()
    at, encoded = 0, None
    while at < size_bytes:
        # What fits is put together there, for its tags: a read may return less than it was asked for.
        room = buffer[at:size_bytes] if size_bytes <= len(buffer) else buffer[: size_bytes - at]
        count = file.readinto(room)
        if not count:
            return None
        chunk = room[:count]
        if at == 0 and has_audio:
            encoded = encoded_audio(chunk, size_bytes, lambda position, count: os.pread(file.fileno(), count, position))
            audio.update(encoded.parameters if encoded else b"")
        sha256.update(chunk)
        xxh128.update(chunk)
        for start, end in encoded.spans if encoded else ():
            if start < at + count and end > at:
                audio.update(chunk[max(start - at, 0) : end - at])
        at += count
        check_cancelled()
    return sha256.digest(), xxh128.digest(), audio.digest() if encoded else None


def _metadata(source: BinaryIO, path: bytes, size_bytes: int, is_limited: bool) -> tuple[Metadata | None, str | None]:
    """Return what an audio file says of itself, or why that is not known: its hashes are announced all the same."""
    # The daemon itself, which knows this module too, reads no tags, and need not have what reads them.
    from trackwatch.tags import TagsUnreadable, read_tags

    try:
        with _limited() if is_limited else nullcontext():
            return read_tags(source, suffix_of(path).decode("ascii", "replace"), size_bytes), None
    except TagsUnreadable as error:
        if not isinstance(error.__cause__, MemoryError):
            return None, str(error)
    except MemoryError:
        pass  # there was none left to say what was wrong
    except _GivenUp:
        return None, f"tags take more than {PARSE_CPU_S:.0f} s to read"
    return None, f"tags need more than {ADDRESS_SPACE_BYTES >> 20} MB to read"


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
