"""One benchmark that anyone can run: `make bench`, or `python -m tests.bench`.

Runs the parts that are named (all, if none is), each within its share of the time, and writes all that was measured as
JSON, and a page that is made from it. What there was no time for is said on the page.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.bed.rabbit import RabbitNotInstalledError
from tests.bench import idle, imports, latency, moves, outbox, page, restart, scale
from tests.bench.figures import Budget, Figure, Part
from tests.bench.measure import Noise, bench
from tests.bench.run import Run

FOLDER = Path(".cache/bench")
SIZES = (10_000, 100_000)
MINUTES = 10.0
PRODUCT = "TRACKWATCH_BENCH_PRODUCT"  # set in the environment once that product is the one that is imported


@dataclass(frozen=True)
class Entry:
    """A part: what runs it, its share of the time, what runs before it, and how to try it out with next to nothing."""

    run: Callable[..., None]
    weight: float
    after: tuple[str, ...] = ()
    tiny: Mapping[str, Any] = field(default_factory=dict)


PARTS: Mapping[str, Entry] = {
    "import": Entry(imports.part, 165, tiny={"counts": {"30 MB FLAC": 2, "5 MB MP3": 4, "130 KB": 50}}),
    "restart": Entry(restart.part, 95),
    "latency": Entry(latency.part, 90, tiny={"import_files": 200, "busy_s": 0.3}),
    "idle": Entry(idle.part, 150, tiny={"slice_s": 0.5}),
    "outbox": Entry(outbox.part, 105, tiny={"puts_s": 0.2, "messages": 200}),
    "moves": Entry(moves.part, 65, tiny={"files": 200}),
    "scale": Entry(scale.part, 15, after=("restart", "idle")),
}
TINY_SIZES, TINY_ROWS = (100, 300), 20_000


def chosen(names: Sequence[str]) -> list[str]:
    """Return the parts to run, in their order, with those that they need; all if none is named."""
    wanted = set(names or PARTS)
    for name in names:
        wanted.update(PARTS[name].after)
    return [name for name in PARTS if name in wanted]


def run_part(name: str, run: Run, tiny: bool) -> tuple[Part, bool]:
    """Run one part; return what it has to say, and whether it has come to its end."""
    noise, began_s, went_well = Noise(), time.monotonic(), True
    part = Part(name, sys.modules[PARTS[name].run.__module__].__doc__ or "")
    try:
        PARTS[name].run(run, part, **(PARTS[name].tiny if tiny else {}))
    except RabbitNotInstalledError as error:
        part.figures.append(Figure.not_measured("what needs a broker", str(error)))
    except Exception as error:  # it must not take with it what was measured so far, or what other parts measure
        traceback.print_exc()
        part.figures.append(Figure.not_measured("the rest", f"failed: {error!r}".splitlines()[0]))
        went_well = False
    part.seconds, part.others_share = time.monotonic() - began_s, noise.share()
    return part, went_well


def run_parts(run: Run, names: Sequence[str], seconds: float, tiny: bool) -> bool:
    """Run parts, each within its share of what is left; return whether all have come to their ends."""
    whole, all_well, making_s = Budget(seconds), True, 0.0
    for number, name in enumerate(names):
        weights = [PARTS[each].weight for each in names[number:]]
        run.budget = whole.share(weights[0] / sum(weights))
        run.say(f"{name}: part {number + 1} of {len(names)}, about {run.budget.left_s:.0f} s")
        run.parts[name], went_well = run_part(name, run, tiny)
        all_well = all_well and went_well
        whole.extend(run.making_s - making_s)
        making_s = run.making_s
    return all_well


def sizes(text: str) -> tuple[int, ...]:
    """Read sizes as they are written: 10000,100000."""
    return tuple(sorted({int(size.replace("_", "")) for size in text.split(",")}))


def parsed(argv: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"in all, about ({MINUTES:g})")
    parser.add_argument(
        "--sizes",
        type=sizes,
        metavar="N,N",
        help=f"of libraries ({','.join(map(str, SIZES))}); making those that are named is beyond the minutes",
    )
    parser.add_argument("--rows", type=int, default=0, help="of the outbox that drains (as many as there is time for)")
    parser.add_argument("--to", type=Path, default=FOLDER / "benchmarks.md", help="the page (%(default)s)")
    parser.add_argument(
        "--json", type=Path, default=FOLDER / "benchmarks.json", help="all that was measured (%(default)s)"
    )
    parser.add_argument("--before", type=Path, metavar="JSON", help="an earlier run, to be shown beside this one")
    parser.add_argument("--from", dest="source", type=Path, metavar="JSON", help="measure nothing: make its page again")
    parser.add_argument("--dir", type=Path, default=FOLDER, help="where to work: the disk matters (%(default)s)")
    parser.add_argument(
        "--libraries", type=Path, metavar="DIR", help="where to keep large libraries, and to find those made before"
    )
    parser.add_argument("--product", type=Path, metavar="DIR", help="measure the trackwatch there (DIR/trackwatch)")
    parser.add_argument("--label", default="", help="the commit of what is measured, where git cannot tell")
    parser.add_argument("--tiny", action="store_true", help="see whether everything works; the figures mean nothing")
    return parser.parse_args(argv)


def with_product(product: Path) -> dict[str, str]:
    """Return the environment in which the trackwatch of another folder comes before ours, in whatever is started."""
    if not (product / "trackwatch" / "__init__.py").is_file():
        sys.exit(f"python -m tests.bench: no trackwatch in {product}")
    here = Path(__file__).resolve().parents[2]
    path = os.pathsep.join((str(product.resolve()), str(here)))
    # The folder in which Python is started would come first.
    return {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": path, PRODUCT: str(product.resolve())}


def product_on_path() -> Path | None:
    """Return where the daemons that we start take their trackwatch from, if somebody says so by PYTHONPATH."""
    folders = [Path(folder) for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    return next((folder for folder in folders if (folder / "trackwatch" / "__init__.py").is_file()), None)


def measured(options: argparse.Namespace) -> tuple[dict[str, Any], bool]:
    """Run what was asked for; return what was found, and whether all went well."""
    names = chosen(options.parts)
    product = options.label or page.commit()
    default_sizes = TINY_SIZES if options.tiny else SIZES
    noise, began_s = Noise(), time.monotonic()
    options.dir.mkdir(parents=True, exist_ok=True)
    with bench(options.dir) as folder:
        run = Run(
            folder,
            sizes=options.sizes or default_sizes,
            sizes_asked=options.sizes is not None or options.tiny,
            rows=options.rows or (TINY_ROWS if options.tiny else 0),
            libraries=options.libraries and options.libraries.resolve(),
            product=product,
        )
        try:
            went_well = run_parts(run, names, 0.0 if options.tiny else 60 * options.minutes, options.tiny)
            found = page.machine(folder, run.node_if_started)
        finally:
            run.close()
    asked = {
        "PARTS": f'"{" ".join(options.parts)}"' if options.parts else "",
        "MINUTES": f"{options.minutes:g}",
        "SIZES": ",".join(map(str, options.sizes)) if options.sizes else "",
        "ROWS": options.rows or "",
        "LIBRARIES": "folder" if options.libraries else "",  # whose it is and where nobody needs to know
        "PRODUCT": "folder" if options.product else "",
        "LABEL": options.label,
        "BENCH_ARGS": "--tiny" if options.tiny else "",
    }
    parts, seconds = [run.parts[name] for name in names], time.monotonic() - began_s
    return page.report(parts, found, asked, seconds, noise.share(), product), went_well


def main(argv: Sequence[str]) -> int:
    """Run from the command line; return the exit code."""
    options = parsed(argv)
    # What runs in processes of ours has to be the same as what runs as a daemon.
    options.product = options.product or (None if options.source else product_on_path())
    if options.product and os.environ.get(PRODUCT) != str(options.product.resolve()):
        environ = with_product(options.product)
        os.execve(sys.executable, [sys.executable, "-m", "tests.bench", *argv], environ)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started must be ended
    before = json.loads(options.before.read_text("utf-8")) if options.before else None
    went_well = True
    if options.source:
        found = json.loads(options.source.read_text("utf-8"))
    else:
        found, went_well = measured(options)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    options.to.parent.mkdir(parents=True, exist_ok=True)
    options.to.write_text(page.page(found, before), "utf-8")
    print(page.summary(found))
    print(f"\n{options.to}" + ("" if options.source else f", {options.json}"))
    return 0 if went_well else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
