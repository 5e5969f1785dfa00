"""trackwatch turns music libraries into a stream of events that never lies and never loses one."""

__version__ = "0.1.0"
