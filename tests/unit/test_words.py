"""What people see: columns, widths, colours, and names that would do something to a terminal."""

import io

import pytest
from rich.cells import cell_len

from trackwatch.screen import open_console, print_lines
from trackwatch.words import Line, lay_out, line, style_of

LINES = [
    line("●", "watching", "up 3 d 4 h", "pid 4121", "instance 7f3a"),
    line("roots", "ok", "/data/music", "118,204 files", "2.1 TB", "swept 4 min ago"),
    line("roots", "unavailable", "/data/incoming/with/a/name/that/is/long/enough/to/go/on/and/on", "for 2 h"),
    line("↳", "", "nothing is mounted there (was nas:/incoming, nfs4): mount it again, there is nothing else to do"),
    line("outbox", "1,214,000 pending", "oldest 41 s", "", "3 parked"),
    line("problems", "1 file"),
    line("↳", "", "日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語.flac: not readable"),
]


def texts(lines: list[Line], width: int | None) -> list[str]:
    """Return the laid out lines as plain text."""
    return [row.text for row in lay_out(lines, width)]


def test_words_and_facts_stand_in_columns() -> None:
    """The label is told once; what is empty is left out."""
    assert texts(LINES, None) == [
        "● watching              up 3 d 4 h · pid 4121 · instance 7f3a",
        "roots    ok             /data/music · 118,204 files · 2.1 TB · swept 4 min ago",
        "         unavailable    /data/incoming/with/a/name/that/is/long/enough/to/go/on/and/on · for 2 h",
        "         ↳ nothing is mounted there (was nas:/incoming, nfs4): mount it again, there is nothing else to do",
        "outbox   1,214,000 pending oldest 41 s · 3 parked",
        "problems 1 file",
        "         ↳ 日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語日本語.flac: not readable",
    ]


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_wider_than_the_terminal_and_nothing_is_left_out(width: int) -> None:
    """What does not fit goes on below, under the facts; wide characters count twice."""
    rows = texts(LINES, width)
    assert max(map(cell_len, rows)) <= width
    letters = "".join("".join(rows).split()).replace("·", "")
    assert letters == "".join("".join(texts(LINES, None)).split()).replace("·", "")


def test_facts_are_parted_between_them_where_they_can_be() -> None:
    """Not in the middle of one."""
    assert texts([line("intake", "idle", "0 dirty", "0 in hand", "last change 12 s ago")], 50) == [
        "intake   idle           0 dirty · 0 in hand",
        "                        last change 12 s ago",
    ]


def test_a_name_cannot_do_anything_to_the_terminal() -> None:
    """Nor make a line of its own."""
    assert texts([line("↳", "", "a\x1b[31m\nb\u2028c\x9b.mp3: odd")], None) == [
        "         ↳ a\\x1b[31m\\nb\\u2028c\\x9b.mp3: odd"
    ]


def test_nor_can_a_state_that_somebody_wrote() -> None:
    """The daemon's words are read from a file."""
    assert texts([line("broker", "\x1b[2J", "a")], None) == ["broker   \\x1b[2J        a"]


@pytest.mark.parametrize(
    ("word", "style"),
    [
        ("ok", "green"),
        ("refused", "red"),
        ("silent", "red"),
        ("unavailable", "yellow"),
        ("3 pending", ""),
        ("idle", ""),
    ],
)
def test_colour_tells_what_wants_to_be_looked_at(word: str, style: str) -> None:
    """Green is well, yellow is to be looked at, red needs a person; the rest has none."""
    assert style_of(word) == style


def test_what_is_no_terminal_gets_no_escape_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe, a file."""
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    stream = io.StringIO()
    print_lines(open_console(stream), LINES)
    assert stream.getvalue().splitlines() == texts(LINES, None)


def test_a_terminal_gets_the_word_in_colour_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only on the row where it stands."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "50"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO()
    print_lines(open_console(stream), [line("roots", "unavailable", "/data/music", "for 2 h", "118,204 files kept")])
    assert stream.getvalue().splitlines() == [
        "roots    \x1b[33munavailable\x1b[0m    /data/music · for 2 h",
        "                        118,204 files kept",
    ]
