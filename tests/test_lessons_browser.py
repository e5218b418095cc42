"""The lessons' pages in a real browser."""

import re

import browser
import pytest
from test_lessons import page

from steprule.lessons import LESSONS, find

every = pytest.mark.parametrize("name", LESSONS)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.PATH is None:
        pytest.skip("no Chromium or Chrome was found")
    with browser.running(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def written(tmp_path, tab):
    def write(name):
        path = tmp_path / f"{name}.html"
        path.write_text(page(name), encoding="utf-8")
        return path

    tab.errors.clear(), tab.requests.clear()
    yield write
    assert tab.errors == []
    assert [one for one in tab.requests if not one.startswith("file:")] == []


SHOWN = "JSON.stringify([...document.querySelectorAll('.screen svg *, .reading')].map(e => [...e.attributes].map(a => a.value).join() + e.textContent))"


@every
def test_controls_move_the_charts_by_keyboard(tab, written, name):
    tab.open(written(name))
    for index, control in enumerate(find(name).controls):
        before = tab.value(SHOWN)
        tab.value(
            f"document.querySelectorAll('.control')[{index}].querySelector('input[type=range], :checked').focus()"
        )
        at_end = control.values.index(control.initial) == len(control.values) - 1
        tab.press(*(("ArrowLeft", 37) if at_end else ("ArrowRight", 39)))
        assert tab.value(SHOWN) != before, control.label
        tab.press(*(("ArrowRight", 39) if at_end else ("ArrowLeft", 37)))
        assert tab.value(SHOWN) == before, control.label


@every
def test_without_script_the_first_position_is_shown(tab, written, name):
    path = written(name)
    tab.open(path)
    with_script = tab.value(SHOWN)
    tab.open(path, script=False)
    assert tab.value(SHOWN) == with_script
    assert tab.value("document.querySelector('.controls').hidden")
    assert tab.value("document.querySelector('noscript').offsetHeight") > 0


@every
@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_questions_are_checked(tab, written, name, right):
    tab.open(written(name))
    for index, question in enumerate(find(name).questions()):
        form = f"document.querySelectorAll('.question')[{index}]"
        if question.choices:
            wrong = next(one for one in question.choices if one != question.answer)
            answer = question.choices.index(question.answer if right else wrong)
            tab.value(f"{form}.querySelectorAll('input')[{answer}].click()")
        else:
            tab.value(f"{form}.querySelector('input').focus()")
            tab.type(repr(question.answer if right else question.answer * 1.5 + 1))
        tab.value(f"{form}.querySelector('button').click()")
        told = tab.value(f"{form}.querySelector('.told').textContent")
        assert told.startswith("Right. " if right else "Not yet."), question.text
        assert not right or told == "Right. " + re.sub("[`*]", "", question.why)


@pytest.mark.parametrize(
    ("typed", "right"),
    [("1/128", True), ("0,0078125", True), ("", False), ("1/", False), ("/128", False), ("x", False)],
)
def test_numbers_may_be_typed_as_fractions(tab, written, typed, right):
    tab.open(written("bytes"))
    form = "document.querySelector('.question')"
    tab.value(f"{form}.querySelector('input').focus()")
    tab.type(typed)
    tab.value(f"{form}.querySelector('button').click()")
    assert tab.value(f"{form}.querySelector('.told').className") == f"told {'right' if right else 'wrong'}"


@every
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(tab, written, name, scheme):
    tab.open(written(name), width=390, scheme=scheme)
    assert tab.value("document.documentElement.scrollWidth") <= 390
    wide = "[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > 390.5 && !e.closest('pre, .scroll, svg')).map(e => e.outerHTML.slice(0, 80))"
    assert tab.value(wide) == []
    cut = """[...document.querySelectorAll('.chart > svg')].flatMap(svg => { const box = svg.getBoundingClientRect();
        return [...svg.querySelectorAll('text')].filter(e => { const b = e.getBoundingClientRect();
        return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1; })
        .map(e => e.textContent); })"""
    assert tab.value(cut) == []
    assert tab.value("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 24, 29)"
    )
