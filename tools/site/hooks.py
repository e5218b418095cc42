"""What MkDocs calls while it builds the site: pages that are made from the code, and places in others that are filled from it.

What only the site can show stands in a page between a line ``<!-- site`` and a line ``-->``, so that a reader of the repository
does not see it. There ``{{ optimizers.choose }}``, on a line of its own, is where the result of that function goes, and
``::: steprule.pieces`` where docstrings go. What is in the repository as well, docs/fill.py puts in.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import combinations
import commands
import learn
import optimizers
import options
import texts
from mkdocs.structure.files import File, Files

from steprule import charts
from steprule.lessons.formula import equations_html

_HIDDEN = re.compile(r"^<!-- site\n(.*?)^-->$", re.MULTILINE | re.DOTALL)
_PLACE = re.compile(r"^\{\{ (\w+)\.(\w+) \}\}$", re.MULTILINE)
_FORMULA = re.compile(r"^\$\$\n(.*?)\n\$\$$", re.MULTILINE | re.DOTALL)
_MODULES = {module.__name__: module for module in (combinations, learn, optimizers, options, texts)}


def on_config(config: Any) -> Any:
    """Puts the pages of optimizers into the navigation."""
    reference = next(tab["Reference"] for tab in config.nav if "Reference" in tab)
    entry = next(entry for entry in reference if "Optimizers" in entry)
    entry["Optimizers"] = ["reference/optimizers/index.md", *optimizers.addresses()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds what is made."""
    made = {**optimizers.pages(), **learn.pages(), "reference/commands.md": commands.page()}
    made["index.md"] = texts.index()
    made["charts.css"] = charts.style()
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **context: Any) -> str:
    """Uncovers and fills the places, and turns formulas between lines of ``$$`` into MathML, an equation a line."""
    markdown = _HIDDEN.sub(r"\1", markdown)
    markdown = _FORMULA.sub(
        lambda found: equations_html(found[1].replace(" = ", " &= ").replace("\n", " \\\\\n")), markdown
    )
    return _PLACE.sub(lambda found: _made(found[1], found[2]), markdown)


def _made(module: str, function: str) -> str:
    make: Callable[[], str] = getattr(_MODULES[module], function)
    return make()
