"""Every lesson: its page, and whether all that it states is what the code computes."""

import contextlib
import io
import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("sklearn")

from typer.testing import CliRunner

from steprule import arrays
from steprule.charts import Axis, Bars, Chart, Line, number
from steprule.cli import app
from steprule.lessons import LESSONS, find
from steprule.lessons.glossary import TERMS
from steprule.lessons.lesson import Control, Question, Screen
from steprule.lessons.page import _slots, _Terms, page

page = cache(page)
every = pytest.mark.parametrize("name", LESSONS)


class Elements(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def texts(lesson):
    """All that a lesson says in words."""
    questions = [part for one in lesson.questions() for part in (one.text, one.why, *one.choices)]
    return [lesson.question, *lesson.text, *lesson.wrong, *questions]


NUMBER = r"\u2212?\d+(?:,\d{3})*(?:\.\d+)?"


def numbers(text):
    return [found[0] for found in re.finditer(rf"(?<![\w.]){NUMBER}", text)]


def read(text):
    return float(text.replace("\u2212", "-").replace(",", ""))


@every
def test_the_page_is_small_and_loads_nothing(name):
    text = page(name)
    assert len(text.encode()) < 1_000_000
    elements = Elements(text).found
    loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
    references = [attributes[one] for _, attributes in elements for one in loading if attributes.get(one)]
    assert [one for one in references if not one.startswith("#")] == []
    assert "default-src 'none'" in text  # the browser itself refuses to load anything
    assert "@import" not in text and not re.search(r"url\((?!#)", text)


@every
def test_ids_are_unique_and_references_lead_somewhere(name):
    elements = Elements(page(name)).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["href"][1:] for tag, attributes in elements if tag == "a"}
    wanted |= {attributes["for"] for tag, attributes in elements if "for" in attributes}
    assert wanted <= set(ids)


@every
def test_the_program_prints_what_the_page_says(name):
    lesson, printed = find(name), io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(lesson.try_it, f"<{name}>", "exec"), {})
    assert printed.getvalue().strip() == lesson.output.strip()


@every
def test_numbers_in_texts_are_those_that_the_code_computes(name):
    lesson = find(name)
    everything = "\n".join(texts(lesson))
    for phrase, value in lesson.claims().items():
        assert phrase in everything, phrase
        stated = numbers(phrase)[-1]
        digits = len(stated.partition(".")[2])
        assert read(stated) == round(value, digits), f"{phrase!r}: the code computes {value}"


@every
def test_every_number_in_a_text_is_claimed_or_given(name):
    lesson = find(name)
    claims = lesson.claims()
    claimed = {0.0, 1.0, 2.0, 3.0, *(read(numbers(phrase)[-1]) for phrase in claims)}
    left = []
    for text in texts(lesson):
        for phrase in claims:
            text = text.replace(phrase, "")
        left += [one for one in numbers(re.sub("`[^`]*`", "", text)) if read(one) not in claimed]
    assert [one for one in left if read(one) not in lesson.given] == [], "claim these, or say that they are given"
    assert [one for one in lesson.given if one not in map(read, left)] == [], "these need not be given"


@every
def test_three_questions_whose_answers_are_on_the_page(name):
    questions = find(name).questions()
    assert len(questions) == 3
    forms = [attributes for tag, attributes in Elements(page(name)).found if tag == "form"]
    for form, question in zip(forms, questions, strict=True):
        if question.choices:
            assert form["data-answer"] == question.answer
            assert len(question.choices) == len(set(question.choices)) > 1
        else:
            assert float(form["data-answer"]) == question.answer
            assert float(form["data-within"]) <= 0.1


ANSWERS = {
    "noise": (0.5, 800, "nearly the same loss"),
    "averages": (5, 50, "It becomes smoother and follows a change later"),
    "momentum": (0.1, 0.04, "a smaller momentum"),
    "rmsprop": (0.1, "They stay as they are", "plain SGD"),
    "adam": (0.002, "They stay nearly the same", 10),
    "decay": ("those with small gradients", 0.999, "yes"),
    "schedules": (0.0025, 0.01, "the average of the weights"),
    "scale": (0.02, 0.075, "They stay the same"),
    "bytes": (1 / 128, 1 / 8, "only that of 0.01"),
    "muon": (0.296, 10, "They stay as they are"),
    "soap": (2, "Shampoo", 3400),
    "norms": (5, 0.1, "it becomes half as large"),
}
"""What the answers are on paper."""


@every
def test_the_answers_are_those_on_paper(name):
    for question, answer in zip(find(name).questions(), ANSWERS[name], strict=True):
        assert question.answer == (answer if isinstance(answer, str) else pytest.approx(answer, rel=1e-6))


@every
def test_controls_have_their_symbol_in_formula_and_source(name):
    pytest.importorskip("latex2mathml")
    lesson, text = find(name), page(name)
    formula = "".join(re.findall(r'<table class="formula".*?</table>', text, re.DOTALL))
    sources = "".join(re.findall(r"<pre[^>]*>.*?</pre>", text, re.DOTALL))
    for index, control in enumerate(lesson.controls):
        assert not control.symbol or f'class="k k{index}"' in formula, control.label
        assert not control.source or f'<mark class="k{index}">{control.source}</mark>' in sources, control.label
    assert "\\" not in re.sub(r"<[^>]*>", "", formula)


@every
def test_terms_are_linked_once_and_explained(name):
    elements = Elements(page(name)).found
    linked = [attributes["href"] for tag, attributes in elements if tag == "a"]
    assert len(linked) == len(set(linked)) > 3
    assert {f"#{attributes['id']}" for tag, attributes in elements if tag == "dt"} == set(linked)


@every
def test_charts_stay_within_their_axes(name):
    """Of what the first position shows, nearly all is within the axes; and each axis is labelled."""
    lesson = find(name)
    for chart in lesson.screen(*lesson.positions()[lesson.initial()]).charts:
        assert chart.x.label and chart.y.label and chart.title
        places = [
            (chart.x.share(x), chart.y.share(y))
            for mark in chart.marks
            if isinstance(mark, Line) and mark.style != "faint"
            for x, y in zip(mark.x, mark.y, strict=True)
        ]
        within = [one for one in places if min(one) >= -0.01 and max(one) <= 1.01]
        assert len(within) >= 0.7 * len(places)


# What a page shows is what the optimizers of steprule.arrays do, step by step.


def shown(name, chart, line, *values):
    """The points of a line of a chart at one position of the controls, read off the page."""
    lesson, text = find(name), page(name)
    position = lesson.positions().index(values)
    charts = lesson.screen(*values).charts
    before = sum(len(one.elements()) for one in charts[:chart])
    lines = [mark for mark in charts[chart].marks if isinstance(mark, Line) and mark.line]
    index = next(index for index, mark in enumerate(lines) if mark.name == line)
    places = [
        place for place, one in enumerate(charts[chart].elements()) if one.attributes["class"].startswith("line ")
    ]
    data = json.loads(re.search(r'id="positions">(.*?)</script>', text)[1])
    slot = data["slots"].index([f"e{before + places[index]}", "d"])
    path = data["pool"][data["positions"][position][slot]]
    pixels = np.array([point.split() for point in path[1:].split("L")], float)
    return charts[chart], pixels


def drawn(chart, x, y):
    """Where these points are on a chart, in pixels."""
    path = next(
        one
        for one in Chart("", chart.x, chart.y, [Line("", x, y)], chart.labels).elements()
        if one.attributes["class"] == "line s0"
    )
    return np.array([point.split() for point in path.attributes["d"][1:].split("L")], float)


def steps_of(make, start, gradient, count, **settings):
    weights = np.array(start, float)
    optimizer, way = make([weights], **settings), [weights.copy()]
    for step in range(count):
        optimizer.step([np.array(gradient(weights, step), float)])
        way.append(weights.copy())
    return np.array(way)


@pytest.mark.parametrize("lr, momentum", [(0.02, 0.8), (0.002, 0.98), (0.06, 0.0)], ids=["usual", "much", "none"])
def test_momentum_shows_sgd(lr, momentum):
    way = steps_of(arrays.SGD, [-1, 1], lambda w, step: [1, 25] * w, 60, lr=lr, momentum=momentum)
    chart, pixels = shown("momentum", 0, "path", lr, momentum, "sum (heavy ball)")
    assert np.abs(pixels - drawn(chart, way[:, 0], way[:, 1])).max() < 0.2
    if momentum:
        chart, pixels = shown("momentum", 0, "path", 0.04, 0.8, "average (EMA)")
        same = steps_of(arrays.SGD, [-1, 1], lambda w, step: [1, 25] * w, 60, lr=0.04 * (1 - 0.8), momentum=0.8)
        assert np.abs(pixels - drawn(chart, same[:, 0], same[:, 1])).max() < 0.2


def test_the_best_of_the_ravine_is_the_best_of_what_lies_around_it():
    from steprule.lessons.momentum import FLAT, STEEP, factors

    def slowest(lr, momentum):
        return max(abs(factors(lr, momentum, curvature)[0]) for curvature in (FLAT, STEEP))

    best = slowest(1 / 9, 4 / 9)
    assert best == pytest.approx(2 / 3, abs=1e-6)
    around = [(1 / 9 + x, 4 / 9 + y) for x in (-0.01, 0, 0.01) for y in (-0.03, 0, 0.03) if x or y]
    assert min(slowest(*one) for one in around) > best + 0.005


@pytest.mark.parametrize("alpha, eps, degrees", [(0.9, 1e-8, 0), (0.0, 0.1, 45), (0.99, 10.0, 30)], ids=str)
def test_rmsprop_shows_rmsprop(alpha, eps, degrees):
    turned = np.radians(degrees)
    axes = np.array([[np.cos(turned), -np.sin(turned)], [np.sin(turned), np.cos(turned)]])
    curvature = axes @ np.diag([1.0, 25.0]) @ axes.T
    way = steps_of(
        arrays.RMSprop, axes @ [-1.03, 1.03], lambda w, step: curvature @ w, 120, lr=0.05, alpha=alpha, eps=eps
    )
    chart, pixels = shown("rmsprop", 0, "RMSProp", alpha, eps, degrees)
    assert np.abs(pixels - drawn(chart, way[:, 0], way[:, 1])).max() < 0.2


@pytest.mark.parametrize("beta1, beta2", [(0.9, 0.999), (0.0, 0.9)], ids=str)
@pytest.mark.parametrize("kind", ["1 with noise", "a real weight"])
def test_adam_shows_adam(beta1, beta2, kind):
    from steprule.lessons.adam import gradients

    grads = gradients(kind)
    way = steps_of(arrays.Adam, [0.0], lambda w, step: [grads[step]], 60, lr=1.0, betas=(beta1, beta2))
    chart, pixels = shown("adam", 2, "corrected", beta1, beta2, kind)
    assert np.abs(pixels - drawn(chart, np.arange(61), way[:, 0])).max() < 0.2


@pytest.mark.parametrize("lr, decay", [(0.01, 0.1), (0.03, 0.001)], ids=str)
def test_decay_shows_adam_and_adamw(lr, decay):
    noise = np.random.default_rng(0).standard_normal((300, 1, 200)) * [[0.3], [3.0]]
    for make, line in ((arrays.Adam, "L2"), (arrays.AdamW, "decoupled")):
        way = steps_of(make, np.ones((2, 200)), lambda w, step: noise[step], 300, lr=lr, weight_decay=decay)
        left = np.sqrt((way**2).mean(-1))[::5]
        chart, pixels = shown("decay", 1, line, lr, decay)
        assert np.abs(pixels - drawn(chart, left[:, 0], left[:, 1])).max() < 0.2


def test_the_map_of_losses_shows_what_training_gives():
    from steprule.lessons import decay, letters

    pairs, held_out = letters.parts()
    random = np.random.default_rng(0)
    batches = [letters.counts(pairs[random.integers(0, len(pairs), 64)]) for _ in range(200)]
    for make, kind in ((arrays.Adam, "L2"), (arrays.AdamW, "decoupled")):
        way = steps_of(
            make, np.zeros((27, 27)), lambda w, step: letters.gradient(w, batches[step]), 200, lr=0.03, weight_decay=0.1
        )
        assert float(letters.loss(way[-1], held_out)) == pytest.approx(decay.losses(kind)[6, 3])


def test_noise_shows_sgd():
    from steprule.lessons import noise

    count, order, random = 1347, [], np.random.default_rng(0)

    def gradient(weights, step):
        nonlocal order
        order = order if len(order) >= 16 else random.permutation(count)
        chosen, order = order[:16], order[16:]
        return noise.gradient(weights, chosen)

    way = steps_of(arrays.SGD, np.zeros((65, 10)), gradient, 100, lr=0.1)
    assert noise.loss(way[-1]) == pytest.approx(noise.loss_after("batch 16", 0.1, 100))


def test_the_gradients_of_both_models_are_those_of_their_losses():
    from steprule.lessons import letters, noise

    random = np.random.default_rng(1)
    weights, along = random.standard_normal((2, 65, 10)) * 0.1
    slope = (noise.loss(weights + 1e-5 * along) - noise.loss(weights - 1e-5 * along)) / 2e-5
    assert (noise.gradient(weights, slice(None)) * along).sum() == pytest.approx(slope, rel=1e-6)
    weights, along = random.standard_normal((2, 27, 27))
    found = letters.counts(letters.all_pairs())
    slope = (letters.loss(weights + 1e-5 * along, found) - letters.loss(weights - 1e-5 * along, found)) / 2e-5
    assert (letters.gradient(weights, found) * along).sum() == pytest.approx(slope, rel=1e-6)


# The framework


def test_without_latex2mathml_the_formula_is_text(monkeypatch):
    monkeypatch.setattr("steprule.lessons.formula.find_spec", lambda name: None)
    text = page.__wrapped__("averages")
    beta = '<mark class="k0">beta</mark>'
    assert f"exp_avg ← {beta}·exp_avg + (1 \N{MINUS SIGN} {beta})·grad" in text
    assert "<math" not in text


def test_the_command_lists_and_writes(tmp_path, monkeypatch):
    listed = CliRunner().invoke(app, ["lesson"])
    assert listed.exit_code == 0
    assert [line.split()[1] for line in listed.output.splitlines() if line[0].isdigit()] == list(LESSONS)
    opened = []
    monkeypatch.setattr("typer.launch", opened.append)
    target = tmp_path / "new" / "one.html"
    assert CliRunner().invoke(app, ["lesson", "averages", "--output", str(target), "--no-open"]).exit_code == 0
    assert target.read_text(encoding="utf-8") == page("averages")
    assert opened == []
    again = CliRunner().invoke(app, ["lesson", "averages", "--output", str(target), "--no-open"])
    assert (again.exit_code, again.output) == (
        2,
        f"steprule lesson: {target} is there already; name another file, or remove it\n",
    )
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # what has the lesson's own name is written anew
        assert CliRunner().invoke(app, ["lesson", "averages"]).exit_code == 0
    assert opened == [(tmp_path / "steprule-lesson-averages.html").as_uri()] * 2
    unknown = CliRunner().invoke(app, ["lesson", "average"])
    assert unknown.exit_code == 2
    assert f"there are {', '.join(LESSONS)}" in unknown.output
    with pytest.raises(ValueError, match="no lesson 'average'"):
        find("average")


def test_the_command_says_what_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    folder = f"it is a folder; name a file, such as {tmp_path / 'steprule-lesson-averages.html'}"
    for target, why in ((tmp_path, folder), (tmp_path / "file" / "one.html", "File exists")):
        ended = CliRunner().invoke(app, ["lesson", "averages", "--output", str(target), "--no-open"])
        assert ended.exit_code == 2
        assert ended.output == f"steprule lesson: {target} cannot be written: {why}\n"


def test_a_lesson_is_found_by_number_and_in_any_case(tmp_path):
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for name, path in zip(("2", "AVERAGES"), pages, strict=True):
        assert CliRunner().invoke(app, ["lesson", name, "-o", str(path), "--no-open"]).exit_code == 0
    assert pages[0].read_text(encoding="utf-8") == pages[1].read_text(encoding="utf-8") == page("averages")
    bad = {
        ("0",): "there is no lesson '0'; there are noise",
        ("Averagez",): "there is no lesson 'Averagez'; there are " + ", ".join(LESSONS) + "; did you mean 'averages'?",
        ("--no-open",): "--output and --no-open need the name of a lesson before them",
    }
    for arguments, message in bad.items():
        ended = CliRunner().invoke(app, ["lesson", *arguments])
        assert ended.exit_code == 2 and message in ended.output


def test_the_list_of_lessons_fits_the_terminal():
    shown = CliRunner().invoke(app, ["lesson"], env={"COLUMNS": "60"}).output.splitlines()
    assert max(map(len, shown)) <= 60 and sum(line[0].isdigit() for line in shown) == len(LESSONS)


def test_stars_in_code_are_stars_and_code_may_be_emphasized():
    prose = _Terms().prose
    assert prose("`a * b`, `c**2` and *d*", False) == "<code>a * b</code>, <code>c**2</code> and <em>d</em>"
    assert prose("*`e` of f.* 2 * 3 * 4", False) == "<em><code>e</code> of f.</em> 2 * 3 * 4"


def test_terms_and_texts_may_have_what_html_uses(monkeypatch):
    monkeypatch.setitem(TERMS, 'a "<b>" & c', "Less < than.")
    terms = _Terms()
    assert terms.prose('See a "<b>" & c.') == 'See <a class="term" href="#term-a-b-c">a "&lt;b&gt;" &amp; c</a>.'
    assert terms.list() == '<dt id="term-a-b-c">a &quot;&lt;b&gt;&quot; &amp; c</dt><dd>Less &lt; than.</dd>'


def test_charts_of_other_shapes_are_refused():
    axis = Axis("x", 0, 1)
    one, two = (Chart("c", axis, axis, [Line("", [0], [0])] * count).elements() for count in (1, 2))
    with pytest.raises(ValueError, match="other marks"):
        _slots([one, two])


def test_titles_that_change_are_refused(monkeypatch):
    lesson = find("averages")

    def screen(beta):
        first, *others = lesson.screen(beta).charts
        return Screen([replace(first, title=f"beta {beta}"), *others], "")

    monkeypatch.setattr("steprule.lessons.page.find", lambda name: replace(lesson, screen=screen))
    with pytest.raises(ValueError, match="differ between positions"):
        page.__wrapped__("averages")


def test_what_a_control_or_question_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"begins at 0\.5, which is none of its values"):
        Control("beta", (0.1, 0.9), 0.5)
    with pytest.raises(ValueError, match="'maybe' is none of the choices"):
        Question("Is it?", "maybe", "", ("yes", "no"))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.7, "0.7"), (-1.5, "\u22121.5"), (1e-8, "1e\u22128"), (123456, "1.235e5"), (12345, "12340"), (99999.6, "100000")],
)  # fmt: skip
def test_numbers_are_short(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [(Axis("", 0, 1), [0, 0.25, 0.5, 0.75, 1]), (Axis("", -3, 130), [0, 25, 50, 75, 100, 125]), (Axis("", 1e-3, 10, True), [1e-3, 1e-2, 0.1, 1, 10]),
     (Axis("", 2e-5, 4e-5, True), [2e-5, 2.5e-5, 3e-5, 3.5e-5, 4e-5])],
    ids=["to 1", "to 130", "log", "log without a power"],
)  # fmt: skip
def test_ticks_are_round(axis, ticks):
    assert axis.ticks() == pytest.approx(ticks)


def test_ticks_are_told_as_they_are():
    assert [Axis("", 1e-5, 4e-5, True).text(one) for one in (1e-5, 2.5e-5)] == ["1e\u22125", "2.5e\u22125"]
    assert [Axis("", 1e-4, 1e4, True).text(one) for one in (1e-4, 1.0, 1e4)] == ["1e\u22124", "1", "1e4"]


@pytest.mark.parametrize(("low", "high", "log"), [(1, 1, False), (1, 0, False), (float("nan"), 1, False), (0, 1, True)])
def test_an_axis_without_length_is_refused(low, high, log):
    with pytest.raises(ValueError, match="axis 'loss' goes from"):
        Axis("loss", low, high, log)


def test_what_is_not_finite_is_not_drawn():
    axis, nan = Axis("x", 0, 1), float("nan")
    marks = [Line("", [0, 0.5, nan], [nan, 0.5, 1], dots=True), Bars("", [0.5], [nan])]
    *_, line, dots, bar = Chart("", axis, axis, marks).elements()
    assert line.attributes["d"].count(" ") == dots.attributes["d"].count(" ") == 1
    assert bar.attributes["height"] == "0" and "nan" not in bar.attributes.values()


def test_terms_are_sentences():
    assert all(meaning[0].isupper() and meaning.endswith(".") for meaning in TERMS.values())


def test_texts_and_lines_stand_out_from_their_background():
    """Contrast as WCAG 2 defines it: 4.5 for text, light and dark."""

    def light(color):
        parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05

    schemes = re.findall(r":root \{(.*?)\}", page("averages"), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colors = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
        for name in ("ink", "quiet", "link", "s0", "s1", "s2", "s3", "s4", "s5"):
            for behind in ("paper", "panel"):
                one, two = sorted((light(colors[name]), light(colors[behind])))
                assert two / one >= 4.5, (name, behind)
