"""What `check` finds in real directories and on this machine, and how it says so."""

import ctypes
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trackwatch import check, limits
from trackwatch.clock import wall_clock_us
from trackwatch.errors import ExitCode
from trackwatch.event import rfc3339
from trackwatch.finding import Finding, Word, exit_code, lines, many, report, summary
from trackwatch.mounts import Mount
from trackwatch.patterns import Patterns
from trackwatch.settings import Settings, load, load_usable
from trackwatch.survey import Walk, inotify_finding, mounts_finding, root_finding, settling_finding
from trackwatch.trust import Identity
from trackwatch.words import lay_out_verdicts

PATIENCE_S = 60.0


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of whoever runs the tests is not what is looked at."""
    for name in list(os.environ):
        if name.startswith(("TRACKWATCH_", "RABBITMQ_", "DATA_DIR", "FILE_WATCHER")):
            monkeypatch.delenv(name)


def walked(root: Path, *include: str, exclude: tuple[str, ...] = ()) -> Walk:
    """Return a walk through a root that has come to its end."""
    walk = Walk(os.fsencode(root), Patterns(include or ("@audio",), exclude))
    walk.thread.join(PATIENCE_S)
    assert walk.done
    return walk


def found(walk: Walk, **known: Any) -> Finding:
    return root_finding(walk, time.monotonic() + PATIENCE_S, [], **known)


# ---- how it is said

COMMAND = "$ rabbitmqctl " + "x" * 70
DEED = "ask the one who keeps the machine to let it be kept right by NTP"
FINDINGS = [
    Finding("root", Word.OK, ("/data/music", "ext4", "118,204 files in 9,034 directories")),
    Finding("broker", Word.FAIL, ("amqp://me@rabbit:5672/", "there is no virtual host 'x' on it"), (COMMAND,)),
    Finding("clock", Word.WARN, ("2026-11-22 08:10:13 UTC",), (DEED,)),
    Finding("daemon", Word.SKIP, ("not running",)),
]  # fmt: skip


def test_a_line_has_a_verdict_a_subject_and_facts_and_below_it_what_to_do() -> None:
    assert [row.text for row in lay_out_verdicts(lines(FINDINGS), None)] == [
        "ok    root      /data/music · ext4 · 118,204 files in 9,034 directories",
        "fail  broker    amqp://me@rabbit:5672/ · there is no virtual host 'x' on it",
        f"      ↳ {COMMAND}",
        "warn  clock     2026-11-22 08:10:13 UTC",
        f"      ↳ {DEED}",
        "skip  daemon    not running",
    ]


def test_narrow_terminals_fold_words_and_leave_commands_in_one_piece() -> None:
    """A command that is broken into lines cannot be copied."""
    rows = [row.text for row in lay_out_verdicts(lines(FINDINGS), 50)]
    assert f"      ↳ {COMMAND}" in rows
    assert "                there is no virtual host 'x' on it" in rows
    assert rows[-3:-1] == ["      ↳ ask the one who keeps the machine to let", "        it be kept right by NTP"]
    assert max(len(row) for row in rows if "$ " not in row) <= 50


def test_the_verdict_alone_has_a_colour() -> None:
    rows = list(lay_out_verdicts(lines(FINDINGS), None))
    assert [(row.text[row.start : row.end], row.style) for row in rows if row.style not in ("", "dim")] == [
        ("ok", "green"),
        ("fail", "red"),
        ("warn", "yellow"),
    ]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((Word.OK, Word.SKIP), ExitCode.OK),
        ((Word.WARN,), ExitCode.OK),
        ((Word.FAIL, Word.OK), ExitCode.DEFECT),
    ],
)
def test_only_what_failed_decides_about_the_exit_code(words: tuple[Word, ...], code: ExitCode) -> None:
    assert exit_code([Finding("root", word, ()) for word in words]) is code


def test_a_wrong_setting_is_usage_whatever_else_failed() -> None:
    assert exit_code([Finding("broker", Word.FAIL, ()), Finding("settings", Word.FAIL, ())]) is ExitCode.USAGE


def test_machines_get_the_same_with_numbers() -> None:
    told = report([*FINDINGS, Finding("root", Word.OK, ("/x",), data={"files": 7})])
    assert (told["ok"], told["exit_code"], told["schema_version"]) == (False, 1, 1)
    assert told["counts"] == {"ok": 2, "warn": 1, "fail": 1, "skip": 1}
    assert told["findings"][1]["remedies"] == list(FINDINGS[1].remedies)
    assert told["findings"][-1] == {
        "subject": "root", "word": "ok", "facts": ["/x"], "remedies": [], "data": {"files": 7},
    }  # fmt: skip


def test_the_last_line_counts() -> None:
    assert summary(FINDINGS) == "1 failed · 1 warning · 1 ok · 1 skipped"
    assert summary([FINDINGS[2]] * 2) == "2 warnings"


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(1, "file", "1 file"), (0, "process", "0 processes"), (1200, "directory", "1,200 directories"),
     (2, "directory or more", "2 directories or more")],
)  # fmt: skip
def test_numbers_have_their_nouns(count: int, noun: str, said: str) -> None:
    assert many(count, noun) == said


# ---- roots


@pytest.fixture
def music(tmp_path: Path) -> Path:
    root = tmp_path / "music"
    for name in ("a/1.mp3", "a/b/2.FLAC", "a/cover.jpg", "tmp/3.mp3", "4.ogg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_a_root_is_told_with_what_is_wanted_in_it(music: Path) -> None:
    """By the patterns that the daemon would use; what they exclude is not even gone through."""
    finding = found(walked(music, exclude=("tmp/",)))
    assert (finding.word, finding.remedies) == (Word.OK, ())
    assert finding.data["files"] == 3
    assert finding.data["directories"] == 3
    assert finding.data["complete"]
    assert found(walked(music, "*.jpg")).data["files"] == 1


def test_an_empty_root_may_be_a_volume_that_is_not_mounted(tmp_path: Path) -> None:
    finding = found(walked(tmp_path))
    assert finding.word is Word.WARN
    assert "empty" in finding.facts
    assert "mount the volume" in finding.remedies[0]


def test_an_empty_root_whose_files_are_known_has_lost_them(tmp_path: Path) -> None:
    finding = found(walked(tmp_path), known=(3120, {}))
    assert finding.word is Word.FAIL
    assert "3,120 files of it are known" in finding.facts


def test_a_root_without_a_wanted_file_may_need_other_patterns(music: Path) -> None:
    finding = found(walked(music, "*.txt"))
    assert finding.word is Word.WARN
    assert "no file is wanted, of 5 files in 4 directories" in finding.facts
    assert "TRACKWATCH_INCLUDE" in finding.remedies[0]


def test_a_root_of_links_to_directories_is_explained(music: Path, tmp_path: Path) -> None:
    """They are not followed, and a library made of them looks empty."""
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "a").symlink_to(music)
    finding = found(walked(tmp_path / "links"))
    assert finding.word is Word.WARN
    assert "1 link to directories are not followed" in finding.facts


@pytest.mark.parametrize(("name", "reason"), [("nope", "no such directory"), ("4.ogg", "is not a directory")])
def test_a_root_that_is_none_fails(music: Path, name: str, reason: str) -> None:
    finding = found(walked(music / name))
    assert finding.word is Word.FAIL
    assert finding.facts == (str(music / name), reason)
    assert finding.remedies


def test_a_root_with_another_disk_than_before_fails(music: Path) -> None:
    """The daemon would call it unavailable."""
    was = {b"": Identity(b"/dev/nowhere", b"nosuchfs", 7)}
    finding = found(walked(music), known=(5, was))
    assert finding.word is Word.FAIL
    assert "(was /dev/nowhere, nosuchfs)" in finding.facts[1]
    assert finding.remedies[-1] == f"$ trackwatch accept {music}"


def test_what_could_not_be_seen_in_time_is_said(music: Path) -> None:
    walk = walked(music)
    walk.done = False
    finding = root_finding(walk, time.monotonic(), [])
    assert any(fact.startswith("more than 4 files in 4 directories") for fact in finding.facts)
    assert not finding.data["complete"]


@pytest.fixture
def hanging(tmp_path: Path, mount: Callable[..., object]) -> Any:
    """A mount whose server never answers: FUSE without anybody behind it."""
    place = tmp_path / "hanging"
    place.mkdir()
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0"
    command = ["mount", "-i", "-t", "fuse", "-o", options, "none", str(place)]
    try:
        done = subprocess.run(command, pass_fds=[server], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"cannot mount here: {done.stderr.strip()}")
        yield place
    finally:
        os.close(server)  # whoever waits for an answer gets an error
        subprocess.run(["umount", "--lazy", str(place)], check=False)


def test_a_mount_that_hangs_holds_up_nobody(hanging: Path, music: Path) -> None:
    """It is told as what it is, and the others are looked at."""
    stuck, other = Walk(os.fsencode(hanging), Patterns()), walked(music)
    finding = root_finding(stuck, time.monotonic() + 0.1, [])
    assert finding.word is Word.FAIL
    assert "its mount hangs" in finding.facts[1]
    assert found(other).word is Word.OK
    assert mounts_finding([stuck, other], [Mount(1, 0, b"/", b"ext4", b"/dev/sda", 1)]).word is Word.OK


# ---- where changes are told


def test_notifications_do_not_come_from_other_machines(music: Path) -> None:
    root = os.fsencode(music)
    table = [Mount(1, 0, b"/", b"ext4", b"/dev/sda", 1), Mount(2, 1, root + b"/a", b"nfs4", b"nas:/a", 2)]
    finding = mounts_finding([walked(music)], table)
    assert finding.word is Word.WARN
    assert finding.facts[0] == f"{music}/a is nfs4 from nas:/a"
    assert "swept each 60 s" in finding.facts[1]
    assert mounts_finding([walked(music)], table[:1]).word is Word.OK


def test_a_library_in_the_container_itself_is_no_library(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody forgot the volume."""
    table = [Mount(1, 0, b"/", b"overlay", b"overlay", 1)]
    assert mounts_finding([walked(music)], table).word is (Word.WARN if limits.is_container() else Word.OK)
    monkeypatch.setenv("container", "podman")
    finding = mounts_finding([walked(music)], table)
    assert finding.word is Word.WARN
    assert finding.remedies == (f"mount the library there: -v MUSIC:{music}:ro",)


def test_without_a_table_of_mounts_nothing_is_claimed(music: Path) -> None:
    assert mounts_finding([walked(music)], []).word is Word.SKIP


def test_the_kernel_tells_who_writes_our_own_files(music: Path, tmp_path: Path) -> None:
    """And nothing is asked where there is no file."""
    assert settling_finding([walked(music)]).data == {"leases": True}
    with (music / "4.ogg").open("ab"):
        assert settling_finding([walked(music)]).data == {"leases": True}
    (tmp_path / "empty").mkdir()
    assert settling_finding([walked(tmp_path / "empty")]).word is Word.SKIP


def granted(monkeypatch: pytest.MonkeyPatch, **numbers: int | None) -> None:
    """Let the kernel's limits be these: no test may set them for the machine."""
    monkeypatch.setattr(limits, "inotify_limit", lambda name: numbers[name])


@pytest.mark.parametrize("watches", [3, 4])
def test_more_directories_than_watches_are_warned_of(
    music: Path, monkeypatch: pytest.MonkeyPatch, watches: int
) -> None:
    """With a number that leaves room for as many again."""
    granted(monkeypatch, max_user_watches=watches, max_user_instances=128, max_queued_events=16384)
    monkeypatch.setattr(limits, "inotify_taken", lambda besides: limits.Taken())
    finding = inotify_finding([walked(music)], None)
    assert finding.word is (Word.WARN if watches < 4 else Word.OK)
    assert ("$ sysctl fs.inotify.max_user_watches=256" in finding.remedies) == (watches < 4)


def test_what_other_programs_have_taken_counts(music: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    granted(monkeypatch, max_user_watches=1000, max_user_instances=128, max_queued_events=100)
    monkeypatch.setattr(limits, "inotify_taken", lambda besides: limits.Taken(999, 125, 3))
    finding = inotify_finding([walked(music)], None)
    assert finding.word is Word.WARN
    assert "999 taken by 3 other programs" in finding.facts
    names = [remedy.partition("=")[0] for remedy in finding.remedies if remedy.startswith("$ ")]
    assert names == [
        f"$ sysctl fs.inotify.{name}" for name in ("max_user_watches", "max_user_instances", "max_queued_events")
    ]


def test_watches_are_counted_as_the_kernel_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the daemon are left out: they are the ones that it needs."""
    monkeypatch.setattr(limits, "_own_processes", lambda: iter([os.getpid()]))  # others come and go
    libc = ctypes.CDLL(None)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    try:
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            assert libc.inotify_add_watch(descriptor, os.fsencode(tmp_path / name), 0x100) > 0
        assert limits.inotify_taken(besides=None) == limits.Taken(2, 1, 1)
        assert limits.inotify_taken(besides=os.getpid()) == limits.Taken()
    finally:
        os.close(descriptor)
    assert limits.inotify_taken(besides=None) == limits.Taken()


# ---- the machine


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A control group of our own, as a container sees it: no test may set the limits of the machine."""
    monkeypatch.setattr(limits, "_GROUPS", str(tmp_path))
    return tmp_path


def settings(**flags: Any) -> Settings:
    return load(roots=["/nowhere"], **flags)


@pytest.mark.parametrize(
    ("limit", "word"), [("100000000", Word.FAIL), ("170000000", Word.WARN), ("1000000000", Word.OK), ("max", Word.OK)]
)
def test_a_container_with_too_little_memory_is_told(groups: Path, limit: str, word: Word) -> None:
    """Two processes and one for live changes need some 160 MB."""
    (groups / "memory.max").write_text(limit + "\n")
    assert check._memory(settings(probe_processes="2")).word is word


def test_limits_of_the_older_kind_are_read_too(groups: Path) -> None:
    (groups / "memory").mkdir()
    (groups / "memory" / "memory.limit_in_bytes").write_text("50000000\n")
    assert limits.memory_bytes() == 50_000_000
    (groups / "memory" / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert limits.memory_bytes() != 9223372036854771712


def test_a_part_of_a_processor_does_not_feed_many_processes(groups: Path) -> None:
    (groups / "cpu.max").write_text("150000 100000\n")
    assert limits.processors() == 1.5
    finding = check._processes(settings(probe_processes="16"))
    assert finding.word is Word.WARN
    assert "TRACKWATCH_PROBE_PROCESSES=2" in finding.remedies
    (groups / "cpu.max").write_text("max 100000\n")
    assert limits.processors() is None


def test_too_few_processes_fail(groups: Path) -> None:
    (groups / "pids.max").write_text("30\n")
    (groups / "pids.current").write_text("12\n")
    finding = check._processes(settings(probe_processes="2"))
    assert finding.word is Word.FAIL
    assert "18 more processes and threads, 48 are needed" in finding.facts


class _Told(check._State):
    """A state that tells this much."""

    def __init__(self, **outbox: Any) -> None:
        super().__init__(Path("/nowhere"), is_known=False)
        self.report = {"outbox": outbox}


def test_a_clock_behind_the_last_event_fails() -> None:
    """Consumers would see time go backwards."""
    later = rfc3339(wall_clock_us() + 7200 * 1_000_000)
    finding = check._clock(_Told(last_event_at=later))
    assert finding.word is Word.FAIL
    assert "before the last event" in finding.facts[0]
    assert check._clock(_Told(last_event_at=rfc3339(wall_clock_us()))).word is not Word.FAIL
    assert check._clock(_Told(last_event_at=None)).word is not Word.FAIL


@pytest.mark.parametrize(("kept", "word"), [(True, Word.OK), (False, Word.WARN), (None, Word.OK)])
def test_a_clock_that_nobody_keeps_right_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, kept: bool | None, word: Word
) -> None:
    monkeypatch.setattr(limits, "is_clock_kept", lambda: kept)
    assert check._clock(None).word is word


def test_the_kernel_says_whether_the_clock_is_kept_right() -> None:
    """One or the other; which, only this machine knows."""
    assert limits.is_clock_kept() is not None


# ---- the state


def state_finding(folder: Path, walks: list[Walk], mounts: list[Mount]) -> Finding:
    made = load(roots=["/nowhere"], state_dir=str(folder))
    return check._state(made, check._State(folder, is_known=True), walks, mounts)


def test_a_state_that_is_not_there_yet_is_left_so(tmp_path: Path) -> None:
    finding = state_finding(tmp_path / "deep" / "state", [], [])
    assert finding.word is Word.OK
    assert "is made at the first start" in finding.facts
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fstype", "word"), [(b"ext4", Word.OK), (b"tmpfs", Word.WARN), (b"nfs4", Word.FAIL), (b"fuse.sshfs", Word.FAIL)]
)
def test_a_state_belongs_on_a_local_disk(tmp_path: Path, fstype: bytes, word: Word) -> None:
    assert state_finding(tmp_path, [], [Mount(1, 0, b"/", fstype, b"source", 1)]).word is word


def test_a_state_needs_room_for_what_is_to_be_imported(music: Path, tmp_path: Path) -> None:
    """An absurdly large library on whatever disk this is."""
    walk = walked(music)
    walk.files = 10**15
    finding = state_finding(tmp_path, [walk], [])
    assert finding.word is Word.FAIL
    assert any("take some" in fact for fact in finding.facts)


def test_a_file_in_the_place_of_the_state_fails(tmp_path: Path) -> None:
    (tmp_path / "state").touch()
    finding = state_finding(tmp_path / "state", [], [])
    assert (finding.word, finding.facts[1]) == (Word.FAIL, "is a file, not a folder")


def test_a_database_that_is_none_fails(tmp_path: Path) -> None:
    (tmp_path / "trackwatch.db").write_text("no database" * 1000)
    finding = state_finding(tmp_path, [], [])
    assert finding.word is Word.FAIL
    assert any("restore a backup" in fact for fact in finding.facts)


# ---- settings that are wrong


def test_wrong_settings_give_way_so_that_the_rest_can_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever hangs on them is known; the environment is as it was."""
    monkeypatch.setenv("RABBITMQ_PORT", "high")
    monkeypatch.setenv("TRACKWATCH_SETTLE_S", "soon")
    monkeypatch.setenv("TRACKWATCH_SWEEP_S", "60")
    usable = load_usable(roots=["/data"])
    assert usable.wrong == {"rabbitmq_port", "settle_s"}
    assert [problem.partition(":")[0] for problem in usable.problems] == [
        "RABBITMQ_PORT=high",
        "TRACKWATCH_SETTLE_S=soon",
    ]
    assert usable.settings is not None
    assert (usable.settings.sweep_s, usable.settings.settle_s, usable.settings.roots) == (60, 0.25, (b"/data",))
    assert (os.environ["RABBITMQ_PORT"], os.environ["TRACKWATCH_SETTLE_S"]) == ("high", "soon")


def test_without_roots_all_else_can_be_looked_at() -> None:
    usable = load_usable()
    assert usable.wrong == {"roots"}
    assert "DATA_DIR" in usable.problems[0]
    assert usable.settings is not None


def test_a_wrong_flag_gives_way_too() -> None:
    usable = load_usable(roots=["/data"], to="ftp://x/")
    assert usable.wrong == {"to"}
    assert usable.problems[0].startswith("--to=ftp://x/: ")


def test_settings_that_no_default_mends_are_told(tmp_path: Path) -> None:
    """The output lies in the root, and no single value of the two is wrong."""
    usable = load_usable(roots=[str(tmp_path)], to=str(tmp_path / "x.mp3"))
    assert usable.settings is None
    assert [finding.subject for finding in check.check(usable)] == ["settings", "others", "clock"]


def test_right_settings_are_right() -> None:
    usable = load_usable(roots=["/data"])
    assert (usable.problems, usable.wrong) == ((), frozenset())
    assert usable.settings == load(roots=["/data"])
