"""`trackwatch replay` beside a running daemon with a real broker, and what it does to others meanwhile."""

import contextlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from pathlib import Path

import pexpect
import pytest

from tests.bed.daemon import SCRIPT, Daemon
from tests.bed.fold import assert_equal_fold
from tests.bed.rabbit import RabbitNode
from tests.bed.recorder import Recorder
from tests.data.expected import AUDIO
from tests.integration.test_cli import heed_interrupts

COUNT = 1500  # three chunks


@pytest.fixture
def imported(
    daemon: Callable[..., Daemon], recorder: Callable[..., Recorder], vhost_url: str, tmp_path: Path
) -> tuple[Daemon, Recorder, Path]:
    """A running daemon that has told an import of small files, and who was told."""
    root = tmp_path / "files"
    root.mkdir()
    for number in range(COUNT):
        (root / f"{number:04}.dat").write_bytes(b"%d" % number)
    recorded = recorder(vhost_url)
    running = daemon(root, args=["--to", vhost_url], env={"TRACKWATCH_INCLUDE": "*.dat,*.flac"})
    running.start()
    recorded.wait_for(COUNT, 60)
    wait_published(running)
    return running, recorded, root


def wait_published(running: Daemon) -> None:
    running.wait_until(lambda: running.status()[1]["outbox"]["pending"] == 0, 60, "all published")


def has_open_for_writing(pid: int, path: Path) -> bool:
    """Return whether a process has opened a file to write to it."""
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if link.readlink() == path:
                flags = Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split("flags:")[1].split()[0]
                return int(flags, 8) & os.O_ACCMODE == os.O_RDWR
    return False


def sequences(recorded: Recorder) -> list[int]:
    return [message.body["sequence"] for message in recorded.messages]


def test_a_replay_beside_the_daemon_arrives_whole_and_in_order(imported: tuple[Daemon, Recorder, Path]) -> None:
    """Under the same ids, each once; what changes meanwhile is told as ever."""
    running, recorded, root = imported
    done = running.run("replay", "--since", "1h", "--type", "created", "--yes")
    assert done.stdout == f"queued {COUNT:,} · the running daemon is publishing them\n"
    shutil.copy(Path(AUDIO) / "track.flac", root / "new.flac")
    recorded.wait_until(lambda messages: len(messages) == 2 * COUNT + 1, 60, "all again, and the new one")
    told = sequences(recorded)
    new = told.index(COUNT + 1)
    again = told[COUNT:new] + told[new + 1 :]
    assert again == list(range(1, COUNT + 1))
    ids = {message.body["sequence"]: message.message_id for message in recorded.messages[:COUNT]}
    assert all(
        message.message_id == ids[seq]
        for message in recorded.messages[COUNT:]
        if (seq := message.body["sequence"]) <= COUNT
    )
    wait_published(running)
    assert_equal_fold(recorded.messages, root, suffixes=("dat", "flac"))


def test_two_replays_at_once_are_as_good_as_one(imported: tuple[Daemon, Recorder, Path]) -> None:
    """Both succeed; nothing is lost, and nothing is left over. What one of them found sent already is sent again."""
    running, recorded, _ = imported
    running.freeze()  # so that nothing is sent between the two
    command: list[str | Path] = [SCRIPT, "replay", "--sequence", "1-", "--yes"]
    both = [
        subprocess.Popen(command, env=running.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(2)
    ]
    for process in both:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert running.status()[1]["outbox"]["replaying"] == COUNT
    running.thaw()
    recorded.wait_until(lambda messages: len(messages) >= 2 * COUNT, 60, "all again")
    wait_published(running)
    assert sequences(recorded)[COUNT:] == list(range(1, COUNT + 1))


def test_a_replay_waits_for_whoever_holds_the_state(imported: tuple[Daemon, Recorder, Path]) -> None:
    """Longer than SQLite itself would."""
    running, recorded, _ = imported
    holder = sqlite3.connect(running.state_dir / "trackwatch.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    process = subprocess.Popen(
        [SCRIPT, "replay", "--sequence", "7", "--yes"], env=running.environ(), stdout=subprocess.PIPE
    )
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(7)
    holder.execute("ROLLBACK")
    holder.close()
    said, _ = process.communicate(timeout=60)
    assert said.startswith(b"queued 1 ")
    recorded.wait_until(lambda messages: len(messages) == COUNT + 1, 30, "it again")


def test_an_interrupted_replay_says_how_far_it_came(imported: tuple[Daemon, Recorder, Path]) -> None:
    """What is queued is sent; the same command again queues the rest."""
    running, recorded, _ = imported
    running.freeze()
    holder = sqlite3.connect(running.state_dir / "trackwatch.db", isolation_level=None)
    # The first chunk goes through, the second one fails.
    holder.execute(
        "CREATE TRIGGER stop BEFORE INSERT ON outbox_replay WHEN new.seq = 501"
        " BEGIN SELECT RAISE(ABORT, 'stopped here') ; END"
    )
    broken = running.run("replay", "--sequence", "1-", "--yes")
    assert broken.returncode == 3
    assert running.status()[1]["outbox"]["replaying"] == 500
    holder.execute("DROP TRIGGER stop")
    holder.execute("BEGIN IMMEDIATE")
    process = subprocess.Popen(
        [SCRIPT, "replay", "--sequence", "1-", "--yes"],
        env=running.environ(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )
    running.wait_until(lambda: has_open_for_writing(process.pid, running.state_dir / "trackwatch.db"), 60, "a try")
    process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=60)
    holder.execute("ROLLBACK")
    holder.close()
    assert process.returncode == 1
    assert complaint.decode().startswith(f"interrupted: 0 of {COUNT:,} are queued")
    running.thaw()
    assert running.run("replay", "--sequence", "501-", "--yes").returncode == 0
    recorded.wait_until(lambda messages: len(messages) >= 2 * COUNT, 60, "all again")
    assert sequences(recorded)[COUNT:] == list(range(1, COUNT + 1))


def test_what_was_parked_is_sent_when_somebody_has_bound_a_queue(
    daemon: Callable[..., Daemon], library: Callable[..., Path], recorder: Callable[..., Recorder], vhost_url: str
) -> None:
    """The reason is told, and the remedy is the command that does it."""
    root = library(30)
    running = daemon(root, args=["--to", vhost_url], env={"TRACKWATCH_UNROUTABLE": "park"})
    running.start()
    running.wait_until(lambda: running.status()[1]["outbox"]["parked"] == 30, 30, "all parked")
    assert re.search(
        r"30 parked .*\n +↳ parked: no queue is bound .*trackwatch replay --parked", running.run("status").stdout
    )
    recorded = recorder(vhost_url)
    assert running.run("replay", "--parked", "--yes").returncode == 0
    recorded.wait_for(30, 30)
    wait_published(running)
    assert running.status()[1]["outbox"]["parked"] == 0
    assert_equal_fold(recorded.messages, root)


def test_at_a_terminal_a_replay_is_followed_until_it_is_sent(
    daemon: Callable[..., Daemon],
    library: Callable[..., Path],
    own_rabbit: Callable[..., RabbitNode],
    recorder: Callable[..., Recorder],
) -> None:
    """It says so when the broker is away, and goes on when it is back; an interrupt stops only the looking."""
    node = own_rabbit()
    recorded = recorder(node.url())
    running = daemon(library(20), args=["--to", node.url()])
    running.start()
    recorded.wait_for(20, 60)
    wait_published(running)
    node.stop()
    running.wait_until(lambda: running.status()[1]["broker"]["state"] == "unavailable", 60, "unavailable")

    def follow() -> "pexpect.spawn[str]":
        return pexpect.spawn(
            str(SCRIPT),
            ["replay", "--sequence", "1-", "--yes"],
            env={**running.environ(), "TERM": "xterm-256color"},
            dimensions=(24, 100),
            encoding="utf-8",
            timeout=60,
            preexec_fn=heed_interrupts,
        )

    looking = follow()
    looking.expect("broker unavailable")
    looking.sendintr()
    looking.expect("0 of 20 were sent so far; the daemon goes on with the rest")
    looking.expect(pexpect.EOF)
    looking.close()
    assert looking.exitstatus == 0
    looking = follow()
    looking.expect("broker unavailable")
    node.start()
    looking.expect("20/20")
    looking.expect(pexpect.EOF)
    looking.close()
    assert looking.exitstatus == 0
    recorded.wait_until(lambda messages: len(messages) == 40, 30, "all again, once")


def test_a_stop_does_not_wait_for_a_replay(imported: tuple[Daemon, Recorder, Path]) -> None:
    """The rest goes out at the next start."""
    running, recorded, _ = imported
    running.freeze()
    assert running.run("replay", "--sequence", "1-", "--yes").returncode == 0
    running.thaw()
    assert running.stop() == 0
    running.start()
    recorded.wait_until(lambda messages: set(sequences(recorded)[COUNT:]) == set(range(1, COUNT + 1)), 60, "all again")
    wait_published(running)
