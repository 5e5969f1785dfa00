"""The fold: what a consumer would believe to be on disk after reading the stream, and whether that is so.

Written from the contract, independent of trackwatch's code: paths from base64 or UTF-8, hashes by hashlib from the
disk. It refuses a stream that breaks any promise made to consumers, and says which event did.
"""

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

# Repeated here on purpose: an oracle that imports the list cannot see that it has changed.
AUDIO_SUFFIXES = (
    "flac", "wav", "wave", "mp3", "ogg", "oga", "aac", "opus", "m4a", "m4b", "m4p", "m4v", "m4r", "mp4", "wma",
)  # fmt: skip
SHA256 = re.compile(r"[0-9a-f]{64}")
AUDIO_HASH = re.compile(r"xxh128:[0-9a-f]{32}")
SHOWN = 5  # paths of each kind in an error

AnyPath = str | bytes | os.PathLike[str] | os.PathLike[bytes]


class FoldError(AssertionError):
    """The stream breaks a promise, or does not describe the disk."""


class HasBody(Protocol):
    """A recorded message."""

    @property
    def body(self) -> Any:
        """The parsed JSON."""
        ...


Messages = Iterable[Mapping[str, Any] | HasBody]


@dataclass
class Folded:
    """What a stream comes to, and its statistics."""

    files: dict[bytes, str] = field(default_factory=dict)  # path to SHA-256 in hex
    by_type: Counter[str] = field(default_factory=Counter)  # events, doubles not counted
    doubles: int = 0
    events: int = 0
    last_sequence: int = 0
    audio: dict[str, str] = field(default_factory=dict)  # SHA-256 to the hash of the audio in it


def fold(messages: Messages, *, ordered: bool = True, first_sequence: int = 1) -> dict[bytes, str]:
    """Return the files that a stream describes, path to SHA-256, after checking every promise; see `folded`."""
    return folded(messages, ordered=ordered, first_sequence=first_sequence).files


def folded(messages: Messages, *, ordered: bool = True, first_sequence: int = 1) -> Folded:
    """Fold a stream: bodies, or recorded messages, in the order of arrival.

    `ordered=False` lets first deliveries come in any order (parked events that were replayed) and folds them by
    sequence. `first_sequence` is for a stream whose beginning is not there.

    Raises:
        FoldError: at the first broken promise
    """
    result = Folded()
    firsts = list(first_deliveries(messages, result))
    if not ordered:
        firsts.sort(key=sequence_of)
    instances = {body.get("instance_id") for body in firsts}
    if len(instances) > 1:
        raise FoldError(f"events of several instances in one stream: {sorted(map(str, instances))}")
    result.last_sequence = first_sequence - 1
    for body in firsts:
        sequence, expected = sequence_of(body), result.last_sequence + 1
        if sequence != expected:
            kind = "a gap or a wrong order" if sequence > expected else "a wrong order, or a number used twice"
            fail(body, f"expected sequence {expected}: {kind}")
        apply(body, result.files)
        check_audio(body, result.audio)
        result.last_sequence = sequence
        result.by_type[body["event_type"]] += 1
    result.events = len(firsts)
    return result


def first_deliveries(messages: Messages, result: Folded) -> Iterator[Mapping[str, Any]]:
    """Yield the bodies without their doubles, which are counted and must be the same in every byte that matters."""
    seen: dict[str, str] = {}
    for message in messages:
        body = message if isinstance(message, Mapping) else message.body
        if not isinstance(body, Mapping):
            raise FoldError(f"not an event: {body!r}")
        event_id = body.get("event_id")
        if not isinstance(event_id, str) or not event_id:
            fail(body, f"no event_id: {event_id!r}")
        # As text, because to Python 1, 1.0 and True are equal, and to a consumer they are not.
        text = json.dumps(body, sort_keys=True)
        if event_id not in seen:
            seen[event_id] = text
            yield body
        elif seen[event_id] != text:
            fail(body, f"sent again with another body; the first time: {seen[event_id]}")
        else:
            result.doubles += 1


def sequence_of(body: Mapping[str, Any]) -> int:
    """Return an event's sequence number."""
    sequence = body.get("sequence")
    if not isinstance(sequence, int) or isinstance(sequence, bool):
        fail(body, f"not a sequence number: {sequence!r}")
    return sequence


def apply(body: Mapping[str, Any], files: dict[bytes, str]) -> None:
    """Apply one event to the map, in place, after checking that it may be applied."""
    event_type, path = body.get("event_type"), path_of(body, "file_path")
    if path is None:
        fail(body, "no file_path")
    match event_type:
        case "created":
            if path in files:
                fail(body, "created, but it was there already")
            check_rest(body, previous=None, may_have_old_path=False)
            files[path] = hash_of(body)
        case "modified":
            if path not in files:
                fail(body, "modified, but it was not there")
            check_rest(body, previous=files[path], may_have_old_path=False)
            if hash_of(body) == files[path]:
                fail(body, "modified, but the hash is the same as before")
            files[path] = hash_of(body)
        case "deleted":
            if path not in files:
                fail(body, "deleted, but it was not there")
            check_rest(body, previous=files[path], may_have_old_path=False)
            if body.get("sha256_hash") is not None or body.get("xxh128_hash") is not None:
                fail(body, "deleted, but it has a hash")
            del files[path]
        case "moved" | "renamed":
            old_path = path_of(body, "old_path")
            if old_path is None or old_path not in files:
                fail(body, f"{event_type}, but the old path {old_path!r} was not there")
            if path in files:
                fail(body, f"{event_type}, but the new path was there already")
            same_directory = os.path.dirname(old_path) == os.path.dirname(path)
            if same_directory != (event_type == "renamed"):
                where = "within its directory" if same_directory else "into another directory"
                fail(body, f"{event_type}, but it went {where}, from {old_path!r}")
            check_rest(body, previous=None, may_have_old_path=True)
            # Consumers change the key and keep the rest, so the content must be what it was.
            if hash_of(body) != files[old_path]:
                fail(body, f"{event_type}, but the hash is not the one it had: {files[old_path]}")
            files[path] = files.pop(old_path)
        case _:
            fail(body, f"not a type of event: {event_type!r}")


def check_rest(body: Mapping[str, Any], *, previous: str | None, may_have_old_path: bool) -> None:
    """Check that `previous` is there when it must be, and true, and that `old_path` is not there when it must not."""
    if not may_have_old_path and (body.get("old_path") is not None or body.get("old_path_bytes") is not None):
        fail(body, f"an old path: {body.get('old_path')!r}")
    said = body.get("previous")
    said_hash = said.get("sha256_hash") if isinstance(said, Mapping) else said
    if said_hash != previous:
        fail(body, f"previous hash {said_hash!r}, but it was {previous!r}")


def check_audio(body: Mapping[str, Any], audio: dict[str, str]) -> None:
    """Check that the same content always has the same audio, and that what is said to have changed fits to that.

    `audio` has what was told so far, and is added to. Whether the audio is known is left open.
    """
    previous = body.get("previous")
    before: Mapping[str, Any] = previous if isinstance(previous, Mapping) else {}
    for side in (before, body):
        told, content = side.get("audio_hash"), str(side.get("sha256_hash"))
        if told is None:
            continue
        if not isinstance(told, str) or not AUDIO_HASH.fullmatch(told):
            fail(body, f"not a hash of audio: {told!r}")
        if audio.setdefault(content, told) != told:
            fail(body, f"audio hash {told!r}, but of the same content it was {audio[content]!r}")
    changed, now, then = body.get("changed"), body.get("audio_hash"), before.get("audio_hash")
    if body["event_type"] != "modified" or now is None or then is None:
        if "changed" in body:
            fail(body, f"changed: {changed!r}, but nobody can know")
    elif now == then:
        if changed != ["tags"]:
            fail(body, f"changed: {changed!r}, but the audio is the same")
    elif "changed" in body and changed not in (["audio"], ["audio", "tags"]):
        fail(body, f"changed: {changed!r}, but the audio is another one")


def hash_of(body: Mapping[str, Any]) -> str:
    """Return an event's SHA-256."""
    sha256 = body.get("sha256_hash")
    if not isinstance(sha256, str) or not SHA256.fullmatch(sha256):
        fail(body, f"not a SHA-256: {sha256!r}")
    return sha256


def path_of(body: Mapping[str, Any], name: str) -> bytes | None:
    """Return `file_path` or `old_path` as the exact bytes."""
    text, encoded = body.get(name), body.get(f"{name}_bytes")
    if text is None and encoded is None:
        return None
    if not isinstance(text, str):
        fail(body, f"{name} is not text: {text!r}")
    try:
        path = text.encode() if encoded is None else base64.b64decode(encoded, validate=True)
    except (UnicodeEncodeError, binascii.Error, TypeError, ValueError) as error:
        fail(body, f"{name}: {error}")
    if path.decode("utf-8", "replace") != text:
        fail(body, f"{name} {text!r} is not how {path!r} is shown")
    if not path.startswith(b"/"):
        fail(body, f"{name} {path!r} is not absolute")
    return path


def fail(body: Mapping[str, Any], problem: str) -> NoReturn:
    """Raise the error for one event."""
    raise FoldError(
        f"event {body.get('sequence')!r} ({body.get('event_type')!r} of {body.get('file_path')!r}, "
        f"event_id {body.get('event_id')!r}): {problem}"
    )


def library(
    roots: AnyPath | Iterable[AnyPath],
    suffixes: Sequence[str] = AUDIO_SUFFIXES,
    wanted: Callable[[bytes], bool] | None = None,
) -> dict[bytes, str]:
    """Return what is on disk: absolute path to SHA-256 of every regular file with one of the suffixes, in any case.

    Symlinks are not followed (a root may be one). `wanted` gets the absolute path of a file and may decline it.
    """
    endings = tuple(f".{suffix}".lower().encode() for suffix in suffixes)
    found: dict[bytes, str] = {}
    for root in [roots] if isinstance(roots, str | bytes | os.PathLike) else roots:
        for path in regular_files(os.path.abspath(os.fsencode(root))):
            if path.lower().endswith(endings) and (wanted is None or wanted(path)):
                with open(path, "rb") as file:
                    found[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def regular_files(directory: bytes) -> Iterator[bytes]:
    """Yield the paths of all regular files below a directory."""
    for name in sorted(os.listdir(directory)):
        path = os.path.join(directory, name)
        mode = os.lstat(path).st_mode
        if stat.S_ISDIR(mode):
            yield from regular_files(path)
        elif stat.S_ISREG(mode):
            yield path


def assert_equal_fold(
    messages: Messages,
    roots: AnyPath | Iterable[AnyPath],
    *,
    suffixes: Sequence[str] = AUDIO_SUFFIXES,
    wanted: Callable[[bytes], bool] | None = None,
    ordered: bool = True,
) -> Folded:
    """Check that a stream keeps its promises and comes to exactly what is on disk; return what it comes to.

    Raises:
        FoldError: with the first few paths of each kind of difference
    """
    result = folded(messages, ordered=ordered)
    assert_same_files(result.files, library(roots, suffixes, wanted))
    return result


def assert_same_files(folded_files: Mapping[bytes, str], on_disk: Mapping[bytes, str]) -> None:
    """Check that two maps of files are equal.

    Raises:
        FoldError: with the first few paths of each kind of difference
    """
    differences = {
        "missing (on disk, not in the stream)": sorted(on_disk.keys() - folded_files.keys()),
        "extra (in the stream, not on disk)": sorted(folded_files.keys() - on_disk.keys()),
        "wrong hash": sorted(
            path for path in on_disk.keys() & folded_files.keys() if on_disk[path] != folded_files[path]
        ),
    }
    if not any(differences.values()):
        return
    lines = [f"the stream comes to {len(folded_files)} files, on disk are {len(on_disk)}"]
    for kind, paths in differences.items():
        if paths:
            lines.append(f"{len(paths)} {kind}:")
            for path in paths[:SHOWN]:
                stream, disk = folded_files.get(path), on_disk.get(path)
                hashes = f" (stream {stream[:12]}, disk {disk[:12]})" if stream and disk else ""
                lines.append(f"  {path!r}{hashes}")
            if len(paths) > SHOWN:
                lines.append(f"  and {len(paths) - SHOWN} more")
    raise FoldError("\n".join(lines))
