"""Call a function of another module in a process of its own, so that what is measured in turn leaves nothing behind.

Light on purpose: a worker process imports what the main module imports (multiprocessing's `spawn` does that), and here
it is to be as small, and to start as fast, as one of the installed command.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

DEADLINE_S = 1800.0


@contextmanager
def running(command: Sequence[str]) -> Iterator["subprocess.Popen[str]"]:
    """Run a command, which leads a session of its own; whatever of it is left at the end of the scope is killed."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def calling(function: Callable[..., object], *arguments: object) -> list[str]:
    """Return the command that calls a module's function, with arguments that JSON can hold."""
    module, main = function.__module__, sys.modules["__main__"].__spec__
    if module == "__main__" and main is not None:
        module = main.name  # as which it was started (python -m)
    return [sys.executable, "-m", "tests.bench.apart", module, function.__name__, json.dumps(arguments)]


def result(process: "subprocess.Popen[str]") -> Any:
    """Wait for a process and return its last line, which is JSON.

    Raises:
        CalledProcessError: it has failed, and said why on standard error.
    """
    said, _ = process.communicate(timeout=DEADLINE_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    return json.loads(said.splitlines()[-1])


def call(function: Callable[..., object], *arguments: object) -> Any:
    """Call a module's function and return what it returns, as JSON makes it."""
    with running(calling(function, *arguments)) as process:
        return result(process)


def main() -> None:
    """Call what the command line says."""
    module, name, arguments = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), name)(*json.loads(arguments))))


if __name__ == "__main__":
    main()
