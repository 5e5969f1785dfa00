"""How the log looks: JSON lines for machines, or words for people. The same events, the same fields.

An event of the log may carry `words`: what people read instead of its fields. The log is for standard error; standard
output is the events', or that of a command whose answer it is.
"""

import sys
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import structlog
from rich.console import Console
from rich.markup import escape

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "red"}
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def set_up_log(level: str, *, as_json: bool, console: Console) -> None:
    """Send the log to standard error from now on."""
    render = _render_json() if as_json else _render_words
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _decoded,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr) if as_json else _ConsoleLogger.factory(console),
        cache_logger_on_first_use=False,
    )


def _decoded(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, bytes):
            event[name] = value.decode("utf-8", "replace")
    return event


def _render_json() -> Callable[[Any, str, MutableMapping[str, Any]], str]:
    as_json = structlog.processors.JSONRenderer(ensure_ascii=False)

    def render(logger: Any, method: str, event: MutableMapping[str, Any]) -> str:
        event.pop("words", None)
        return str(as_json(logger, method, event))

    return render


def _render_words(_logger: object, _method: str, event: MutableMapping[str, Any]) -> str:
    style = _STYLES.get(str(event.pop("level", "info")), "")
    name = str(event.pop("event"))
    event.pop("timestamp", None)
    words = event.pop("words", None)
    rest = str(words) if words is not None else _fields(event)
    line = f"{escape(name):<9} {escape(rest)}".rstrip()
    return f"[{style}]{line}[/]" if style else line


def _fields(event: Mapping[str, Any]) -> str:
    reason = event.get("reason")
    fields = " ".join(f"{name}={value}" for name, value in event.items() if name != "reason")
    return " · ".join(part for part in (str(reason) if reason else "", fields) if part)


class _ConsoleLogger:
    """Prints through rich, so that a progress bar below stays in one piece."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @classmethod
    def factory(cls, console: Console) -> Callable[..., "_ConsoleLogger"]:
        return lambda *_args: cls(console)

    def msg(self, line: str) -> None:
        """Print one line."""
        self._console.print(line)

    debug = info = warning = error = critical = msg
