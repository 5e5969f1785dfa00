"""A watchfiles loop over a tree, and nothing else: what it costs to be told of changes at all."""

import sys

import watchfiles


def main() -> None:
    """Watch what the command line says, for ever."""
    # It says nothing when it has begun to watch, but that time has passed without a change it says only after that.
    waiting = watchfiles.watch(sys.argv[1], yield_on_timeout=True)
    next(waiting)
    print("watching", flush=True)
    for _ in waiting:
        pass


if __name__ == "__main__":
    main()
