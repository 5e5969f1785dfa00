"""The log: JSON lines for machines, or words for people. The same events, the same fields, on standard error.

The name of an event is constant, what varies is a field; ops/logs.md lists them all. An event may carry `words`: what
people read instead of its fields. The levels:

    debug     each file, and what goes on inside
    info      the daemon's life, its progress, and what is well again
    warning   heals by itself, but somebody may want to know
    error     needs a person
    critical  the last words: what has ended the program

A change of state is one line. Whatever comes again and again is told a few times, then once a minute with how many
there were besides (`held_back`); see throttle.py. No line holds a password, and none can be forged by a file's name.
"""

import json
import logging
import math
import os
import re
import select
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import structlog

from trackwatch.errors import ConfigError, ExitCode, TrackwatchError
from trackwatch.event import displayed
from trackwatch.throttle import Throttle
from trackwatch.words import visible

if TYPE_CHECKING:
    from rich.console import Console

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "red"}
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
# What journald takes as a line's priority, when it stands at its beginning.
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
# As many as there are causes for, and each is told once; or bounded by what tells them.
_NEVER_HELD = {"setting", "importing", "summary", "fatal"}
# Docker breaks lines of more than 16 KB in two.
_LONGEST_CHARS = 6000
# How long a reader of ours may take nothing when it has told us not to wait for it.
_PATIENCE_S = 1.0

# A net below what every module sees to itself: the password in whatever looks like a URL.
_PASSWORD = re.compile(r"(\w://[^\s:/@\"'\\]*):[^\s\"']*@")
# What Python makes of a byte in a name that is not UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")
# JSON lets these stand as they are, terminals and readers of lines do not.
_UNSAFE = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

Event = MutableMapping[str, Any]

log = structlog.get_logger()


class Log:
    """The log of this process, with standard error as its only place; `set_up` sends everything there.

    `terminal` is what people look at there, None where it is none.
    """

    def __init__(self, terminal: "Console | None") -> None:
        self.as_json = False
        self._terminal = terminal
        self._is_set_up = False
        self._in_journal = _is_journal()
        self._throttle: Throttle[Event] = Throttle()
        self._lock, self._writing = threading.Lock(), threading.Lock()  # threads log as well
        self._instance: str | None = None

    def set_up(self, level: str, log_format: str) -> None:
        """Log from this level on, as `json`, `console`, or `auto`: console on a terminal, JSON elsewhere."""
        self.as_json = log_format == "json" or (log_format != "console" and self._terminal is None)
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                self._admit,
                lambda _logger, level, event: ((self._render(event),), {"level": level}),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
            logger_factory=lambda *_: _Lines(self._write),
            cache_logger_on_first_use=False,
        )
        self._is_set_up = True

    def take_in_libraries(self) -> None:
        """Let what libraries and Python itself would print become events of this log; for the whole process."""
        logging.raiseExceptions = False
        logging.getLogger().addHandler(_FromLibraries())
        logging.captureWarnings(True)
        sys.unraisablehook = lambda told: _of_python(told.err_msg or "exception ignored", told.exc_value)
        threading.excepthook = lambda told: _of_python("a thread has ended", told.exc_value)

    def tell_held(self) -> None:
        """Tell what was held back and whose time has come; to be called every few seconds."""
        with self._lock:
            due = list(self._throttle.take_held(time.monotonic()))
        self._tell(due)

    @contextmanager
    def last_words(self, log_format: str) -> Iterator[None]:
        """Let what ends the program be the log's last line where that is JSON; people read it from the command line.

        `log_format` is what to go by before `set_up` was called. Raises SystemExit instead of what was raised.
        """
        try:
            yield
        except (Exception, BaseExceptionGroup) as error:
            if not self._is_set_up:
                self.set_up("info", log_format)
            self._tell_all()
            if not self.as_json:
                raise
            raise SystemExit(self._tell_fatal(error)) from None
        finally:
            self._tell_all()

    def _tell_fatal(self, error: BaseException) -> int:
        story: str | None = None
        problems: tuple[str, ...] | None = None
        known, unknown = error.split(TrackwatchError) if isinstance(error, BaseExceptionGroup) else (error, None)
        while isinstance(known, BaseExceptionGroup):
            known = known.exceptions[0]
        if unknown is not None or not isinstance(known, TrackwatchError):
            reason, exit_code = _one_line(error), ExitCode.DEFECT
            story = "".join(traceback.format_exception(error)).rstrip()
        else:
            reason, exit_code = str(known).replace("\n", "; "), known.exit_code
            if isinstance(known, ConfigError):
                problems = known.problems
        instance, code = self._instance, int(exit_code)
        log.critical("fatal", reason=reason, exit_code=code, problems=problems, exception=story, instance=instance)
        return int(exit_code)

    def _admit(self, _logger: object, level: str, event: Event) -> Event:
        """Let a line pass, or keep it back (see throttle.py). Raises DropEvent."""
        self._instance = event.get("instance", self._instance)
        name = str(event["event"])
        if level == "debug" or name in _NEVER_HELD:
            return event
        # By the first word, and the root if it is one's: "broker unavailable" and "broker connected" are one subject.
        subject = f"{name.partition(' ')[0]} {event.get('root', '')}"
        with self._lock:
            held = self._throttle.take(subject, name, event, time.monotonic())
        if held is None:
            raise structlog.DropEvent
        return {**event, "held_back": held} if held else event

    def _tell(self, held: list[tuple[Event, int]]) -> None:
        for event, others in held:
            self._write(self._render({**event, "held_back": others} if others else event), event["level"])

    def _tell_all(self) -> None:
        with self._lock:
            held = list(self._throttle.take_all())
        self._tell(held)

    def _render(self, event: Event) -> str:
        plain: dict[str, Any] = {name: _plain(value) for name, value in event.items()}
        return _as_json(plain) if self.as_json else self._as_words(plain)

    def _as_words(self, event: dict[str, Any]) -> str:
        level, name, at = event.pop("level"), event.pop("event"), event.pop("timestamp")
        event.pop("instance", None)
        story, held = event.pop("exception", None), event.pop("held_back", 0)
        words = event.pop("words", None) or _fields(event)
        if held:
            words += f" · and {held:,} more before" if words else f"and {held:,} more before"
        text = visible(f"{name:<9} {words}".rstrip())
        is_bare = self._terminal is None or self._terminal.no_color
        if is_bare and _LEVELS[level] >= _LEVELS["warning"]:
            text = f"{level}: {text}"
        if self._in_journal:
            text = f"<{_PRIORITIES[level]}>{text}"
        elif self._terminal is None:
            text = f"{at[:19]}Z {text}"
        if story:
            text += "".join(f"\n    {visible(line)}" for line in story.splitlines())
        return _PASSWORD.sub(r"\1@", text)

    def _write(self, line: str, level: str) -> None:
        """Write one line, or lose it: nobody can be told, and the daemon does not end for want of a log."""
        with self._writing, suppress(OSError, ValueError):
            if self._terminal is not None and not self.as_json:
                from rich.text import Text  # where there is a terminal it has been imported

                # Through rich, so that a progress bar below stays in one piece.
                self._terminal.print(Text(line, style=_STYLES[level]))
            elif sys.stderr is not None:
                encoding = "utf-8" if self.as_json else sys.stderr.encoding
                _write_all(sys.stderr.fileno(), f"{line}\n".encode(encoding, "replace"))


class _Lines:
    """What structlog takes for a logger."""

    def __init__(self, write: Callable[[str, str], None]) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = write


class _FromLibraries(logging.Handler):
    """Makes events of what libraries log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        reason, story = record.getMessage().strip(), record.exc_info or False
        if record.levelno < logging.ERROR:
            log.warning("library", logger=record.name, reason=reason, exc_info=story)
        else:
            log.error("library", logger=record.name, reason=reason, exc_info=story)


def _of_python(what: str, error: BaseException | None) -> None:
    reason = what if error is None else f"{what}: {_one_line(error)}"
    log.error("library", logger="python", reason=reason, exc_info=error or False)


def _as_json(event: dict[str, Any]) -> str:
    event.pop("words", None)
    first = {name: event.pop(name) for name in ("event", "level", "timestamp", "instance") if name in event}
    line = _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(first | event, ensure_ascii=False))
    return _PASSWORD.sub(r"\1@", line)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it; what is not UTF-8 is shown as everywhere (see `displayed`)."""
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else None
        case bytes():
            return _shortened(displayed(value))
        case Mapping():
            return {str(name): _plain(item) for name, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return _shortened(_SURROGATE.sub("\ufffd", str(value)))


def _shortened(text: str) -> str:
    half = _LONGEST_CHARS // 2
    return text if len(text) <= _LONGEST_CHARS else f"{text[:half]} … {text[-half:]}"


def _fields(event: Mapping[str, Any]) -> str:
    fields = " ".join(f"{name}={value}" for name, value in event.items() if name != "reason")
    return " · ".join(part for part in (event.get("reason"), fields) if part)


def _one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return " ".join(f"{type(error).__name__}: {error}".split())


def _is_journal() -> bool:
    """Whether standard error goes to journald, which notes time and priority itself."""
    with suppress(OSError, ValueError):
        stat = os.fstat(2)
        return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
    return False


def _write_all(descriptor: int, data: bytes) -> None:
    """Write to the descriptor itself: a buffer would keep what cannot be written, and fail again at the end."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view) :]
        except BlockingIOError:  # whoever shares it with us has set O_NONBLOCK
            if not select.select([], [descriptor], [], _PATIENCE_S)[1]:
                return
