"""Patterns in the running daemon: any kind of file, deep trees, and settings that change between two starts."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold

DEPTH = 25
SUFFIXES = ("ast.json",)
SYNTAX_TREES = {"TRACKWATCH_INCLUDE": "**/*.ast.json"}


def make_trees(root: Path, *tops: str) -> list[Path]:
    """Make trees that are 25 levels deep, a syntax tree and two files of other kinds on each level."""
    made = []
    for top in tops:
        directory = root / top
        for level in range(DEPTH):
            directory /= f"level {level}"
            directory.mkdir(parents=True)
            file = directory / "module.ast.json"
            file.write_text(json.dumps({"top": top, "level": level}))
            (directory / "module.json").write_text("{}")
            shutil.copy(Path(__file__).parent.parent / "data" / "audio" / "track.mp3", directory)
            made.append(file)
    return made


def wait_for_fold(
    running: Daemon, root: Path, suffixes: tuple[str, ...] = SUFFIXES, wanted: Callable[[bytes], bool] | None = None
) -> None:
    """Wait until what was told is what is on the disk."""

    def is_equal() -> bool:
        try:
            assert_equal_fold(running.events(), root, suffixes=suffixes, wanted=wanted)
        except AssertionError:
            return False
        return True

    running.wait_until(is_equal, 30, "the fold to equal the disk")


def told(events: list[Any], root: Path) -> list[tuple[str, str]]:
    """Return (type, path below the root) of some events, sorted."""
    return sorted((event["event_type"], os.path.relpath(event["file_path"], root)) for event in events)


def assert_described(events: list[Any]) -> None:
    """Check that events say of their file (as it is now) what there is to say of one that is no audio."""
    for event in events:
        content = Path(event["file_path"]).read_bytes()
        assert event["metadata"] is None
        assert event["metadata_error"] is None
        assert event["sha256_hash"] == hashlib.sha256(content).hexdigest()
        assert event["xxh128_hash"] == xxhash.xxh3_128(content).hexdigest()
        assert event["size_bytes"] == len(content)


def test_deep_trees_of_another_kind_are_told_at_the_start(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "source"
    files = make_trees(root, "one", "two")
    running = daemon(root, env=SYNTAX_TREES)
    running.start()
    events = running.wait_for_events(len(files))
    assert told(events, root) == sorted(("created", os.path.relpath(file, root)) for file in files)
    assert_described(events)
    assert_equal_fold(events, root, suffixes=SUFFIXES)


def test_deep_trees_of_another_kind_are_told_live(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "source"
    root.mkdir()
    running = daemon(root, env=SYNTAX_TREES)
    running.start()
    assert running.events() == []
    files = make_trees(root, "one")
    wait_for_fold(running, root)
    assert told(running.events(), root) == sorted(("created", os.path.relpath(file, root)) for file in files)
    assert_described(running.events())
    before = len(running.events())
    *_, changed, renamed, moved, removed = files
    changed.write_text("changed")
    renamed.rename(renamed.with_name("renamed.ast.json"))
    moved.rename(root / "moved.ast.json")
    removed.unlink()
    removed.with_name("module.json").write_text("changed too, and nobody wants to know")
    wait_for_fold(running, root)
    assert told(running.events()[before:], root) == sorted(
        [
            ("modified", os.path.relpath(changed, root)),
            ("renamed", os.path.relpath(renamed.with_name("renamed.ast.json"), root)),
            ("moved", "moved.ast.json"),
            ("deleted", os.path.relpath(removed, root)),
        ]
    )
    assert_described([event for event in running.events()[before:] if event["event_type"] != "deleted"])


def test_a_deep_tree_that_is_moved_is_told_file_by_file(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "source"
    make_trees(root, "one")
    running = daemon(root, env=SYNTAX_TREES)
    running.start()
    running.wait_for_events(DEPTH)
    (root / "one").rename(root / "two")
    wait_for_fold(running, root)
    later = running.events()[DEPTH:]
    assert [event["event_type"] for event in later] == ["moved"] * DEPTH
    assert_described(later)


def test_a_name_that_becomes_wanted_is_created_and_one_that_ceases_to_be_is_deleted(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    root = tmp_path / "source"
    root.mkdir()
    (root / "a.json").write_text("a")
    (root / "b.ast.json").write_text("b")
    running = daemon(root, env=SYNTAX_TREES)
    running.start()
    (root / "a.json").rename(root / "a.ast.json")
    (root / "b.ast.json").rename(root / "b.json")
    wait_for_fold(running, root)
    assert told(running.events(), root) == [
        ("created", "a.ast.json"),
        ("created", "b.ast.json"),
        ("deleted", "b.ast.json"),
    ]


def is_public(path: bytes) -> bool:
    """Whether a file is in no directory called `private`."""
    return b"/private/" not in path


def test_an_excluded_directory_is_not_looked_into(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "source"
    for directory in ("public", "private/deep", "public/private"):
        (root / directory).mkdir(parents=True)
        (root / directory / "1.ast.json").write_text(directory)
    running = daemon(root, env={**SYNTAX_TREES, "TRACKWATCH_EXCLUDE": "private/"})
    running.start()
    assert told(running.wait_for_events(1), root) == [("created", "public/1.ast.json")]
    (root / "private" / "deep" / "1.ast.json").write_text("changed")
    (root / "private" / "new").mkdir()
    (root / "private" / "new" / "1.ast.json").write_text("new")
    (root / "public" / "2.ast.json").write_text("new")
    wait_for_fold(running, root, wanted=is_public)
    # A directory comes out of the dark, and another goes into it.
    (root / "private").rename(root / "opened")
    wait_for_fold(running, root, wanted=is_public)
    (root / "public").rename(root / "private")
    wait_for_fold(running, root, wanted=is_public)
    assert told(running.events(), root) == [
        ("created", "opened/deep/1.ast.json"),
        ("created", "opened/new/1.ast.json"),
        ("created", "public/1.ast.json"),
        ("created", "public/2.ast.json"),
        ("deleted", "public/1.ast.json"),
        ("deleted", "public/2.ast.json"),
    ]


def test_a_change_of_the_patterns_between_two_starts_is_told(daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    root = tmp_path / "source"
    for directory in ("kept", "dropped"):
        (root / directory).mkdir(parents=True)
        for suffix in ("ast.json", "txt"):
            (root / directory / f"1.{suffix}").write_text(f"{directory} {suffix}")
    running = daemon(root, env=SYNTAX_TREES)
    running.start()
    assert told(running.wait_for_events(2), root) == [("created", "dropped/1.ast.json"), ("created", "kept/1.ast.json")]
    assert running.stop() == 0
    running.env |= {"TRACKWATCH_INCLUDE": "*.ast.json,*.txt", "TRACKWATCH_EXCLUDE": "dropped/"}
    running.start()
    wait_for_fold(running, root, ("ast.json", "txt"), lambda path: b"/dropped/" not in path)
    assert told(running.events()[2:], root) == [("created", "kept/1.txt"), ("deleted", "dropped/1.ast.json")]
    assert running.stop() == 0
    running.env |= {"TRACKWATCH_INCLUDE": "*.txt", "TRACKWATCH_EXCLUDE": "*.tmp"}
    running.start()
    wait_for_fold(running, root, ("txt",))
    assert told(running.events()[4:], root) == [("created", "dropped/1.txt"), ("deleted", "kept/1.ast.json")]


def test_all_the_files_of_a_kind_that_is_no_longer_wanted_are_not_kept_for_ever(
    daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Half of the library goes at once: a mass, but the files are there, and nobody has lost a disk."""
    root = tmp_path / "source"
    root.mkdir()
    for number in range(30):
        (root / f"{number}.ast.json").write_text(str(number))
    (root / "1.txt").write_text("kept")
    running = daemon(root, env={"TRACKWATCH_INCLUDE": "*.ast.json,*.txt"})
    running.start()
    assert running.stop() == 0
    running.env |= {"TRACKWATCH_INCLUDE": "*.txt"}
    running.start()
    wait_for_fold(running, root, ("txt",))
