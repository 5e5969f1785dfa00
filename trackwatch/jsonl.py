"""The JSON-lines sink: one event a line, to standard output or to a file.

It closes the descriptor only when it opened it. Confirmed means written completely: taken by the pipe or terminal, or,
for a file, on the disk. Every line is whole: a file that ends in half a line, as a crash leaves it, is cut back first.
"""

import errno
import os
import select
import stat
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

import trio

from trackwatch.errors import BrokerRefused, BrokerUnavailable, SinkClosed
from trackwatch.event import CONFIRMED, Outcome, Outgoing

# What writing says when nobody will ever read: the pipe's or socket's other end is gone, the descriptor is closed.
GONE = (errno.EPIPE, errno.ECONNRESET, errno.EBADF)
TAIL_BYTES = 64 * 1024  # read at a time while looking for the last newline; most events fit in many times over


@asynccontextmanager
async def open_json_lines(target: str | int) -> AsyncIterator["JsonLinesSink"]:
    """Open a file for appending (made if missing), or take a descriptor, which stays open afterwards.

    Raises:
        BrokerUnavailable: the file cannot be opened now; it is tried again, as with any sink that is away.
        BrokerRefused: the file ends in something that is not ours to cut.
    """
    if isinstance(target, int):
        yield JsonLinesSink(target, "standard output" if target == 1 else f"descriptor {target}")
        return
    fd = await trio.to_thread.run_sync(_open, target)
    sink = JsonLinesSink(fd, repr(target), path=target)
    try:
        yield sink
    finally:
        if not sink.stuck:  # else a thread may be writing still, and would hit whatever gets this number next
            os.close(fd)


class JsonLinesSink:
    """One open target."""

    def __init__(self, fd: int, display: str, *, path: str | None = None) -> None:
        self.stuck = False  # a write was abandoned in its thread; written by `publish` only
        self._broken = False  # a batch was not written to its end
        self._fd = fd
        self._display = display
        self._path = path
        # One thread at a time, and never one of those that probes and the store wait for: a pipe may be full for hours.
        self._limiter = trio.CapacityLimiter(1)

    @property
    def blocked(self) -> str | None:
        """Always None: a reader that takes nothing now looks like one that takes it slowly."""
        return None

    async def wait_lost(self) -> NoReturn:
        """Sleep for ever: whether the target still takes something shows when something is written."""
        await trio.sleep_forever()
        raise AssertionError("sleep_forever returned")

    async def publish(self, batch: Sequence[Outgoing], outcomes: dict[int, Outcome]) -> None:
        """Write the batch; put sequence -> CONFIRMED into `outcomes` for what was written completely, also if it fails.

        Cancelled while the reader takes nothing, it returns at once. That, like a failure, leaves the target in the
        middle of a line perhaps: this sink takes nothing any more.

        Raises:
            BrokerUnavailable: the disk is full, or the like: it heals by itself.
            SinkClosed: nobody reads any more.
        """
        if self._broken:
            raise BrokerUnavailable(f"write to {self._display}: an earlier write was broken off")
        self._broken = True
        progress = _Progress()
        try:
            # A thread, because a write to a full pipe waits for the reader, and the alternatives are worse: O_NONBLOCK
            # is a property of the open file, which we share with the shell and with standard error; and a pipe or a
            # terminal that polls as writable need not take a whole line. Such a thread cannot be interrupted, so
            # cancellation leaves it behind: it ends with its current line, or with the process. A regular file always
            # answers, and is waited for.
            await trio.to_thread.run_sync(
                partial(_write, self._fd, [row.payload for row in batch], progress, self._path),
                abandon_on_cancel=not _is_regular(self._fd),
                limiter=self._limiter,
            )
            self._broken = False
        except trio.Cancelled:
            progress.abandoned = True
            self.stuck = progress.running
            raise
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            if error.errno in GONE:
                raise SinkClosed(f"write to {self._display}: the reader has gone ({reason})") from error
            raise BrokerUnavailable(f"write to {self._display}: {reason}") from error
        finally:
            # Read once, here: what an abandoned thread still writes is sent again.
            outcomes.update((row.sequence, CONFIRMED) for row in batch[: progress.lines])


class _Progress:
    """How far a write has come. `lines` and `running` are written by its thread, `abandoned` by Trio; both read all."""

    def __init__(self) -> None:
        self.lines = 0
        self.running = False
        self.abandoned = False


def _write(fd: int, payloads: Sequence[bytes], progress: _Progress, path: str | None) -> None:
    """Write a line for each payload, and count it once it is safe. Runs in a thread."""
    progress.running = True
    try:
        if _is_regular(fd):
            _write_to_file(fd, payloads, progress, path)
            return
        for payload in payloads:
            if progress.abandoned:
                return
            _write_all(fd, payload + b"\n")
            progress.lines += 1
    finally:
        progress.running = False


def _write_to_file(fd: int, payloads: Sequence[bytes], progress: _Progress, path: str | None) -> None:
    _check_in_place(fd, path)
    lines = 0
    try:
        for payload in payloads:
            _write_all(fd, payload + b"\n")
            lines += 1
    finally:  # when the disk is full, what did fit is good; half a line is cut off when the file is opened again
        os.fsync(fd)
        _check_in_place(fd, path)
        progress.lines = lines


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:  # whoever shares this open file has set O_NONBLOCK
            select.select([], [fd], [])


def _check_in_place(fd: int, path: str | None) -> None:
    """Raise FileNotFoundError if the path names another file now: events in a deleted file would count as confirmed."""
    if path is not None and not os.path.samestat(os.fstat(fd), os.stat(path)):
        raise FileNotFoundError(errno.ENOENT, "it was moved or replaced meanwhile", path)


def _is_regular(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _open(path: str) -> int:
    """Open the target, a file at the end of its last whole line. Runs in a thread."""
    try:
        # O_NONBLOCK only while opening: a named pipe without a reader is an error then, instead of a wait without end.
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            os.set_blocking(fd, True)
            if _is_regular(fd):
                _cut_unfinished_line(fd, path)
                _sync_directory(path)
        except BaseException:
            os.close(fd)
            raise
    except OSError as error:
        raise BrokerUnavailable(f"open {path!r} for appending: {(error.strerror or str(error)).lower()}") from error
    return fd


def _cut_unfinished_line(fd: int, path: str) -> None:
    """Cut a file back to its last newline.

    What follows it is an event of which a crash or a full disk let only a part through. It was never confirmed, so it
    is still pending and comes again, whole. A newline in its place would leave readers a line that is not JSON.
    """
    size = kept = os.fstat(fd).st_size
    with open(path, "rb") as file:
        while kept > 0:
            start = max(0, kept - TAIL_BYTES)
            file.seek(start)
            block = file.read(kept - start)
            kept = start + block.rfind(b"\n") + 1
            if b"\n" in block:
                break
        file.seek(kept)
        first = file.read(1)
    if kept == size:
        return
    # Our lines begin with a brace; some file systems leave zeros where a power failure cut a write short.
    if first not in (b"{", b"\0"):
        raise BrokerRefused(f"append to {path!r}: its last line is unfinished and no event of ours; name another file")
    os.ftruncate(fd, kept)


def _sync_directory(path: str) -> None:
    """Put the name of a new file on the disk: without it a power failure could take the file, events and all."""
    directory = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
