"""Where the state folder is: the one setting that `status` needs, apart from the others, which take long to load."""

import os
from pathlib import Path

from trackwatch.errors import ConfigError

VARIABLE = "TRACKWATCH_STATE_DIR"


def parse(value: object) -> Path:
    """Read the state folder; an empty value is the default one. Raises ValueError when there is no home for that."""
    text = os.path.expanduser(str(value))
    if not text:
        # The XDG specification: what is not absolute is to be ignored.
        xdg = os.environ.get("XDG_STATE_HOME", "")
        text = os.path.join(xdg if os.path.isabs(xdg) else os.path.expanduser("~/.local/state"), "trackwatch")
        if not os.path.isabs(text):
            raise ValueError(f"there is no home directory for the state; set {VARIABLE}")
    return Path(os.path.abspath(text))


def state_dir(flag: str | None = None) -> Path:
    """Return the state folder alone, for commands that look at the state of a daemon and need no root.

    Raises:
        ConfigError: there is no home directory to keep it in.
    """
    try:
        return parse(flag or os.environ.get(VARIABLE, ""))
    except ValueError as error:
        raise ConfigError(str(error)) from None
