"""What the daemon is doing, as a snapshot that another process can read, and what people are shown of it.

The daemon writes its part (what lives in memory) to `status.json` in the state folder; the rest comes from the
database. So `trackwatch status` needs no running daemon, and never disturbs one.
"""

import json
import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from trackwatch import catalogue, outbox
from trackwatch.errors import ExitCode
from trackwatch.event import displayed, rfc3339
from trackwatch.store import open_beside, running_pid, wall_clock_us

PROBLEMS_SHOWN = 10

# What is not among these needs a person, or patience: `status` exits with 1.
HEALTHY = {"starting", "ok", "connected", "importing", "watching", "stopping"}


def write_snapshot(state_dir: Path, snapshot: Mapping[str, Any]) -> None:
    """Replace the snapshot; a reader sees the old one or the new one. Raises OSError."""
    fresh = state_dir / "status.json.new"
    # Not the locale's encoding, and no name can stop it: what is not text was shown as text before, or is replaced.
    fresh.write_text(json.dumps(snapshot, ensure_ascii=False), encoding="utf-8", errors="replace")
    fresh.replace(state_dir / "status.json")


def collect(state_dir: Path) -> dict[str, Any]:
    """Return everything that is known about a daemon, running or not.

    Raises:
        StoreError: there is no state here, or it cannot be read.
    """
    with open_beside(state_dir) as conn:
        roots, events = catalogue.totals(conn), outbox.totals(conn)
        problems, recent = catalogue.count_problems(conn), catalogue.list_problems(conn, PROBLEMS_SHOWN)
    pid = running_pid(state_dir)
    try:
        snapshot = json.loads((state_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        snapshot = {}  # a daemon that has only just begun, or a copy of the database alone
    if pid is not None and snapshot.get("pid") != pid:
        snapshot = {"state": "starting"}
    live = {root["path"]: root for root in snapshot.get("roots", ())}
    now_us = wall_clock_us()
    return {
        "running": pid is not None,
        "state": snapshot.get("state", "starting") if pid is not None else "not running",
        "pid": pid,
        "version": snapshot.get("version"),
        "instance_id": snapshot.get("instance_id"),
        "started_at": snapshot.get("started_at"),
        "seen_at": snapshot.get("seen_at"),
        "roots": [
            {
                "path": displayed(total.root.path),
                "files": total.files,
                "size_bytes": total.size_bytes,
                "swept_at": None if total.swept_us is None else rfc3339(total.swept_us),
                **{
                    name: value
                    for name, value in live.get(displayed(total.root.path), {"state": "not watched"}).items()
                    if name != "path"
                },
            }
            for total in roots
        ],
        "intake": snapshot.get("intake", {}) if pid is not None else {},
        "outbox": {
            "pending": events.pending,
            "parked": events.parked,
            "published": events.published,
            "kept": events.events,
            "oldest_pending_s": None
            if events.oldest_pending_us is None
            else max(0.0, (now_us - events.oldest_pending_us) / 1e6),
        },
        "broker": snapshot.get("broker", {}),
        "store": snapshot.get("store", {}),
        "problems": {
            "count": problems,
            "recent": [{"path": displayed(path), "reason": reason} for path, reason in recent],
        },
    }


def exit_code(report: Mapping[str, Any]) -> ExitCode:
    """Return what `status` exits with."""
    if not report["running"]:
        return ExitCode.NOT_RUNNING
    words = [report["state"], report["broker"].get("state", "starting")]
    words += [root["state"] for root in report["roots"] if root["state"] != "not watched"]
    healthy = all(word in HEALTHY for word in words) and not report["store"].get("trouble")
    return ExitCode.OK if healthy else ExitCode.DEFECT


def lines(report: Mapping[str, Any], now_us: int) -> Iterator[tuple[str, str, str]]:
    """Yield what people read, as (label, word, rest); a label of "↳" explains the line before."""
    since = _ago(report["started_at"], now_us)
    if report["running"]:
        yield "●", report["state"], f"up {since} · pid {report['pid']} · instance {report['instance_id']}"
    else:
        seen = _ago(report["seen_at"], now_us)
        yield "○", "not running", f"last seen {seen} ago, {report['outbox']['pending']:,} events pending"
    for root in report["roots"]:
        swept = f"swept {_ago(root['swept_at'], now_us)} ago" if root["swept_at"] else "not swept yet"
        yield (
            "roots",
            root["state"] if report["running"] else "-",
            f"{root['path']} · {root['files']:,} files · {size(root['size_bytes'])} · {swept}",
        )
        if root.get("reason"):
            yield "↳", "", root["reason"]
    intake = report["intake"]
    if intake:
        busy = "busy" if intake["dirty"] or intake["in_hand"] else "idle"
        yield "intake", busy, f"{intake['dirty']:,} dirty · {intake['in_hand']:,} in hand"
    if report["store"].get("trouble"):
        yield "state", "unwritable", report["store"]["trouble"]
    events = report["outbox"]
    oldest = f"oldest {duration(events['oldest_pending_s'])} · " if events["oldest_pending_s"] is not None else ""
    yield (
        "outbox",
        f"{events['pending']:,} pending",
        f"{oldest}{events['parked']:,} parked · {events['published']:,} published",
    )
    broker = report["broker"]
    if broker and report["running"]:
        yield "broker", broker["state"], f"{broker['target']} · since {_ago(broker['since'], now_us)}"
        if broker.get("reason"):
            yield "↳", "", broker["reason"]
    problems = report["problems"]
    if problems["count"]:
        yield "problems", f"{problems['count']:,} files", ""
        for problem in problems["recent"]:
            yield "↳", "", f"{problem['path']}: {problem['reason']}"


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


def _ago(at: str | None, now_us: int) -> str:
    if at is None:
        return "unknown"
    return duration(max(0.0, (now_us - _parsed_us(at)) / 1e6))


def _parsed_us(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1e6)


def shown_path(path: bytes) -> str:
    """Return a path for people: the home directory as `~`."""
    text, home = displayed(path), os.path.expanduser("~")
    return "~" + text[len(home) :] if text == home or text.startswith(home + "/") else text
