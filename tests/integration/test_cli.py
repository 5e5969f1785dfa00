"""The command line as people and service managers use it: the installed console script as a real process."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.bed.daemon import SCRIPT, Daemon
from tests.data.expected import AUDIO
from trackwatch import __version__

TIMEOUT_S = 60
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
Run = Callable[..., subprocess.CompletedProcess[str]]
# What the daemon needs, and would make a health check of `status` that costs half a second of a core each time.
HEAVY = {"asyncio", "pathspec", "pydantic", "sqlite_utils", "structlog", "trio"}
HEAVY |= {f"trackwatch.{name}" for name in ("daemon", "settings", "store")}
# What the daemon needs as well where there is a terminal, a broker, and somebody who asks how it is.
FOR_TERMINAL, FOR_BROKER, FOR_HTTP = {"rich.console", "rich.progress"}, {"aio_pika", "trio_asyncio"}, {"hypercorn"}
SPECIAL = FOR_TERMINAL | FOR_BROKER | FOR_HTTP


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command to its end on the state in `tmp_path`; whatever happens, nobody is shown a traceback."""

    def run(*args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        coverage = {name: value for name, value in os.environ.items() if name.startswith("COVERAGE_")}
        done = subprocess.run(
            [SCRIPT, *args],
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(tmp_path),
                "LANG": "C.UTF-8",
                "TRACKWATCH_STATE_DIR": str(tmp_path / "state"),
                **coverage,
                **env,
            },
            cwd=tmp_path,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def music(tmp_path: Path) -> Path:
    """A tiny library: one directory, two audio files, one of them with a name that is not text."""
    folder = tmp_path / "music"
    (folder / "album").mkdir(parents=True)
    shutil.copy(os.path.join(AUDIO, "track.flac"), folder / "album" / "a.flac")
    shutil.copy(os.fsencode(os.path.join(AUDIO, "track.mp3")), os.fsencode(folder) + b"/\xff.mp3")
    (folder / "cover.jpg").write_bytes(b"no track")
    return folder


def heed_interrupts() -> None:
    """Undo what shells do to what they start in the background, the tests perhaps."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Check the exit code, and that one line says why; return it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return reason(line, code)


def reason(line: str, code: int) -> str:
    """Return what a last line says: without a terminal, the daemon's are of its log, and so JSON."""
    if line.startswith("{"):
        told = json.loads(line)
        assert (told["event"], told["level"], told["exit_code"]) == ("fatal", "critical", code)
        return str(told["reason"])
    assert line.startswith("trackwatch: ")
    return line.removeprefix("trackwatch: ")


# ---- help and version


@pytest.mark.parametrize("command", [(), ("run",), ("check",), ("status",), ("replay",), ("version",)])
def test_every_command_has_help(run: Run, command: tuple[str, ...]) -> None:
    """In both spellings, and with examples where there is a choice."""
    done = run(*command, "--help" if command else "-h")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: trackwatch")
    assert done.stderr == ""
    if command in (("run",), ("check",), ("replay",)):
        assert "Examples:" in done.stdout


@pytest.mark.parametrize("command", ["version", "--version"])
def test_the_version_is_told(run: Run, command: str) -> None:
    """For bug reports."""
    assert run(command).stdout == f"trackwatch {__version__}\n"


@pytest.mark.parametrize("args", [("fly",), ("run", "--fly"), ("replay", "--type", "flown"), ("status", "more")])
def test_what_is_no_command_is_usage(run: Run, args: tuple[str, ...]) -> None:
    """With a hint where to read on."""
    done = run(*args)
    assert done.returncode == 2
    assert "Try 'trackwatch" in done.stderr


# ---- run


def test_without_a_root_there_is_nothing_to_run(run: Run, tmp_path: Path) -> None:
    """One line, with the remedy; no state is made."""
    assert "DATA_DIR" in complaint(run("run"), 2)
    assert not (tmp_path / "state").exists()


def test_a_root_that_is_a_file_is_refused(run: Run, music: Path) -> None:
    """Waiting would not mend it."""
    assert "cover.jpg" in complaint(run("run", music / "cover.jpg"), 2)


def test_every_wrong_setting_is_told_at_once(run: Run, music: Path) -> None:
    """One line each for people, one list for machines; in the user's words."""
    wrong = {"TRACKWATCH_SETTLE_S": "soon", "TRACKWATCH_UNROUTABLE": "keep", "MAX_CONCURRENT_FILES": "0"}
    done = run("run", music, **wrong, TRACKWATCH_LOG_FORMAT="console")
    for_machines = run("run", music, **wrong)
    assert done.returncode == for_machines.returncode == 2
    problems = [line.removeprefix("trackwatch: ") for line in done.stderr.splitlines()]
    assert json.loads(for_machines.stderr)["problems"] == problems
    assert len(problems) == 3
    for name, value in wrong.items():
        assert sum(line.startswith(f"{name}={value}: ") for line in problems) == 1


def test_a_state_that_cannot_be_written_is_refused(run: Run, music: Path, tmp_path: Path) -> None:
    """A file in its place, which stops root too."""
    (tmp_path / "state").touch()
    assert "cannot use state" in complaint_after_greeting(run("run", music), 3)


def complaint_after_greeting(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line that says why, after what the log has said."""
    assert done.returncode == code, done.stderr
    return reason(done.stderr.splitlines()[-1], code)


def test_a_database_that_is_none_is_refused(run: Run, music: Path, tmp_path: Path) -> None:
    """By every command alike."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "trackwatch.db").write_text("no database" * 1000)
    for command in (("run", music), ("status",), ("replay", "--parked")):
        assert "restore a backup" in complaint_after_greeting(run(*command), 3)


def test_once_imports_and_delivers_and_ends(run: Run, music: Path) -> None:
    """Standard output has the events and nothing else, standard error what people read."""
    done = run("run", "--once", music)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(event["relative_path"] for event in events) == ["album/a.flac", "\ufffd.mp3"]
    assert [event["sequence"] for event in events] == [1, 2]
    assert all(event["event_type"] == "created" and event["metadata"]["tags"]["title"] for event in events)
    again = run("run", "--once", music)
    assert (again.returncode, again.stdout) == (0, "")


def test_once_writes_to_a_file(run: Run, music: Path, tmp_path: Path) -> None:
    """By `--to`."""
    assert run("run", "--once", "--to", tmp_path / "events.jsonl", music).returncode == 0
    assert len((tmp_path / "events.jsonl").read_text().splitlines()) == 2


def test_a_state_that_is_in_use_is_refused(
    run: Run, music: Path, tmp_path: Path, daemon: Callable[..., Daemon]
) -> None:
    """Naming who has it; the running daemon is not disturbed, and found well by `status`."""
    running = daemon(music, tmp_path / "state")
    running.start()
    assert f"in use by pid {running.pid};" in complaint_after_greeting(run("run", music), 3)
    running.wait_for_event(lambda event: event["sequence"] == 2)
    code, report = running.status()
    assert (code, report["state"], report["pid"]) == (0, "watching", running.pid)
    assert report["instance_id"]
    shown = run("status")
    assert shown.returncode == 0
    assert shown.stdout.startswith("● watching")
    assert "2 files" in shown.stdout
    replayed = run("replay", "--sequence", "1-2", "--yes")
    assert replayed.stdout == "queued 2 · the running daemon is publishing them\n"
    running.wait_until(lambda: [event["sequence"] for event in running.events()] == [1, 2, 1, 2])
    assert running.stop() == 0


# ---- status


def test_status_without_a_state_says_so(run: Run, tmp_path: Path) -> None:
    """And makes none."""
    assert "has trackwatch run here?" in complaint(run("status"), 3)
    assert not (tmp_path / "state").exists()


def test_status_of_a_daemon_that_has_ended(run: Run, music: Path) -> None:
    """It was stopped, and what it left is told; as JSON too."""
    run("run", "--once", music)
    shown = run("status")
    assert shown.returncode == 4
    assert re.match(r"○ stopped +[0-9]+ s ago · every event is published\n", shown.stdout)
    assert shown.stderr == ""
    as_json = run("status", "--json")
    assert as_json.returncode == 4
    report: dict[str, Any] = json.loads(as_json.stdout)
    assert (report["running"], report["state"], report["outbox"]["published"]) == (False, "stopped", 2)
    assert report["exit_code"] == 4


@pytest.mark.parametrize(("closed", "said"), [(">&-", "○ stopped"), (">&- 2>&-", ""), (">&- 2>/dev/null", "")])
def test_status_can_be_asked_with_its_output_closed(
    run: Run, music: Path, tmp_path: Path, closed: str, said: str
) -> None:
    """As service managers do: the exit code is the answer."""
    run("run", "--once", music)
    for args in ("", "--json"):
        done = subprocess.run(
            f"exec '{SCRIPT}' status {args} {closed}",
            shell=True,
            env=Daemon(music, tmp_path / "state").environ(),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith(said if not args else "")


def test_status_of_a_daemon_that_was_killed(run: Run, music: Path, tmp_path: Path) -> None:
    """It is not running, and was last seen."""
    with Daemon(music, tmp_path / "state") as daemon:
        daemon.start()
        daemon.wait_until(lambda: daemon.status()[0] == 0, 30, "healthy")
        daemon.kill()
    shown = run("status")
    assert shown.returncode == 4
    assert re.match(r"○ not running +last seen [0-9]+ s ago · [0-9]+ events pending\n", shown.stdout)


def test_status_of_a_daemon_that_is_paused(run: Run, music: Path, tmp_path: Path) -> None:
    """Its state is read all the same: nothing waits for it."""
    with Daemon(music, tmp_path / "state") as daemon:
        daemon.start()
        daemon.wait_until(lambda: daemon.status()[0] == 0, 30, "healthy")
        daemon.freeze()
        assert json.loads(run("status", "--json").stdout)["pid"] == daemon.pid
        daemon.thaw()


@pytest.mark.parametrize("left", ["a log", "a log and its index", "nothing"])
def test_status_of_a_copy_that_cannot_be_written(music: Path, tmp_path: Path, left: str) -> None:
    """What was committed last is in the log alone, and counts; nothing is written there."""
    state, copy = tmp_path / "state", tmp_path / "copy"
    with Daemon(music, state) as daemon:
        daemon.start()
        daemon.wait_for_events(2)
        daemon.wait_until(lambda: daemon.status()[1]["outbox"]["pending"] == 0, 30, "all published")
        daemon.stop() if left == "nothing" else daemon.kill()
    shutil.copytree(state, copy)
    assert (copy / "trackwatch.db-wal").exists() == (left != "nothing")
    if left == "a log":
        (copy / "trackwatch.db-shm").unlink()
    for path in (*copy.iterdir(), copy):
        path.chmod(0o555 if path == copy else 0o444)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    with Daemon(music, copy, unprivileged=True) as reader:
        code, report = reader.status()
        assert (code, report["outbox"]["published"], report["roots"][0]["files"]) == (4, 2, 2)
        refused = reader.run("replay", "--sequence", "1-", "--yes")
    assert refused.returncode == 3
    assert "make it and its folder writable" in refused.stderr
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before


def test_status_of_a_state_that_cannot_be_read_says_so(music: Path, tmp_path: Path) -> None:
    """One line, whoever asks."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0)
    with Daemon(music, tmp_path / "state", unprivileged=True) as daemon:
        assert "permission denied; make it readable" in complaint(daemon.run("status"), 3)
    (tmp_path / "state").chmod(0o755)


# ---- what a health check costs


def modules_of(tmp_path: Path, *args: str | Path, interrupted: bool = False, until: str = "", **env: str) -> set[str]:
    """Run a command in a fresh process, to its end or until it says something; return what was imported for it."""
    script = (
        "import sys; from trackwatch.__main__ import main; path = sys.argv.pop(1)\n"
        "try: main()\n"
        "finally: open(path, 'w').write(' '.join(sys.modules))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "modules", *args],
        # Without the variables that would have coverage imported.
        env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "TRACKWATCH_STATE_DIR": str(tmp_path / "state"), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=heed_interrupts,
    )
    assert process.stdout is not None
    said = any(until.encode() in line for line in iter(process.stdout.readline, b""))
    if interrupted:
        process.send_signal(signal.SIGINT)
    process.communicate(timeout=TIMEOUT_S)
    assert said
    return set((tmp_path / "modules").read_text("utf-8").split())


def test_a_health_check_imports_nothing_that_only_a_daemon_needs(run: Run, music: Path, tmp_path: Path) -> None:
    """Whatever there is to say; what the daemon imports shows that these are its names."""
    looks: tuple[tuple[str, ...], ...] = (("status",), ("status", "--json"))
    unwanted = HEAVY | SPECIAL
    for args in (*looks, ("version",)):
        assert modules_of(tmp_path, *args) & unwanted == set(), f"{args} without a state"
    assert modules_of(tmp_path, "run", "--once", music) >= HEAVY
    for args in looks:
        assert modules_of(tmp_path, *args) & unwanted == set(), args
        watched = modules_of(tmp_path, *args, "--watch", "0.1", interrupted=True)
        assert watched & unwanted == set(), f"{args} --watch"
    assert modules_of(tmp_path, "status", FORCE_COLOR="1") & unwanted == {"rich.console"}, "for its colours"
    (tmp_path / "state" / "trackwatch.db").write_bytes(b"no database at all")
    for args in looks:
        assert modules_of(tmp_path, *args) & unwanted == set(), f"{args} of a damaged state"


# ---- what a daemon costs


def test_a_daemon_imports_only_what_this_run_of_it_needs(music: Path, tmp_path: Path) -> None:
    """Each costs it megabytes for as long as it lives."""
    never = {"rich.pretty", "rich.traceback", "pygments"}
    first = modules_of(tmp_path, "run", "--once", music)
    assert first & (SPECIAL | never) == set()
    assert "sqlite_utils" not in modules_of(tmp_path, "run", "--once", music), "there was nothing to migrate"
    drawn = modules_of(tmp_path, "run", "--once", music, FORCE_COLOR="1")
    assert drawn & (SPECIAL | never) == FOR_TERMINAL
    port = str(free_port())
    asked = modules_of(tmp_path, "run", music, interrupted=True, until="http listening", TRACKWATCH_HTTP=port)
    assert asked >= FOR_HTTP
    broker = f"amqp://127.0.0.1:{port}"
    sent = modules_of(tmp_path, "run", music, "--to", broker, interrupted=True, until="broker unavailable")
    assert sent & (SPECIAL | never) == FOR_BROKER


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def test_a_process_that_reads_files_has_what_reads_them_and_nothing_of_the_daemon() -> None:
    """There is one for each core; it imports what the command begins with, what it calls, and what that is to load."""
    script = "import sys, trackwatch.__main__, trackwatch.probe, trackwatch.tags; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env={}, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert loaded & (HEAVY | SPECIAL | {"click", "rich", "sqlite3", "ssl", "trio_parallel", "watchfiles"}) == set()
    assert loaded >= {"mutagen", "xxhash"}


# ---- status --watch


def test_watching_gives_a_picture_now_and_then(run: Run, music: Path, tmp_path: Path) -> None:
    """Through a pipe: plain text, without a terminal's codes; as JSON one document a line. An interrupt ends it."""
    run("run", "--once", music)
    for args in ((), ("--json",)):
        watching = Daemon(music, tmp_path / "state")
        process = subprocess.Popen(
            [SCRIPT, "status", "--watch", "0.1", *args],
            env=watching.environ(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20)]
        process.send_signal(signal.SIGINT)
        rest, complaints = process.communicate(timeout=TIMEOUT_S)
        assert (process.returncode, complaints) == (4, b"")
        text = b"".join(said) + rest
        assert b"\x1b" not in text
        if args:
            assert {json.loads(line)["state"] for line in text.splitlines()} == {"stopped"}
        else:
            assert text.count("○ stopped".encode()) >= 3


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_watching_at_a_terminal_redraws_in_place(
    run: Run, music: Path, tmp_path: Path, columns: int, env: dict[str, str]
) -> None:
    """No line is wider than it, the last picture stays, and the cursor comes back."""
    (music / ("a name that is long enough to need more than one line " * 3 + ".mp3")).write_bytes(b"broken")
    run("run", "--once", music)
    (tmp_path / "state" / "status.json").unlink()
    terminal = pexpect.spawn(
        str(SCRIPT),
        ["status", "--watch", "0.1"],
        env={**Daemon(music, tmp_path / "state").environ(), "TERM": "xterm-256color", **env},
        dimensions=(40, columns),
        encoding="utf-8",
        timeout=TIMEOUT_S,
        preexec_fn=heed_interrupts,
    )
    for _ in range(3):
        terminal.expect("not running")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 4
    last = terminal.before or ""
    assert "\x1b[?25h" in last, "the cursor stays hidden"
    rows = [CODES.sub("", row) for row in re.split(r"\r\n?|\n", last)]
    assert max(map(len, rows)) <= columns
    assert bool(re.search(r"\x1b\[3[0-9]m", last)) == (not env)


@pytest.mark.parametrize("every", ["0", "often"])
def test_watching_needs_a_pause(run: Run, every: str) -> None:
    """Of a tenth of a second at least."""
    assert run("status", "--watch", every).returncode == 2


# ---- replay


def test_replay_wants_a_selection(run: Run) -> None:
    """Everything by accident would be a flood."""
    assert "nothing chosen" in complaint(run("replay"), 2)
    assert "nothing chosen" in complaint(run("replay", "--yes", "--dry-run"), 2)


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        (("--since", "the other day"), "--since=the other day"),
        (("--until", "25:00"), "--until=25:00"),
        (("--until", "yesterday noon"), "--until=yesterday noon"),
        (("--sequence", "a-b"), "--sequence=a-b"),
        (("--sequence", "-5"), "--sequence=-5"),
        (("--sequence", "7-5"), "--sequence=7-5"),
        (("--event", "7"), "--event=7"),
        (("--since", "1h", "--until", "2h"), "--since=1h is not before --until=2h"),
    ],
)
def test_replay_says_what_is_wrong_with_a_condition(run: Run, args: tuple[str, ...], wrong: str) -> None:
    """Before it looks at any state."""
    assert complaint(run("replay", *args), 2).startswith(wrong)


def test_replay_without_a_state_says_so(run: Run) -> None:
    """As status does."""
    assert "has trackwatch run here?" in complaint(run("replay", "--parked"), 3)


def test_replay_says_how_many_before_it_does_it(run: Run, music: Path) -> None:
    """With `--dry-run` it does no more; without a terminal to ask at, it wants `--yes`."""
    run("run", "--once", music)
    dry = run("replay", "--type", "created", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    summary, first, second = dry.stdout.splitlines()
    assert re.fullmatch(rf"2 events, \d{{4}}-\d\d-\d\d [\d:… ]+, {music}/…; nothing was sent", summary)
    assert re.fullmatch(r" +↳ 1 \d{4}-\d\d-\d\d \d\d:\d\d:\d\d created \S+", first)
    assert re.fullmatch(r" +↳ 2 .* created \S+", second)
    assert re.search("this would send 2 events.* say --yes", complaint(run("replay", "--type", "created"), 2))
    assert json.loads(run("status", "--json").stdout)["outbox"]["pending"] == 0
    assert run("replay", "--parked").stdout == "0 events; nothing was sent\n"


def test_replay_chooses_by_odd_conditions_too(run: Run, music: Path) -> None:
    """Bytes that are no text, times before all times, numbers beyond all numbers."""
    run("run", "--once", music)
    for option, value, count in (
        ("--path", "*/album/*", 1),
        ("--path", os.fsdecode(b"*/\xff.mp3"), 1),
        ("--path", "*/[[]?.mp3", 0),
        ("--path", str(music), 2),
        ("--path", "music/album", 1),
        ("--path", "../album", 0),
        ("--since", "1969-01-01", 2),
        ("--since", "yesterday", 2),
        ("--since", "1d12h ago", 2),
        ("--since", "now", 0),
        ("--until", "1969-01-01", 0),
        ("--until", "9999-12-31T23:59", 2),
        ("--sequence", f"2-{10**30}", 1),
        ("--sequence", "2-", 1),
        ("--event", "00000000-0000-0000-0000-000000000000", 0),
    ):
        done = run("replay", "--dry-run", option, value)
        assert done.returncode == 0, done.stderr
        assert re.match(rf"{count} events?\b", done.stdout), (option, value)


def test_what_is_replayed_without_a_daemon_is_sent_by_the_next_one(run: Run, music: Path) -> None:
    """Byte for byte the same messages, in order."""
    first = run("run", "--once", music)
    queued = run("replay", "--sequence", "1-2", "--yes")
    assert queued.stdout == "queued 2 · the daemon publishes them at its next start\n"
    assert run("run", "--once", music).stdout == first.stdout


@pytest.mark.parametrize("answer", ["n", "y"])
def test_a_person_at_a_terminal_is_asked(run: Run, music: Path, tmp_path: Path, answer: str) -> None:
    """With what would be sent; `no` is the default, and sends nothing."""
    run("run", "--once", music)
    terminal = pexpect.spawn(
        str(SCRIPT),
        ["replay", "--sequence", "1-"],
        env=Daemon(music, tmp_path / "state").environ(),
        dimensions=(24, 200),
        encoding="utf-8",
        timeout=TIMEOUT_S,
    )
    terminal.expect(r"send 2 events, .* again under their own ids\? \[y/N\]")
    terminal.sendline(answer)
    terminal.expect("queued 2 · the daemon publishes them" if answer == "y" else "nothing was sent")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == (0 if answer == "y" else 1)
    assert json.loads(run("status", "--json").stdout)["outbox"]["replaying"] == (2 if answer == "y" else 0)


def test_what_is_missing_in_a_root_that_is_not_watched_is_not_accepted(
    daemon: Callable[..., Daemon], library: Callable[..., Path], tmp_path: Path
) -> None:
    """Nothing would be told of it, and later it would be believed unasked."""
    former, present = library(1, name="former"), library(1, name="present")
    with Daemon(former, tmp_path / "shared") as before:
        before.start()
        before.stop()
    running = daemon(present, state_dir=tmp_path / "shared")
    running.start()
    refused = running.run("accept", str(former), "--yes")
    assert refused.returncode == 2
    assert f"the running daemon does not watch '{former}'" in refused.stderr
    assert running.run("accept", str(present), "--yes").returncode == 0
