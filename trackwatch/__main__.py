"""`python -m trackwatch` is the same as `trackwatch`."""

from trackwatch.cli import main

main()
