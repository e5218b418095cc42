"""Puts recorded numbers into texts: README.md and the pages of docs.

    python docs/fill.py            # rewrites what has changed
    python docs/fill.py --check    # names what would change, and fails if there is any

What stands between a line `<!-- figures: NAME -->` and the next line `<!-- end -->` is made of benchmarks/*.json by the
function of that name in benchmarks/figures.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from figures import FIGURES  # noqa: E402
from record import Records  # noqa: E402

MARK = re.compile(r"^<!-- (figures:|end\b)(.*)-->$", re.MULTILINE)


def texts() -> list[Path]:
    """All texts that may have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str, records: Mapping[str, Any]) -> str:
    """A text with the figures of these records.

    Raises:
        ValueError: a region has no end or no begin, or there is no such figure.
    """
    kept, at = [], 0
    marks = list(MARK.finditer(text))
    for begin, end in zip(marks[::2], [*marks[1::2], None], strict=False):
        line, name = text.count("\n", 0, begin.start()) + 1, begin[2].strip()
        if begin[1] == "end":
            raise ValueError(f"line {line}: {begin[0]!r} ends nothing")
        if end is None or end[1] != "end":
            raise ValueError(f"line {line}: {begin[0]!r} has no end")
        if name not in FIGURES:
            raise ValueError(f"line {line}: there is no figure {name!r}; choose from {', '.join(sorted(FIGURES))}")
        kept += [text[at : begin.end()], "\n\n", FIGURES[name](records), "\n\n"]
        at = end.start()
    return "".join([*kept, text[at:]])


def stale(records: Mapping[str, Any]) -> dict[Path, str]:
    """The texts whose figures are not those of the records, with what they should be."""
    found = {}
    for path in texts():
        before = path.read_text(encoding="utf-8")
        try:
            after = filled(before, records)
        except ValueError as error:
            raise ValueError(f"{path.relative_to(ROOT)}, {error}") from error
        if after != before:
            found[path] = after
    return found


def main() -> None:
    """Rewrites the texts, or checks them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a text is not up to date")
    options = parser.parse_args()
    found = stale(Records())
    for path, text in found.items():
        print(path.relative_to(ROOT))
        if not options.check:
            path.write_text(text, encoding="utf-8")
    if options.check and found:
        sys.exit("these are not up to date: run python docs/fill.py")


if __name__ == "__main__":
    main()
