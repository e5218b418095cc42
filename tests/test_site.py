"""The documentation: its code runs, and what is made from the rules can be made. `make docs` builds the site and checks its links.

In a page all blocks marked ``python`` run one after the other, as one program. A block marked ``text`` with the title
"Output" is what the one before it prints. Blocks marked ``pycon`` are sessions whose answers are compared. What cannot run here, such
as a signature, is marked ``{ .python .no-run }``; a title beside that is the package with which tests/frameworks run it.
"""

import contextlib
import doctest
import io
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("latex2mathml")

from steprule.docstrings import words_of
from steprule.formula import formula_text
from steprule.lessons.formula import source_of
from steprule.lessons.glossary import TERMS
from steprule.rules import OWN

DOCS = Path(__file__).parent.parent / "docs"
FENCE = re.compile(r"^( *)```(.*?)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
PAGES = ["../README.md", "../CONTRIBUTING.md"] + sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))


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
            session = doctest.DocTestParser().get_doctest(code, namespace, page, page, number)
            runner.run(session, clear_globs=False)
            namespace.update(session.globs)
            assert runner.failures == 0


@pytest.mark.parametrize("page", PAGES)
def test_every_block_says_what_it_is(page):
    known = re.compile(r"python|pycon|bash|toml|text( title=\"Output\")?|\{ \.python \.no-run( title=\"\w+\")? \}")
    assert [mark for mark, _ in blocks(page) if not known.fullmatch(mark)] == []


@pytest.mark.parametrize("name", OWN)
def test_the_page_of_an_optimizer_says_what_the_rule_is(name, monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS.parent / "tools" / "site"), *sys.path])
    import optimizers

    monkeypatch.setattr(optimizers, "curve", lambda rule: "")  # which takes ten trainings
    rule = OWN[name]
    text = optimizers.page(rule, [{"peer": "other", "agrees": False, "why": "Another.", "options": {"cautious": True}}])
    assert text.startswith(f"# {rule.__name__}\n")
    assert formula_text(rule) in text and "<math" in text and source_of(rule.function()) in text
    for one, value in rule.hyperparameters.items():
        assert f"| `{one}` | `{value!r}` | {words_of(rule, one)} |" in text
    for state in rule.states:
        assert f"| `{state}` | " in text
    assert "With `cautious=True` it differs from `other`. That one: Another." in text
    assert ("same arguments, errors, states and checkpoints" in text) == (rule.like_torch is not None)


def test_a_page_says_for_which_arguments_another_implementation_agrees(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS.parent / "tools" / "site"), *sys.path])
    import optimizers

    def compared(agrees, **extra):
        return {"peer": "other", "agrees": agrees, "why": "Another.", "options": {"lr": 1.0}, **extra}

    peers = [
        compared(True, peer_options={"lr": 1.0, "eps": 0.0}),
        compared(False, peer_options={"lr": 1.0, "eps": 0.1}),
        compared(False, peer_options={"lr": 1.0}),
        compared(False, peer_options={"lr": 1.0, "eps": 0.0}, lrs=[1.0, 0.5]),
    ]
    assert optimizers._others(OWN["lion"], peers).splitlines()[:4] == [
        "- It agrees over 20 steps with `other` given `eps=0.0`.",
        "- It differs from `other` given `eps=0.1`. That one: Another.",
        "- It differs from `other` without `eps=0.0`. That one: Another.",
        "- It differs from `other` given a learning rate that changes. That one: Another.",
    ]


def test_a_bar_in_a_cell_does_not_end_it(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(DOCS.parent / "tools" / "site"), *sys.path])
    import texts

    for line in texts.instead().splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) == 3


def test_the_glossary_defines_a_word_once():
    table = re.findall(
        r"^\| ([a-z ]+) \| ", (DOCS / "reference" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    words = [word.lower() for word in (*TERMS, *table) if word != "word"]
    assert len(table) > 10 and sorted(set(words)) == sorted(words)


def test_every_scenario_of_several_processes_names_a_test_that_is_there():
    rows = [line for line in (DOCS / "project" / "scenarios.md").read_text().splitlines() if line.startswith("| ")][1:]
    for row in rows:
        cell = row.split("|")[-2]
        named = re.findall(r"`([\w/]+\.py):(\w+)`", cell)
        assert named or cell.strip() == "none", row
        for file, function in named:
            assert re.search(rf"^def {function}\(", (DOCS.parent / "tests" / file).read_text(), re.MULTILINE), (
                file,
                function,
            )
