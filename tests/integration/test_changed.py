# mypy: allow-untyped-calls
"""What a modification says has changed, through the whole daemon: tag editors, other encodings, restarts and moves."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mutagen.id3 import ID3, TIT2

from tests.bed.daemon import Daemon
from tests.bed.fold import assert_equal_fold
from tests.integration.test_watching import AUDIO

MP3 = (AUDIO / "track.mp3").read_bytes()
FRAMES = MP3[1058:]  # what stands behind its ID3 tag
OGG = (".ogg", ".oga", ".opus")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A library with a file of each format."""
    made = tmp_path / "music"
    made.mkdir()
    for track in AUDIO.glob("track.*"):
        shutil.copy(track, made)
    return made


def retag(path: Path, title: str) -> None:
    """Write another title, as an editor does: in place, or by rewriting the file if it has to grow."""
    tags = ID3(path)
    tags.add(TIT2(3, title))
    tags.save(path)


def modified(running: Daemon, path: Path, deed: Callable[[], object]) -> Any:
    """Do something to a file, and return the event that tells of it."""
    count = len(running.events())
    deed()
    running.wait_for_events(count + 1)
    event = running.events()[count]
    assert (event["event_type"], event["file_path"]) == ("modified", str(path))
    return event


def test_editing_tags_is_told_apart_from_other_audio(daemon: Callable[..., Daemon], root: Path) -> None:
    running = daemon(root)
    running.start()
    created = {Path(event["file_path"]).suffix: event for event in running.wait_for_events(15)}
    known = {suffix for suffix, event in created.items() if event["audio_hash"] is not None}
    assert known == set(created) - set(OGG)
    path, frames = root / "track.mp3", FRAMES

    event = modified(running, path, lambda: retag(path, "Other"))
    assert event["changed"] == ["tags"]
    assert event["audio_hash"] == event["previous"]["audio_hash"] == created[".mp3"]["audio_hash"]
    assert event["metadata"]["tags"]["title"] == "Other"

    tag = path.read_bytes().removesuffix(frames)
    event = modified(running, path, lambda: path.write_bytes(tag + frames * 2))
    assert event["changed"] == ["audio"]
    assert event["previous"]["audio_hash"] == created[".mp3"]["audio_hash"] != event["audio_hash"]

    event = modified(running, path, lambda: path.write_bytes(MP3))
    assert event["changed"] == ["audio", "tags"]
    assert event["audio_hash"] == created[".mp3"]["audio_hash"]

    # The same frames with a page of rubbish for tags, then what is no audio at all: nothing is guessed.
    event = modified(running, path, lambda: path.write_bytes(b"no sound"))
    assert event["metadata_error"]
    assert event["audio_hash"] is None
    assert "changed" not in event
    assert_equal_fold(running.events(), root)


def test_it_is_remembered_over_restarts_moves_and_links(daemon: Callable[..., Daemon], root: Path) -> None:
    running = daemon(root)
    running.start()
    created = {event["file_path"]: event for event in running.wait_for_events(15)}
    audio_hash = created[str(root / "track.mp3")]["audio_hash"]
    running.stop()
    path, link = root / "moved.mp3", root / "link.mp3"
    (root / "track.mp3").rename(path)
    os.link(path, link)
    running.start()
    both = running.wait_for_events(17)[15:]
    assert [event["event_type"] for event in both] == ["renamed", "created"]  # which is which is anybody's choice
    assert [event["audio_hash"] for event in both] == [audio_hash] * 2

    running.stop()
    retag(path, "Other")
    running.start()
    both = running.wait_for_events(19)[17:]
    assert {event["file_path"] for event in both} == {str(path), str(link)}
    assert [event["changed"] for event in both] == [["tags"]] * 2

    running.stop()
    path.unlink()
    running.start()
    (gone,) = running.wait_for_events(20)[19:]
    assert gone["audio_hash"] is None
    assert gone["previous"]["audio_hash"] == audio_hash
    assert_equal_fold(running.events(), root)
