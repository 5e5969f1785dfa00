"""The fold checker must be able to say no: each promise is broken here once, and it has to notice."""

import base64
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from tests.bed.fold import FoldError, assert_equal_fold, fold, folded, library

Body = dict[str, Any]
UNDECODABLE = b"/music/\xff\xfe.mp3"


def sha256(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()


def event(sequence: int, event_type: str, path: str | bytes, content: str | None = None, **fields: Any) -> Body:
    """Return a body; `content` stands for the file's content, `old` and `was` for the old path and content."""
    body: Body = {
        "event_id": str(UUID(int=sequence)),
        "sequence": sequence,
        "instance_id": "one",
        "event_type": event_type,
        **path_fields("file_path", path),
        "old_path": None,
        "sha256_hash": None if content is None else sha256(content),
        "previous": None,
    }
    if (old := fields.pop("old", None)) is not None:
        body.update(path_fields("old_path", old))
    if (was := fields.pop("was", None)) is not None:
        body["previous"] = {"sha256_hash": sha256(was)}
    return {**body, **fields}


def path_fields(name: str, path: str | bytes) -> Body:
    if isinstance(path, str):
        return {name: path}
    return {name: path.decode("utf-8", "replace"), f"{name}_bytes": base64.b64encode(path).decode()}


def story() -> list[Body]:
    """Return a stream with nothing wrong, with every type of event in it."""
    return [
        event(1, "created", "/music/a/1.mp3", "one"),
        event(2, "created", "/music/a/2.mp3", "two"),
        event(3, "modified", "/music/a/1.mp3", "one!", was="one"),
        event(4, "renamed", "/music/a/3.mp3", "two", old="/music/a/2.mp3"),
        event(5, "moved", "/music/b/3.mp3", "two", old="/music/a/3.mp3"),
        event(6, "created", "/music/b/é.mp3", "four"),
        event(7, "deleted", "/music/a/1.mp3", was="one!"),
    ]


def test_a_good_stream_is_folded_and_counted() -> None:
    result = folded(story())
    assert result.files == {b"/music/b/3.mp3": sha256("two"), "/music/b/é.mp3".encode(): sha256("four")}
    assert result.by_type == {"created": 3, "modified": 1, "renamed": 1, "moved": 1, "deleted": 1}
    assert (result.events, result.doubles, result.last_sequence) == (7, 0, 7)
    assert fold([]) == {}


def test_recorded_messages_are_folded_by_their_bodies() -> None:
    assert fold(SimpleNamespace(body=body) for body in story()) == fold(story())


def test_doubles_with_the_same_body_are_counted_and_do_nothing() -> None:
    first, *others = story()
    result = folded([first, first, *others, others[2], first])
    assert result.doubles == 3
    assert result.files == fold(story())
    assert result.by_type.total() == 7


@pytest.mark.parametrize("change", [{"sha256_hash": sha256("other")}, {"size_bytes": 1}, {"sequence": 1.0}])
def test_a_double_with_another_body_is_refused(change: Body) -> None:
    with pytest.raises(FoldError, match="another body"):
        fold([*story(), story()[0] | change])


def test_a_double_whose_fields_come_in_another_order_is_the_same() -> None:
    assert folded([*story(), dict(reversed(story()[0].items()))]).doubles == 1


def test_a_gap_is_refused() -> None:
    with pytest.raises(FoldError, match="expected sequence 2: a gap"):
        fold([story()[0], *story()[2:]])


def test_a_lost_beginning_is_refused_unless_it_is_known() -> None:
    late = [event(4, "created", "/music/1.mp3", "one")]
    with pytest.raises(FoldError, match="expected sequence 1: a gap"):
        fold(late)
    assert len(fold(late, first_sequence=4)) == 1


def test_first_deliveries_out_of_order_are_refused_unless_that_is_allowed() -> None:
    first, second, *others = story()
    with pytest.raises(FoldError, match="wrong order"):
        fold([second, first, *others])
    assert fold([second, first, *others], ordered=False) == fold(story())


def test_a_gap_is_refused_in_any_order() -> None:
    first, _, third, *others = story()
    with pytest.raises(FoldError, match="expected sequence 2"):
        fold([third, *others, first], ordered=False)


def test_a_number_used_twice_is_refused() -> None:
    with pytest.raises(FoldError, match="used twice"):
        fold([*story(), event(7, "created", "/music/9.mp3", "nine", event_id="another")])


@pytest.mark.parametrize("sequence", [None, "1", True, 1.0])
def test_a_sequence_that_is_no_integer_is_refused(sequence: Any) -> None:
    with pytest.raises(FoldError, match="not a sequence number"):
        fold([event(1, "created", "/music/1.mp3", "one") | {"sequence": sequence}])


@pytest.mark.parametrize("event_id", [None, "", 7])
def test_an_event_without_an_id_is_refused(event_id: Any) -> None:
    with pytest.raises(FoldError, match="no event_id"):
        fold([event(1, "created", "/music/1.mp3", "one", event_id=event_id)])


def test_events_of_two_instances_are_refused() -> None:
    with pytest.raises(FoldError, match="several instances"):
        fold([*story(), event(8, "created", "/music/9.mp3", "nine", instance_id="two")])


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(FoldError, match="not an event"):
        fold([SimpleNamespace(body=["created"])])


PRESENT, ABSENT = "/music/b/3.mp3", "/music/b/9.mp3"  # after the story


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        (event(8, "created", PRESENT, "new"), "was there already"),
        (event(8, "created", ABSENT), "not a SHA-256"),
        (event(8, "created", ABSENT, sha256_hash=sha256("new").upper()), "not a SHA-256"),
        (event(8, "created", ABSENT, "new", old=PRESENT), "an old path"),
        (event(8, "created", ABSENT, "new", was="two"), "previous hash"),
        (event(8, "modified", ABSENT, "new", was="two"), "was not there"),
        (event(8, "modified", PRESENT, "new", was="one"), "previous hash"),
        (event(8, "modified", PRESENT, "new"), "previous hash"),
        (event(8, "modified", PRESENT, "new", previous={}), "previous hash"),
        (event(8, "modified", PRESENT, "two", was="two"), "same as before"),
        (event(8, "modified", PRESENT, was="two"), "not a SHA-256"),
        (event(8, "modified", PRESENT, "new", was="two", old=ABSENT), "an old path"),
        (event(8, "deleted", ABSENT, was="two"), "was not there"),
        (event(8, "deleted", PRESENT, was="one"), "previous hash"),
        (event(8, "deleted", PRESENT), "previous hash"),
        (event(8, "deleted", PRESENT, "two", was="two"), "has a hash"),
        (event(8, "deleted", PRESENT, was="two", old=ABSENT), "an old path"),
        (event(8, "moved", "/music/9.mp3", "two"), "old path None was not there"),
        (event(8, "moved", "/music/9.mp3", "two", old=ABSENT), "was not there"),
        (event(8, "moved", ABSENT, "two", old=PRESENT), "within its directory"),
        (event(8, "moved", "/music/b/é.mp3", "two", old=PRESENT), "new path was there already"),
        (event(8, "moved", "/music/9.mp3", "other", old=PRESENT), "not the one it had"),
        (event(8, "moved", "/music/9.mp3", "two", old=PRESENT, was="two"), "previous hash"),
        (event(8, "renamed", "/music/9.mp3", "two", old=PRESENT), "into another directory"),
        (event(8, "renamed", ABSENT, "two", old="/music/b/8.mp3"), "was not there"),
        (event(8, "renamed", PRESENT, "two", old=PRESENT), "new path was there already"),
        (event(8, "renamed", ABSENT, "other", old=PRESENT), "not the one it had"),
        (event(8, "touched", PRESENT, "two"), "not a type of event"),
        (event(8, "created", "music/9.mp3", "new"), "not absolute"),
        (event(8, "created", ABSENT, "new", file_path=None), "no file_path"),
        (event(8, "created", ABSENT, "new", file_path=7), "not text"),
        (event(8, "created", "/music/\udcff.mp3", "new"), "surrogates not allowed"),
        (event(8, "created", ABSENT, "new", file_path_bytes="bad base64!"), "file_path"),
        (event(8, "created", UNDECODABLE, "new", file_path="/music/other.mp3"), "not how"),
        (event(8, "created", ABSENT, "new", file_path_bytes=base64.b64encode(PRESENT.encode()).decode()), "not how"),
    ],
)
def test_an_event_that_breaks_a_promise_is_refused(bad: Body, problem: str) -> None:
    with pytest.raises(FoldError, match=problem) as caught:
        fold([*story(), bad])
    assert f"event 8 ('{bad['event_type']}'" in str(caught.value)


def test_a_path_may_be_used_again_after_it_was_deleted_or_left() -> None:
    again = [
        event(8, "created", "/music/a/1.mp3", "new"),
        event(9, "moved", "/music/c/3.mp3", "two", old=PRESENT),
        event(10, "created", PRESENT, "newer"),
    ]
    assert len(fold([*story(), *again])) == 4


def test_undecodable_names_are_folded_as_their_bytes() -> None:
    other = b"/music/\xfe\xff.mp3"  # shown like the first one, and still another file
    stream = [
        event(1, "created", UNDECODABLE, "one"),
        event(2, "created", other, "two"),
        event(3, "renamed", "/music/good.mp3", "one", old=UNDECODABLE),
    ]
    assert fold(stream) == {b"/music/good.mp3": sha256("one"), other: sha256("two")}


def on_disk(root: Path, name: str | bytes, content: str) -> bytes:
    path = os.path.join(os.fsencode(root), os.fsencode(name))
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content.encode())
    return path


def test_the_library_is_what_is_on_disk(tmp_path: Path) -> None:
    kept = {
        on_disk(tmp_path, "a/1.mp3", "one"): sha256("one"),
        on_disk(tmp_path, "a/b/2.FlAc", ""): sha256(""),
        on_disk(tmp_path, b"\xff/\xfe.ogg", "three"): sha256("three"),
        on_disk(tmp_path, "new\nline.wav", "four"): sha256("four"),
    }
    for name in ("cover.jpg", "mp3", "1.mp3.part", "a.mp33"):
        on_disk(tmp_path, name, "no")
    (tmp_path / "folder.mp3").mkdir()
    (tmp_path / "link.mp3").symlink_to("a/1.mp3")
    (tmp_path / "dangling.mp3").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp3")
    assert library(tmp_path) == kept
    assert library([str(tmp_path / "a"), os.fsencode(tmp_path) + b"/\xff", tmp_path]) == kept
    assert library(tmp_path, wanted=lambda path: b"/a/" not in path).keys() == {
        path for path in kept if b"/a/" not in path
    }
    assert library(tmp_path, suffixes=("jpg",)).keys() == {os.fsencode(tmp_path / "cover.jpg")}


def test_a_stream_that_describes_the_disk_is_accepted(tmp_path: Path) -> None:
    paths = [on_disk(tmp_path, name, "same") for name in ("1.mp3", "2.mp3", b"\xff.mp3")]
    stream = [event(number, "created", path, "same") for number, path in enumerate(paths, 1)]
    result = assert_equal_fold([*stream, stream[1]], tmp_path)
    assert (result.by_type, result.doubles) == ({"created": 3}, 1)
    assert_equal_fold(stream[:1], tmp_path, wanted=lambda path: path == paths[0])


def test_a_stream_that_does_not_describe_the_disk_is_refused_with_the_paths(tmp_path: Path) -> None:
    good, wrong = on_disk(tmp_path, "good.mp3", "good"), on_disk(tmp_path, "wrong.mp3", "wrong")
    missing = [on_disk(tmp_path, f"missing{number}.mp3", "missing") for number in range(7)]
    extra = os.fsencode(tmp_path / "extra.mp3")
    stream = [
        event(1, "created", good, "good"),
        event(2, "created", wrong, "outdated"),
        event(3, "created", extra, "extra"),
    ]
    with pytest.raises(FoldError) as caught:
        assert_equal_fold(stream, tmp_path)
    assert str(caught.value).splitlines() == [
        "the stream comes to 3 files, on disk are 9",
        "7 missing (on disk, not in the stream):",
        *[f"  {path!r}" for path in missing[:5]],
        "  and 2 more",
        "1 extra (in the stream, not on disk):",
        f"  {extra!r}",
        "1 wrong hash:",
        f"  {wrong!r} (stream {sha256('outdated')[:12]}, disk {sha256('wrong')[:12]})",
    ]


@pytest.mark.parametrize("spoil", ["missing", "extra", "wrong"])
def test_one_difference_is_enough(tmp_path: Path, spoil: str) -> None:
    path = on_disk(tmp_path, "1.mp3", "one")
    stream = [event(1, "created", path, "one")]
    assert_equal_fold(stream, tmp_path)
    if spoil == "extra":
        os.unlink(path)
    else:
        on_disk(tmp_path, "2.mp3" if spoil == "missing" else "1.mp3", "two")
    with pytest.raises(FoldError, match=f"1 {spoil}"):
        assert_equal_fold(stream, tmp_path)


def test_a_broken_stream_is_refused_even_if_it_comes_to_the_disk(tmp_path: Path) -> None:
    path = on_disk(tmp_path, "1.mp3", "one")
    with pytest.raises(FoldError, match="a gap"):
        assert_equal_fold([event(2, "created", path, "one")], tmp_path)


# ---- the audio

ONE, TWO = "xxh128:" + "01" * 16, "xxh128:" + "02" * 16


def edited(now: str | None, then: str | None, **fields: Any) -> list[Body]:
    """Return a stream with a modification between two audio hashes."""
    change = event(2, "modified", "/music/1.mp3", "one!", was="one", audio_hash=now, **fields)
    change["previous"]["audio_hash"] = then
    return [event(1, "created", "/music/1.mp3", "one", audio_hash=then), change]


@pytest.mark.parametrize(
    ("now", "then", "changed"),
    [
        (ONE, ONE, ["tags"]),
        (ONE, TWO, ["audio"]),
        (ONE, TWO, ["audio", "tags"]),
        (ONE, TWO, None),
        (ONE, None, None),
        (None, ONE, None),
    ],
)
def test_what_has_changed_may_be_said_where_it_is_known(
    now: str | None, then: str | None, changed: list[str] | None
) -> None:
    fold(edited(now, then, **({} if changed is None else {"changed": changed})))


@pytest.mark.parametrize(
    ("now", "then", "changed"),
    [
        (ONE, ONE, ["audio"]),
        (ONE, ONE, ["tags", "audio"]),
        (ONE, ONE, []),
        (ONE, TWO, ["tags"]),
        (ONE, TWO, ["tags", "audio"]),
        (ONE, TWO, "audio"),
        (ONE, None, ["audio"]),
        (None, ONE, ["tags"]),
    ],
)
def test_a_wrong_word_on_what_has_changed_is_found(now: str | None, then: str | None, changed: object) -> None:
    with pytest.raises(FoldError, match="changed"):
        fold(edited(now, then, changed=changed))


def test_the_same_audio_must_be_said_to_be_so() -> None:
    with pytest.raises(FoldError, match="the audio is the same"):
        fold(edited(ONE, ONE))


def test_only_a_modification_says_what_has_changed() -> None:
    with pytest.raises(FoldError, match="nobody can know"):
        fold([event(1, "created", "/music/1.mp3", "one", audio_hash=ONE, changed=["tags"])])


def test_the_same_content_has_the_same_audio() -> None:
    for other in (TWO, "01" * 16, 1):
        with pytest.raises(FoldError, match="audio"):
            fold([event(1, "created", "/music/1.mp3", "one", audio_hash=ONE),
                  event(2, "created", "/music/2.mp3", "one", audio_hash=other)])  # fmt: skip
    fold([event(1, "created", "/music/1.mp3", "one"), event(2, "created", "/music/2.mp3", "one", audio_hash=ONE)])
    forgotten = edited(ONE, ONE, changed=["tags"])
    forgotten[1]["previous"]["audio_hash"] = forgotten[1]["audio_hash"] = TWO
    with pytest.raises(FoldError, match="of the same content it was"):
        fold(forgotten)
