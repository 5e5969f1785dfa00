"""The example consumer rebuilds a library while everything that takes part is killed: `python -m tests.consumer`.

A real broker, the real daemon, `ops/consumer/library_consumer.py`, and a storm of changes. During the import of the
library (10,000 files) and then during the storm, consumer, daemon and broker are killed (SIGKILL) or restarted in turn,
and old events sent again. In the end the consumer's own `verify` compares its database with the disk, path by path and
hash by hash, and an oracle of our own does so too.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bed import fold
from tests.bed.consumer import Consumer
from tests.bed.daemon import Daemon
from tests.bed.rabbit import RabbitNode
from tests.data.make_library import make_library

PAUSE_S = (1.0, 4.0)  # between two faults, while the storm blows
DEADLINE_S = 300.0  # for everything to have come to rest


class Rebuild:
    """One run."""

    def __init__(self, folder: Path, files: int, seed: int) -> None:
        self.root = folder / "music"
        self.root.mkdir()
        self.outside = folder / "outside"
        self.outside.mkdir()
        self.files = files
        self.seed = seed
        self.chance = random.Random(seed)
        self.faults: Counter[str] = Counter()
        self.began_s = time.monotonic()
        self.node = RabbitNode(folder / "rabbit")
        self.consumer: Consumer
        self.daemon: Daemon
        self.folder = folder

    def say(self, text: str) -> None:
        """Print progress."""
        print(f"{time.monotonic() - self.began_s:7.1f} s  {text}", flush=True)

    def run(self, seconds: float) -> bool:
        """Import, storm, rest, compare; return whether the rebuilt library equals the disk."""
        with ExitStack() as stack:
            stack.enter_context(self.node)
            self.consumer = stack.enter_context(Consumer(self.folder / "consumer", self.node.url()))
            self.daemon = Daemon(self.root, self.folder / "state", args=["--to", self.node.url()], measured=False)
            stack.enter_context(self.daemon)
            make_library(str(self.root), self.files, seed=self.seed)
            self.say(f"a library of {self.files:,} files")
            self.consumer.start()
            for queue in ("library", "library.dead"):
                self.node.wait_until_registered(queue)
            self._import()
            self._storm(seconds)
            return self._rest()

    # --- what is done to them ---

    def kill_consumer(self) -> None:
        """Kill the consumer in the middle of its work, and start it again."""
        self.consumer.kill()
        self._note("consumer kill -9")
        self.consumer.start(wait=False)

    def kill_daemon(self) -> None:
        """Kill the daemon, and start it again."""
        self.daemon.kill()
        self._note("daemon kill -9")
        self.daemon.start(wait=False)

    def restart_broker(self) -> None:
        """Stop and start the broker."""
        self.node.restart()
        self._note("broker restart")

    def kill_broker(self) -> None:
        """Kill the broker, and start it again."""
        self.node.kill()
        self.node.start()
        self._note("broker kill -9")

    def replay(self) -> None:
        """Send a third of all events again."""
        last = max(3, self.consumer.total("last"))
        first = self.chance.randrange(1, last)
        done = self.daemon.run("replay", "--sequence", f"{first}-{min(last, first + last // 3)}", "--yes")
        self._note("replay" if done.returncode == 0 else "replay refused")
        if done.returncode:
            self.say(done.stderr.strip())

    def _note(self, fault: str) -> None:
        self.faults[fault] += 1
        self.say(f"{fault} · {self.consumer.total('events'):,} events have come")

    # --- stages ---

    def _import(self) -> None:
        """Import with one of each fault on the way."""
        self.daemon.start(wait=False)
        faults = [self.kill_consumer, self.restart_broker, self.kill_daemon, self.kill_consumer, self.kill_broker]
        for number, fault in enumerate(faults, 1):
            wanted = self.files * number // (len(faults) + 1)
            self._wait_for_events(wanted)
            fault()
        self._wait_for_events(self.files)
        self.say("the import has come")

    def _storm(self, seconds: float) -> None:
        """Change files for so long, with faults meanwhile."""
        command = [sys.executable, "-m", "tests.bed.storm", str(self.root), "--outside", str(self.outside)]
        command += ["--seconds", str(seconds), "--seed", str(self.seed), "--odd-names"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as storm:
            assert storm.stdout is not None
            self.say(f"a storm of changes for {seconds:g} s")
            faults: list[Callable[[], None]] = []
            while storm.poll() is None:
                if not faults:
                    faults = [self.kill_consumer, self.kill_daemon, self.restart_broker, self.kill_broker, self.replay]
                    self.chance.shuffle(faults)
                try:
                    storm.wait(self.chance.uniform(*PAUSE_S))
                except subprocess.TimeoutExpired:
                    faults.pop()()
            said = storm.stdout.read()  # one line, at its end
        if storm.returncode:
            raise RuntimeError(f"the storm has ended with exit code {storm.returncode}")
        self.say(f"the storm is over · {sum(json.loads(said).values()):,} operations")

    def _rest(self) -> bool:
        self._wait(self._is_at_rest, "everything to come to rest")
        self.say("at rest")
        # Once more all that ever was: nothing of it may change anything.
        events, doubles = self.consumer.total("events"), self.consumer.total("doubles")
        done = self.daemon.run("replay", "--sequence", "1-", "--yes")
        self._wait(lambda: self.consumer.total("doubles") >= doubles + events, "all of it again")
        self.faults["replay of everything"] += done.returncode == 0
        self.say(f"replay of everything · {self.consumer.total('doubles') - doubles:,} doubles")
        if self.daemon.stop() or self.consumer.stop():
            raise RuntimeError("an exit code that is not 0")
        verified = self.consumer.run("verify", str(self.root))
        status = self.consumer.run("status")
        is_equal = self.consumer.files() == fold.library(self.root)
        self._report(verified.stdout, status.stdout, is_equal)
        return verified.returncode == 0 and status.returncode == 0 and is_equal

    def _is_at_rest(self) -> bool:
        status = self.daemon.status()[1]
        return status["outbox"]["pending"] == 0 and self.consumer.files() == fold.library(self.root)

    def _wait_for_events(self, count: int) -> None:
        def have_come() -> bool:
            assert self.daemon.running, self.daemon.stderr()
            return self.consumer.total("events") >= count

        self._wait(have_come, f"{count:,} events")

    def _wait(self, predicate: Callable[[], bool], what: str) -> None:
        self.consumer.wait_until(predicate, DEADLINE_S, what)

    # --- its result ---

    def _report(self, verified: str, status: str, is_equal: bool) -> None:
        total = self.consumer.total
        events, doubles = total("events"), total("doubles")
        print()
        print(" · ".join(f"{fault} {count}" for fault, count in self.faults.items()))
        print(
            f"messages {events + doubles:,} · events {events:,} · doubles {doubles:,}"
            f" · redelivered {total('redelivered'):,} · late {total('late'):,}"
            f" · {time.monotonic() - self.began_s:.0f} s · seed {self.seed}"
        )
        print(f"status: {status.strip()}")
        print(f"verify: {verified.strip()}")
        print(f"the oracle of the tests: {'equal' if is_equal else 'NOT EQUAL'}")


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="rebuild a library through kills of everything")
    parser.add_argument("--files", metavar="N", type=int, default=10_000)
    parser.add_argument("--seconds", metavar="S", type=float, default=60, help="of changes after the import")
    parser.add_argument("--seed", metavar="N", type=int, default=1)
    parser.add_argument("--keep", action="store_true", help="keep what everybody has written and said")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="trackwatch-consumer-")).resolve()
    is_equal = False
    try:
        is_equal = Rebuild(folder, chosen.files, chosen.seed).run(chosen.seconds)
    finally:
        if is_equal and not chosen.keep:
            shutil.rmtree(folder)
        else:
            print(f"kept: {folder}")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
