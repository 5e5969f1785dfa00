"""What the system grants this process, and how much of it is taken: inotify, open files, processes, memory, the clock.

Read from /proc and the control groups, and asked of the kernel; what a system does not tell is None, and stops nobody.
"""

import contextlib
import ctypes
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass

# `struct timex` of <linux/timex.h> on 64 bits: where its status stands, and the bit that says that nobody keeps the
# clock right.
_TIMEX_BYTES, _STATUS_OFFSET, _UNSYNCHRONISED = 256, 40, 0x40
_GROUPS = "/sys/fs/cgroup"
# Version 1 has no word for "no limit", but a number close to the largest.
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Taken:
    """How much of the inotify limits of this user other programs have taken; those that can be looked into."""

    watches: int = 0
    instances: int = 0
    programs: int = 0


def inotify_limit(name: str) -> int | None:
    """Return `max_user_watches`, `max_user_instances` or `max_queued_events`."""
    return _number(f"/proc/sys/fs/inotify/{name}")


def inotify_taken(*, besides: int | None) -> Taken:
    """Return what the programs of this user have taken, besides one process."""
    watches = instances = programs = 0
    for pid in _own_processes():
        if pid == besides:
            continue
        held = list(_inotify_watches(pid))
        watches, instances, programs = watches + sum(held), instances + len(held), programs + bool(held)
    return Taken(watches, instances, programs)


def _inotify_watches(pid: int) -> Iterator[int]:
    """Yield how many watches each inotify instance of a process has; nothing if we may not look, or it has ended."""
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/fd/{descriptor}") == "anon_inode:inotify":
                    with open(f"/proc/{pid}/fdinfo/{descriptor}", "rb") as lines:
                        yield sum(line.startswith(b"inotify wd:") for line in lines)


def threads_taken() -> int:
    """Return how many threads the processes of this user have: what RLIMIT_NPROC counts."""
    count = 0
    for pid in _own_processes():
        with contextlib.suppress(OSError):
            count += len(os.listdir(f"/proc/{pid}/task"))
    return count


def _own_processes() -> Iterator[int]:
    user = os.geteuid()
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                    yield int(name)


def soft_limit(number: int) -> int | None:
    """Return the limit of this process that counts now (`resource.RLIMIT_…`), None for none."""
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft


def hard_limit(number: int) -> int | None:
    """Return up to what this process may set a limit of its own, None for any."""
    _, hard = resource.getrlimit(number)
    return None if hard == resource.RLIM_INFINITY else hard


def memory_bytes() -> int | None:
    """Return how much memory this process may have: by its control group, or all that the machine has."""
    found = [_number(f"{group}/memory.max") for group in _groups("")]
    found += [_number(f"{group}/memory.limit_in_bytes") for group in _groups("memory")]
    with contextlib.suppress(ValueError, OSError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min((limit for limit in found if limit is not None and limit < _NO_LIMIT_BYTES), default=None)


def processors() -> float | None:
    """Return how many processors the control group grants, which may be a part of one; None if it sets no limit."""
    granted = []
    for group in _groups(""):
        with contextlib.suppress(OSError, ValueError), open(f"{group}/cpu.max") as file:
            quota, period = file.read().split()
            if quota != "max":
                granted.append(int(quota) / int(period))
    for group in _groups("cpu"):
        quota_us, period_us = _number(f"{group}/cpu.cfs_quota_us"), _number(f"{group}/cpu.cfs_period_us")
        if quota_us and period_us and quota_us > 0:
            granted.append(quota_us / period_us)
    return min(granted, default=None)


def processes_left() -> int | None:
    """Return how many more processes and threads the control group grants; None if it sets no limit."""
    left = []
    for group in (*_groups(""), *_groups("pids")):
        limit, taken = _number(f"{group}/pids.max"), _number(f"{group}/pids.current")
        if limit is not None and taken is not None:
            left.append(limit - taken)
    return min(left, default=None)


def _groups(controller: str) -> list[str]:
    """Return the directories of our control group and those above it; an empty controller stands for version 2."""
    top = f"{_GROUPS}/{controller}" if controller else _GROUPS
    path = "/"
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as lines:
        for line in lines:
            _, names, path_of_it = line.rstrip("\n").split(":", 2)
            if controller in names.split(","):
                path = path_of_it
    found = []
    # In a container the path is often that of the host, and not to be found here: then the top one is ours.
    while path.startswith("/"):
        found.append(top + path.rstrip("/"))
        if path == "/":
            break
        path = os.path.dirname(path)
    return found


def is_clock_kept() -> bool | None:
    """Whether somebody (NTP, mostly) keeps the clock right, by the kernel's account."""
    try:
        adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    except (AttributeError, OSError, TypeError):
        return None
    if ctypes.sizeof(ctypes.c_long) != 8:
        return None
    question = ctypes.create_string_buffer(_TIMEX_BYTES)  # all zeros: change nothing, only tell
    if adjtimex(question) < 0:
        return None
    status = int.from_bytes(question.raw[_STATUS_OFFSET : _STATUS_OFFSET + 4], "little")
    return not status & _UNSYNCHRONISED


def is_container() -> bool:
    """Whether this looks like the inside of a container, where what concerns the kernel is set outside."""
    marks = ("/.dockerenv", "/run/.containerenv")
    return any(map(os.path.exists, marks)) or bool({"container", "KUBERNETES_SERVICE_HOST"} & os.environ.keys())


def _number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
