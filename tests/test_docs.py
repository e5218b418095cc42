"""docs/optimizers.md says what the rules are now."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_of_optimizers_is_up_to_date(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    from make_optimizers import page

    assert (DOCS / "optimizers.md").read_text() == page(), "run: make docs"
