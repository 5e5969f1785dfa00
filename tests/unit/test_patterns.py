"""Which files are wanted, which directories are left out, and what goes first."""

import os
import time
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pathspec import GitIgnoreSpec

from trackwatch.patterns import AUDIO, DEFAULT_EXCLUDE, Patterns, problem_of
from trackwatch.track import AUDIO_SUFFIXES


@pytest.mark.parametrize("suffix", AUDIO_SUFFIXES)
def test_every_audio_format_is_wanted_in_any_letter_case(suffix: str) -> None:
    """The contract's 15 formats, however a ripper spelt them, at any depth."""
    patterns = Patterns()
    for spelt in (suffix, suffix.upper(), suffix.title()):
        assert patterns.wanted(f"song.{spelt}".encode())
        assert patterns.wanted(f"a/b c/{'d/' * 25}song.{spelt}".encode())


@pytest.mark.parametrize(
    "path",
    [b"cover.jpg", b"mp3", b"a/mp3", b"song.mp3.txt", b"song.mp3/cover.jpg", b"songmp3", b"song.mp33", b"x.", b"."],
)
def test_what_is_no_audio_is_not_wanted(path: bytes) -> None:
    """The suffix decides, and it is what comes after the last dot of the name."""
    assert not Patterns().wanted(path)


@pytest.mark.parametrize(
    "path",
    [
        b"Live/._song.mp3",
        b".#song.mp3",
        b".~lock.song.mp3",
        b"~$song.mp3",
        b".nfs0001.mp3",
        b".fuse_hidden0001.mp3",
        b"@eaDir/song.mp3/SYNOAUDIO.mp3",
        b"#recycle/song.mp3",
        b"a/$RECYCLE.BIN/song.mp3",
        b".Trash-1000/files/song.mp3",
        b"lost+found/song.mp3",
        b".stversions/a/song.mp3",
        b"song.mp3.download/song.mp3",
    ],
)
def test_pests_with_audio_names_are_not_wanted(path: bytes) -> None:
    """Attributes, locks, waste baskets and unlinked files have the suffix of music, and are none."""
    assert not Patterns().wanted(path)


@pytest.mark.parametrize(
    "path",
    [
        b"song.mp3.part",
        b"song.flac.crdownload",
        b"song.tmp",
        b"song.mp3~",
        b"#song.mp3#",
        b".song.mp3.a1B2c3",
        b".syncthing.song.mp3.tmp",
        b".DS_Store",
        b"Thumbs.db",
        b"System Volume Information/x",
    ],
)
def test_temporary_names_are_not_wanted_whatever_is_included(path: bytes) -> None:
    """With everything included, the default exclusion still holds back what somebody is writing."""
    assert not Patterns(include=("*",)).wanted(path)


@pytest.mark.parametrize(
    "path", [b".hidden/song.mp3", b".song.mp3", b"AC~DC/song.mp3", b"#1 Hits/song.mp3", b"tmp/s.mp3"]
)
def test_odd_but_real_music_is_wanted(path: bytes) -> None:
    """Hidden is not temporary, and neither is a strange name."""
    assert Patterns().wanted(path)


@pytest.mark.parametrize(
    "name", [b"\xff\xfe.mp3", b"a\xff/b.mp3", b"a\nb/song\n.mp3", "Björk/é\U0001f3b5.mp3".encode()]
)
def test_names_are_bytes_and_may_hold_anything(name: bytes) -> None:
    """Undecodable names and newlines are wanted like any other, by suffix and by pattern."""
    assert Patterns().wanted(name)
    assert Patterns(include=("**/*.mp3",)).wanted(name)
    assert Patterns(include=(AUDIO, "!nothing")).wanted(name)


def test_a_name_that_ends_in_a_newline_is_not_mistaken_for_the_one_without() -> None:
    r"""In a regular expression `$` also matches before a final newline."""
    assert not Patterns(include=("*.json",)).wanted(b"x.json\n")
    assert Patterns(include=("*",)).wanted(b"x.part\n")


def test_patterns_for_any_kind_of_file_work_at_any_depth() -> None:
    """`**/*.ast.json` names a file at the top, 25 levels down, and below a name with a newline."""
    patterns = Patterns(include=("**/*.ast.json",))
    assert patterns.wanted(b"x.ast.json")
    assert patterns.wanted(b"d/" * 25 + b"x.ast.json")
    assert patterns.wanted(b"a\nb/x.ast.json")
    assert not patterns.wanted(b"d/" * 25 + b"x.json")
    assert not patterns.wanted(b"song.mp3")


def test_audio_can_be_included_beside_other_files() -> None:
    """`@audio` stands for the formats, with and without a negation, where the order counts."""
    both = Patterns(include=(AUDIO, "*.cue"))
    assert both.wanted(b"song.MP3")
    assert both.wanted(b"disc.cue")
    assert not both.wanted(b"cover.jpg")
    without = Patterns(include=(AUDIO, "!Podcasts/", "Podcasts/Music/*.mp3"))
    assert without.wanted(b"song.MP3")
    assert not without.wanted(b"Podcasts/talk.mp3")
    assert without.wanted(b"Podcasts/Music/song.mp3")


def test_a_directory_pattern_includes_everything_below() -> None:
    """As in git, what is said of a directory holds for its content."""
    patterns = Patterns(include=("Jazz/", "/Top"))
    assert patterns.wanted(b"a/Jazz/b/c.jpg")
    assert patterns.wanted(b"Top/c.jpg")
    assert not patterns.wanted(b"a/Top/c.jpg")
    assert not patterns.wanted(b"a/Jazz")


def test_an_excluded_directory_need_not_be_entered() -> None:
    """`descend` says no for the directory and all below it, and for no other."""
    patterns = Patterns(exclude=(*DEFAULT_EXCLUDE, "/Inbox/", "a/b"))
    for directory in (b"@eaDir", b"x/y/@eaDir", b"@eaDir/z", b"Inbox", b"Inbox/x", b"a/b", b"a/b/c", b"s.mp3.part"):
        assert not patterns.descend(directory), directory
    for directory in (b"", b"x", b"x/Inbox", b"a", b"x/a/b", b"eaDir"):
        assert patterns.descend(directory), directory


def test_what_is_excluded_by_default_can_be_taken_back() -> None:
    """The last pattern that matches decides; an excluded directory hides what is in it, as in git."""
    patterns = Patterns(include=("*",), exclude=(*DEFAULT_EXCLUDE, "!*.tmp", "!lost+found/", "old/", "!old/keep.mp3"))
    assert patterns.wanted(b"song.tmp")
    assert patterns.descend(b"lost+found")
    assert patterns.wanted(b"lost+found/song.mp3")
    assert not patterns.wanted(b"song.part")
    assert not patterns.wanted(b"old/keep.mp3")
    everything = Patterns(include=("*",), exclude=(*DEFAULT_EXCLUDE, "!*"))
    assert everything.wanted(b"@eaDir/x.part")


def test_what_goes_first_is_said_by_patterns() -> None:
    """Nothing by default, else whatever matches."""
    assert not Patterns().priority(b"new/song.mp3")
    patterns = Patterns(priority=("/new/", "*.flac"))
    assert patterns.priority(b"new/a/song.mp3")
    assert patterns.priority(b"song.flac")
    assert not patterns.priority(b"old/song.mp3")
    assert Patterns(priority=(AUDIO,)).priority(b"song.OGG")


def test_comments_and_blank_lines_say_nothing() -> None:
    """Patterns may be a whole .gitignore file."""
    patterns = Patterns(include=("# music", "", "  ", "*.mp3"))
    assert patterns.wanted(b"a.mp3")
    assert not patterns.wanted(b"# music")


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("*.mp3", None),
        ("", None),
        ("# x", None),
        ("a[bc]d/", None),
        ("!", "not a gitignore pattern"),
        ("[z-a]", "not a gitignore pattern"),
        ("a\\", "not a gitignore pattern"),
        ("/", "a pattern that matches nothing"),
    ],
)
def test_a_bad_pattern_is_told(pattern: str, problem: str | None) -> None:
    """What git would ignore in silence is a mistake here."""
    assert problem_of(pattern) == problem


def test_paths_deeper_than_the_recursion_limit_are_decided() -> None:
    """4,096 bytes make 2,000 directories."""
    deep = b"d/" * 2000
    assert Patterns().wanted(deep + b"song.mp3")
    assert not Patterns().wanted(b"@eaDir/" + deep + b"song.mp3")


_NAMES = st.sampled_from([b"a", b"b.mp3", b"@eaDir", b"x.part", b"._a.mp3", b"keep", b"\xff", b"c\nd", b"lost+found"])
_PATTERNS = st.lists(
    st.sampled_from(["a", "a/", "/a/*", "*.mp3", "keep/", "**/b.mp3", "a/**", "!a/", "!keep", "!*.mp3", "*", "!*"]),
    max_size=4,
)


@given(path=st.lists(_NAMES, min_size=1, max_size=5), include=_PATTERNS, exclude=_PATTERNS)
def test_nothing_is_wanted_in_a_directory_that_is_not_entered(
    path: list[bytes], include: list[str], exclude: list[str]
) -> None:
    """A sweep that skips a directory misses nothing: whatever the patterns, `descend` and `wanted` agree."""
    patterns = Patterns(include=(AUDIO, *include), exclude=(*DEFAULT_EXCLUDE, *exclude))
    if patterns.wanted(b"/".join(path)):
        for depth in range(len(path)):
            assert patterns.descend(b"/".join(path[:depth]))


@given(
    path=st.lists(st.text("ab.~#!\\ \xff\u0142", min_size=1, max_size=5), min_size=1, max_size=3),
    exclude=st.lists(st.text("ab.~#!*?[]\\/ \u0142", min_size=1, max_size=6).filter(lambda line: not problem_of(line))),
)
@example(path=["a.part"], exclude=["*.part"])
@example(path=["a.part", "b"], exclude=["*.part"])
@example(path=["#a#"], exclude=["\\#*#"])
@example(path=["b~"], exclude=["[a]", "*~"])
def test_the_short_cuts_decide_as_git_does(path: list[str], exclude: list[str]) -> None:
    """Whatever a name begins or ends with; negated patterns do not take them."""
    exclude = [line for line in exclude if not line.startswith("!")]
    name = "/".join(part for part in path if part not in {".", ".."}) or "a"
    excluded = GitIgnoreSpec.from_lines(exclude).match_file(name)
    assert Patterns(include=["*"], exclude=exclude).wanted(os.fsencode(name)) is not excluded


@pytest.mark.parametrize(
    "patterns",
    [Patterns(), Patterns(exclude=(*DEFAULT_EXCLUDE, "Podcasts/", "!*.tmp"))],
    ids=["default", "with negation"],
)
def test_a_thousand_paths_are_decided_in_no_time(patterns: Patterns) -> None:
    """At most six times what a bare look at the suffixes costs, where two to three times are usual.

    The best of many counts, and a ratio, since the machine may be slow and has other work.
    """

    def bare(path: bytes) -> bool:
        return any(part.rpartition(b".")[2].lower() in (b"mp3", b"flac") for part in path.split(b"/"))

    def taken_s(decide: Callable[[bytes], bool]) -> float:
        begun = time.thread_time()
        assert sum(map(decide, names)) == 750
        return time.thread_time() - begun

    names = [
        f"Some Artist {i // 40}/Album ({1990 + i % 30}) [Deluxe]/{i % 20:02d} - A fairly long title.{suffix}".encode()
        for i, suffix in zip(range(1000), ("mp3", "flac", "FLAC", "jpg") * 250, strict=True)
    ]
    both = [(taken_s(patterns.wanted), taken_s(bare)) for _ in range(20)]
    assert min(taken for taken, _ in both) < 6 * min(taken for _, taken in both)
