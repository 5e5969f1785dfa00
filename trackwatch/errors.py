"""Everything that can go wrong, sorted by what it stops: a file, a root, the broker, or the daemon.

A message names the deed, the object, the cause and the remedy, in one line, and never holds a password.
Adapters translate foreign exceptions into these at the edge, so that nothing else has to know aio-pika, sqlite3 or
mutagen.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """What the process says when it ends; public, and the same for every command."""

    OK = 0
    DEFECT = 1  # also `trackwatch status`: degraded
    USAGE = 2
    STORE = 3
    NOT_RUNNING = 4  # or silent: it hangs


class TrackwatchError(Exception):
    """Root of all errors that trackwatch raises on purpose."""

    exit_code = ExitCode.DEFECT


class FileProblem(TrackwatchError):
    """One file cannot be described; the others go on, and this one is tried again at its next change or sweep."""


class RootUnavailable(TrackwatchError):
    """One root cannot be looked at: nothing is concluded about its files until it is back."""


class BrokerUnavailable(TrackwatchError):
    """The sink is away, and comes back by itself: try again with backoff."""


class BrokerRefused(TrackwatchError):
    """The sink answers, but a person must change something (credentials, virtual host, exchange): try again slowly."""


class SinkClosed(TrackwatchError):
    """Whoever reads our output has gone for good (a closed pipe): stop quietly, what was not read stays pending."""

    exit_code = ExitCode.OK


class ConfigError(TrackwatchError):
    """The command line or the environment cannot be used; `problems` holds every reason, one line each."""

    exit_code = ExitCode.USAGE

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StoreError(TrackwatchError):
    """The state cannot be used (locked, foreign, newer, damaged, not writable): the daemon does not start, or ends."""

    exit_code = ExitCode.STORE


class StoreOutdated(StoreError):
    """The state was written by an older trackwatch: the next start of the daemon brings it up to date."""


class StoreBusy(TrackwatchError):
    """The state cannot take a write now (disk full, locked by another program): wait, and try the same again."""
