"""Paths and their roots, audio names, and what makes two signatures the same."""

import os
from pathlib import Path

import pytest

from trackwatch.patterns import Patterns
from trackwatch.track import AUDIO_SUFFIXES, Root, Signature, is_audio, suffix_of

KNOWN = Signature(dev=1, inode=2, size_bytes=3, mtime_ns=4, ctime_ns=5, btime_ns=6)


@pytest.mark.parametrize(
    ("path", "suffix"),
    [
        (b"song.mp3", b"mp3"),
        (b"a.b/Song.tar.FLAC", b"flac"),
        (b"a.mp3/song", b""),
        (b"song.", b""),
        (b"song", b""),
        (b".mp3", b"mp3"),
        (b"a/..mp3", b"mp3"),
        (b"\xff.\xfe", b"\xfe"),
        (b"", b""),
    ],
)
def test_the_suffix_is_what_follows_the_last_dot_of_the_name(path: bytes, suffix: bytes) -> None:
    assert suffix_of(path) == suffix


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_what_the_patterns_take_for_audio_is_described_as_audio(suffix: str) -> None:
    patterns = Patterns(exclude=())
    for name in (f"song.{suffix}", f"song.{suffix.upper()}", f".{suffix}", f"a/.{suffix}", f"song{suffix}", suffix):
        assert is_audio(name.encode()) == patterns.wanted(name.encode()), name


def test_a_root_and_what_is_below_it_translate_both_ways() -> None:
    root = Root(1, b"/srv/music")
    for relative in (b"", b"a.mp3", b"a/\xff\n.mp3"):
        assert root.relative(root.absolute(relative)) == relative
    assert root.absolute(b"") == b"/srv/music"
    assert root.absolute(b"a/b.mp3") == b"/srv/music/a/b.mp3"


def test_what_only_begins_like_a_root_lies_elsewhere() -> None:
    root = Root(1, b"/srv/music")
    assert root.relative(b"/srv/music2/a.mp3") is None
    assert root.relative(b"/srv") is None


def test_the_root_directory_can_be_a_root() -> None:
    root = Root(1, b"/")
    assert root.relative(b"/a/b.mp3") == b"a/b.mp3"
    assert root.relative(b"/") == b""
    assert root.absolute(b"a/b.mp3") == b"/a/b.mp3"


def test_nothing_has_changed_while_only_the_device_number_has() -> None:
    """Device numbers change over reboots and remounts; and a stat from a walk knows no birth."""
    assert KNOWN.unchanged_since(KNOWN._replace(dev=9, btime_ns=None))


@pytest.mark.parametrize("field", ["inode", "size_bytes", "mtime_ns", "ctime_ns"])
def test_any_other_difference_is_a_change(field: str) -> None:
    other = KNOWN._replace(**{field: 99})
    assert not KNOWN.unchanged_since(other)


def test_a_renamed_file_is_the_same_file() -> None:
    assert KNOWN.same_file(KNOWN._replace(ctime_ns=99))
    assert KNOWN.same_file(KNOWN._replace(btime_ns=None))
    assert KNOWN._replace(btime_ns=None).same_file(KNOWN)


@pytest.mark.parametrize("field", ["dev", "inode", "size_bytes", "mtime_ns", "btime_ns"])
def test_a_file_that_differs_is_not_the_same_file(field: str) -> None:
    other = KNOWN._replace(**{field: 99})
    assert not KNOWN.same_file(other)


def test_a_signature_is_taken_from_a_stat_result(tmp_path: Path) -> None:
    result = os.stat(tmp_path)
    signature = Signature.of(result, btime_ns=1)
    assert signature == Signature(
        result.st_dev, result.st_ino, result.st_size, result.st_mtime_ns, result.st_ctime_ns, 1
    )
