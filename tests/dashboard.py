"""Does every panel of the dashboard show something, and does every alert look at something that exists?

`python -m tests.dashboard` runs a real daemon with its HTTP face, a real broker and a real Prometheus that scrapes it
each second; lets a minute of everything happen (an import, changes of each type, a broker that stops, a root that is
away, a replay, a kill); then asks Prometheus each query of `ops/grafana/trackwatch.json` and each selector of the alert
rules, and prints what came back. Exit code 1 if one has no data, or a rule cannot be evaluated.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlencode
from urllib.request import urlopen

import yaml

from tests.bed.daemon import Daemon
from tests.bed.rabbit import RabbitNode, free_ports
from tests.bed.recorder import Recorder
from tests.data.make_library import make_library

OPS = Path(__file__).resolve().parents[1] / "ops"
DASHBOARD = OPS / "grafana" / "trackwatch.json"
RULES = OPS / "prometheus" / "trackwatch.rules.yml"
# What Grafana puts in; scrapes are a second apart here.
VARIABLES = {"$__rate_interval": "15s", "$instance": ".*"}
SELECTOR = re.compile(r"\b(?:trackwatch_\w+|up)\b(?:\{[^}]*\})?")
DEADLINE_S = 60.0
PAUSE_S = 6.0  # so that each deed is seen by several scrapes
SHOWN_SERIES = 4


@dataclass(frozen=True)
class Query:
    """One query, and where it stands."""

    place: str
    text: str


@dataclass(frozen=True)
class Answer:
    """What came back: the last and the largest value of each series, by its labels, of all the time looked at."""

    query: Query
    values: Mapping[str, tuple[float, float]]

    @property
    def shown(self) -> str:
        """The first series in a line."""
        shown = list(self.values.items())[:SHOWN_SERIES]
        parts = [f"{labels or 'value'}: {last:.6g} (max {largest:.6g})" for labels, (last, largest) in shown]
        more = len(self.values) - len(parts)
        return ", ".join(parts) + (f", and {more} more" if more > 0 else "")


def dashboard_queries(dashboard: Any) -> Iterator[Query]:
    """Yield every query of a dashboard as Prometheus gets it."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Query(f"{panel['title']} {target['refId']}", filled(target["expr"]))
    for annotation in dashboard["annotations"]["list"]:
        if "expr" in annotation:
            yield Query(f"annotation {annotation['name']}", filled(annotation["expr"]))


def filled(expression: str) -> str:
    """Return a query with Grafana's variables put in."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    return expression


def rule_queries(rules: Any) -> Iterator[Query]:
    """Yield what the alerts look at: an alert itself has no data while all is well."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            for selector in sorted(set(SELECTOR.findall(rule["expr"]))):
                yield Query(f"alert {rule['alert']}", selector)


class Prometheus:
    """A real one, which scrapes one daemon each second. A context manager."""

    def __init__(self, folder: Path, target: str) -> None:
        self.port = free_ports().amqp
        self._folder = folder
        self._target = target
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        if program is None:
            raise SystemExit("no prometheus found: apt-get install prometheus")
        self._folder.mkdir()
        config = self._folder / "prometheus.yml"
        config.write_text(
            yaml.safe_dump(
                {
                    "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                    "rule_files": [str(RULES)],
                    "scrape_configs": [
                        {"job_name": "trackwatch", "static_configs": [{"targets": [self._target]}]},
                    ],
                }
            )
        )
        with (self._folder / "log.txt").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until("Prometheus is ready", self._is_ready)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the data of an answer of its HTTP API; raises OSError for a query it does not understand."""
        with urlopen(f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}") as answer:
            return json.load(answer)["data"]

    def answer(self, query: Query, start_s: float, end_s: float) -> Answer:
        """Ask a query for each second between two times."""
        found = self.ask("query_range", query=query.text, start=f"{start_s:.3f}", end=f"{end_s:.3f}", step="1")
        values: dict[str, tuple[float, float]] = {}
        for series in found["result"]:
            hidden = ("__name__", "instance", "job")
            labels = ",".join(f"{name}={value}" for name, value in series["metric"].items() if name not in hidden)
            numbers = [number for _, text in series["values"] if isfinite(number := float(text))]
            if numbers:
                values[labels] = numbers[-1], max(numbers)
        return Answer(query, values)

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"http://127.0.0.1:{self.port}/-/ready") as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def wait_until(what: str, condition: Callable[[], bool]) -> None:
    """Wait for a condition; raises SystemExit when it takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what}: not within {DEADLINE_S:g} s")
        time.sleep(0.05)


def change_something(folder: Path, seconds: float, *, name: str) -> None:
    """Make changes of each type for a while."""
    songs = sorted(folder.rglob("*.mp3"))
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        number += 1
        fresh = folder / f"{name} {number}.mp3"
        shutil.copyfile(songs[number % len(songs)], fresh)
        time.sleep(0.4)
        if number % 4 == 1:
            with fresh.open("ab") as file:
                file.write(b"\0" * 64)
        elif number % 4 == 2:
            fresh.rename(fresh.with_name(f"{name} {number} renamed.mp3"))
        elif number % 4 == 3:
            elsewhere = folder / "elsewhere"
            elsewhere.mkdir(exist_ok=True)
            fresh.rename(elsewhere / fresh.name)
        else:
            fresh.unlink()


def a_minute(daemon: Daemon, broker: RabbitNode, music: Path, incoming: Path) -> None:
    """Let something of everything happen."""
    print("an import", flush=True)
    daemon.start(timeout_s=120)
    print("changes", flush=True)
    change_something(music, PAUSE_S, name="first")
    print("the broker stops", flush=True)
    broker.stop()
    change_something(music, PAUSE_S, name="meanwhile")
    print("the broker is back", flush=True)
    broker.start()
    change_something(music, PAUSE_S, name="afterwards")
    print("a root is away", flush=True)
    incoming.rename(incoming.with_name("away"))
    wait_until("the root is unavailable", lambda: daemon.status()[1]["roots"][1]["state"] == "unavailable")
    time.sleep(PAUSE_S)
    incoming.with_name("away").rename(incoming)
    print("everything is sent again", flush=True)
    daemon.run("replay", "--sequence", "1-", "--yes")
    change_something(music, PAUSE_S, name="beside")
    print("the daemon is killed, and started again", flush=True)
    daemon.kill()
    change_something(music, 2, name="unseen")
    daemon.start()
    change_something(music, PAUSE_S, name="last")
    wait_until("everything is published", lambda: daemon.status()[1]["outbox"]["pending"] == 0)
    time.sleep(3)


def main() -> int:
    """Run it, and print what came back."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=4000, help="how large the library is (%(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all answers there, for drawing")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trackwatch-dashboard-")))
        music, incoming = folder / "music", folder / "incoming"
        for directory, files in ((music, options.files), (incoming, 50)):
            directory.mkdir()
            make_library(str(directory), files)
        broker = stack.enter_context(RabbitNode(folder / "rabbit"))
        stack.enter_context(Recorder(broker.url(), queue="library", queue_type="quorum"))
        broker.wait_until_registered("library")
        address = f"127.0.0.1:{free_ports().amqp}"
        daemon = stack.enter_context(
            Daemon(
                [music, incoming],
                folder / "state",
                env={
                    "TRACKWATCH_HTTP": address,
                    "RABBITMQ_URL": broker.url(),
                    "TRACKWATCH_SWEEP_S": "5",
                    "TRACKWATCH_PROBE_PROCESSES": "1",
                    # An import that lasts for several scrapes.
                    "MAX_CONCURRENT_FILES": "4",
                },
                measured=False,
            )
        )
        prometheus = stack.enter_context(Prometheus(folder / "prometheus", address))
        start_s = time.time()
        a_minute(daemon, broker, music, incoming)
        end_s = time.time()
        print(f"{end_s - start_s:.0f} s; asking\n", flush=True)
        return report(prometheus, start_s, end_s, options.json)


def report(prometheus: Prometheus, start_s: float, end_s: float, json_file: Path | None) -> int:
    """Ask everything and print it; return the exit code."""
    dashboard, rules = json.loads(DASHBOARD.read_text(encoding="utf-8")), yaml.safe_load(RULES.read_text("utf-8"))
    empty = 0
    for queries in (dashboard_queries(dashboard), rule_queries(rules)):
        for query in queries:
            answer = prometheus.answer(query, start_s, end_s)
            empty += not answer.values
            mark = "ok   " if answer.values else "EMPTY"
            print(f"{mark} {query.place:<42} {len(answer.values):>3} series  {answer.shown}")
            if not answer.values:
                print(f"      {query.text}")
        print()
    sick = 0
    for group in prometheus.ask("rules")["groups"]:
        for rule in group["rules"]:
            sick += rule["health"] != "ok"
            print(f"rule {rule['name']:<34} {rule['health']:<8} {rule['state']:<9} {rule.get('lastError', '')}")
    if json_file is not None:
        write_answers(prometheus, dashboard, start_s, end_s, json_file)
    print(f"\n{empty} queries without data, {sick} rules that cannot be evaluated")
    return int(bool(empty or sick))


def write_answers(prometheus: Prometheus, dashboard: Any, start_s: float, end_s: float, json_file: Path) -> None:
    """Write what each query of the dashboard returned, with all its points."""
    answers = [
        {
            "place": query.place,
            "query": query.text,
            **prometheus.ask("query_range", query=query.text, start=str(start_s), end=str(end_s), step="1"),
        }
        for query in dashboard_queries(dashboard)
    ]
    json_file.write_text(json.dumps(answers), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
