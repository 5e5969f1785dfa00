"""A person's terminal: lines in columns and in colour, and a screen of them that is drawn in place."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from trackwatch.words import LayOut, Line, Row, lay_out


def open_console(stream: TextIO | None = None) -> Console:
    """Return people's console on standard error; rich leaves colour out for NO_COLOR and for what is no terminal."""
    return Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)


def print_lines(console: Console, lines: Iterable[Line], laid_out: LayOut = lay_out) -> None:
    """Print lines, in columns that fit into the terminal if it is one."""
    for row in laid_out(lines, console.width if console.is_terminal else None):
        console.print(_text(row))


def open_screen(console: Console) -> Live:
    """Return a screen that is drawn in place, and stays as it is when it is left."""
    # One of its own: the other consoles let lines run on, and this one has to know how many there are.
    return Live(console=Console(file=console.file, highlight=False), auto_refresh=False)


def stacked(console: Console, lines: Iterable[Line]) -> Group:
    """Return lines as what a screen shows."""
    return Group(*(_text(row, no_wrap=True, overflow="crop") for row in lay_out(lines, console.width)))


def _text(row: Row, **how: Any) -> Text:
    text = Text(row.text, **how)
    if row.style:
        text.stylize(row.style, row.start, row.end)
    return text
