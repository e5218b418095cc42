import shutil
import subprocess
from html.parser import HTMLParser

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")
pytest.importorskip("plotly")
pytest.importorskip("sklearn")

from plotly.offline import get_plotlyjs
from typer.testing import CliRunner

from steprule.cli import app

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
browser = next(filter(None, map(shutil.which, NAMES)), None)


class Elements(HTMLParser):
    """The elements of a page, each with the id of the plot that it is in."""

    def __init__(self, text):
        super().__init__()
        self.found, self.plot = [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        if tag in ("div", "figcaption") and (attributes.get("id") or "").startswith("plot-"):
            self.plot = attributes["id"]
        if tag == "figcaption":
            self.plot = None
        self.found.append((tag, attributes, self.plot))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    args = ["sgd:lr=1e30", "adam", "sgd:lr=0.03,momentum=0.9", "--steps", "10", "--seeds", "2", "--out", str(folder)]
    assert CliRunner().invoke(app, ["compare", "-t", "digits", *args]).exit_code == 0
    return folder / "report.html"


@pytest.fixture(scope="module")
def drawn(report, tmp_path_factory):
    """The page's elements after its script has run in a browser."""
    if browser is None:
        pytest.skip("no Chromium or Chrome was found")
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
            "--disable-dev-shm-usage", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
            "--virtual-time-budget=20000", "--dump-dom", report.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Elements(done.stdout).found


@pytest.mark.parametrize("plot", ["plot-0-steps", "plot-0-seconds"])
def test_plots_are_drawn(drawn, plot):
    inside = [(tag, attributes) for tag, attributes, where in drawn if where == plot]
    assert any(tag == "svg" and "main-svg" in attributes.get("class", "") for tag, attributes in inside)
    lines = [attributes for tag, attributes in inside if tag == "path" and "js-line" in attributes.get("class", "")]
    long = [line for line in lines if line["d"].count("L") + line["d"].count(",") > 2]
    assert len(long) >= 3  # adam, sgd with momentum and the target; the diverged one has a single point
    bands = [attributes for tag, attributes in inside if tag == "path" and "js-fill" in attributes.get("class", "")]
    assert len(bands) >= 2
    assert any(tag == "text" and attributes.get("data-unformatted") == "validation loss" for tag, attributes in inside)


def test_the_page_loads_nothing(drawn):
    loading = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
    references = [attributes[name] for _, attributes, _ in drawn for name in loading if attributes.get(name)]
    assert [reference for reference in references if not reference.startswith(("#", "data:"))] == []
    assert not any(tag in ("link", "iframe", "object", "embed", "base") for tag, _, _ in drawn)
    assert not any("url(http" in (attributes.get("style") or "").replace('"', "") for _, attributes, _ in drawn)


def test_the_page_stands_alone(report):
    page = report.read_text(encoding="utf-8")
    assert page.count(get_plotlyjs()) == 1
    own = page.replace(get_plotlyjs(), "")
    assert "default-src 'none'" in own  # the browser itself refuses to load anything
    assert "http://" not in own
    assert "https://" not in own
    assert '<html lang="en">' in own
    assert "<title>Optimizers on digits</title>" in own
