"""`trackwatch check` as people run it: beside a daemon and without one, on a terminal and for machines."""

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pexpect
import pika
import pytest

from tests.bed.daemon import SCRIPT, Daemon
from tests.bed.rabbit import RabbitNode
from tests.data.expected import AUDIO

TIMEOUT_S = 60
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
MakeDaemon = Callable[..., Daemon]


@pytest.fixture
def music(tmp_path: Path) -> Path:
    folder = tmp_path / "music"
    (folder / "album").mkdir(parents=True)
    for name in ("a.flac", "b.flac"):
        shutil.copy(os.path.join(AUDIO, "track.flac"), folder / "album" / name)
    return folder


def check(daemon: Daemon, *args: str | Path, code: int | None = None) -> dict[str, Any]:
    """Return the document of a check with a daemon's settings, which has made nothing and said nothing else."""
    before = everything(daemon.state_dir)
    done = daemon.run("check", "--json", *map(str, args))
    assert done.stderr == ""
    told: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == told["exit_code"]
    if code is not None:
        assert done.returncode == code, done.stdout
    if not daemon.running:
        assert everything(daemon.state_dir) == before
    return told


def everything(folder: Path) -> dict[str, bytes] | None:
    """Return what is in a folder, None if it is not there; of SQLite's index of its log only that it is there."""
    if not folder.exists():
        return None
    return {path.name: b"" if path.suffix == ".db-shm" else path.read_bytes() for path in folder.iterdir()}


def words(told: dict[str, Any]) -> dict[str, str]:
    return {finding["subject"]: finding["word"] for finding in told["findings"]}


def finding(told: dict[str, Any], subject: str) -> dict[str, Any]:
    (found,) = (finding for finding in told["findings"] if finding["subject"] == subject)
    return dict(found)


def test_before_the_first_start_all_is_looked_at_and_nothing_is_made(music: Path, daemon: MakeDaemon) -> None:
    """Not even the folder of the state."""
    asked = daemon(music)
    asked.state_dir.rmdir()
    told = check(asked, music, code=0)
    assert told["ok"]
    assert {"daemon", "root", "mounts", "settling", "inotify", "state", "output", "clock", "limits", "memory"} == set(
        words(told)
    )
    assert finding(told, "root")["data"]["files"] == 2
    assert "is made at the first start" in finding(told, "state")["facts"]
    assert not asked.state_dir.exists()


def test_after_a_stop_the_state_is_as_it_was(music: Path, daemon: MakeDaemon) -> None:
    """Read without the files that SQLite makes for itself even to read."""
    asked = daemon(music, args=["--once"])
    asked.start(wait=False)
    assert asked.wait_for_exit() == 0
    files = everything(asked.state_dir)
    assert files is not None
    assert not {"trackwatch.db-wal", "trackwatch.db-shm"} & files.keys()
    assert "0 events pending" in finding(check(asked, music, code=0), "state")["facts"]


def test_after_a_kill_what_was_committed_last_counts(music: Path, daemon: MakeDaemon) -> None:
    """It is in the log alone."""
    asked = daemon(music, env={"TRACKWATCH_TO": "amqp://guest:guest@127.0.0.1:1/"})
    asked.start()
    asked.wait_until(lambda: asked.status()[1]["outbox"]["pending"] == 2, 30, "two events")
    asked.kill()
    told = check(asked, music, code=1)
    assert "2 events pending" in finding(told, "state")["facts"]
    assert (words(told)["broker"], words(told)["daemon"]) == ("fail", "skip")


@pytest.mark.broker
def test_beside_a_running_daemon_its_own_things_are_known_as_its_own(
    music: Path, daemon: MakeDaemon, vhost_url: str, free_port: int
) -> None:
    """Its state, its port, its watches, and what it has learned about queues."""
    env = {"TRACKWATCH_TO": vhost_url, "TRACKWATCH_HTTP": f"127.0.0.1:{free_port}"}
    running = daemon(music, env=env)
    with pika.BlockingConnection(pika.URLParameters(vhost_url)) as connection:
        channel = connection.channel()
        running.start()
        running.wait_until(lambda: running.status()[1]["broker"]["state"] == "unroutable", 30, "to be unroutable")
        told = check(running, music, code=1)
        assert words(told)["bindings"] == "fail"
        assert "routing_key='file.*'" in finding(told, "bindings")["remedies"][0]
        channel.queue_declare("all")
        channel.queue_bind("all", "file_events", "file.*")
        running.wait_until(lambda: running.status()[1]["broker"]["published"] == 2, 30, "both published")
        told = check(running, music, code=0)
        assert channel.queue_declare("all", passive=True).method.message_count == 2
    assert (words(told)["bindings"], words(told)["daemon"], words(told)["exchange"]) == ("ok", "ok", "ok")
    assert finding(told, "daemon")["data"]["pid"] == running.pid
    assert "the running daemon listens there" in finding(told, "http")["facts"]
    assert running.status()[0] == 0
    elsewhere = check(running, music, "--to", "-")
    assert finding(elsewhere, "daemon")["word"] == "warn"
    assert "sends to" in " ".join(finding(elsewhere, "daemon")["facts"])
    assert running.stop() == 0


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


def test_a_port_that_somebody_else_has_fails(music: Path, daemon: MakeDaemon) -> None:
    """Found by trying, and given back at once."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        asked = daemon(music, env={"TRACKWATCH_HTTP": str(port)})
        found = finding(check(asked, music, code=1), "http")
    assert (found["word"], found["remedies"]) == ("fail", [f"$ ss -ltnp 'sport = :{port}'"])
    assert finding(check(asked, music, code=0), "http")["word"] == "ok"


def test_what_this_user_may_not_do_is_told(music: Path, daemon: MakeDaemon) -> None:
    """Whoever runs the tests, this one has no powers."""
    closed = music / "closed"
    closed.mkdir()
    (music / "album" / "b.flac").chmod(0)
    closed.chmod(0)
    asked = daemon(music, unprivileged=True)
    asked.state_dir.chmod(0o555)
    try:
        told = check(asked, music, closed / "deeper", code=2)  # nested roots
        told = check(asked, music, code=1)
        shut = check(asked, closed / "deeper", code=1)
    finally:
        for path in (closed, asked.state_dir):
            path.chmod(0o755)
    root = finding(told, "root")
    assert root["word"] == "warn"
    assert (root["data"]["unreadable_files"], root["data"]["unlistable_directories"]) == (1, 1)
    assert "1 file cannot be read, such as album/b.flac (permission denied)" in root["facts"]
    assert root["remedies"] == [f"$ setfacl -R -m u:{os.geteuid()}:rX {music}"]
    assert words(told)["state"] == "fail"
    assert finding(shut, "root")["facts"][1] == f"user {os.geteuid()} may not read {closed}"


def test_a_disk_that_cannot_be_written_is_told(
    music: Path, tmp_path: Path, mount: Callable[..., Any], daemon: MakeDaemon
) -> None:
    """As in a container with a read-only root, and no volume for the state."""
    (tmp_path / "disk").mkdir()
    mount("-t", "tmpfs", "-o", "ro", "none", tmp_path / "disk")
    asked = daemon(music, env={"TRACKWATCH_STATE_DIR": str(tmp_path / "disk" / "state")})
    found = finding(check(asked, music, code=1), "state")
    assert "its file system is read-only" in found["facts"]


def test_wrong_settings_are_told_with_all_the_rest(music: Path, daemon: MakeDaemon) -> None:
    """Exit code 2, as `run` would; what hangs on them is left out, and no more."""
    asked = daemon(music, env={"RABBITMQ_PORT": "many", "TRACKWATCH_HTTP": "here", "TRACKWATCH_SETTEL_S": "1"})
    told = check(asked, music, code=2)
    wrong = [finding["facts"][0] for finding in told["findings"] if finding["word"] == "fail"]
    assert [problem.partition(":")[0] for problem in wrong] == ["RABBITMQ_PORT=many", "TRACKWATCH_HTTP=here"]
    assert {subject for subject, word in words(told).items() if word == "skip"} == {"broker", "http", "daemon"}
    assert (words(told)["root"], words(told)["state"]) == ("ok", "ok")


@pytest.mark.parametrize(
    ("target", "word"), [("new.jsonl", "ok"), ("old.jsonl", "ok"), ("no/new.jsonl", "fail"), ("pipe", "ok")]
)
def test_a_file_for_the_events_is_looked_at_and_not_made(
    music: Path, tmp_path: Path, daemon: MakeDaemon, target: str, word: str
) -> None:
    """Nor is a pipe opened, whose reader would take that for a beginning."""
    (tmp_path / "old.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    asked = daemon(music, tmp_path / "state")
    assert finding(check(asked, music, "--to", tmp_path / target), "output")["word"] == word
    assert not (tmp_path / "new.jsonl").exists()
    assert set(before) <= set(tmp_path.iterdir())


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_three_broken_things_at_a_terminal(
    music: Path, tmp_path: Path, daemon: MakeDaemon, columns: int, env: dict[str, str]
) -> None:
    """All are told, each with what to do; only commands may be wider than the terminal."""
    (tmp_path / "state").touch()
    asked = daemon(music, tmp_path / "folder", env={"TRACKWATCH_STATE_DIR": str(tmp_path / "state")})
    terminal = pexpect.spawn(
        str(SCRIPT),
        ["check", str(music), str(tmp_path / "gone"), "--to", "amqp://me:secret@127.0.0.1:1/"],
        env={**asked.environ(), "TERM": "xterm-256color", **env},
        dimensions=(60, columns),
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 1
    said = terminal.before or ""
    rows = [CODES.sub("", row) for row in said.split("\r\n")]
    assert [row[6:12].strip() for row in rows if row.startswith("fail")] == ["root", "state", "broker"]
    assert sum("↳" in row for row in rows) >= 3
    assert any(re.match(r"3 failed · .* ok · ", row) for row in rows)
    assert max(len(row) for row in rows if "$ " not in row and "looking at" not in row) <= columns
    assert "secret" not in said
    assert bool(re.search(r"\x1b\[31m", said)) == (not env)


def test_help_says_what_the_exit_codes_mean(music: Path, daemon: MakeDaemon) -> None:
    done = daemon(music).run("check", "--help")
    assert done.returncode == 0
    for part in ("Exit code:", "Examples:", "--json"):
        assert part in done.stdout


# ---- an output that takes nothing


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that has imported a library and ended; not to be started again."""
    folder = tmp_path_factory.mktemp("ended")
    (folder / "music").mkdir()
    with Daemon(folder / "music", folder / "state", env={"DATA_DIR": str(folder / "music")}) as daemon:
        assert daemon.run("run", "--once").returncode == 0
        yield daemon


@pytest.mark.parametrize(
    "command",
    [
        "version",
        "--help",
        "run --help",
        "status",
        "status --json",
        "check",
        "check --json",
        "replay --sequence 1- --dry-run",
    ],
)
def test_an_output_that_takes_nothing_is_told_in_one_line(ended: Daemon, command: str) -> None:
    """A full disk under a redirected output is no defect of ours, but whoever wanted to read it got nothing."""
    refuses_all(ended, command)


@pytest.mark.parametrize("command", ["status", "version"])
def test_so_it_is_with_an_output_that_keeps_nothing_back(ended: Daemon, command: str) -> None:
    """Images often set this."""
    refuses_all(ended, command, PYTHONUNBUFFERED="1")


def refuses_all(ended: Daemon, command: str, **env: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [SCRIPT, *command.split()],
            env={**ended.environ(), **env},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    assert done.returncode == 1
    reason = "cannot write to standard output: no space left on device; make room, or look at where it goes"
    assert done.stderr == f"trackwatch: {reason}\n"


def test_a_reader_that_has_gone_is_told_nothing(music: Path, daemon: MakeDaemon) -> None:
    """`trackwatch check | true`"""
    asked = daemon(music, env={"DATA_DIR": str(music)})
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [SCRIPT, "check"], env=asked.environ(), stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.broker
def test_permissions_are_looked_at_without_making_anything(
    music: Path, daemon: MakeDaemon, rabbit: RabbitNode, vhost_names: Any
) -> None:
    """By the whole command, with a user who may log in and no more."""
    vhost = next(vhost_names)
    rabbit.rabbitmqctl("add_user", f"checker-{vhost}", "s3cr3t")
    rabbit.rabbitmqctl("set_permissions", "-p", vhost, f"checker-{vhost}", "^$", "^$", "^$")
    before = rabbit.rabbitmqctl("list_exchanges", "-p", vhost)
    asked = daemon(music, env={"RABBITMQ_URL": rabbit.url(vhost, user=f"checker-{vhost}", password="s3cr3t")})
    told = check(asked, music, code=1)
    assert (words(told)["broker"], words(told)["exchange"], words(told)["bindings"]) == ("ok", "fail", "skip")
    assert "s3cr3t" not in json.dumps(told)
    assert rabbit.rabbitmqctl("list_exchanges", "-p", vhost) == before
