"""What the daemon is doing, as a snapshot that another process can read, and what people are shown of it.

The daemon writes its part (what lives in memory) to `status.json` in the state folder; the rest comes from the
database. So `trackwatch status` needs no running daemon, and never disturbs one. What `collect` returns is public: its
form is in `ops/contract/status.schema.json`, and what was once in it stays.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trackwatch import catalogue, outbox
from trackwatch.clock import wall_clock_us
from trackwatch.database import open_beside, running_pid
from trackwatch.errors import ExitCode
from trackwatch.event import displayed, rfc3339
from trackwatch.words import Line, line

SCHEMA_VERSION = 1
PROBLEMS_SHOWN = 10
# Of a snapshot's file, at least so much is blanks.
SPARE_BYTES = 4096
# A daemon writes its snapshot each ten seconds even without news: one that has not done so for this long hangs.
SILENT_S = 30.0

# What is not among these needs a person, or patience: `status` exits with 1.
HEALTHY = {"starting", "ok", "connected", "listening", "importing", "watching", "stopping"}

_ROOT: Mapping[str, Any] = {
    "state": "unknown", "reason": "", "since": None, "fstype": None, "is_remote": None, "directories": None,
    "sweeping": None, "sweep_seconds": None, "unwatched_directories": None, "unlistable_directories": None,
}  # fmt: skip
_INTAKE: Mapping[str, Any] = {
    "dirty": 0, "in_hand": 0, "probing": 0, "vanished": 0, "watched_directories": 0, "watch_instances": 0,
    "described": 0, "described_bytes": 0, "files_per_s": 0.0, "bytes_per_s": 0.0, "import": None, "events": {},
}  # fmt: skip
_BROKER: Mapping[str, Any] = {
    "state": "starting", "reason": "", "since": None, "target": "", "published": 0, "published_per_s": 0.0,
}  # fmt: skip
_STORE: Mapping[str, Any] = {"trouble": "", "commits": 0}
_HTTP: Mapping[str, Any] = {"state": "starting", "reason": "", "address": ""}


def lock_mark(state_dir: Path) -> int | None:
    """Return what tells one holder of the state from the one before, also where all have the same process id."""
    try:
        return (state_dir / "lock").stat().st_mtime_ns
    except OSError:
        return None


def write_snapshot(state_dir: Path, snapshot: Mapping[str, Any]) -> None:
    """Replace the snapshot; a reader sees the old one or the new one. Raises OSError.

    On a full disk, which is just what has to be told, it is written over the old one, in the room that was kept there.
    """
    fresh, current = state_dir / "status.json.new", state_dir / "status.json"
    # Not the locale's encoding, and no name can stop it: what is not text was shown as text before, or is replaced.
    text = json.dumps(snapshot, ensure_ascii=False).encode(errors="replace")
    try:
        fresh.write_bytes(text.ljust((len(text) // SPARE_BYTES + 2) * SPARE_BYTES))
        fresh.replace(current)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not current.exists():
            raise
        with current.open("r+b") as file:
            room = file.seek(0, os.SEEK_END)
            if len(text) > room:
                raise
            file.seek(0)
            file.write(text.ljust(room))


def _read_snapshot(state_dir: Path, pid: int | None) -> dict[str, Any]:
    """Return the snapshot, or an empty one: a daemon that has only just begun, or a copy of the database alone."""
    try:
        snapshot = json.loads((state_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(snapshot, dict):
        return {}
    mark = lock_mark(state_dir)
    if pid and (snapshot.get("pid") != pid or (mark is not None and snapshot.get("lock_mark", mark) != mark)):
        return {}  # an earlier process's; in a container all have the same id
    return snapshot


def _filled(defaults: Mapping[str, Any], known: object) -> dict[str, Any]:
    known = known if isinstance(known, Mapping) else {}
    return {name: known.get(name, default) for name, default in defaults.items()}


def collect(state_dir: Path, *, problems_max: int = PROBLEMS_SHOWN) -> dict[str, Any]:
    """Return everything that is known about a daemon, running or not.

    Raises:
        StoreError: there is no state here, or it cannot be read.
    """
    with open_beside(state_dir) as conn:
        roots, events = catalogue.totals(conn), outbox.totals(conn)
        parked = outbox.last_parked(conn)
        problems, recent = catalogue.count_problems(conn), catalogue.list_problems(conn, problems_max)
    pid = running_pid(state_dir)
    snapshot = _read_snapshot(state_dir, pid)
    now_us = wall_clock_us()
    seen_at = snapshot.get("seen_at")
    state = str(snapshot.get("state", "starting"))
    if pid is None:
        state = "stopped" if state == "stopped" else "not running"
    elif seen_at is not None and now_us - _parsed_us(seen_at) > SILENT_S * 1e6:
        state = "silent"
    is_live = pid is not None
    live = {root["path"]: root for root in snapshot.get("roots", ())} if is_live else {}
    strange = "unknown" if not is_live else "not watched" if snapshot else "starting"
    report = {
        "schema_version": SCHEMA_VERSION,
        "healthy": False,
        "exit_code": ExitCode.OK.value,
        "running": is_live,
        "state": state,
        "pid": pid or (snapshot.get("pid") if is_live else None),
        "version": snapshot.get("version"),
        "instance_id": snapshot.get("instance_id"),
        "started_at": snapshot.get("started_at"),
        "seen_at": seen_at,
        "roots": [
            {
                "path": displayed(total.root.path),
                "files": total.files,
                "size_bytes": total.size_bytes,
                "swept_at": _text(total.swept_us),
                **_filled({**_ROOT, "state": strange}, live.get(displayed(total.root.path))),
            }
            for total in roots
        ],
        "intake": _filled(_INTAKE, snapshot.get("intake")) if is_live and snapshot else None,
        "outbox": {
            "pending": events.pending,
            "replaying": events.replaying,
            "parked": events.parked,
            "parked_reason": parked,
            "published": events.published,
            "kept": events.events,
            "kept_since": _text(events.oldest_us),
            "retention_days": snapshot.get("retention_days"),
            "last_event_at": _text(events.newest_us),
            "oldest_pending_at": _text(events.oldest_pending_us),
            "oldest_pending_s": None
            if events.oldest_pending_us is None
            else max(0.0, (now_us - events.oldest_pending_us) / 1e6),
        },
        "broker": _filled(_BROKER, snapshot.get("broker")) if is_live and snapshot else None,
        "store": _filled(_STORE, snapshot.get("store")) if is_live and snapshot else None,
        "http": _filled(_HTTP, snapshot.get("http")) if is_live and snapshot.get("http") else None,
        "problems": {
            "count": problems,
            "recent": [{"path": displayed(path), "reason": reason} for path, reason in recent],
        },
    }
    code = exit_code(report)
    return {**report, "healthy": code is ExitCode.OK, "exit_code": code.value}


def broker_word(state_dir: Path) -> str:
    """Return how the running daemon stands with the broker, by its snapshot alone."""
    return str(_filled(_BROKER, _read_snapshot(state_dir, running_pid(state_dir)).get("broker"))["state"])


def watched_roots(state_dir: Path) -> set[str] | None:
    """Return the roots of the running daemon as they are displayed, by its snapshot alone; None if it has none."""
    snapshot = _read_snapshot(state_dir, pid) if (pid := running_pid(state_dir)) else {}
    return {str(root["path"]) for root in snapshot["roots"]} if "roots" in snapshot else None


def exit_code(report: Mapping[str, Any]) -> ExitCode:
    """Return what `status` exits with."""
    # One that hangs does as little as a dead one: what restarts daemons by this code must see it.
    if not report["running"] or report["state"] == "silent":
        return ExitCode.NOT_RUNNING
    words = [report["state"]] + [root["state"] for root in report["roots"] if root["state"] != "not watched"]
    if report["broker"] is not None:
        words.append(report["broker"]["state"])
    if report["http"] is not None:
        words.append(report["http"]["state"])
    troubled = report["store"] is not None and report["store"]["trouble"]
    return ExitCode.OK if HEALTHY.issuperset(words) and not troubled else ExitCode.DEFECT


def not_ready(snapshot: Mapping[str, Any]) -> list[str]:
    """Return why a daemon does not do its whole work just now, by what it says of itself; nothing when it does.

    A first import is work. Waiting for the broker is none, though nothing is lost by it.
    """
    reasons = []
    if snapshot["state"] not in ("importing", "watching"):
        reasons.append(str(snapshot["state"]))
    broker = snapshot["broker"]
    if broker["state"] != "connected":
        reasons.append(_reason("broker", broker["state"], broker["reason"]))
    reasons += [
        _reason(f"root {root['path']!r}", root["state"], root["reason"])
        for root in snapshot["roots"]
        if root["state"] not in HEALTHY
    ]
    if trouble := snapshot["store"]["trouble"]:
        reasons.append(_reason("state", "unwritable", trouble))
    return reasons


def _reason(subject: str, word: str, reason: str) -> str:
    return f"{subject} {word}: {reason}" if reason else f"{subject} {word}"


# ---- for people


def lines(report: Mapping[str, Any], now_us: int) -> Iterator[Line]:
    """Yield what people read of a report; a label of "↳" explains the line before."""
    yield from _head_lines(report, now_us)
    for root in report["roots"]:
        yield from _root_lines(root, now_us)
    if report["intake"]:
        yield _intake_line(report, now_us)
    if report["store"] and report["store"]["trouble"]:
        yield line("state", "unwritable", report["store"]["trouble"])
    yield from _outbox_lines(report)
    if broker := report["broker"]:
        yield line("broker", broker["state"], broker["target"], _for(broker["since"], now_us))
        if broker["reason"]:
            yield line("↳", "", broker["reason"])
    if http := report["http"]:
        yield line("http", http["state"], http["address"])
        if http["reason"]:
            yield line("↳", "", http["reason"])
    problems = report["problems"]
    if problems["count"]:
        yield line("problems", _counted(problems["count"], "file"))
        for problem in problems["recent"]:
            yield line("↳", "", f"{problem['path']}: {problem['reason']}")
        if more := problems["count"] - len(problems["recent"]):
            yield line("↳", "", f"and {more:,} more (--problems {problems['count']} shows all)")


def _head_lines(report: Mapping[str, Any], now_us: int) -> Iterator[Line]:
    state, pending = report["state"], report["outbox"]["pending"]
    seen = "never seen" if report["seen_at"] is None else f"last seen {_ago(report['seen_at'], now_us)} ago"
    waiting = f"{_counted(pending, 'event')} pending"
    if report["running"]:
        up = "" if report["started_at"] is None else f"up {_ago(report['started_at'], now_us)}"
        instance = "" if report["instance_id"] is None else f"instance {report['instance_id']}"
        yield line("●", state, up, f"pid {report['pid']}", instance, seen if state == "silent" else "")
        if state == "silent":
            yield line("↳", "", "it is paused, hangs, or cannot write its state folder: look at its log, or restart it")
    elif state == "stopped":
        stopped = "" if report["seen_at"] is None else f"{_ago(report['seen_at'], now_us)} ago"
        yield line("○", state, stopped, waiting if pending else "every event is published")
    else:
        yield line("○", state, seen, waiting)
    if not report["running"]:
        wait = "; those pending are sent then" if pending else ""
        yield line("↳", "", f"trackwatch run starts it again, and finds what has changed meanwhile{wait}")


def _root_lines(root: Mapping[str, Any], now_us: int) -> Iterator[Line]:
    word, files = root["state"], _counted(root["files"], "file")
    is_well = word in HEALTHY or word in ("unknown", "not watched")
    yield line(
        "roots",
        "-" if word == "unknown" else word,
        root["path"],
        "" if is_well else _for(root["since"], now_us),
        files if is_well else f"{files} kept",
        size(root["size_bytes"]),
        "being swept" if root["sweeping"] else _swept(root["swept_at"], now_us),
    )
    if root["reason"]:
        yield line("↳", "", root["reason"])
    unwatched = root["unwatched_directories"]
    if unwatched:
        many = "1 directory is" if unwatched == 1 else f"{unwatched:,} directories are"
        yield line("↳", "", f"{many} not watched, only swept: the limit is reached (fs.inotify.max_user_watches)")
    if unlistable := root["unlistable_directories"]:
        many = "1 directory" if unlistable == 1 else f"{unlistable:,} directories"
        yield line("↳", "", f"{many} cannot be listed: make them readable for the daemon's user")


def _swept(at: str | None, now_us: int) -> str:
    return "not swept yet" if at is None else f"swept {_ago(at, now_us)} ago"


def _intake_line(report: Mapping[str, Any], now_us: int) -> Line:
    intake, last_at = report["intake"], report["outbox"]["last_event_at"]
    is_busy = intake["dirty"] or intake["in_hand"]
    facts = [f"{intake['dirty']:,} dirty", f"{intake['in_hand']:,} in hand"]
    if is_busy and intake["files_per_s"]:
        facts += [f"{_rate(intake['files_per_s'])} files/s", f"{size(intake['bytes_per_s'])}/s"]
    if progress := intake["import"]:
        facts.append(f"{progress['files']:,}/{progress['files_total']:,} files")
        facts.append(f"{size(progress['size_bytes'])}/{size(progress['total_bytes'])}")
        if progress["left_s"] is not None:
            facts.append(f"{duration(progress['left_s'])} left")
    if last_at is not None:
        facts.append(f"last change {_ago(last_at, now_us)} ago")
    return line("intake", "busy" if is_busy else "idle", *facts)


def _outbox_lines(report: Mapping[str, Any]) -> Iterator[Line]:
    events, broker = report["outbox"], report["broker"]
    days, per_s = events["retention_days"], broker["published_per_s"] if broker else 0
    yield line(
        "outbox",
        f"{events['pending']:,} pending",
        "" if events["oldest_pending_s"] is None else f"oldest {duration(events['oldest_pending_s'])}",
        f"{events['replaying']:,} of them sent again" if events["replaying"] else "",
        f"{events['parked']:,} parked",
        f"{events['published']:,} published" + ("" if days is None else f", kept {days:g} d"),
        f"{_rate(per_s)}/s" if per_s else "",
    )
    if events["parked"]:
        reason = events["parked_reason"]
        yield line("↳", "", f"parked: {reason}; trackwatch replay --parked sends them again")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.1f}"


def duration(seconds: float) -> str:
    """Return a length of time in words: 41 s, 4 min, 3 h, 3 d 4 h."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    if hours < 48:
        return f"{hours:.0f} h"
    return f"{int(days)} d {int(hours % 24)} h"


def size(count: float) -> str:
    """Return a number of bytes in words, in powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.95:  # beyond, one decimal would show 1000.0
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _for(at: str | None, now_us: int) -> str:
    return "" if at is None else f"for {_ago(at, now_us)}"


def _ago(at: str, now_us: int) -> str:
    return duration(max(0.0, (now_us - _parsed_us(at)) / 1e6))


def _text(at_us: int | None) -> str | None:
    return None if at_us is None else rfc3339(at_us)


def _parsed_us(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1e6)


def shown_path(path: bytes) -> str:
    """Return a path for people: the home directory as `~`."""
    text, home = displayed(path), os.path.expanduser("~")
    return "~" + text[len(home) :] if text == home or text.startswith(home + "/") else text
