"""`trackwatch check`: look at everything before it hurts, with the settings and as the user of this process.

Nothing is made or changed: no folder, no file, no exchange, no message; a daemon that runs is not disturbed. Whatever
may hang (a mount, a name server, a broker) is given a time, and then told as what it is.
"""

import errno
import os
import resource
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from trackwatch import __version__, catalogue, limits, status
from trackwatch.clock import wall_clock_us
from trackwatch.database import open_beside, running_pid
from trackwatch.dialogue import within
from trackwatch.errors import StoreError, StoreOutdated
from trackwatch.event import displayed, rfc3339
from trackwatch.finding import LEAST_ROOM_BYTES, Finding, Word, many, reason, room_bytes, skip, worse
from trackwatch.mounts import Mount, mount_of, read_mounts
from trackwatch.outlet import outlet_findings
from trackwatch.probe import ADDRESS_SPACE_BYTES
from trackwatch.settings import Settings, Usable
from trackwatch.status import duration, size
from trackwatch.survey import WALK_S, Walk, inotify_finding, mounts_finding, root_finding, settling_finding
from trackwatch.trust import Identity
from trackwatch.values import below

# An event, its place in the catalogue, and the indexes of both: 2.2 kB were measured, and names may be longer.
STATE_BYTES_PER_FILE = 3_000
# With less the next import, or a broker's long absence, may fill the disk.
ROOM_BYTES = 1_000_000_000
# For the state folder, milliseconds as a rule; counting the events of a large outbox takes a second or two.
STATE_S = 15.0
# What the daemon takes at work, and each process that reads files beside it.
DAEMON_BYTES, PROCESS_BYTES = 100_000_000, 20_000_000
# Descriptors and threads, in the daemon and for each process.
DAEMON_FILES, PROCESS_FILES = 128, 8
DAEMON_THREADS, PROCESS_THREADS = 40, 4
# Before this nobody can have installed this release.
BUILT_US = 1_763_000_000_000_000  # November 2025
# Of a file system: whose content goes with the container, or with the machine's next start.
_PASSING_TYPES = {
    b"tmpfs": "in memory: it is lost when the machine restarts",
    b"ramfs": "in memory: it is lost when the machine restarts",
}


def check(usable: Usable) -> Iterator[Finding]:
    """Look at everything, and yield what is found as it is found. From the main thread: it sets a signal's action."""
    yield from _settings(usable)
    settings, wrong = usable.settings, usable.wrong
    if settings is None:
        yield skip("others", "not looked at before the settings are mended")
        yield _clock(None)
        return
    walks = [] if "roots" in wrong else [Walk(root, settings.patterns) for root in settings.roots]
    ends_at = time.monotonic() + WALK_S
    state = _State(settings.state_dir, is_known="state_dir" not in wrong)
    if "state_dir" not in wrong:
        yield _daemon(settings, state)
    if not walks:
        yield _unasked("root")
    mounts = read_mounts()
    for walk in walks:
        known = state.roots.get(walk.root, (0, {}))
        yield root_finding(walk, ends_at, mounts, known, has_patterns=not wrong & {"include", "exclude"})
    if walks:
        yield mounts_finding(walks, mounts)
        yield settling_finding(walks)
        yield inotify_finding(walks, state.pid)
    yield _unasked("state") if "state_dir" in wrong else _state(settings, state, walks, mounts)
    if any(name.startswith("rabbitmq_") or name == "to" for name in wrong):
        yield _unasked("broker")
    else:
        yield from outlet_findings(settings.sink, state.running)
    if "http" in wrong:
        yield _unasked("http")
    elif settings.http is not None:
        yield _http(settings.http, state.running)
    yield _clock(state)
    yield _processes(settings)
    yield _memory(settings)


def _unasked(subject: str) -> Finding:
    return skip(subject, "not looked at: its setting is wrong")


def _settings(usable: Usable) -> Iterator[Finding]:
    for problem in usable.problems:
        yield Finding("settings", Word.FAIL, (problem,))
    for warning in usable.settings.warnings if usable.settings else ():
        yield Finding("settings", Word.WARN, (warning,))


# ---- the state, and the daemon that has it


class _State:
    """What the state folder tells: who has it, what a running daemon says, what the catalogue knows. Looked at once."""

    def __init__(self, folder: Path, *, is_known: bool) -> None:
        self.folder = folder
        self.pid: int | None = None  # who holds it; 0 if it cannot be told which
        self.report: dict[str, Any] | None = (
            None  # what `trackwatch status` says; None without a state that can be read
        )
        self.error: StoreError | None = None
        self.roots: dict[bytes, tuple[int, dict[bytes, Identity]]] = {}  # files, and the mounts it consisted of
        self.hangs = False
        if is_known:
            try:
                within(STATE_S, self._look)
            except TimeoutError:
                self.hangs = True

    @property
    def running(self) -> dict[str, Any]:
        """What `trackwatch status` says, if the daemon runs."""
        return self.report or {} if self.pid is not None else {}

    def _look(self) -> None:
        self.pid = running_pid(self.folder)
        if not os.path.lexists(self.folder / "trackwatch.db"):
            return
        try:
            self.report = status.collect(self.folder, problems_max=0)
            with open_beside(self.folder) as conn:
                for total in catalogue.totals(conn):
                    mounts = catalogue.root_mounts(conn, total.root.id)
                    identities = {path: Identity(*row) for path, row in mounts.items()}
                    self.roots[total.root.path] = total.files, identities
        except StoreError as error:
            self.error = error


def _daemon(settings: Settings, state: _State) -> Finding:
    if state.pid is None:
        return skip("daemon", "not running")
    known = state.report or {}
    facts = [f"running, pid {state.pid or 'unknown'}", f"trackwatch {known['version']}" if known.get("version") else ""]
    word = Word.OK
    remedies: list[str] = []
    if known.get("version") not in (None, __version__):
        word = Word.WARN
        facts.append(f"and this is {__version__}")
        remedies.append("restart it, so that it is the one that is installed")
    watched = {root["path"] for root in known.get("roots", ()) if root["state"] not in ("not watched", "unknown")}
    ours = {displayed(root) for root in settings.roots}
    other = []
    if watched and watched != ours:
        other.append("watches " + ", ".join(sorted(watched)))
    target = (known.get("broker") or {}).get("target")
    if target and target != settings.sink.display:
        other.append(f"sends to {target}")
    if other:
        word = Word.WARN
        facts.append("has other settings: it " + ", and ".join(other))
        remedies.append(
            "check with the daemon's own settings: in its container, or with the environment of its service"
        )
    if known.get("state") == "silent":
        word = Word.WARN
        facts.append("silent: it is paused, or hangs")
        remedies.append("$ trackwatch status")
    return Finding("daemon", word, tuple(filter(None, facts)), tuple(remedies), {"pid": state.pid, "running": True})


def _state(settings: Settings, state: _State, walks: Sequence[Walk], mounts: list[Mount]) -> Finding:
    folder = settings.state_dir
    if state.hangs:
        hint = "look at its disk, and at the system's log, or set TRACKWATCH_STATE_DIR to a folder on a local disk"
        return Finding("state", Word.FAIL, (str(folder), f"does not answer within {STATE_S:.0f} s"), (hint,))
    shown, quoted = str(folder), shlex.quote(str(folder))
    there = _nearest(os.fsencode(folder))
    exists = there == os.fsencode(folder)
    mount = mount_of(os.path.realpath(there), mounts)
    fstype = mount.fstype.decode("ascii", "replace") if mount else ""
    data: dict[str, Any] = {"path": shown, "exists": exists, "fstype": fstype or None}

    def found(word: Word, *facts: str, remedies: Sequence[str] = ()) -> Finding:
        return Finding("state", word, tuple(filter(None, (shown, *facts))), tuple(remedies), data)

    elsewhere = "or set TRACKWATCH_STATE_DIR to a folder on a local disk"
    if mount is not None and mount.is_remote:
        return found(
            Word.FAIL, f"{fstype} from {displayed(mount.source)}", "SQLite is not safe on it",
            remedies=["set TRACKWATCH_STATE_DIR to a folder on a local disk"],
        )  # fmt: skip
    user = os.geteuid()
    if exists and not os.path.isdir(there):
        return found(Word.FAIL, "is a file, not a folder", remedies=[f"$ rm {quoted}", elsewhere])
    room = room_bytes(there)
    try:
        read_only = bool(os.statvfs(there).f_flag & os.ST_RDONLY)
    except OSError:
        read_only = False
    if read_only:
        remedy = (
            "mount a volume there that can be written"
            if limits.is_container()
            else f"mount it for writing, {elsewhere}"
        )
        return found(Word.FAIL, "its file system is read-only", remedies=[remedy])
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        if exists:
            owner = os.stat(there).st_uid
            return found(
                Word.FAIL, f"belongs to user {owner}, and user {user} cannot write it",
                remedies=[f"$ chown -R {user} {quoted}", f"or check, and run, as user {owner}"],
            )  # fmt: skip
        return found(
            Word.FAIL, f"is not there, and user {user} cannot make it in {displayed(there)}",
            remedies=[f"$ install -d -o {user} {quoted}", elsewhere],
        )  # fmt: skip
    files = max(sum(walk.files for walk in walks), sum(count for count, _ in state.roots.values()))
    data |= {"free_bytes": room}
    facts = [fstype, f"{size(room)} free" if room is not None else ""]
    word = Word.OK
    remedies: list[str] = []

    def warn(fact: str, *todo: str) -> None:
        nonlocal word
        word = worse(word, Word.WARN)
        facts.append(fact)
        remedies.extend(todo)

    if state.report is not None:
        events = state.report["outbox"]
        facts.append(f"{events['pending']:,} events pending")
    elif isinstance(state.error, StoreOutdated):
        facts.append("of an older trackwatch: the next start brings it up to date")
    elif state.error is not None:
        warn(str(state.error).removeprefix(f"the state database {str(folder / 'trackwatch.db')!r} "))
        word = Word.FAIL
    else:
        facts.append("empty yet" if exists else "is made at the first start")
    needed = 0 if state.report is not None else files * STATE_BYTES_PER_FILE
    if room is not None and room < max(LEAST_ROOM_BYTES, needed):
        why = f"{files:,} files take some {size(needed)}" if needed > LEAST_ROOM_BYTES else "it is nearly full"
        warn(why, "make room on its disk, " + elsewhere)
        word = Word.FAIL
    elif room is not None and room < max(ROOM_BYTES, 3 * needed):
        warn("not much for events that wait while the broker is away", "make room on its disk, " + elsewhere)
    for path in (folder, folder / "trackwatch.db"):
        if os.path.lexists(path) and (owner := os.stat(path).st_uid) != user:
            if os.access(path, os.W_OK, effective_ids=True):
                command = f"setpriv --reuid={owner} --clear-groups trackwatch check"
                warn(f"belongs to user {owner}: what is told here holds for user {user}", f"$ {command}")
            else:
                warn(
                    f"{path.name} belongs to user {owner}, and user {user} cannot write it",
                    f"$ chown -R {user} {quoted}",
                )
                word = Word.FAIL
            break
    if mount is not None and mount.fstype in _PASSING_TYPES:
        warn(_PASSING_TYPES[mount.fstype], "put it on a disk: the library is announced again without it")
    elif mount is not None and mount.fstype == b"overlay" and limits.is_container():
        warn("goes with the container", f"give it a volume: -v trackwatch:{shown}")
    for root in settings.roots:
        if below(os.fsencode(folder), root) is not None:
            warn(f"lies in root {displayed(root)}: each commit wakes the watch", elsewhere.removeprefix("or "))
    return found(word, *facts, remedies=remedies)


def _nearest(path: bytes) -> bytes:
    """Return the path, or the nearest directory above it that is there."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def _http(address: tuple[str, int], running: Mapping[str, Any]) -> Finding:
    host, port = address
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    live = running.get("http") or {}
    if live.get("address") == shown and live.get("state") == "listening":
        return Finding("http", Word.OK, (shown, "the running daemon listens there"), (), {"address": shown})
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(place)
            listening.listen()
    except OSError as error:
        remedy = "set TRACKWATCH_HTTP to another port"
        if error.errno == errno.EADDRINUSE:
            remedy = f"$ ss -ltnp 'sport = :{port}'"
        elif error.errno == errno.EACCES:
            remedy = "set TRACKWATCH_HTTP to a port above 1023"
        elif error.errno == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
            remedy = "set TRACKWATCH_HTTP to an address of this machine (127.0.0.1, or 0.0.0.0 for all)"
        return Finding("http", Word.FAIL, (shown, reason(error)), (remedy,), {"address": shown})
    return Finding("http", Word.OK, (shown, "is free"), (), {"address": shown})


def _clock(state: _State | None) -> Finding:
    now_us = wall_clock_us()
    kept = limits.is_clock_kept()
    data = {"now": rfc3339(now_us), "synchronised": kept}
    last = (state.report or {}).get("outbox", {}).get("last_event_at") if state else None
    last_us = int(datetime.fromisoformat(last).timestamp() * 1e6) if last else 0
    mend = "$ timedatectl set-ntp true"
    if now_us < max(last_us, BUILT_US):
        than = f"the last event ({last})" if last_us > BUILT_US else "this release"
        ago = duration((max(last_us, BUILT_US) - now_us) / 1e6)
        return Finding("clock", Word.FAIL, (f"{data['now']}: {ago} before {than}",), (mend,), data)
    told = time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(now_us / 1e6))
    if kept is False:
        remedies = ("on the host:",) if limits.is_container() else ()
        fact = "nobody keeps it right (no NTP): the events' times may be wrong"
        return Finding("clock", Word.WARN, (told, fact), (*remedies, mend), data)
    return Finding("clock", Word.OK, (told, "kept right by NTP" if kept else ""), (), data)


def _processes(settings: Settings) -> Finding:
    processes = settings.probe_processes
    files = limits.soft_limit(resource.RLIMIT_NOFILE)
    threads = limits.soft_limit(resource.RLIMIT_NPROC)
    left = limits.processes_left()
    needed_files = DAEMON_FILES + PROCESS_FILES * processes
    needed_threads = DAEMON_THREADS + PROCESS_THREADS * processes
    data = {"open_files": files, "needed_open_files": needed_files, "needed_threads": needed_threads}
    facts, remedies = [f"{'any number of' if files is None else f'{files:,}'} open files"], []
    word = Word.OK
    if files is not None and files < needed_files:
        word = Word.FAIL
        facts.append(f"{needed_files} are needed")
        remedies += ["$ ulimit -n 4096", "systemd: LimitNOFILE=4096; docker: --ulimit nofile=4096"]
    # The system does not count what is root's.
    if threads is not None and os.geteuid() != 0:
        room = threads - limits.threads_taken()
        left = room if left is None else min(left, room)
    if left is not None and left < needed_threads:
        word = Word.FAIL
        facts.append(f"{max(0, left)} more processes and threads, {needed_threads} are needed")
        remedies.append("raise it: ulimit -u, systemd's TasksMax=, docker's --pids-limit")
    granted = limits.processors()
    if granted is not None and granted < processes / 2:
        word = worse(word, Word.WARN)
        facts.append(f"{granted:g} processors for {processes} processes that read files")
        remedies.append(f"TRACKWATCH_PROBE_PROCESSES={max(1, round(granted))}")
    elif word is Word.OK:
        facts.append(f"{many(processes, 'process')} to read files")
    return Finding("limits", word, tuple(facts), tuple(remedies), data)


def _memory(settings: Settings) -> Finding:
    needed = DAEMON_BYTES + PROCESS_BYTES * (settings.probe_processes + 1)
    limit = limits.memory_bytes()
    data = {"limit_bytes": limit, "needed_bytes": needed}
    facts: tuple[str, ...]
    ceiling = limits.hard_limit(resource.RLIMIT_AS)
    if ceiling is not None and ceiling < ADDRESS_SPACE_BYTES:
        facts = (
            f"a process may have {size(ceiling)}, and to read tags it sets its own limit, {size(ADDRESS_SPACE_BYTES)}",
        )
        return Finding("memory", Word.FAIL, facts, ("$ ulimit -v unlimited",), data)
    if limit is None:
        return skip("memory", "this system does not tell how much there is")
    facts = (f"{size(limit)} to be had", f"some {size(needed)} needed")
    if limit < needed:
        remedies = ("give it more (docker: --memory, systemd: MemoryMax=), or lower TRACKWATCH_PROBE_PROCESSES",)
        return Finding("memory", Word.FAIL, facts, remedies, data)
    if limit < needed * 3 // 2:
        remedies = ("give it half as much again: a file with much in its tags may need 512 MB for a moment",)
        return Finding("memory", Word.WARN, facts, remedies, data)
    return Finding("memory", Word.OK, facts, (), data)
