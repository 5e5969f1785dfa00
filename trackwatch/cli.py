"""The command line: run, status, replay, version. Exit codes are in `errors.ExitCode`; errors are one line each."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

import click
import structlog
import trio
from rich.console import Console
from rich.markup import escape

from trackwatch import __version__, catalogue, outbox
from trackwatch.errors import ConfigError, ExitCode, TrackwatchError
from trackwatch.event import EPOCH, EventType, rfc3339
from trackwatch.outbox import Selection
from trackwatch.settings import load, state_dir
from trackwatch.status import collect, exit_code, lines, size
from trackwatch.store import open_beside, running_pid, wall_clock_us
from trackwatch.words import open_console, progress_bar, set_up_log

PROGRESS_LINE_S = 10.0
_GREEN = {"watching", "ok", "connected", "idle", "importing", "busy", "starting"}
_RED = {"refused", "not running", "unwritable"}

if TYPE_CHECKING:
    from trackwatch.daemon import Progress

log = structlog.get_logger()


def main() -> None:
    """Run the command line and leave with the right exit code."""
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
    sys.exit(int(code or 0))


def _first(group: BaseExceptionGroup[TrackwatchError]) -> TrackwatchError:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, TrackwatchError)
    return found


def _complain(error: TrackwatchError) -> None:
    for line in str(error).splitlines():
        click.echo(f"trackwatch: {line}", err=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="trackwatch %(version)s")
def cli() -> None:
    """Turn music libraries into a stream of events that never lies and never loses one.

    \b
    trackwatch run ~/Music > events.jsonl      events as JSON lines
    trackwatch run ~/Music --to amqp://rabbit  events to RabbitMQ
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
    # Half a second of imports (AMQP, tags, the watcher) that `status`, called as a health check, need not pay.
    from trackwatch import daemon

    settings = load(roots=roots, to=to)
    console = open_console()
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not console.is_terminal)
    set_up_log(settings.log_level, as_json=as_json, console=console)
    with _show_progress(console) as show:
        code = trio.run(partial(daemon.run, settings, once=once, show=show))
    sys.exit(int(code))


@contextmanager
def _show_progress(console: Console) -> Iterator[Callable[["Progress"], None]]:
    """Give what shows the import's progress: a bar on a terminal, a line of the log now and then elsewhere."""
    if not console.is_terminal:
        yield _ProgressLines().show
        return
    bar = progress_bar(console)
    started = time.monotonic()
    task = bar.add_task("import", total=None, read="0 B", rate="0 B", visible=False)

    def show(progress: "Progress") -> None:
        if progress.done:
            bar.stop()
        elif progress.files < progress.files_total:
            rate = progress.size_bytes / max(0.1, time.monotonic() - started)
            bar.start()
            bar.update(
                task,
                completed=progress.files,
                total=progress.files_total,
                read=size(progress.size_bytes),
                rate=size(rate),
                visible=True,
            )

    try:
        yield show
    finally:
        bar.stop()


class _ProgressLines:
    """Progress for a log: a line every ten seconds."""

    def __init__(self) -> None:
        self._next_at = time.monotonic() + PROGRESS_LINE_S

    def show(self, progress: "Progress") -> None:
        """Log it if it is time."""
        if progress.done or time.monotonic() < self._next_at:
            return
        self._next_at = time.monotonic() + PROGRESS_LINE_S
        log.info("importing", files=progress.files, files_total=progress.files_total, size_bytes=progress.size_bytes)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="The same facts for machines.")
def status(as_json: bool) -> None:
    """Say how the daemon is, running or not.

    Exit code: 0 healthy, 1 degraded, 2 usage, 3 state unreadable, 4 not running.
    """
    report = collect(state_dir())
    code = exit_code(report)
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False, indent=2))
    else:
        console = open_console(sys.stdout)
        for label, word, rest in lines(report, wall_clock_us()):
            console.print(_status_line(label, word, rest))
    sys.exit(int(code))


def _status_line(label: str, word: str, rest: str) -> str:
    if label == "↳":
        return f"{'':<9}[dim]↳[/] {escape(rest)}"
    style = (
        "green" if word in _GREEN else "red" if word in _RED else "" if word[:1].isdigit() or word == "-" else "yellow"
    )
    shown = f"[{style}]{escape(word)}[/]" if style else escape(word)
    if label in "●○":
        return f"{label} {shown}{' ' * max(1, 22 - len(word))}{escape(rest)}"
    return f"{label:<9}{shown}{' ' * max(1, 15 - len(word))}{escape(rest)}"


@cli.command()
@click.option("--parked", is_flag=True, help="Events that were set aside.")
@click.option("--since", metavar="TIME", help="Events from this time on (2026-11-20T18:00, UTC without an offset).")
@click.option("--until", metavar="TIME", help="Events before this time.")
@click.option("--sequence", metavar="A-B", help="Events by their sequence numbers.")
@click.option("--event", "event_ids", metavar="ID", multiple=True, help="One event; may be given again.")
@click.option("--path", "path_glob", metavar="GLOB", help="Events whose file_path matches.")
@click.option("--type", "types", multiple=True, type=click.Choice([kind.value for kind in EventType]))
@click.option("--dry-run", is_flag=True, help="Only say how many it would be.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def replay(
    parked: bool,
    since: str | None,
    until: str | None,
    sequence: str | None,
    event_ids: tuple[str, ...],
    path_glob: str | None,
    types: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> None:
    """Send chosen events again, under their own ids and in order.

    The daemon may be running; if it is not, it sends them at its next start.

    \b
    Examples:
      trackwatch replay --parked
      trackwatch replay --since 2026-11-20T18:00 --type created --dry-run
      trackwatch replay --path '/data/music/Demo/*'
    """
    selection = Selection(
        parked=parked,
        since_us=None if since is None else _parse_time("--since", since),
        until_us=None if until is None else _parse_time("--until", until),
        sequences=None if sequence is None else _parse_range(sequence),
        event_ids=tuple(_parse_event_id(text) for text in event_ids),
        path_glob=None if path_glob is None else path_glob.encode(errors="surrogateescape"),
        types=tuple(EventType(kind) for kind in types),
    )
    if selection == Selection():
        raise ConfigError("nothing chosen: say which events, for instance --parked or --since 2026-11-20T18:00")
    folder = state_dir()
    with open_beside(folder) as conn:
        chosen = outbox.select(conn, selection)
    span = f", {rfc3339(chosen.first_us)} … {rfc3339(chosen.last_us)}" if chosen.first_us and chosen.last_us else ""
    if dry_run or not chosen.count:
        click.echo(f"{chosen.count:,} events{span}; nothing was sent")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigError(f"this would send {chosen.count:,} events again: say --yes, or ask at a terminal")
        click.confirm(f"send {chosen.count:,} events{span} again under their own ids?", abort=True)
    _queue(folder, chosen.sequences)
    running = running_pid(folder) is not None
    click.echo(
        f"queued {chosen.count:,} · "
        + ("the running daemon is publishing them" if running else "the daemon publishes them at its next start")
    )


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
        if not yes:
            question = f"tell the removal of whatever is missing of {known[path].files:,} files in {os.fsdecode(path)}?"
            if not sys.stdin.isatty():
                raise ConfigError(f"{question} say --yes, or ask at a terminal")
            click.confirm(question, abort=True)
        catalogue.accept_removals(conn, known[path].root.id, wall_clock_us())
    running = running_pid(folder) is not None
    click.echo("accepted · " + ("the running daemon looks at it now" if running else "the next start looks at it"))


def _queue(folder: Path, sequences: Sequence[int]) -> None:
    # In chunks: a running daemon must never wait for us longer than it notices.
    with open_beside(folder, writing=True) as conn:
        for start in range(0, len(sequences), 1000):
            conn.execute("BEGIN IMMEDIATE")
            outbox.replay(conn, sequences[start : start + 1000])
            conn.execute("COMMIT")


def _parse_time(option: str, text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}={text}: not a time such as 2026-11-20T18:00") from None
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - EPOCH) // timedelta(microseconds=1)


def _parse_range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    try:
        return int(first), int(last if dash else first)
    except ValueError:
        raise ConfigError(f"--sequence={text}: not a range such as 100-200") from None


def _parse_event_id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ConfigError(f"--event={text}: not an event id") from None


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"trackwatch {__version__}")
