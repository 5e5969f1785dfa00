"""The watcher: turns the kernel's notifications into hints, and says when it may have missed some. Knows watchfiles.

It watches explicit lists of real directories (recursive watches lose files of new directories, follow symlinks, and
stop half-way at the first error, all in silence). The lists are arms: each is one watcher of watchfiles, one inotify
instance. We drive watchfiles' own engine instead of its `awatch`, which keeps all names and one step for ever: here the
watching thread takes short steps while something happens, and long ones in between.
New directories get a small arm of their own; small arms are merged, the new one armed before the old ones stop, because
stopping first loses what happens in between. A hint may be late, doubled or missing; sweeping is what makes it true.
Whether the kernel really watches what it was asked to is read from /proc/self/fdinfo, where that exists: a limit that
was reached, or watches that went with an unmounted file system, are told by nothing else. A queue of
the kernel's that ran full is told by nothing at all: where so much comes at once that it may have been, or we have not
run for a while, we doubt.
"""

import contextlib
import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import structlog
import trio
from sortedcontainers import SortedDict
from watchfiles import Change
from watchfiles._rust_notify import RustNotify, WatchfilesRustInternalError  # documented there, and not exported

from trackwatch.backoff import Backoff

# After the first change of a batch, wait this long for a quiet moment, at the most that long in all: a change is told
# within two steps when it comes alone, and within four in a steady stream. The watching thread wakes up at each step,
# changes or none, and needs the interpreter then: at 20 ms that is 0.35 % of a processor.
STEP_MS, DEBOUNCE_MS = 20, 60
# The step when nothing has happened for so long.
IDLE_STEP_MS, IDLE_MS = 100, 5_000
# Then a call of the engine ends after so long, for no other reason than to end some time: a stop is seen at each step.
IDLE_CALL_MS = 60_000
# An old arm is listened to this long after its successor was armed: whatever it has seen, it has told by then.
DRAIN_S = (DEBOUNCE_MS + 2 * IDLE_STEP_MS) / 1000 + 0.1
# Each arm costs an inotify instance (often 128 a user) and threads.
ARMS_MAX = 6
# An arm that lived this long did not die of what killed the one before.
LONG_LIFE_S = 60

# So many changes in so short a time mean that the kernel's queue may have been full, and the rest was dropped: each
# change that we are told of was up to six notifications (create, open, modify, attributes, close).
NOTIFICATIONS_PER_CHANGE = 6
BURST_S = 0.8
QUEUE_DEFAULT = 16384
# What may have been dropped is swept for when the burst is over, or has lasted so long.
CALM_S, BURST_MAX_S = 1.0, 30.0
# Looked at this often; a look that comes this late means that we were frozen, or starved: the queue could run full.
LOOK_S, LATE_S = 1.0, 3.0

_WATCH_LINE = re.compile(rb"inotify wd:[0-9a-f]+ ino:([0-9a-f]+) ")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Watched:
    """A real directory to watch; the inode tells whether a known path is still the same directory."""

    path: bytes
    inode: int


@dataclass(slots=True, eq=False)
class _Arm:
    watcher: RustNotify
    paths: set[bytes]
    since: float
    stop: trio.Event = field(default_factory=trio.Event)
    descriptor: int | None = None  # of its inotify instance; None where /proc does not tell
    lately: deque[tuple[float, int]] = field(default_factory=deque)  # when it told how many changes
    is_comparable: bool = False  # whether this file system's watches bear the inode numbers that stat tells


class Watch:
    """Watches directories while `run` runs.

    `hint` is called with the absolute path of whatever may have changed, and for how many seconds it may have been
    quiet since; `doubt` with the directories whose changes may have been missed (they may be no longer watched: sweep
    them, and `cover` them again).
    """

    def __init__(self, hint: Callable[[bytes, float], None], doubt: Callable[[list[bytes]], None]) -> None:
        self._hint = hint
        self._doubt = doubt
        self._covered: SortedDict = SortedDict()  # path -> (inode, arm, the path itself)
        self._arms: list[_Arm] = []
        self._nursery: trio.Nursery | None = None
        self._one_at_a_time = trio.Lock()
        self._backoff = Backoff(base_s=0.3, cap_s=5)
        # Where no instance is to be had, each attempt would be followed by a sweep, and that by the next attempt.
        self._birth_backoff = Backoff(base_s=1, cap_s=60)
        self._rests_until = 0.0
        self._is_short = False  # of watches: the last arm got fewer than it asked for
        limit = _limit("max_queued_events")
        self._burst_changes = int(limit if limit.isdigit() else QUEUE_DEFAULT) // NOTIFICATIONS_PER_CHANGE
        self._burst: tuple[float, float] | None = None  # when the burst began, and was last seen
        self._looked_at = 0.0
        self._deaths = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            self._looked_at = trio.current_time()
            while True:
                await trio.sleep(LOOK_S)
                self._look_for_losses(trio.current_time())

    async def cover(self, directories: Iterable[Watched]) -> int:
        """Watch these directories too; return how many were not watched before, once they are.

        What happened in them before this returns has to be found by a sweep afterwards.
        """
        async with self._one_at_a_time:
            fresh = {directory.path: directory.inode for directory in directories if not self.covers(directory)}
            if not fresh or trio.current_time() < self._rests_until:
                return 0
            if await self._arm(fresh) and len(self._arms) > ARMS_MAX:
                await self._merge()
            return sum(path in self._covered for path in fresh)

    def known(self, path: bytes) -> bytes:
        """Return our own copy of a path that is watched, to be kept instead of an equal one: there may be 100,000."""
        covered = self._covered.get(path)
        return path if covered is None else covered[2]

    async def audit(self) -> list[bytes]:
        """Return the directories that the kernel has stopped to watch; they are no longer covered."""
        async with self._one_at_a_time:
            lost: list[bytes] = []
            for arm in list(self._arms):
                if arm.descriptor is None or not arm.is_comparable:
                    continue
                watched = await trio.to_thread.run_sync(_watched_inodes, arm.descriptor)
                unwatched = [
                    path for path, (inode, holder, _) in self._covered.items() if holder is arm and inode not in watched
                ]
                for path in unwatched:
                    del self._covered[path]
                    arm.paths.discard(path)
                lost += unwatched
            return lost

    def statistics(self) -> dict[str, int]:
        """Return how many directories are watched, with how many inotify instances, and how often one died."""
        return {"directories": len(self._covered), "instances": len(self._arms), "deaths": self._deaths}

    def covers(self, directory: Watched) -> bool:
        """Whether this very directory is watched."""
        known = self._covered.get(directory.path)
        return known is not None and known[0] == directory.inode

    async def _arm(self, directories: dict[bytes, int]) -> bool:
        """Watch these directories by one more instance; False if none is to be had."""
        assert self._nursery is not None, "run() is not running"
        before = _inotify_descriptors()
        # If we were cancelled while we waited for our turn, or for a thread, then the nursery has been as well.
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            # What ignores denied permissions also goes on after a directory that has gone meanwhile, which would
            # otherwise keep all others from being watched.
            names = list(map(os.fsdecode, directories))
            watcher = _made_on_one_processor(partial(RustNotify, names, False, False, 0, False, True))
        except (OSError, WatchfilesRustInternalError) as error:
            is_news = not self._birth_backoff.attempt
            delay_s = self._birth_backoff.next_s()
            self._rests_until = trio.current_time() + delay_s
            if is_news:
                log.warning("watch unavailable", directories=len(directories), reason=_reason(error))
            self._nursery.start_soon(self._bury, list(directories), delay_s)
            return False
        if self._birth_backoff.attempt:
            log.info("watch available again")
        self._birth_backoff.reset()
        arm = _Arm(watcher, set(directories), trio.current_time())
        self._nursery.start_soon(self._listen, arm)
        self._arms.append(arm)
        for path, inode in directories.items():
            if (former := self._covered.get(path)) is not None:
                former[1].paths.discard(path)
            self._covered[path] = (inode, arm, path)
        # Nobody else opens inotify instances here, and one arm is made at a time.
        self._looked_at = max(self._looked_at, trio.current_time())  # arming many holds everything up: no loss of ours
        made = _inotify_descriptors() - before
        if len(made) == 1:
            (arm.descriptor,) = made
            await self._check(arm, directories)
        return True

    async def _check(self, arm: _Arm, directories: dict[bytes, int]) -> None:
        """Note which directories of a new arm the kernel does not watch after all: its limit was reached."""
        assert arm.descriptor is not None
        watched = await trio.to_thread.run_sync(_watched_inodes, arm.descriptor)
        if arm not in self._arms:
            return  # it has died meanwhile, and its doubt follows
        inodes = set(directories.values())
        arm.is_comparable = watched <= inodes
        if len(watched) >= len(inodes) or not arm.is_comparable:
            self._is_short = False
            return
        left_out = [path for path in arm.paths if directories[path] not in watched]
        for path in left_out:
            arm.paths.discard(path)
            self._covered.pop(path, None)
        # One that has gone since it was listed, or must not be read, is no news; a limit leaves many.
        there = await trio.to_thread.run_sync(lambda: [path for path in left_out if os.access(path, os.R_OK)])
        if there and not self._is_short:
            self._is_short = True
            reason = f"raise fs.inotify.max_user_watches (now {_limit('max_user_watches')}); they are swept meanwhile"
            watched_now = len(self._covered)
            log.warning("watch limit reached", reason=reason, directories=watched_now, left_out=len(there))

    async def _merge(self) -> None:
        """Replace the small arms by one; the largest is left alone unless the others have grown to half of it."""
        arms = sorted(self._arms, key=lambda arm: len(arm.paths))
        *small, largest = arms
        if 2 * sum(len(arm.paths) for arm in small) > len(largest.paths):
            small = arms
        old = set(map(id, small))
        directories = {path: inode for path, (inode, arm, _) in self._covered.items() if id(arm) in old}
        if not await self._arm(directories):
            return  # the small ones go on
        self._arms = [arm for arm in self._arms if id(arm) not in old]
        assert self._nursery is not None
        await trio.lowlevel.checkpoint_if_cancelled()  # as in _arm
        self._nursery.start_soon(_retire, small)

    async def _listen(self, arm: _Arm) -> None:
        """Pass on what one arm says, until it is stopped or dies."""
        # Nothing else takes its thread, however many others are busy.
        thread = trio.CapacityLimiter(1)

        async def watch(step_ms: int, call_ms: int) -> set[tuple[int, str]]:
            call = partial(arm.watcher.watch, DEBOUNCE_MS, step_ms, call_ms, arm.stop)
            batch = await trio.to_thread.run_sync(call, limiter=thread)
            return set() if isinstance(batch, str) else batch  # "timeout", or "stop"

        paths = list(arm.paths)  # a successor may take them over, while this one has not told everything yet
        try:
            # A thread cannot be cancelled; it looks at its event at each step.
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_when_cancelled, arm.stop)
                step_ms, call_ms = STEP_MS, IDLE_MS
                while not arm.stop.is_set():
                    batch = await watch(step_ms, call_ms)
                    if not batch:
                        step_ms, call_ms = IDLE_STEP_MS, IDLE_CALL_MS
                        continue
                    self._take(arm, batch, quiet_s=step_ms / 1000)
                    step_ms, call_ms = STEP_MS, IDLE_MS
                nursery.cancel_scope.cancel()
        except* (OSError, WatchfilesRustInternalError) as group:
            # watchfiles dies of a single undecodable name. What it had not told yet is lost: the sweep that the doubt
            # asks for finds it.
            if arm in self._arms:
                self._arms.remove(arm)
            for path in paths:
                if self._covered.get(path, (0, None))[1] is arm:
                    del self._covered[path]
            if trio.current_time() - arm.since > LONG_LIFE_S:
                self._backoff.reset()
            arm.watcher.close()  # now: instances are scarce
            delay_s = self._backoff.next_s()
            log.warning("watch died", directories=len(paths), reason=_reason(group), retry_s=round(delay_s, 2))
            await self._bury(paths, delay_s)
        finally:
            arm.watcher.close()

    def _take(self, arm: _Arm, batch: set[tuple[int, str]], *, quiet_s: float) -> None:
        for kind, name in batch:
            path = os.fsencode(name)
            if kind != Change.modified and path in self._covered:
                # The directory has gone, or another has come in its place, perhaps with the same inode number.
                self._forget(path)
            self._hint(path, quiet_s)
        now = trio.current_time()
        arm.lately.append((now, len(batch)))
        while arm.lately[0][0] < now - BURST_S:
            arm.lately.popleft()
        if sum(count for _, count in arm.lately) >= self._burst_changes:
            self._note_burst(now)

    def _note_burst(self, now: float) -> None:
        began_at, _ = self._burst or (now, now)
        self._burst = began_at, now

    def _look_for_losses(self, now: float) -> None:
        """Doubt everything after a time in which the kernel's queue may have been full."""
        if now > self._looked_at + LATE_S:
            self._note_burst(now)
        self._looked_at = now
        if self._burst is None:
            return
        began_at, last_at = self._burst
        if now >= last_at + CALM_S or now >= began_at + BURST_MAX_S:
            self._burst = None
            reason = "so much happened at once that some of it may not have been told: sweeping"
            log.info("watch overrun", reason=reason)
            self._doubt([path for arm in self._arms for path in arm.paths])

    def _forget(self, path: bytes) -> None:
        below = list(self._covered.irange(path + b"/", path + b"0", inclusive=(True, False)))
        for gone in (path, *below):
            arm = self._covered.pop(gone)[1]
            arm.paths.discard(gone)

    async def _bury(self, paths: list[bytes], delay_s: float) -> None:
        """Doubt what a dead arm watched, after a while: a lasting cause would make a busy loop."""
        self._deaths += 1
        await trio.sleep(delay_s)
        self._doubt(paths)


def _made_on_one_processor(make: Callable[[], RustNotify]) -> RustNotify:
    """Make an engine in a thread that stays on one processor for as long as that takes.

    The engine hands each directory to a thread of its own and waits for the answer, with the interpreter in hand.
    Waking that thread up on another processor takes longer than the work: 0.08 s instead of 0.1 to 0.4 for 10,000
    directories. Our own threads must not be bound even for a moment: what they start would stay so, and a container's
    processors that are added later would never be used.

    Raises what making it raises.
    """
    made: list[RustNotify] = []
    failures: list[Exception] = []

    def attempt() -> None:
        # Not this system, or it is forbidden: slower, and no more than that.
        with contextlib.suppress(AttributeError, OSError, ValueError, IndexError):
            here = int(Path("/proc/thread-self/stat").read_bytes().rpartition(b")")[2].split()[36])
            os.sched_setaffinity(0, {here})
        try:
            made.append(make())
        except (OSError, WatchfilesRustInternalError) as error:
            failures.append(error)

    before = _threads()
    thread = threading.Thread(target=attempt, name="arming")
    try:
        thread.start()
    except RuntimeError:  # there is no thread to be had
        return make()
    thread.join()
    for number in _threads() - before if before else ():  # the engine's own, which may run anywhere from now on
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setaffinity(number, os.sched_getaffinity(0))
    if failures:
        raise failures[0]
    return made[0]


def _threads() -> set[int]:
    try:
        return set(map(int, os.listdir("/proc/self/task")))
    except OSError:  # no descriptor is free, or there is no /proc
        return set()


def _inotify_descriptors() -> set[int]:
    try:
        descriptors = os.listdir("/proc/self/fd")
    except OSError:
        return set()
    found = set()
    for descriptor in descriptors:
        # One that was closed since it was listed is none of ours.
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:inotify":
                found.add(int(descriptor))
    return found


def _watched_inodes(descriptor: int) -> set[int]:
    """Return the inode numbers that an inotify instance watches, by the kernel's own account."""
    try:
        with open(f"/proc/self/fdinfo/{descriptor}", "rb") as lines:
            return {int(match[1], 16) for line in lines if (match := _WATCH_LINE.match(line))}
    except OSError:
        return set()


def _reason(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    reason = str(error)[:300]
    if "os error 24" in reason or "Too many open files" in reason:
        limit = _limit("max_user_instances")
        return f"{reason}; raise fs.inotify.max_user_instances (now {limit}); everything is swept meanwhile"
    return reason


def limits() -> dict[str, int]:
    """Return what the kernel allows a user: `watches` and `instances`; what it does not tell is left out."""
    texts = {name: _limit(f"max_user_{name}") for name in ("watches", "instances")}
    return {name: int(text) for name, text in texts.items() if text.isdigit()}


def _limit(name: str) -> str:
    try:
        with open(f"/proc/sys/fs/inotify/{name}") as file:
            return file.read().strip()
    except OSError:
        return "unknown"


async def _stop_when_cancelled(stop: trio.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stop.set()


async def _retire(arms: list[_Arm]) -> None:
    await trio.sleep(DRAIN_S)
    for arm in arms:
        arm.stop.set()
