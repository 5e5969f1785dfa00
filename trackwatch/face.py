"""What others see of the running daemon: its snapshot for `status`, health and metrics, progress, and words in the log.

It only looks: the tasks count what they do themselves, and none of them knows that it is looked at.
"""

import os
from collections.abc import Callable
from datetime import timedelta
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog
import trio

from trackwatch import __version__, catalogue, outbox
from trackwatch.event import EPOCH, displayed, rfc3339
from trackwatch.pool import PoolStatistics
from trackwatch.progress import ImportPace, Pace, Progress
from trackwatch.publisher import Publisher
from trackwatch.reconcile import Reconcile
from trackwatch.root import RootState
from trackwatch.settings import Settings
from trackwatch.status import lock_mark, not_ready, write_snapshot
from trackwatch.store import Reader, Store
from trackwatch.summary import Counts, keep_summarising
from trackwatch.watch import limits
from trackwatch.workers import WorkerStatistics

if TYPE_CHECKING:
    from trackwatch.metrics import Facts
    from trackwatch.web import WebState

# An idle daemon has no news, and a thread and a file each second were a good part of what it took of the processor.
SNAPSHOT_S, SNAPSHOT_MAX_S = 1.0, 10.0
PROGRESS_S = 0.2

log = structlog.get_logger()


class Face:
    """See the module's docstring. `state` is what the daemon does just now, in a word."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        reconcile: Reconcile,
        described: WorkerStatistics,
        pool: PoolStatistics,
        publisher: Publisher,
    ) -> None:
        self.state = "importing"
        self._settings = settings
        self._store = store
        self._reconcile = reconcile
        self._described = described
        self._pool = pool
        self._publisher = publisher
        self._web: WebState | None = None  # where there is a face for machines
        self._started_us = store.now_us()
        self._lock_mark = lock_mark(settings.state_dir)
        self._paces = {name: Pace() for name in ("files", "bytes", "published")}
        self._import_pace = ImportPace()
        self._last_swept_us: int | None = None  # by an earlier process
        self._has_stale_snapshot = False  # it could not be written
        self._writing_snapshot = trio.Lock()  # two at once would take each other's file away, or the older one stay

    async def keep_snapshot(self) -> None:
        """Write the snapshot when there is news, looking each second, and now and then without any; until cancelled."""
        written: dict[str, Any] = {}
        written_at = 0.0
        while True:
            news = {name: value for name, value in self._snapshot().items() if name != "seen_at"}
            if news != written or trio.current_time() >= written_at + SNAPSHOT_MAX_S:
                await self.write_snapshot()
                written, written_at = news, trio.current_time()
            await trio.sleep(SNAPSHOT_S)

    async def write_snapshot(self) -> None:
        """Write what is true now."""
        try:
            async with self._writing_snapshot:
                await trio.to_thread.run_sync(write_snapshot, self._settings.state_dir, self._snapshot())
        except OSError as error:
            # Only people's view of the daemon suffers; the store says for itself when it cannot write.
            if not self._has_stale_snapshot:
                log.warning("snapshot not written", reason=(error.strerror or str(error)).lower())
            self._has_stale_snapshot = True
        else:
            if self._has_stale_snapshot:
                log.info("snapshot written again")
            self._has_stale_snapshot = False

    def _snapshot(self) -> dict[str, Any]:
        broker, store, described, web = self._publisher.state, self._store.statistics, self._described, self._web
        return {
            "pid": os.getpid(),
            "lock_mark": self._lock_mark,
            "version": __version__,
            "instance_id": self._store.instance_id,
            "state": self.state,
            "started_at": rfc3339(self._started_us),
            "seen_at": rfc3339(self._store.now_us()),
            "roots": [_root_json(root) for root in self._reconcile.roots],
            "intake": {
                **self._reconcile.statistics(),
                "described": described.files,
                "described_bytes": described.size_bytes,
                "files_per_s": self._pace("files", described.files),
                "bytes_per_s": self._pace("bytes", described.size_bytes),
                "import": self._import_json() if self.state == "importing" else None,
                "events": dict(self._store.appended),
            },
            "broker": {
                "state": broker.word.value,
                "reason": broker.reason,
                "since": rfc3339(broker.since_us),
                "target": self._settings.sink.display,
                "published": broker.published,
                "published_per_s": self._pace("published", broker.published),
            },
            "store": {"trouble": store.trouble, "commits": store.commits},
            "http": None if web is None else {"state": web.word, "reason": web.reason, "address": web.address},
            "retention_days": self._settings.retention_days,
        }

    def _pace(self, name: str, count: int) -> float:
        return round(self._paces[name].note(trio.current_time(), count), 1)

    def _import_json(self) -> dict[str, Any]:
        progress = self._progress()
        return {
            "files": progress.files,
            "files_total": progress.files_total,
            "size_bytes": progress.size_bytes,
            "total_bytes": progress.total_bytes,
            "bytes_per_s": round(progress.bytes_per_s, 1),
            "left_s": None if progress.left_s is None else round(progress.left_s, 1),
        }

    async def serve(self, host: str, port: int) -> None:
        """Answer health checks and Prometheus until cancelled."""
        # Half a second of imports, and memory, for those who want it; beside the daemon's work.
        await trio.to_thread.run_sync(import_module, "trackwatch.web")
        await trio.to_thread.run_sync(import_module, "trackwatch.metrics")
        from trackwatch.metrics import CONTENT_TYPE, exposition
        from trackwatch.web import Answers, Web

        # A connection of its own: counting a million events takes a while, and nobody else is to wait for it.
        with self._store.open_reader() as reader:

            async def metrics() -> tuple[bytes, str]:
                facts = await self._facts(reader)
                return await trio.to_thread.run_sync(exposition, facts), CONTENT_TYPE

            web = Web(host, port, Answers(lambda: not_ready(self._snapshot()), metrics))
            self._web = web.state
            await web.run()

    async def _facts(self, reader: Reader) -> "Facts":
        from trackwatch.metrics import Facts, look_at_disk

        disk = await trio.to_thread.run_sync(look_at_disk, self._settings.state_dir)
        events, root_totals = await reader.read(outbox.totals), await reader.read(catalogue.totals)
        problems = await reader.read(catalogue.count_problems)
        snapshot = self._snapshot()
        intake, broker, oldest_us = snapshot["intake"], self._publisher.state, events.oldest_pending_us
        importing = intake["import"]
        return Facts(
            version=__version__,
            instance_id=self._store.instance_id,
            started_s=self._started_us / 1e6,
            state=self.state,
            is_ready=not not_ready(snapshot),
            events=intake["events"],
            published=broker.published,
            latency=broker.latency,
            broker=broker.word,
            outbox=events,
            oldest_pending_s=0.0 if oldest_us is None else max(0.0, (self._store.now_us() - oldest_us) / 1e6),
            outbox_max=self._settings.outbox_max,
            roots=self._reconcile.roots,
            root_totals=root_totals,
            dirty=intake["dirty"],
            in_flight=intake["in_flight"],
            in_flight_max=self._settings.max_concurrent_files,
            calls=self._pool.calls,
            described_files=intake["described"],
            described_bytes=intake["described_bytes"],
            import_files=None if importing is None else (importing["files"], importing["files_total"]),
            watches=intake["watched_directories"],
            watch_instances=intake["watch_instances"],
            watch_limits=limits(),
            problems=problems,
            restarts={
                "watch": intake["watch_deaths"],
                "publisher": broker.sessions_lost,
                "probe": self._pool.deaths,
                "web": 0 if self._web is None else self._web.failures,
            },
            commits=self._store.statistics.commits,
            is_writable=not self._store.statistics.trouble,
            disk=disk,
        )

    async def keep_summarising(self) -> None:
        """Log what was done, now and then, until cancelled."""
        with self._store.open_reader() as reader:

            async def counts() -> Counts:
                events = await reader.read(outbox.totals)
                return Counts(
                    events=dict(self._store.appended),
                    published=self._publisher.state.published,
                    described=self._described.files,
                    described_bytes=self._described.size_bytes,
                    pending=events.pending,
                    parked=events.parked,
                    problems=await reader.read(catalogue.count_problems),
                )

            await keep_summarising(counts)

    async def announce(self, show: Callable[[Progress], None]) -> None:
        """Show the import's progress until all roots were swept; then say that we are watching."""
        with self._store.open_reader() as reader:
            self._last_swept_us = await reader.read(catalogue.last_swept_us)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._show_progress, show)
                await self._reconcile.wait_swept()
                nursery.cancel_scope.cancel()
        finally:
            show(self._progress(done=True))  # also when it is broken off
        with self._store.open_reader() as reader:
            totals = await reader.read(catalogue.totals)
            problems = await reader.read(catalogue.count_problems)
        ours = {state.root.id for state in self._reconcile.roots}
        files = sum(total.files for total in totals if total.root.id in ours)
        self.state = "watching"
        words = f"{files:,} files"
        if self._last_swept_us is not None and not self._store.appended:
            since = (EPOCH + timedelta(microseconds=self._last_swept_us)).astimezone()
            words += f" · nothing has changed since {since:%Y-%m-%d %H:%M}"
        if problems:
            words += f" · {problems:,} problems (trackwatch status shows them)"
        await self.write_snapshot()
        log.info("watching", files=files, problems=problems, words=words)

    async def _show_progress(self, show: Callable[[Progress], None]) -> None:
        while True:
            show(self._progress())
            await trio.sleep(PROGRESS_S)

    def _progress(self, *, done: bool = False) -> Progress:
        roots = self._reconcile.roots
        met = sum(state.files for state in roots), sum(state.size_bytes for state in roots)
        files, size_bytes = self._reconcile.done_of(*met)
        return self._import_pace.note(
            trio.current_time(),
            files=files,
            files_total=sum(state.files_listed for state in roots),
            size_bytes=size_bytes,
            total_bytes=sum(state.bytes_listed for state in roots),
            read_files=self._described.files,
            read_bytes=self._described.size_bytes,
            done=done,
        )

    async def stopping(self, once: bool) -> None:
        """Say what is left to be done."""
        pending = await self._count_pending()
        again = "" if once else " (again to stop at once)"
        log.info("stopping", pending=pending, words=f"{pending:,} events to publish{again}")

    async def stopped(self) -> None:
        """Say what remains."""
        pending = await self._count_pending()
        self.state = "stopped"
        await self.write_snapshot()
        remains = f"{pending:,} events wait for the next start" if pending else "every event is published"
        log.info("stopped", pending=pending, words=remains)

    async def _count_pending(self) -> int:
        with self._store.open_reader() as reader:
            return (await reader.read(outbox.totals)).pending


def _root_json(state: RootState) -> dict[str, Any]:
    return {
        "path": displayed(state.root.path),
        "state": state.word.value,
        "reason": state.reason,
        "since": rfc3339(state.since_us),
        "fstype": state.fstype,
        "is_remote": state.is_remote,
        "directories": state.directories,
        "sweeping": state.is_sweeping,
        "sweep_seconds": round(state.sweep_seconds, 3),
        "unwatched_directories": len(state.blind),
        "unlistable_directories": len(state.unlistable),
    }
