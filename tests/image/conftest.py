"""The figures that the tests of the image take on the way, shown when they have ended."""

import pytest

FIGURES = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> dict[str, str]:
    """What was measured, by what it is; shown in this order."""
    return pytestconfig.stash.setdefault(FIGURES, {})


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Show them."""
    if figures := config.stash.get(FIGURES, {}):
        terminalreporter.section("the image")
        for what, figure in figures.items():
            terminalreporter.write_line(f"{what:<22} {figure}")
