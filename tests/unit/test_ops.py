"""What operators take over holds together: files that parse and say what they should, names that exist, words that are
explained, links that lead somewhere."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import trackwatch
from tests.dashboard import VARIABLES, dashboard_queries
from tests.unit.test_metrics import facts, told
from trackwatch.errors import ExitCode
from trackwatch.metrics import STATES
from trackwatch.publisher import BrokerWord
from trackwatch.root import RootWord
from trackwatch.settings import explain

OPS = Path(__file__).parents[2] / "ops"
PACKAGE = Path(trackwatch.__file__).parent
DOCUMENTS = sorted(OPS.glob("*.md"))
METRIC = re.compile(r"\b(?:trackwatch|process|python)_\w+")
SEVERITIES = {"critical", "warning", "info"}
# What these files set that is no setting of ours.
OTHERS_VARIABLES = {"LANG"}


def read_yaml(name: str) -> Any:
    return yaml.safe_load((OPS / name).read_text(encoding="utf-8"))


def alerts() -> list[Any]:
    return [rule for group in read_yaml("prometheus/trackwatch.rules.yml")["groups"] for rule in group["rules"]]


def told_names() -> set[str]:
    """Return every name that a scrape can hold."""
    full = replace(facts(), import_files=(1, 2), watch_limits={"watches": 1, "instances": 1})
    return set(told(full))


def dashboard() -> Any:
    return json.loads((OPS / "grafana" / "trackwatch.json").read_text(encoding="utf-8"))


# ---- names


def test_dashboard_and_alerts_use_names_that_are_told() -> None:
    queries = [query.text for query in dashboard_queries(dashboard())] + [alert["expr"] for alert in alerts()]
    assert len(queries) > 60
    used = {name for query in queries for name in METRIC.findall(query)}
    assert used - told_names() == set()


def test_whatever_is_told_is_shown() -> None:
    shown = {name for query in dashboard_queries(dashboard()) for name in METRIC.findall(query.text)}
    ours = {name for name in told_names() if name.startswith("trackwatch_")}
    # Of a histogram the buckets are shown.
    assert ours - shown == {"trackwatch_publish_latency_seconds_count", "trackwatch_publish_latency_seconds_sum"}


def test_every_metric_is_explained() -> None:
    text = (OPS / "metrics.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"`(trackwatch_\w+)", text))
    families = {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in told_names() if name.startswith("trackwatch_")}
    assert explained == families


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """No data source, instance or id of ours is written into it."""
    board = dashboard()
    assert board.get("id") is None
    variables = {variable["name"] for variable in board["templating"]["list"]}
    assert variables == {"datasource", "instance"}
    panels = board["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["description"], panel["title"]
        assert all("$instance" in target["expr"] for target in panel["targets"]), panel["title"]
    used = set(
        re.findall(r"\$\w+", " ".join(target["expr"] for panel in panels for target in panel.get("targets", ())))
    )
    assert used <= VARIABLES.keys()


def test_panels_do_not_cover_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert taken.setdefault((x, y), panel["title"]) is panel["title"]


# ---- alerts


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    anchors = set(headings(OPS / "runbook.md"))
    for alert in alerts():
        assert alert["labels"]["severity"] in SEVERITIES
        assert set(alert["annotations"]) == {"summary", "description", "runbook"}
        file, _, anchor = alert["annotations"]["runbook"].partition("#")
        assert file == "ops/runbook.md"
        assert anchor == alert["alert"].lower()
        assert anchor in anchors


def test_every_alert_is_tested_both_ways() -> None:
    tests = read_yaml("prometheus/trackwatch.rules.test.yml")["tests"]
    checks = [check for test in tests for check in test["alert_rule_test"]]
    names = {alert["alert"] for alert in alerts()}
    assert {check["alertname"] for check in checks if check["exp_alerts"]} == names
    assert {check["alertname"] for check in tests[0]["alert_rule_test"] if not check["exp_alerts"]} == names
    for test in tests[1:]:
        quiet, loud = test["alert_rule_test"]
        assert quiet["alertname"] == loud["alertname"]
        assert not quiet["exp_alerts"]
        assert loud["exp_alerts"]


# ---- the runbook and the other documents


def slug(heading: str) -> str:
    """Return the anchor that GitHub and others make of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def headings(document: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        yield slug(heading)


def words_of_status() -> set[tuple[str, str]]:
    """Return the words that status.py writes itself, with the label before them."""
    tree = ast.parse((PACKAGE / "status.py").read_text("utf-8"))
    found: set[tuple[str, str]] = set()
    for call in ast.walk(tree):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "line"):
            continue
        match call.args:
            case [
                ast.Constant(value=str(label)),
                ast.IfExp(body=ast.Constant(value=a), orelse=ast.Constant(value=b)),
                *_,
            ]:
                found |= {(label, str(a)), (label, str(b))}
            case [ast.Constant(value=str(label)), ast.Constant(value=str(word)), *_] if word:
                found.add((label, word))
    return found


def test_the_words_that_status_writes_itself_are_found() -> None:
    assert {("state", "unwritable"), ("intake", "idle"), ("intake", "busy")} <= words_of_status()


@pytest.mark.parametrize(
    "heading",
    sorted(
        {f"daemon {word}" for word in (*STATES, "stopped", "not running", "silent")}
        | {f"root {word}" for word in (*RootWord, "unknown", "not watched")}
        | {f"broker {word}" for word in BrokerWord}
        | {f"{label} {word}" for label, word in words_of_status()}
        | {f"http {word}" for word in ("starting", "listening", "unavailable")}
        | {f"check {word}" for word in ("ok", "warn", "fail", "skip")}
        | {f"exit code {code.value}" for code in ExitCode}
        | {"outbox pending", "outbox parked", "problems"}
    ),
)
def test_the_runbook_has_an_entry_for_every_word(heading: str) -> None:
    found = list(headings(OPS / "runbook.md"))
    assert found.count(slug(heading)) == 1


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        file, _, anchor = link.partition("#")
        target = document if not file else (document.parent / file)
        assert target.exists(), f"{document.name}: {link}"
        if anchor:
            assert anchor in set(headings(target)), f"{document.name}: {link}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_index_names_every_document(document: Path) -> None:
    if document.name != "README.md":
        assert f"({document.name})" in (OPS / "README.md").read_text(encoding="utf-8")


# ---- the files


def settings_names() -> set[str]:
    return {name for name, _, _ in explain()}


def test_the_compose_file_gives_away_as_little_as_it_can() -> None:
    compose = read_yaml("compose.yaml")
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert "mem_limit" in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
        assert "privileged" not in service, name
    ours = compose["services"]["trackwatch"]
    assert ours["read_only"] is True
    assert "ports" not in ours
    library = next(volume for volume in ours["volumes"] if isinstance(volume, dict))
    assert library["read_only"] is True
    assert library["bind"] == {"propagation": "rslave", "create_host_path": False}
    assert set(ours["environment"]) <= settings_names()
    assert all(set(secret) == {"file"} for secret in compose["secrets"].values())
    assert not [key for key in ours["environment"] if key in ("RABBITMQ_PASS", "RABBITMQ_URL")]


def test_no_password_is_in_the_repository() -> None:
    definitions = json.loads((OPS / "rabbitmq" / "definitions.json").read_text(encoding="utf-8"))
    assert definitions.keys().isdisjoint({"users", "permissions"})
    ignored = subprocess.run(["git", "check-ignore", "-q", OPS / "secrets" / "x"], check=False, cwd=OPS)
    assert ignored.returncode in (0, 128), "ops/secrets is not ignored"  # 128: no checkout


def test_the_queue_keeps_what_a_consumer_cannot_take() -> None:
    """RabbitMQ 4 drops a message of a quorum queue after 20 tries, unless it has somewhere to put it."""
    definitions = json.loads((OPS / "rabbitmq" / "definitions.json").read_text(encoding="utf-8"))
    queues = {queue["name"]: queue["arguments"] for queue in definitions["queues"] if queue["durable"]}
    assert all(arguments["x-queue-type"] == "quorum" for arguments in queues.values())
    assert queues["library"]["x-delivery-limit"] > 20
    assert queues["library"]["x-dead-letter-exchange"] == "", "the default exchange, which needs no binding"
    assert queues["library"]["x-dead-letter-routing-key"] in queues
    (binding,) = definitions["bindings"]
    assert (binding["source"], binding["destination"], binding["routing_key"]) == ("file_events", "library", "file.*")


def kubernetes() -> dict[str, Any]:
    text = (OPS / "kubernetes.yaml").read_text(encoding="utf-8")
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


def test_kubernetes_takes_the_manifest() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kubernetes_validate", "--strict", str(OPS / "kubernetes.yaml")],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_pod_that_may_do_little_and_is_judged_by_its_own_life() -> None:
    documents = kubernetes()
    spec = documents["StatefulSet"]["spec"]
    assert spec["replicas"] == 1
    assert spec["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOncePod"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    paths = {probe: container[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    mounts = {mount["name"]: mount for mount in container["volumeMounts"]}
    assert mounts["music"]["readOnly"] is True
    assert documents["Service"]["spec"]["publishNotReadyAddresses"] is True
    config = documents["ConfigMap"]["data"]
    assert set(config) <= settings_names()
    assert not config["TRACKWATCH_HTTP"].startswith("127.")


def test_the_unit_restarts_what_a_restart_can_mend() -> None:
    unit = (OPS / "trackwatch.service").read_text(encoding="utf-8")
    directives = dict(re.findall(r"^(\w+)=(.*)$", unit, re.MULTILINE))
    assert directives["RestartPreventExitStatus"].split() == [
        str(int(code)) for code in (ExitCode.USAGE, ExitCode.STORE)
    ]
    assert directives["ProtectSystem"] == "strict"
    assert directives["CapabilityBoundingSet"] == ""
    assert directives["OOMPolicy"] == "continue"
    named = {name.partition("=")[0] for name in directives["Environment"].split()}
    assert named - OTHERS_VARIABLES <= settings_names()


def test_sysctl_raises_the_limits_that_the_daemon_tells() -> None:
    text = (OPS / "sysctl.d" / "60-trackwatch.conf").read_text(encoding="utf-8")
    keys = re.findall(r"^(fs\.inotify\.\w+) = \d+$", text, re.MULTILINE)
    assert keys == [f"fs.inotify.{name}" for name in ("max_user_watches", "max_user_instances", "max_queued_events")]
