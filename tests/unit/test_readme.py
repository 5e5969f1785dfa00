"""The README tells newcomers what is true."""

from pathlib import Path

import pytest

from trackwatch.settings import explain

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", [name for name, _, _ in explain()])
def test_the_readme_names_every_setting(name: str) -> None:
    """As a whole word in code style, so that RABBITMQ_PASS is not found in RABBITMQ_PASS_FILE."""
    assert f"`{name}`" in README.read_text(encoding="utf-8")
