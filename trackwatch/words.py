"""How the log and the screens look: JSON lines for machines, or words for people. The same events, the same fields.

An event of the log may carry `words`: what people read instead of its fields. The log is for standard error; standard
output is the events', or that of a command whose answer it is.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, TextIO

import structlog
from rich.cells import cell_len, chop_cells
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

_STYLES = {"debug": "dim", "info": "", "warning": "yellow", "error": "red", "critical": "red"}
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


# Colour where it means something; a word that is in neither set, and no number, wants to be looked at.
_GREEN = {"watching", "ok", "connected", "importing"}
_PLAIN = {"idle", "busy", "starting", "stopping", "stopped", "not watched", "-", ""}
_RED = {"refused", "not running", "silent", "unwritable"}
_LABEL_CELLS, _WORD_CELLS = 9, 15
_NARROWEST = 40
# A name may hold anything; what would move the cursor or change colours is shown as Python would write it.
_CONTROL = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class Line(NamedTuple):
    """A line that people read: what it is about, how that is in a word, and facts.

    The label "↳" is that of an explanation of the line before.
    """

    label: str
    word: str
    facts: tuple[str, ...]


def line(label: str, word: str, *facts: str) -> Line:
    """Return a line; empty facts are left out."""
    return Line(label, word, tuple(fact for fact in facts if fact))


def lay_out(lines: Iterable[Line], width: int | None) -> Iterator[Text]:
    """Yield lines in columns; facts that do not fit into so many cells go on below. Without a width all do."""
    before = ""
    for label, word, facts in lines:
        if label == "↳":
            head = Text(" " * _LABEL_CELLS).append("↳ ", "dim")
        else:
            is_title = label in "●○"
            head = Text(f"{label} " if is_title else f"{'' if label == before else label:<{_LABEL_CELLS}}")
            head.append(word, style_of(word))
            head.pad_right(max(1, _LABEL_CELLS + _WORD_CELLS - head.cell_len))
            before = label
        indent = head.cell_len
        room = None if width is None else max(width, _NARROWEST) - indent
        for number, row in enumerate(_rows([fact.translate(_CONTROL) for fact in facts], room)):
            text = head.copy() if not number else Text(" " * indent)
            text.append(row)
            text.rstrip()
            yield text


def _rows(facts: Iterable[str], room: int | None) -> list[str]:
    rows = [""]
    for fact in facts:
        joined = f"{rows[-1]} · {fact}" if rows[-1] else fact
        if room is None or cell_len(joined) <= room:
            rows[-1] = joined
        else:
            rows += _folded(fact, room)
    return [row for row in rows if row] or [""]


def _folded(fact: str, room: int) -> list[str]:
    rows = [""]
    for word in fact.split(" "):
        joined = f"{rows[-1]} {word}" if rows[-1] else word
        if cell_len(joined) <= room:
            rows[-1] = joined
        else:
            rows += chop_cells(word, room)
    return [row for row in rows if row]


def style_of(word: str) -> str:
    """Return the colour of a word that tells a state."""
    if word in _GREEN:
        return "green"
    if word in _RED:
        return "red"
    return "" if word in _PLAIN or word[:1].isdigit() else "yellow"


def open_console(stream: TextIO | None = None) -> Console:
    """Return people's console on standard error; rich leaves colour out for NO_COLOR and for what is no terminal."""
    return Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)


def set_up_log(level: str, *, as_json: bool, console: Console, instance: str = "") -> None:
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


def open_screen(console: Console) -> Live:
    """Return a screen that is drawn in place, and stays as it is when it is left."""
    # One of its own: the other consoles let lines run on, and this one has to know how many there are.
    return Live(console=Console(file=console.file, highlight=False), auto_refresh=False)


def stacked(rows: Sequence[Text]) -> Group:
    """Return lines as what a screen shows."""
    for row in rows:
        row.no_wrap, row.overflow = True, "crop"
    return Group(*rows)


def replay_bar(console: Console, *, transient: bool) -> Progress:
    """Return a bar of a replay, which shows nothing where there is no terminal; `transient` goes when it is done."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),  # not to the last column: the `^C` of an interrupt would begin another line
        MofNCompleteColumn(),
        TextColumn("[yellow]{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(file=console.file, highlight=False),
        transient=transient,
        disable=not console.is_terminal,
    )


def progress_bar(console: Console) -> Progress:
    """Return the bar of an import."""
    return Progress(
        TextColumn("importing"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TextColumn("files · {task.fields[read]} · {task.fields[rate]} · {task.fields[left]}"),
        console=console,
        transient=True,
        expand=True,
    )
