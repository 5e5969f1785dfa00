"""What `trackwatch check` sees of the roots: can all be read, what is wanted, where changes are told, and by how much.

Each root is walked by a thread of its own, so that a mount that hangs holds up itself alone; what was not seen within
the time that all have together is not counted, and that is said.
"""

import errno
import fcntl
import os
import shlex
import signal
import stat
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from trackwatch import limits
from trackwatch.event import displayed
from trackwatch.finding import Finding, Word, many, reason, skip, worse
from trackwatch.mounts import Mount, mount_of
from trackwatch.patterns import Patterns
from trackwatch.root import REMOTE_SWEEP_S
from trackwatch.settle import UNKNOWN_WRITER_QUIET_S
from trackwatch.track import Root
from trackwatch.trust import Identity, look_away
from trackwatch.values import below
from trackwatch.watch import ARMS_MAX

# For all roots together; 200,000 files on a warm disk take a second, a million some six.
WALK_S = 20.0
# inotify instances: the arms of the watch, and those that take over from them.
INSTANCES = ARMS_MAX + 2
QUEUED_EVENTS = 16_384


@dataclass(slots=True)
class _Refusals:
    """How often the system refused something, and the first example."""

    noun: str
    what: str
    count: int = 0
    example: str = ""

    def note(self, path: bytes, reason: str) -> None:
        self.count += 1
        self.example = self.example or f"{displayed(path)} ({reason})"


class Walk:
    """One root and what was counted in it, by a thread of its own: a mount that hangs holds up itself alone.

    Written by that thread, read by the other one at any time.
    """

    def __init__(self, root: bytes, patterns: Patterns) -> None:
        self.root = root
        self.error: OSError | None = None
        self.directories = 0
        self.files = 0  # wanted ones
        self.others = 0
        self.links = 0  # to directories, which are not followed
        self.sample: bytes | None = None  # a wanted file that can be read
        self.unreadable = _Refusals("file", "cannot be read")
        self.unlistable = _Refusals("directory", "cannot be listed")
        self.done = False
        self.stop = False
        self.thread = threading.Thread(target=self._walk, args=(patterns,), daemon=True)
        self.thread.start()

    @property
    def hangs(self) -> bool:
        """Whether the root has not answered at all so far."""
        return not self.directories and not self.done

    def _walk(self, patterns: Patterns) -> None:
        try:
            if not stat.S_ISDIR(os.stat(self.root).st_mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            waiting = [b""]
            while waiting and not self.stop:
                directory = waiting.pop()
                try:
                    waiting += self._list(directory, patterns)
                except OSError as error:
                    if not directory:
                        raise
                    if not isinstance(error, FileNotFoundError):
                        self.unlistable.note(directory, reason(error))
            self.done = not waiting
        except OSError as error:
            self.error = error
            self.done = True

    def _list(self, directory: bytes, patterns: Patterns) -> list[bytes]:
        below_it = []
        prefix = directory + b"/" if directory else b""
        with os.scandir(os.path.join(self.root, directory)) as entries:
            self.directories += 1
            for entry in entries:
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if patterns.descend(path):
                        below_it.append(path)
                elif not patterns.wanted(path):
                    self.others += 1
                    self.links += entry.is_symlink() and entry.is_dir()
                elif entry.is_file(follow_symlinks=False):
                    self._note(path)
        return below_it

    def _note(self, path: bytes) -> None:
        self.files += 1
        if os.access(os.path.join(self.root, path), os.R_OK, effective_ids=True):
            self.sample = self.sample or path
        else:
            self.unreadable.note(path, "permission denied")


# What the catalogue knows of a root: how many files, and the mounts that it consisted of.
Known: TypeAlias = tuple[int, Mapping[bytes, Identity]]


def root_finding(
    walk: Walk, ends_at: float, mounts: list[Mount], known: Known = (0, {}), *, has_patterns: bool = True
) -> Finding:
    """Wait for a walk until `ends_at` (monotonic), and say how the root is.

    Without `has_patterns` the user's are wrong, and others are in their place.
    """
    walk.thread.join(max(0.0, ends_at - time.monotonic()))
    walk.stop = True
    shown, quoted = displayed(walk.root), shlex.quote(os.fsdecode(walk.root))
    known_files, known_mounts = known
    kept = f"{known_files:,} files of it are known" if known_files else ""
    data = {
        "path": shown, "files": walk.files, "directories": walk.directories, "complete": walk.done and not walk.error,
        "unreadable_files": walk.unreadable.count, "unlistable_directories": walk.unlistable.count,
    }  # fmt: skip

    def found(word: Word, *facts: str, remedies: Sequence[str] = ()) -> Finding:
        return Finding("root", word, (shown, *filter(None, facts)), tuple(remedies), data)

    if walk.error is not None:
        return found(Word.FAIL, *_why_not(walk, kept), remedies=_how_to_reach(walk, known_mounts))
    if walk.hangs:
        remedies = ["look at the server behind the mount, and at the system's log"]
        return found(Word.FAIL, f"does not answer within {WALK_S:.0f} s: its mount hangs", remedies=remedies)
    mount = mount_of(os.path.realpath(walk.root), mounts)
    fstype = mount.fstype.decode("ascii", "replace") if mount else ""
    counted = f"{many(walk.files, 'file')} in {many(walk.directories, 'directory')}"
    if not walk.done:
        counted = f"more than {counted}: {WALK_S:.0f} s were not enough to see all"
    if not has_patterns:
        counted += " (by the default patterns)"
    facts, remedies, word = [fstype, counted], [], Word.OK
    if known_mounts and (away := look_away(Root(0, walk.root), known_mounts)):
        remedies = ["mount what was there; or, if this is how it is to be:", f"$ trackwatch accept {quoted}"]
        return found(Word.FAIL, *(part.reason for part in away), kept, remedies=remedies)
    if not walk.files and walk.done:
        word = Word.WARN
        if not walk.others and walk.directories == 1:
            facts, remedies = [fstype, "empty", kept], ["mount the volume that belongs there, or name another ROOT"]
        else:
            facts = [
                fstype,
                f"no file is wanted, of {many(walk.others, 'file')} in {many(walk.directories, 'directory')}",
                kept,
            ]
            remedies = ["mount the volume that belongs there, or name the files in TRACKWATCH_INCLUDE"]
            if walk.links:
                facts.append(f"{many(walk.links, 'link')} to directories are not followed")
                remedies = ["name the directories themselves as ROOTs"]
        if known_files:
            word = Word.FAIL
    refused = [refusals for refusals in (walk.unlistable, walk.unreadable) if refusals.count]
    if refused:
        word = worse(word, Word.WARN)
        facts += [f"{many(some.count, some.noun)} {some.what}, such as {some.example}" for some in refused]
        remedies.append(f"$ setfacl -R -m u:{os.geteuid()}:rX {quoted}")
    return found(word, *facts, remedies=remedies)


def _why_not(walk: Walk, kept: str) -> list[str]:
    match walk.error:
        case FileNotFoundError():
            return ["no such directory", kept]
        case NotADirectoryError():
            return ["is not a directory"]
        case PermissionError():
            return [f"user {os.geteuid()} may not read {displayed(_closed(walk.root))}"]
    assert walk.error is not None
    return [f"cannot be read: {reason(walk.error)}", kept]


def _how_to_reach(walk: Walk, mounts: Mapping[bytes, Identity]) -> list[str]:
    match walk.error:
        case FileNotFoundError():
            was = f" (it was {mounts[b''].name})" if b"" in mounts else ""
            where = f": -v MUSIC:{displayed(walk.root)}:ro" if limits.is_container() else ""
            return [f"mount its volume{was}{where}, or name another ROOT"]
        case NotADirectoryError():
            return ["name the directory that holds the files"]
        case PermissionError():
            return [f"$ setfacl -m u:{os.geteuid()}:rx {shlex.quote(os.fsdecode(_closed(walk.root)))}"]
    return ["look at its disk or mount, and at the system's log"]


def _closed(path: bytes) -> bytes:
    """Return the first directory on the way that this user cannot pass, or the path itself."""
    parts = path.split(b"/")
    for count in range(2, len(parts)):
        above = b"/".join(parts[:count])
        if not os.access(above, os.X_OK, effective_ids=True):
            return above
    return path


def mounts_finding(walks: Sequence[Walk], mounts: list[Mount]) -> Finding:
    """Say from where notifications do not come; of the roots that answer."""
    remote, layers = [], []
    there = [walk.root for walk in walks if not walk.hangs and walk.error is None]
    if not there:
        return skip("mounts", "not looked at without a root")
    for root in there:
        real = os.path.realpath(root)
        holding = mount_of(real, mounts)
        for mount in mounts:
            is_below = below(mount.point, real) is not None and mount_of(mount.point, mounts) is mount
            if mount is not holding and not is_below:
                continue
            where = displayed(root if mount is holding else mount.point)
            if mount.is_remote:
                remote.append(f"{where} is {displayed(mount.fstype)} from {displayed(mount.source)}")
            elif mount.fstype == b"overlay" and mount is holding and limits.is_container():
                layers.append(where)
    data = {"remote": len(remote), "known": bool(mounts)}
    if not mounts:
        return skip("mounts", "this system does not tell what is mounted")
    if remote:
        told = f"no notifications from there: it is swept each {REMOTE_SWEEP_S:.0f} s"
        remedy = "nothing needs to be done; to hear of changes at once, run trackwatch where the disks are"
        return Finding("mounts", Word.WARN, (*remote, told), (remedy,), data)
    if layers:
        remedy = f"mount the library there: -v MUSIC:{layers[0]}:ro"
        return Finding("mounts", Word.WARN, (f"{', '.join(layers)}: the container's own, no volume",), (remedy,), data)
    return Finding("mounts", Word.OK, ("local: changes are told as they happen",), (), data)


def settling_finding(walks: Sequence[Walk]) -> Finding:
    """Say how a file is seen to be finished: by the kernel, where we may ask it, or by waiting."""
    samples = [os.path.join(walk.root, walk.sample) for walk in walks if walk.sample is not None]
    if not samples:
        return skip("settling", "there is no file to ask the kernel about")
    waits = f"a new file counts as finished after {UNKNOWN_WRITER_QUIET_S:g} s of quiet"
    # Whoever opens the file for writing at this very moment makes the kernel send it; its default is to end us.
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    try:
        refusal = next(filter(None, map(_lease_refusal, samples)), None)
    finally:
        signal.signal(signal.SIGIO, before)
    if refusal is None:
        return Finding("settling", Word.OK, ("the kernel tells when a file is finished",), (), {"leases": True})
    facts = [f"{refusal}: {waits}"]
    if "own" in refusal:
        facts.append("with the capability LEASE at once")
    return Finding("settling", Word.OK, tuple(facts), (), {"leases": False})


def _lease_refusal(sample: bytes) -> str | None:
    """Return why the kernel does not say who writes this file, None if it does."""
    try:
        with open(sample, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return None  # somebody writes it at this moment, and the kernel says so: that is what it is asked for
    except PermissionError:
        return f"user {os.geteuid()} does not own the files"
    except OSError as error:
        return f"no leases in {displayed(os.path.dirname(sample))} ({reason(error)})"
    return None


def inotify_finding(walks: Sequence[Walk], pid: int | None) -> Finding:
    """Compare the directories with what the kernel grants; `pid` is the running daemon's, whose watches are these."""
    watches, instances, queued = map(
        limits.inotify_limit, ("max_user_watches", "max_user_instances", "max_queued_events")
    )
    if watches is None or instances is None:
        return skip("inotify", "this system does not tell its limits")
    needed = sum(walk.directories for walk in walks)
    counted = "directory" if all(walk.done for walk in walks) else "directory or more"
    taken = limits.inotify_taken(besides=pid)
    data = {
        "directories": needed, "watches_taken": taken.watches, "instances_taken": taken.instances,
        "max_user_watches": watches, "max_user_instances": instances, "max_queued_events": queued,
    }  # fmt: skip
    facts = [many(needed, counted), f"limit {watches:,}"]
    if taken.watches:
        facts.append(f"{taken.watches:,} taken by {many(taken.programs, 'other program')}")
    wanted: list[tuple[str, int]] = []
    if needed > watches - taken.watches:
        facts.append("those that are left over are compared each few seconds instead")
        wanted.append(("max_user_watches", _power_above(2 * needed + taken.watches)))
    if instances - taken.instances < INSTANCES:
        facts.append(f"{max(0, instances - taken.instances)} of {instances} instances left, {INSTANCES} are needed")
        wanted.append(("max_user_instances", _power_above(taken.instances + 8 * INSTANCES)))
    if queued is not None and queued < QUEUED_EVENTS:
        facts.append(f"a queue of {queued:,}: bursts overflow it, and are found by sweeps")
        wanted.append(("max_queued_events", QUEUED_EVENTS))
    remedies = [f"$ sysctl fs.inotify.{name}={number}" for name, number in wanted]
    if remedies and limits.is_container():
        remedies.insert(0, "on the host, for this is its kernel:")
    if remedies:
        remedies.append("and in a file in /etc/sysctl.d, to keep it")
    return Finding("inotify", Word.WARN if wanted else Word.OK, tuple(facts), tuple(remedies), data)


def _power_above(number: int) -> int:
    return max(8192, 1 << number.bit_length()) if number > 1024 else 1 << max(8, number.bit_length())
