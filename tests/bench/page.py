"""What a run has found, as JSON and as a page of Markdown. The page is made from the JSON alone: nothing is typed."""

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import trackwatch
from tests.bed.rabbit import RabbitNode
from tests.bench.figures import Part
from tests.bench.measure import shown, table

SCHEMA_VERSION = 1
PACKAGES = (
    "trio", "trio-asyncio", "trio-parallel", "watchfiles", "aio-pika", "aiormq", "pamqp", "mutagen", "xxhash", "pika",
    "watchdog", "aiofiles", "huey", "litequeue", "persist-queue",
)  # fmt: skip
WORST = 10


# --- the machine ---


def machine(folder: Path, node: RabbitNode | None) -> dict[str, str]:
    """Return what the figures depend on, without saying whose machine it is."""
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    found = {
        "processor": _processor(),
        "cores": f"{os.cpu_count()}, {len(os.sched_getaffinity(0))} of them usable",
        "memory": f"{memory_gib:.1f} GiB",
        "kernel": f"{platform.system()} {platform.release()}",
        "file system": file_system(folder),
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "SQLite": sqlite3.sqlite_version,
        "RabbitMQ": _broker(node),
        "inotifywait": _inotifywait(),
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def file_system(folder: Path) -> str:
    """Return the type of the file system that a folder is on."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    around = {os.fsencode(parent) for parent in (folder.resolve(), *folder.resolve().parents)}
    over = [(len(mount[1]), mount[2]) for mount in mounts if mount[1].encode() in around]
    return max(over, default=(0, "unknown"), key=lambda each: each[0])[1]


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _broker(node: RabbitNode | None) -> str:
    said = node and re.search(r"Starting RabbitMQ (\S+) on Erlang (\S+)", node.log())
    return f"{said[1]} on Erlang {said[2]}" if said else "not used"


def _inotifywait() -> str:
    if not shutil.which("inotifywait"):
        return "not installed"
    done = subprocess.run(["inotifywait", "--help"], capture_output=True, text=True, check=False)
    said = re.match(r"inotifywait (\S+)", done.stdout)
    return said[1] if said else "installed"


def commit() -> str:
    """Return the commit of the trackwatch that is measured, and whether it has been changed since."""
    here = Path(trackwatch.__file__).parent
    try:
        _, name, changed = (
            subprocess.run(["git", *words], cwd=here, capture_output=True, text=True, check=True).stdout.strip()
            for words in (
                ["ls-files", "--error-unmatch", "__init__.py"],  # or it only lies inside of somebody's repository
                ["rev-parse", "--short=12", "HEAD"],
                ["status", "--porcelain", "--", ".", "../migrations"],
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{name}, with changes since" if changed else name


# --- JSON ---


def report(
    parts: Sequence[Part],
    found: Mapping[str, str],
    asked: Mapping[str, object],
    seconds: float,
    others_share: float,
    product: str = "",
) -> dict[str, Any]:
    """Return all that there is to say, as JSON can hold it."""
    whole = {
        "schema_version": SCHEMA_VERSION,
        "version": trackwatch.__version__,
        "commit": product or commit(),
        "ended_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "others_share": others_share,
        "asked": dict(asked),
        "machine": dict(found),
        "parts": [
            {**_fields(part), "figures": [{**_fields(each), "verdict": each.verdict} for each in part.figures]}
            for part in parts
        ],
    }
    plain: dict[str, Any] = json.loads(json.dumps(_finite(whole), default=str))
    return plain


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _finite(value: Any) -> Any:
    """Return a value without what JSON has no word for: not a number and infinite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _finite(_fields(value))
    if isinstance(value, Mapping):
        return {str(key): _finite(each) for key, each in value.items()}
    if hasattr(value, "_asdict"):
        return _finite(value._asdict())
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


# --- the page ---


def page(found: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """Return the page for what a run has found, beside what an earlier one had found."""
    earlier = {_key(part, each): each for part in (before or {}).get("parts", ()) for each in part["figures"]}
    sections = [_head(found, before), _answers(found, earlier, before is not None), _summary(found)]
    for part in found["parts"]:
        sections.append(f"## {part['name']}\n\n{part['method'].strip()}")
        if part["figures"]:
            rows = [_row(part, each, earlier, before is not None) for each in part["figures"]]
            sections.append(table(rows))
            if any(each["ratio"]["median"] is None and not each["missing"] for each in part["figures"]):
                sections.append("`no bound`: the other one took nothing at all.")
        for title, rows in part["tables"].items():
            if rows:
                sections.append(f"**{title}**\n\n{table([_without_null(row) for row in rows])}")
        if part["remarks"]:
            sections.append("\n".join(f"- {remark}" for remark in part["remarks"]))
        if part["left_out"]:
            sections.append("Left out: " + "; ".join(part["left_out"]) + ".")
        sections.append(f"{part['seconds']:.0f} s; others took {100 * part['others_share']:.0f} % of the machine.")
    sections.append("## The machine\n\n" + table([{"": name, " ": value} for name, value in found["machine"].items()]))
    return "\n\n".join(section for section in sections if section) + "\n"


def _head(found: Mapping[str, Any], before: Mapping[str, Any] | None) -> str:
    asked = " ".join(f"{name}={value}" for name, value in found["asked"].items() if value)
    said = f"""# Benchmarks

    make bench {asked}

has made this page from what it has measured; nothing in it was typed. trackwatch {found["version"]}
(commit {found["commit"]}), {found["ended_at"]}, {found["seconds"] / 60:.1f} minutes; others took
{100 * found["others_share"]:.0f} % of the machine meanwhile.

Each figure is a ratio of two things that were measured in turn (A B A B ...) in the same run: `ratio` is ours by
theirs, the median of the ratios of the turns, and `spread` the smallest and the largest of these. `asked` is what the
ratio has to be, at least or at most, and what it should be (goal); `met` says which of the two the median meets. Where
nothing is asked, `better` says whether more or less is. Absolute figures belong to this machine and this hour."""
    if before is not None:
        said += (
            f"\n`before` is the ratio that the same parts have given for trackwatch {before['version']} "
            f"(commit {before['commit']}), in a run of {before['ended_at']}, {_same(found, before)}."
        )
    return said


def _same(found: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    different = [name for name, value in found["machine"].items() if before["machine"].get(name) != value]
    return f"with other {', '.join(different)}" if different else "on the same machine with the same versions"


def _answers(found: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], compare: bool) -> str:
    """Return the table of the figures that answer the questions best, one or few for each."""
    rows: list[dict[str, object]] = []
    for part in found["parts"]:
        for each in part["figures"]:
            if each.get("question"):
                row = _row(part, each, earlier, compare)
                rows.append({"question": each["question"], **row})
    said = [answer for part in found["parts"] for answer in part.get("answers", ())]
    sections = ["**In short**"] if rows or said else []
    asked_once: set[object] = set()
    for row in rows:
        if row["question"] in asked_once:
            row["question"] = ""
        asked_once.add(row["question"])
    if rows:
        sections.append(table(rows))
    if said:
        sections.append("\n".join(f"- {answer}" for answer in said))
    return "\n\n".join(sections)


def _summary(found: Mapping[str, Any]) -> str:
    asked = [(part, each) for part in found["parts"] for each in part["figures"] if each["verdict"]]
    counts = {word: sum(each["verdict"] == word for _, each in asked) for word in ("goal", "limit", "missed")}
    missing = sum(each["verdict"] == "not measured" for _, each in asked)
    said = (
        f"Of {sum(counts.values())} figures of which something is asked, {counts['goal']} meet the goal, "
        f"{counts['limit']} meet the limit, and {counts['missed']} meet neither; {missing} could not be measured."
    )
    worst = sorted(
        (
            ranked
            for part, each in asked
            if each["verdict"] in ("limit", "missed") and (ranked := (shortfall(each), part["name"], each))[0] > 1
        ),
        key=lambda ranked: -ranked[0],
    )
    if not worst:
        return said
    rows = [
        {"part": name, "figure": each["what"], "beside": each["beside"], "ratio": _number(each["ratio"]["median"]),
         "wanted": each["goal"] if each["goal"] is not None else each["limit"], "times short": far}
        for far, name, each in worst[:WORST]
    ]  # fmt: skip
    return f"{said}\n\n**Farthest from what is wanted**\n\n{table(rows)}"


def shortfall(figure: Mapping[str, Any]) -> float:
    """Return by what factor a figure falls short of its goal, or of its limit where it has no goal; 1 is just met."""
    wanted = figure["goal"] if figure["goal"] is not None else figure["limit"]
    ratio = figure["ratio"]["median"]
    if wanted is None:
        return 1.0
    if ratio is None:  # something beside nothing
        return math.inf
    above, below = (wanted, ratio) if figure["better"] == "more" else (ratio, wanted)
    return math.inf if not below else float(above / below)


def _row(
    part: Mapping[str, Any], each: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]], compare: bool
) -> dict[str, object]:
    if each["missing"]:
        row: dict[str, object] = {"figure": each["what"], "ours": f"not measured: {each['missing']}"}
        return {**dict.fromkeys(_columns(compare), ""), **row}
    ratio = each["ratio"]
    row = {
        "figure": each["what"],
        "ours": _with_unit(each["ours"]["median"], each["unit"]),
        "beside": each["beside"],
        "theirs": _with_unit(each["theirs"]["median"], each["unit"]),
        "ratio": _number(ratio["median"]),
        "spread": _spread(ratio),
        "turns": ratio["count"],
        "asked": _asked(each),
        "met": each["verdict"],
    }
    if compare:
        known = earlier.get(_key(part, each))
        row["before"] = _number(known["ratio"]["median"]) if known and not known["missing"] else ""
    return row


def _columns(compare: bool) -> list[str]:
    columns = ["figure", "ours", "beside", "theirs", "ratio", "spread", "turns", "asked", "met"]
    return [*columns, *(["before"] if compare else [])]


def _with_unit(value: float | None, unit: str) -> str:
    return f"{shown(_number(value))}{'' if unit == '%' else ' '}{unit}"


def _spread(ratio: Mapping[str, Any]) -> str:
    smallest, largest = (shown(_number(ratio[name])) for name in ("smallest", "largest"))
    return smallest if smallest == largest else f"{smallest} to {largest}"


def _asked(figure: Mapping[str, Any]) -> str:
    """Return what is asked of a ratio, in words."""
    sign = "at least" if figure["better"] == "more" else "at most"
    limit, goal = figure["limit"], figure["goal"]
    if limit is None and goal is None:
        return f"better: {figure['better']}"
    if limit is None or limit == goal:
        return f"{sign} {goal:g}"
    return f"{sign} {limit:g}" + ("" if goal is None else f", goal {goal:g}")


def _key(part: Mapping[str, Any], figure: Mapping[str, Any]) -> str:
    """Return what names a figure in every run; how many files there was time for is no part of it."""
    what = re.sub(r"[\d,]+ x ", "", figure["what"])
    return f"{part['name']}: {what} beside {figure['beside']}"


def _number(value: float | None) -> object:
    return "no bound" if value is None else value


def _without_null(row: Mapping[str, Any]) -> dict[str, object]:
    return {name: _number(value) if value is None else value for name, value in row.items()}


def summary(found: Mapping[str, Any]) -> str:
    """Return for a terminal what is worst, in a few lines."""
    lines = []
    for part in found["parts"]:
        for each in part["figures"]:
            if each["missing"]:
                lines.append(f"{part['name']}: {each['what']}: not measured: {each['missing']}")
            else:
                ratio, verdict = _number(each["ratio"]["median"]), each["verdict"] and f" ({each['verdict']})"
                said = f"{shown(ratio)} of" if each["ratio"]["median"] is not None else "no bound, beside"
                lines.append(f"{part['name']}: {each['what']}: {said} {each['beside']}{verdict}")
    return "\n".join(lines)
