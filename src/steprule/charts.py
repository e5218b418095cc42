"""Charts as SVG: what a page shows without any script."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import numpy as np

WIDTH, HEIGHT = 400, 290
_LEFT, _TOP, _BOTTOM = 60, 12, 44
_LABELS, _BARE = 84, 14  # to the right, with labels and without
_APART = 14  # labels, from line to line

Numbers = Sequence[float] | np.ndarray[Any, Any]


class Element(NamedTuple):
    """An element of a page, to be compared with its like of another position."""

    tag: str
    attributes: dict[str, str]
    text: str = ""


@dataclass(frozen=True)
class Axis:
    """An axis: its label with the unit, and from where to where it goes.

    Attributes:
        named: what is written where, instead of round values.
    """

    label: str
    low: float
    high: float
    log: bool = False
    named: Mapping[float, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            kind = "logarithmic axis" if self.log else "axis"
            raise ValueError(f"the {kind} {self.label!r} goes from {self.low} to {self.high}")

    def share(self, value: float) -> float:
        """Where a value lies, from 0 to 1 within the axis."""
        if self.log:
            value = math.log10(value) if value > 0 else -400.0
            return (value - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """The values of `named`, or round ones within the axis."""
        if self.named:
            return list(self.named)
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if first <= last:
                return [10.0**power for power in range(first, last + 1, 1 + (last - first) // 6)]
        size = (self.high - self.low) / 4
        power = 10 ** math.floor(math.log10(size))
        size = min((power * one for one in (1, 2, 2.5, 5, 10)), key=lambda one: abs(math.log(one / size)))
        first, last = math.ceil(self.low / size - 1e-9), math.floor(self.high / size + 1e-9)
        return [round(size * n, 10) for n in range(first, last + 1)]

    def text(self, tick: float) -> str:
        """What is written at a tick."""
        if self.named:
            return self.named[tick]
        return _with_power(tick, 4) if self.log and not 1e-3 <= tick < 1e4 else number(tick)


@dataclass(frozen=True)
class Line:
    """A line through points, dots at them, or both. Points that are not finite are left out, and the line goes past them.

    Attributes:
        name: what the legend and the label at its end call it; empty for neither.
        style: its color and dashes, 0 to 5, "faint" for what is behind the rest, or for dots on a `Heat` "here" and "rim".
        short: the name for the label, where there is less room than in the legend.
        thin: whether it is one of several lines that a thicker one sums up.
    """

    name: str
    x: Numbers
    y: Numbers
    style: int | str = 0
    line: bool = True
    dots: bool = False
    short: str = ""
    thin: bool = False


@dataclass(frozen=True)
class Bars:
    """Bars from 0, around their x."""

    name: str
    x: Numbers
    y: Numbers
    style: int | str = 0
    width: float = 0.8


@dataclass(frozen=True)
class Heat:
    """A grid of colors, dark for low and light for high: values[row][column] at y[row] and x[column], two or more of each.

    Attributes:
        name: what the colors stand for, with the unit.
        low, high: the values of the darkest and the lightest color.
    """

    name: str
    x: Numbers
    y: Numbers
    values: Sequence[Numbers]
    low: float
    high: float


@dataclass(frozen=True)
class Bits:
    """Rows of bits: dark cells for ones and light cells for zeros, ones[row][column] at y[row] and x[column].

    Attributes:
        x: the columns, two or more, equally far apart.
        y: the rows; none where a format has no such bits.
    """

    name: str
    x: Numbers
    y: Numbers
    ones: Sequence[Numbers]
    style: int | str = 0


@dataclass(frozen=True)
class Chart:
    """A chart.

    Attributes:
        title: what it shows.
        x, y: the axes.
        marks: what is drawn, the first at the bottom.
        labels: "right" for names to the right of where lines end, "end" for names beside their last points, "none".
    """

    title: str
    x: Axis
    y: Axis
    marks: Sequence[Line | Bars | Heat | Bits]
    labels: str = "right"

    @property
    def right(self) -> int:
        """Where the axes end; labels may be beyond."""
        return WIDTH - (_LABELS if self.labels == "right" else _BARE)

    def elements(self) -> list[Element]:
        """The chart, drawn."""
        return _Drawing(self).elements


_STOPS = ((0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56))


def heat_color(share: float) -> str:
    """From dark blue to bright yellow, as lightness alone would tell; red for what is no finite number."""
    if not math.isfinite(share):
        return "#b00040"
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    index = min(int(place), len(_STOPS) - 2)
    rest = place - index
    rgb = (round(a + rest * (b - a)) for a, b in zip(_STOPS[index], _STOPS[index + 1], strict=True))
    return "#" + "".join(f"{part:02x}" for part in rgb)


def number(value: float, digits: int = 4) -> str:
    """A number as a reader writes it."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if not 1e-4 <= abs(value) < 1e5:
        return _with_power(value, digits)
    text = f"{value:.{digits}g}"
    return (f"{float(text):.0f}" if "e" in text else text).replace("-", "\u2212")


def _with_power(value: float, digits: int) -> str:
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}".replace("-", "\u2212")


def _pixel(value: float) -> str:
    return f"{min(max(value, -999.0), 1999.0):.1f}".removesuffix(".0")


class _Drawing:
    """A chart's elements, in the order in which they are drawn."""

    def __init__(self, chart: Chart) -> None:
        self.chart = chart
        self.right = chart.right
        self.bottom = HEIGHT - _BOTTOM
        self.elements: list[Element] = []
        self._labels: list[tuple[float, float, str, str]] = []
        self._draw_axes()
        for mark in chart.marks:
            if isinstance(mark, Heat):
                self._draw_heat(mark)
            elif isinstance(mark, Bars):
                self._draw_bars(mark)
            elif isinstance(mark, Bits):
                self._draw_bits(mark)
            else:
                self._draw_line(mark)
        self._draw_labels()

    def _add(self, tag: str, text: str = "", **attributes: Any) -> None:
        named = {name.rstrip("_").replace("_", "-"): str(value) for name, value in attributes.items()}
        self.elements.append(Element(tag, named, text))

    def _x(self, value: float) -> float:
        return _LEFT + self.chart.x.share(value) * (self.right - _LEFT)

    def _y(self, value: float) -> float:
        return self.bottom - self.chart.y.share(value) * (self.bottom - _TOP)

    def _draw_axes(self) -> None:
        x, y = self.chart.x, self.chart.y
        for tick in y.ticks():
            at = _pixel(self._y(tick))
            self._add("path", class_="grid", d=f"M{_LEFT} {at}H{_pixel(self.right)}")
            self._add("text", y.text(tick), class_="tick y", x=_LEFT - 5, y=at)
        for tick in x.ticks():
            at = _pixel(self._x(tick))
            self._add("path", class_="grid", d=f"M{at} {_TOP}V{self.bottom}")
            self._add("text", x.text(tick), class_="tick x", x=at, y=self.bottom + 15)
        self._add("text", x.label, class_="axis", x=_pixel((_LEFT + self.right) / 2), y=HEIGHT - 8)
        middle = (_TOP + self.bottom) / 2
        self._add("text", y.label, class_="axis", transform=f"translate(13 {_pixel(middle)}) rotate(-90)")

    def _draw_line(self, mark: Line) -> None:
        points = [
            (self._x(x), self._y(y))
            for x, y in zip(mark.x, mark.y, strict=True)
            if math.isfinite(x) and math.isfinite(y)
        ]
        texts = [f"{_pixel(x)} {_pixel(y)}" for x, y in points]
        if mark.line:
            kind = f"line s{mark.style}" + " thin" * mark.thin
            self._add("path", class_=kind, d="M" + "L".join(texts) if texts else "")
        if mark.dots:
            self._add("path", class_=f"dots s{mark.style}", d="".join(f"M{text}h0" for text in texts))
        if mark.name and self.chart.labels != "none":
            seen = [one for one in points if self._is_within(*one)]
            x, y = (seen or [(self.right, _TOP + 8.0)])[-1]
            self._labels.append((x, y, mark.short or mark.name, str(mark.style)))

    def _is_within(self, x: float, y: float) -> bool:
        return _LEFT - 1 <= x <= self.right + 1 and _TOP - 1 <= y <= self.bottom + 1

    def _draw_bars(self, mark: Bars) -> None:
        zero = self._y(max(0.0, self.chart.y.low)) if not self.chart.y.log else float(self.bottom)
        for x, y in zip(mark.x, mark.y, strict=True):
            left, right = self._x(x - mark.width / 2), self._x(x + mark.width / 2)
            top = zero if math.isnan(y) else self._y(y)
            box = {"x": _pixel(left), "width": _pixel(right - left), "y": _pixel(min(top, zero))}
            self._add("rect", class_=f"bar s{mark.style}", height=_pixel(abs(zero - top)), **box)

    def _draw_bits(self, mark: Bits) -> None:
        """Two paths for all cells of a kind, in which cells of a row that follow each other are one stroke."""
        wide, high = self._x(mark.x[1]) - self._x(mark.x[0]), self._y(0) - self._y(1)
        for kind, wanted in (("zeros", False), (f"s{mark.style}", True)):
            path = ""
            for y, row in zip(mark.y, mark.ones, strict=True):
                first = 0
                for value, run in groupby(row, key=bool):
                    count = len(list(run))
                    if value == wanted:
                        path += (
                            f"M{_pixel(self._x(mark.x[first]) - wide / 2)} {_pixel(self._y(y))}h{_pixel(wide * count)}"
                        )
                    first += count
            self._add("path", class_=f"bits {kind}", d=path, stroke_width=f"{high - 1:.2f}")

    def _draw_heat(self, mark: Heat) -> None:
        across = _edges([self._x(x) for x in mark.x])
        down = _edges([self._y(y) for y in mark.y])
        for row, (low, high) in zip(mark.values, down, strict=True):
            for value, (left, right) in zip(row, across, strict=True):
                fill = heat_color((value - mark.low) / (mark.high - mark.low))
                box = {"x": left, "y": high, "width": right - left + 0.4, "height": low - high + 0.4}
                self._add("rect", class_="cell", fill=fill, **{name: _pixel(size) for name, size in box.items()})

    def _draw_labels(self) -> None:
        """The names of lines where they end, moved apart if they would overlap."""
        at_right = self.chart.labels == "right"
        placed: dict[int, float] = {}
        lowest = -math.inf
        for index in sorted(range(len(self._labels)), key=lambda index: self._labels[index][1]):
            placed[index] = lowest = max(self._labels[index][1], lowest + _APART)
        highest = self.bottom - 2.0 + _APART
        for index in reversed(placed):  # from the lowest up: back into the chart, those above as far as they must
            placed[index] = highest = min(placed[index], highest - _APART)
        for index, (x, y, name, style) in enumerate(self._labels):
            if at_right:
                self._add("text", name, class_=f"label s{style}", x=_pixel(self.right + 6), y=_pixel(placed[index]))
            else:
                ends = x > self.right - 8 * len(name)
                kind = f"label s{style}" + " before" * ends
                self._add("text", name, class_=kind, x=_pixel(x + (-8 if ends else 8)), y=_pixel(y - 8))


def _edges(centers: Sequence[float]) -> list[tuple[float, float]]:
    """From where to where each cell goes: half the way to the next center."""
    middles = [(one + two) / 2 for one, two in pairwise(centers)]
    first, last = 2 * centers[0] - middles[0], 2 * centers[-1] - middles[-1]
    return list(pairwise([first, *middles, last]))


# On a page


def style() -> str:
    """What a page with charts needs in its style sheet."""
    return files("steprule").joinpath("charts.css").read_text(encoding="utf-8")


def figure(
    chart: Chart,
    elements: Sequence[Element] | None = None,
    first: int = 0,
    changing: Collection[int] = (),
    description: str = "",
    with_legend: bool = True,
) -> str:
    """A chart with its title and legend, as HTML; what lies outside of the axes is cut off.

    Args:
        chart: the chart.
        elements: those of the chart, if they have been drawn already.
        first: the number of the first element on the page, from which the names of elements are made.
        changing: the numbers of the elements that need a name.
        description: what the chart shows, for those who do not see it.
        with_legend: whether the legend stands above it.
    """
    inside = ("line", "dots", "bar", "cell", "bits")
    drawn, clip = "", f"clip{first}"
    for place, element in enumerate(chart.elements() if elements is None else elements, first):
        attributes = dict(element.attributes)
        if attributes.get("class", "").partition(" ")[0] in inside:
            attributes["clip-path"] = f"url(#{clip})"
        if place in changing:
            attributes["id"] = f"e{place}"
        texts = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        drawn += f"<{element.tag}{texts}>{escape(element.text)}</{element.tag}>"
    name = f"{escape(chart.title)}: {escape(chart.y.label)} against {escape(chart.x.label)}"
    about = f'<desc id="about{first}">{escape(description)}</desc>' if description else ""
    describedby = f' aria-describedby="about{first}"' if description else ""
    box = f'x="{_LEFT}" y="{_TOP}" width="{chart.right - _LEFT}" height="{HEIGHT - _TOP - _BOTTOM}"'
    return f"""<figure class="chart"><h3>{escape(chart.title)}</h3>{legend(chart) if with_legend else ""}
<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}"{describedby}>{about}
<clipPath id="{clip}"><rect {box}/></clipPath>{drawn}</svg></figure>"""


def legend(chart: Chart) -> str:
    """What the marks of a chart that have a name look like, as HTML."""
    items = ""
    for mark in chart.marks:
        if not mark.name:
            continue
        if isinstance(mark, Heat):
            colors = ", ".join(heat_color(step / 5) for step in range(6))
            items += (
                f"<li>{escape(mark.name)}: {number(mark.low, 3)} "
                f'<span class="ramp" style="background: linear-gradient(90deg, {colors})"></span> {number(mark.high, 3)}</li>'
            )
            continue
        kinds = {"bar": isinstance(mark, Bars | Bits), "line": isinstance(mark, Line) and mark.line}
        kinds["dots"] = isinstance(mark, Line) and mark.dots
        shape = {"bar": "M0 0", "line": "M0 6H30", "dots": "M15 6h0"}
        drawn = "".join(f'<path class="{kind} s{mark.style}" d="{shape[kind]}"/>' for kind, on in kinds.items() if on)
        if kinds["bar"]:
            drawn = f'<rect class="bar s{mark.style}" x="8" y="1" width="14" height="10"/>'
        items += f'<li><svg viewBox="0 0 30 12" aria-hidden="true">{drawn}</svg>{escape(mark.name)}</li>'
    return f'<ul class="legend">{items}</ul>' if items else ""
