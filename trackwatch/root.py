"""How a root stands: its state in a word, what was found in it, and what of it cannot be watched.

starting -> ok; ok -> unavailable when it, or a mount it consists of, is not what it was, and back; ok -> suspect when
more than half of it vanished at once, and back when a second sweep a minute later agrees, or a person.
"""

import os
from dataclasses import dataclass, field
from enum import StrEnum

import structlog

from trackwatch.meters import Total
from trackwatch.track import Root

# Notifications do not come from other machines: a root on a network mount is swept at least this often.
REMOTE_SWEEP_S = 60.0

log = structlog.get_logger()


class RootWord(StrEnum):
    """The state of a root in one word, the same in status, log, metrics and runbook."""

    STARTING = "starting"
    OK = "ok"
    UNAVAILABLE = "unavailable"
    SUSPECT = "suspect"


@dataclass(slots=True)
class RootState:
    """How one root stands; written by the sweeper's tasks, read by others."""

    root: Root
    since_us: int
    word: RootWord = RootWord.STARTING
    reason: str = ""
    fstype: str = ""
    is_remote: bool = False
    is_sweeping: bool = False
    in_haste: bool = False  # the sweep under way has a reason other than that it is time
    is_concluding: bool = False  # it has seen everything, and tells what is missing
    is_swept: bool = False  # to its end, at least once in this process
    suspect_since: float | None = None  # by the monotonic clock
    files: int = 0  # wanted ones, met by the sweep under way or the last one
    size_bytes: int = 0
    differing: int = 0  # of those: new, or not as they were
    sweep_seconds: float = 0.0  # the last one
    sweeps: Total = field(default_factory=Total)  # all of this process
    files_listed: int = 0  # wanted ones, counted before the first sweep compares them
    bytes_listed: int = 0
    listed: int = 0  # directories, by the sweep under way or the last one
    # Every directory, absolute, with the modification time that it had when it was last compared.
    mtimes: dict[bytes, int] = field(default_factory=dict)
    blind: set[bytes] = field(default_factory=set)  # absolute; directories that cannot be watched
    odd: set[bytes] = field(default_factory=set)  # of those: never, for the names in them
    unlistable: set[bytes] = field(default_factory=set)  # relative
    told_unlistable: set[bytes] = field(default_factory=set)  # of those and the last sweep's: what the log has told

    @property
    def directories(self) -> int:
        """How many directories it has; a sweep goes through `mtimes` from the beginning."""
        return self.listed if self.is_sweeping else len(self.mtimes)

    def say(self, word: RootWord, reason: str = "", *, now_us: int) -> None:
        """Change the state; log it if it is another word."""
        was, self.word, self.reason = self.word, word, reason
        if was is word:
            return
        self.since_us = now_us
        if word is RootWord.OK and was is not RootWord.STARTING:
            log.info("root ok again", root=self.root.path)
        elif word is RootWord.UNAVAILABLE:
            log.error("root unavailable", root=self.root.path, reason=reason)
        elif word is RootWord.SUSPECT:
            log.error("root suspect", root=self.root.path, reason=reason)

    def introduce(self, directories: int) -> None:
        """Log what was found when it was listed first."""
        path, fstype, files = self.root.path, self.fstype, self.files_listed
        found = f"{files:,} files in " if files else ""
        found += f"{directories:,} directories"
        remote = f"swept each {REMOTE_SWEEP_S:.0f} s, notifications do not come from there" if self.is_remote else ""
        words = " · ".join(part for part in (os.fsdecode(path), fstype, found, remote) if part)
        # Where an earlier process has counted them, they are not counted again.
        log.info("root", root=path, fstype=fstype, files=files or None, directories=directories, words=words)
