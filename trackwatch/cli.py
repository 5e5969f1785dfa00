"""The command line: run, check, status, replay, ... Exit codes are in `errors.ExitCode`; errors are one line each.

`status` is a health check, which runs each half minute for as long as the daemon does, and beside an import that needs
every core. So what takes long to import, and `status` can do without, is imported where it is used.
"""

import gc
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, TextIO, cast

import click

from trackwatch import __version__, catalogue
from trackwatch.clock import wall_clock_us
from trackwatch.database import open_beside, running_pid
from trackwatch.errors import ConfigError, ExitCode, TrackwatchError
from trackwatch.event import EventType, displayed
from trackwatch.folder import state_dir
from trackwatch.outbox import Chosen, Selection
from trackwatch.replay import (
    choose,
    count_waiting,
    describe,
    missing,
    parse_event_id,
    parse_path,
    parse_range,
    parse_time,
    queue,
    shown_time,
)
from trackwatch.status import PROBLEMS_SHOWN, broker_word, collect, lines, watched_roots
from trackwatch.words import LayOut, Line, lay_out, lay_out_verdicts, line

if TYPE_CHECKING:
    from rich.console import Console

# How often it is told how far a replay is queued, where there is no bar.
QUEUED_LINE_S = 10.0
# How often a replay's bar moves.
REPLAY_LOOK_S = 0.25
# The daemon looks for garbage among its newest objects when there are so many more. Python's 700 cost a tenth of a
# start; this many take a megabyte or two at most.
GARBAGE_OBJECTS = 10_000


def main() -> None:
    """Run the command line and leave with the right exit code."""
    # A terminal that is not UTF-8 shows names and marks as it can.
    output = _watch_output()
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    try:
        code = cli.main(standalone_mode=False, prog_name="trackwatch")
    except click.exceptions.Abort:
        code = ExitCode.DEFECT
    except click.ClickException as error:
        error.show()
        code = ExitCode.USAGE
    except TrackwatchError as error:
        _complain(error)
        code = error.exit_code
    except BaseExceptionGroup as group:
        known, unknown = group.split(TrackwatchError)
        if unknown is not None or known is None:
            raise
        first = _first(known)
        _complain(first)
        code = first.exit_code
    except OSError:
        if output is None or output.loss is None:
            raise
        _give_up_output(output.loss)
        code = ExitCode.DEFECT
    sys.exit(int(code or 0))


class _Output(io.FileIO):
    """Standard output, which remembers why it takes nothing: an error of it is no defect, whoever runs into it."""

    loss: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.loss = error
            raise


def _watch_output() -> _Output | None:
    """Put standard output onto one that remembers; None where there is none, or not as Python makes it."""
    before = sys.stdout
    if not isinstance(before, io.TextIOWrapper):
        return None
    before.flush()
    output = _Output(before.fileno(), "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(output), before.encoding, "replace", line_buffering=before.line_buffering
    )
    return output


def _give_up_output(loss: OSError) -> None:
    # What is left of it would be tried again at the interpreter's end, which then has an exit code of its own.
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nowhere, 1)
    os.close(nowhere)
    reason = (loss.strerror or str(loss)).lower()
    _complain(TrackwatchError(f"cannot write to standard output: {reason}; make room, or look at where it goes"))


def _first(group: BaseExceptionGroup[TrackwatchError]) -> TrackwatchError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, TrackwatchError)
    return found


def _complain(error: TrackwatchError) -> None:
    for problem in str(error).splitlines():
        click.echo(f"trackwatch: {problem}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="trackwatch %(version)s")
def cli() -> None:
    """Turn music libraries into a stream of events that never lies and never loses one.

    \b
    trackwatch run ~/Music > events.jsonl      events as JSON lines
    trackwatch run ~/Music --to amqp://rabbit  events to RabbitMQ
    trackwatch check ~/Music                   would all be well?
    trackwatch status                          is all well?

    Every setting has an environment variable; the README lists them.
    """


@cli.command()
@click.argument("roots", nargs=-1, metavar="[ROOT]...")
@click.option("--to", metavar="URL", help="amqp(s)://…, file:///…, a path, or - for standard output.")
@click.option("--once", is_flag=True, help="Import, deliver everything, exit.")
def run(roots: tuple[str, ...], to: str | None, once: bool) -> None:
    """Watch the ROOTs, and publish an event for each change of a file.

    \b
    Examples:
      trackwatch run ~/Music
      trackwatch run /data/music /data/incoming --to amqps://user:secret@rabbit/music
      trackwatch run ~/Music --once --to library.jsonl
    """
    with _lean_imports():
        import trio

        from trackwatch import daemon
        from trackwatch.bars import import_progress
        from trackwatch.log import Log
        from trackwatch.settings import load

    terminal = _terminal(sys.stderr)
    log = Log(terminal)
    log.take_in_libraries()
    # What is wrong with the settings is told in the form that they ask for.
    with log.last_words(os.environ.get("TRACKWATCH_LOG_FORMAT", "auto").lower()):
        settings = load(roots=roots, to=to)
        log.set_up(settings.log_level, settings.log_format)
        with import_progress(terminal, as_lines=log.as_json) as show:
            code = trio.run(partial(daemon.run, settings, once=once, show=show, tend_log=log.tell_held))
    sys.exit(int(code))


@contextmanager
def _lean_imports() -> Iterator[None]:
    """Import in this scope what stays for as long as the daemon does, in less time and memory.

    There is hardly any garbage in it: it is looked for less often, and in what has been imported never again. And
    structlog does without rich, of which it takes 60 modules along for tracebacks in colour; log.py has none.
    """
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    before = modules.get("rich")
    gc.set_threshold(GARBAGE_OBJECTS)
    modules["rich"] = None  # which is how Python is told that there is no such module
    try:
        import structlog  # noqa: F401 - for the sake of its own imports
    finally:
        del modules["rich"]
        if before is not None:
            modules["rich"] = before
    yield
    gc.freeze()


@cli.command("check")
@click.argument("roots", nargs=-1, metavar="[ROOT]...")
@click.option("--to", metavar="URL", help="Where events would go, as for `trackwatch run`.")
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def check_all(roots: tuple[str, ...], to: str | None, as_json: bool) -> None:
    """Look at everything before it hurts: roots, limits, state, broker, clock; with the settings of `trackwatch run`.

    It makes and changes nothing, and does not disturb a daemon that runs. Ask as the user of the daemon, and where it
    runs (in its container): what one may do, another may not.

    
    Exit code:
      0  all is well, or there are warnings
      1  something failed
      2  usage, or a wrong setting

    
    Examples:
      trackwatch check ~/Music
      trackwatch check /data/music --to amqps://user:secret@rabbit/music
      trackwatch check --json
    """
    from trackwatch import finding
    from trackwatch.check import check
    from trackwatch.settings import load_usable

    terminal = _terminal(sys.stderr)
    with terminal.status("looking at roots, limits, state and broker") if terminal is not None else nullcontext():
        findings = list(check(load_usable(roots=roots, to=to)))
    if as_json:
        click.echo(json.dumps(finding.report(findings), ensure_ascii=False, indent=2))
    else:
        _print_lines(finding.lines(findings), lay_out_verdicts)
        click.echo(finding.summary(findings))
    sys.exit(finding.exit_code(findings))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines (ops/contract/status.schema.json).")
@click.option(
    "--watch",
    "every_s",
    is_flag=False,
    flag_value=1.0,
    default=None,
    metavar="[SECONDS]",
    type=click.FloatRange(0.1, 3600),
    help="Look again each second, or each so many, until Ctrl-C.",
)
@click.option(
    "--problems",
    "problems_max",
    default=PROBLEMS_SHOWN,
    show_default=True,
    metavar="N",
    type=click.IntRange(0, 1_000_000),
    help="Show at most so many files with problems.",
)
def status(as_json: bool, every_s: float | None, problems_max: int) -> None:
    """Say how the daemon is, running or not, from its state folder alone.

    \b
    Exit code (with --watch, that of the last look):
      0  healthy
      1  degraded: a root, the broker, the state or the daemon needs a person, or patience
      2  usage
      3  there is no state, or it cannot be read
      4  not running, or silent: it hangs

    \b
    Examples:
      trackwatch status
      trackwatch status --watch
      trackwatch status --json --watch 10     one JSON document a line
    """
    folder = state_dir()
    look = partial(collect, folder, problems_max=problems_max)
    report = look()
    if every_s is not None:
        sys.exit(_watch(look, report, every_s, as_json=as_json))
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        _print_lines(lines(report, wall_clock_us()))
    sys.exit(report["exit_code"])


def _output() -> TextIO | None:
    """Return standard output; standard error where it is closed, and None where that is closed too."""
    return sys.stdout if sys.__stdout__ else sys.stderr if sys.__stderr__ else None


def _terminal(stream: TextIO | None) -> "Console | None":
    """Return the terminal that a stream leads to, or None."""
    # Besides these rich asks nothing that could make a terminal of it; importing it would make a health check dearer by
    # a fifth.
    if stream is None or not (stream.isatty() or {"FORCE_COLOR", "TTY_COMPATIBLE"} & os.environ.keys()):
        return None
    from trackwatch.screen import open_console

    console = open_console(stream)
    return console if console.is_terminal else None


def _print_lines(shown: Iterable[Line], laid_out: LayOut = lay_out) -> None:
    if (terminal := _terminal(_output())) is not None:
        from trackwatch.screen import print_lines

        print_lines(terminal, shown, laid_out)
    elif (stream := _output()) is not None:
        stream.write(_plain(shown, laid_out))
        stream.flush()


def _plain(shown: Iterable[Line], laid_out: LayOut = lay_out) -> str:
    return "".join(f"{row.text}\n" for row in laid_out(shown, None))


def _watch(look: Callable[[], dict[str, Any]], report: dict[str, Any], every_s: float, *, as_json: bool) -> int:
    """Show one look after the other until interrupted; return the last one's exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # or the terminal would be left without its cursor
    with ExitStack() as stack:
        show: Callable[[dict[str, Any]], None]
        if as_json:
            show = _show_json
        elif (terminal := _terminal(_output())) is not None:
            from trackwatch.screen import open_screen, stacked

            console, screen = terminal, stack.enter_context(open_screen(terminal))

            def show(report: dict[str, Any]) -> None:
                screen.update(stacked(console, lines(report, wall_clock_us())), refresh=True)
        else:

            def show(report: dict[str, Any]) -> None:
                click.echo(_plain(lines(report, wall_clock_us())))

        try:
            while True:
                show(report)
                time.sleep(every_s)
                report = look()
        except KeyboardInterrupt:
            return int(report["exit_code"])


def _show_json(report: dict[str, Any]) -> None:
    click.echo(json.dumps(report, ensure_ascii=False))


@cli.command()
@click.option("--parked", is_flag=True, help="Events that were set aside.")
@click.option("--since", metavar="TIME", help="Events from this time on.")
@click.option("--until", metavar="TIME", help="Events before this time.")
@click.option("--sequence", metavar="A-B", help="Events by their sequence numbers; 1- is all that are kept.")
@click.option("--event", "event_ids", metavar="ID", multiple=True, help="One event; may be given again.")
@click.option(
    "--path",
    metavar="GLOB",
    help="Events of a file, of a directory and all in it, or of what matches; also moved away.",
)
@click.option("--type", "types", multiple=True, type=click.Choice([kind.value for kind in EventType]))
@click.option("--dry-run", is_flag=True, help="Only say how many it would be, and show the first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def replay(
    parked: bool,
    since: str | None,
    until: str | None,
    sequence: str | None,
    event_ids: tuple[str, ...],
    path: str | None,
    types: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> None:
    """Send chosen events again, under their own ids and in order.

    All conditions must hold; --event and --type may be given again for more. The daemon may be running: it sends
    them beside the new events. If it is not, it sends them at its next start.

    TIME is 2026-11-20T18:00 (local; or with Z or an offset), 18:00, today, yesterday 18:00, now, or how long ago:
    45min, 2h, 3d, 1w.

    \b
    Examples:
      trackwatch replay --parked
      trackwatch replay --since yesterday --type created --dry-run
      trackwatch replay --since 2026-11-20T18:00 --until 2026-11-20T19:30 --yes
      trackwatch replay --path /data/music/Demo
      trackwatch replay --path '/data/music/*.flac' --since 2h
      trackwatch replay --sequence 1-             all that are kept
    """
    now = datetime.now().astimezone()
    selection = Selection(
        parked=parked,
        since_us=None if since is None else parse_time("--since", since, now),
        until_us=None if until is None else parse_time("--until", until, now),
        sequences=None if sequence is None else parse_range(sequence),
        event_ids=tuple(parse_event_id(text) for text in event_ids),
        path_glob=None if path is None else parse_path(path),
        types=tuple(EventType(kind) for kind in types),
    )
    if selection == Selection():
        raise ConfigError("nothing chosen: say which events, for instance --parked or --since 2026-11-20T18:00")
    if selection.since_us is not None and selection.until_us is not None and selection.since_us >= selection.until_us:
        raise ConfigError(f"--since={since} is not before --until={until}")
    folder = state_dir()
    chosen, sample, kept = choose(folder, selection)
    words = describe(chosen, now)
    if missing(selection, kept):
        note = f"note: events before {shown_time(kept.oldest_us, now)} are no longer kept (TRACKWATCH_RETENTION_DAYS)"
        click.echo(note, err=True)
    if dry_run or not chosen.count:
        click.echo(f"{words}; nothing was sent")
        _show_sample(sample, chosen.count, now)
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"this would send {words} again: say --yes, or ask at a terminal")
        if not click.confirm(f"send {words} again under their own ids?"):
            click.echo("nothing was sent")
            sys.exit(ExitCode.DEFECT)
    _queue(folder, chosen.sequences)


def _show_sample(sample: Sequence[Chosen], count: int, now: datetime) -> None:
    shown = []
    for event in sample:
        path = f"{displayed(event.old_path)} → " if event.old_path is not None else ""
        told = f"{event.sequence} {shown_time(event.at_us, now)} {event.event_type} {path}{displayed(event.path)}"
        shown.append(line("↳", "", told))
    if sample and count > len(sample):
        shown.append(line("↳", "", f"and {count - len(sample):,} more"))
    _print_lines(shown)


def _queue(folder: Path, sequences: Sequence[int]) -> None:
    """Queue events; at a terminal, stay until the running daemon has sent them."""
    from trackwatch.bars import replay_bar
    from trackwatch.screen import open_console

    queued, total = 0, len(sequences)
    console = open_console()
    told_at_s = time.monotonic()

    def progressed(count: int) -> None:
        nonlocal queued, told_at_s
        queued = count
        bar.update(task, completed=count)
        if not console.is_terminal and count < total and time.monotonic() > told_at_s + QUEUED_LINE_S:
            told_at_s = time.monotonic()
            click.echo(f"queued {count:,} of {total:,}", err=True)

    try:
        with replay_bar(console, transient=True) as bar:
            task = bar.add_task("queueing", total=total, note="")
            queue(folder, sequences, progressed)
    except KeyboardInterrupt:
        again = "the same command again queues the rest, and harms nothing"
        click.echo(f"interrupted: {queued:,} of {total:,} are queued, and will be sent; {again}", err=True)
        sys.exit(ExitCode.DEFECT)
    if running_pid(folder) is None:
        click.echo(f"queued {total:,} · the daemon publishes them at its next start")
        return
    click.echo(f"queued {total:,} · the running daemon is publishing them")
    if console.is_terminal:
        _follow(folder, sequences, console)


def _follow(folder: Path, sequences: Sequence[int], console: "Console") -> None:
    """Show how far the running daemon is with sending events again, until it has sent them."""
    from trackwatch.bars import replay_bar

    waiting = total = len(sequences)
    try:
        with replay_bar(console, transient=False) as bar:
            task = bar.add_task("sent again", total=total, note="")
            while (waiting := count_waiting(folder, sequences)) and running_pid(folder) is not None:
                word = broker_word(folder)
                bar.update(task, completed=total - waiting, note="" if word == "connected" else f"broker {word}")
                time.sleep(REPLAY_LOOK_S)
            bar.update(task, completed=total - waiting, note="")
        if waiting:
            click.echo(f"the daemon has stopped; {waiting:,} wait for its next start")
    except KeyboardInterrupt:
        click.echo(f"{total - waiting:,} of {total:,} were sent so far; the daemon goes on with the rest")


@cli.command()
@click.argument("root")
@click.option("--yes", is_flag=True, help="Do not ask.")
def accept(root: str, yes: bool) -> None:
    """Believe that the files missing in ROOT are really gone, and let their removal be told.

    For a root that `trackwatch status` calls suspect, or unavailable for good: after a real mass removal, or when a
    library has moved to another disk. Nothing is told of files that are there.
    """
    path, folder = os.path.abspath(os.fsencode(root)), state_dir()
    with open_beside(folder, writing=True) as conn:
        known = {total.root.path: total for total in catalogue.totals(conn)}
        if path not in known:
            watched = ", ".join(repr(os.fsdecode(path)) for path in known) or "none"
            raise ConfigError(f"{root!r} is no root of this state (there are: {watched})")
        watched_now = watched_roots(folder)
        if watched_now is not None and displayed(path) not in watched_now:
            raise ConfigError(
                f"the running daemon does not watch {root!r}: nothing is told of it; add it to DATA_DIR, restart the"
                " daemon, and look at trackwatch status"
            )
        if not yes:
            question = f"tell the removal of whatever is missing of {known[path].files:,} files in {os.fsdecode(path)}?"
            if not sys.stdin.isatty():
                raise ConfigError(f"{question} say --yes, or ask at a terminal")
            click.confirm(question, abort=True)
        catalogue.accept_removals(conn, known[path].root.id, wall_clock_us())
    running = running_pid(folder) is not None
    click.echo("accepted · " + ("the running daemon looks at it now" if running else "the next start looks at it"))


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"trackwatch {__version__}")
