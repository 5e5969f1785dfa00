"""The HTTP face of a real daemon, as an orchestrator, Prometheus and a rude client meet it."""

import contextlib
import http.client
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.bed.daemon import Daemon, log_event
from tests.bed.rabbit import RabbitNode, free_ports
from tests.bed.recorder import Recorder


@pytest.fixture
def port() -> int:
    """A port that is free, and that no outgoing connection will take."""
    return free_ports()[0]


def get(port: int, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> dict[str, dict[tuple[str, ...], float]]:
    status, text = get(port, "/metrics")
    assert status == 200
    series: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            series.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return series


def present(series: dict[tuple[str, ...], float]) -> str:
    (key,) = [key for key, value in series.items() if value]
    return key[-1]


def listening_sockets(pid: int) -> set[str]:
    """Return the inodes of the TCP sockets on which a process listens."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text() for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables for line in table.splitlines()]
    listening = {line[9] for line in lines if line[3] == "0A"}
    links = {os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    return {inode for inode in listening if f"socket:[{inode}]" in links}


def logged(running: Daemon) -> list[str]:
    return [event for line in running.stderr().splitlines() if (event := log_event(line)).startswith("http")]


def listens(running: Daemon) -> bool:
    return "http listening" in logged(running)


def test_a_daemon_that_works_is_alive_and_ready_and_tells_what_it_did(
    daemon: Callable[..., Daemon], library: Callable[..., Path], port: int
) -> None:
    root = library(20)
    size_bytes = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    running = daemon(root, env={"TRACKWATCH_HTTP": str(port)})
    running.start()
    running.wait_until(lambda: listens(running), 10, "to listen")
    running.wait_for_events(20)
    assert get(port, "/livez") == (200, "ok\n")
    assert get(port, "/readyz") == (200, "ok\n")
    assert get(port, "/livez", "HEAD") == (200, "")
    assert get(port, "/")[0] == 404
    assert get(port, "/metrics", "POST")[0] == 405
    running.wait_until(lambda: scrape(port)["trackwatch_published_total"] == {(): 20}, 10, "to have published")
    series = scrape(port)
    assert series["trackwatch_events_total"][("created",)] == 20
    assert present(series["trackwatch_state"]) == "watching"
    assert series["trackwatch_ready"] == {(): 1}
    assert series["trackwatch_root_files"] == {(str(root),): 20}
    assert series["trackwatch_probed_files_total"] == {(): 20}
    assert series["trackwatch_probed_bytes_total"] == {(): size_bytes}
    assert series["trackwatch_publish_latency_seconds_count"] == {(): 20}
    assert series["trackwatch_sweep_seconds_count"] == {(str(root),): 1}
    assert series["trackwatch_watches"][()] == series["trackwatch_root_directories"][(str(root),)]
    assert series["process_open_fds"][()] > 3
    assert running.status()[1]["http"] == {"state": "listening", "reason": "", "address": f"127.0.0.1:{port}"}
    assert running.stop() == 0


def test_gauges_stay_within_what_they_measure(
    daemon: Callable[..., Daemon], library: Callable[..., Path], port: int
) -> None:
    """Also in the middle of an import: no more in flight than may be, and a sweep forgets no directory."""
    root, more = library(20), library(600, name="more", size_bytes=100_000)
    env = {"TRACKWATCH_HTTP": str(port), "MAX_CONCURRENT_FILES": "4", "TRACKWATCH_SWEEP_S": "0.1"}
    running = daemon(root, env=env)
    running.start(wait=False)
    running.wait_until(lambda: listens(running), 10, "to listen")
    more.rename(root / "more")
    directories = {folder for folder in (root, *root.rglob("*")) if folder.is_dir()}
    seen: list[tuple[float, float]] = []

    def is_imported() -> bool:
        series = scrape(port)
        seen.append((series["trackwatch_files_in_flight"][()], series["trackwatch_root_directories"][(str(root),)]))
        is_all = series["trackwatch_root_files"][(str(root),)] == 620
        return is_all and series["trackwatch_sweep_seconds_count"][(str(root),)] > 5

    running.wait_until(is_imported, 60, "the import and some sweeps")
    assert {in_flight for in_flight, _ in seen} & {1, 2, 3, 4}
    assert max(in_flight for in_flight, _ in seen) <= 4
    counts = [count for _, count in seen]
    known = counts[counts.index(len(directories)) :]
    assert set(known) == {len(directories)}


def test_a_broker_that_is_away_makes_it_unready_and_never_dead(
    daemon: Callable[..., Daemon],
    library: Callable[..., Path],
    own_rabbit: Callable[..., RabbitNode],
    recorder: Callable[..., Recorder],
    port: int,
) -> None:
    node = own_rabbit()
    recording = recorder(node.url(), queue_type="quorum")
    running = daemon(library(3), args=["--to", node.url()], env={"TRACKWATCH_HTTP": str(port)})
    running.start()
    running.wait_until(lambda: listens(running), 10, "to listen")
    running.wait_until(lambda: get(port, "/readyz") == (200, "ok\n"), 10, "to be ready")
    assert present(scrape(port)["trackwatch_broker_state"]) == "connected"
    node.wait_until_registered(recording.queue)
    node.flush_topology()
    node.kill()
    running.wait_until(lambda: get(port, "/readyz")[0] == 503, 10, "to miss the broker")
    assert get(port, "/readyz")[1].startswith("broker unavailable: ")
    assert get(port, "/livez") == (200, "ok\n")
    series = scrape(port)
    assert present(series["trackwatch_broker_state"]) == "unavailable"
    assert series["trackwatch_ready"] == {(): 0}
    assert series["trackwatch_restarts_total"][("publisher",)] == 1
    node.start()
    running.wait_until(lambda: get(port, "/readyz") == (200, "ok\n"), 20, "to be ready again")


def test_a_root_that_is_away_is_the_reason_in_words(
    daemon: Callable[..., Daemon], library: Callable[..., Path], port: int
) -> None:
    root, away = library(2), library(1, name="away")
    running = daemon([root, away], env={"TRACKWATCH_HTTP": str(port)})
    running.start()
    running.wait_until(lambda: listens(running), 10, "to listen")
    away.rename(away.with_name("elsewhere"))
    running.wait_until(lambda: get(port, "/readyz")[0] == 503, 20, "to miss the root")
    assert get(port, "/readyz")[1].startswith(f"root '{away}' unavailable: ")
    series = scrape(port)["trackwatch_root_state"]
    assert [key for key, value in series.items() if value] == [(str(root), "ok"), (str(away), "unavailable")]


def test_an_address_in_use_stops_nothing_and_is_taken_once_it_is_free(
    daemon: Callable[..., Daemon], library: Callable[..., Path], port: int
) -> None:
    with socket.create_server(("127.0.0.1", port)):
        running = daemon(library(2), env={"TRACKWATCH_HTTP": str(port)})
        running.start()
        running.wait_for_events(2)
        running.wait_until(lambda: (running.status()[1]["http"] or {}).get("state") == "unavailable", 10, "to say so")
        code, status = running.status()
        assert "the address is in use by another program" in status["http"]["reason"]
        assert code == 1
    running.wait_until(lambda: listens(running), 60, "to listen")
    running.wait_until(lambda: running.status()[0] == 0, 15, "to be well again")
    assert scrape(port)["trackwatch_restarts_total"][("web",)] >= 1
    assert logged(running) == ["http unavailable", "http listening"], "one line for each change of state"


def test_clients_that_read_nothing_or_send_half_a_request_do_not_hold_up_the_stop(
    daemon: Callable[..., Daemon], library: Callable[..., Path], port: int
) -> None:
    running = daemon(library(2), env={"TRACKWATCH_HTTP": str(port)})
    running.start()
    running.wait_until(lambda: listens(running), 10, "to listen")
    rude = []
    for request in (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 1000, b"GET /met", b"", b"\x16\x03\x01\0\xff\n\n"):
        client = socket.create_connection(("127.0.0.1", port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.settimeout(0.2)
        # It may close at once, or take no more: that is up to it.
        with contextlib.suppress(OSError):
            client.sendall(request)
        rude.append(client)
    assert get(port, "/livez") == (200, "ok\n")
    assert running.stop(timeout_s=8) == 0
    for client in rude:
        client.close()


def test_it_answers_until_everything_is_sent_and_says_that_it_stops(
    daemon: Callable[..., Daemon], library: Callable[..., Path], own_rabbit: Callable[..., RabbitNode], port: int
) -> None:
    """Readiness goes first, so that nobody counts on one that leaves."""
    node = own_rabbit()
    running = daemon(library(2), args=["--to", node.url()], env={"TRACKWATCH_HTTP": str(port)})
    running.start()
    running.wait_until(lambda: listens(running), 10, "to listen")
    running.wait_until(lambda: get(port, "/readyz")[0] == 503, 20, "to find that nobody has bound a queue")
    node.freeze()  # draining takes a while now
    os.kill(running.pid, signal.SIGTERM)
    running.wait_until(lambda: get(port, "/readyz")[1].startswith("stopping\n"), 5, "to say that it stops")
    assert running.wait_for_exit() == 0
    node.thaw()


def test_without_the_setting_it_listens_nowhere(
    daemon: Callable[..., Daemon], library: Callable[..., Path], port: int
) -> None:
    quiet, talking = daemon(library(1)), daemon(library(1, name="other"), env={"TRACKWATCH_HTTP": str(port)})
    quiet.start()
    talking.start()
    talking.wait_until(lambda: listens(talking), 10, "to listen")
    assert len(listening_sockets(talking.pid)) == 1
    assert listening_sockets(quiet.pid) == set()
    assert quiet.status()[1]["http"] is None
