"""Say what is publicly known against the locked packages: `make audit`.

pip-audit alone calls a lock clean also when its source knew not one of the packages. Here only what was really looked
up counts, and what could not be is named. What is shipped decides the exit code; tools are told about.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

DEADLINE_S = 300.0
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Findings:
    """What is known of the packages of one lock."""

    audited: int = 0
    skipped: list[str] = field(default_factory=list)  # the source does not know them
    vulnerable: list[str] = field(default_factory=list)  # one line each


def audit(lock: str) -> Findings | str:
    """Look up the packages of a lock; return why, where that was not possible."""
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--progress-spinner=off"]
    try:
        done = subprocess.run(
            [*command, "--format=json", "-r", lock], capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {DEADLINE_S:g} s"
    try:
        return judged(json.loads(done.stdout))
    except ValueError:
        # It writes its report only when it came to an end.
        return (done.stderr.strip().splitlines() or [f"pip-audit ended with {done.returncode}"])[-1]


def judged(report: dict[str, Any]) -> Findings:
    """Read pip-audit's report."""
    findings = Findings()
    for package in report["dependencies"]:
        if "skip_reason" in package:
            findings.skipped.append(package["name"])
        for known in package.get("vulns", ()):
            remedy = f"fixed in {', '.join(known['fix_versions'])}" if known["fix_versions"] else "not fixed yet"
            findings.vulnerable.append(f"{package['name']} {package['version']}: {known['id']}, {remedy}")
    audited = len(report["dependencies"]) - len(findings.skipped)
    return Findings(audited, findings.skipped, findings.vulnerable)


def told(lock: str, findings: Findings | str) -> str:
    """Put it into words."""
    if isinstance(findings, str):
        return f"{lock}: NOT AUDITED: {findings}"
    if not findings.audited and findings.skipped:
        return f"{lock}: NOT AUDITED: the index in use has no advisories for any of {len(findings.skipped)} packages"
    text = (
        f"{lock}: packages looked up: {findings.audited}; known vulnerabilities: {len(findings.vulnerable) or 'none'}"
    )
    if findings.skipped:
        names = ", ".join(findings.skipped[:NAMES_SHOWN]) + (", ..." if len(findings.skipped) > NAMES_SHOWN else "")
        text += f"; NOT AUDITED: {len(findings.skipped)} ({names})"
    return "\n".join([text, *(f"  {line}" for line in findings.vulnerable)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit locks; return 1 when something is known against what is shipped, 0 also when nobody could be asked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shipped", nargs="+", metavar="LOCK", help="decides the exit code")
    parser.add_argument("--tools", nargs="*", default=[], metavar="LOCK", help="is told about")
    chosen = parser.parse_args(arguments)
    code = 0
    for number, lock in enumerate(locks := [*chosen.shipped, *chosen.tools]):
        findings = audit(lock)
        print(told(lock, findings), flush=True)
        if isinstance(findings, str) or (findings.skipped and not findings.audited):
            if rest := locks[number + 1 :]:
                print(f"NOT AUDITED either, since there is nobody to ask: {', '.join(rest)}")
            break
        if lock in chosen.shipped and findings.vulnerable:
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
