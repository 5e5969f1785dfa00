"""Which files are wanted, and which of them go first: gitignore-style patterns over paths relative to their root.

Knows `pathspec`, and is the only module that does. Paths are bytes; bytes that are not UTF-8 take part as the surrogate
escapes of `os.fsdecode`, so a pattern's `*` and `?` match them. What lies in an excluded directory is excluded, as in
git, which is what lets a sweep skip such directories unread.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache

from pathspec import GitIgnoreSpec, PathSpec
from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern

from trackwatch.track import AUDIO_SUFFIXES

# Stands for the audio formats, in any letter case, among include patterns ("\@audio" is a file of that name).
AUDIO = "@audio"

# Names that are never music: somebody is still writing them, or a system keeps them for itself. Hidden files as such
# are not here: people do hide music.
DEFAULT_EXCLUDE = (
    # unfinished downloads and copies: browsers, torrent clients, yt-dlp, aria2, WinSCP
    "*.part", "*.partial", "*.crdownload", "*.download", "*.opdownload", "*.filepart", "*.aria2", "*.ytdl", "*.!ut",
    "*.!qB", "*.!bt",
    # temporary names: in general, rsync (.song.mp3.a1B2c3), GIO
    "*.tmp", "*.temp", ".~tmp~/", ".*." + "[0-9A-Za-z]" * 6, ".goutputstream-*",
    # editors and office programs: backups, locks, swap files
    "*~", ".#*", "\\#*#", "*.swp", "*.swo", "*.swx", ".~lock*", "~$*",
    # synchronisers: Syncthing, Nextcloud, Resilio, Dropbox
    ".syncthing.*.tmp", "~syncthing~*.tmp", ".stfolder/", ".stversions/", ".*.~*", "*.!sync", ".sync/",
    ".dropbox.cache/",
    # file systems: unlinked but open on NFS and FUSE, snapshots, repairs
    ".nfs*", ".fuse_hidden*", ".snapshot/", ".snapshots/", ".zfs/", "lost+found/",
    # macOS: ._x beside x holds its attributes (AppleDouble) and has x's suffix, but no sound
    "._*", ".DS_Store", ".AppleDouble/", ".Spotlight-V100/", ".fseventsd/", ".TemporaryItems/",
    # Windows
    "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN/", "System Volume Information/",
    # waste baskets of desktops and NAS
    ".Trash/", ".Trash-*/", ".Trashes/", "@eaDir/", "@tmp/", "\\#recycle/", "\\#snapshot/", "@Recycle/",
    "@Recently-Snapshot/", ".@__thumb/",
)  # fmt: skip

_AUDIO_SUFFIXES = frozenset(suffix.encode() for suffix in AUDIO_SUFFIXES)
_AUDIO_GLOBS = tuple(
    "*." + "".join(f"[{char}{char.upper()}]" if char.isalpha() else char for char in suffix)
    for suffix in AUDIO_SUFFIXES
)

# What os.fsdecode does, without its calls: each name of a library is looked at in each sweep.
_ENCODING, _ENCODING_ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()

# A sweep goes through one directory after the other; this many cover its way back up in any library.
_DIRECTORIES_KEPT = 1024


def problem_of(pattern: str) -> str | None:
    """Return why a pattern cannot be used, None for a good one (also for comments and blank lines)."""
    if _says_nothing(pattern):
        return None
    try:
        (compiled,) = GitIgnoreSpec.from_lines([pattern]).patterns
    except (ValueError, re.error):
        return "not a gitignore pattern"
    return "a pattern that matches nothing" if compiled.include is None else None


def _says_nothing(pattern: str) -> bool:
    return not pattern.strip() or pattern.startswith("#")


def _text(path: bytes) -> str:
    # In a regular expression "$" also matches before a final newline and "." matches no newline, but file names may
    # hold newlines. No pattern can (it ends there), so any other character does as well.
    return path.decode(_ENCODING, _ENCODING_ERRORS).replace("\n", "\r")


def _bytes(text: str) -> bytes:
    return text.encode(_ENCODING, _ENCODING_ERRORS)


class _Rules:
    """One list of patterns, quick for paths that none of them means: one regular expression instead of one for each."""

    def __init__(self, patterns: Sequence[str], *, directories_decide: bool = False) -> None:
        patterns = [pattern for pattern in patterns if not _says_nothing(pattern)]
        # For git "!x/" says nothing of files below x that another pattern means; for inclusion that would be absurd.
        kind = GitIgnoreSpec if directories_decide else PathSpec
        self._spec = kind.from_lines(GitIgnoreSpecPattern, patterns)
        self._negated = any(made.include is False for made in self._spec.patterns)
        self._by_directory = directories_decide or not self._negated
        positive = [line for line, made in zip(patterns, self._spec.patterns, strict=True) if made.include]
        # A pattern without an inner slash looks at one name alone; anchored to that name it needs no backtracking.
        names = [line for line in positive if not _has_inner_slash(line)]
        self._names = _alternatives(["/" + line for line in names])
        # Most names are told from all of these by their first byte and their last.
        self._ends = tuple(_bytes(match[1]) for line in names if (match := _END.fullmatch(line)))
        self._lasts = {end[-1:] for end in self._ends}
        others = [re.sub(r"^\\(?=[#!])", "", line) for line in names if not _END.fullmatch(line)]
        self._firsts = None if any(line[0] in "*?[\\" for line in others) else {_bytes(line)[:1] for line in others}
        self._paths = _alternatives([line for line in positive if _has_inner_slash(line)])
        self.cover: Callable[[bytes], bool] = lru_cache(_DIRECTORIES_KEPT)(self._cover)

    def match(self, path: bytes) -> bool:
        """Whether a file is meant, by its own name or by that of a directory above it."""
        if not self._by_directory:
            return self._spec.match_file(_text(path))
        directory, _, name = path.rpartition(b"/")
        if directory and self.cover(directory):
            return True
        if (
            self._paths is None
            and self._firsts is not None
            and name[:1] not in self._firsts
            and (name[-1:] not in self._lasts or not name.endswith(self._ends))
        ):
            return False
        return self._meant(_text(path) if self._paths or self._negated else "", _text(name))

    def _cover(self, directory: bytes) -> bool:
        # Whether the directory or one above it is meant. From the top, and no recursion: paths may be 2,000 deep.
        text, start = _text(directory), 0
        while start < len(text):
            end = text.find("/", start)
            end = len(text) if end < 0 else end
            if self._meant(text[:end] + "/", text[start:end] + "/"):
                return True
            start = end + 1
        return False

    def _meant(self, path: str, name: str) -> bool:
        if (self._names and self._names.match(name)) or (self._paths and self._paths.match(path)):
            return not self._negated or self._spec.match_file(path)
        return False


# A pattern that means every name that ends so: an asterisk, and then nothing that means anything else than itself.
_END = re.compile(r"\*([^*?\[\]\\/\s]+)")


def _has_inner_slash(pattern: str) -> bool:
    return "/" in pattern.rstrip().removesuffix("/")


def _alternatives(patterns: Sequence[str]) -> re.Pattern[str] | None:
    """Return one expression for all of these patterns, None for no patterns."""
    sources = [str(made.regex.pattern) for made in GitIgnoreSpec.from_lines(patterns).patterns if made.regex]
    # pathspec marks directories with a named group, and a name may occur once only.
    return re.compile("|".join(re.sub(r"\(\?P<\w+>", "(?:", source) for source in sources)) if sources else None


class Patterns:
    """Decides about paths, relative to their root, which is `b""` and always wanted.

    The last pattern that matches a path decides, and `!` in front takes back what earlier ones said. Exclusion goes
    before inclusion, and has git's rules: what lies in an excluded directory cannot be taken back.
    """

    def __init__(
        self,
        include: Sequence[str] = (AUDIO,),
        exclude: Sequence[str] = DEFAULT_EXCLUDE,
        priority: Sequence[str] = (),
    ) -> None:
        negated = any(pattern.startswith("!") for pattern in include)
        # The suffix alone tells an audio file. With negations the order counts, and it is spelled out in its place.
        self._audio = AUDIO in include and not negated
        self._include = _Rules(_spelled_out(include, () if self._audio else _AUDIO_GLOBS))
        self._exclude = _Rules(exclude, directories_decide=True)
        self._priority = _Rules(_spelled_out(priority, _AUDIO_GLOBS))

    def wanted(self, path: bytes) -> bool:
        """Whether a file at this path is one to tell about."""
        if self._audio:
            _, dot, suffix = path.rpartition(b".")
            if dot and suffix.lower() in _AUDIO_SUFFIXES:
                return not self._exclude.match(path)
        return self._include.match(path) and not self._exclude.match(path)

    def descend(self, directory: bytes) -> bool:
        """Whether a directory can hold wanted files; False means that nothing below it is ever wanted."""
        return not self._exclude.cover(directory)

    def priority(self, path: bytes) -> bool:
        """Whether a wanted file goes before the others."""
        return self._priority.match(path)


def _spelled_out(patterns: Sequence[str], audio: Sequence[str]) -> list[str]:
    return [spelled for pattern in patterns for spelled in (audio if pattern == AUDIO else (pattern,))]
