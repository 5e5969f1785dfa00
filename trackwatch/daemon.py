"""The daemon: all wiring on one screen, and the order in which everything stops.

    store open
    └─ keeping nursery          writer · signals · snapshot · log · pruning · HTTP face
       └─ delivery nursery      publisher
          └─ pool's nursery     one task for each process that describes files
          └─ intake nursery     workers
             └─ taking nursery  reconcile (watch, sweeps) · progress

The first signal ends the intake (files in hand are finished), then the publisher drains, then the store closes. A
second signal cancels everything. What was not sent stays pending, under its old id.
"""

import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import import_module

import structlog
import trio

from trackwatch import __version__, outbox
from trackwatch.errors import ConfigError, ExitCode, RootUnavailable
from trackwatch.face import Face
from trackwatch.jsonl import open_json_lines
from trackwatch.pool import PoolStatistics, open_pool, room
from trackwatch.progress import Progress
from trackwatch.publisher import BrokerWord, Publisher, Sink
from trackwatch.reconcile import Job, Reconcile
from trackwatch.record import Ledger
from trackwatch.root import RootWord
from trackwatch.settings import Settings
from trackwatch.settle import DirtySet
from trackwatch.status import shown_path
from trackwatch.store import Reader, Store, open_store
from trackwatch.sweep import Wanted, check_root
from trackwatch.values import AmqpTarget, JsonLinesTarget
from trackwatch.workers import Workers, WorkerStatistics

# Files in hand are finished within this, or left: the next sweep finds them. Those who stop us wait ten seconds, often
# less, before they kill.
INTAKE_GRACE_S = 2.0
# Pending events are sent within this, or left pending; and a sink that takes none for so long is not waited for.
DRAIN_GRACE_S, DRAIN_SILENT_S = 2.5, 2.0
# A chunk of 1000 deletions holds the writer up for about 20 ms.
OUTBOX_LOOK_S, PRUNE_ROWS = 10.0, 1000
# How late what the log has held back may be told.
LOG_LOOK_S = 5.0

log = structlog.get_logger()


async def run(
    settings: Settings,
    *,
    once: bool = False,
    show: Callable[[Progress], None] = lambda _: None,
    tend_log: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Run the daemon until it is told to stop; with `once`, until everything is imported and delivered.

    `show` is called with the progress of an import, `tend_log` every few seconds.

    Raises:
        StoreError: the state cannot be used.
        ConfigError: a root can never be watched.
    """
    await trio.to_thread.run_sync(_check_roots, settings, once)
    async with open_store(settings.state_dir, instance_id=settings.instance_id, form=settings.metadata) as store:
        _greet(settings, store)
        stop = trio.Event()
        with store.open_reader() as reader, store.open_reader() as outbox_reader:
            publisher = Publisher(store, outbox_reader, _sink_opener(settings, store), unroutable=settings.unroutable)
            async with trio.open_nursery() as keeping:
                await keeping.start(store.run)
                await keeping.start(_receive_signals, stop, keeping.cancel_scope)
                roots = await store.write(lambda ledger: ledger.claim_roots(settings.roots))
                patterns = settings.patterns
                send_jobs, receive_jobs = trio.open_memory_channel[Job](0)
                reconcile = Reconcile(
                    store,
                    reader,
                    roots,
                    wanted=Wanted(patterns.wanted, patterns.descend, patterns.priority if settings.priority else None),
                    settle=DirtySet(quiet_s=settings.settle_s, ceiling_s=settings.settle_max_s),
                    jobs=send_jobs,
                    probes_max=_probes_max(settings),
                    sweep_s=settings.sweep_s,
                )
                described, pool_statistics = WorkerStatistics(), PoolStatistics()
                face = Face(settings, store, reconcile, described, pool_statistics, publisher)
                keeping.start_soon(face.keep_snapshot)
                keeping.start_soon(face.keep_summarising)
                keeping.start_soon(_tend, tend_log)
                if settings.http is not None:
                    keeping.start_soon(face.serve, *settings.http)
                keeping.start_soon(_keep_outbox_small, store, outbox_reader, reconcile, settings)
                async with trio.open_nursery() as delivery:
                    delivery.start_soon(_publish_until_closed, publisher, stop)
                    async with (
                        open_pool(settings.probe_processes, statistics=pool_statistics) as pool,
                        trio.open_nursery() as intake,
                    ):
                        workers = Workers(
                            store, pool.describe, reconcile.place, reconcile.probed, reconcile.finished, described
                        )
                        for _ in range(settings.max_concurrent_files):
                            intake.start_soon(workers.work, receive_jobs.clone())
                        receive_jobs.close()
                        async with trio.open_nursery() as taking:
                            taking.start_soon(reconcile.run)
                            taking.start_soon(face.announce, show)
                            if once:
                                taking.start_soon(_stop_when_idle, reconcile, stop)
                            await stop.wait()
                            face.state = "stopping"
                            taking.cancel_scope.cancel()
                        intake.cancel_scope.deadline = trio.current_time() + INTAKE_GRACE_S
                    await face.stopping(once)
                    await _drain(publisher, outbox_reader, patient=once)
                    delivery.cancel_scope.cancel()
                await face.stopped()
                keeping.cancel_scope.cancel()
        unavailable = [state for state in reconcile.roots if state.word is RootWord.UNAVAILABLE]
        return ExitCode.DEFECT if once and unavailable else ExitCode.OK


def _probes_max(settings: Settings) -> int:
    """Return how many files of an import may be in the probes' hands: a part of the workers is left to live changes."""
    return max(1, min(room(settings.probe_processes), settings.max_concurrent_files * 3 // 4))


def _check_roots(settings: Settings, once: bool) -> None:
    """Refuse roots that waiting cannot mend; one that is missing may be a volume that comes up later."""
    problems = []
    for root in settings.roots:
        try:
            check_root(root)
        except RootUnavailable as error:
            missing = not os.path.lexists(root)
            if once or not missing:
                problems.append(f"cannot watch {error}")
    if problems:
        raise ConfigError(*problems)


def _sink_opener(settings: Settings, store: Store) -> Callable[[], AbstractAsyncContextManager[Sink]]:
    match settings.sink:
        case AmqpTarget() as target:
            return lambda: _open_amqp(target, store.instance_id)
        case JsonLinesTarget(path):
            return lambda: open_json_lines(1 if path is None else path)


@asynccontextmanager
async def _open_amqp(target: AmqpTarget, instance_id: str) -> AsyncIterator[Sink]:
    """Open a session with a broker, see amqp.py; its libraries are imported for the first, beside the daemon's work."""
    await trio.to_thread.run_sync(import_module, "trackwatch.amqp")
    from trackwatch.amqp import Broker, open_amqp

    broker = Broker(target.url, target.exchange, target.heartbeat_s, target.ca_file, target.cert_file, target.key_file)
    async with open_amqp(broker, instance_id=instance_id) as sink:
        yield sink


async def _receive_signals(
    stop: trio.Event, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as received:
        task_status.started()
        async for _ in received:
            if stop.is_set():
                everything.cancel()
            stop.set()


async def _tend(tend_log: Callable[[], None]) -> None:
    while True:
        await trio.sleep(LOG_LOOK_S)
        tend_log()


async def _publish_until_closed(publisher: Publisher, stop: trio.Event) -> None:
    await publisher.run()
    stop.set()  # whoever read our output has gone: nothing is left to be done


async def _keep_outbox_small(store: Store, reader: Reader, reconcile: Reconcile, settings: Settings) -> None:
    """Forget published events after their time, and hold the intake back while too many wait."""
    keep_us = int(settings.retention_days * 86400e6)
    while True:
        prune = partial(_prune, store.now_us() - keep_us)
        while await store.write(prune) == PRUNE_ROWS:
            pass
        waiting = await reader.read(outbox.count_pending)
        reconcile.hold_back(waiting >= settings.outbox_max)
        await trio.sleep(OUTBOX_LOOK_S)


def _prune(before_us: int, ledger: Ledger) -> int:
    return outbox.prune(ledger.conn, before_us, PRUNE_ROWS, ledger.now_us())


async def _stop_when_idle(reconcile: Reconcile, stop: trio.Event) -> None:
    await reconcile.wait_idle()
    stop.set()


async def _drain(publisher: Publisher, reader: Reader, *, patient: bool) -> None:
    """Wait until the outbox is empty; not for long, unless that is what we were started for."""
    if publisher.state.word is BrokerWord.CLOSED:
        return
    if patient:
        await publisher.wait_empty()
        return
    if not await reader.read(outbox.has_new):
        return  # a broker that is away need not be waited for
    with trio.move_on_after(DRAIN_GRACE_S):
        while True:
            published = publisher.state.published
            with trio.move_on_after(DRAIN_SILENT_S):
                # What is sent again has waited before, and may be as much as the outbox holds.
                await publisher.wait_empty(replays=False)
                return
            if publisher.state.published == published:
                return


def _greet(settings: Settings, store: Store) -> None:
    structlog.contextvars.bind_contextvars(instance=store.instance_id)  # every task and thread inherits it
    for warning in settings.warnings:
        log.warning("setting", reason=warning)
    state = shown_path(os.fsencode(settings.state_dir))
    log.info(
        "trackwatch",
        version=__version__,
        state_dir=str(settings.state_dir),
        words=f"{__version__} · instance {store.instance_id} · state {state}",
    )
    target = settings.sink
    standard_output = isinstance(target, JsonLinesTarget) and target.path is None
    hint = "none: events go to standard output (set RABBITMQ_URL to publish)"
    log.info("broker", target=target.display, words=hint if standard_output else target.display)
