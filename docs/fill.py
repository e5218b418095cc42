"""Puts recorded numbers, and what the code says of itself, into texts: README.md and the pages of docs.

    python docs/fill.py            # rewrites what has changed
    python docs/fill.py --check    # names what would change, and fails if there is any

What stands between a line `<!-- figures: NAME -->` and the next line `<!-- end -->` is made of benchmarks/*.json by the
function of that name in benchmarks/figures. After `<!-- code: MODULE.FUNCTION -->` it is made of the source by that function
in tools/site, which is given the rest of the line, if any: `<!-- code: texts.api Rules -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tools" / "site")]

from figures import FIGURES  # noqa: E402
from record import Records  # noqa: E402

MARK = re.compile(r"^<!-- (figures:|code:|end\b)(.*)-->$", re.MULTILINE)


def texts() -> list[Path]:
    """All texts that may have figures."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str, records: Mapping[str, Any]) -> str:
    """A text with the figures of these records, and what the code says.

    Raises:
        ValueError: a region has no end or no begin, or there is no such figure or function.
    """
    kept, at = [], 0
    marks = list(MARK.finditer(text))
    for begin, end in zip(marks[::2], [*marks[1::2], None], strict=False):
        line, name = text.count("\n", 0, begin.start()) + 1, begin[2].strip()
        if begin[1] == "end":
            raise ValueError(f"line {line}: {begin[0]!r} ends nothing")
        if end is None or end[1] != "end":
            raise ValueError(f"line {line}: {begin[0]!r} has no end")
        try:
            found = figure(name, records) if begin[1] == "figures:" else said(name)
        except LookupError as error:
            raise ValueError(f"line {line}: {error.args[0]}") from error
        kept += [text[at : begin.end()], "\n\n", found, "\n\n"]
        at = end.start()
    return "".join([*kept, text[at:]])


def figure(name: str, records: Mapping[str, Any]) -> str:
    """A figure of these records."""
    if name not in FIGURES:
        raise LookupError(f"there is no figure {name!r}; choose from {', '.join(sorted(FIGURES))}")
    return str(FIGURES[name](records))


@cache
def said(name: str) -> str:
    """What a function of tools/site makes of the source."""
    place, _, given = name.partition(" ")
    module, _, function = place.partition(".")
    if not (ROOT / "tools" / "site" / f"{module}.py").is_file() or not hasattr(import_module(module), function):
        raise LookupError(f"tools/site has no function {place!r}")
    return str(getattr(import_module(module), function)(*filter(None, [given])))


def stale(records: Mapping[str, Any]) -> dict[Path, str]:
    """The texts that are not what records and code say, with what they should be."""
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
