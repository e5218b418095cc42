"""Pages that are texts of the repository."""

from __future__ import annotations

import ast
from pathlib import Path

from steprule.trace.instead import INSTEAD

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


def modules() -> str:
    """Each folder of the source, and the first sentence of each file in it."""
    source = ROOT / "src" / "steprule"
    parts = []
    for folder in (source, *sorted(path for path in source.iterdir() if (path / "__init__.py").is_file())):
        rows = [
            f"| `{path.relative_to(source)}` | {_first_sentence(path)} |"
            for path in sorted(folder.glob("*.py"))
            if path.name != "__init__.py"
        ]
        name = "steprule" if folder == source else folder.name
        parts += [
            f"### {name}",
            _first_sentence(folder / "__init__.py"),
            "\n".join(["| file | what it is |", "|---|---|", *rows]),
        ]
    return "\n\n".join(parts)


def _first_sentence(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return doc.split("\n\n")[0].replace("\n", " ")


def instead() -> str:
    """What a formula has in place of methods and functions of torch and NumPy."""
    by_answer: dict[str, list[str]] = {}
    for name, answer in INSTEAD.items():
        by_answer.setdefault(answer, []).append(name)
    rows = [f"| {', '.join(f'`{name}`' for name in names)} | {answer} |" for answer, names in by_answer.items()]
    return "\n".join(["| you would write | in a formula |", "|---|---|", *rows])
