"""docs/configuration.md is made from the schema and is not behind it."""

import runpy
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_current() -> None:
    page = runpy.run_path(str(DOCS / "make_configuration.py"))["page"]
    assert (DOCS / "configuration.md").read_text(encoding="utf-8") == page(), "run: python docs/make_configuration.py"
