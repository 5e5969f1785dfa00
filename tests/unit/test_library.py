"""The library maker: as many files as asked for, each a real one and none like another."""

import hashlib
import os
import subprocess
import sys

import pytest

from tests.data import expected, make_library
from trackwatch.tags import read_tags
from trackwatch.track import AUDIO_SUFFIXES


def files_below(directory: str) -> list[str]:
    """Return the paths of all files, relative and in order, hidden ones included."""
    return sorted(
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, _, names in os.walk(directory)
        for name in names
    )


def digests(directory: str) -> set[bytes]:
    found = set()
    for path in files_below(directory):
        with open(os.path.join(directory, path), "rb") as file:
            found.add(hashlib.sha256(file.read()).digest())
    return found


def test_the_formats_are_those_of_the_contract() -> None:
    assert make_library.SUFFIXES == AUDIO_SUFFIXES


def test_every_file_is_unique_and_parses(tmp_path: "os.PathLike[str]") -> None:
    root = os.fspath(tmp_path)
    make_library.make_library(root, 210)
    paths = files_below(root)
    assert len(paths) == len(digests(root)) == 210
    for path in paths:
        suffix = path.rpartition(".")[2]
        with open(os.path.join(root, path), "rb") as file:
            metadata = read_tags(file, suffix, os.path.getsize(file.name))
        assert metadata.format == expected.FIXTURES[suffix].mime
        assert metadata.duration_s is not None
        assert metadata.tags == expected.TAGS


def test_a_folder_holds_a_hundred_files_of_all_formats_and_some_have_odd_names(tmp_path: "os.PathLike[str]") -> None:
    root = os.fspath(tmp_path)
    make_library.make_library(root, 210)
    folders: dict[str, list[str]] = {}
    for path in files_below(root):
        folders.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    assert sorted(map(len, folders.values())) == [10, 100, 100]
    assert folders["artist000/album0000"][:3] == ["000000.flac", "000001.wav", "000002.wave"]
    assert any(" " in folder for folder in folders)
    assert any(not folder.isascii() for folder in folders)


@pytest.mark.parametrize("size_bytes", [1, 20_000, 300_001])
def test_a_size_is_kept_and_the_files_still_parse(tmp_path: "os.PathLike[str]", size_bytes: int) -> None:
    """Also beyond 64 KiB, where readers of Ogg look for the last page, and beyond the fixture's own size only."""
    root = os.fspath(tmp_path)
    make_library.make_library(root, len(AUDIO_SUFFIXES), size_bytes=size_bytes)
    for path in files_below(root):
        absolute = os.path.join(root, path)
        suffix = path.rpartition(".")[2]
        size = os.path.getsize(absolute)
        assert size - size_bytes in (0, 1) or size < os.path.getsize(expected.path_of(suffix)) * 2
        with open(absolute, "rb") as file:
            metadata = read_tags(file, suffix, size)
        assert metadata.tags == expected.TAGS
        if suffix != "aac":  # its duration is an estimate from the size
            made = expected.FIXTURES[suffix]
            assert metadata.duration_s == pytest.approx(expected.DURATION_S, abs=made.slack_s)


def test_the_same_seed_makes_the_same_bytes_and_another_seed_none_of_them(tmp_path: "os.PathLike[str]") -> None:
    made = []
    for name, seed in (("first", 1), ("again", 1), ("other", 2)):
        make_library.make_library(os.path.join(tmp_path, name), 30, seed=seed)
        made.append(digests(os.path.join(tmp_path, name)))
    assert made[0] == made[1]
    assert made[0].isdisjoint(made[2])


def test_the_script_needs_nothing_but_the_standard_library(tmp_path: "os.PathLike[str]") -> None:
    script = os.path.abspath(make_library.__file__)
    library = os.path.join(tmp_path, "library")
    command = [sys.executable, "-I", "-S", script, library, "7", "--size", "20000", "--seed", "3"]
    subprocess.run(command, check=True, cwd="/")
    assert len(files_below(library)) == 7
