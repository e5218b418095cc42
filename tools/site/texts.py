"""Pages that are texts of the repository."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
BLOB = "https://github.com/steprule/steprule/blob/main/"


def index() -> str:
    """The README, with links into the site."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return text.replace(f"{BLOB}docs/", "").replace(f"{BLOB}CONTRIBUTING.md", "project/contributing.md")


def contributing() -> str:
    """CONTRIBUTING.md, with links into the site."""
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").replace(f"{BLOB}docs/", "../")


def changelog() -> str:
    """CHANGELOG.md."""
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").replace(f"{BLOB}docs/", "../")
