"""`make audit` says what it has looked up, and never calls clean what nobody could be asked about."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "ops" / "audit.py"
KNOWN = {"id": "PYSEC-2026-1", "fix_versions": ["2.1"], "aliases": [], "description": ""}
CLEAN: dict[str, Any] = {"name": "clean", "version": "1.0", "vulns": []}
BAD: dict[str, Any] = {"name": "bad", "version": "2.0", "vulns": [KNOWN]}
SKIPPED: dict[str, Any] = {"name": "unheard-of", "skip_reason": "not found"}


@pytest.fixture
def script() -> ModuleType:
    """The script, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("audit", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "said"),
    [
        ([CLEAN], "a.lock: packages looked up: 1; known vulnerabilities: none"),
        (
            [CLEAN, BAD],
            "a.lock: packages looked up: 2; known vulnerabilities: 1\n  bad 2.0: PYSEC-2026-1, fixed in 2.1",
        ),
        ([CLEAN, SKIPPED], "a.lock: packages looked up: 1; known vulnerabilities: none; NOT AUDITED: 1 (unheard-of)"),
        ([SKIPPED], "a.lock: NOT AUDITED: the index in use has no advisories for any of 1 packages"),
    ],
)
def test_what_was_looked_up_is_told(script: ModuleType, packages: list[Any], said: str) -> None:
    assert script.told("a.lock", script.judged({"dependencies": packages, "fixes": []})) == said


@pytest.mark.parametrize(
    ("shipped", "tools", "code"), [([BAD], [CLEAN], 1), ([CLEAN], [BAD], 0), ([SKIPPED], [BAD], 0), ([CLEAN], [], 0)]
)
def test_only_what_is_shipped_decides(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, shipped: list[Any], tools: list[Any], code: int
) -> None:
    """pip-audit itself is not asked here: no machine of ours has its data."""
    known = {"ours.lock": shipped, "tools.lock": tools}
    monkeypatch.setattr(script, "audit", lambda lock: script.judged({"dependencies": known[lock]}))
    assert script.main(["ours.lock", "--tools", "tools.lock"]) == code


def test_a_source_that_cannot_be_reached_is_no_finding_and_ends_the_asking(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def audit(lock: str) -> str:
        asked.append(lock)
        return "no answer"

    monkeypatch.setattr(script, "audit", audit)
    assert script.main(["ours.lock", "--tools", "tools.lock"]) == 0
    assert asked == ["ours.lock"]
    assert capsys.readouterr().out == (
        "ours.lock: NOT AUDITED: no answer\nNOT AUDITED either, since there is nobody to ask: tools.lock\n"
    )
