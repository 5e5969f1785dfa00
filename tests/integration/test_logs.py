"""What the daemon's log is in practice: whole lines of JSON or of words, few of them, and never a password."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.bed.daemon import Daemon
from tests.bed.proxy import Proxy
from tests.bed.rabbit import RabbitNode
from tests.data.expected import path_of
from trackwatch.throttle import BURST

NASTY = b'\x1b[31m\xc2\x9b\n{"event": "fatal"}\r \xe2\x80\xae \xff'
BROKEN = 1000
LEVELS = {"debug", "info", "warning", "error", "critical"}


def log_of(running: Daemon) -> list[dict[str, Any]]:
    """Return the log of a start, each line of which must be a JSON object with what every line has."""
    told = [json.loads(line) for line in running.stderr().splitlines()]
    assert all(line["level"] in LEVELS and line["timestamp"] and line["event"] for line in told)
    return told


def lines_of(running: Daemon, event: str) -> list[dict[str, Any]]:
    """Return the lines of an event."""
    return [line for line in log_of(running) if line["event"] == event]


class Altered(Daemon):
    """A daemon in which a statement is executed before it starts: what cannot be had by other means."""

    statement = ""

    def _command(self, *args: str | bytes) -> list[str | bytes]:
        begin = f"import sys, trackwatch.cli; {self.statement}; trackwatch.cli.main()"
        return [sys.executable, "-c", begin, *super()._command(*args)[1:]]


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A library of one file."""
    folder = tmp_path / "music"
    folder.mkdir()
    shutil.copy(path_of("flac"), folder / "a.flac")
    return folder


# ---- its form


def test_every_line_is_json_with_the_instance_whatever_files_are_called(music: Path, tmp_path: Path) -> None:
    """A root, a directory and a file with names that a terminal or a reader of lines would fall for."""
    root = os.fsencode(music) + b"/" + NASTY
    closed = root + b"/closed" + NASTY
    os.makedirs(closed)
    shutil.copy(os.fsencode(path_of("mp3")), root + b"/" + NASTY + b".mp3")
    os.chmod(root + b"/" + NASTY + b".mp3", 0)
    os.chmod(closed, 0)
    env = {"INSTANCE_ID": "7f3a", "TRACKWATCH_LOG_LEVEL": "debug"}
    with Daemon(root, tmp_path / "state", env=env, unprivileged=True) as running:
        running.start()
        running.wait_until(lambda: lines_of(running, "file problem") != [], 30, "a word about the file")
        assert running.stop() == 0
        os.chmod(closed, 0o755)
        told = log_of(running)
        assert {line["instance"] for line in told} == {"7f3a"}
        assert [line["event"] for line in told if line["level"] == "info"] == [
            "trackwatch", "broker", "broker connected", "root", "watching", "stopping", "stopped",
        ]  # fmt: skip
        shown = root.decode("utf-8", "replace")
        assert [line["root"] for line in lines_of(running, "root")] == [shown]
        assert [line["path"] for line in lines_of(running, "directory cannot be listed")] == [
            closed.decode("utf-8", "replace")
        ]
        assert all(line.isprintable() for line in running.stderr().split("\n"))


def test_people_s_words_are_one_line_each_whatever_files_are_called(music: Path, tmp_path: Path) -> None:
    """The same for eyes: no line begins with what a name wants."""
    closed = os.fsencode(music) + b"/" + NASTY
    os.mkdir(closed, 0)
    with Daemon(
        music, tmp_path / "state", env={"TRACKWATCH_LOG_FORMAT": "console"}, args=["--once"], unprivileged=True
    ) as running:
        running.start(wait=False)
        assert running.wait_for_exit() == 0
        os.chmod(closed, 0o755)
        lines = running.stderr().removesuffix("\n").split("\n")
        assert all(line.isprintable() and re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ [a-z]", line) for line in lines)
        assert [line for line in lines if "warning: directory cannot be listed" in line and r"\x1b[31m\x9b\n" in line]


def test_what_is_printed_in_a_process_that_reads_files_is_seen_by_nobody() -> None:
    """It shares standard output with the events, and standard error with the log."""
    program = (
        "import sys, warnings; from trackwatch.probe import prepare_process; prepare_process();"
        "print('events?'); print('log?', file=sys.stderr); warnings.warn('log?')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, timeout=60)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_what_ends_the_daemon_is_its_last_line(music: Path, tmp_path: Path) -> None:
    """A defect has its traceback in a field, and nothing is printed besides."""

    class Defective(Altered):
        statement = "import trackwatch.daemon; trackwatch.daemon._drain = None"

    with Defective(music, tmp_path / "state", args=["--once"]) as running:
        running.start(wait=False)
        assert running.wait_for_exit() == 1
        *_, before, last = log_of(running)
        assert before["event"] == "stopping"
        assert (last["event"], last["level"], last["exit_code"]) == ("fatal", "critical", 1)
        assert last["reason"] == "TypeError: 'NoneType' object is not callable"
        assert "Traceback" in last["exception"]
        assert last["instance"] == before["instance"]


def test_a_summary_tells_what_was_done(music: Path, tmp_path: Path) -> None:
    """Each five minutes in practice; here each second."""

    class Hasty(Altered):
        statement = "import trackwatch.summary; trackwatch.summary.EVERY_S = 1"

    with Hasty(music, tmp_path / "state") as running:
        running.start()
        shutil.copy(path_of("mp3"), music / "b.mp3")
        running.wait_for_events(2)
        running.wait_until(
            lambda: sum(line["published"] for line in lines_of(running, "summary")) == 2, 30, "summaries of all"
        )
        totals = Counter(dict.fromkeys(("created", "published", "described", "described_bytes"), 0))
        for line in lines_of(running, "summary"):
            totals.update({name: line[name] for name in totals})
        size_bytes = sum(file.stat().st_size for file in music.iterdir())
        assert totals == {"created": 2, "published": 2, "described": 2, "described_bytes": size_bytes}


# ---- how much it says


def broker_lines(running: Daemon) -> list[dict[str, Any]]:
    """Return what was told of the broker."""
    return [line for line in log_of(running) if line["event"].partition(" ")[0] == "broker"]


def published(running: Daemon) -> int:
    """Return how many events were published in this start, as the daemon tells status."""
    return int(json.loads((running.state_dir / "status.json").read_text())["broker"]["published"])


def has_published(running: Daemon, before: int) -> bool:
    """Whether it has published more than before."""
    return published(running) > before


@pytest.fixture
def lively(vhost_url: str, rabbit: RabbitNode) -> Iterator[tuple[Proxy, str]]:
    """A way to a broker that can be cut, and its URL."""
    port = int(re.sub(r".*:(\d+)/.*", r"\1", vhost_url))
    with Proxy(port) as proxy:
        yield proxy, vhost_url.replace(f":{port}/", f":{proxy.port}/")


def test_a_broker_that_comes_and_goes_and_a_thousand_broken_files_are_a_few_lines(
    music: Path, tmp_path: Path, lively: tuple[Proxy, str]
) -> None:
    """And the counts say how much there was: none of it is forgotten."""
    for number in range(BROKEN):
        (music / f"{number:04}.mp3").write_bytes(b"no music")
        (music / f"{number:04}.mp3").chmod(0)
        (music / f"{number:04}").mkdir(mode=0)
    proxy, url = lively
    env = {"RABBITMQ_URL": url, "TRACKWATCH_UNROUTABLE": "drop", "TRACKWATCH_SETTLE_S": "0"}
    with Daemon(music, tmp_path / "state", env=env, unprivileged=True) as running:
        running.start()

        def change() -> None:
            (music / "a.flac").write_bytes(Path(path_of("flac")).read_bytes() + os.urandom(8))

        def cut_until_no_more_is_told() -> bool:
            told = broker_lines(running)
            if told[-1]["event"] == "broker connected":
                change()
                proxy.reset()
            return len(told) >= BURST

        running.wait_until(cut_until_no_more_is_told, 120, "as many lines as there are at once")
        for number in range(4):
            if number:
                proxy.reset()
            before = published(running)
            change()
            running.wait_until(partial(has_published, running, before), 60, "one more session of use")
        assert running.stop() == 0
        told = log_of(running)
        assert "debug" not in {line["level"] for line in told}
        assert len(told) < 50, Counter(line["event"] for line in told)
        events = Counter(line["event"].partition(" ")[0] for line in told for _ in range(1 + line.get("held_back", 0)))
        assert events["directory"] == BROKEN
        assert events["file"] == 0, "each file is for debug"
        assert events["broker"] >= BURST + 6
        assert len(broker_lines(running)) <= BURST + 4
        assert broker_lines(running)[-1]["event"] == "broker connected", "the last line says how it stands"


# ---- what it never says

WRONG = "Xq7/w@o:r#d%25 \"é'\\"


def traces(secret: str) -> set[bytes]:
    """Return the forms in which a secret could be told: as it is, encoded in part or in whole, quoted."""
    forms = {secret, quote(secret), quote(secret, safe=""), quote(secret, safe="/:@"), quote(quote(secret, safe=""))}
    forms |= {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], repr(secret)[1:-1]}
    # Any longer part of it is as good as the whole.
    forms |= {part for form in list(forms) for part in (form[: len(form) // 2], form[len(form) // 2 :])}
    return {form.encode() for form in forms}


@pytest.fixture(scope="module")
def secret(rabbit: RabbitNode) -> str:
    """The password of a user `wachter`, with every character that a URL or a shell makes something of."""
    secret = "Zk9/v@u:t#s%3A \"ö'$"
    rabbit.add_user("wachter", secret, vhost="/")
    return secret


def variants(port: int, password: str, folder: Path) -> dict[str, tuple[dict[str, str], list[str]]]:
    """Return each way to give a password: the environment, and flags."""
    url = f"amqp://wachter:{quote(password, safe='')}@127.0.0.1:{port}/"
    (folder / "url").write_text(f"{url}\n")
    (folder / "password").write_text(f"{password}\n")
    parts = {"RABBITMQ_HOST": "127.0.0.1", "RABBITMQ_PORT": str(port), "RABBITMQ_USER": "wachter"}
    return {
        "RABBITMQ_URL": ({"RABBITMQ_URL": url}, []),
        "RABBITMQ_URL_FILE": ({"RABBITMQ_URL_FILE": str(folder / "url")}, []),
        "RABBITMQ_PASS": ({**parts, "RABBITMQ_PASS": password}, []),
        "RABBITMQ_PASS_FILE": ({**parts, "RABBITMQ_PASS_FILE": str(folder / "password")}, []),
        "--to": ({}, ["--to", url]),
        # Broken ones, of which something is told as well.
        "a URL that cannot be read": ({"RABBITMQ_URL": f"amqp://wachter:{password}@127.0.0.1:{port}/"}, []),
        "no port": ({"RABBITMQ_URL": url.replace(f":{port}/", ":port/")}, []),
        "both": ({"RABBITMQ_URL": url, "RABBITMQ_URL_FILE": str(folder / "url")}, []),
        "TLS": ({"RABBITMQ_URL": url.replace("amqp:", "amqps:")}, []),
        "nobody": ({"RABBITMQ_URL": url.replace(f":{port}/", f":{unused_port()}/")}, []),
        "vhost": ({"RABBITMQ_URL": f"{url}nowhere"}, []),
    }


def unused_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.broker
@pytest.mark.parametrize(("is_right", "log_format"), [(True, "console"), (False, "json")])
def test_no_password_is_ever_told(
    secret: str, rabbit: RabbitNode, music: Path, tmp_path: Path, is_right: bool, log_format: str
) -> None:
    """At debug, right or wrong, however it is given: not in the log, in status, or in anything that is kept."""
    password = secret if is_right else WRONG
    hidden = traces(password)
    texts: dict[str, list[bytes]] = {}
    with ExitStack() as stack:
        all_running = {}
        for name, (env, args) in variants(rabbit.port, password, tmp_path).items():
            env |= {"TRACKWATCH_LOG_LEVEL": "debug", "TRACKWATCH_LOG_FORMAT": log_format}
            env |= {"TRACKWATCH_UNROUTABLE": "drop", "TRACKWATCH_SETTLE_S": "0"}
            running = stack.enter_context(Daemon(music, tmp_path / f"state {name}", env=env, args=args))
            running.start(wait=False)
            all_running[name] = running
        for name, running in all_running.items():
            running.wait_until(partial(has_an_answer, running), 60, f"an answer with {name}")
            texts[name] = [running.stderr().encode()]
            if running.running:
                for command in (["status"], ["status", "--json"], ["replay", "--since", "1d", "--dry-run"]):
                    done = running.run(*command)
                    texts[name] += [done.stdout.encode(), done.stderr.encode()]
                os.kill(running.pid, signal.SIGTERM)
        for name, running in all_running.items():
            running.wait_for_exit()
            for folder in (running.folder, running.state_dir):
                texts[name] += [file.read_bytes() for file in folder.iterdir() if file.is_file()]
    for name, kept in texts.items():
        for text in kept:
            assert [form for form in hidden if form in text] == [], f"{name}: {text[:3000]!r}"
    answers = Counter(ANSWER.findall(b"".join(kept[0] for kept in texts.values())))
    assert answers.keys() >= {b"broker unavailable", b"broker refused"}
    assert (b"broker connected" in answers) is is_right


ANSWER = re.compile(b"broker (?:connected|refused|unavailable)|trackwatch: |fatal")


def has_an_answer(running: Daemon) -> bool:
    """Whether a daemon has said how it stands with its broker, or that its settings are wrong."""
    return ANSWER.search(running.stderr().encode()) is not None or not running.running
