"""How the log looks, what it lets through, and that ops/logs.md tells every event of it."""

import ast
import io
import json
import logging
import os
import re
import select
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog
from rich.console import Console

import trackwatch
from trackwatch import bars
from trackwatch.bars import import_progress
from trackwatch.errors import BrokerRefused, ConfigError, StoreError
from trackwatch.log import Log
from trackwatch.progress import Progress
from trackwatch.throttle import BURST

PACKAGE = Path(trackwatch.__file__).parent
DOCUMENT = Path(__file__).parents[2] / "ops" / "logs.md"
LEVELS = ("debug", "info", "warning", "error", "critical")

# ESC, CSI as one character, a line that would pass for one of ours, a newline of Unicode, and a turn of direction.
NASTY = 'a\x1b[31m\x9b2J\n{"event": "fatal"}\r\u2028\u202egpj.mp3'

log = structlog.get_logger()


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Let the tests that come after have a log that was not set up."""
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def json_lines(capfd: pytest.CaptureFixture[str]) -> Callable[[], list[Any]]:
    """Return what JSON lines were logged since the last call."""

    def read() -> list[Any]:
        return [json.loads(line) for line in capfd.readouterr().err.split("\n") if line]

    return read


def set_up(level: str = "info", log_format: str = "json", console: Console | None = None) -> Log:
    """Return a log that is set up."""
    made = Log(console)
    made.set_up(level, log_format)
    return made


def terminal(width: int = 80, **how: Any) -> Console:
    """Return a terminal of which every character can be seen."""
    return Console(file=io.StringIO(), force_terminal=True, width=width, highlight=False, soft_wrap=True, **how)


def shown(console: Console) -> str:
    """Return what is on a console."""
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# ---- for machines


def test_a_line_is_one_json_object_that_begins_with_what_every_line_has(capfd: pytest.CaptureFixture[str]) -> None:
    """People's words are not in it."""
    set_up()
    structlog.contextvars.bind_contextvars(instance="7f3a")
    log.warning("broker unavailable", reason="connection refused", retry_s=0.2, words="never seen")
    line = capfd.readouterr().err
    assert line.endswith("}\n")
    told = json.loads(line)
    assert list(told) == ["event", "level", "timestamp", "instance", "reason", "retry_s"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", told.pop("timestamp"))
    assert told == {
        "event": "broker unavailable", "level": "warning", "instance": "7f3a", "reason": "connection refused",
        "retry_s": 0.2,
    }  # fmt: skip


def test_no_name_breaks_a_line_or_reaches_a_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Not what ends a line for anybody, what a terminal obeys, or what is not UTF-8; and it reads back as it was."""
    set_up()
    log.info("one", path=os.fsencode(NASTY) + b"\xff", text=os.fsdecode(b"\xff.mp3"), problems=("\x9b", b"\xfe"))
    line = capfd.readouterr().err
    assert len(line.splitlines()) == 1
    assert line.removesuffix("\n").isprintable()
    told = json.loads(line)
    assert told["path"] == NASTY + "\ufffd"
    assert told["text"] == "\ufffd.mp3"
    assert told["problems"] == ["\x9b", "\ufffd"]


@pytest.mark.parametrize(
    ("value", "told"),
    [(float("inf"), None), (float("nan"), None), (Path("/a"), "/a"), ({"a": b"\xff"}, {"a": "\ufffd"}), (True, True)],
)
def test_every_value_is_json(json_lines: Callable[[], list[Any]], value: object, told: object) -> None:
    """Infinity is no number of JSON."""
    set_up()
    log.info("one", value=value)
    assert json_lines()[0]["value"] == told


def test_a_line_is_never_so_long_that_docker_would_break_it(capfd: pytest.CaptureFixture[str]) -> None:
    """The middle is left out; both ends tell most."""
    set_up()
    log.info("one", reason="a" + "x" * 100_000 + "z")
    line = capfd.readouterr().err
    assert len(line.encode()) < 16384
    assert re.fullmatch("ax+ … x+z", json.loads(line)["reason"])


@pytest.mark.parametrize(
    "url", ["amqp://us:pa%2Fss@host/", "amqps://us:p@ss:w/o@host:5671/v", "x://us:p@host and amqp://us:q@host"]
)
def test_a_password_in_a_url_is_never_told(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever forgot to leave it out."""
    set_up()
    log.error("one", reason=f"connect to {url}: no")
    console = terminal()
    set_up("info", "console", console)
    log.error("one", reason=f"connect to {url}: no")
    for text in (capfd.readouterr().err, shown(console)):
        assert "://us@host" in text
        assert re.search(r"pa%2F|p@|ss|w/o|:q", text) is None


def test_what_a_log_can_not_take_does_not_end_the_daemon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that has gone, a full disk, no standard error at all: the line is lost, nothing else."""
    set_up()
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as gone, open("/dev/full", "w") as full:
        for stream in (gone, full, None):
            monkeypatch.setattr(sys, "stderr", stream)
            log.info("one")


def test_a_line_is_whole_also_where_the_other_side_takes_it_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever shares our standard error may have set it not to block."""
    set_up()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    got = bytearray()

    def read() -> None:
        while piece := os.read(reading, 100):
            got.extend(piece)

    reader = threading.Thread(target=read)
    with open(writing, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        while select.select([], [writing], [], 0)[1]:  # full before anybody reads
            os.write(writing, b"\n" * 4096)
        reader.start()
        log.info("one", reason="x" * 5000)
    reader.join()
    os.close(reading)
    assert json.loads(got)["reason"] == "x" * 5000


# ---- how much


def test_a_trouble_that_comes_again_and_again_is_bounded(json_lines: Callable[[], list[Any]]) -> None:
    """And told at the end, with how often it came."""
    held = set_up("debug")
    for number in range(1000):
        log.warning("broker unavailable", number=number)
        log.info("broker connected", number=number)
        log.debug("file problem", path=b"a")
    held.tell_held()
    told = [line for line in json_lines() if line["level"] != "debug"]
    assert len(told) == BURST
    assert all("held_back" not in line for line in told)
    with held.last_words("json"):
        pass
    (last,) = json_lines()
    assert (last["event"], last["number"], last["held_back"]) == ("broker connected", 999, 2000 - BURST - 1)


def test_each_root_is_a_subject_and_settings_are_told_in_full(json_lines: Callable[[], list[Any]]) -> None:
    """There are as many as somebody wrote down."""
    set_up()
    for number in range(50):
        log.error("root unavailable", root=b"/%d" % number, reason="")
        log.warning("setting", reason=str(number))
    assert len(json_lines()) == 100


def test_debug_is_not_bounded(json_lines: Callable[[], list[Any]]) -> None:
    """Who asks for each file gets each file."""
    set_up("debug")
    for _ in range(100):
        log.debug("file problem", path=b"a")
    assert len(json_lines()) == 100


# ---- for people


@pytest.mark.parametrize("name", LEVELS)
def test_at_a_terminal_a_level_is_a_colour(name: str) -> None:
    """Red wants a person; what is normal has none."""
    console = terminal(color_system="standard")
    set_up("debug", "auto", console)
    getattr(log, name)("root", words="/music · ext4", root=b"/music")
    colour = {"debug": "2", "info": "", "warning": "33"}.get(name, "31")
    text = "root      /music · ext4"
    assert shown(console) == (f"\x1b[{colour}m{text}\x1b[0m\n" if colour else f"{text}\n")


def test_without_colour_a_level_is_a_word() -> None:
    """NO_COLOR, and what is no terminal."""
    console = terminal(no_color=True)
    set_up("info", "auto", console)
    log.info("broker connected")
    log.error("broker refused", reason="wrong password", retry_s=2.5)
    assert shown(console) == "broker connected\nerror: broker refused wrong password · retry_s=2.5\n"


def test_without_a_terminal_a_line_begins_with_its_time_but_not_in_the_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Which has the time itself, and takes a number in front as the priority."""
    set_up("info", "console")
    log.warning("broker blocked", reason="memory alarm")
    assert re.fullmatch(r"[\d-]{10}T[\d:]{8}Z warning: broker blocked memory alarm\n", capfd.readouterr().err)
    stat = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{stat.st_dev}:{stat.st_ino}")
    set_up("info", "console")
    log.warning("broker blocked", reason="memory alarm")
    log.info("broker connected")
    assert capfd.readouterr().err == "<4>warning: broker blocked memory alarm\n<6>broker connected\n"


def test_what_its_place_cannot_show_is_a_question_mark(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Words for people go by the encoding of where they go; JSON is UTF-8 everywhere."""
    with open(2, "w", encoding="ascii", closefd=False) as ascii_only:
        monkeypatch.setattr(sys, "stderr", ascii_only)
        set_up("info", "console")
        log.info("one", words="Füße")
        set_up("info", "json")
        log.info("one", path="Füße")
    words, line = capfd.readouterr().err.splitlines()
    assert words.endswith("Z one       F??e")
    assert json.loads(line)["path"] == "Füße"


def test_no_name_can_forge_a_line_or_a_colour() -> None:
    """Neither through its characters, nor through the marks that rich knows, nor by a long traceback."""
    console = terminal(width=40)
    made = set_up("info", "console", console)
    log.info("one", words=f"{NASTY} [red]x[/] :smile: [link=x]", path=b"\xff")
    try:
        raise ValueError(NASTY)
    except ValueError:
        log.exception("one")
    made.tell_held()
    first, *rest = shown(console).splitlines()
    escaped = r'a\x1b[31m\x9b2J\n{"event": "fatal"}\r\u2028\u202egpj.mp3'
    assert first == f"one       {escaped} [red]x[/] :smile: [link=x]"
    seen = [line.removeprefix("\x1b[31m").removesuffix("\x1b[0m") for line in rest]
    assert all(line.isprintable() for line in seen)
    assert all(line.startswith("    ") for line in seen[1:]), "a story is indented: none of it passes for an event"


# ---- what others say


@pytest.fixture
def with_libraries(json_lines: Callable[[], list[Any]]) -> Iterator[Log]:
    """Return a log that takes in what libraries say, for the length of a test."""
    root, hooks, raising = logging.getLogger(), (sys.unraisablehook, threading.excepthook), logging.raiseExceptions
    handlers = list(root.handlers)
    made = set_up()
    made.take_in_libraries()
    yield made
    root.handlers[:] = handlers
    (sys.unraisablehook, threading.excepthook), logging.raiseExceptions = hooks, raising
    logging.captureWarnings(False)


def test_what_libraries_log_is_an_event(with_libraries: Log, json_lines: Callable[[], list[Any]]) -> None:
    """From a warning on; with the traceback in a field."""
    logging.getLogger("hypercorn.error").info("Running on")
    logging.getLogger("asyncio").warning("slow %s", "callback\n")
    try:
        raise OSError("gone")
    except OSError:
        logging.getLogger("x").exception("lost")
    warned, failed = json_lines()
    assert (warned["event"], warned["level"], warned["logger"]) == ("library", "warning", "asyncio")
    assert warned["reason"] == "slow callback"
    assert (failed["level"], failed["logger"], failed["reason"]) == ("error", "x", "lost")
    assert failed["exception"].endswith("OSError: gone")


def test_what_python_would_print_is_an_event(with_libraries: Log, json_lines: Callable[[], list[Any]]) -> None:
    """A thread that died, an exception in a destructor."""

    class Bad:
        def __del__(self) -> None:
            raise ValueError("in the end")

    del (bad := [Bad()])[0]
    assert not bad
    thread = threading.Thread(target=lambda: [][0])
    thread.start()
    thread.join()
    first, second = json_lines()
    assert "ValueError: in the end" in first["reason"]
    assert "IndexError" in second["reason"]
    assert "Traceback" in second["exception"]


# ---- the last words


def ended_by(error: BaseException, log_format: str = "json") -> int:
    """Return the exit code of a program that ends so."""
    with pytest.raises(SystemExit) as ended, Log(None).last_words(log_format):
        raise error
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_every_wrong_setting_is_in_the_last_line(json_lines: Callable[[], list[Any]]) -> None:
    """Also when it is the log's own setting that is wrong."""
    assert ended_by(ConfigError("A=1: wrong", "B=2: wrong"), "xml") == 2
    (told,) = json_lines()
    assert (told["event"], told["level"], told["exit_code"]) == ("fatal", "critical", 2)
    assert (told["reason"], told["problems"]) == ("A=1: wrong; B=2: wrong", ["A=1: wrong", "B=2: wrong"])
    assert told["exception"] is None


def test_an_error_is_told_as_a_reason_a_defect_as_a_traceback(json_lines: Callable[[], list[Any]]) -> None:
    """Out of groups too."""
    structlog.contextvars.bind_contextvars(instance="7f3a")
    assert ended_by(ExceptionGroup("", [ExceptionGroup("", [StoreError("disk\x1b gone")])])) == 3
    assert ended_by(ZeroDivisionError("by zero")) == 1
    assert ended_by(ExceptionGroup("", [StoreError("a"), KeyError("b")])) == 1
    known, defect, both = json_lines()
    assert (known["reason"], known["exception"]) == ("disk\x1b gone", None)
    assert defect["reason"] == "ZeroDivisionError: by zero"
    assert defect["exception"].startswith("Traceback")
    assert "KeyError" in both["exception"]


def test_the_last_line_has_the_instance_and_comes_after_what_was_held_back(
    json_lines: Callable[[], list[Any]],
) -> None:
    """It is raised where the tasks' context is no more."""
    made = set_up()

    def run() -> None:
        with structlog.contextvars.bound_contextvars(instance="7f3a"):
            for _ in range(20):
                log.warning("broker unavailable")
        raise BrokerRefused("no")

    with pytest.raises(SystemExit), made.last_words("json"):
        run()
    *_, held, last = json_lines()
    assert held["held_back"] == 20 - BURST - 1
    assert (last["event"], last["instance"]) == ("fatal", "7f3a")


def test_people_read_last_words_from_the_command_line() -> None:
    """Which prints what was raised."""
    console = terminal()
    with pytest.raises(ConfigError), Log(console).last_words("auto"):
        raise ConfigError("A=1: wrong")
    assert shown(console) == ""


# ---- progress


def progress(files: int, total: int = 1000, *, done: bool = False) -> Progress:
    """Return how far an import is."""
    return Progress(files, total, files * 10**6, total * 10**6, 5e6, 7.3, done)


def told_at(
    monkeypatch: pytest.MonkeyPatch, steps: dict[float, Progress], console: Console | None, **how: bool
) -> list[Any]:
    """Return what is logged of an import's progress, with the time of each line."""
    now = 0.0
    monkeypatch.setattr(bars, "time", SimpleNamespace(monotonic=lambda: now))
    told = []
    with structlog.testing.capture_logs() as lines, import_progress(console, **how) as show:
        for now, step in steps.items():
            before = len(lines)
            show(step)
            told += [(now, line) for line in lines[before:]]
    return told


def test_progress_is_a_line_for_ten_per_cent_ten_seconds_apart_or_for_each_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A fast import says little, a slow one that it lives."""
    fast = {number / 5: progress(number * 4) for number in range(250)} | {50.0: progress(1000, done=True)}
    told = told_at(monkeypatch, fast, None)
    assert [at for at, _ in told] == [10.0, 20.0, 30.0, 40.0]
    slow = {float(second): progress(second // 60) for second in range(600)}
    assert [at for at, _ in told_at(monkeypatch, slow, None)] == [10, *range(70, 600, 60)]


def test_progress_has_fields_with_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """The totals are null where nothing was counted: a start that only compares."""
    steps = {11.0: progress(100), 22.0: progress(500, 0)}
    (_, counted), (_, compared) = told_at(monkeypatch, steps, None)
    assert counted == {
        "event": "importing", "log_level": "info", "files": 100, "files_total": 1000, "size_bytes": 100_000_000,
        "total_bytes": 1_000_000_000, "bytes_per_s": 5_000_000, "left_s": 7,
        "words": "100/1,000 files · 100.0 MB/1.0 GB · 5.0 MB/s · 7 s left",
    }  # fmt: skip
    assert (compared["files_total"], compared["total_bytes"], compared["words"]) == (None, None, "500 files so far")


def test_there_is_no_bar_where_it_could_not_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON at a terminal would be torn by it; a dumb terminal shows none."""
    steps = {11.0: progress(100)}
    assert len(told_at(monkeypatch, steps, terminal(), as_lines=True)) == 1
    assert told_at(monkeypatch, steps, terminal()) == []
    monkeypatch.setenv("TERM", "dumb")
    assert len(told_at(monkeypatch, steps, terminal())) == 1


@pytest.mark.parametrize("width", [80, 120])
def test_the_bar_leaves_room_for_the_sign_of_an_interrupt(width: int) -> None:
    """Which the terminal prints where the cursor is: in the last column it would begin a line, and the bar stay."""
    console = terminal(width, color_system=None)
    with import_progress(console) as show:
        show(progress(428))
        log.info("one", words="above the bar")
        show(progress(999))
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown(console)).replace("\r", "\n").split("\n")
    bars_shown = [line for line in lines if line.startswith("importing")]
    assert bars_shown
    assert all(width - 8 < len(line.rstrip()) <= width - 3 for line in bars_shown)


# ---- the document


def in_the_code() -> dict[str, tuple[set[str], set[str]]]:
    """Return the levels and the fields of each event, read from the source; every name must be a literal there."""
    found: dict[str, tuple[set[str], set[str]]] = defaultdict(lambda: (set(), set()))
    for file in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            match node:
                case ast.Call(ast.Attribute(ast.Name("log"), level), args, keywords) if level in LEVELS:
                    where = f"{file.name}:{node.lineno}"
                    assert len(args) == 1, where
                    name = args[0].value if isinstance(args[0], ast.Constant) else None
                    assert isinstance(name, str), f"{where}: what varies is a field"
                    levels, fields = found[name]
                    levels.add(level)
                    for keyword in keywords:
                        assert keyword.arg is not None, f"{where}: fields are constant"
                        fields.add({"exc_info": "exception"}.get(keyword.arg, keyword.arg))
    return {name: (levels, fields - {"words", "instance"}) for name, (levels, fields) in found.items()}


def in_the_document() -> dict[str, tuple[set[str], set[str]]]:
    """Return the same, as the document has it."""
    row = re.compile(r"^\| `([^`]+)` \| ([a-z, ]+) \|([^|]*)\|([^|]*)\|$", re.MULTILINE)
    rows = row.findall(DOCUMENT.read_text("utf-8"))
    assert len({name for name, *_ in rows}) == len(rows), "an event is told of twice"
    return {
        name: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields))) for name, levels, fields, _meaning in rows
    }


def test_the_document_has_every_event_with_its_levels_and_fields_and_no_other() -> None:
    """Operators search and alert by them."""
    assert in_the_document() == in_the_code()


def test_the_document_points_to_what_the_runbook_has() -> None:
    """By the anchors that its headings have where they are read."""
    headings = re.findall(r"^#+ (.+)$", DOCUMENT.with_name("runbook.md").read_text("utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    linked = set(re.findall(r"runbook\.md#([\w-]+)", DOCUMENT.read_text("utf-8")))
    assert linked
    assert linked <= anchors


def test_the_same_thing_has_the_same_name_everywhere() -> None:
    """A closed set of fields, each with its unit; a new one wants to be thought about."""
    assert set().union(*(fields for _, fields in in_the_code().values())) <= {
        "root", "path", "target", "address", "fstype", "reason", "exception", "logger", "message", "problems",
        "exit_code", "sequence", "version", "state_dir", "retry_s", "left_s", "period_s", "bytes_per_s",
        "size_bytes", "total_bytes", "described_bytes",
        # numbers of things
        "files", "files_total", "directories", "left_out", "pending", "parked", "published", "described",
        "created", "modified", "deleted", "moved", "renamed",
    }  # fmt: skip
