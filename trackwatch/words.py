"""What people read, as lines in columns: what each is about, how that is in a word, and facts.

Of rich only the widths of characters are needed for that; what shows the rows at a terminal is `screen`.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from rich.cells import cell_len, chop_cells

# Colour where it means something; a word that is in neither set, and no number, wants to be looked at.
_GREEN = {"watching", "ok", "connected", "listening", "importing"}
_PLAIN = {"skip", "idle", "busy", "starting", "stopping", "stopped", "not watched", "-", ""}
_RED = {"fail", "refused", "not running", "silent", "unwritable"}
_LABEL_CELLS, _WORD_CELLS = 9, 15
_VERDICT_CELLS, _SUBJECT_CELLS = 6, 10
_NARROWEST = 40
# A name may hold anything; what would move the cursor, change colours, begin a line or turn the direction of writing is
# shown as Python would write it.
_CONTROL = {
    code: repr(chr(code))[1:-1]
    for code in (*range(32), *range(127, 160), *range(0x2028, 0x202F), *range(0x2066, 0x206A))
}


class Line(NamedTuple):
    """A line that people read: what it is about, how that is in a word, and facts.

    The label "↳" is that of an explanation of the line before.
    """

    label: str
    word: str
    facts: tuple[str, ...]


class Row(NamedTuple):
    """A row of a screen: its text, and what colour the part of it between two indices has."""

    text: str
    style: str = ""
    start: int = 0
    end: int = 0


# How lines become rows of so many cells; None: as long as they are.
LayOut: TypeAlias = Callable[[Iterable[Line], int | None], Iterator[Row]]


def visible(text: str) -> str:
    """Return a text with nothing in it that a terminal would obey."""
    return text.translate(_CONTROL)


def line(label: str, word: str, *facts: str) -> Line:
    """Return a line; empty facts are left out."""
    return Line(label, word, tuple(fact for fact in facts if fact))


def lay_out(lines: Iterable[Line], width: int | None) -> Iterator[Row]:
    """Yield lines in columns; facts that do not fit into so many cells go on below. Without a width all do."""
    before = ""
    for label, word, facts in lines:
        word = visible(word)
        if label == "↳":
            start, style, head = _LABEL_CELLS, "dim", " " * _LABEL_CELLS + "↳ "
            end = len(head)
        else:
            is_title = label in "●○"
            head = f"{label} " if is_title else f"{'' if label == before else label:<{_LABEL_CELLS}}"
            start, style, end = len(head), style_of(word), len(head) + len(word)
            head += word
            head += " " * max(1, _LABEL_CELLS + _WORD_CELLS - cell_len(head))
            before = label
        indent = cell_len(head)
        room = None if width is None else max(width, _NARROWEST) - indent
        for row in _rows([visible(fact) for fact in facts], room):
            yield Row(f"{head}{row}".rstrip(), style, start, end)
            head, style = " " * indent, ""


def lay_out_verdicts(lines: Iterable[Line], width: int | None) -> Iterator[Row]:
    """Yield lines whose label is a verdict, and whose word is what it is about; what is below one says what to do.

    An explanation that begins with "$ " is a command, which is left in one piece, so that it can be copied.
    """
    for label, word, facts in lines:
        if label == "↳":
            head, style, start, end = " " * _VERDICT_CELLS + "↳ ", "dim", _VERDICT_CELLS, _VERDICT_CELLS + 1
        else:
            head, style, start, end = (
                f"{label:<{_VERDICT_CELLS}}{visible(word):<{_SUBJECT_CELLS}}",
                style_of(label),
                0,
                len(label),
            )
        indent = cell_len(head)
        is_command = label == "↳" and facts[:1] and facts[0].startswith("$ ")
        room = None if width is None or is_command else max(width, _NARROWEST) - indent
        for row in _rows([visible(fact) for fact in facts], room):
            yield Row(f"{head}{row}".rstrip(), style, start, end)
            head, style = " " * indent, ""


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
