"""What Prometheus is told: names, types and labels are public, and never two series under one name."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from trackwatch.catalogue import RootTotals
from trackwatch.event import EventType
from trackwatch.meters import Histogram, Total
from trackwatch.metrics import Disk, Facts, exposition, look_at_disk
from trackwatch.outbox import OutboxTotals
from trackwatch.publisher import LATENCY_BOUNDS_S, BrokerWord
from trackwatch.root import RootState, RootWord
from trackwatch.track import Root

MUSIC, ODD = Root(1, b"/data/music"), Root(2, b"/data/\xff")


def facts() -> Facts:
    return Facts(
        version="1.2.3",
        instance_id="7f3a",
        started_s=1_795_000_000.5,
        state="watching",
        is_ready=True,
        events={"created": 3, "moved": 1},
        published=4,
        latency=Histogram(LATENCY_BOUNDS_S),
        broker=BrokerWord.CONNECTED,
        outbox=OutboxTotals(events=10, pending=3, parked=2, oldest_pending_us=None, replaying=1),
        oldest_pending_s=1.5,
        outbox_max=100,
        roots=[RootState(MUSIC, 0, RootWord.OK), RootState(ODD, 0, RootWord.UNAVAILABLE, "gone")],
        root_totals=[RootTotals(MUSIC, 7, 700, 1_795_000_001_000_000), RootTotals(Root(9, b"/former"), 1, 1, None)],
        dirty=5,
        in_flight=6,
        in_flight_max=100,
        calls=Total(2, 0.5),
        described_files=4,
        described_bytes=4000,
        import_files=None,
        watches=12,
        watch_instances=1,
        watch_limits={"watches": 65536},
        problems=1,
        restarts={"watch": 1, "publisher": 2, "probe": 3, "web": 0},
        commits=8,
        is_writable=True,
        disk=Disk(4096, 10**9),
    )


def told(facts: Facts) -> dict[str, dict[tuple[str, ...], float]]:
    """Return what a scrape holds: name -> values of the labels -> value."""
    series: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(exposition(facts).decode()):
        for sample in family.samples:
            key = tuple(sample.labels.values())
            assert key not in series.setdefault(sample.name, {}), f"{sample.name}{sample.labels} is there twice"
            series[sample.name][key] = sample.value
    return series


def test_a_scrape_holds_what_the_tasks_know() -> None:
    scrape = told(facts())
    assert scrape["trackwatch_events_total"] == {
        ("created",): 3, ("modified",): 0, ("deleted",): 0, ("moved",): 1, ("renamed",): 0,
    }  # fmt: skip
    assert scrape["trackwatch_outbox_events"] == {
        ("pending",): 3, ("replaying",): 1, ("parked",): 2, ("published",): 5,
    }  # fmt: skip
    assert scrape["trackwatch_restarts_total"] == {("watch",): 1, ("publisher",): 2, ("probe",): 3, ("web",): 0}
    assert scrape["trackwatch_root_files"] == {("/data/music",): 7}, "a root that is no longer ours is not told"
    assert scrape["trackwatch_root_last_sweep_timestamp_seconds"] == {("/data/music",): 1_795_000_001}
    assert scrape["trackwatch_watches_limit"] == {(): 65536}
    assert "trackwatch_watch_instances_limit" not in scrape, "what the kernel does not tell is left out"


def test_words_are_told_with_one_of_them_present() -> None:
    scrape = told(facts())
    assert {word for (word,), value in scrape["trackwatch_broker_state"].items() if value} == {"connected"}
    assert set(scrape["trackwatch_broker_state"]) == {(word.value,) for word in BrokerWord}
    present = {key for key, value in scrape["trackwatch_root_state"].items() if value}
    assert present == {("/data/music", "ok"), ("/data/\\xff", "unavailable")}
    assert len(scrape["trackwatch_root_state"]) == 2 * len(RootWord)


def test_roots_that_people_see_alike_are_told_apart() -> None:
    alike = [
        RootState(Root(1, b"/\xfe"), 0),
        RootState(Root(2, b"/\xff"), 0),
        RootState(Root(3, "/\ufffd".encode()), 0),
    ]
    assert len(told(replace(facts(), roots=alike))["trackwatch_root_directories"]) == 3


def test_latencies_are_told_as_a_histogram() -> None:
    latency = Histogram((0.5, 10))
    for seconds in (0.1, 0.2, 20):
        latency.note(seconds)
    scrape = told(replace(facts(), latency=latency))
    assert scrape["trackwatch_publish_latency_seconds_bucket"] == {("0.5",): 2, ("10.0",): 2, ("+Inf",): 3}
    assert scrape["trackwatch_publish_latency_seconds_count"] == {(): 3}
    assert scrape["trackwatch_publish_latency_seconds_sum"][()] == pytest.approx(20.3)


def test_an_import_is_told_while_it_lasts() -> None:
    assert "trackwatch_import_files" not in told(facts())
    during = told(replace(facts(), import_files=(3, 10)))
    assert (during["trackwatch_import_files"], during["trackwatch_import_expected_files"]) == ({(): 3}, {(): 10})


def test_names_bear_the_units_and_endings_that_prometheus_asks_for() -> None:
    """Its own `promtool check metrics` says the same of a running daemon, where it is installed."""
    families = list(text_string_to_metric_families(exposition(facts()).decode()))
    assert Counter(family.name for family in families).most_common(1)[0][1] == 1
    for family in families:
        assert family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
            if family.type not in ("histogram", "summary"):
                assert not sample.name.endswith(("_count", "_sum", "_bucket")), sample.name
    assert {kind.value for kind in EventType} == {"created", "modified", "deleted", "moved", "renamed"}


def test_the_disk_of_a_state_that_is_gone_is_told_as_nothing(tmp_path: Path) -> None:
    assert look_at_disk(tmp_path / "gone") == Disk(0, None)
    (tmp_path / "trackwatch.db").write_bytes(b"12345")
    (tmp_path / "trackwatch.db-wal").write_bytes(b"123")
    (tmp_path / "lock").write_bytes(b"4121")
    disk = look_at_disk(tmp_path)
    assert disk.size_bytes == 8
    assert disk.free_bytes
