"""What the benchmark says about what was measured: ratios, verdicts, growth, time, and the page made from the JSON."""

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import trackwatch
from tests.bench import __main__ as command
from tests.bench.figures import Budget, Figure, Growth, Part, in_turn
from tests.bench.idle import REST_SHARE, Slice, come_to_rest, restless
from tests.bench.measure import CpuClock, Spread
from tests.bench.page import file_system, machine, page, report, shortfall, summary
from tests.bench.run import PER_DIRECTORY, Kept, Sized, schema
from tests.bench.scale import FAR, Cost, bottlenecks, slopes

SCHEMA = json.loads((Path(command.__file__).parent / "report.schema.json").read_text("utf-8"))
ASKED = {"PARTS": '"import"', "MINUTES": "10", "SIZES": "", "ROWS": ""}


class Clock:
    """A clock that somebody winds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def faster(ours: list[float], theirs: list[float], **asked: Any) -> Figure:
    return Figure.of("reading", "files/s", ours, "a peer", theirs, better="more", **asked)


def test_a_ratio_is_the_median_of_the_ratios_of_the_turns_not_the_ratio_of_the_medians() -> None:
    figure = faster([10, 100, 30], [10, 20, 30])
    assert figure.ratio.median == 1
    assert (figure.ratio.smallest, figure.ratio.largest, figure.ratio.count) == (1, 5, 3)
    assert (figure.ours.median, figure.theirs.median) == (30, 20)


def test_two_things_that_were_not_measured_as_often_as_each_other_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="shorter"):
        faster([1, 2], [1])


def test_something_beside_nothing_has_no_bound() -> None:
    assert faster([1.0], [0.0]).ratio.median == math.inf


@pytest.mark.parametrize(
    ("ratio", "better", "limit", "goal", "verdict"),
    [
        (1.0, "more", 0.7, 0.95, "goal"),
        (0.8, "more", 0.7, 0.95, "limit"),
        (0.6, "more", 0.7, 0.95, "missed"),
        (1.1, "less", 3.0, 1.2, "goal"),
        (2.0, "less", 3.0, 1.2, "limit"),
        (3.1, "less", 3.0, 1.2, "missed"),
        (0.5, "more", None, 0.4, "goal"),
        (0.5, "more", 0.6, None, "missed"),
        (0.0, "less", 0.0, 0.0, "goal"),
        (9.9, "more", None, None, ""),
    ],
)
def test_a_verdict_says_what_the_median_meets(
    ratio: float, better: Any, limit: float | None, goal: float | None, verdict: str
) -> None:
    figure = Figure.of("it", "s", [ratio], "a peer", [1.0], better, limit=limit, goal=goal)
    assert figure.verdict == verdict


def test_what_was_not_measured_says_so_and_why() -> None:
    figure = Figure.not_measured("it", "nothing is installed")
    assert (figure.verdict, figure.missing) == ("not measured", "nothing is installed")


@pytest.mark.parametrize(
    ("better", "ratio", "far"), [("more", 0.5, 2.0), ("less", 4.0, 4.0), ("more", 2.0, 0.5), ("more", 0.0, math.inf)]
)
def test_a_shortfall_is_the_factor_that_is_missing(better: str, ratio: float, far: float) -> None:
    figure = {"goal": None, "limit": 1.0, "better": better, "ratio": {"median": ratio}}
    assert shortfall(figure) == far


# --- time ---


def test_a_budget_counts_turns_while_there_is_time_for_another_one(clock: Clock) -> None:
    turns = []
    for turn in Budget(10.0, clock).turns(1, 9):
        turns.append(turn)
        clock.now_s += 3.0
    assert turns == [0, 1, 2]  # a fourth one would end after 12 s


def test_a_budget_that_is_used_up_still_gives_the_least(clock: Clock) -> None:
    budget = Budget(0.0, clock)
    assert list(budget.turns(2, 5)) == [0, 1]
    assert budget.left_s == 0


def test_a_budget_never_gives_more_than_the_most(clock: Clock) -> None:
    assert len(list(Budget(1e9, clock).turns(2, 5))) == 5


def test_what_a_budget_is_given_more_can_be_used(clock: Clock) -> None:
    budget = Budget(1.0, clock)
    clock.now_s = 5.0
    budget.extend(6.0)
    assert budget.left_s == 2.0


def test_a_share_is_of_what_is_left(clock: Clock) -> None:
    budget = Budget(10.0, clock)
    clock.now_s = 4.0
    assert budget.share(0.5).left_s == 3.0


def test_things_are_measured_in_turn() -> None:
    done: list[str] = []
    given = in_turn({"a": lambda: done.append("a"), "b": lambda: done.append("b")}, Budget(0.0), least=3)
    assert done == ["a", "b"] * 3
    assert all(one != other for one, other in pairwise(done))
    assert {way: len(values) for way, values in given.items()} == {"a": 3, "b": 3}


# --- growth ---


def test_the_slope_of_a_cost_that_grows_with_the_square_is_two() -> None:
    growth = Growth.through([(10.0, 300.0), (100.0, 30_000.0), (1000.0, 3_000_000.0)])
    assert growth is not None
    assert growth.slope == pytest.approx(2)
    assert growth.at(10_000) == pytest.approx(3e8)
    assert growth.size_at(3e8) == pytest.approx(10_000)


def test_a_cost_that_does_not_grow_never_uses_anything_up() -> None:
    growth = Growth.through([(10.0, 5.0), (1000.0, 5.0)])
    assert growth is not None
    assert growth.size_at(6.0) == math.inf


@pytest.mark.parametrize("points", [[], [(10.0, 1.0)], [(10.0, 1.0), (10.0, 2.0)], [(10.0, 1.0), (20.0, 0.0)]])
def test_nothing_is_said_of_growth_without_two_sizes_and_costs_above_nothing(points: list[tuple[float, float]]) -> None:
    assert Growth.through(points) is None


def cost(
    small: list[float], large: list[float], nothing: Sequence[float] = (0.0,), available: float = math.inf
) -> Cost:
    return Cost("it", "s", {1_000: small, 10_000: large}, nothing, available, "the hour")


def test_a_cost_is_drawn_on_as_it_grows() -> None:
    grown = cost([3.0], [12.0], nothing=[2.0], available=102.0)  # a second for each thousand
    assert grown.growth is not None
    assert grown.growth.slope == pytest.approx(1)
    assert grown.at(100_000) == pytest.approx(102)
    assert grown.files_at_most() == pytest.approx(100_000)


def test_a_cost_is_drawn_on_by_whichever_line_says_more() -> None:
    flat = cost([10.0], [20.0], nothing=())  # a slope of 0.3, which would hide that each file takes something
    assert flat.at(100_000) == pytest.approx(20 + 90_000 * 10 / 9_000)
    steep = cost([1.0], [100.0])  # the square
    assert steep.at(100_000) == pytest.approx(10_000)


def test_nothing_is_drawn_on_where_the_turns_of_two_sizes_overlap() -> None:
    noise = cost([0.0029, 0.0033], [0.0031, 0.0040], nothing=(), available=1.0)
    assert not noise.grows
    assert math.isnan(noise.at(FAR))
    assert noise.files_at_most() == math.inf
    assert bottlenecks([noise]) == ["Beyond what turns differ by, these do not grow: it."]


def test_a_size_that_is_lost_in_the_noise_bends_no_line() -> None:
    # Hardly more than nothing at the smaller size, and of nothing the turns differ by more than that.
    noisy = cost([0.47, 0.48], [2.2, 2.3], nothing=[0.43, 0.44, 0.49])
    assert noisy.grows
    assert noisy.growth is None
    assert noisy.figure() is None
    assert noisy.at(100_000) == pytest.approx(2.25 + 90_000 * (2.25 - 0.475) / 9_000)


def test_nothing_is_drawn_on_from_one_size() -> None:
    assert not Cost("it", "s", {1_000: [1.0]}, (0.0,), 9.0).grows


def test_what_runs_out_first_is_told_first() -> None:
    late, soon = (
        cost([1.0], [10.0], available=1e6),
        Cost("that", "GB", {1_000: [1.0], 10_000: [10.0]}, (0.0,), 20.0, "all"),
    )
    said = bottlenecks([late, soon])
    assert said == [
        "What runs out first: that, used up (all, 20 GB) at 20,000 files; 10,000,000 files take 50,000 % of it.",
        "Then: it, used up (the hour, 1,000,000 s) at 1,000,000,000 files; 10,000,000 files take 1 % of it.",
    ]


def test_only_the_slopes_of_what_grows_are_told() -> None:
    noise = Cost("noise", "s", {1_000: [1.0, 9.0], 10_000: [2.0, 8.0]})
    assert slopes([cost([1.0], [100.0]), noise]) == (
        "From 1,000 to 10,000 files costs grow with the size to the power of: it 2.00."
    )


def test_a_cost_whose_beginning_is_unknown_is_compared_as_a_whole() -> None:
    whole, each = cost([1.0, 1.0], [2.0, 2.0], nothing=()).figure(), cost([1.0], [20.0], nothing=[0.0]).figure()
    assert whole is not None
    assert each is not None
    assert (whole.unit, whole.ratio.median) == ("s", 2.0)
    assert (each.unit, each.ratio.median) == ("s for 1,000 files", 2.0)


# --- at rest ---


class Shares(CpuClock):
    """A process that takes what somebody says."""

    def __init__(self, *shares: float) -> None:
        self._shares = list(shares)

    def share(self, seconds: float) -> float:
        return self._shares.pop(0)


def test_who_takes_next_to_nothing_rests() -> None:
    clock = Shares(1.0, 0.5, REST_SHARE / 2, 9.0)
    assert come_to_rest(clock, 60.0)
    assert clock._shares == [9.0]


def test_who_never_rests_is_not_waited_for_for_ever() -> None:
    assert not come_to_rest(Shares(1.0, 1.0), 0.0)


def test_the_time_of_what_has_ended_is_kept() -> None:
    # A thread, then a process, which take some time and end.
    code = """if True:
        import os, sys, threading, time
        def work():
            end = time.thread_time() + 0.1
            while time.thread_time() < end: pass
        def step():
            print(flush=True); sys.stdin.readline()
        step()
        thread = threading.Thread(target=work); thread.start(); thread.join()
        step()
        if os.fork() == 0:
            work(); os._exit(0)
        os.wait()
        step()
    """
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        clock, spent_s = CpuClock(process.pid), []
        for _ in range(3):
            process.stdout.readline()
            spent_s.append(clock.read())
            process.stdin.write(b"\n")
            process.stdin.flush()
        process.wait()
        spent_s.append(clock.read())
    begun, after_thread, after_process, ended = spent_s
    assert after_thread - begun >= 0.1
    assert after_process - after_thread >= 0.09  # a hundredth of a second is as well as it is known
    assert ended == after_process  # it is gone, and what it has taken is not given back


def test_who_does_not_rest_is_named_with_what_it_says() -> None:
    sized = Sized(100_000, 10_101, Path(), Path(), 0.0, 0.0, 0)
    said = ["Inotify queue overflowed; filesystem events were lost", "Inotify queue overflowed; reconciling"]
    calm, busy = Slice(0.001, 0, 0.0, True), Slice(0.5, 0, 0.0, False, said)
    told = restless("a loop", sized, [busy, busy])
    assert "a loop does not come to rest with 100,000 files in 10,101 directories (2 of 2 times)" in told
    assert "takes 50 % of a core" in told
    assert "has said 2 times" in told
    assert "overflowed" not in restless("a loop", sized, [calm, Slice(0.5, 0, 0.0, False)])


# --- libraries that are kept ---


def kept_library(folder: Path) -> tuple[Kept, Sized]:
    kept = Kept(folder)
    kept.state.mkdir()
    (kept.root / "0.mp3").touch()
    kept.note({"files": 1, "per_directory": PER_DIRECTORY})
    made = Sized(1, 1, kept.root, kept.state, 1.5, 0.5, 4096)
    kept.keep(made, "abc")
    return kept, made


def test_a_library_is_found_again_with_what_was_noted_and_when(tmp_path: Path) -> None:
    _, made = kept_library(tmp_path / "kept")
    found = Kept(tmp_path / "kept").sized(1)
    assert found is not None
    assert found.made.endswith("Z, commit abc")
    assert Sized(**{**vars(found), "made": ""}) == made


def test_a_state_of_another_form_is_not_used_but_its_library_is(tmp_path: Path) -> None:
    kept, _ = kept_library(tmp_path / "kept")
    note = tmp_path / "kept" / "made.json"
    note.write_text(note.read_text().replace(schema(), "another"))
    assert kept.sized(1) is None
    assert kept.is_written(1)
    assert (kept.root / "0.mp3").exists()
    assert not kept.state.exists()


def test_a_library_that_was_not_written_to_its_end_is_written_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept")
    (kept.root / "0.mp3").touch()
    assert kept.sized(1) is None
    assert list(kept.root.iterdir()) == []


def test_a_library_that_was_moved_has_to_be_imported_again(tmp_path: Path) -> None:
    kept_library(tmp_path / "kept")
    (tmp_path / "kept").rename(tmp_path / "moved")
    assert Kept(tmp_path / "moved").sized(1) is None


# --- what is written ---


def found(*figures: Figure, name: str = "import") -> dict[str, Any]:
    part = Part(name, "How it was measured.", list(figures))
    part.tables["Some"] = [{"way": "ours", "s": 1.5}, {"way": "theirs", "s": math.nan}]
    part.tables["None"] = []
    part.remarks.append("It grows.")
    part.answers.append("It is enough.")
    part.left_out.append("1,000,000 files: no time")
    part.details["turns"] = {"ours": [Spread.of([1.0, 2.0])]}
    return report([part], {"cores": "2"}, ASKED, 61.0, 0.25)


def test_a_report_is_json_of_the_form_that_its_schema_says() -> None:
    told = found(faster([1.0], [0.0]), Figure.not_measured("it", "why"))
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(told, SCHEMA)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["parts"][0]["figures"][0]["ratio"]["median"] is None
    assert told["parts"][0]["details"]["turns"]["ours"][0]["median"] == 1.5


def test_the_page_is_made_from_the_report_alone() -> None:
    told = found(faster([4.0, 5.0], [2.0, 2.0], limit=3.0), Figure.not_measured("memory", "no time"))
    text = page(json.loads(json.dumps(told)))
    assert 'make bench PARTS="import" MINUTES=10' in text
    row = next(line for line in text.splitlines() if line.startswith("| reading"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    expected = ["reading", "4.5 files/s", "a peer", "2 files/s", "2.25", "2 to 2.5", "2", "at least 3", "missed"]
    assert cells == expected
    assert "not measured: no time" in text
    assert "Left out: 1,000,000 files: no time." in text
    assert "- It grows." in text
    assert "others took 25 % of the machine" in " ".join(text.split())
    assert "reading" in summary(told)


def test_the_page_lists_what_is_farthest_from_what_is_wanted() -> None:
    near, far = (
        Figure.of(what, "s", [ratio], "a peer", [1.0], "less", limit=1.0)
        for what, ratio in (("near", 2.0), ("far", 9.0))
    )
    lines = page(found(near, far)).splitlines()
    ranked = lines[lines.index("**Farthest from what is wanted**") + 4 :][:2]
    assert ["far" in ranked[0], "near" in ranked[1]] == [True, True]


def test_an_earlier_run_is_shown_beside_whatever_the_number_of_files_was() -> None:
    def run(files: str, rate: float) -> dict[str, Any]:
        return found(Figure.of(f"{files} x 5 MB MP3, imported", "GB/s", [rate], "bound", [1.0], better="more"))

    text = page(run("2,000", 0.9), run("60", 0.5))
    head, row = (
        [cell.strip() for cell in line.split("|")]
        for line in text.splitlines()
        if line.startswith(("| figure", "| 2,000 x"))
    )
    assert row[head.index("before")] == "0.5"
    assert row[head.index("ratio")] == "0.9"


def test_what_answers_a_question_comes_first_and_each_question_once() -> None:
    asked = [
        faster([4.0], [2.0], question="How fast?"),
        faster([6.0], [2.0], question="How fast?"),
        faster([9.0], [1.0]),
    ]
    lines = page(found(*asked)).splitlines()
    rows = lines[lines.index("**In short**") + 4 :][:3]
    assert "- It is enough." in lines[: lines.index("## import")]
    assert ["How fast?" in row for row in rows] == [True, False, False]
    assert ["4 files/s" in rows[0], "6 files/s" in rows[1], rows[2]] == [True, True, ""]


def test_a_page_says_what_an_earlier_run_has_measured_and_where_it_ran() -> None:
    told, earlier = found(faster([1.0], [1.0])), found(faster([1.0], [1.0]))
    earlier["commit"], earlier["machine"] = "abc", {"cores": "4"}
    text = " ".join(page(told, earlier).split())
    assert "(commit abc)" in text
    assert "with other cores" in text
    assert "on the same machine with the same versions" in " ".join(page(told, told).split())


def test_what_is_measured_is_named_as_somebody_says_or_as_git_knows_it(tmp_path: Path) -> None:
    assert report([], {}, ASKED, 1.0, 0.0, "abc")["commit"] == "abc"
    shutil.copytree(Path(trackwatch.__file__).parent, tmp_path / "trackwatch")
    # A copy is not what git knows, although this test's folder may be inside of a repository.
    code = "from tests.bench.page import commit; print(commit())"
    path = os.pathsep.join((str(tmp_path), str(Path(command.__file__).parents[2])))
    environ = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "unknown\n"


def test_what_is_better_than_wanted_is_not_far_from_it() -> None:
    assert "Farthest" not in page(found(faster([2.0], [1.0], limit=1.0)))
    nothing = Figure.of("opened", "files", [0.0], "moved", [9.0], "less", limit=0.0, goal=0.0)
    assert "Farthest" not in page(found(nothing))


def test_every_row_of_a_table_has_the_columns_of_its_head() -> None:
    text = page(found(Figure.not_measured("it", "why"), faster([1.0], [1.0])), found())
    for line, below in pairwise(text.splitlines()):
        if line.startswith("|") and below.startswith("|"):
            assert line.count("|") == below.count("|")


def test_the_machine_is_described_without_saying_whose_it_is(tmp_path: Path) -> None:
    told = machine(tmp_path, None)
    assert told["RabbitMQ"] == "not used"
    assert file_system(Path("/proc")) == "proc"
    assert str(tmp_path) not in json.dumps(told)


# --- the command ---


def test_parts_run_in_their_order_with_those_that_they_need() -> None:
    assert command.chosen([]) == list(command.PARTS)
    assert command.chosen(["scale", "import"]) == ["import", "restart", "idle", "scale"]


def test_sizes_are_read_and_put_in_order() -> None:
    assert command.sizes("1_000_000,10000") == (10_000, 1_000_000)


def test_another_trackwatch_is_looked_for_before_anything_is_measured(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no trackwatch in"):
        command.main(["--product", str(tmp_path)])


def test_another_trackwatch_is_what_is_imported(tmp_path: Path) -> None:
    (tmp_path / "trackwatch").mkdir()
    (tmp_path / "trackwatch" / "__init__.py").write_text("print('another')")
    code = "import trackwatch, tests.bench.peers"
    done = subprocess.run(
        [sys.executable, "-c", code], env=command.with_product(tmp_path), capture_output=True, text=True, check=True
    )
    assert done.stdout == "another\n"


def test_a_trackwatch_that_daemons_would_take_is_what_all_is_measured_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(("", str(tmp_path / "other"), str(tmp_path))))
    assert command.product_on_path() is None
    (tmp_path / "trackwatch").mkdir()
    (tmp_path / "trackwatch" / "__init__.py").touch()
    assert command.product_on_path() == tmp_path


def test_a_page_can_be_made_again_from_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "run.json", tmp_path / "page.md"
    told = found(faster([1.0], [2.0]))
    source.write_text(json.dumps(told))
    assert command.main(["--from", str(source), "--to", str(target)]) == 0
    assert target.read_text() == page(told)
    assert str(target) in capsys.readouterr().out
