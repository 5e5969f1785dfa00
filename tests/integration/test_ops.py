"""What operators take over works: the broker's definitions and permissions on a real node, the rules in promtool, the
unit in systemd-analyze."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker

from tests.bed.daemon import SCRIPT, Daemon
from tests.bed.rabbit import RabbitNode

OPS = Path(__file__).parents[2] / "ops"
EXPOSURE_MAX = 1.5


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of `ops/` in which the passwords were made."""
    copy = tmp_path_factory.mktemp("deployed") / "ops"
    shutil.copytree(OPS, copy, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run(["sh", copy / "compose-secrets.sh"], check=True, capture_output=True)
    return copy


@pytest.fixture
def broker(deployed: Path, tmp_path: Path, own_rabbit: Callable[..., RabbitNode]) -> RabbitNode:
    """A node that was started as the compose file starts one: with its configuration and definitions."""
    folder = tmp_path / "definitions.d"
    folder.mkdir()
    shutil.copy(deployed / "rabbitmq" / "definitions.json", folder / "10-topology.json")
    shutil.copy(deployed / "secrets" / "rabbitmq_users.json", folder / "20-users.json")
    config = (deployed / "rabbitmq" / "rabbitmq.conf").read_text(encoding="utf-8")
    config = config.replace("/etc/rabbitmq/definitions.d", str(folder)).replace("= 2GB", "= 50MB")
    return own_rabbit(config)


def password(deployed: Path, name: str) -> str:
    return (deployed / "secrets" / f"{name}_pass").read_text(encoding="utf-8")


def test_the_brokers_definitions_take_a_daemons_events_to_the_queue(
    deployed: Path, broker: RabbitNode, library: Callable[..., Path], daemon: Callable[..., Daemon]
) -> None:
    """With the least permissions, a password from a file, and nothing declared by hand."""
    music = library(12)
    env = {
        "RABBITMQ_HOST": "127.0.0.1",
        "RABBITMQ_PORT": str(broker.port),
        "RABBITMQ_USER": "trackwatch",
        "RABBITMQ_PASS_FILE": str(deployed / "secrets" / "rabbitmq_pass"),
    }
    running = daemon(music, env=env)
    running.start()
    running.wait_until(lambda: running.status()[1]["outbox"]["pending"] == 0, what="everything to be published")
    listed = broker.rabbitmqctl("list_queues", "--no-table-headers", "name", "type").split()
    assert dict(zip(listed[::2], listed[1::2], strict=True)) == {"library": "quorum", "library.dead": "quorum"}
    assert running.status()[0] == 0
    consumer: list[str | Path] = [
        sys.executable,
        OPS / "consumer" / "library_consumer.py",
        "--db",
        music.parent / "library.db",
    ]
    url = broker.url(user="consumer", password=password(deployed, "consumer"))
    took = subprocess.run([*consumer, "run", "--once", "--url", url], check=False, capture_output=True, text=True)
    assert took.returncode == 0, took.stderr
    verified = subprocess.run([*consumer, "verify", music], check=False, capture_output=True, text=True)
    assert verified.returncode == 0, verified.stdout


@pytest.mark.parametrize("user", ["trackwatch", "consumer"])
def test_the_users_of_the_compose_file_may_do_no_more_than_they_need(
    user: str, deployed: Path, broker: RabbitNode
) -> None:
    name = {"trackwatch": "rabbitmq", "consumer": "consumer"}[user]
    parameters = pika.URLParameters(broker.url(user=user, password=password(deployed, name)))
    forbidden: list[Callable[[Any], object]] = [
        lambda channel: channel.queue_declare("another", durable=True),
        lambda channel: channel.queue_purge("library.dead"),
        lambda channel: channel.exchange_declare("another", "topic", durable=True),
        lambda channel: channel.queue_bind("library", "amq.topic", "file.*"),
        lambda channel: channel.queue_bind("library.dead", "file_events", "file.*"),
    ]
    if user == "trackwatch":
        forbidden.append(lambda channel: channel.basic_get("library"))
        forbidden.append(lambda channel: channel.queue_delete("library"))
    with pika.BlockingConnection(parameters) as connection:
        for deed in forbidden:
            channel = connection.channel()
            with pytest.raises(ChannelClosedByBroker) as refused:
                deed(channel)
            assert refused.value.reply_code == 403, refused.value


def test_passwords_are_made_once_and_belong_to_nobody_else(deployed: Path) -> None:
    secrets = deployed / "secrets"
    assert secrets.stat().st_mode & 0o777 == 0o700
    before = {file.name: file.read_bytes() for file in secrets.iterdir()}
    again = subprocess.run(["sh", deployed / "compose-secrets.sh"], check=True, capture_output=True, text=True)
    assert {file.name: file.read_bytes() for file in secrets.iterdir()} == before
    assert again.stdout == ""
    (secrets / "grafana_pass").unlink()
    (secrets / "consumer_pass").unlink()
    subprocess.run(["sh", deployed / "compose-secrets.sh"], check=True, capture_output=True)
    after = {file.name: file.read_bytes() for file in secrets.iterdir()}
    assert after["rabbitmq_pass"] == before["rabbitmq_pass"]
    assert after["rabbitmq_users.json"] != before["rabbitmq_users.json"], "a new password has a new hash"
    assert set(before) == set(after) == {"rabbitmq_pass", "consumer_pass", "grafana_pass", "rabbitmq_users.json"}
    assert len({before[name] for name in before}) == 4


# ---- what the vendors' own tools say


def promtool(*arguments: str | Path) -> str:
    """Run it; a machine without it fails the test: a skipped one would look like a pass."""
    program = shutil.which("promtool")
    if program is None:
        pytest.fail("no promtool found: apt-get install prometheus", pytrace=False)
    done = subprocess.run([program, *arguments], check=False, capture_output=True, text=True, cwd=OPS / "prometheus")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    said = promtool("check", "config", "prometheus.yml")
    assert "rules found" in said


def test_each_alert_fires_for_its_reason_and_not_without() -> None:
    assert "SUCCESS" in promtool("test", "rules", "trackwatch.rules.test.yml")


systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")


def analyzed(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run systemd-analyze on the unit, with this installation's program: it must exist."""
    unit = tmp_path / "trackwatch.service"
    text = (OPS / "trackwatch.service").read_text(encoding="utf-8")
    assert "/opt/trackwatch/bin/trackwatch " in text
    unit.write_text(text.replace("/opt/trackwatch/bin/trackwatch ", f"{SCRIPT} "), encoding="utf-8")
    command = ["systemd-analyze", *arguments, str(unit)]
    env = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=env)


@systemd
def test_systemd_finds_no_fault_with_the_unit(tmp_path: Path) -> None:
    done = analyzed(tmp_path, "verify", "--man=no")
    ours = [line for line in done.stderr.splitlines() if "trackwatch" in line]
    assert ours == []
    assert done.returncode == 0, done.stderr


@systemd
def test_the_unit_leaves_little_to_attack(tmp_path: Path) -> None:
    done = analyzed(tmp_path, "security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX * 10:.0f}")
    found = re.search(r"Overall exposure level for trackwatch\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= EXPOSURE_MAX, done.stdout
    assert done.returncode == 0, done.stdout
