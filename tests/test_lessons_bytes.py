"""What single lessons show, against the same computed another way."""

import json
import re

import numpy as np
import pytest
import torch

pytest.importorskip("typer")

from typer.testing import CliRunner

import steprule
from steprule.charts import Axis, Bits, Chart
from steprule.cli import app
from steprule.lessons import bytes as few_bytes
from steprule.lessons import few_bits

FORMATS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "24 bits": ("bfloat16", "24bit")}
CAUSES = {"a gradient of \u22121": (-1.0, 0.0), "weight decay alone": (0.0, 0.1)}


def alone(kind, lr, cause):
    """One weight by itself, from 1 on."""
    dtype, weights = FORMATS[kind]
    grad, decay = CAUSES[cause]
    param = torch.nn.Parameter(torch.ones(1, dtype=getattr(torch, dtype)))
    param.grad = torch.full_like(param, grad)
    optimizer = steprule.AdamW([param], lr=lr, weight_decay=decay, weights=weights, states="float32")
    way = [1.0]
    for _ in range(200):
        optimizer.step()
        way.append(float(optimizer.read(param)[0]))
    return np.array(way)


def ones_drawn(chart):
    """The bits of a chart as integers, one for each column, read off what is drawn."""
    words, grid = np.zeros(101, np.int64), chart.elements()[0].attributes["d"]
    left, right = (float(one) for one in re.match(r"M(\S+) \S+H(\S+)", grid).groups())
    column = (right - left) / 101
    for element in chart.elements():
        if element.attributes.get("class", "").startswith("bits s"):
            for x, y, wide in re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)", element.attributes["d"]):
                bit = round(31.5 - (float(y) - 12) / (290 - 44 - 12) * 32)
                first, count = (float(x) - left) / column, float(wide) / column
                words[round(first) : round(first + count)] |= 1 << bit
    return words


@pytest.mark.parametrize("cause", CAUSES, ids=["pushed", "decaying"])
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("lr", [0.001, 0.004])
def test_bytes_shows_the_bits_and_the_way_of_a_weight(kind, lr, cause):
    way = alone(kind, lr, cause)
    bits, value = few_bytes.screen(kind, lr, cause).charts[:2]
    words = ones_drawn(bits)
    if kind == "24 bits":
        high, low = words >> 16, (words >> 8) & 0xFF
        words = ((high << 8) + low - ((low >> 7) << 8)) << 8
    assert np.array_equal(words.astype(np.uint32).view(np.float32), way[::2])
    if kind != "float32":
        assert np.array_equal(next(mark.y for mark in value.marks if mark.name == kind), way)


@pytest.mark.parametrize("cause", CAUSES, ids=["pushed", "decaying"])
def test_bytes_shows_stochastic_rounding_that_is_right_on_average_and_wanders(cause):
    for lr in few_bits.LRS:
        ways = few_bits.walk("stochastic").values[few_bits.place(lr, cause)]
        assert np.array_equal(ways, torch.tensor(ways).bfloat16().double().numpy())
        off = np.abs(ways.mean(-1) - few_bits.exact(lr, cause))
        assert (off <= 4.5 * ways.std(-1) / np.sqrt(1000) + 1e-9).all()
        assert ways[-1].std() > 0.001


def test_spacings_are_those_on_paper():
    assert [few_bits.spacing("bfloat16", weight) for weight in (1.0, 0.99, 2.0)] == [2**-7, 2**-8, 2**-6]
    assert [few_bits.spacing("24 bits", weight) for weight in (1.0, 0.99, 2.0)] == [2**-15, 2**-16, 2**-14]


def test_bytes_counts_memory_as_the_command_does():
    rows = json.loads(CliRunner().invoke(app, ["memory", "1048576", "adamw", "--json"]).output)["rows"]
    found = {(row["dtype"], row["states"], row["weights"]): f"{row['bytes_an_element']:.2f}" for row in rows}
    bars = {bar.name: bar.y for bar in few_bytes.screen("float32", 0.001, next(iter(CAUSES))).charts[5].marks}
    assert [f"{total:.2f}" for total in bars["states"]] == [
        found["float32", None, None],
        found["bfloat16", None, None],
        found["bfloat16", "bfloat16", "24bit"],
        found["bfloat16", "8bit", "24bit"],
        found["bfloat16", "8bit", "stochastic"],
    ]
    assert bars["weights"] == [4, 2, 3, 3, 2]


def test_bits_are_drawn_where_they_are_ones():
    chart = Chart(
        "", Axis("", -0.5, 3.5), Axis("", -0.5, 1.5), [Bits("b", [0, 1, 2, 3], [1, 0], [[1, 1, 0, 1], [0, 0, 0, 0]])]
    )
    zeros, ones = (one.attributes["d"] for one in chart.elements() if one.attributes["class"].startswith("bits"))
    assert (zeros.count("M"), ones.count("M")) == (2, 2)


def test_an_axis_may_name_its_ticks():
    axis = Axis("", 0, 2, named={0.5: "a half", 1.5: "more"})
    assert [axis.text(tick) for tick in axis.ticks()] == ["a half", "more"]
