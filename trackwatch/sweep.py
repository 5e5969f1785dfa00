"""What is on the disk: walk a root or a part of it in the catalogue's order, and say how the catalogue differs.

Synchronous, runs in a thread. Memory stays bounded: the walk and the catalogue are merged as two ordered streams. What
it says are hints, to be looked at again; but it never calls files missing below a directory that it could not list.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain

from trackwatch.errors import RootUnavailable
from trackwatch.track import Signature

# A walk yields so many files of a directory at once, at most.
RUN = 500


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory that was listed; `path` is relative to the root, empty for the root itself.

    `files` counts the wanted names in it. `is_odd`: it holds a name that is not UTF-8, which the watcher library cannot
    bear.
    """

    path: bytes
    dev: int
    inode: int
    mtime_ns: int
    ctime_ns: int
    files: int
    is_odd: bool

    @classmethod
    def of(cls, path: bytes, own: os.stat_result, *, files: int = 0, is_odd: bool = False) -> "Directory":
        """Return the directory that a stat result describes; one whose path is not UTF-8 is odd in any case."""
        is_odd = is_odd or not is_decodable(path)
        return cls(path, own.st_dev, own.st_ino, own.st_mtime_ns, own.st_ctime_ns, files, is_odd)


# A wanted regular file: its path, and what lstat says of it.
Found = tuple[bytes, os.stat_result]


@dataclass(frozen=True, slots=True)
class Unlistable:
    """A directory whose content nobody can tell; nothing may be concluded about what lies below."""

    path: bytes
    reason: str
    is_gone: bool = False  # it vanished while we looked: the next hint, or sweep, says so


@dataclass(frozen=True, slots=True)
class Differs:
    """A file that is new to the catalogue, or whose signature is another one now."""

    path: bytes
    stat: os.stat_result


@dataclass(frozen=True, slots=True)
class Missing:
    """A catalogued file that is not where it was."""

    path: bytes


@dataclass(frozen=True, slots=True)
class Renumbered:
    """An unchanged file whose device has another number now, as after a reboot or a remount."""

    path: bytes
    dev: int


# Files come as lists, several of one directory at once: nearly all that a sweep meets is unchanged files.
Sight = Directory | list[Found] | Unlistable
Difference = Differs | Missing | Renumbered | Directory | Unlistable


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which paths below a root matter: a decision for files, and one for whole directories that can be left out.

    `priority` says which wanted files go before the others; None: none does.
    """

    file: Callable[[bytes], bool]
    directory: Callable[[bytes], bool] = field(default=lambda _path: True)
    priority: Callable[[bytes], bool] | None = None

    def of_priority(self, priority: Callable[[bytes], bool]) -> "Wanted":
        """Return the same decision for those files alone that go first."""
        return Wanted(lambda path: priority(path) and self.file(path), self.directory)


def check_root(root: bytes) -> os.stat_result:
    """Return the stat of a root that can be looked at.

    Raises:
        RootUnavailable: it is missing, no directory, or must not be read.
    """
    try:
        result = os.stat(root)
        if not stat.S_ISDIR(result.st_mode):
            raise RootUnavailable(f"{os.fsdecode(root)!r} is not a directory; name the folder that holds the files")
        with os.scandir(root):
            return result
    except FileNotFoundError:
        raise RootUnavailable(f"{os.fsdecode(root)!r}: no such directory; is the volume mounted?") from None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        remedy = (
            f"let user {os.geteuid()} read it" if isinstance(error, PermissionError) else "look at its disk or mount"
        )
        raise RootUnavailable(f"{os.fsdecode(root)!r} cannot be read: {reason}; {remedy}") from error


def walk(root: bytes, top: bytes, wanted: Wanted, *, with_files: bool = True) -> Iterator[Sight]:
    """Yield what is below `top` (relative to the root; empty for all of it) in the byte order of the catalogue's paths.

    Symlinks are not followed. A directory's mtime is taken before it is listed, so that a change during the listing is
    seen at the next one. With `with_files` false files are not looked at one by one, and not yielded.
    """
    # A stack of sorted listings, deepest last: recursion would end at the interpreter's limit, not the file system's.
    listing, sight = _list(root, top, wanted)
    yield sight
    stack = [iter(listing)]
    while stack:
        files: list[Found] = []
        item: Unlistable | bytes | None = None  # what ends a run of files: one that cannot be told, or a directory
        for path, entry in stack[-1]:
            if entry is None:
                item = path[:-1]
                break
            if not with_files:
                continue
            try:
                result = entry.stat(follow_symlinks=False)  # now, and not when it was listed
            except FileNotFoundError:
                continue
            except OSError as error:
                item = Unlistable(path, (error.strerror or str(error)).lower())
                break
            if stat.S_ISREG(result.st_mode):
                files.append((path, result))
                if len(files) == RUN:
                    break
        if files:
            yield files
        if isinstance(item, bytes):
            listing, sight = _list(root, item, wanted)
            yield sight
            stack.append(iter(listing))
        elif item is not None:
            yield item
        elif len(files) < RUN:
            stack.pop()


def standing(root: bytes, known: Iterable[list[bytes]], wanted: Wanted) -> Iterator[Directory]:
    """Yield the root and the directories above known files, as far as these are directories now.

    The paths come in lots, in byte order. No directory is listed, so that all can be watched before any is; `files` is
    0. A symlink is not followed, nor is what lies below one.
    """
    # The way down to the path at hand. All that is below a directory comes in one piece, so none is met twice.
    way: list[Directory] = []
    last: bytes | None = None
    if (itself := directory_at(root, b"")) is not None:
        way.append(itself)
    for path in chain.from_iterable(known):
        directory, _, name = path.rpartition(b"/")
        if directory != last:
            last = directory
            while way and way[-1].path and not (directory + b"/").startswith(way[-1].path + b"/"):
                yield way.pop()
            start = len(way[-1].path) + 1 if way and way[-1].path else 0
            while way and start < len(directory):
                end = directory.find(b"/", start)
                end = len(directory) if end < 0 else end
                deeper = directory[:end]
                found = directory_at(root, deeper) if wanted.directory(deeper) else None
                if found is None:
                    break
                if not is_decodable(deeper[start:]):
                    way[-1] = replace(way[-1], is_odd=True)
                way.append(found)
                start = end + 1
        if way and not name.isascii() and way[-1].path == directory and not is_decodable(name):
            way[-1] = replace(way[-1], is_odd=True)
    yield from reversed(way)


def directory_at(root: bytes, path: bytes) -> Directory | None:
    """Return a directory that could be listed; None if there is none. The walk says what is the matter with it."""
    absolute = os.path.join(root, path) if path else root
    try:
        result = os.stat(absolute, follow_symlinks=not path)
    except OSError:
        return None
    is_listable = stat.S_ISDIR(result.st_mode) and os.access(absolute, os.R_OK, effective_ids=True)
    return Directory.of(path, result) if is_listable else None


def compare_directory(
    root: bytes, path: bytes, wanted: Wanted, known: Iterator[tuple[bytes, Signature | None]]
) -> list[Difference]:
    """Compare one directory alone, not what is in its subdirectories, with what is known directly in it.

    The first item is the directory itself, or says that it cannot be listed, and then is the only one. A subdirectory
    comes as a Directory whose content was not looked at, one that has gone as Missing, and so does a known file where a
    directory is now.
    """
    listing, sight = _list(root, path, wanted)
    found: list[Difference] = [sight]
    if isinstance(sight, Unlistable):
        return found
    files: dict[bytes, Signature] = {}
    directories: dict[bytes, None] = {}  # one name may be in both: it was a file and has become a directory, or back
    for child, signature in known:
        if signature is None:
            directories[child] = None
        else:
            files[child] = signature
    for child, entry in listing:
        if entry is None:
            child = child[:-1]
        try:
            result = os.lstat(os.path.join(root, child))
        except OSError:
            files.pop(child, None)  # gone since, or not to be told: its next hint, or sweep, says which
            directories.pop(child, None)
            continue
        if entry is None and stat.S_ISDIR(result.st_mode):
            directories.pop(child, None)
            found.append(Directory.of(child, result))
        elif stat.S_ISREG(result.st_mode):
            before = files.pop(child, None)
            if before is None or not before.unchanged_since(Signature.of(result)):
                found.append(Differs(child, result))
    found += [Missing(missing) for missing in files | directories]
    return found


def _list(
    root: bytes, path: bytes, wanted: Wanted
) -> tuple[list[tuple[bytes, os.DirEntry[bytes] | None]], Directory | Unlistable]:
    """Return the children of a directory in order, and the directory itself.

    A wanted file is its path and its entry, a directory its path with a slash behind and None: a file `a.mp3` sorts by
    its name, a directory `a` by `a/`, as the full paths below it do.
    """
    absolute = os.path.join(root, path) if path else root
    prefix = path + b"/" if path else b""
    children: list[tuple[bytes, os.DirEntry[bytes] | None]] = []
    is_odd = False
    files = 0
    is_wanted = wanted.file
    try:
        own = os.stat(absolute, follow_symlinks=not path)
        if not stat.S_ISDIR(own.st_mode):
            # Made since its parent was listed, and scandir would follow a symlink.
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        with os.scandir(absolute) as entries:
            for entry in entries:
                name = entry.name
                child = prefix + name
                if not is_odd and not name.isascii():
                    is_odd = not is_decodable(name)
                if entry.is_dir(follow_symlinks=False):
                    if wanted.directory(child):
                        children.append((child + b"/", None))
                elif is_wanted(child):
                    children.append((child, entry))
                    files += 1
    except OSError as error:
        return [], Unlistable(path, (error.strerror or str(error)).lower(), isinstance(error, FileNotFoundError))
    children.sort()  # no two are alike, so that entries are never compared
    return children, Directory.of(path, own, files=files, is_odd=is_odd)


def is_decodable(name: bytes) -> bool:
    """Whether a name can be watched: watchfiles dies of one that is not UTF-8."""
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


def differences(
    sights: Iterator[Sight],
    known: Iterator[tuple[bytes, Signature]],
    count: Callable[[list[Found]], None] = lambda _files: None,
) -> Iterator[Difference]:
    """Merge a walk with the catalogue's signatures of the same part, both in byte order of the paths.

    Directories and what could not be listed are passed on; a file whose signature is unchanged is only counted.
    """
    catalogued = next(known, None)
    # The subtrees about which nothing may be concluded, and that the merge has not passed. There may be several: the
    # walk comes to `a` right after `a-b`, and then the merge has not come to `a-b/...` yet.
    sealed: list[bytes] = []

    def is_sealed(path: bytes) -> bool:
        return any(not top or path == top or path.startswith(top + b"/") for top in sealed)

    for sight in sights:
        if isinstance(sight, Directory):
            yield sight
            continue
        if isinstance(sight, Unlistable):
            # Everything before it in the order was concluded; what lies in it is skipped when the merge comes there.
            while catalogued is not None and catalogued[0] < sight.path:
                if not is_sealed(catalogued[0]):
                    yield Missing(catalogued[0])
                catalogued = next(known, None)
            sealed = [top for top in sealed if catalogued is not None and (not top or top + b"0" > catalogued[0])]
            sealed.append(sight.path)
            yield sight
            continue
        count(sight)
        for path, now in sight:
            while catalogued is not None and catalogued[0] < path:
                if not is_sealed(catalogued[0]):
                    yield Missing(catalogued[0])
                catalogued = next(known, None)
            if catalogued is None or catalogued[0] != path:
                yield Differs(path, now)
                continue
            before = catalogued[1]
            catalogued = next(known, None)
            dev, inode, size_bytes, mtime_ns, ctime_ns, _ = before
            # Spelled out: nearly every file of a library comes here at each sweep.
            if (
                ctime_ns == now.st_ctime_ns
                and inode == now.st_ino
                and size_bytes == now.st_size
                and mtime_ns == now.st_mtime_ns
            ) or before.unchanged_since(Signature.of(now)):
                if dev != now.st_dev:
                    yield Renumbered(path, now.st_dev)
            else:
                yield Differs(path, now)
    while catalogued is not None:
        if not is_sealed(catalogued[0]):
            yield Missing(catalogued[0])
        catalogued = next(known, None)
