"""The page of `steprule compare` in a real browser."""

import browser
import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from test_compare_page import comparison, falling, result, run, several
from typer.testing import CliRunner

from steprule.cli import app
from steprule.compare.report import page

LONG = "mine.AVeryLongOptimizerName:lr=0.0001,decoupled_weight_decay=True,momentum_decay=0.123456789,nesterov_momentum=True"


def odd():
    """Long names, diverged and failed runs, a grid, words that do not end."""
    runs = [run(f"adam:lr={lr}", seed, falling(5.0, 2 + lr)) for lr in (0.1, 0.5) for seed in range(3)]
    runs += [run(LONG, seed, falling(5.0, 0.00123 + seed / 300)) for seed in range(3)]
    runs += [run("sgd:lr=1e30", seed, [5.0], status="diverged") for seed in range(3)]
    runs += [run("mine.Breaks", seed, [5.0], status="failed", error="ValueError: " + "word" * 60) for seed in range(3)]
    return result(
        runs, grid=(0.1, 0.5), name="a_task_with_a_very_long_name_that_has_no_space_in_it", description="x" * 90
    )


PAGES = {
    "four": lambda: comparison(several()),
    "eight": lambda: comparison(several(8), several(6)),
    "odd": lambda: comparison(odd(), command="steprule compare " + LONG),
    "named": lambda: comparison(
        result(
            [
                run(
                    f"{name}:lr=0.0001,decoupled_weight_decay=True,momentum_decay=0.004",
                    seed,
                    falling(50.0, 0.0123 + seed),
                    reached_step=1234 + seed,
                )
                for name in ("schedulefreeadamw", "torch.SparseAdam", "my_module.ScheduleFreeMomentum")
                for seed in range(3)
            ]
        ),
        command="steprule compare schedulefreeadamw:decoupled_weight_decay=True,betas=(0.9,0.95),momentum_decay=0.004 -t mine:task",
    ),
    "failed": lambda: comparison(result([run("adam", 0, [], status="failed", error="ValueError: " + "word" * 60)])),
}
every = pytest.mark.parametrize("name", PAGES)


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    if browser.PATH is None:
        pytest.skip("no Chromium or Chrome was found")
    with browser.running(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def opened(tmp_path, tab):
    """Opens a page; it must log no error, which a style that the page's policy forbids would, and load nothing."""

    def open_page(name, **settings):
        path = tmp_path / f"{name}.html"
        path.write_text(page(PAGES[name]()), encoding="utf-8")
        tab.open(path, **settings)
        return tab

    tab.errors.clear(), tab.requests.clear()
    yield open_page
    assert tab.errors == []
    assert [one for one in tab.requests if not one.startswith("file:")] == []


OVERLAPPING = """[...document.querySelectorAll('.chart > svg')].flatMap(svg => {
    const texts = [...svg.querySelectorAll('text')].map(e => [e.textContent, e.getBoundingClientRect()]);
    return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([other, b]) =>
        a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 4 && b.top < a.bottom - 4)
        .map(([other]) => one + ' / ' + other)); })"""
CUT = """[...document.querySelectorAll('.chart > svg')].flatMap(svg => { const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(e => { const b = e.getBoundingClientRect();
    return b.left < box.left - 1 || b.right > box.right + 1 || b.top < box.top - 1 || b.bottom > box.bottom + 1; })
    .map(e => e.textContent); })"""
BROKEN = """[...document.querySelectorAll('th, td, pre, dd')].flatMap(cell => {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT), found = [];
    for (let node; node = walker.nextNode();) for (const word of node.data.matchAll(/\\S+/g)) {
        const range = document.createRange();
        range.setStart(node, word.index), range.setEnd(node, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) found.push(word[0]);
    }
    return found; })"""
WIDE = """[...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 0.5
    && !e.closest('svg')).map(e => e.outerHTML.slice(0, 80))"""


@every
@pytest.mark.parametrize("width", [390, 800, 1400])
def test_nothing_is_cut_off_or_overlaps(opened, name, width):
    tab = opened(name, width=width)
    tab.value("document.querySelectorAll('details').forEach(e => { e.open = true; })")
    assert tab.value("document.documentElement.scrollWidth") <= width
    assert tab.value(WIDE) == []
    assert tab.value(BROKEN) == []
    assert tab.value(CUT) == []
    assert tab.value(OVERLAPPING) == []


@every
def test_the_answer_is_on_the_first_screen_of_a_phone(opened, name):
    tab = opened(name, width=390, height=844)
    assert 0 < tab.value("document.querySelector('.answers strong').getBoundingClientRect().bottom") < 844
    if name != "failed":
        headings = tab.value("[...document.querySelectorAll('thead th')].slice(0, 2).map(e => e.textContent)")
        assert headings == ["optimizer", "steps to target"]


CONTRAST = """(selector, property) => [...document.querySelectorAll(selector)].map(element => {
    const channels = color => color.match(/[\\d.]+/g).slice(0, 3).map(Number).map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const light = color => { const [r, g, b] = channels(color); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const pair = [light(getComputedStyle(element)[property]), light(getComputedStyle(document.body).backgroundColor)];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05); })"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_lines_and_their_names_can_be_seen(opened, scheme):
    tab = opened("eight", scheme=scheme)
    paper = {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 24, 29)"}[scheme]
    assert tab.value("getComputedStyle(document.body).backgroundColor") == paper
    lines = ".chart .line:not(.sfaint, .thin)"
    assert tab.value(f"document.querySelectorAll('{lines}').length") == 4 * 6 + 4  # and the target in each chart
    assert min(tab.value(f"({CONTRAST})('{lines}', 'stroke')")) > 3
    assert min(tab.value(f"({CONTRAST})('.chart .label', 'fill')")) > 4.5
    looks = "e => getComputedStyle(e).stroke + getComputedStyle(e).strokeDasharray"
    first = f"document.querySelector('.chart').querySelectorAll('{lines.removeprefix('.chart ')}')"
    assert tab.value(f"new Set([...{first}].map({looks})).size") == 7
    widths = "[...document.querySelectorAll('.line.thin')].map(e => getComputedStyle(e).strokeWidth)"
    assert set(tab.value(widths)) == {"1px"}


def test_the_page_is_the_same_without_script_and_can_be_used_by_keyboard(opened):
    tab = opened("odd", script=False)
    assert tab.value("document.querySelectorAll('.chart > svg .line').length") > 8
    assert tab.value("getComputedStyle(document.querySelector('.answers')).borderLeftStyle") == "solid"
    assert not tab.value("document.querySelector('details').open")
    for _ in range(2):  # the link to the task, then all learning rates
        tab.press("Tab", 9)
    assert tab.value("document.activeElement.tagName") == "SUMMARY"


def test_the_page_of_a_run_is_small_and_whole(tmp_path, tab):
    tab.errors.clear(), tab.requests.clear()
    args = ["sgd:lr=1e30", "adam", "sgd:lr=0.03,momentum=0.9", "--steps", "10", "--seeds", "2", "--out", str(tmp_path)]
    assert CliRunner().invoke(app, ["compare", "-t", "digits", *args]).exit_code == 0
    path = tmp_path / "report.html"
    assert path.stat().st_size < 200_000
    tab.open(path, width=390)
    assert tab.value("document.title") == "Optimizers on digits"
    assert tab.value("document.documentElement.lang") == "en"
    assert tab.value("document.documentElement.scrollWidth") <= 390
    assert (tab.value(OVERLAPPING), tab.value(CUT), tab.errors) == ([], [], [])
    assert [one for one in tab.requests if not one.startswith("file:")] == []
