"""How long does a stop take in the middle of an import? (goal: 5 s with a broker that answers, 8 s with a frozen one)

SIGTERM after a part of an import has arrived, while files are described and published; then a second start, after which
the whole stream has to come to what is on the disk, with no number missing.
"""

import random
import time
from pathlib import Path

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.bed.rabbit import RabbitNode
from tests.bed.recorder import Recorder
from tests.bench.measure import Noise, Spread, arguments, bench, report
from tests.data.make_library import make_library

DEADLINE_S = 600.0
SHARE = (0.05, 0.7)


def stop_once(
    node: RabbitNode, root: Path, state: Path, files: int, share: float, *, frozen: bool
) -> tuple[float, int]:
    """Stop a daemon when it has published a share of an import; return how long that took, and what it left pending."""
    node.add_vhost(state.name)
    url = node.url(state.name)
    with Daemon(root, state, args=["--to", url]) as daemon:
        with Recorder(url) as recorder:
            queue = recorder.queue
            daemon.start(wait=False)
            recorder.wait_for(int(files * share), DEADLINE_S)
        # Without the recorder: a frozen node would hold it up for longer than the daemon.
        if frozen:
            node.freeze()
        try:
            began_s = time.monotonic()
            code = daemon.stop(60.0)
            took_s = time.monotonic() - began_s
        finally:
            if frozen:
                node.thaw()
        assert code == 0, f"exit {code}: {daemon.stderr()[-2000:]}"
        pending: int = daemon.status()[1]["outbox"]["pending"]
        messages = recorder.messages
        daemon.start(timeout_s=DEADLINE_S)
        daemon.wait_until(lambda: daemon.status()[1]["outbox"]["pending"] == 0, DEADLINE_S, "an empty outbox")
        with Recorder(url, queue=queue) as again:
            again.wait_until(lambda more: len({m.message_id for m in (*messages, *more)}) >= files, DEADLINE_S)
            assert_equal_fold([*messages, *again.messages], root)
        daemon.stop(60.0)
    return took_s, pending


def main() -> None:
    """Measure and print."""
    options = arguments(
        __doc__,
        files=(10_000, "in the library"),
        size_kb=(130, "of each file"),
        repeat=(5, "stops"),
        seed=(1, "of it all"),
    )
    noise, chance = Noise(), random.Random(options.seed)
    rows = []
    with bench(options.dir) as folder, RabbitNode(folder / "node") as node:
        root = folder / "music"
        make_library(str(root), options.files, size_bytes=options.size_kb * 1000)
        for frozen in (False, True):
            taken = [
                stop_once(node, root, folder / f"{frozen}-{turn}", options.files, chance.uniform(*SHARE), frozen=frozen)
                for turn in range(options.repeat)
            ]
            seconds = Spread.of(took_s for took_s, _ in taken)
            rows.append(
                {
                    "broker": "frozen" if frozen else "alive",
                    "stops": options.repeat,
                    "median s": seconds.median,
                    "largest s": seconds.largest,
                    "goal s": 8 if frozen else 5,
                    "left pending": ", ".join(str(pending) for _, pending in taken),
                    "lost": 0,  # or else the fold would have said so
                }
            )
    report(f"stop: SIGTERM while {options.files:,} files are imported", rows, noise, options.json)


if __name__ == "__main__":
    main()
