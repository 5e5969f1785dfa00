"""The command line as people and service managers use it: the installed console script as a real process."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.bed.daemon import SCRIPT, Daemon
from tests.data.expected import AUDIO
from trackwatch import __version__

TIMEOUT_S = 60
Run = Callable[..., subprocess.CompletedProcess[str]]


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


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Check the exit code, and that one line says why; return it."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("trackwatch: ")
    return line.removeprefix("trackwatch: ")


# ---- help and version


@pytest.mark.parametrize("command", [(), ("run",), ("status",), ("replay",), ("version",)])
def test_every_command_has_help(run: Run, command: tuple[str, ...]) -> None:
    """In both spellings, and with examples where there is a choice."""
    done = run(*command, "--help" if command else "-h")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: trackwatch")
    assert done.stderr == ""
    if command in (("run",), ("replay",)):
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
    """One line each, in the user's words."""
    done = run("run", music, TRACKWATCH_SETTLE_S="soon", TRACKWATCH_UNROUTABLE="keep", MAX_CONCURRENT_FILES="0")
    assert done.returncode == 2
    problems = done.stderr.splitlines()
    assert len(problems) == 3
    for name in ("TRACKWATCH_SETTLE_S=soon", "TRACKWATCH_UNROUTABLE=keep", "MAX_CONCURRENT_FILES=0"):
        assert sum(line.startswith(f"trackwatch: {name}: ") for line in problems) == 1


def test_a_state_that_cannot_be_written_is_refused(run: Run, music: Path, tmp_path: Path) -> None:
    """A file in its place, which stops root too."""
    (tmp_path / "state").touch()
    assert "cannot use state" in complaint_after_greeting(run("run", music), 3)


def complaint_after_greeting(done: subprocess.CompletedProcess[str], code: int) -> str:
    """Return the one line that says why, after what the log has said."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("trackwatch: ")


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
    """It is not running, and what it left is told; as JSON too."""
    run("run", "--once", music)
    shown = run("status")
    assert shown.returncode == 4
    assert re.match(r"○ not running +last seen [0-9]+ s ago, 0 events pending\n", shown.stdout)
    assert shown.stderr == ""
    as_json = run("status", "--json")
    assert as_json.returncode == 4
    report: dict[str, Any] = json.loads(as_json.stdout)
    assert (report["running"], report["outbox"]["published"]) == (False, 2)


# ---- replay


def test_replay_wants_a_selection(run: Run) -> None:
    """Everything by accident would be a flood."""
    assert "nothing chosen" in complaint(run("replay"), 2)
    assert "nothing chosen" in complaint(run("replay", "--yes", "--dry-run"), 2)


@pytest.mark.parametrize(
    ("args", "wrong"),
    [
        (("--since", "yesterday"), "--since=yesterday"),
        (("--until", "25:00"), "--until=25:00"),
        (("--sequence", "a-b"), "--sequence=a-b"),
        (("--sequence", "-5"), "--sequence=-5"),
        (("--event", "7"), "--event=7"),
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
    assert re.fullmatch(r"2 events, \S+Z … \S+Z; nothing was sent\n", dry.stdout)
    assert "this would send 2 events again: say --yes" in complaint(run("replay", "--type", "created"), 2)
    assert json.loads(run("status", "--json").stdout)["outbox"]["pending"] == 0
    assert run("replay", "--parked").stdout == "0 events; nothing was sent\n"


def test_replay_chooses_by_odd_conditions_too(run: Run, music: Path) -> None:
    """Bytes that are no text, times before all times, numbers beyond all numbers."""
    run("run", "--once", music)
    for option, value, count in (
        ("--path", "*/album/*", 1),
        ("--path", os.fsdecode(b"*/\xff.mp3"), 1),
        ("--path", "*/[[]?.mp3", 0),
        ("--since", "1969-01-01", 2),
        ("--until", "1969-01-01", 0),
        ("--until", "9999-12-31T23:59", 2),
        ("--sequence", f"2-{10**30}", 1),
        ("--event", "00000000-0000-0000-0000-000000000000", 0),
    ):
        done = run("replay", "--dry-run", option, value)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{count} events"), (option, value)


def test_what_is_replayed_without_a_daemon_is_sent_by_the_next_one(run: Run, music: Path) -> None:
    """Byte for byte the same messages, in order."""
    first = run("run", "--once", music)
    queued = run("replay", "--sequence", "1-2", "--yes")
    assert queued.stdout == "queued 2 · the daemon publishes them at its next start\n"
    assert run("run", "--once", music).stdout == first.stdout
