"""What the benchmark says about what was measured: ratios, verdicts, growth, time, and the page made from the JSON."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.bench import __main__ as command
from tests.bench.figures import Budget, Figure, Growth, Part, in_turn
from tests.bench.measure import Spread
from tests.bench.page import file_system, machine, page, report, shortfall, summary

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


def faster(ours: list[float], theirs: list[float], **asked: float) -> Figure:
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


# --- what is written ---


def found(*figures: Figure, name: str = "import") -> dict[str, Any]:
    part = Part(name, "How it was measured.", list(figures))
    part.tables["Some"] = [{"way": "ours", "s": 1.5}, {"way": "theirs", "s": math.nan}]
    part.tables["None"] = []
    part.remarks.append("It grows.")
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
    expected = ["reading", "files/s", "4.5", "a peer", "2", "2.25", "2", "2.5", "2", "more", "3", "", "missed"]
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


def test_a_page_can_be_made_again_from_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "run.json", tmp_path / "page.md"
    told = found(faster([1.0], [2.0]))
    source.write_text(json.dumps(told))
    assert command.main(["--from", str(source), "--to", str(target)]) == 0
    assert target.read_text() == page(told)
    assert str(target) in capsys.readouterr().out
