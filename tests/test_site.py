"""The documentation: its code runs, and what is made from the rules can be made. `make docs` builds the site and checks its links.

In a page all blocks marked ``python`` run one after the other, as one program. A block marked ``text`` with the title
"Output" is what the one before it prints. Blocks marked ``pycon`` are sessions whose answers are compared. What cannot run here, such
as a signature, is marked ``{ .python .no-run }``.
"""

import contextlib
import doctest
import io
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent / "docs"
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES = ["../README.md", "../CONTRIBUTING.md"] + sorted(
    str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md") if path.name != "optimizers.md"
)


def blocks(page):
    """Each block's mark and code."""
    found = FENCE.findall((DOCS / page).read_text(encoding="utf-8"))
    return [(mark.strip(), re.sub(f"^{indent}", "", code, flags=re.MULTILINE)) for indent, mark, code in found]


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace, printed = {"__name__": "__main__"}, None
    for number, (mark, code) in enumerate(blocks(page)):
        if mark == "python":
            told = io.StringIO()
            with contextlib.redirect_stdout(told):
                exec(compile(code, f"{page}, block {number}", "exec"), namespace)
            printed = told.getvalue()
        elif mark == 'text title="Output"':
            assert printed is not None, "there is no program before this output"
            assert [line.rstrip() for line in printed.strip("\n").split("\n")] == code.rstrip("\n").split("\n")
        elif mark == "pycon":
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            runner.run(doctest.DocTestParser().get_doctest(code, namespace, page, page, number), clear_globs=False)
            assert runner.failures == 0


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    known = re.compile(r"python|pycon|bash|toml|text( title=\"Output\")?|\{ \.python \.no-run \}")
    assert [mark for mark, _ in blocks(page) if not known.fullmatch(mark)] == []
