"""A lesson as one HTML page that needs no network, and no script to be read."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files

from steprule.charts import Element, figure, number
from steprule.charts import style as charts_style
from steprule.lessons import LESSONS, find
from steprule.lessons.formula import formula_html, source_html, symbol_html, symbols_html
from steprule.lessons.glossary import TERMS
from steprule.lessons.lesson import Control, Lesson, Question, Screen

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header><p class="number">{number}</p><h1>{title}</h1></header>
<main>
{body}
</main>
<script type="application/json" id="positions">{positions}</script>
<script>
{script}</script>
</body>
</html>
"""


def page(name: str) -> str:
    """The page of the lesson of that name.

    Raises:
        ValueError: there is no such lesson.
    """
    lesson = find(name)
    screens = [lesson.screen(*position) for position in lesson.positions()]
    names = [[(chart.title, *(mark.name for mark in chart.marks)) for chart in screen.charts] for screen in screens]
    if any(one != names[0] for one in names):
        raise ValueError("the titles or names of charts differ between positions; say what differs in the reading")
    drawn = [_elements(screen) for screen in screens]
    slots = _slots(drawn)
    return _PAGE.format(
        title=escape(lesson.title),
        number=f"steprule lesson {LESSONS.index(name) + 1}: {escape(name)}",
        style=charts_style() + _file("page.css"),
        body=_body(lesson, screens[lesson.initial()], {place for place, _ in slots}),
        positions=json.dumps(_positions(lesson, drawn, slots), separators=(",", ":")).replace("<", "\\u003c"),
        script=_file("page.js"),
    )


def _file(name: str) -> str:
    return files("steprule.lessons").joinpath(name).read_text(encoding="utf-8")


# What differs between positions


def _elements(screen: Screen) -> list[Element]:
    """All elements that may differ from position to position."""
    charts = [element for chart in screen.charts for element in chart.elements()]
    return [*charts, Element("p", {"class": "reading"}, screen.reading)]


def _slots(drawn: Sequence[list[Element]]) -> list[tuple[int, str]]:
    """Each element by its place, and the attribute (empty for the text) that is not the same at all positions."""
    first = drawn[0]
    for elements in drawn:
        shapes = [(element.tag, element.attributes.keys()) for element in elements]
        if shapes != [(element.tag, element.attributes.keys()) for element in first]:
            raise ValueError("the charts of two positions have other marks; draw what is not there with no points")
    found = []
    for place, element in enumerate(first):
        for attribute, value in [("", element.text), *element.attributes.items()]:
            if any(_value(elements[place], attribute) != value for elements in drawn):
                found.append((place, attribute))
    return found


def _value(element: Element, attribute: str) -> str:
    return element.attributes[attribute] if attribute else element.text


def _positions(lesson: Lesson, drawn: Sequence[list[Element]], slots: Sequence[tuple[int, str]]) -> dict[str, object]:
    """What the page's script puts where: texts that are used several times are kept once."""
    pool: dict[str, int] = {}
    positions = [
        [pool.setdefault(_value(elements[place], attribute), len(pool)) for place, attribute in slots]
        for elements in drawn
    ]
    return {
        "names": [[_name(value) for value in control.values] for control in lesson.controls],
        "slots": [[f"e{place}", attribute] for place, attribute in slots],
        "pool": list(pool),
        "positions": positions,
    }


def _name(value: object) -> str:
    return value if isinstance(value, str) else number(float(str(value)), 6)


# The page's parts


def _body(lesson: Lesson, screen: Screen, changing: Collection[int]) -> str:
    terms = _Terms()
    text = "\n".join(_paragraph(one, terms) for one in lesson.text)
    questions = "\n".join(_question(index, one, terms) for index, one in enumerate(lesson.questions()))
    formulas = "\n".join(
        f"<h3>{escape(title)}</h3>{formula_html(rule, lesson.controls)}" for title, rule in lesson.formulas.items()
    )
    return f"""<p class="question-of-lesson">{terms.prose(lesson.question)}</p>
{_screen(lesson, screen, changing)}
{text}
<h2>The formula, and the code that runs</h2>
<div class="both"><div>{formulas}
{symbols_html(lesson)}</div>
<div><h3>As steprule runs it</h3>
{f"<p>{terms.prose(lesson.about_code, False)}</p>" if lesson.about_code else ""}
{source_html(lesson.sources, lesson.controls)}</div></div>
<h2>Try it</h2>
<pre tabindex="0"><code>{escape(lesson.try_it.strip(), quote=False)}</code></pre>
<p>It prints:</p>
<pre tabindex="0"><samp>{escape(lesson.output.strip(), quote=False)}</samp></pre>
<h2>What usually goes wrong</h2>
<ul>{"".join(f"<li>{terms.prose(one)}</li>" for one in lesson.wrong)}</ul>
<h2>Three questions</h2>
{questions}
<h2>References</h2>
<ul>{"".join(f"<li>{terms.prose(one, False)}</li>" for one in lesson.references)}</ul>
<h2>Glossary</h2>
<dl>{terms.list()}</dl>"""


_EMPHASIS = re.compile(r"(`[^`]+`)|\*((?=[^\s*])(?:`[^`]+`|[^*`])+)\*")
"""Code, in which a star is a star, or what stands between stars, with code in it or not."""


class _Terms:
    """Turns texts into HTML, and links each term of the glossary where it comes first."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        words = "|".join(re.escape(term) for term in sorted(TERMS, key=len, reverse=True))
        self._pattern = re.compile(rf"(`[^`]+`)|\b({words})(s?)\b", re.IGNORECASE)
        self._by_word = {term.lower(): term for term in TERMS}

    def prose(self, text: str, link: bool = True) -> str:
        """A text as HTML."""
        if link:
            text = self._pattern.sub(self._link, text)
        html = re.sub(_EMPHASIS, lambda found: found[1] or f"<em>{found[2]}</em>", escape(text, quote=False))
        html = re.sub(r"`([^`]+)`", r"<code>\1</code>", html)
        return re.sub("\x01(.*?)\x02(.*?)\x03", r'<a class="term" href="#\1">\2</a>', html)

    def _link(self, found: re.Match[str]) -> str:
        term = self._by_word.get((found[2] or "").lower())
        if term is None or term in self.seen:
            return found[0]
        self.seen.append(term)
        return f"\x01{_anchor(term)}\x02{found[0]}\x03"

    def list(self) -> str:
        """The terms that were linked, and what they mean."""
        return "".join(
            f'<dt id="{_anchor(term)}">{escape(term)}</dt><dd>{escape(TERMS[term], quote=False)}</dd>'
            for term in sorted(self.seen, key=str.lower)
        )


def _anchor(term: str) -> str:
    return "term-" + re.sub(r"\W+", "-", term.lower())


def _paragraph(text: str, terms: _Terms) -> str:
    if text.startswith("## "):
        return f"<h2>{terms.prose(text[3:], False)}</h2>"
    return f"<p>{terms.prose(text)}</p>"


def _screen(lesson: Lesson, screen: Screen, changing: Collection[int]) -> str:
    """Controls, charts and the sentence below."""
    parts, place = [], 0
    for chart in screen.charts:
        elements = chart.elements()
        parts.append(figure(chart, elements, place, changing))
        place += len(elements)
    controls = "".join(_control(index, control) for index, control in enumerate(lesson.controls))
    initial = ", ".join(f"{control.label} {_name(control.initial)}" for control in lesson.controls)
    return f"""<section class="screen" aria-label="Charts">
<div class="controls" hidden>{controls}</div>
<noscript><p>Without JavaScript the charts stand still, at {escape(initial)}.</p></noscript>
<div class="charts{" two" * (len(screen.charts) in (2, 4))}">{"".join(parts)}</div>
<p class="reading" id="e{place}" aria-live="polite">{escape(screen.reading, quote=False)}</p>
</section>"""


def _control(index: int, control: Control) -> str:
    symbol = symbol_html(control.symbol) or (f"<code>{escape(control.source)}</code>" if control.source else "")
    label = escape(control.label) + (f' <mark class="k{index}">{symbol}</mark>' if symbol else "")
    initial = list(control.values).index(control.initial)
    if control.is_choice:
        choices = "".join(
            f'<label><input type="radio" name="c{index}" value="{place}"{" checked" * (place == initial)}> {escape(value)}</label>'
            for place, value in enumerate(control.values)
        )
        return f'<fieldset class="control"><legend>{label}</legend><div class="choices">{choices}</div></fieldset>'
    name = _name(control.initial)
    return f"""<div class="control"><label for="c{index}">{label} = <output for="c{index}">{name}</output></label>
<input type="range" id="c{index}" min="0" max="{len(control.values) - 1}" step="1" value="{initial}" aria-valuetext="{name}"></div>"""


def _question(index: int, question: Question, terms: _Terms) -> str:
    answer = question.answer if isinstance(question.answer, str) else repr(float(question.answer))
    told = question.answer if isinstance(question.answer, str) else number(float(question.answer))
    text, why = terms.prose(question.text), re.sub("[`*]", "", question.why)
    data = f'data-answer="{escape(answer)}" data-why="{escape(why)}"'
    if question.choices:
        choices = "".join(
            f'<label><input type="radio" name="q{index}" value="{escape(one)}"> {terms.prose(one, False)}</label>'
            for one in question.choices
        )
        asked = f"<fieldset><legend>{index + 1}. {text}</legend>{choices}</fieldset>"
    else:
        data += f' data-within="{question.within}"'
        asked = (
            f'<p><label for="q{index}">{index + 1}. {text}</label></p>'
            f'<input type="text" id="q{index}" inputmode="decimal" autocomplete="off">'
        )
    return f"""<form class="question" {data}>{asked}
<button hidden>Check</button> <span class="told" role="status"></span>
<details><summary>The answer</summary><p>{escape(told)}. {terms.prose(question.why, False)}</p></details></form>"""
