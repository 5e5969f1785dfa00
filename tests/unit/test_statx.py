"""Birth times and signatures, as the kernel tells them."""

import os
import time
from pathlib import Path

import pytest

from trackwatch import statx
from trackwatch.statx import birth_ns, signature_of


@pytest.fixture
def song(tmp_path: Path) -> bytes:
    """A file on a system that knows birth times; elsewhere there is nothing to test."""
    path = os.fsencode(tmp_path / "song.mp3")
    with open(path, "wb") as file:
        file.write(b"sound")
    if birth_ns(path) is None:
        pytest.skip("no birth times here")
    return path


def test_a_birth_is_a_moment_ago_and_no_program_can_set_it(song: bytes) -> None:
    os.utime(song, ns=(1, 1))
    born = birth_ns(song)
    assert born is not None
    assert abs(time.time_ns() - born) < 60e9
    assert os.stat(song).st_mtime_ns == 1


def test_an_open_file_tells_the_same_birth_as_its_path(song: bytes) -> None:
    with open(song, "rb") as file:
        born = birth_ns(song)
        os.rename(song, song + b".away")
        assert birth_ns(b"", file.fileno()) == born
        assert birth_ns(song + b".away") == born


def test_a_symlink_is_not_followed(song: bytes) -> None:
    os.symlink(b"nowhere", song + b".link")
    assert birth_ns(song + b".link") is not None


def test_what_is_not_there_has_no_birth(tmp_path: Path) -> None:
    assert birth_ns(os.fsencode(tmp_path / "missing")) is None


def test_names_that_are_no_text_are_no_trouble(song: bytes) -> None:
    odd = os.path.dirname(song) + b"/\xff\n.mp3"
    os.rename(song, odd)
    assert birth_ns(odd) is not None


def test_without_statx_births_are_unknown_and_signatures_work(song: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statx, "_statx", None)
    assert birth_ns(song) is None
    assert signature_of(song).btime_ns is None
    assert signature_of(song).size_bytes == 5


def test_a_signature_is_what_lstat_says(song: bytes) -> None:
    result, signature = os.lstat(song), signature_of(song)
    assert signature.inode == result.st_ino
    assert (signature.dev, signature.size_bytes) == (result.st_dev, 5)
    assert (signature.mtime_ns, signature.ctime_ns) == (result.st_mtime_ns, result.st_ctime_ns)
    assert signature.btime_ns == birth_ns(song)


def test_the_signature_of_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        signature_of(os.fsencode(tmp_path / "missing"))


def test_descriptors_are_not_leaked(song: bytes) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        signature_of(song)
    assert len(os.listdir("/proc/self/fd")) == before
