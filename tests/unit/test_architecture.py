"""The shape of the package, read from its source: imports point one way, and each outside thing has its own module."""

import ast
import itertools
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

import trackwatch

PACKAGE = Path(trackwatch.__file__).parent

# Lowest first: a module imports only from what stands before it. Each new module needs a place here.
ORDER = (
    "__init__",
    # values and rules that know nothing of the outside
    "errors", "clock", "backoff", "throttle", "meters", "progress", "track", "event", "settle",
    # one outside thing each
    "patterns", "statx", "mounts", "id3", "mp4", "tags", "spans", "sweep", "probe", "watch", "words", "screen",
    "log", "folder", "values", "settings", "contract", "frames", "amqp", "jsonl", "dialogue", "limits",
    # the state
    "database", "catalogue", "outbox", "record", "store",
    # what is going on
    "correlate", "trust", "look", "root", "sweeper", "reconcile", "pool", "workers", "publisher", "status",
    "summary", "bars", "replay", "metrics", "web", "face", "finding", "survey", "outlet", "check",
    # the program
    "daemon", "cli", "__main__",
)  # fmt: skip

# Who may know an outside thing.
KNOWN_TO: Mapping[str, set[str]] = {
    "sqlite_utils": {"database"},
    # Only store opens connections and calls them by this name; for the others it is the type of what they are given.
    "sqlite3": {"database", "catalogue", "outbox", "record", "store", "look", "sweeper", "reconcile"},
    "aio_pika": {"amqp"},
    "aiormq": {"amqp"},
    "pamqp": {"frames", "dialogue"},
    "asyncio": {"amqp"},
    "trio_parallel": {"pool"},
    "trio_asyncio": {"amqp"},
    "watchfiles": {"watch"},
    "sortedcontainers": {"watch"},
    "mutagen": {"tags"},
    "pathspec": {"patterns"},
    "xxhash": {"probe"},
    "ctypes": {"statx", "limits"},
    "pydantic": {"values", "settings", "contract"},
    "pydantic_settings": {"settings"},
    "typing_extensions": {"contract"},
    "hypercorn": {"web"},
    "starlette": {"web"},
    "prometheus_client": {"metrics"},
    "logging": {"amqp", "log", "web"},
    "click": {"cli"},
    # For the command line it is the type of what it is given.
    "rich": {"words", "screen", "log", "bars", "cli"},
}
# What every module may know.
FREE = {"trio", "structlog"}
# Decide, and so take `now` as an argument and do no I/O.
PURE = ("backoff", "throttle", "meters", "progress", "settle", "correlate", "track", "event")
EMPTY_NAMES = {"manager", "handler", "service", "helper", "common", "base", "utils", "util", "helpers", "misc"}


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text("utf-8"))


def modules() -> list[str]:
    return sorted(path.stem for path in PACKAGE.glob("*.py"))


@cache
def imports(module: str) -> frozenset[str]:
    """Return the dotted names of the modules that a module imports, also those inside functions."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(tree_of(module)):
        match node:
            case ast.Import(names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(source, names, level):
                assert level == 0, f"{module}: relative imports hide the direction"
                if source == "trackwatch":
                    ours = set(modules())
                    yield from (f"trackwatch.{name.name if name.name in ours else '__init__'}" for name in names)
                elif source:
                    yield source


def own_imports(module: str) -> set[str]:
    return {name.split(".")[1] for name in imports(module) if name.startswith("trackwatch.")}


def outside_imports(module: str) -> set[str]:
    return {name.split(".")[0] for name in imports(module)} - {"trackwatch"}


def executes_sql(module: str) -> bool:
    calls = (node.func for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call))
    return any(
        isinstance(call, ast.Attribute) and call.attr in {"execute", "executemany", "executescript"} for call in calls
    )


def test_every_module_has_its_place_in_the_order() -> None:
    assert sorted(ORDER) == modules()


def test_the_package_is_flat() -> None:
    """But for the migrations, which an installed package holds, and the source has beside it."""
    nested = [path for path in PACKAGE.rglob("*.py") if path.parent not in (PACKAGE, PACKAGE / "migrations")]
    assert nested == [], "a folder needs a place in these tests first"


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_what_stands_below_it(module: str) -> None:
    assert own_imports(module) <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("outside", KNOWN_TO)
def test_an_outside_thing_is_known_to_its_modules_alone(outside: str) -> None:
    assert {module for module in modules() if outside in outside_imports(module)} == KNOWN_TO[outside]


def test_no_other_package_is_imported_anywhere() -> None:
    known = set(KNOWN_TO) | FREE | set(sys.stdlib_module_names)
    assert {module: foreign for module in modules() if (foreign := outside_imports(module) - known)} == {}


def test_connections_are_opened_in_one_place_alone() -> None:
    """Elsewhere sqlite3 is only the name of a type, and of what the store has to catch."""
    for module in KNOWN_TO["sqlite3"] - {"database"}:
        used = {
            node.attr
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "sqlite3"
        }
        assert used <= {"Connection"} | ({"Error"} if module == "store" else set()), module


def test_sql_is_executed_in_the_halves_of_the_state_and_at_its_gate() -> None:
    assert {module for module in modules() if executes_sql(module)} == {"catalogue", "database", "outbox", "store"}


@pytest.mark.parametrize("module", PURE)
def test_what_decides_does_no_input_or_output(module: str) -> None:
    """`os` is there for its path arithmetic, its encodings of names, and what ids need of chance."""
    assert outside_imports(module).isdisjoint({"trio", "time", "socket", "sqlite3", "threading", "structlog", "io"})
    used = {
        node.attr
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert used <= {"path", "fsdecode", "fsencode", "stat_result", "urandom"}


def test_only_the_daemon_and_the_owners_of_loops_open_nurseries() -> None:
    """Every task has an owner on the page."""
    opened = {
        module
        for module in modules()
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Attribute) and node.attr == "open_nursery"
    }
    assert opened <= {"daemon", "pool", "reconcile", "sweeper", "watch", "publisher", "amqp", "web", "face", "cli"}


def test_nothing_is_named_for_being_useful() -> None:
    names = {
        part.lower()
        for module in modules()
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.ClassDef)
        for part in (node.name.strip("_"), *_words(node.name))
    }
    assert names & EMPTY_NAMES == set()
    assert {part for module in modules() for part in module.split("_")} & EMPTY_NAMES == set()


def _words(name: str) -> Iterator[str]:
    """Yield the words of a name in capitals."""
    starts = [at for at, letter in enumerate(name) if letter.isupper()] + [len(name)]
    yield from (name[start:end] for start, end in itertools.pairwise(starts))


@pytest.mark.parametrize("module", ORDER)
def test_every_module_says_what_it_is_for(module: str) -> None:
    docstring = ast.get_docstring(tree_of(module))
    assert docstring
    assert len(docstring.splitlines()) <= 16, "a module's docstring is no manual"


@pytest.mark.parametrize("module", ORDER)
def test_every_public_class_and_function_says_what_it_is_for(module: str) -> None:
    """A name with an underscore may speak for itself; so may what is nested in a function."""
    tree = tree_of(module)
    holders: list[ast.Module | ast.ClassDef] = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    silent = [
        f"{module}.{node.name}"
        for holder in holders
        for node in holder.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not (isinstance(holder, ast.ClassDef) and holder.name.startswith("_"))
        and ast.get_docstring(node) is None
    ]
    assert silent == []
