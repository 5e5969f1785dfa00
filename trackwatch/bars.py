"""How far an import or a replay is: a bar at a terminal, lines of the log elsewhere, for which rich is not needed."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import structlog

from trackwatch.progress import Progress
from trackwatch.status import duration, size

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.progress import Progress as Bar

PROGRESS_LINE_S, PROGRESS_LINE_MAX_S = 10.0, 60.0

log = structlog.get_logger()


@contextmanager
def import_progress(terminal: "Console | None", *, as_lines: bool = False) -> Iterator[Callable[[Progress], None]]:
    """Give what shows the import's progress: a bar on a terminal, a line of the log now and then elsewhere."""
    if as_lines or terminal is None or terminal.is_dumb_terminal:
        yield _ProgressLines().show
        return
    bar = _import_bar(terminal)
    task = bar.add_task("import", total=None, facts="", visible=False)

    def show(progress: Progress) -> None:
        if progress.done:
            bar.stop()
        elif progress.files < progress.files_total:
            bar.start()
            bar.update(
                task,
                completed=progress.files,
                total=progress.files_total,
                facts=_facts(progress),
                visible=True,
            )

    try:
        yield show
    finally:
        bar.stop()


class _ProgressLines:
    """Progress for a log: a line for each ten per cent or each minute, but ten seconds apart."""

    def __init__(self) -> None:
        self._told_at = time.monotonic()
        self._told_files = -math.inf

    def show(self, progress: Progress) -> None:
        """Log it if it is time."""
        since_s = time.monotonic() - self._told_at
        is_further = progress.files - self._told_files >= progress.files_total / 10
        if progress.done or since_s < PROGRESS_LINE_S or not (is_further or since_s >= PROGRESS_LINE_MAX_S):
            return
        self._told_at, self._told_files = time.monotonic(), progress.files
        # Only an import that was not finished before has been counted; any other start compares with what is known.
        is_counted = progress.files_total >= max(1, progress.files)
        log.info(
            "importing",
            files=progress.files,
            files_total=progress.files_total if is_counted else None,
            size_bytes=progress.size_bytes,
            total_bytes=progress.total_bytes if is_counted else None,
            bytes_per_s=round(progress.bytes_per_s),
            left_s=None if progress.left_s is None else round(progress.left_s),
            words=_facts(progress) if is_counted else f"{progress.files:,} files so far",
        )


def _facts(progress: Progress) -> str:
    left = "" if progress.left_s is None else f" · {duration(progress.left_s)} left"
    return (
        f"{progress.files:,}/{progress.files_total:,} files · {size(progress.size_bytes)}/{size(progress.total_bytes)}"
        f" · {size(progress.bytes_per_s)}/s{left}"
    )


class _Narrower(NamedTuple):
    """What leaves the last columns free: the `^C` of an interrupt would begin another line, and the bar would stay."""

    shown: "RenderableType"

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield from console.render(self.shown, options.update_width(max(1, options.max_width - len("^C") - 1)))


def _import_bar(console: "Console") -> "Bar":
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    class ImportBar(Bar):
        def get_renderable(self) -> "RenderableType":
            return _Narrower(super().get_renderable())

    return ImportBar(
        TextColumn("importing"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[facts]}"),
        console=console,
        transient=True,
        expand=True,
    )


def replay_bar(console: "Console", *, transient: bool) -> "Bar":
    """Return a bar of a replay, which shows nothing where there is no terminal; `transient` goes when it is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}"),
        BarColumn(),  # not to the last column: the `^C` of an interrupt would begin another line
        MofNCompleteColumn(),
        TextColumn("[yellow]{task.fields[note]}"),
        TimeRemainingColumn(),
        console=Console(file=console.file, highlight=False),
        transient=transient,
        disable=not console.is_terminal,
    )
