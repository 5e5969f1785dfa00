"""What trackwatch, ffprobe and exiftool say about the same files: a Markdown table of the differences, each explained.

    python -m tests.formats > ops/formats.md

Needs ffprobe (apt-get install ffmpeg) and exiftool (apt-get install libimage-exiftool-perl). A difference without an
explanation, or an explanation without a difference, goes to standard error, and the exit code is 1.
"""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.data import expected, variants
from trackwatch.tags import read_tags

Value = str | int | float | bool
Facts = dict[str, Value]

STREAM = ("duration", "bitrate", "sample_rate", "channels")
TAGS = (*variants.FULL, "r128_track_gain", "r128_album_gain")
FIELDS = (*STREAM, *TAGS)
IDS = {name for name in TAGS if name.startswith("musicbrainz_")}
LEVELS = {name for name in TAGS if name.startswith("replaygain_")}
NUMBERS = {"track", "track_total", "disc", "disc_total"}
LISTS = {"artist", "genre", "album_artist", "musicbrainz_artistid"}
# Seconds and parts of one: what is nearer than this is the same, for the others round.
CLOSE_S = 0.006
CLOSE = 0.02


@dataclass(frozen=True, slots=True)
class Difference:
    """One fact of one file that another tool sees otherwise; None is what somebody does not say."""

    file: str
    suffix: str
    tool: str
    fact: str
    ours: Value | None
    theirs: Value | None

    def __str__(self) -> str:
        return f"{self.file}: {self.fact}: ours {self.ours!r}, {self.tool} {self.theirs!r}"


@dataclass(frozen=True, slots=True)
class Rule:
    """An explanation, and the differences that it is for: those of its tool, facts and suffixes for which it holds."""

    why: str
    tool: str
    facts: frozenset[str]
    holds: Callable[[Difference], bool]
    suffixes: frozenset[str] = field(default_factory=lambda: frozenset(expected.FIXTURES))

    def explains(self, difference: Difference) -> bool:
        """Whether this is the reason."""
        return (
            difference.tool == self.tool
            and difference.fact in self.facts
            and difference.suffix in self.suffixes
            and self.holds(difference)
        )


def files() -> dict[str, variants.Variant]:
    """Return the files that are compared, by name."""
    fixtures = {
        f"{suffix}, as the fixture is": variants.Variant(suffix, variants.fixture(suffix), expected.TAGS)
        for suffix in expected.FIXTURES
    }
    with open(expected.ALAC_PATH, "rb") as file:
        alac = variants.Variant("m4a", file.read(), {})
    return {**fixtures, "m4a, ALAC": alac, **variants.variants()}


def ours(variant: variants.Variant) -> Facts:
    """Return what trackwatch says."""
    metadata = read_tags(io.BytesIO(variant.content), variant.suffix, len(variant.content))
    facts = (metadata.duration_s, metadata.bitrate, metadata.sample_rate, metadata.channels)
    known: Facts = {name: value for name, value in zip(STREAM, facts, strict=True) if value is not None}
    return known | dict(metadata.tags or {})


def digest() -> str:
    """Return a mark of all that trackwatch says, by which a test knows a table that has become stale."""
    said = {name: ours(variant) for name, variant in files().items()}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]


# ---- what the others say, in the contract's words

# Names without case, spaces and punctuation.
NAMES = {re.sub("[^a-z0-9]", "", name): name for name in TAGS}
NAMES |= {
    "author": "artist", "albumtitle": "album", "product": "album", "band": "album_artist",
    "recordingtime": "date", "year": "date", "contentcreatedate": "date", "datecreated": "date", "wmyear": "date",
    "musicby": "composer", "isrcnumber": "isrc", "tracknumber": "track", "partofset": "disc", "discnumber": "disc",
    "disknumber": "disc",
    "totaltracks": "track_total", "wmiscompilation": "compilation", "tsrc": "isrc", "wmisrc": "isrc",
    "replaytrackgain": "replaygain_track_gain", "replaytrackpeak": "replaygain_track_peak",
}  # fmt: skip
NAMES |= {f"musicbrainz{words.lower().replace(' ', '')}": name for name, words in variants.WORDS.items()}


def translated(tags: Iterator[tuple[str, Any]]) -> Facts:
    """Return tags by the contract's names and types; the first of several of a name counts."""
    found: Facts = {}
    for native, value in tags:
        name = NAMES.get(re.sub("[^a-z0-9]", "", native.lower()))
        if name is None:
            continue
        text = "; ".join(map(str, value)) if isinstance(value, list) else str(value)
        if name in NUMBERS:
            number, _, total = text.replace(" of ", "/").partition("/")
            if number.strip().isdecimal():
                found.setdefault(name, int(number))
            if total.strip().isdecimal() and name in ("track", "disc"):
                found.setdefault(f"{name}_total", int(total))
        elif name == "compilation" and text.lower() in ("0", "1", "yes", "no", "true", "false"):
            found.setdefault(name, text.lower() in ("1", "yes", "true"))
        elif name in LEVELS and (match := re.match(r"[-+]?[0-9]+([.,][0-9]+)?", text)):
            found.setdefault(name, float(match[0].replace(",", ".")))
        elif name.startswith("r128") and re.fullmatch("-?[0-9]+", text):
            found.setdefault(name, int(text))
        else:
            found.setdefault(name, text)
    return found


def by_ffprobe(path: str) -> Facts:
    """Return what ffprobe says."""
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_format", "-show_streams", path]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    streams: list[dict[str, Any]] = [stream for stream in said["streams"] if stream["codec_type"] == "audio"]
    stream = streams[0] if streams else {}
    facts: Facts = {}
    for name, value, kind in (
        ("duration", said["format"].get("duration"), float),
        ("bitrate", stream.get("bit_rate", said["format"].get("bit_rate")), int),
        ("sample_rate", stream.get("sample_rate"), int),
        ("channels", stream.get("channels"), int),
    ):
        if value is not None:
            facts[name] = kind(value)
    tags = {**stream.get("tags", {}), **said["format"].get("tags", {})}
    return facts | translated(iter(tags.items()))


def by_exiftool(paths: list[str]) -> list[Facts]:
    """Return what exiftool says of each file; its exit code tells only that it does not know one of them."""
    result = subprocess.run(["exiftool", "-j", "-a", "-G4", *paths], capture_output=True, check=False)
    said = {one["SourceFile"]: one for one in json.loads(result.stdout)}
    return [_exiftool_facts(said[path]) for path in paths]


def _exiftool_facts(said: Mapping[str, Any]) -> Facts:
    plain = [(native.rpartition(":")[2], value) for native, value in said.items()]
    first: dict[str, Any] = {}
    for native, value in plain:
        first.setdefault(native, value)
    facts: Facts = {}
    for name, natives in (
        ("duration", ("Duration",)),
        ("bitrate", ("AudioBitrate", "AvgBitrate", "NominalBitrate", "MaxBitrate")),
        ("sample_rate", ("SampleRate", "AudioSampleRate")),
        ("channels", ("NumChannels", "AudioChannels", "Channels", "ChannelMode")),
    ):
        value = next((first[native] for native in natives if native in first), None)
        if value is not None and (number := _exiftool_number(str(value))) is not None:
            facts[name] = number
    return facts | translated(_exiftool_tags(plain))


def _exiftool_number(text: str) -> int | float | None:
    if text in ("Stereo", "Joint Stereo", "Single Channel"):
        return 1 if text == "Single Channel" else 2
    match = re.match(r"([0-9.]+) ?(s|kbps|bps|Mbps)?", text)
    if not match:
        return None
    unit = {"kbps": 1000, "Mbps": 1_000_000}.get(match[2] or "", 1)
    return float(match[1]) if match[2] == "s" else int(float(match[1]) * unit)


def _exiftool_tags(said: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield tags; ID3's free texts come as "(name) text"."""
    for native, value in said:
        match = re.match(r"\((.*?)\) (.*)", str(value)) if native == "UserDefinedText" else None
        yield (match[1], match[2]) if match else (native, value)


# ---- differences

MP4 = frozenset({"m4a", "m4b", "m4p", "m4v", "m4r", "mp4"})
VORBIS = frozenset({"flac", "ogg", "oga", "opus"})
ID3 = frozenset({"mp3", "aac", "wav", "wave"})
EVERY = frozenset(FIELDS)


def named(*parts: str) -> Callable[[Difference], bool]:
    """Return what holds for files with one of these in their name."""
    return lambda difference: any(part in difference.file for part in parts)


def joined_with(joint: str) -> Callable[[Difference], bool]:
    """Return what holds when both have the same values, and only we have "; " between them."""
    return lambda difference: str(difference.ours).replace("; ", joint) == difference.theirs


def is_one_of(difference: Difference) -> bool:
    """Whether the other tool has only one of several values."""
    return str(difference.theirs) in str(difference.ours).split("; ") and str(difference.theirs) != difference.ours


def unsaid(difference: Difference) -> bool:
    """Whether the other tool says nothing."""
    return difference.theirs is None


def only_theirs(difference: Difference) -> bool:
    """Whether only the other tool says anything."""
    return difference.ours is None


def only_a_number(difference: Difference) -> bool:
    return isinstance(difference.theirs, (int, float))


# The first that holds counts, so the particular ones come first.
RULES = (
    # several values
    Rule(
        "FFmpeg joins the values of Vorbis comments with `;`; we with `; `, in every format.",
        "ffprobe", frozenset(LISTS), joined_with(";"), VORBIS,
    ),
    Rule(
        "exiftool joins the values of an ID3v2 frame with `/`, so that they look like the `AC/DC` of one artist.",
        "exiftool", frozenset(LISTS), joined_with("/"), ID3,
    ),
    Rule(
        "exiftool joins the values of APEv2, which NULs separate, with nothing.",
        "exiftool", frozenset(LISTS), joined_with(""), frozenset({"mp3"}),
    ),
    Rule(
        "ID3v2.3 has no lists, and Picard joins ids with `/`. An id has no slash in it, so we take them apart; names we"
        " leave as they are.",
        "ffprobe", frozenset({"musicbrainz_artistid"}), joined_with("/"), frozenset({"mp3"}),
    ),
    Rule(
        "FFmpeg keeps the first value of a frame, an atom or an attribute that has several.",
        "ffprobe", frozenset(LISTS), is_one_of, ID3 | MP4 | {"wma"},
    ),
    Rule(
        "exiftool keeps one value where its list of known names does not say that there may be several.",
        "exiftool", frozenset(LISTS), is_one_of,
    ),
    # values without sense
    Rule(
        "Not a date, a flag, a code, an id or a level: we leave such values out, ffprobe shows the text.",
        "ffprobe", EVERY, lambda difference: only_theirs(difference) and "without sense" in difference.file,
    ),
    Rule(
        "Not a date, a flag, a code, an id or a level: we leave such values out, exiftool shows the text.",
        "exiftool", EVERY, lambda difference: only_theirs(difference) and "without sense" in difference.file,
    ),
    Rule("Disc 0 is none: so MP4 gives a total alone.", "ffprobe", frozenset({"disc"}), only_theirs, MP4),
    Rule("Disc 0 is none: so MP4 gives a total alone.", "exiftool", frozenset({"disc"}), only_theirs, MP4),
    Rule(
        "ISRC in a RIFF INFO list is who supplied the file. FFmpeg shows it under its bare name.",
        "ffprobe", frozenset({"isrc"}), only_theirs, frozenset({"wav"}),
    ),
    # ID3 and APEv2
    Rule(
        "FFmpeg reads ID3v1 and APEv2 only where there is no ID3v2. We fill up what ID3v2 does not say from APEv2 and"
        " then ID3v1: mp3gain writes ReplayGain into APEv2 whatever else there is.",
        "ffprobe", EVERY - set(STREAM), lambda d: unsaid(d) and named("and ID3v1", "mp3gain")(d), frozenset({"mp3"}),
    ),
    Rule(
        "FFmpeg does not look for APEv2 at the end of an MP3.",
        "ffprobe", EVERY - set(STREAM), lambda d: unsaid(d) and named("APEv2")(d), frozenset({"mp3", "aac"}),
    ),
    Rule(
        "FFmpeg reads the size of a frame in an unsynchronised ID3v2.3 tag as if it counted the bytes put in between.",
        "ffprobe", EVERY - set(STREAM), named("unsynchronised"), frozenset({"mp3"}),
    ),
    Rule(
        "exiftool does not know that iTunes once wrote plain sizes into ID3v2.4, and loses what follows.",
        "exiftool", EVERY - set(STREAM), named("iTunes wrote"), frozenset({"mp3"}),
    ),
    Rule(
        "Where Picard keeps the recording's id in ID3 (the frame UFID), ffprobe does not look.",
        "ffprobe", frozenset({"musicbrainz_trackid"}), unsaid, ID3,
    ),
    Rule(
        "Where Picard keeps the recording's id in ID3 (the frame UFID), exiftool does not look.",
        "exiftool", frozenset({"musicbrainz_trackid"}), unsaid, ID3,
    ),
    Rule(
        "ReplayGain in the frame RVA2, as Quod Libet writes it: ffprobe does not show it among the tags.",
        "ffprobe", frozenset(LEVELS), lambda d: unsaid(d) and named("RVA2")(d),
    ),
    Rule(
        "ReplayGain in the frame RVA2, as Quod Libet writes it: exiftool has it under names of volumes, in per cent.",
        "exiftool", frozenset(LEVELS), lambda d: unsaid(d) and named("RVA2")(d),
    ),
    Rule(
        "A genre by numbers with a refinement, `(17)(18)Eurodisco`: exiftool leaves the brackets.",
        "exiftool", frozenset({"genre"}), named("ID3v2.3"), frozenset({"mp3"}),
    ),
    Rule(
        "ID3v2.3 has year, day and time in three frames. We put them together, exiftool shows them one by one.",
        "exiftool", frozenset({"date"}), named("ID3v2.3"), frozenset({"mp3"}),
    ),
    # ways of writing, and what the tools do not know
    Rule(
        "exiftool writes all dates with colons; we leave them as they are in the file.",
        "exiftool", frozenset({"date"}), lambda d: str(d.ours).replace("-", ":") == d.theirs,
    ),
    Rule(
        "UTF-8, as nearly every program writes it, is read as Windows' Latin-1 by exiftool, since RIFF has no rule.",
        "exiftool", frozenset({"title"}), named("RIFF INFO"), frozenset({"wav"}),
    ),
    Rule(
        "What Windows wrote into RIFF in its own code page, ffprobe takes for UTF-8 that is broken.",
        "ffprobe", frozenset({"title"}), named("RIFF INFO of Windows"), frozenset({"wav"}),
    ),
    Rule(
        "Where a WAV has both, we believe ID3 before RIFF INFO, which has no rule for its encoding; FFmpeg does not.",
        "ffprobe", frozenset({"title"}), named("ID3 and RIFF INFO"), frozenset({"wav"}),
    ),
    Rule(
        "exiftool makes question marks of characters beyond U+FFFF in ASF.",
        "exiftool", frozenset({"title"}), lambda d: "???" in str(d.theirs), frozenset({"wma"}),
    ),
    Rule(
        "exiftool knows no such attribute in ASF.",
        "exiftool", frozenset(IDS | LEVELS | {"compilation", "date"}), unsaid, frozenset({"wma"}),
    ),
    Rule("FFmpeg knows no composer in RIFF INFO.", "ffprobe", frozenset({"composer"}), unsaid, frozenset({"wav"})),
    Rule("Of raw AAC exiftool knows only the tags in front of it.", "exiftool", EVERY, unsaid, frozenset({"aac"})),
    # duration
    Rule(
        "FFmpeg counts the samples that a decoder of Opus drops at the start, here 312; RFC 7845 has us take them off.",
        "ffprobe", frozenset({"duration"}), lambda d: True, frozenset({"opus"}),
    ),
    Rule(
        "ASF states how long playing takes and how much of that is filling the buffer: we take the one from the other."
        " FFmpeg divides the size of the packets, here one, and nearly empty, by the bit rate.",
        "ffprobe", frozenset({"duration"}), lambda d: True, frozenset({"wma"}),
    ),
    Rule(
        "ASF states how long playing takes and how much of that is filling the buffer; exiftool shows the former.",
        "exiftool", frozenset({"duration"}), lambda d: True, frozenset({"wma"}),
    ),
    Rule(
        "The Xing header counts frames. FFmpeg does not believe it when more bytes follow than it counts, and so takes"
        " tags at the end for sound.",
        "ffprobe", frozenset({"duration"}), named("ID3v1", "APEv2"), frozenset({"mp3"}),
    ),
    Rule(
        "exiftool estimates, from the size of the file and the bit rate of a frame, tags and pictures included.",
        "exiftool", frozenset({"duration"}), only_a_number, frozenset({"mp3", "wav", "wave", "ogg"}),
    ),
    Rule("exiftool does not look for it.", "exiftool", frozenset({"duration"}), unsaid, frozenset({"oga", "opus"})),
    # bit rate, channels
    Rule(
        "FLAC and Opus state no bit rate. Ours is the size of the sound over the duration, ffprobe's the size of the"
        " file, tags and pictures included.",
        "ffprobe", frozenset({"bitrate"}), lambda d: True, frozenset({"flac", "opus"}),
    ),
    Rule(
        "Ours counts what the frames of AAC hold, ffprobe's also their headers: 7 bytes each.",
        "ffprobe", frozenset({"bitrate"}), lambda d: True, frozenset({"aac"}),
    ),
    Rule(
        "The header of ALAC states a rate, and FFmpeg's encoder writes that of the samples before compression into it."
        " We say what the file says; ffprobe has counted.",
        "ffprobe", frozenset({"bitrate"}), named("ALAC"),
    ),
    Rule(
        "exiftool divides the size of all media data, video as well, by the length of the movie.",
        "exiftool", frozenset({"bitrate"}), only_a_number, MP4,
    ),
    Rule(
        "exiftool shows the bit rate of the first frame, which in these files holds the Xing header and no sound.",
        "exiftool", frozenset({"bitrate"}), only_a_number, frozenset({"mp3"}),
    ),
    Rule(
        "exiftool shows no bit rate where the format states none.",
        "exiftool", frozenset({"bitrate"}), unsaid, frozenset({"flac", "wav", "wave", "oga", "opus"}),
    ),
    Rule(
        "The entry around AAC says 2, as QuickTime wants it; the AAC header inside says 1, and so do ffprobe and we.",
        "exiftool", frozenset({"channels"}), lambda d: d.ours == 1, frozenset({"m4b"}),
    ),
    Rule(
        "Rates from 65,536 Hz do not fit into the entry around ALAC; they are in its own header, where exiftool does"
        " not look.",
        "exiftool", frozenset({"sample_rate"}), named("ALAC"),
    ),
)  # fmt: skip


def same(name: str, mine: Value | None, theirs: Value | None) -> bool:
    """Whether two values are one, apart from rounding."""
    if mine is None or theirs is None:
        return mine is theirs
    if name == "duration":
        return abs(float(mine) - float(theirs)) < CLOSE_S
    if name == "bitrate" or name in LEVELS:
        return abs(float(mine) - float(theirs)) <= CLOSE * abs(float(mine)) or mine == theirs
    return mine == theirs


def compare() -> tuple[list[Difference], int]:
    """Return the differences, and how many facts were compared."""
    differences, compared = [], 0
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        for number, (name, variant) in enumerate(files().items()):
            paths[name] = os.path.join(folder, f"{number:03}.{variant.suffix}")
            with open(paths[name], "wb") as file:
                file.write(variant.content)
        exiftool = dict(zip(paths, by_exiftool(list(paths.values())), strict=True))
        for name, variant in files().items():
            mine = ours(variant)
            for tool, theirs in (("ffprobe", by_ffprobe(paths[name])), ("exiftool", exiftool[name])):
                facts = [fact for fact in FIELDS if fact in mine or fact in theirs]
                compared += len(facts)
                differences += [
                    Difference(name, variant.suffix, tool, fact, mine.get(fact), theirs.get(fact))
                    for fact in facts
                    if not same(fact, mine.get(fact), theirs.get(fact))
                ]
    return differences, compared


# ---- the table


def shown(value: Value | None) -> str:
    """Return a value for a cell."""
    if value is None:
        return "nothing"
    text = str(value).replace("|", "\\|")
    return f"`{text[:47]}...`" if len(text) > 50 else f"`{text}`"


def grouped(names: list[str], most: int = 4) -> str:
    """Return a list of names, cut when it is long."""
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:most]) + (f" and {len(unique) - most} more" if len(unique) > most else "")


def markdown(differences: list[Difference], compared: int) -> str:
    """Return the document."""
    explained: dict[Rule, list[Difference]] = {}
    for difference in differences:
        rule = next((rule for rule in RULES if rule.explains(difference)), None)
        if rule is not None:
            explained.setdefault(rule, []).append(difference)
    equal = compared - len(differences)
    lines = [
        "# What trackwatch, ffprobe and exiftool say about the same files",
        "",
        "Written by `python -m tests.formats > ops/formats.md`; do not edit. It compares duration, bit rate, sample",
        "rate, channels and every tag of the contract, in the fixtures of the 15 formats and in files with every",
        "kind of tags (`tests/data/variants.py`).",
        "",
        f"{len(files())} files, {compared:,} comparisons, {equal:,} equal; the other {len(differences)} are below,",
        "each with its reason. Durations nearer than 6 ms and rates nearer than 2 % count as equal; so do other",
        "ways to write a number or a flag.",
        "",
        f"Read by {version('ffprobe', '-version')} and exiftool {version('exiftool', '-ver')}.",
        "",
        "| facts | tool | files | for instance, ours | theirs | why |",
        "|---|---|---|---|---|---|",
    ]
    rows = (row(rule, explained[rule]) for rule in RULES if rule in explained)
    return "\n".join([*lines, *rows, "", f"<!-- what trackwatch says: {digest()} -->", ""])


def row(rule: Rule, found: list[Difference]) -> str:
    """Return the line of the table for an explanation and what it explains."""
    count = len({difference.file for difference in found})
    suffixes = grouped([difference.suffix for difference in found], 6)
    facts = grouped([difference.fact for difference in found])
    first = found[0]
    return f"| {facts} | {rule.tool} | {count}: {suffixes} | {shown(first.ours)} | {shown(first.theirs)} | {rule.why} |"


def version(*command: str) -> str:
    """Return the first words of what a tool says of its version."""
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return " ".join(said.split()[:3]).replace(" version", "")


def main() -> int:
    """Print the document; say what is unexplained, or explained in vain."""
    for tool, package in (("ffprobe", "ffmpeg"), ("exiftool", "libimage-exiftool-perl")):
        if shutil.which(tool) is None:
            print(f"formats: needs {tool}; install it: apt-get install {package}", file=sys.stderr)
            return 2
    differences, compared = compare()
    explained = [next((rule for rule in RULES if rule.explains(difference)), None) for difference in differences]
    wrong = [f"unexplained: {one}" for one, rule in zip(differences, explained, strict=True) if rule is None]
    wrong += [f"explains nothing: {rule.tool}: {rule.why}" for rule in RULES if rule not in explained]
    for line in wrong:
        print(line, file=sys.stderr)
    print(markdown(differences, compared), end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
