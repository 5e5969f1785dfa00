"""Durable puts a second into SQLite queues, ours and those of others, while 100 puts wait.

Each put is one event of about 1.5 KB and returns once it is on the disk: write-ahead log and `synchronous=FULL` for
everyone, which strace's counts let one check. Ours are 100 Trio tasks; the others are driven by as many threads as suit
them best, which is tried out before. All are given the finished bytes of the event. Two more figures have no equal
elsewhere: with the making of these bytes, and what really happens for a file, which is that and the row of the
catalogue in the same transaction. Each is measured as a process of its own with a new database.
"""

import importlib
import importlib.util
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import trio

from tests.bench import apart
from tests.bench.figures import Budget, in_turn
from tests.bench.run import Run
from trackwatch import outbox
from trackwatch.clock import wall_clock_us
from trackwatch.event import Content, Event, EventType, MetadataForm, metadata_text, new_event_id
from trackwatch.record import Ledger, Present
from trackwatch.store import open_store
from trackwatch.track import Location, Metadata, Observation, Signature

Put = Callable[[bytes], object]
OURS, MAKING, RECORDING = "trackwatch", "trackwatch, and made", "trackwatch, and catalogued"
TASKS = 100
# How many threads are tried: one has no lock to wait for, many have always one that is ready.
THREADS = (1, 4, 100)
TRIAL_S = 0.5
TURNS = 5
ROOT = b"/data/music"
METADATA = Metadata(
    "audio/flac",
    duration_s=291.493333,
    bitrate=873_512,
    sample_rate=44_100,
    channels=2,
    tags={
        "title": "Der Erlkönig, D 328 (Op. 1), Ballade nach J. W. von Goethe",
        "artist": "Dietrich Fischer-Dieskau; Gerald Moore",
        "album": "Schubert: Lieder, Bd. 1 (Aufnahmen 1966-1972, neu überspielt)",
        "album_artist": "Dietrich Fischer-Dieskau",
        "date": "1969-05-01",
        "genre": "Classical; Lied",
        "track": 7,
        "track_total": 24,
        "disc": 2,
        "disc_total": 21,
        "composer": "Franz Schubert",
        "comment": "Übernommen von der Langspielplatte, linker Kanal um 0,4 dB angehoben; siehe das Beiheft, Seite 17. "
        "Begleitheft mit allen Texten und Daten der Aufnahmen liegt als PDF im selben Verzeichnis; nicht löschen, "
        "auch wenn ein Programm meint, dass es zu keinem Titel gehöre.",
        "publisher": "Deutsche Grammophon Gesellschaft",
        "isrc": "DEF057200123",
    },
)


def present(number: int) -> Present:
    """Return a described file; no two are alike."""
    digest = sha256(b"%d" % number).digest()
    name = b"Fischer-Dieskau, Dietrich/Schubert - Lieder 1/%07d Der Erlkoenig.flac" % number
    seen = Signature(
        65_024, 1_000_000 + number, 31_824_177, 1_690_000_000_000_000_000, 1_790_000_000_000_000_000 + number
    )
    return Present(Location(1, name), Observation(seen, digest, digest[:16], METADATA))


def event(number: int) -> Event:
    """Return the event that such a file becomes."""
    change, now_us = present(number), wall_clock_us()
    seen = change.observation
    content = Content(
        seen.sha256, seen.xxh128, seen.signature.size_bytes, seen.signature.mtime_ns, metadata_text(METADATA)
    )
    where = change.location.path
    return Event(new_event_id(now_us), EventType.CREATED, number, now_us, "bench", ROOT, where, content=content)


# --- ours ---


class Finished(Event):
    """An event whose bytes were made before."""

    __slots__ = ("body",)
    body: bytes

    def to_json(self, form: MetadataForm = MetadataForm.STRUCTURED) -> bytes:
        """Return them."""
        return self.body


def append_finished(body: bytes) -> Callable[[Ledger], None]:
    """Return what puts an event that has everything but its number."""

    def append(ledger: Ledger) -> None:
        now_us = ledger.now_us()
        put = Finished(new_event_id(now_us), EventType.CREATED, ledger.next_sequence, now_us, "bench", ROOT, b"a.flac")
        object.__setattr__(put, "body", body)
        outbox.append(ledger.conn, put, ledger.form)
        ledger.next_sequence += 1

    return append


def append_made(ledger: Ledger) -> None:
    """Make an event, and put it."""
    outbox.append(ledger.conn, event(ledger.next_sequence), ledger.form)
    ledger.next_sequence += 1


def record_next(ledger: Ledger) -> None:
    """Record a file that was described."""
    ledger.record(present(ledger.next_sequence))


async def run_ours(folder: Path, seconds: float, work: Callable[[Ledger], object]) -> tuple[int, float]:
    """Put from many tasks for some time; return how many puts there were, and in how many seconds."""
    puts = 0

    async with open_store(folder) as store, trio.open_nursery() as writing:
        await writing.start(store.run)
        await store.write(lambda ledger: ledger.claim_roots((ROOT,)))
        began_s = time.monotonic()

        async def put_for_ever() -> None:
            nonlocal puts
            while time.monotonic() < began_s + seconds:
                await store.write(work)
                puts += 1

        async with trio.open_nursery() as tasks:
            for _ in range(TASKS):
                tasks.start_soon(put_for_ever)
        took_s = time.monotonic() - began_s
        writing.cancel_scope.cancel()
    return puts, took_s


# --- the others; each returns what puts one message, durably ---


def open_huey(folder: Path) -> Put:
    """Open huey's storage as SqliteHuey does, in its durable form."""
    huey = importlib.import_module("huey")
    storage = huey.SqliteHuey(filename=str(folder / "huey.db"), fsync=True, journal_mode="wal").storage
    put: Put = storage.enqueue
    return put


def open_litequeue(folder: Path) -> Put:
    """Open a queue of litequeue; it sets synchronous=NORMAL itself, which would lose what was put at a power cut."""
    queue = importlib.import_module("litequeue").LiteQueue(folder / "lite.db")
    queue.conn.execute("PRAGMA synchronous = FULL")
    return lambda data: queue.put(data.decode())


def open_persist_queue(folder: Path) -> Put:
    """Open an acknowledged queue of persist-queue, for many threads, with bytes stored as they are."""
    persistqueue = importlib.import_module("persistqueue")
    queue = persistqueue.SQLiteAckQueue(str(folder / "persist"), multithreading=True, serializer=_AsIs)
    for connection in (queue._putter, queue._getter):
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    put: Put = queue.put
    return put


class _AsIs:
    """A serializer that does nothing: pickling is no part of what is compared."""

    @staticmethod
    def dumps(data: bytes) -> bytes:
        return data

    @staticmethod
    def loads(data: bytes) -> bytes:
        return data


PEERS: Mapping[str, Callable[[Path], Put]] = {
    "huey": open_huey,
    "litequeue": open_litequeue,
    "persist-queue": open_persist_queue,
}


PACKAGES = {"huey": "huey", "litequeue": "litequeue", "persist-queue": "persistqueue"}


def run_peer(put: Put, seconds: float, threads: int) -> tuple[int, float]:
    """Put from some threads for some time; return how many puts there were, and in how many seconds."""
    payload = event(1).to_json()
    put(payload)
    counts = [0] * threads
    errors: list[Exception] = []
    began_s = time.monotonic()

    def put_for_ever(number: int) -> None:
        try:
            while time.monotonic() < began_s + seconds:
                put(payload)
                counts[number] += 1
        except Exception as error:
            errors.append(error)

    running = [threading.Thread(target=put_for_ever, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    if errors:
        raise errors[0]
    return sum(counts), time.monotonic() - began_s


# --- processes of their own ---


def run_here(contender: str, folder: str, seconds: float, threads: int) -> tuple[int, float]:
    """Measure one contender in this process, with a new folder."""
    Path(folder).mkdir()
    if contender in PEERS:
        return run_peer(PEERS[contender](Path(folder)), seconds, threads)
    works = {OURS: append_finished(event(1).to_json()), MAKING: append_made, RECORDING: record_next}
    return trio.run(run_ours, Path(folder), seconds, works[contender])


def rate(contender: str, folder: Path, seconds: float, threads: int) -> float:
    """Return the puts a second of one contender, in a process of its own."""
    puts, took_s = apart.call(run_here, contender, str(folder), seconds, threads)
    return float(puts / took_s)


def _rate_afresh(run: Run, contender: str, seconds: float, threads: int) -> float:
    return rate(contender, run.fresh("puts"), seconds, threads)


def puts_a_sync(contender: str, folder: Path, seconds: float, threads: int) -> float:
    """Return how many puts share one request to the disk (fsync, fdatasync), as strace counts these."""
    counted = folder.with_suffix(".strace")
    strace = ["strace", "-f", "-c", "-e", "trace=fsync,fdatasync", "-o", str(counted)]
    with apart.running([*strace, *apart.calling(run_here, contender, str(folder), seconds, threads)]) as process:
        puts, _ = apart.result(process)
    lines = [line.split() for line in counted.read_text().splitlines()]
    calls = sum(int(line[3]) for line in lines if line and line[-1] in ("fsync", "fdatasync"))
    return float(puts / calls) if calls else 0.0


@dataclass(frozen=True)
class Rates:
    """Puts a second of each contender, turn by turn; how many threads drive each of the others, and puts per sync."""

    puts_per_s: dict[str, list[float]]
    threads: dict[str, int]
    puts_a_sync: dict[str, float]  # empty: strace is not here


def measure(run: Run, budget: Budget, seconds: float) -> Rates:
    """Measure all in turn, the others with as many threads as suit them best."""
    contenders = [OURS, MAKING, RECORDING, *(peer for peer in PEERS if importlib.util.find_spec(PACKAGES[peer]))]
    threads = dict.fromkeys(contenders, 0)
    for peer in contenders[3:]:
        rates = {number: rate(peer, run.fresh("trial"), min(seconds, TRIAL_S), number) for number in THREADS}
        threads[peer] = max(rates, key=lambda number: rates[number])
    ways = {each: partial(_rate_afresh, run, each, seconds, threads[each]) for each in contenders}
    turns = in_turn(ways, budget, most=TURNS)
    syncs = {}
    if shutil.which("strace"):
        syncs = {
            each: puts_a_sync(each, run.fresh("puts"), min(seconds, TRIAL_S), threads[each]) for each in contenders
        }
    return Rates(turns, threads, syncs)
