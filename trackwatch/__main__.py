"""`python -m trackwatch` is the same as `trackwatch`, and both begin here.

Light on purpose: a worker process imports what the main module imports (multiprocessing's `spawn` does that for the
installed command), and needs none of the command line.
"""


def main() -> None:
    """Run the command line."""
    from trackwatch.cli import main

    main()


if __name__ == "__main__":
    main()
