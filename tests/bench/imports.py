"""A first import into RabbitMQ, from the start of the process to its end, beside the usual asyncio way of doing it.

In turn, over the same files in the page cache, into the same node and the same durable queue:

- ours: `trackwatch run --once`: catalogue and outbox on the disk before anything is sent, in order, every message
  confirmed;
- asyncio: `tests/bench/peers/asyncio_way.py`: aiofiles in 8 KB chunks, 100 files at once, mutagen in threads, one
  awaited publish for each file; nothing is remembered.

After each turn the queue is emptied, and has to hold every file once, with the same hashes as after the other turns.
Memory is that of all processes of each: the largest sum at one moment (PSS, where a page that several map counts in
parts), and the sum of what each had at its worst (VmHWM). Goals: 10 times as fast (at least 5), 30 % less memory.

The peer needs the dependency group `bench`: `uv pip install --require-hashes -r requirements-bench.lock`.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pika

from tests.bed.rabbit import RabbitNode
from tests.bench import apart
from tests.bench.measure import Cost, Footprint, Noise, Spread, a_daemon, arguments, bench, report, session_cpu_s
from tests.bench.sets import LIBRARIES, Made, made, size_options

EXCHANGE, QUEUE = "file_events", "all"


@dataclass(frozen=True)
class Turn:
    """What one import took."""

    seconds: float
    cost: Cost
    broker_cpu_s: float


def ours(root: Path, url: str, state: Path) -> tuple[float, Cost]:
    """Import with trackwatch."""
    with a_daemon(root, state, args=("--once", "--to", url)) as daemon:
        began_s = time.perf_counter()
        daemon.start(wait=False)
        with Footprint(daemon.pid) as footprint:
            code = daemon.wait_for_exit(apart.DEADLINE_S)
        took_s = time.perf_counter() - began_s
        assert code == 0, f"exit {code}: {daemon.stderr()[-2000:]}"
    return took_s, footprint.cost()


def asyncio_way(root: Path, url: str, _state: Path) -> tuple[float, Cost]:
    """Import with the peer."""
    command = [sys.executable, "-m", "tests.bench.peers.asyncio_way", str(root), url]
    began_s = time.perf_counter()
    with apart.running(command) as process, Footprint(process.pid) as footprint:
        apart.result(process)
    return time.perf_counter() - began_s, footprint.cost()


WAYS: dict[str, Callable[[Path, str, Path], tuple[float, Cost]]] = {"ours": ours, "asyncio": asyncio_way}


def declare_queue(url: str, kind: str) -> None:
    """Make the durable queue to which everything goes."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.exchange_declare(EXCHANGE, "topic", durable=True)
        channel.queue_declare(QUEUE, durable=True, arguments={"x-queue-type": kind})
        channel.queue_bind(QUEUE, EXCHANGE, "file.*")


def empty_queue(url: str, messages: int) -> dict[str, tuple[str, str]]:
    """Take so many messages from the queue, which must hold no more; return the hashes of each path."""
    told = {}
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1000)
        for count, (method, _, body) in enumerate(channel.consume(QUEUE, inactivity_timeout=10), 1):
            assert method is not None, f"{count - 1} messages instead of {messages}"
            event = json.loads(body)
            told[event["file_path"]] = event["sha256_hash"], event["xxh128_hash"]
            channel.basic_ack(method.delivery_tag)
            if count == messages:
                break
        channel.cancel()
        left = channel.queue_declare(QUEUE, passive=True).method.message_count
    assert not left, f"{left} messages too many"
    assert len(told) == messages, f"{len(told)} different files instead of {messages}"
    return told


def measure(library: Made, node: RabbitNode, folder: Path, repeat: int) -> tuple[list[dict[str, object]], object]:
    """Return the table's rows for a library, and all that was measured."""
    turns: dict[str, list[Turn]] = {way: [] for way in WAYS}
    told: dict[str, tuple[str, str]] = {}
    for number in range(repeat):
        for way, run in WAYS.items():
            before_s = session_cpu_s(node.pid)
            seconds, cost = run(library.root, node.url(), folder / f"{library.library.option}-{number}")
            turns[way].append(Turn(seconds, cost, session_cpu_s(node.pid) - before_s))
            now_told = empty_queue(node.url(), library.files)
            assert now_told == (told or now_told), "not the same was told"
            told = now_told
    rows = []
    for way, own in turns.items():
        pairs = list(zip(own, turns["asyncio"], strict=True))
        faster = Spread.of(peer.seconds / each.seconds for each, peer in pairs)
        pss = Spread.of(each.cost.peak_pss_bytes / peer.cost.peak_pss_bytes for each, peer in pairs)
        rss = Spread.of(each.cost.peak_rss_bytes / peer.cost.peak_rss_bytes for each, peer in pairs)
        seconds = Spread.of(turn.seconds for turn in own).median
        rows.append(
            {
                "files": library.title if way == "ours" else "",
                "way": way,
                "s": seconds,
                "files/s": library.files / seconds,
                "GB/s": library.size_bytes / seconds / 1e9,
                "times as fast": faster.median,
                "from": faster.smallest,
                "to": faster.largest,
                "goal": "10 (5)" if way == "ours" else "",
                "peak MB (PSS)": Spread.of(turn.cost.peak_pss_bytes / 1e6 for turn in own).median,
                "of the peer's": pss.median,
                "peaks MB (RSS)": Spread.of(turn.cost.peak_rss_bytes / 1e6 for turn in own).median,
                "of the peer's ": rss.median,
                "goal ": 0.7 if way == "ours" else "",
                "CPU s": Spread.of(turn.cost.cpu_s for turn in own).median,
                "of workers": Spread.of(turn.cost.others_cpu_s for turn in own).median,
                "of the broker": Spread.of(turn.broker_cpu_s for turn in own).median,
            }
        )
    return rows, turns


def main() -> None:
    """Measure from the command line."""
    options = arguments(
        __doc__,
        **size_options(*LIBRARIES),
        repeat=(3, "turns"),
        queue=("classic", "its type: classic, quorum"),
    )
    noise = Noise()
    rows: list[dict[str, object]] = []
    details = {}
    with bench(options.dir) as folder, RabbitNode(folder / "node") as node:
        declare_queue(node.url(), options.queue)
        for library in LIBRARIES:
            if getattr(options, library.option):
                with made(library, options) as library_made:
                    more, turns = measure(library_made, node, folder, options.repeat)
                rows += more
                details[library.name] = turns
    report(f"imports to a durable {options.queue} queue", rows, noise, options.json, **details)


if __name__ == "__main__":
    main()
